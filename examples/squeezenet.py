"""SqueezeNet v1.1 on ImageNet photos with all 26 convolutions in int8, held against float32.

    pip install '.[examples]'        # in a checkout
    python examples/squeezenet.py    # says how to get the weights and the photos (6.4 MB)

Scales are data: each photo is run with scales calibrated on the other 19, by one compiled
program. Between the convolutions there is nothing but int8: pooling it is exact, and so is
concatenating two tensors that share a scale.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _archives import parse_folder
from _leave_one_out import leave_one_out
from _photos import PHOTOS, read_photos
from _report import print_bytes, print_comparison, print_network
from _squeezenet_data import SIZE, WEIGHTS, preprocess, read_weights

from jax_qconv import PackedConv, QTensor, prepack, qconv, quantize

Weights = dict[str, list[np.ndarray]]


def squeezenet(x: Any, conv: Callable[[str, Any], Any]) -> jax.Array:
    """The network, written once: ``conv(name, x)`` applies a convolution, float or int8.

    Args:
        x: ``[N, 227, 227, 3]``, a float array or a `QTensor`.
        conv: includes bias and, but for ``conv10``, ReLU.

    Returns:
        Logits ``[N, 1000; float32]``.
    """
    x = max_pool(conv("conv1", x))
    for fire in range(2, 10):
        if fire in (4, 6):
            x = max_pool(x)
        x = conv(f"fire{fire}/squeeze1x1", x)
        x = concatenate(conv(f"fire{fire}/expand1x1", x), conv(f"fire{fire}/expand3x3", x))
    return conv("conv10", x).mean((1, 2))


def max_pool(x: Any) -> Any:
    """3x3 windows, stride 2. The largest integer is that of the largest real number."""
    if isinstance(x, QTensor):
        return dataclasses.replace(x, values=max_pool(x.values))
    lowest = -128 if x.dtype == jnp.int8 else -jnp.inf
    init = np.array(lowest, x.dtype)
    return jax.lax.reduce_window(x, init, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID")


def concatenate(a: Any, b: Any) -> Any:
    """Along channels; two `QTensor`s must have equal scales."""
    if isinstance(a, QTensor):
        return QTensor(concatenate(a.unpadded(), b.unpadded()), a.scale)
    return jnp.concatenate([a, b], axis=-1)


def strides(name: str) -> int:
    return 2 if name == "conv1" else 1


def scale_name(name: str) -> str:
    """Name of the scale of a convolution's output; both halves of a concatenation share one."""
    return re.sub("expand.x.", "expand", name)


@jax.jit
def run_float(weights: Weights, image: jax.Array) -> tuple[jax.Array, dict[str, list[jax.Array]]]:
    """Logits ``[1000; float32]``, and the activations under the names of their scales."""
    activations = {"image": [image]}

    def conv(name: str, x: jax.Array) -> jax.Array:
        weight, bias = weights[name]
        y = bias + jax.lax.conv_general_dilated(
            x,
            weight,
            window_strides=(strides(name),) * 2,
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision="highest",
        )
        if name == "conv10":
            return y
        activations.setdefault(scale_name(name), []).append(jax.nn.relu(y))
        return jax.nn.relu(y)

    return squeezenet(image, conv)[0], activations


@jax.jit
def run_int8(
    packs: dict[str, PackedConv], scales: dict[str, jax.Array], image: jax.Array
) -> jax.Array:
    """Logits ``[1000; float32]``."""

    def conv(name: str, x: QTensor) -> QTensor | jax.Array:
        if name == "conv10":
            return qconv(x, packs[name])
        return qconv(x, packs[name], out_scale=scales[scale_name(name)], activation="relu")

    return squeezenet(quantize(image, scales["image"]), conv)[0]


def main() -> int | str:
    folder = parse_folder(__doc__.splitlines()[0], [WEIGHTS, PHOTOS])
    photos, weights = read_photos(folder, size=SIZE), jax.device_put(read_weights(folder))
    packs = {name: prepack(w, b, strides=strides(name)) for name, (w, b) in weights.items()}

    images = [preprocess(photo.image) for photo in photos]
    results = leave_one_out(images, run_float, weights, run_int8, packs)
    print_network(packs, results.plans, ["the mean over the pixels of conv10, which gives float32"])
    print_bytes(weights, packs)
    print()
    return print_comparison(np.array([photo.label for photo in photos]), results)


if __name__ == "__main__":
    sys.exit(main())
