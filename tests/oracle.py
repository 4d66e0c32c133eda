"""What a quantised convolution must return, in plain numpy: independent of jax_qconv's own code.

Written from the formulas in `jax_qconv.qconv`'s docstring, for clarity; yet fast enough for
millions of outputs: one float64 matrix product per kernel element, which is exact (all sums
stay below 2**53) and runs on all cores.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import ml_dtypes
import numpy as np

from jax_qconv import Activation

_FLOATS = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def convolve(
    x: np.ndarray,
    w: np.ndarray,
    *,
    residual: np.ndarray | None = None,
    residual_mode: str = "add",
    activation: Activation | None = None,
    slopes: np.ndarray | None = None,
    out_dtype: str = "int8",
    strides: tuple[int, ...] | None = None,
    padding: Any = "VALID",
    dilation: tuple[int, ...] | None = None,
    groups: int = 1,
    transposed: dict[str, Any] | None = None,
    x_zero_point: int = 0,
    **scales: Any,
) -> np.ndarray:
    """The whole operation.

    Args:
        x: ``[N, H, W, C; int8]``, or with one or three spatial axes.
        w: ``[K, R, S, C / groups; int8]``.
        residual: ``[N, P, Q, K; int8]``, or None.
        residual_mode: ``"add"``, ``"add_after_activation"`` or ``"average"``.
        activation: or None.
        slopes: ``[K; float32]`` of prelu.
        out_dtype: ``"int8"``, ``"int32"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        strides, padding, dilation, groups: of `accumulate`.
        transposed: crop and output_padding of `accumulate_transposed`, for that.
        x_zero_point: of x.
        **scales: x_scale, w_scale, bias, out_scale, residual_scale and zero points, of `fold`.

    Returns:
        ``[N, P, Q, K; out_dtype]``.
    """
    placed = {"strides": strides, "dilation": dilation, "groups": groups}
    if transposed is None:
        acc = accumulate(x, w, padding=padding, zero_point=x_zero_point, **placed)
    else:
        acc = accumulate_transposed(x, w, zero_point=x_zero_point, **placed, **transposed)
    if out_dtype == "int32":
        return acc.astype(np.int32)
    activation = activation or Activation()
    y = epilogue(acc, residual, residual_mode, activation, slopes, out_dtype=out_dtype, **scales)
    return rounded(y, out_dtype)


def accumulate(
    x: np.ndarray,
    w: np.ndarray,
    *,
    strides: tuple[int, ...] | None = None,
    padding: Any = "VALID",
    dilation: tuple[int, ...] | None = None,
    groups: int = 1,
    zero_point: int = 0,
) -> np.ndarray:
    """The sums of (x - zero_point) * w ``[N, P, Q, K; int64]``.

    Padding is by name or (before, after) for each spatial axis; padded elements are real zeros.
    """
    k, *kernel, _ = w.shape
    strides, dilation = strides or (1,) * len(kernel), dilation or (1,) * len(kernel)
    extent = [(n - 1) * d + 1 for n, d in zip(kernel, dilation, strict=True)]
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:-1], extent, strides, padding)
    x = np.pad(x.astype(np.float64) - zero_point, ((0, 0), *padding, (0, 0)))
    w = w.astype(np.float64)
    n, *size, _ = x.shape
    out = [(a - e) // st + 1 for a, e, st in zip(size, extent, strides, strict=True)]
    parts = []
    for x_part, w_part in zip(np.split(x, groups, -1), np.split(w, groups), strict=True):
        acc = np.zeros((n * math.prod(out), k // groups))
        for tap in np.ndindex(*kernel):
            places = [
                slice(t * d, t * d + (o - 1) * st + 1, st)
                for t, d, o, st in zip(tap, dilation, out, strides, strict=True)
            ]
            seen = x_part[(slice(None), *places)]
            acc += seen.reshape(len(acc), -1) @ w_part[(slice(None), *tap)].T
        parts.append(acc.astype(np.int64).reshape(n, *out, k // groups))
    return np.concatenate(parts, -1)


def accumulate_transposed(
    x: np.ndarray,
    w: np.ndarray,
    *,
    strides: tuple[int, ...],
    crop: tuple[tuple[int, int], ...],
    dilation: tuple[int, ...] | None = None,
    output_padding: tuple[int, ...] | None = None,
    groups: int = 1,
    zero_point: int = 0,
) -> np.ndarray:
    """What x[i] * w[r] adds up to at i * stride + r * dilation, ``crop`` of it cut off."""
    k, *kernel, _ = w.shape
    dilation = dilation or (1,) * len(kernel)
    output_padding = output_padding or (0,) * len(kernel)
    n, *size, _ = x.shape
    x, w = x.astype(np.float64) - zero_point, w.astype(np.float64)
    full = [
        (a - 1) * st + (r - 1) * d + 1
        for a, st, r, d in zip(size, strides, kernel, dilation, strict=True)
    ]
    longer = [
        f + max(more - after, 0)
        for f, more, (_, after) in zip(full, output_padding, crop, strict=True)
    ]
    parts = []
    for x_part, w_part in zip(np.split(x, groups, -1), np.split(w, groups), strict=True):
        acc = np.zeros((n, *longer, k // groups))
        for tap in np.ndindex(*kernel):
            places = [
                slice(t * d, t * d + (a - 1) * st + 1, st)
                for t, d, a, st in zip(tap, dilation, size, strides, strict=True)
            ]
            acc[(slice(None), *places)] += x_part @ w_part[(slice(None), *tap)].T
        parts.append(acc.astype(np.int64))
    ends = [
        f - after + more for f, (_, after), more in zip(full, crop, output_padding, strict=True)
    ]
    starts = [before for before, _ in crop]
    return np.concatenate(parts, -1)[(slice(None), *map(slice, starts, ends))]


def fold(
    *,
    x_scale: Any,
    w_scale: Any,
    bias: Any = None,
    out_scale: Any = None,
    out_zero_point: int = 0,
    residual_scale: Any = None,
    activation: Activation,
    half: bool = False,
) -> dict[str, Any]:
    """Scales, real-valued bias and bounds to constants in steps of the output.

    Each is computed in float64 from float32 scales and rounded once to float32; what is
    smaller than the smallest normal float32 is zero.
    """

    def wide(value: Any) -> Any:
        return np.asarray(value, np.float32).astype(np.float64)

    def in_steps(value: Any, zero_point: int = 0) -> Any:
        value = value / wide(1 if out_scale is None else out_scale) + zero_point
        with np.errstate(over="ignore"):
            return np.where(np.abs(value) < 2.0**-126, 0, value).astype(np.float32)

    by = 0.5 if half else 1.0
    lower, upper = activation.lower, activation.upper
    relu = activation.kind == "relu"
    bounded = activation.kind == "clip" or (relu and out_zero_point)
    return {
        "m": in_steps(wide(x_scale) * wide(w_scale) * by),
        "b": in_steps(wide(0 if bias is None else bias) * by, out_zero_point),
        "m_r": None if residual_scale is None else in_steps(wide(residual_scale) * by),
        "lower": in_steps(np.float64(0 if relu else lower), out_zero_point) if bounded else None,
        "upper": in_steps(np.float64(upper), out_zero_point) if bounded else None,
    }


def epilogue(
    acc: np.ndarray,
    residual: np.ndarray | None,
    residual_mode: str,
    activation: Activation,
    slopes: np.ndarray | None = None,
    *,
    out_dtype: str,
    out_scale: Any = None,
    out_zero_point: int | None = None,
    residual_zero_point: int = 0,
    **scales: Any,
) -> np.ndarray:
    """From sums to ``[...; float32]``, in steps of the output."""
    kind, zero = activation.kind, out_zero_point or 0
    last = residual_mode == "add_after_activation" and residual is not None
    # Functions with f(y * s) = f(y) * s run in steps of the output; around another zero, only
    # those that are the same function there.
    scale_free = kind in ("none", "relu", "clip", "leaky_relu", "prelu")
    bent = kind in ("leaky_relu", "prelu") or (last and kind != "none")
    real_units = out_dtype == "int8" and (not scale_free or (bent and out_zero_point is not None))
    constants = fold(
        activation=activation,
        out_scale=None if real_units else out_scale,
        out_zero_point=0 if real_units else zero,
        half=residual_mode == "average" and residual is not None,
        **scales,
    )
    y = fma(acc.astype(np.float32), constants["m"], constants["b"])

    def add_residual(y: np.ndarray) -> np.ndarray:
        if residual is None:
            return y
        steps = residual.astype(np.float32) - np.float32(residual_zero_point or 0)
        return fma(steps, constants["m_r"], y)

    if not last:
        y = add_residual(y)
    y = activate(y, activation, slopes, constants["lower"], constants["upper"])
    if last:
        y = add_residual(y)
    if real_units:
        y = fma(y, np.float32(1 / np.float64(np.float32(out_scale))), np.float32(zero))
    return y


def activate(
    y: np.ndarray, activation: Activation, slopes: Any, lower: Any, upper: Any
) -> np.ndarray:
    """In float32; bounds are in the units of y."""

    def hard_sigmoid(y: np.ndarray) -> np.ndarray:
        return np.clip(fma(y, np.float32(1 / 6), np.float32(0.5)), np.float32(0), np.float32(1))

    match activation.kind:
        case "none":
            return y
        case "relu" if lower is None:
            return np.maximum(y, np.float32(0))
        case "clip" | "relu":
            # NaN becomes the lower bound.
            return np.minimum(np.fmax(y, lower), upper)
        case "leaky_relu":
            return np.where(y > 0, y, y * np.float32(activation.slope))
        case "prelu":
            return np.where(y > 0, y, y * slopes)
        case "hard_sigmoid":
            return hard_sigmoid(y)
        case "hard_swish":
            return y * hard_sigmoid(y)
    raise AssertionError(activation.kind)


def fma(a: Any, b: Any, c: Any) -> np.ndarray:
    """a * b + c of float32, rounded once.

    The product is exact in float64. The sum is rounded to odd there: where it is inexact and
    its last bit is even, it moves one step towards the exact value. Rounding that to float32
    gives the same as rounding the exact value.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        product, term = np.float64(a) * np.float64(b), np.float64(c)
        total = np.asarray(product + term)
        shadow = total - product
        error = (product - (total - shadow)) + (term - shadow)
        to_move = (np.abs(error) > 0) & (total.view(np.int64) % 2 == 0)
        moved = np.nextafter(total, np.copysign(np.inf, error))
        return np.where(to_move, moved, total).astype(np.float32)


def rounded(y: np.ndarray, out_dtype: str) -> np.ndarray:
    """y ``[...; float32]`` half to even as ``out_dtype``; int8 saturates and has 0 for NaN."""
    if out_dtype == "int8":
        return np.where(np.isnan(y), 0, np.clip(np.rint(y), -128, 127)).astype(np.int8)
    with np.errstate(over="ignore"):
        return y.astype(_FLOATS[out_dtype])


def assert_same(got: Any, want: np.ndarray) -> None:
    """Same shape, dtype and bits in every element."""
    got = np.asarray(got)
    assert (got.shape, got.dtype) == (want.shape, want.dtype)
    unsigned = f"u{want.dtype.itemsize}"
    np.testing.assert_array_equal(
        np.ascontiguousarray(got).view(unsigned), np.ascontiguousarray(want).view(unsigned)
    )
