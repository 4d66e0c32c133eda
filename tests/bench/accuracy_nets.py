"""The networks whose accuracy in int8 is measured. A new one is a function and a line in `NETS`."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

sys.path.append(str(pathlib.Path(__file__).resolve().parents[2] / "examples"))

import _imagenet
import _pictures
import efficientnet_lite
import hed
import realesrgan
import squeezenet
from _folds import Fold, compare
from _photos import Photo, read_photos

__all__ = ["NETS", "Case", "compare"]

Outputs = Sequence[np.ndarray]
"""An array for each judged batch."""


class Case(NamedTuple):
    """A network, and all that it takes to judge it.

    Attributes:
        title: what it is called in README.md.
        function: from ``weights`` and a batch to an array.
        weights: a pytree of float arrays.
        folds: batches that are shown, and others that are judged.
        judged: how many there are of what.
        figures: of the outputs in float32 and in int8, by names of `accuracy_section.MEASURES`.
        goals: figures to reach.
    """

    title: str
    function: Callable[..., Any]
    weights: Any
    folds: list[Fold]
    judged: str
    figures: Callable[[Outputs, Outputs], dict[str, float]]
    goals: dict[str, float]


def of_squeezenet(folder: pathlib.Path) -> Case:
    photos = read_photos(folder, size=squeezenet.SIZE)
    weights = squeezenet.read_weights(folder)
    function, preprocess = squeezenet.squeezenet, squeezenet.preprocess
    return classifier("SqueezeNet v1.1", function, weights, photos, preprocess, least_db=28)


def of_lite(name: str, folder: pathlib.Path) -> Case:
    variant = efficientnet_lite.VARIANTS[name]
    photos = read_photos(folder, size=variant.size)
    weights = efficientnet_lite.read_weights(folder, variant)
    function, preprocess = efficientnet_lite.efficientnet_lite, efficientnet_lite.preprocess
    title = f"EfficientNet-{name.capitalize()}"
    return classifier(title, function, weights, photos, preprocess, least_db=25)


def classifier(
    title: str,
    function: Callable[..., Any],
    weights: Any,
    photos: list[Photo],
    preprocess: Callable[[np.ndarray], np.ndarray],
    *,
    least_db: float,
) -> Case:
    """Of ImageNet photos: calibrated on three quarters of them and judged on the fourth."""
    labels = np.array([photo.label for photo in photos])

    def figures(in_float: Outputs, in_int8: Outputs) -> dict[str, float]:
        return _imagenet.figures(labels, np.concatenate(in_float), np.concatenate(in_int8))

    return Case(
        title=title,
        function=function,
        weights=weights,
        folds=_imagenet.quarters(photos, preprocess),
        judged=f"{len(photos)} photos",
        figures=figures,
        goals={"same_top1": 19, "mean_logit_sqnr_db": least_db},
    )


def of_pictures(title: str, example: Any, function: Any, folder: pathlib.Path) -> Case:
    """A network that makes pictures of photos."""

    def figures(in_float: Outputs, in_int8: Outputs) -> dict[str, float]:
        return _pictures.figures(np.concatenate(in_float), np.concatenate(in_int8))

    return Case(
        title=title,
        function=function,
        weights=example.read_weights(folder),
        folds=[example.read_fold(folder)],
        judged=f"{example.JUDGED} photos",
        figures=figures,
        goals={"mean_psnr_db": example.MIN_DB},
    )


NETS: dict[str, Callable[[pathlib.Path], Case]] = {
    "squeezenet": of_squeezenet,
    "efficientnet_lite0": lambda folder: of_lite("lite0", folder),
    "efficientnet_lite2": lambda folder: of_lite("lite2", folder),
    "hed": lambda folder: of_pictures("HED", hed, hed.hed, folder),
    "realesrgan": lambda folder: of_pictures(
        "Real-ESRGAN animevideo x4", realesrgan, realesrgan.upscale, folder
    ),
}
"""By name: from the folder of the archives to the case."""
