"""Resizing int8 images, to int8: integer weights, one rounding."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_qconv import _steps
from jax_qconv._quantize import QTensor
from jax_qconv._spec import as_ints


def qresize(
    x: QTensor,
    size: int | Sequence[int],
    *,
    method: str = "nearest",
    align_corners: bool = False,
    half_pixel_centers: bool = True,
    out_scale: Any = None,
    out_zero_point: Any = None,
) -> QTensor:
    """Resize the spatial axes, without antialiasing. One kernel.

    Output pixel i of P looks at the position p of the H input pixels:

    - by default (i + 0.5) * H / P - 0.5: what `jax.image.resize(antialias=False)` does, and in
      PyTorch ``"nearest-exact"`` and ``"bilinear"``;
    - without ``half_pixel_centers`` i * H / P: PyTorch's ``"nearest"``;
    - with ``align_corners`` i * (H - 1) / (P - 1): PyTorch's ``"bilinear"`` with that option.

    ``"nearest"`` takes the pixel floor(p + 0.5) with half-pixel centres, else floor(p); exactly,
    where others compute p in float32. ``"bilinear"`` limits p to the image, and weighs the two
    pixels around it by integers that add up to n (p is a fraction), along each axis:
    q = clip(rint(S / n + zp_y), -128, 127), where S is the integer sum of weighted x - zp_x and
    n the product of those of all axes: the formula of `qavg_pool`, with or without
    ``out_scale``. What is rounded to an integer is the exact value, half to even. The result is
    the same on all backends.

    Args:
        x: ``[N, W, C; int8]``, ``[N, H, W, C; int8]`` or ``[N, D, H, W, C; int8]``.
        size: of the output along each spatial axis, or one int for all.
        method: ``"nearest"`` or ``"bilinear"`` (linear along each spatial axis).
        align_corners: whether the corner pixels of input and output match; for ``"bilinear"``.
            It takes the place of ``half_pixel_centers``.
        half_pixel_centers: whether pixels have their position in the middle.
        out_scale: ``[; float32]`` positive, real units per integer step; None keeps that of
            ``x``, and its zero point unless there is an ``out_zero_point``. For ``"bilinear"``.
        out_zero_point: ``[; int32]`` in [-128, 127]; None with an ``out_scale`` means symmetric
            data. For ``"bilinear"``.

    Returns:
        A `QTensor` of ``[N, *size, C; int8]``, padded channels included.

    Raises:
        TypeError: if ``x`` isn't a `QTensor` of int8 values, or is differentiated.
        ValueError: on another rank, without pixels, on a size below 1, an unknown method, or
            options that it doesn't have; on a bad scale or zero point.
    """
    x = _steps.operand("qresize", "x", x, ranks=(3, 4, 5))
    sizes = x.values.shape[1:-1]
    size = as_ints("size", size, rank=len(sizes), minimum=1)
    if 0 in sizes:
        raise ValueError(f"x of shape {list(x.shape)} has no pixels to resize.")
    for name, flag in (
        ("align_corners", align_corners),
        ("half_pixel_centers", half_pixel_centers),
    ):
        if not isinstance(flag, bool):
            raise TypeError(f"{name} must be True or False, got {flag!r}.")
    if method not in ("nearest", "bilinear"):
        raise ValueError(f"method={method!r} is not known; use 'nearest' or 'bilinear'.")
    if method == "nearest":
        if align_corners:
            raise ValueError("align_corners is for method='bilinear', got it for 'nearest'.")
        if out_scale is not None or out_zero_point is not None:
            raise ValueError(
                "out_scale and out_zero_point are for method='bilinear', got one for 'nearest', "
                "which keeps those of x; requantize the result."
            )
        values = x.values
        for axis, pair in enumerate(zip(sizes, size, strict=True), start=1):
            values = _take(values, _nearest(*pair, half_pixel_centers), axis)
        return QTensor(values, x.scale, x.zero_point, x.channels)
    return _bilinear(x, size, align_corners, half_pixel_centers, out_scale, out_zero_point)


def _nearest(size: int, count: int, half_pixel_centers: bool) -> np.ndarray:
    """The pixel that each output pixel takes."""
    index = np.arange(count)
    # floor((i + 0.5) * size / count), or floor(i * size / count)
    return (2 * index + 1) * size // (2 * count) if half_pixel_centers else index * size // count


def _take(values: jax.Array, index: np.ndarray, axis: int) -> jax.Array:
    if len(index) == values.shape[axis] and (index == np.arange(len(index))).all():
        return values
    return jnp.take(values, index.astype(np.int32), axis=axis, mode="clip")


def _bilinear(
    x: QTensor,
    size: Sequence[int],
    align_corners: bool,
    half_pixel_centers: bool,
    out_scale: Any,
    out_zero_point: Any,
) -> QTensor:
    sizes = x.values.shape[1:-1]
    weights = [
        _weights(*pair, align_corners, half_pixel_centers) for pair in zip(sizes, size, strict=True)
    ]
    total = math.prod(n for *_, n in weights)
    rank = len(sizes)
    with jax.enable_x64(True):
        dtype = np.dtype(np.int64 if total * 255 >= 2**31 else np.int32)
        sums: Any = np.zeros((), dtype)
        # Every corner around the position; of an axis without fractions there is but one.
        for corner in itertools.product(*((0, 1) if n > 1 else (0,) for *_, n in weights)):
            values, weight = x.values, np.ones((1,) * (rank + 2), dtype)
            for axis, (side, (below, above, n)) in enumerate(zip(corner, weights, strict=True), 1):
                index = np.minimum(below + side, sizes[axis - 1] - 1)
                values = _take(values, index, axis)
                shape = [1] * (rank + 2)
                shape[axis] = len(index)
                weight = weight * (above if side else n - above).reshape(shape).astype(dtype)
            sums = sums + values.astype(dtype) * weight
    return _steps.mean("qresize", x, sums, np.array(total), out_scale, out_zero_point)


def _weights(
    size: int, count: int, align_corners: bool, half_pixel_centers: bool
) -> tuple[np.ndarray, np.ndarray, int]:
    """For each output pixel the pixel below its position, and the weight of the next one, of n."""
    index = np.arange(count)
    # The position is numerator / n.
    if align_corners:
        numerator, n = index * (size - 1), max(count - 1, 1)
    elif half_pixel_centers:
        numerator, n = (2 * index + 1) * size - count, 2 * count
    else:
        numerator, n = index * size, count
    numerator = np.clip(numerator, 0, (size - 1) * n)
    common = math.gcd(n, *map(int, numerator))
    numerator, n = numerator // common, n // common
    return numerator // n, numerator % n, n
