"""Histograms of magnitudes that come out the same in whatever order and parts the data comes.

Bins are the leading bits of float32: 256 to the octave, for the 16 octaves up to the largest
magnitude; smaller ones share the lowest bin. When a larger number comes, the octaves move up and
the lowest bin takes what falls off, so where a number is counted depends on the largest one only.
Each bin is narrow beside its numbers: an outlier costs the others none of their resolution.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_qconv import _extremes
from jax_qconv._arrays import explicit_sharding
from jax_qconv._extremes import Extremes

OCTAVES = 16
PER_OCTAVE = 256
BINS = OCTAVES * PER_OCTAVE
"""Bins of each sign."""

_MANTISSA_BITS = 23
# What is left of a float32 without its sign: 8 bits of exponent and log2(256) of mantissa.
_DROPPED_BITS = _MANTISSA_BITS - 8


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Histogram:
    """How many numbers of each sign and magnitude were seen. A pytree.

    Counts are of 64 bits, in two words as JAX has no longer integers by default: a few dozen
    batches of a large layer hold more than 2**32 numbers.

    Attributes:
        low: ``[2, BINS] or [C, 2, BINS]; uint32``, the low words: not negative, negative.
        high: as ``low``, the high words.
        octave: ``[] or [C]; int32``, the exponent of float32 (biased) of the highest octave.
        extremes: of all numbers.
    """

    low: jax.Array
    high: jax.Array
    octave: jax.Array
    extremes: Extremes


def nothing(channels: int | None) -> Histogram:
    """Of no numbers at all; ``channels`` is None for one histogram of the whole tensor."""
    extremes = _extremes.nothing(channels)
    shape = extremes.lowest.shape
    return Histogram(
        jnp.zeros((*shape, 2, BINS), jnp.uint32),
        jnp.zeros((*shape, 2, BINS), jnp.uint32),
        jnp.full(shape, OCTAVES - 1, jnp.int32),
        extremes,
    )


def update(histogram: Histogram, x: Any) -> Histogram:
    """With the numbers of ``x`` ``[..., C]``, computed in float32."""
    x = _extremes.samples(x, histogram.extremes.lowest)
    seen = _extremes.of(x, histogram.extremes.lowest)
    octave = jnp.maximum(_key(seen.absmax) // PER_OCTAVE, OCTAVES - 1)
    counts = _counted_on_all(x, octave)
    return merge(histogram, Histogram(counts, jnp.zeros_like(counts), octave, seen))


def merge(a: Histogram, b: Histogram) -> Histogram:
    """That of the numbers of both."""
    octave = jnp.maximum(a.octave, b.octave)
    with jax.enable_x64(True):
        counts = _risen(a, octave) + _risen(b, octave)
        low, high = counts.astype(jnp.uint32), (counts >> np.uint64(32)).astype(jnp.uint32)
    return Histogram(low, high, octave, _extremes.merge(a.extremes, b.extremes))


def wide(histogram: Histogram) -> jax.Array:
    """The counts ``[..., 2, BINS; uint64]``; with x64 enabled only."""
    high = histogram.high.astype(jnp.uint64) << np.uint64(32)
    return high | histogram.low.astype(jnp.uint64)


def edges(histogram: Histogram) -> jax.Array:
    """The magnitudes between bins ``[..., BINS + 1; float64]``; with x64 enabled only.

    From 0 to just beyond the largest magnitude seen, where the bins above it are closed: its own is
    of some width even where it begins with it.
    """
    keys = _first(histogram.octave)[..., None] + _counting((*histogram.octave.shape, BINS + 1))
    # The largest key is that of infinity.
    magnitudes = jax.lax.bitcast_convert_type(keys << _DROPPED_BITS, jnp.float32)
    magnitudes = magnitudes.astype(jnp.float64).at[..., 0].set(0.0)
    closed = histogram.extremes.absmax.astype(jnp.float64)[..., None] * (1 + 2.0**-20)
    return jnp.minimum(magnitudes, closed)


def _key(x: jax.Array) -> jax.Array:
    """The leading bits of a magnitude ``[int32]``: its bin among those of all octaves."""
    return jax.lax.bitcast_convert_type(jnp.abs(x), jnp.int32) >> _DROPPED_BITS


def _first(octave: jax.Array) -> jax.Array:
    """The key of the lowest bin, given the highest octave."""
    return (octave - (OCTAVES - 1)) * PER_OCTAVE


def _counted_on_all(x: jax.Array, octave: jax.Array) -> jax.Array:
    """`_counted`; of an array on explicit axes, each device its part, then their sum."""
    sharding = explicit_sharding(x)
    if sharding is None:
        return _counted(x, octave)
    replicated = sharding.update(spec=jax.sharding.PartitionSpec())
    with jax.sharding.use_abstract_mesh(sharding.mesh):
        counted = jax.sharding.auto_axes(_counted, out_sharding=replicated)
        return counted(x, octave)  # type: ignore[reportCallIssue]


def _counted(x: jax.Array, octave: jax.Array) -> jax.Array:
    """How many numbers fall into each bin ``[..., 2, BINS; uint32]``."""
    shape = (*octave.shape, 2, BINS)
    size = int(np.prod(shape))
    first = jnp.broadcast_to(_first(octave), x.shape)
    place = jnp.clip(_key(x) - first, 0, BINS - 1) + BINS * (x < 0).astype(jnp.int32)
    if octave.ndim:
        place = place + 2 * BINS * _counting(x.shape)
    place = jnp.where(jnp.isfinite(x), place, size)
    counts = jnp.zeros(size, jnp.uint32).at[place].add(np.uint32(1), mode="drop")
    return counts.reshape(shape)


def _risen(histogram: Histogram, octave: jax.Array) -> jax.Array:
    """The counts ``[..., 2, BINS; uint64]`` when that octave, or a lower one, is the highest."""
    by = jnp.minimum((octave - histogram.octave) * PER_OCTAVE, BINS)[..., None, None]
    below = jnp.cumsum(wide(histogram), axis=-1)
    place = jnp.minimum(_counting(below.shape) + by, BINS - 1)
    below = jnp.take_along_axis(below, place, axis=-1)
    return jnp.diff(below, axis=-1, prepend=np.uint64(0))


def _counting(shape: tuple[int, ...]) -> jax.Array:
    """0, 1, 2 and so on along the last axis ``[int32]``."""
    return jax.lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1)
