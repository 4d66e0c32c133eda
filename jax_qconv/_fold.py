"""Scales to the constants of the epilogue, each computed in float64 and rounded once.

The epilogue is y = act(fma(r, m_r, fma(acc, m[k], b[k]))) in float32, with
m = s_x * s_w / s_y, b = bias / s_y, m_r = s_r / s_y and the bounds of clip over s_y;
s_y = 1 for float outputs, whose y is in real units. Constants below 2**-126 become zero.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_qconv._arrays import is_concrete
from jax_qconv._spec import Activation

_TINY = 2.0**-126  # smallest normal float32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Constants:
    """What the epilogue multiplies, adds and clips by; all float32.

    Attributes:
        m: ``[K; float32]`` per-channel factor of the accumulator, K as stored.
        b: ``[K; float32]`` per-channel term.
        m_r: ``[; float32]`` factor of the residual, or None without one.
        lower: ``[; float32]`` lower bound of clip, or None.
        upper: ``[; float32]`` upper bound of clip, or None.
    """

    m: Any
    b: Any
    m_r: Any = None
    lower: Any = None
    upper: Any = None


def fold(
    *,
    weight_scale: jax.Array,
    bias: jax.Array | None,
    x_scale: jax.Array,
    out_scale: jax.Array | None,
    residual_scale: jax.Array | None,
    activation: Activation,
    channels: int,
    stored: int,
    copies: int = 1,
) -> Constants:
    """Fold scales, bias and bounds into `Constants`.

    Args:
        weight_scale: ``[K or scalar; float32]``, K logical.
        bias: ``[K; float32]`` in real units, or None.
        x_scale, out_scale, residual_scale: ``[; float32]``; out_scale None means float output.
        activation: bounds in real units.
        channels, stored: logical and stored K; padded channels get zeros.
        copies: how often the stored channels follow each other.
    """
    scales = [weight_scale, bias, x_scale, residual_scale, out_scale]
    if all(v is None or is_concrete(v) for v in scales):
        # On the host: no program is compiled, and division is IEEE.
        with np.errstate(over="ignore"):
            folded = _fold(np, activation, *[None if v is None else np.asarray(v) for v in scales])
    else:
        # A constant divisor would be turned into a product with its reciprocal.
        scales[-1] = None if out_scale is None else jax.lax.optimization_barrier(out_scale)
        with jax.enable_x64(True):
            folded = _fold(jnp, activation, *scales)
    m, b, *rest = (v if v is None else jnp.asarray(v, jnp.float32) for v in folded)

    def spread(v: Any) -> jax.Array:
        padded = jnp.pad(jnp.broadcast_to(v, (channels,)), (0, stored - channels))
        return padded if copies == 1 else jnp.tile(padded, copies)

    return Constants(spread(m), spread(b), *rest)


def _fold(
    xp: Any,
    activation: Activation,
    weight_scale: Any,
    bias: Any,
    x_scale: Any,
    residual_scale: Any,
    out_scale: Any,
) -> tuple[Any, ...]:
    """The formulas, once for the host (numpy) and once for traced scales (jax.numpy)."""

    def f64(v: Any) -> Any:
        return xp.asarray(v).astype(xp.float64)

    def over_out_scale(v: Any) -> Any:
        v = v if out_scale is None else v / f64(out_scale)
        # Kernels differ in whether they read subnormal numbers as zero, so give them none.
        return xp.where(xp.abs(v) < _TINY, np.float64(0), v).astype(xp.float32)

    # The product of two float32 is exact in float64, so each line rounds twice at most:
    # once in the division, once to float32, in the same way everywhere.
    m = over_out_scale(f64(x_scale) * f64(weight_scale))
    b = over_out_scale(f64(0.0 if bias is None else bias))
    m_r = None if residual_scale is None else over_out_scale(f64(residual_scale))
    if activation.kind != "clip":
        return m, b, m_r, None, None
    return m, b, m_r, over_out_scale(f64(activation.lower)), over_out_scale(f64(activation.upper))
