"""What observers find: a `Range` of real numbers, and the scale and zero point made from it."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

UNIT_SCALE = 1.0 / 127
"""The scale where there is no range to speak of: only zeros, or nothing, was seen."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Range:
    """The real numbers that int8 should span: around zero, or between two ends. A pytree.

    Attributes:
        absmax: ``[] or [C]; float32``, at least 0: symmetric data spans [-absmax, absmax].
        lower: ``[] or [C]; float32``: asymmetric data spans [lower, upper].
        upper: ``[] or [C]; float32``, at least ``lower``.
        empty: ``[] or [C]; bool``: no finite number was seen, and the others are 0.
        not_finite: ``[] or [C]; uint32``: how many NaN and infinities were left out; 2**32 - 1
            stands for as many or more.
    """

    absmax: jax.Array
    lower: jax.Array
    upper: jax.Array
    empty: jax.Array
    not_finite: jax.Array


def scale_of(range_: Range, *, asymmetric: bool = False) -> tuple[jax.Array, jax.Array | None]:
    """The scale and zero point with which int8 spans a range.

    Computed in float64, each rounded once. Symmetric: scale = absmax / 127. Asymmetric: the range
    is widened to hold zero, scale = (upper - lower) / 255 and zero_point = rint(-128 - lower /
    scale), half to even. A scale below 2**-126, as of data that is all zero, becomes 1 / 127.

    Args:
        range_: what an observer found.
        asymmetric: whether there is a zero point.

    Returns:
        scale ``[] or [C]; float32``, and zero_point ``[] or [C]; int32`` in [-128, 127], or None.
    """
    with jax.enable_x64(True):
        if not asymmetric:
            return _rounded(range_.absmax.astype(jnp.float64) * np.float64(1 / 127)), None
        lower = jnp.minimum(range_.lower.astype(jnp.float64), 0.0)
        upper = jnp.maximum(range_.upper.astype(jnp.float64), 0.0)
        scale = _rounded((upper - lower) * np.float64(1 / 255))
        zero_point = jnp.round(-128.0 - lower / scale.astype(jnp.float64))
        return scale, jnp.clip(zero_point, -128.0, 127.0).astype(jnp.int32)


def _rounded(scale: jax.Array) -> jax.Array:
    """``scale`` as float32, or the scale of nothing where its reciprocal wouldn't be normal."""
    return jnp.where(scale < 2.0**-126, UNIT_SCALE, scale).astype(jnp.float32)
