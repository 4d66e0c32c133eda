"""What the ops between convolutions share: checked operands, exact products, one rounding.

An op counts in steps of its output: s = sum of (q - zero_point) * m, where q is an int8 number or
an integer sum of some, and m = scale / out_scale is a float32 number. It does so in float64. There
each product is exact, so that it makes no difference whether XLA contracts it with a sum: the CPU
and all GPUs get the same bits, and nothing is rounded but where the formula says so. No tensor is
divided by a number in floating point, as XLA:CPU multiplies with the reciprocal instead. GPUs for
data centres are quick at float64; on others it may take longer than to read and write the tensors.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_qconv._activation import Activation
from jax_qconv._arrays import (
    check_scale,
    check_zero_point,
    guard,
    is_concrete,
)
from jax_qconv._quantize import QTensor, checked

STEPWISE = ("none", "relu", "clip", "leaky_relu")
"""Activations that can be applied to steps of the output: all that scale, but for prelu, whose
slopes a convolution takes and these ops don't."""

_TINY = 2.0**-126  # smallest normal float32
_HUGE = float(np.finfo(np.float32).max)


def operand(op: str, name: str, x: Any, *, ranks: tuple[int, ...] = ()) -> QTensor:
    """Check an argument of ``op``; its scale can't be differentiated from here on.

    Concrete scales and zero points stay concrete inside of `jax.jit`. Traced ones stay the same
    objects, so that tensors that share them are known to do so after ops that pass them through.

    Raises:
        TypeError: unless it is a `QTensor` of int8 values.
        ValueError: unless it has one of ``ranks`` (if given), and channels as it says.
    """
    x = checked(name, x)
    values = x.values
    if ranks and values.ndim not in ranks:
        raise ValueError(
            f"{name} must have 3, 4 or 5 axes (N, width, C; N, height, width, C; N, depth, "
            f"height, width, C), got shape {list(values.shape)}."
        )
    names = f"{name}.scale", f"{name}.zero_point"
    scale, zero = quantization(x.scale, x.zero_point, names=names)
    return guarded(op, QTensor(values, scale, zero, x.channels), scale)


def guarded(op: str, x: QTensor, scale: Any) -> QTensor:
    """``x`` with values that refuse that ``scale`` is differentiated.

    To be called before there is arithmetic on it, which JAX would differentiate first.
    """
    return dataclasses.replace(x, values=guard(x.values, scale, op))


def quantization(
    scale: Any,
    zero_point: Any,
    *,
    names: tuple[str, str] = ("out_scale", "out_zero_point"),
) -> tuple[Any, Any]:
    """Check a scale and a zero point (or None); concrete ones stay so, traced ones the same."""
    checked_scale = check_scale(names[0], scale)
    if not is_concrete(scale):
        scale = checked_scale
    elif getattr(scale, "dtype", None) != np.float32:
        scale = np.asarray(scale, np.float32)
    if zero_point is not None:
        checked_zero = check_zero_point(names[1], zero_point)
        zero_point = np.asarray(zero_point, np.int32) if is_concrete(zero_point) else checked_zero
    return scale, zero_point


def output(x: QTensor, out_scale: Any, out_zero_point: Any) -> tuple[Any, Any]:
    """Scale and zero point of an output that may keep those of the input.

    An ``out_scale`` without an ``out_zero_point`` means symmetric data; without an
    ``out_scale`` each that isn't given is that of ``x``.
    """
    if out_scale is not None:
        return quantization(out_scale, out_zero_point)
    if out_zero_point is None:
        return x.scale, x.zero_point
    return x.scale, quantization(x.scale, out_zero_point)[1]


def same(a: Any, b: Any) -> bool:
    """Whether two scales or zero points are known to be equal."""
    if a is b:
        return True
    known = all(v is not None and is_concrete(v) for v in (a, b))
    return known and np.asarray(a) == np.asarray(b)


def steps(x: QTensor) -> jax.Array:
    """q - zero_point ``[..., C as stored; int32]``."""
    values = x.values.astype(jnp.int32)
    return values if x.zero_point is None else values - x.zero_point


def ratio(*numerators: Any, over: Sequence[Any]) -> Any:
    """The quotient of two products ``[; float64]``, rounded once to what float32 can hold.

    Below 2**-126 it is zero, and beyond the largest float32 that: there every step but zero
    saturates. numpy where all is concrete, else traced. The first divisor is float32; only those
    after it may be arrays.
    """
    first, *others = over
    concrete = all(map(is_concrete, (*numerators, *over)))
    if not concrete:
        # A constant divisor would be turned into a product with its reciprocal.
        first = jax.lax.optimization_barrier(jnp.asarray(first, jnp.float32))
    xp = np if concrete else jnp
    with jax.enable_x64(True):
        divisor = math.prod(wide(xp, v) for v in (first, *others))
        quotient = math.prod(wide(xp, v) for v in numerators) / divisor
        return to_float32(xp, xp.where(xp.abs(quotient) < _TINY, np.float64(0), quotient))


def together(*scalars: Any) -> tuple[Any, ...]:
    """The same `ratio` s, which XLA computes in one kernel if any is traced."""
    if all(map(is_concrete, scalars)):
        return scalars
    with jax.enable_x64(True):
        stacked = jnp.stack([wide(jnp, v) for v in scalars])
        return tuple(jax.lax.optimization_barrier(stacked))


def wide(xp: Any, value: Any) -> Any:
    """``value`` as float64; only under ``jax.enable_x64(True)``."""
    return xp.asarray(value).astype(xp.float64)


def to_float32(xp: Any, value: Any) -> Any:
    """float64 rounded to what float32 can hold, as float64; saturates."""
    value = xp.clip(value, -_HUGE, _HUGE)
    if xp is np:
        return np.asarray(value).astype(np.float32).astype(np.float64)
    # Not by conversion to float32 and back, which is dropped where XLA may keep excess precision.
    return jax.lax.reduce_precision(value, 8, 23)


def limits(activation: Activation, out_scale: Any) -> tuple[Any, ...]:
    """What `activate` needs: the bounds of clip in steps, nothing for other activations."""
    if activation.kind == "prelu":
        raise ValueError(
            "activation='prelu' needs slopes, which qconv takes: fuse it into the convolution with "
            f"qconv(..., activation='prelu', slopes=slopes), or use one of {list(STEPWISE)} here."
        )
    if activation.kind not in STEPWISE:
        raise ValueError(
            f"activation={activation.kind!r} can't be applied to steps of the output; use one of "
            f"{list(STEPWISE)} here, or qactivation on the result."
        )
    if activation.kind != "clip":
        return ()
    # Beyond the largest float64 there is infinity, which is limited like all others.
    bounds = (np.float64(activation.lower), np.float64(activation.upper))
    return tuple(ratio(bound, over=[out_scale]) for bound in bounds)


def activate(xp: Any, s: Any, activation: Activation, bounds: Sequence[Any]) -> Any:
    """A scale-free activation of steps ``[float64]``; ``bounds`` are its `limits`."""
    match activation.kind:
        case "relu":
            return xp.maximum(s, np.float64(0))
        case "clip":
            lower, upper = bounds
            return xp.minimum(xp.maximum(s, lower), upper)
        case "leaky_relu":
            # Rounded first, so that this product is exact too.
            slope = np.float64(np.float32(activation.slope))
            return xp.where(s > 0, s, to_float32(xp, s) * slope)
    return s


def to_int8(xp: Any, s: Any, zero_point: Any) -> Any:
    """clip(rint(s + zero_point), -128, 127) of steps ``[float64]``; half goes to even."""
    if zero_point is not None:
        s = s + wide(xp, zero_point)
    return xp.clip(xp.round(s), -128, 127).astype(xp.int8)


def mean(
    op: str,
    x: QTensor,
    sums: jax.Array,
    count: np.ndarray,
    out_scale: Any,
    out_zero_point: Any,
    *,
    of_steps: bool = False,
) -> QTensor:
    """Integer sums of ``x`` over a count of them, to int8, in the scale of `output`.

    Args:
        op: for messages.
        x: what was summed.
        sums: ``[N, ..., C; int32 or int64]`` of as many integers as the count says.
        count: ``[1, ..., 1]``, broadcast.
        out_scale, out_zero_point: as given, or None.
        of_steps: whether the sums are of `steps`, without the zero point. They must be where there
            is padding: it is real zeros, which add 0 to a sum of steps, but the zero point to a
            sum of integers. Without padding it is quicker to subtract once from the sum.
    """
    scale, zero = output(x, out_scale, out_zero_point)
    sums = guard(sums, scale, op)
    summed_zero = None if of_steps else x.zero_point
    most, uniform = int(count.max()), (count == count.flat[0]).all()
    count = count.flat[0] if uniform else count
    with jax.enable_x64(True):
        if out_scale is None:
            # In integers: exact, and quick everywhere. What is added to each is added to the mean.
            wider = sums.astype(jnp.int64) if most * 1024 >= 2**31 else sums
            values = _divide(wider, count.astype(wider.dtype), _difference(zero, summed_zero))
        else:
            if summed_zero is not None:
                sums = sums - summed_zero.astype(sums.dtype) * count.astype(sums.dtype)
            m = ratio(x.scale, over=[scale, count.astype(np.float64)])
            if most * 255 < 2**29:
                s = wide(jnp, sums) * m
            else:
                # More than 53 bits: as the sum of two exact products.
                low = sums & (2**25 - 1)
                s = wide(jnp, sums - low) * m + wide(jnp, low) * m
            values = to_int8(jnp, s, zero)
    return QTensor(values, scale, zero, x.channels)


def _difference(a: Any, b: Any) -> Any:
    """a - b of zero points, None being zero."""
    if same(a, b):
        return None
    return a if b is None else (0 if a is None else a) - b


def _divide(sums: jax.Array, count: Any, offset: Any) -> jax.Array:
    """clip(rint(sums / count + offset), -128, 127) of integers, half to even."""
    count = jnp.broadcast_to(count, sums.shape)
    # 512 more make all of them positive.
    total = sums + 512 * count
    quotient = jax.lax.div(total, count)
    below = total - quotient * count
    above = count - below
    nearest = quotient - 512
    if offset is not None:
        nearest = nearest + offset.astype(sums.dtype)
    up = (below > above) | ((below == above) & (nearest & 1 == 1))
    return jnp.clip(nearest + up.astype(sums.dtype), -128, 127).astype(jnp.int8)
