"""Fashion-MNIST: 60,000 and 10,000 labelled grey photos of clothes, 28x28 pixels.

The data are under the MIT License; Debian packages them.
"""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

INSTALLED = Path("usr/share/datasets/fashion-mnist")
"""Where the package puts its files, below its root."""
ROOT = Path("/")
PIXELS, LABELS = "images-idx3-ubyte.gz", "labels-idx1-ubyte.gz"
HOW_TO_GET = """\
Get the data (31 MB) as a Debian package: installed for all, or below a folder DIR, with
  apt-get install dataset-fashion-mnist
  apt-get download dataset-fashion-mnist && dpkg-deb -x dataset-fashion-mnist_*.deb DIR
and say --data DIR in the second case."""


class DataError(Exception):
    """A file is missing or isn't the expected one; the text says how to get it."""


class Split(NamedTuple):
    """Photos and what they show.

    Attributes:
        images: ``[N, 28, 28, 1; uint8]``, 0 is the background.
        labels: ``[N; uint8]``, 0 to 9.
    """

    images: np.ndarray
    labels: np.ndarray


def read_split(folder: Path, name: str) -> Split:
    """The photos to learn from (``"train"``) or to judge by (``"t10k"``).

    Args:
        folder: with the files, or with the package's folders.
        name: of the split.

    Raises:
        DataError: if a file is missing or damaged.
    """
    if (folder / INSTALLED).is_dir():
        folder = folder / INSTALLED
    images, labels = (read_idx(folder / f"{name}-{file}") for file in (PIXELS, LABELS))
    if images.shape != (len(labels), 28, 28):
        raise DataError(
            f"{folder} has {name} images of shape {images.shape} for {len(labels)} labels; they "
            f"should be [{len(labels)}, 28, 28].\n{HOW_TO_GET}"
        )
    return Split(images[..., None], labels)


def read_idx(path: Path) -> np.ndarray:
    """An array of bytes in a compressed IDX file: a type, its shape, the values.

    Raises:
        DataError: if the file is missing or isn't one.
    """
    try:
        data = gzip.decompress(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path} is missing.\n{HOW_TO_GET}") from None
    except (EOFError, OSError) as error:
        raise DataError(f"{path} cannot be read ({error}).\n{HOW_TO_GET}") from error
    kind, rank = data[2:4] if data[:2] == b"\0\0" and len(data) >= 4 else (None, 0)
    start = 4 + 4 * rank
    shape = np.frombuffer(data[4:start], ">u4").tolist() if len(data) >= start else []
    if kind != 8 or len(shape) != rank or len(data) != start + math.prod(shape):
        raise DataError(f"{path} isn't an IDX file of bytes.\n{HOW_TO_GET}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def scaled(images: Any) -> Any:
    """Pixels ``[...; uint8]`` as floats from -1 to 1."""
    return (images.astype(np.float32) - 128) / 128
