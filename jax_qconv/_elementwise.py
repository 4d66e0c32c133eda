"""Sums and products of two int8 tensors, to int8: each one kernel."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jax_qconv import _steps
from jax_qconv._activation import Activation, as_activation
from jax_qconv._arrays import pad_channels
from jax_qconv._quantize import QTensor


def qadd(
    a: QTensor,
    b: QTensor,
    *,
    out_scale: Any,
    out_zero_point: Any = None,
    activation: Activation | str | None = None,
) -> QTensor:
    """The sum of int8 tensors: q = clip(rint(act(s) + zp_y), -128, 127).

    s = (a - zp_a) * m_a + (b - zp_b) * m_b, with m_a = a.scale / out_scale and m_b likewise,
    each computed in float64 and rounded once to float32. The products are exact in float64,
    where the sums are made; half goes to even. The result is the same on all backends.

    Args:
        a: ``[..., C; int8]``.
        b: ``[..., C; int8]``; shapes broadcast as in numpy, channels too: ``[C]``,
            ``[N, H, W, 1]``, ``[N, 1, 1, C]`` and a scalar are good.
        out_scale: ``[; float32]`` positive, real units per integer step.
        out_zero_point: ``[; int32]`` in [-128, 127], or None for symmetric data.
        activation: ``"relu"``, ``"relu6"``, ``"leaky_relu"``, an `Activation`, or None; as in
            `qactivation`, on s.

    Returns:
        A `QTensor` of the broadcast shape, with the padded channels of the operands.

    Raises:
        TypeError: unless both are `QTensor` of int8 values; if one is differentiated.
        ValueError: if shapes don't fit; on a bad scale, zero point or activation.
    """
    a, b, channels = _aligned("qadd", a, b)
    scale, zero = _steps.quantization(out_scale, out_zero_point)
    a = _steps.guarded("qadd", a, scale)
    act = as_activation(activation)
    ratios = (_steps.ratio(v.scale, over=[scale]) for v in (a, b))
    m_a, m_b, *bounds = _steps.together(*ratios, *_steps.limits(act, scale))
    with jax.enable_x64(True):
        s = _steps.wide(jnp, _steps.steps(a)) * m_a + _steps.wide(jnp, _steps.steps(b)) * m_b
        s = _steps.activate(jnp, s, act, bounds)
        return QTensor(_steps.to_int8(jnp, s, zero), scale, zero, channels)


def qmul(
    a: QTensor,
    b: QTensor,
    *,
    out_scale: Any,
    out_zero_point: Any = None,
    activation: Activation | str | None = None,
) -> QTensor:
    """The product of int8 tensors: q = clip(rint(act(s) + zp_y), -128, 127).

    s = ((a - zp_a) * (b - zp_b)) * m, with m = a.scale * b.scale / out_scale computed in
    float64 and rounded once to float32. The integers are multiplied exactly, and s is exact in
    float64; half goes to even. The result is the same on all backends.

    Args:
        a: ``[..., C; int8]``.
        b: ``[..., C; int8]``; shapes broadcast as in numpy, channels too: ``[N, 1, 1, C]`` is
            a squeeze-and-excite gate.
        out_scale: ``[; float32]`` positive, real units per integer step.
        out_zero_point: ``[; int32]`` in [-128, 127], or None for symmetric data.
        activation: ``"relu"``, ``"relu6"``, ``"leaky_relu"``, an `Activation`, or None; as in
            `qactivation`, on s.

    Returns:
        A `QTensor` of the broadcast shape, with the padded channels of the operands.

    Raises:
        TypeError: unless both are `QTensor` of int8 values; if one is differentiated.
        ValueError: if shapes don't fit; on a bad scale, zero point or activation.
    """
    a, b, channels = _aligned("qmul", a, b)
    scale, zero = _steps.quantization(out_scale, out_zero_point)
    a = _steps.guarded("qmul", a, scale)
    act = as_activation(activation)
    m, *bounds = _steps.together(
        _steps.ratio(a.scale, b.scale, over=[scale]), *_steps.limits(act, scale)
    )
    with jax.enable_x64(True):
        s = _steps.wide(jnp, _steps.steps(a) * _steps.steps(b)) * m
        s = _steps.activate(jnp, s, act, bounds)
        return QTensor(_steps.to_int8(jnp, s, zero), scale, zero, channels)


def _aligned(op: str, a: Any, b: Any) -> tuple[QTensor, QTensor, int]:
    """Both operands with shapes of equal rank that broadcast, and the channels of the result."""
    a, b = (_steps.operand(op, n, _with_channels(v)) for n, v in (("a", a), ("b", b)))
    try:
        shape = jnp.broadcast_shapes(a.shape, b.shape)
    except ValueError as error:
        raise ValueError(
            f"a has shape {list(a.shape)} and b {list(b.shape)}, which don't broadcast: each axis "
            "must be equal, 1 or missing at the front. Reshape one of them."
        ) from error
    channels = int(shape[-1])
    stored = max(q.values.shape[-1] for q in (a, b) if q.channels == channels)

    def align(q: QTensor) -> QTensor:
        # One channel is spread over the padded ones too.
        kept = pad_channels(q.values, stored) if q.channels == channels else q.unpadded()
        ones = (1,) * (len(shape) - kept.ndim)
        return dataclasses.replace(q, values=kept.reshape(*ones, *kept.shape))

    return align(a), align(b), channels


def _with_channels(q: Any) -> Any:
    """A scalar as a tensor of one channel."""
    if isinstance(q, QTensor) and getattr(q.values, "shape", None) == ():
        return QTensor(q.values.reshape(1), q.scale, q.zero_point, 1)
    return q
