"""The 20 labelled ImageNet photos of foolbox.

The package is MIT-licensed, but says nothing about the rights in the photos, so they are not
passed on from here.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from _archives import Archive
from PIL import Image

PHOTOS = Archive(
    file="foolbox-3.3.4-py3-none-any.whl",
    requirement="foolbox==3.3.4",
    size=1_677_112,
    sha256="11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb",
)


class Photo(NamedTuple):
    """A photo and its ImageNet class.

    Attributes:
        label: index of the class, 0 to 999.
        image: ``[1, size, size, 3; float32]``, red, green, blue, whole numbers from 0 to 255.
    """

    label: int
    image: np.ndarray


def read_photos(folder: Path, *, size: int) -> list[Photo]:
    """The photos in the order of their file names, ``imagenet_<number>_<label>.jpg``."""
    with zipfile.ZipFile(folder / PHOTOS.file) as archive:
        names = sorted(n for n in archive.namelist() if n.startswith("foolbox/data/imagenet_"))
        return [
            Photo(int(Path(name).stem.split("_")[-1]), _read(archive.open(name), size))
            for name in names
        ]


def _read(file: IO[bytes], size: int) -> np.ndarray:
    """A centre crop that leaves out a margin, resized."""
    image = Image.open(file).convert("RGB")
    side = size * min(image.size) // (size + 32)
    left, top = ((length - side) // 2 for length in image.size)
    image = image.crop((left, top, left + side, top + side)).resize(
        (size, size), Image.Resampling.BICUBIC
    )
    return np.asarray(image, np.float32)[None]
