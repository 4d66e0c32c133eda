"""Where to clip the numbers of one histogram: by percentile, squared error or divergence.

All of it in float64, with x64 enabled, for a single tensor or channel: masses ``[2, BINS]`` of the
numbers that are not negative, and of those that are, between magnitudes ``edges [BINS + 1]``.
Numbers are taken to be spread evenly over their bin.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

LINEAR_BINS = 2048
LEVELS = 128
"""Bins and levels of the divergence, those of TensorRT."""

# Candidates are 4.4% apart, from the largest magnitude to 2**-12 of it, and then 0.3% apart around
# the best of them: where numbers crowd in a place, the error depends on how it falls between steps.
_OCTAVES = 12
_PER_OCTAVE = 16
_FINER = 16
_ROUNDS = 3


def percentile(masses: jax.Array, edges: jax.Array, percent: float) -> jax.Array:
    """The magnitude, and the two ends, that hold so many percent of the numbers ``[3]``.

    Of the ends, each leaves out half of the rest.
    """
    seen = masses.sum()
    signed = jnp.concatenate([-edges[:0:-1], edges])
    inside = seen - jnp.floor(seen * (100 - percent) / 200)
    upper = _holding(inside, jnp.concatenate([masses[1, ::-1], masses[0]]), signed)
    lower = -_holding(inside, jnp.concatenate([masses[0, ::-1], masses[1]]), signed)
    return jnp.stack([_holding(seen * percent / 100, masses.sum(0), edges), lower, upper])


def _holding(count: jax.Array, masses: jax.Array, edges: jax.Array) -> jax.Array:
    """Up to where there are so many numbers, rounded up to a whole one."""
    # What is a whole number but for the rounding of a percentage stays that.
    count = jnp.maximum(jnp.ceil(count * (1 - 2.0**-48)), 1)
    until = jnp.cumsum(masses)
    place = jnp.minimum(jnp.searchsorted(until, count), len(masses) - 1)
    part = (count - until[place] + masses[place]) / jnp.maximum(masses[place], 1)
    return edges[place] + (edges[place + 1] - edges[place]) * jnp.clip(part, 0, 1)


def least_squares(masses: jax.Array, edges: jax.Array, ends: jax.Array) -> jax.Array:
    """The magnitude, and the two ends, with the least squared error in int8 ``[3]``.

    The ends are searched from the magnitude on, one after the other, for a few rounds.

    Args:
        masses: ``[2, BINS; float64]``.
        edges: ``[BINS + 1; float64]``.
        ends: ``[2; float64]``, lowest and highest number.
    """
    coarse = 2.0 ** (-jnp.arange(_OCTAVES * _PER_OCTAVE, dtype=jnp.float64) / _PER_OCTAVE)
    fine = 2.0 ** (jnp.linspace(1.0, -1.0, 2 * _FINER + 1) / _PER_OCTAVE)
    both = masses.sum(0)

    def best(widest: jax.Array, error: Callable[[jax.Array], jax.Array]) -> jax.Array:
        def among(candidates: jax.Array) -> jax.Array:
            # The first of equals is the widest.
            return candidates[_least(jax.lax.map(error, candidates, batch_size=64))]

        return among(jnp.minimum(among(widest * coarse) * fine, widest))

    widest = jnp.maximum(ends * jnp.array([-1.0, 1.0]), 0)
    absmax = best(edges[-1], lambda t: _squares(both, edges, t / 127, t))

    def round_of(_: int, sides: jax.Array) -> jax.Array:
        def error(below: jax.Array, above: jax.Array) -> jax.Array:
            step = _positive((below + above) / 255)
            # The zero point is whole: what can be represented ends at whole steps.
            steps = jnp.round(below / step)
            negative = _squares(masses[1], edges, step, steps * step)
            return negative + _squares(masses[0], edges, step, (255 - steps) * step)

        above = best(widest[1], lambda t: error(sides[0], t))
        below = best(widest[0], lambda t: error(t, above))
        return jnp.stack([below, above])

    below, above = jax.lax.fori_loop(0, _ROUNDS, round_of, jnp.minimum(widest, absmax))
    # Numbers of one sign only keep the end that is next to zero.
    return jnp.stack([absmax, jnp.maximum(-below, ends[0]), jnp.minimum(above, ends[1])])


def _squares(masses: jax.Array, edges: jax.Array, step: jax.Array, limit: jax.Array) -> jax.Array:
    """The squared error of magnitudes rounded to steps, and clipped beyond the limit: a sum."""
    step = _positive(step)

    def integral(x: jax.Array) -> jax.Array:
        steps = jnp.minimum(x, limit) / step
        whole = jnp.round(steps)
        rounding = step**3 * (whole / 12 + (steps - whole) ** 3 / 3)
        return rounding + jnp.maximum(x - limit, 0) ** 3 / 3

    # Bins above the largest number are of no width, and hold nothing.
    width = jnp.diff(edges)
    mean = jnp.diff(integral(edges)) / jnp.where(width > 0, width, 1)
    return (masses * mean).sum()


def _positive(step: jax.Array) -> jax.Array:
    """The step, or any other where all is zero."""
    return jnp.where(step > 0, step, 1.0)


def least_divergence(masses: jax.Array, edges: jax.Array) -> jax.Array:
    """The magnitude that, clipped there, loses the least information ``[]``.

    As TensorRT has it: of 2048 even bins up to the largest magnitude, the first i, what is beyond
    added to the last of them, are compared with the same bins without what is beyond, made even
    within each of 128 levels where there is anything: their Kullback-Leibler divergence, for each i
    from 128 on. Numbers next to zero are rounded to it whatever the threshold, and count like
    those beside them.

    Args:
        masses: ``[2, BINS; float64]``.
        edges: ``[BINS + 1; float64]``.
    """
    # The lowest bin holds what is 2**-16 of the largest magnitude, or zero.
    until = jnp.concatenate([jnp.zeros(2), jnp.cumsum(masses.sum(0)[1:])])
    grid = edges[-1] * (jnp.arange(LINEAR_BINS + 1) / LINEAR_BINS)
    bins = jnp.diff(jnp.interp(grid, edges, until))
    bins = bins.at[0].set(bins[1])
    total = bins.sum()

    def before(values: jax.Array) -> jax.Array:
        return jnp.concatenate([jnp.zeros(1), jnp.cumsum(values)])

    held, self_information = before(bins), before(_x_log_x(bins))
    filled = before((bins > 0).astype(jnp.float64))
    until = jnp.arange(LEVELS, LINEAR_BINS + 1)
    starts = (until[:, None] * jnp.arange(LEVELS + 1)[None] + LEVELS - 1) // LEVELS
    level, fills = jnp.diff(held[starts]), jnp.maximum(jnp.diff(filled[starts]), 1)
    inside, last = held[until], bins[until - 1]
    beyond = total - inside
    in_last = jnp.where(last > 0, level[:, -1] / fills[:, -1], 0.0)
    # sum of p * log(p / q), times the total. Where the last bin would be empty but for what is
    # beyond, one number is put there to compare with.
    loss = (
        self_information[until]
        + _x_log_x(last + beyond)
        - _x_log_x(last)
        - (_x_log_x(level) - level * jnp.log(fills)).sum(-1)
        - beyond * jnp.log(jnp.maximum(in_last, 1))
        + total * jnp.log(jnp.where(inside > 0, inside, 1) / jnp.maximum(total, 1))
    )
    loss = jnp.where(inside > 0, loss, jnp.inf).at[-1].min(jnp.finfo(jnp.float64).max)
    # The last of equals is the widest.
    return grid[LINEAR_BINS - _least(loss[::-1])]


def _x_log_x(x: jax.Array) -> jax.Array:
    return x * jnp.log(jnp.where(x > 0, x, 1))


def _least(values: jax.Array) -> jax.Array:
    """Where the first of the least values is; the argmin of JAX is lowered without x64."""
    place = jax.lax.iota(jnp.int32, len(values))
    return jnp.min(jnp.where(values == values.min(), place, len(values) - 1))
