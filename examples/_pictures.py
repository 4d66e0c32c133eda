"""Networks that make pictures, in float32 and in int8: figures, a table, the pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from _folds import Fold, compare, print_bytes
from PIL import Image

from jax_qconv import report

MAGNIFIED = 10  # times, the difference that is shown


def conv(layer: dict[str, Any], x: jax.Array) -> jax.Array:
    """A convolution of ``[N, H, W, C]`` with stride 1, as large as its input, and a bias."""
    y = jax.lax.conv_general_dilated(
        x, layer["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y + layer["bias"][None, None, None]


def judge(
    function: Callable[..., Any],
    weights: Any,
    fold: Fold,
    *,
    min_db: float,
    plot: Path | None,
    **options: Any,
) -> int | str:
    """Compare the pictures of both networks.

    Args:
        function: from ``weights`` and images ``[N, H, W, 3; float32]`` to pictures whose numbers
            lie between 0 and 1.
        weights: a pytree of float arrays.
        fold: images to calibrate on, and others.
        min_db: the mean peak signal-to-noise ratio that is expected.
        plot: file of the pictures, or None.
        options: of `quantize_model`.

    Returns:
        0, or what is wrong: the exit status of the program.
    """
    found = compare(function, weights, [fold], **options)
    print(report(found.model, weights, fold.judged), end="\n\n")
    print_bytes(weights, found.model)
    in_float, in_int8 = np.concatenate(found.in_float), np.concatenate(found.in_int8)
    for photo, decibels in enumerate(peak_signal_to_noise(in_float, in_int8)):
        print(f"photo {photo}: PSNR {decibels:.1f} dB")
    if plot is not None:
        side_by_side(in_float, in_int8).save(plot)
    mean = figures(in_float, in_int8)["mean_psnr_db"]
    print(f"mean PSNR: {mean:.1f} dB")
    return f"int8 comes to {mean:.1f} dB of float32, not to {min_db}." if mean < min_db else 0


def peak_signal_to_noise(exact: np.ndarray, approximate: np.ndarray) -> np.ndarray:
    """Decibels of each picture ``[N, H, W, C]``; the peak is 1, and beyond it all is as bright."""
    difference = np.clip(exact, 0, 1) - np.clip(approximate, 0, 1)
    return -10 * np.log10(np.square(difference).mean((1, 2, 3)))


def figures(in_float: np.ndarray, in_int8: np.ndarray) -> dict[str, float]:
    """Of pictures ``[N, H, W, C; float32]``, by name."""
    decibels = peak_signal_to_noise(in_float, in_int8)
    return {"mean_psnr_db": float(decibels.mean()), "least_psnr_db": float(decibels.min())}


def side_by_side(in_float: np.ndarray, in_int8: np.ndarray) -> Image.Image:
    """A row for each picture: float32, int8, and their difference, magnified."""
    difference = MAGNIFIED * np.abs(in_float - in_int8)
    columns = np.concatenate([in_float, in_int8, difference], axis=2)
    pixels = np.rint(255 * np.clip(np.concatenate(columns), 0, 1)).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
