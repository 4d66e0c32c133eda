"""What the ops between convolutions must return, in plain numpy: independent of their own code.

Written from the docstrings, for clarity: numbers that must be exact are fractions. Activations are
plain functions of real numbers. Tensors are int8 without padded channels, channels last; a zero
point of None is 0.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import jax
import numpy as np

from jax_qconv import Activation

HUGE = float(np.finfo(np.float32).max)


def ratio(*scales: Any, over: Any) -> np.float32:
    """The product of scales over another one, in float64, rounded once; within float32."""
    value = math.prod(np.float64(np.float32(scale)) for scale in scales)
    return _float32(value / np.float64(np.float32(over)))


def _float32(value: float) -> np.float32:
    return np.float32(0) if abs(value) < 2.0**-126 else np.float32(np.clip(value, -HUGE, HUGE))


def saturate(value: Fraction | float | np.float64) -> int:
    """The nearest integer, half to even, within int8."""
    if not isinstance(value, Fraction) and math.isinf(value):
        return 127 if value > 0 else -128
    return int(np.clip(round(Fraction(value)), -128, 127))


def activate(s: float, activation: Activation, out_scale: Any) -> float:
    """A scale-free activation of steps of the output."""
    match activation.kind:
        case "relu":
            return max(s, 0.0)
        case "clip":
            step = np.float64(np.float32(out_scale))
            lower, upper = (_float32(v / step) for v in (activation.lower, activation.upper))
            return min(max(s, float(lower)), float(upper))
        case "leaky_relu":
            rounded = float(np.float32(np.clip(s, -HUGE, HUGE)))
            return s if s > 0 else rounded * float(np.float32(activation.slope))
    return s


def requantize(
    q: np.ndarray,
    scale: Any,
    zero: Any,
    out_scale: Any,
    out_zero: Any,
    activation: Activation | None = None,
) -> np.ndarray:
    """Each number by itself, exactly."""
    activation = activation or Activation()
    m = Fraction(float(ratio(scale, over=out_scale)))
    entries = {}
    for value in range(-128, 128):
        exact = (value - (zero or 0)) * m
        if activation.kind != "none":
            # 33 bits: exact in float64 too.
            exact = Fraction(activate(float(exact), activation, out_scale))
        entries[value] = saturate(exact + (out_zero or 0))
    return each(entries.__getitem__, q)


REAL: dict[str, Callable[[float], float]] = {
    "sigmoid": lambda r: 1 / (1 + math.exp(-r)) if r > -700 else 0.0,
    "tanh": math.tanh,
    "silu": lambda r: r / (1 + math.exp(-r)) if r > -700 else 0.0,
    "gelu": lambda r: r * math.erfc(-r / math.sqrt(2)) / 2,
    "gelu_tanh": lambda r: r * (1 + math.tanh(math.sqrt(2 / math.pi) * (r + 0.044715 * r**3))) / 2,
    "hard_sigmoid": lambda r: min(max(r + 3, 0), 6) / 6,
    "hard_swish": lambda r: r * min(max(r + 3, 0), 6) / 6,
}


def real_activation(
    q: np.ndarray, scale: Any, zero: Any, out_scale: Any, out_zero: Any, name: str
) -> np.ndarray:
    """Each number to real, through the function and back ``[...; float64]``, never rounded."""
    s_x, s_y = (float(np.float32(v)) for v in (scale, out_scale))
    unrounded = lambda v: REAL[name]((v - (zero or 0)) * s_x) / s_y + (out_zero or 0)  # noqa: E731
    return each(unrounded, q, np.float64)


def hard(
    q: np.ndarray, scale: Any, zero: Any, out_scale: Any, out_zero: Any, name: str
) -> np.ndarray:
    """hard_sigmoid and hard_swish, bit for bit."""
    s_x, s_y = (np.float64(np.float32(v)) for v in (scale, out_scale))
    m = Fraction(float(_float32(1 / (6 * s_y))))

    def entry(value: int) -> int:
        r = (value - (zero or 0)) * s_x
        f = min(max(r + 3, 0.0), 6.0) * (r if name == "hard_swish" else 1.0)
        return saturate(Fraction(float(np.float32(f))) * m + (out_zero or 0))

    return each(entry, q)


def each(function: Callable[[int], Any], q: np.ndarray, dtype: Any = np.int8) -> np.ndarray:
    """Apply a function of an integer to all elements."""
    return np.array([function(int(v)) for v in q.flat], dtype).reshape(q.shape)


def add(a: Any, b: Any, out_scale: Any, out_zero: Any, activation: Activation) -> np.ndarray:
    """Of (values, scale, zero point) each: sums in float64."""
    (p, s_a, z_a), (q, s_b, z_b) = a, b
    m_a, m_b = (float(ratio(s, over=out_scale)) for s in (s_a, s_b))
    s = (np.int64(p) - (z_a or 0)) * m_a + (np.int64(q) - (z_b or 0)) * m_b
    return finish(s, out_scale, out_zero, activation)


def multiply(a: Any, b: Any, out_scale: Any, out_zero: Any, activation: Activation) -> np.ndarray:
    """Of (values, scale, zero point) each: products of integers."""
    (p, s_a, z_a), (q, s_b, z_b) = a, b
    m = float(ratio(s_a, s_b, over=out_scale))
    s = (np.int64(p) - (z_a or 0)) * (np.int64(q) - (z_b or 0)) * m
    return finish(s, out_scale, out_zero, activation)


def finish(s: np.ndarray, out_scale: Any, out_zero: Any, activation: Activation) -> np.ndarray:
    y = [activate(float(v), activation, out_scale) + (out_zero or 0) for v in s.flat]
    return np.array([saturate(v) for v in y], np.int8).reshape(s.shape)


def mean(total: int, count: int, scales: Any, out_zero: Any) -> int:
    """rint(total / count + out_zero), exactly; or with m where ``scales`` are (in, out)."""
    if scales is None:
        return saturate(Fraction(total, count) + (out_zero or 0))
    scale, out_scale = (np.float64(np.float32(v)) for v in scales)
    return saturate(
        total * Fraction(float(_float32(scale / (out_scale * count)))) + (out_zero or 0)
    )


def taps(
    size: int,
    window: int,
    stride: int,
    pads: tuple[int, int],
    dilation: int = 1,
    ceil_mode: bool = False,
) -> list[list[int]]:
    """The positions that each window sees along one axis; those of padding aren't in the input.

    As torch.nn.MaxPool2d says: "When ceil_mode=True, sliding windows are allowed to go off-bounds
    if they start within the left padding or the input. Sliding windows that would start in the
    right padded region are ignored."
    """
    before, after = pads
    extent = (window - 1) * dilation + 1
    if extent > before + size + after:
        return []
    seen, end = [], 0
    for start in itertools.count(-before, stride):
        if ceil_mode:
            # The one before left something over.
            good = start < size and (not seen or end < size + after)
        else:
            good = start + extent <= size + after
        if not good:
            return seen
        seen.append([start + dilation * i for i in range(window)])
        end = start + extent
    raise AssertionError("not reached")


def explicit(padding: Any, size: Sequence[int], window: Any, strides: Any, dilation: Any) -> Any:
    """Pairs of (before, after) for padding by name."""
    if not isinstance(padding, str):
        return padding
    extent = [(k - 1) * d + 1 for k, d in zip(window, dilation, strict=True)]
    return jax.lax.padtype_to_pads(size, extent, strides, padding)


def pool(
    q: np.ndarray, seen: Sequence[list[list[int]]], function: Callable[[np.ndarray, Any], Any]
) -> np.ndarray:
    """function(elements ``[n]``, positions) for each window and channel of ``[N, ..., C]``."""
    n, *sizes, c = q.shape
    out = np.zeros((n, *map(len, seen), c), np.int8)
    for index in np.ndindex(*out.shape[1:-1]):
        positions = list(itertools.product(*(s[i] for s, i in zip(seen, index, strict=True))))
        inside = [p for p in positions if all(0 <= v < n for v, n in zip(p, sizes, strict=True))]
        for image, channel in np.ndindex(n, c):
            elements = np.array([q[(image, *p, channel)] for p in inside], np.int64)
            out[(image, *index, channel)] = function(elements, positions)
    return out


def nearest(size: int, count: int, half_pixel_centers: bool) -> list[int]:
    """The input pixel of each output pixel."""
    shift = Fraction(1, 2) if half_pixel_centers else 0
    return [math.floor((i + shift) * Fraction(size, count)) for i in range(count)]


def linear(size: int, count: int, align_corners: bool, half_pixel_centers: bool) -> np.ndarray:
    """The weights ``[count, size; Fraction]`` of linear interpolation along one axis."""
    weights = np.full((count, size), Fraction(0))
    for i in range(count):
        if align_corners:
            p = Fraction(i * (size - 1), max(count - 1, 1))
        elif half_pixel_centers:
            p = (i + Fraction(1, 2)) * Fraction(size, count) - Fraction(1, 2)
        else:
            p = i * Fraction(size, count)
        p = min(max(p, Fraction(0)), Fraction(size - 1))
        below = math.floor(p)
        weights[i, below] += 1 - (p - below)
        if p > below:
            weights[i, below + 1] += p - below
    return weights


def interpolate(q: np.ndarray, zero: Any, weights: Sequence[np.ndarray]) -> np.ndarray:
    """Exact real steps ``[N, ..., C; Fraction]``."""
    values = (np.int64(q) - (zero or 0)).astype(object)
    for axis, matrix in enumerate(weights, start=1):
        values = np.moveaxis(np.tensordot(matrix, values, (1, axis)), 0, axis)
    return values
