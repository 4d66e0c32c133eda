"""Pooling of int8 tensors, to int8: exact int32 sums, one rounding.

With S the int32 sum of x - zp_x over n elements, an average that keeps the scale is the exact
S / n + zp_y, rounded half to even in integer arithmetic. One with a scale of its own is
rint(S * m + zp_y), where m = x.scale / (out_scale * n) is computed in float64 and rounded once to
float32; the product is exact in float64.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_qconv import _steps
from jax_qconv._quantize import QTensor
from jax_qconv._spec import AXES, as_ints
from jax_qconv._window import Windows, bins

_RANKS = (3, 4, 5)


def qmax_pool(
    x: QTensor,
    window: int | Sequence[int],
    *,
    strides: int | Sequence[int] | None = None,
    padding: str | int | Sequence[Any] = "VALID",
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
) -> QTensor:
    """The largest integer of each window; scale and zero point pass through. One kernel.

    Padding never wins: it is -128.

    Args:
        x: ``[N, W, C; int8]``, ``[N, H, W, C; int8]`` or ``[N, D, H, W, C; int8]``.
        window: elements along each spatial axis, or one int for all.
        strides: between windows; None means the window, as in PyTorch.
        padding: ``"SAME"``, ``"VALID"``, an int, or for each spatial axis an int or a (before,
            after) pair.
        dilation: distance between the elements of a window.
        ceil_mode: whether a last window may reach beyond the padding, as long as it starts
            within the input or the padding before it (PyTorch's).

    Returns:
        A `QTensor` of ``[N, P, Q, C; int8]`` and the like, padded channels included.

    Raises:
        TypeError: if ``x`` isn't a `QTensor` of int8 values, or is differentiated.
        ValueError: on another rank, if a window doesn't fit or holds padding only.
    """
    x = _steps.operand("qmax_pool", "x", x, ranks=_RANKS)
    windows = Windows.make(
        x.values.shape[1:-1],
        window=window,
        strides=strides,
        padding=padding,
        dilation=dilation,
        ceil_mode=ceil_mode,
    )
    values = _reduce(x.values, np.int8(-128), jax.lax.max, windows)
    return dataclasses.replace(x, values=values)


def qavg_pool(
    x: QTensor,
    window: int | Sequence[int],
    *,
    strides: int | Sequence[int] | None = None,
    padding: str | int | Sequence[Any] = "VALID",
    count_include_pad: bool = True,
    ceil_mode: bool = False,
    out_scale: Any = None,
    out_zero_point: Any = None,
) -> QTensor:
    """The mean of each window: q = clip(rint(S / n + zp_y), -128, 127). One kernel.

    S is the int32 sum of x - zp_x, so that padding is real zeros, over n elements. What is
    rounded to an integer is the exact value; half goes to even. With an ``out_scale`` it is
    that of S * m + zp_y, with m = x.scale / (out_scale * n) computed in float64 and rounded
    once to float32. (Sums of more than 2**21 elements round S * m + zp_y to float64 before.)
    The result is the same on all backends.

    Args:
        x: ``[N, W, C; int8]``, ``[N, H, W, C; int8]`` or ``[N, D, H, W, C; int8]``.
        window: elements along each spatial axis, or one int for all.
        strides: between windows; None means the window, as in PyTorch.
        padding: ``"SAME"``, ``"VALID"``, an int, or for each spatial axis an int or a (before,
            after) pair.
        count_include_pad: whether n counts padding; what a window of ``ceil_mode`` sees beyond
            the padding is never counted.
        ceil_mode: whether a last window may reach beyond the padding, as long as it starts
            within the input or the padding before it (PyTorch's).
        out_scale: ``[; float32]`` positive, real units per integer step; None keeps that of
            ``x``, and its zero point unless there is an ``out_zero_point``.
        out_zero_point: ``[; int32]`` in [-128, 127]; None with an ``out_scale`` means symmetric
            data.

    Returns:
        A `QTensor` of ``[N, P, Q, C; int8]`` and the like, padded channels included.

    Raises:
        TypeError: if ``x`` isn't a `QTensor` of int8 values, or is differentiated.
        ValueError: on another rank, if a window doesn't fit or holds padding only, or is so
            large that its sum could overflow; on a bad scale or zero point.
    """
    x = _steps.operand("qavg_pool", "x", x, ranks=_RANKS)
    if not isinstance(count_include_pad, bool):
        raise TypeError(f"count_include_pad must be True or False, got {count_include_pad!r}.")
    windows = Windows.make(
        x.values.shape[1:-1], window=window, strides=strides, padding=padding, ceil_mode=ceil_mode
    )
    _check_sum("window", [each.window for each in windows])
    # Of steps: so padding, which is real zeros, is the number 0 that adds nothing.
    sums = _reduce(_steps.steps(x), np.int32(0), jax.lax.add, windows)
    count = _product([w.inside_or_padding if count_include_pad else w.inside for w in windows])
    return _steps.mean("qavg_pool", x, sums, count, out_scale, out_zero_point, of_steps=True)


def qglobal_avg_pool(
    x: QTensor, *, keepdims: bool = False, out_scale: Any = None, out_zero_point: Any = None
) -> QTensor:
    """The mean of all pixels, by the formula of `qavg_pool`. Two kernels, one of them tiny.

    Args:
        x: ``[N, W, C; int8]``, ``[N, H, W, C; int8]`` or ``[N, D, H, W, C; int8]``.
        keepdims: whether the spatial axes stay, each with one element.
        out_scale: ``[; float32]`` positive, real units per integer step; None keeps that of
            ``x``, and its zero point unless there is an ``out_zero_point``.
        out_zero_point: ``[; int32]`` in [-128, 127]; None with an ``out_scale`` means symmetric
            data.

    Returns:
        A `QTensor` of ``[N, C; int8]``, or ``[N, 1, 1, C; int8]`` and the like, padded channels
        included.

    Raises:
        TypeError: if ``x`` isn't a `QTensor` of int8 values, or is differentiated.
        ValueError: on another rank, without pixels, or with so many that their sum could
            overflow; on a bad scale or zero point.
    """
    x = _steps.operand("qglobal_avg_pool", "x", x, ranks=_RANKS)
    if not isinstance(keepdims, bool):
        raise TypeError(f"keepdims must be True or False, got {keepdims!r}.")
    sizes = x.values.shape[1:-1]
    _check_sizes(x)
    _check_sum("x", sizes)
    axes = tuple(range(1, x.values.ndim - 1))
    sums = jnp.sum(x.values, axis=axes, dtype=jnp.int32, keepdims=True)
    counts = [np.array([size]) for size in sizes]
    out = _steps.mean("qglobal_avg_pool", x, sums, _product(counts), out_scale, out_zero_point)
    return out if keepdims else dataclasses.replace(out, values=out.values.squeeze(axes))


def qadaptive_avg_pool(
    x: QTensor,
    output_size: int | Sequence[int],
    *,
    out_scale: Any = None,
    out_zero_point: Any = None,
) -> QTensor:
    """The mean of each of ``output_size`` bins, by the formula of `qavg_pool`.

    The bins are PyTorch's: bin i of P takes the rows from floor(i * H / P) up to, not
    including, ceil((i + 1) * H / P). One kernel.

    Args:
        x: ``[N, W, C; int8]``, ``[N, H, W, C; int8]`` or ``[N, D, H, W, C; int8]``.
        output_size: bins along each spatial axis, or one int for all.
        out_scale: ``[; float32]`` positive, real units per integer step; None keeps that of
            ``x``, and its zero point unless there is an ``out_zero_point``.
        out_zero_point: ``[; int32]`` in [-128, 127]; None with an ``out_scale`` means symmetric
            data.

    Returns:
        A `QTensor` of ``[N, *output_size, C; int8]``, padded channels included.

    Raises:
        TypeError: if ``x`` isn't a `QTensor` of int8 values, or is differentiated.
        ValueError: on another rank, without pixels, or if a bin is so large that its sum could
            overflow; on a bad scale or zero point.
    """
    x = _steps.operand("qadaptive_avg_pool", "x", x, ranks=_RANKS)
    sizes = x.values.shape[1:-1]
    output_size = as_ints("output_size", output_size, rank=len(sizes), minimum=1)
    _check_sizes(x)
    pairs = list(zip(sizes, output_size, strict=True))
    edges = [bins(*pair) for pair in pairs]
    counts = [ends - starts for starts, ends in edges]
    _check_sum("output_size", [int(count.max()) for count in counts])
    sums = x.values.astype(jnp.int32)
    if all(size % count == 0 for size, count in pairs):
        window = [size // count for size, count in pairs]
        windows = Windows.make(sizes, window=window, strides=None, padding="VALID")
        sums = _reduce(sums, np.int32(0), jax.lax.add, windows)
    else:
        sums = _sum_bins(sums, edges)
    return _steps.mean("qadaptive_avg_pool", x, sums, _product(counts), out_scale, out_zero_point)


def _reduce(values: jax.Array, start: np.generic, function: Any, windows: Sequence[Windows]) -> Any:
    """Reduce the windows of ``[N, ..., C]`` to one element each; padding is ``start``."""
    return jax.lax.reduce_window(
        values,
        start,
        function,
        window_dimensions=(1, *(each.window for each in windows), 1),
        window_strides=(1, *(each.stride for each in windows), 1),
        padding=((0, 0), *(each.needed_pads for each in windows), (0, 0)),
        window_dilation=(1, *(each.dilation for each in windows), 1),
    )


def _sum_bins(values: jax.Array, edges: Sequence[tuple[np.ndarray, np.ndarray]]) -> jax.Array:
    """Sum bins of unequal size: gather as many elements as the largest has, and mask."""
    axes = []
    for axis, (starts, ends) in enumerate(edges):
        axes.append(2 * axis + 2)
        index = starts[:, None] + np.arange((ends - starts).max())
        inside = index < ends[:, None]
        values = jnp.take(
            values, np.minimum(index, ends[:, None] - 1), axis=2 * axis + 1, mode="clip"
        )
        shape = [1] * values.ndim
        shape[2 * axis + 1 : 2 * axis + 3] = index.shape
        values = jnp.where(inside.reshape(shape), values, jnp.int32(0))
    return jnp.sum(values, axis=tuple(axes), dtype=jnp.int32)


def _product(counts: Sequence[np.ndarray]) -> np.ndarray:
    """The product of one count for each axis ``[1, P, Q, 1]``."""
    return functools.reduce(np.multiply.outer, counts)[None, ..., None]


def _check_sizes(x: QTensor) -> None:
    sizes = x.values.shape[1:-1]
    if 0 in sizes:
        raise ValueError(
            f"x of shape {list(x.shape)} has no pixels ({', '.join(AXES[len(sizes)])}) to average."
        )


def _check_sum(name: str, sizes: Sequence[int]) -> None:
    """Raise ValueError where a sum of so many int8 numbers less a zero point overflows int32."""
    if math.prod(sizes) * 255 >= 2**31:
        raise ValueError(
            f"{name} averages {list(sizes)} = {math.prod(sizes)} elements at once, whose bound "
            "255 * that reaches 2**31: the int32 sum could overflow. Average in two steps."
        )
