"""What a quantised convolution must return, in plain numpy: independent of jax_qconv's own code.

Written from the formulas in `jax_qconv.qconv`'s docstring, for clarity; yet fast enough for
millions of outputs: one float64 matrix product per kernel element, which is exact (all sums
stay below 2**53) and runs on all cores.
"""

from __future__ import annotations

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
    strides: tuple[int, int] = (1, 1),
    padding: Any = "VALID",
    dilation: tuple[int, int] = (1, 1),
    residual: np.ndarray | None = None,
    activation: Activation | None = None,
    out_dtype: str = "int8",
    **scales: Any,
) -> np.ndarray:
    """The whole operation.

    Args:
        x: ``[N, H, W, C; int8]``.
        w: ``[K, R, S, C; int8]``.
        strides, padding, dilation: of `accumulate`.
        residual: ``[N, P, Q, K; int8]``, or None.
        activation: or None.
        out_dtype: ``"int8"``, ``"int32"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        **scales: x_scale, w_scale, bias, out_scale and residual_scale, of `fold`.

    Returns:
        ``[N, P, Q, K; out_dtype]``.
    """
    acc = accumulate(x, w, strides=strides, padding=padding, dilation=dilation)
    if out_dtype == "int32":
        return acc.astype(np.int32)
    activation = activation or Activation()
    constants = fold(activation=activation, **scales)
    y = epilogue(acc, residual, kind=activation.kind, slope=activation.slope, **constants)
    return rounded(y, out_dtype)


def accumulate(
    x: np.ndarray,
    w: np.ndarray,
    *,
    strides: tuple[int, int] = (1, 1),
    padding: Any = "VALID",
    dilation: tuple[int, int] = (1, 1),
) -> np.ndarray:
    """The sums ``[N, P, Q, K; int64]``; padding is by name or ((top, bottom), (left, right))."""
    k, *kernel, _ = w.shape
    extent = [(n - 1) * d + 1 for n, d in zip(kernel, dilation, strict=True)]
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:3], extent, strides, padding)
    x = np.pad(x, ((0, 0), *padding, (0, 0))).astype(np.float64)
    w = w.astype(np.float64)
    n, *size, c = x.shape
    p, q = ((a - e) // st + 1 for a, e, st in zip(size, extent, strides, strict=True))
    acc = np.zeros((n * p * q, k))
    for row, column in np.ndindex(*kernel):
        rows = slice(row * dilation[0], None, strides[0])
        columns = slice(column * dilation[1], None, strides[1])
        seen = x[:, rows, columns][:, :p, :q]
        acc += seen.reshape(n * p * q, c) @ w[:, row, column].T
    return acc.astype(np.int64).reshape(n, p, q, k)


def fold(
    *,
    x_scale: Any,
    w_scale: Any,
    bias: Any = None,
    out_scale: Any = None,
    residual_scale: Any = None,
    activation: Activation,
) -> dict[str, Any]:
    """Scales, real-valued bias and bounds to constants in steps of the output.

    Each is computed in float64 from float32 scales and rounded once to float32; what is
    smaller than the smallest normal float32 is zero.
    """

    def wide(value: Any) -> Any:
        return np.asarray(value, np.float32).astype(np.float64)

    def in_steps(value: Any) -> Any:
        value = value / wide(1 if out_scale is None else out_scale)
        with np.errstate(over="ignore"):
            return np.where(np.abs(value) < 2.0**-126, 0, value).astype(np.float32)

    clip = activation.kind == "clip"
    return {
        "m": in_steps(wide(x_scale) * wide(w_scale)),
        "b": in_steps(wide(0 if bias is None else bias)),
        "m_r": None if residual_scale is None else in_steps(wide(residual_scale)),
        "lower": in_steps(np.float64(activation.lower)) if clip else None,
        "upper": in_steps(np.float64(activation.upper)) if clip else None,
    }


def epilogue(
    acc: np.ndarray,
    residual: np.ndarray | None,
    *,
    kind: str,
    slope: float,
    m: Any,
    b: Any,
    m_r: Any,
    lower: Any,
    upper: Any,
) -> np.ndarray:
    """act(fma(residual, m_r, fma(acc, m, b))) ``[...; float32]``."""
    y = fma(acc.astype(np.float32), m, b)
    if residual is not None:
        y = fma(residual.astype(np.float32), m_r, y)
    match kind:
        case "none":
            return y
        case "relu":
            return np.maximum(y, np.float32(0))
        case "clip":
            # NaN becomes the lower bound.
            return np.minimum(np.fmax(y, lower), upper)
        case "leaky_relu":
            return np.where(y > 0, y, y * np.float32(slope))
    raise AssertionError(kind)


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
