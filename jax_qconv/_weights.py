"""Weights of a layer in int8: at which scale, and rounded in which way."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_qconv._observers import MSE, Observer
from jax_qconv._range import scale_of
from jax_qconv._weight_clipping import clipped_weight_scale, quantized_weight

ROUNDINGS = ("nearest", "compensated")
"""Ways of rounding weights."""


def weight_scale(weight: jax.Array, observer: Observer, *, per_channel: bool) -> jax.Array:
    """The scale of weights.

    Args:
        weight: ``[..., K; float32]``.
        observer: that finds their range; of `MSE` every threshold is tried on the weights
            themselves.
        per_channel: one for each output channel, or one in all.

    Returns:
        ``[K] or []; float32``.
    """
    if isinstance(observer, MSE):
        return clipped_weight_scale(weight, per_channel=per_channel)
    state = observer.init(weight.shape[-1] if per_channel else None)
    scale, _ = scale_of(observer.finish(observer.update(state, weight)))
    return scale


def rounded(
    weight: jax.Array,
    scale: jax.Array,
    *,
    second: jax.Array | None = None,
    x_scale: Any = 0.0,
) -> jax.Array:
    """int8 weights, to nearest or so that what rounding does to sums is least.

    With second moments each weight makes up for what rounding those before it did, as far as their
    inputs go together, the most active first: the procedure of GPTQ (arXiv:2210.17323, from
    Optimal Brain Surgeon).

    Args:
        weight: ``[R, S, C / groups, K] or [C, K]; float32``.
        scale: ``[K] or []; float32``.
        second: of `Moments`, ``[groups, T, T; float32]``; None rounds to nearest.
        x_scale: ``[; float32]`` of the input, whose own rounding errors are independent.

    Returns:
        ``int8`` in [-127, 127], in the shape of ``weight``.
    """
    if second is None:
        return quantized_weight(weight, scale)
    *kernel, c, k = weight.shape
    groups, taps = second.shape[:2]
    columns = by_sums(weight, groups)
    scales = jnp.broadcast_to(scale, (k,)).reshape(groups, k // groups)
    with jax.enable_x64(True):
        noise = jnp.asarray(x_scale, jnp.float64) ** 2 * np.float64(1 / 12)
        found = jax.lax.map(
            lambda group: _compensated(group[0], group[1], group[2], noise),
            (columns.astype(jnp.float64), scales.astype(jnp.float64), second.astype(jnp.float64)),
            batch_size=max(1, 2**22 // taps**2),
        )
    found = found.swapaxes(0, 1).reshape(c, *kernel, k)
    return jnp.moveaxis(found, 0, -2)


def _compensated(w: jax.Array, scale: jax.Array, second: jax.Array, noise: jax.Array) -> jax.Array:
    """``[T, K; int8]`` of weights ``[T, K]``."""
    taps = len(w)
    order = jnp.argsort(-jnp.diagonal(second), stable=True)
    h = second[order][:, order]
    # What is never active has no say, and few samples say little of rare inputs: GPTQ's damping.
    least = 1e-2 * jnp.trace(h) / taps + 2.0**-126
    h = h + jnp.eye(taps, dtype=h.dtype) * (noise + least)
    inverse = jax.scipy.linalg.cho_solve(
        (jnp.linalg.cholesky(h), True), jnp.eye(taps, dtype=h.dtype)
    )
    upper = jnp.linalg.cholesky((inverse + inverse.T) * 0.5).T

    def nearest(row: jax.Array) -> jax.Array:
        return jnp.clip(jnp.round(row / scale), -127, 127)

    def one(i: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        left, done = state
        integers = nearest(left[i])
        error = (left[i] - integers * scale) / upper[i, i]
        return left - upper[i][:, None] * error[None], done.at[i].set(integers.astype(jnp.int8))

    _, done = jax.lax.fori_loop(0, taps, one, (w[order], jnp.zeros(w.shape, jnp.int8)))
    # Moments that are no moments have no factors.
    alone = jax.vmap(nearest)(w).astype(jnp.int8)
    return jnp.where(jnp.isfinite(upper).all(), jnp.zeros_like(done).at[order].set(done), alone)


def by_sums(weight: jax.Array, groups: int) -> jax.Array:
    """Weights ``[R, S, C / groups, K] or [C, K]`` as ``[G, T, K / G]``, T in the order C, R, S."""
    k = weight.shape[-1]
    return jnp.moveaxis(weight, -2, 0).reshape(-1, groups, k // groups).swapaxes(0, 1)


def check_rounding(rounding: Any) -> None:
    """Raise ValueError unless it is one of `ROUNDINGS`."""
    if rounding not in ROUNDINGS:
        raise ValueError(f"rounding={rounding!r} is not known; use one of {list(ROUNDINGS)}.")
