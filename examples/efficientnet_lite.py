"""EfficientNet-Lite0 on ImageNet photos with all 49 convolutions in int8, held against float32.

    pip install '.[examples]'               # in a checkout
    python examples/efficientnet_lite.py    # says how to get the weights and the photos (19 MB)

Only int8 flows between the convolutions, 16 of which are depthwise, and the residuals are added
inside of them. Only the outputs of the projections, which have no activation, are calibrated: for
each photo on the other 19. What ReLU6 gives lies between 0 and 6, and the pixels are integers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from _archives import parse_folder
from _efficientnet_data import SIZE, WEIGHTS, Weights, preprocess, read_weights
from _leave_one_out import Scales, leave_one_out
from _photos import PHOTOS, read_photos
from _report import print_bytes, print_comparison, print_network

from jax_qconv import PackedConv, QTensor, dequantize, prepack, qconv, quantize


class Block(NamedTuple):
    """An inverted bottleneck: expand (but in the first), depthwise, project.

    Attributes:
        strides: of the depthwise convolution.
        residual: whether the block's input is added to its output.
    """

    strides: int
    residual: bool


STAGES = [(1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1)]  # blocks, strides of the first
BLOCKS = [
    Block(strides=strides if i == 0 else 1, residual=i > 0)
    for count, strides in STAGES
    for i in range(count)
]


# A pixel p of 0 to 255 is (p - 127) / 128 for the network: in int8, exactly p - 128.
PIXELS = {"scale": 1 / 128, "zero_point": -1}
# All 256 integers are for 0 to 6; without a zero point it would be half of them.
RELU6 = {"out_scale": 6 / 255, "out_zero_point": -128, "activation": "relu6"}


def efficientnet_lite(x: Any, conv: Callable[[str, Any, Any], Any]) -> Any:
    """The convolutions, written once: ``conv(name, x, residual)`` applies one, float or int8.

    Args:
        x: ``[N, 224, 224, 3]``, a float array or a `QTensor`.
        conv: includes bias, residual (if it isn't None) and, but for projections, ReLU6.

    Returns:
        Features ``[N, 7, 7, 1280]``.
    """
    x = conv("stem", x, None)
    for i, block in enumerate(BLOCKS):
        y = conv(f"{i}/expand", x, None) if i > 0 else x
        y = conv(f"{i}/depthwise", y, None)
        x = conv(f"{i}/project", y, x if block.residual else None)
    return conv("head", x, None)


def strides(name: str) -> int:
    if name.endswith("/depthwise"):
        return BLOCKS[int(name.split("/")[0])].strides
    return 2 if name == "stem" else 1


def groups(name: str, weight: Any) -> int:
    return len(weight) if name.endswith("/depthwise") else 1


def has_relu6(name: str) -> bool:
    return not name.endswith("/project")


def classify(features: jax.Array, classifier: Any) -> jax.Array:
    """Features of one photo ``[1, 7, 7, 1280; float32]`` to logits ``[1000; float32]``."""
    weight, bias = classifier
    return jnp.dot(weight, features.mean((0, 1, 2)), precision="highest") + bias


@jax.jit
def run_float(weights: Weights, image: jax.Array) -> tuple[jax.Array, dict[str, list[jax.Array]]]:
    """Logits ``[1000; float32]``, and the outputs of the projections."""
    activations = {}

    def conv(name: str, x: jax.Array, residual: jax.Array | None) -> jax.Array:
        weight, bias = weights[name]
        y = bias + jax.lax.conv_general_dilated(
            x,
            weight,
            window_strides=(strides(name),) * 2,
            padding="SAME",
            feature_group_count=groups(name, weight),
            dimension_numbers=("NHWC", "OIHW", "NHWC"),
            precision="highest",
        )
        if has_relu6(name):
            return jax.nn.relu6(y)
        y = y if residual is None else y + residual
        activations[name] = [y]
        return y

    return classify(efficientnet_lite(image, conv), weights["classifier"]), activations


class Int8Weights(NamedTuple):
    """The convolutions, and the classifier ``([1000, 1280; float32], [1000; float32])``."""

    packs: dict[str, PackedConv]
    classifier: Any


def pack(weights: Weights) -> Int8Weights:
    convolutions = {name: wb for name, wb in weights.items() if name != "classifier"}
    packs = {
        name: prepack(
            weight, bias, layout="OIHW", strides=strides(name), groups=groups(name, weight)
        )
        for name, (weight, bias) in convolutions.items()
    }
    return Int8Weights(packs, weights["classifier"])


@jax.jit
def run_int8(weights: Int8Weights, scales: Scales, image: jax.Array) -> jax.Array:
    """Logits ``[1000; float32]``."""

    def conv(name: str, x: QTensor, residual: QTensor | None) -> QTensor:
        packed = weights.packs[name]
        if has_relu6(name):
            return qconv(x, packed, **RELU6)
        return qconv(x, packed, residual=residual, out_scale=scales[name])

    features = efficientnet_lite(quantize(image, **PIXELS), conv)
    return classify(dequantize(features), weights.classifier)


LEFT_IN_FLOAT = [
    "the mean over the last 7x7 pixels: 8 bits would not hold it exactly",
    "the classifier: no convolution, 1.3 of the network's 385 million multiplications",
]


def main() -> int | str:
    folder = parse_folder(__doc__.splitlines()[0], [WEIGHTS, PHOTOS])
    photos, weights = read_photos(folder, size=SIZE), jax.device_put(read_weights(folder))
    int8_weights = pack(weights)

    images = [preprocess(photo.image) for photo in photos]
    results = leave_one_out(images, run_float, weights, run_int8, int8_weights)
    print_network(int8_weights.packs, results.plans, LEFT_IN_FLOAT)
    print_bytes(weights, *int8_weights)
    print()
    return print_comparison(np.array([photo.label for photo in photos]), results)


if __name__ == "__main__":
    sys.exit(main())
