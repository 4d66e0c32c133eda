"""Scales of weights that minimise the squared error: clipping a few makes the rest finer."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_qconv._arrays import as_array, check_scale, is_concrete, reciprocal, undifferentiable
from jax_qconv._spec import is_int

CANDIDATES = 100
"""Thresholds tried: this many hundredths of the largest magnitude, and fewer."""


def clipped_weight_scale(weight: Any, *, per_channel: bool = True, axis: int = -1) -> jax.Array:
    """The scale of int8 weights with the least squared error, clipping included.

    Thresholds of 1%, 2%, ... 100% of the largest magnitude are tried; of equal errors the largest
    scale wins. Quantised as by `prepack`: rint(w * (1/scale)) in [-127, 127]. Where all weights
    are zero the scale is 1, as there.

    Args:
        weight: ``[...; float32, bfloat16 or float16]``, of any layout.
        per_channel: one scale for each index of ``axis``, or one for the tensor.
        axis: that of the output channels.

    Returns:
        ``[K] or []; float32``.

    Raises:
        TypeError: if ``weight`` isn't float, ``per_channel`` no bool or ``axis`` no int.
        ValueError: if ``weight`` is empty, without such an axis, or, when concrete, not finite.
    """
    weight, axis = _checked(weight, per_channel, axis)
    scale = _search(weight, per_channel=per_channel, axis=axis)
    if is_concrete(scale) and not np.isfinite(np.asarray(scale)).all():
        raise ValueError("weight holds NaN or infinite values.")
    return scale


def quantized_weight(weight: Any, scale: Any, *, axis: int = -1) -> jax.Array:
    """int8 weights of that scale, for ``prepack(..., weight_scale=scale)``.

    Args:
        weight: ``[...; float32, bfloat16 or float16]``, of any layout.
        scale: ``[K] or []; float32``.
        axis: that of the output channels.

    Returns:
        rint(w * (1/scale)) in [-127, 127], in the layout of ``weight``.

    Raises:
        TypeError, ValueError: as `clipped_weight_scale`; on a bad scale.
    """
    weight, axis = _checked(weight, True, axis)
    scale = check_scale("scale", scale, length=weight.shape[axis])
    return _integers(weight, _along(axis, weight.ndim, jnp.asarray(scale))).astype(jnp.int8)


def _checked(weight: Any, per_channel: bool, axis: int) -> tuple[jax.Array, int]:
    """The weight in float32, and the axis counted from the front."""
    weight = as_array("weight", weight)
    if not jnp.issubdtype(weight.dtype, jnp.floating):
        raise TypeError(f"weight must be float32, bfloat16 or float16, got {weight.dtype}.")
    if not isinstance(per_channel, bool):
        raise TypeError(f"per_channel must be True or False, got {per_channel!r}.")
    if not is_int(axis):
        raise TypeError(f"axis must be an int, got {axis!r}.")
    if not -weight.ndim <= axis < weight.ndim:
        raise ValueError(f"axis={axis} is not one of weight, of shape {list(weight.shape)}.")
    if weight.size == 0:
        raise ValueError(f"weight must not be empty, got shape {list(weight.shape)}.")
    weight = undifferentiable(jnp.asarray(weight), "clipped_weight_scale")
    return weight.astype(jnp.float32), axis % weight.ndim


def _along(axis: int, ndim: int, scale: jax.Array) -> jax.Array:
    """A scale that broadcasts over the other axes."""
    return jnp.expand_dims(scale, [a for a in range(ndim) if not scale.ndim or a != axis])


def _integers(weight: jax.Array, scale: jax.Array) -> jax.Array:
    """The weights in whole steps ``[float32]``."""
    return jnp.clip(jnp.round(weight * reciprocal(scale)), -127, 127)


@functools.partial(jax.jit, static_argnames=("per_channel", "axis"))
def _search(weight: jax.Array, *, per_channel: bool, axis: int) -> jax.Array:
    others = tuple(a for a in range(weight.ndim) if not per_channel or a != axis)
    absmax = jnp.max(jnp.abs(weight), others)

    def scale_at(hundredths: jax.Array) -> jax.Array:
        with jax.enable_x64(True):
            # The full one is that of prepack: the constant 1 / 127 is rounded before the product.
            fraction = hundredths.astype(jnp.float64) * np.float64(1 / CANDIDATES)
            full = absmax.astype(jnp.float64) * np.float64(1 / 127)
            return jnp.where(hundredths == CANDIDATES, full, full * fraction).astype(jnp.float32)

    def error_of(scale: jax.Array) -> jax.Array:
        along = _along(axis, weight.ndim, scale)
        integers = _integers(weight, along)
        with jax.enable_x64(True):
            real = integers.astype(jnp.float64) * along.astype(jnp.float64)
            return jnp.sum((weight.astype(jnp.float64) - real) ** 2, others)

    def shrunk(i: jax.Array, best: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        scale = scale_at(jnp.int32(CANDIDATES) - i)
        error = error_of(scale)
        # Below the smallest scale there is no reciprocal.
        better = (error < best[1]) & (scale >= np.finfo(np.float32).tiny)
        return jnp.where(better, scale, best[0]), jnp.where(better, error, best[1])

    full = scale_at(jnp.int32(CANDIDATES))
    scale, _ = jax.lax.fori_loop(1, CANDIDATES, shrunk, (full, error_of(full)))
    return jnp.where(scale < np.finfo(np.float32).tiny, jnp.float32(1), scale)
