"""The networks whose accuracy in int8 is measured. A new one is a function and a line in `NETS`."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

sys.path.append(str(pathlib.Path(__file__).resolve().parents[2] / "examples"))

import _fashion_mnist_data as fashion_mnist_data
import _imagenet
import _pictures
import efficientnet_lite
import fashion_mnist
import hed
import ocr
import realesrgan
import squeezenet
from _fashion_mnist_nets import NETS as FASHION_MNIST_NETS
from _fashion_mnist_weights import FOLDER, load_weights, weights_path
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
        weights: of each training a pytree of float arrays.
        folds: batches that are shown, and others that are judged.
        judged: how many there are of what.
        figures: of the outputs in float32 and in int8, by names of `accuracy_section.MEASURES`.
        goals: figures to reach.
        fixed: options of `quantize_model` beside those that are tried.
    """

    title: str
    function: Callable[..., Any]
    weights: list[Any]
    folds: list[Fold]
    judged: str
    figures: Callable[[Outputs, Outputs], dict[str, float]]
    goals: dict[str, float]
    fixed: Mapping[str, Any] = MappingProxyType({})


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
        weights=[weights],
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
        weights=[example.read_weights(folder)],
        folds=[example.read_fold(folder)],
        judged=f"{example.JUDGED} photos",
        figures=figures,
        goals={"mean_psnr_db": example.MIN_DB},
    )


def of_fashion_mnist(
    title: str,
    net: str,
    seeds: Sequence[int],
    folder: pathlib.Path,
    goals: dict[str, float],
    **fixed: Any,
) -> Case:
    """A network of our own, trained with some seeds, judged by all test photos of Fashion-MNIST."""
    training, test = (fashion_mnist_data.read_split(folder, name) for name in ("train", "t10k"))
    shown, judged = (
        np.split(fashion_mnist_data.scaled(images), count)
        for images, count in ((training.images[: fashion_mnist.CALIBRATION], 4), (test.images, 20))
    )

    def figures(in_float: Outputs, in_int8: Outputs) -> dict[str, float]:
        return fashion_mnist.figures(test.labels, *map(np.concatenate, (in_float, in_int8)))

    several = f", mean of {len(seeds)} trainings" if len(seeds) > 1 else ""
    return Case(
        title=f"{title} on Fashion-MNIST{several}",
        function=FASHION_MNIST_NETS[net].apply,
        weights=[load_weights(weights_path(FOLDER, net, seed))[0] for seed in seeds],
        folds=[Fold(shown, judged)],
        judged=f"{len(test.labels):,} photos",
        figures=figures,
        goals=goals,
        fixed=fixed,
    )


def of_ocr(folder: pathlib.Path) -> Case:
    """The reader of text lines."""
    graph, lines = ocr.read_network(folder), ocr.make_lines(**ocr.TEST)
    characters = ocr.characters(graph)
    indices, judged = zip(*ocr.in_batches(lines), strict=True)
    shown = [images for _, images in ocr.in_batches(ocr.make_lines(**ocr.CALIBRATION))]

    def figures(in_float: Outputs, in_int8: Outputs) -> dict[str, float]:
        equal = sum(
            ocr.decode(a, characters) == ocr.decode(b, characters)
            for batch, rows, others in zip(indices, in_float, in_int8, strict=True)
            # A batch that wasn't full repeats its lines.
            for _, a, b in zip(batch, rows, others, strict=False)
        )
        return {"equal_lines": equal}

    return Case(
        title="PP-OCR recogniser",
        function=lambda weights, images: ocr.run_float(graph, weights, images).argmax(-1),
        weights=[graph.weights],
        folds=[Fold(shown, list(judged))],
        judged=f"{len(lines)} lines",
        figures=figures,
        goals={"equal_lines": ocr.MIN_EQUAL},
    )


RESNET, MOBILENET = ("ResNet-20", "resnet", (0, 1, 2)), ("MobileNet", "mobilenet", (0,))

NETS: dict[str, Callable[[pathlib.Path], Case]] = {
    "squeezenet": of_squeezenet,
    "efficientnet_lite0": lambda folder: of_lite("lite0", folder),
    "efficientnet_lite2": lambda folder: of_lite("lite2", folder),
    "hed": lambda folder: of_pictures("HED", hed, hed.hed, folder),
    "realesrgan": lambda folder: of_pictures(
        "Real-ESRGAN animevideo x4", realesrgan, realesrgan.upscale, folder
    ),
    "ocr": of_ocr,
    "fashion_mnist_resnet": lambda folder: of_fashion_mnist(
        *RESNET, folder, {"loss": 0.1, "agreement": 99}
    ),
    "fashion_mnist_resnet_per_tensor": lambda folder: of_fashion_mnist(
        "ResNet-20, weights per tensor,", *RESNET[1:], folder, {"loss": 0.3}, per_channel=False
    ),
    "fashion_mnist_mobilenet": lambda folder: of_fashion_mnist(*MOBILENET, folder, {"loss": 0.3}),
}
"""By name: from the folder of the archives to the case."""
