"""The lowest and highest number of each tensor or channel: the state that all observers keep."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_qconv._arrays import as_array
from jax_qconv._spec import is_int

TINY = np.float32(2.0**-126)
"""The smallest normal number. Those below count as zero, as some devices compute with them so."""

_MOST = np.uint32(2**32 - 1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Extremes:
    """The ends of the finite numbers seen, and how many were not finite. A pytree.

    Attributes:
        lowest: ``[] or [C]; float32``, inf where nothing was seen.
        highest: ``[] or [C]; float32``, -inf where nothing was seen.
        not_finite: ``[] or [C]; uint32``, stops at its largest value.
    """

    lowest: jax.Array
    highest: jax.Array
    not_finite: jax.Array

    @property
    def empty(self) -> jax.Array:
        """``[] or [C]; bool``: whether no finite number was seen."""
        return self.highest < self.lowest

    @property
    def absmax(self) -> jax.Array:
        """``[] or [C]; float32``: the largest magnitude; 0 where nothing was seen."""
        largest = jnp.maximum(jnp.abs(self.lowest), jnp.abs(self.highest))
        return jnp.where(self.empty, jnp.zeros_like(largest), largest)

    @property
    def ends(self) -> tuple[jax.Array, jax.Array]:
        """``[] or [C]; float32`` twice: lowest and highest; 0 where nothing was seen."""
        zero = jnp.zeros_like(self.lowest)
        return jnp.where(self.empty, zero, self.lowest), jnp.where(self.empty, zero, self.highest)


def nothing(channels: int | None) -> Extremes:
    """Of no numbers at all; ``channels`` is None for one statistic of the whole tensor.

    Raises:
        TypeError: if ``channels`` is neither an int nor None.
        ValueError: if it isn't positive.
    """
    if channels is not None and not is_int(channels):
        raise TypeError(f"channels must be an int, or None for per tensor, got {channels!r}.")
    if channels is not None and channels < 1:
        raise ValueError(f"channels must be at least 1, got {channels}; None is per tensor.")
    shape = () if channels is None else (int(channels),)
    return Extremes(
        jnp.full(shape, jnp.inf, jnp.float32),
        jnp.full(shape, -jnp.inf, jnp.float32),
        jnp.zeros(shape, jnp.uint32),
    )


def samples(x: Any, like: jax.Array) -> jax.Array:
    """``x`` in float32, without denormals and negative zeros, if it suits statistics ``like``.

    Raises:
        TypeError: if ``x`` is no float array.
        ValueError: if it hasn't the channels of the state, or too many elements to count.
    """
    x = as_array("x", x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"x must be float32, bfloat16 or float16 to be observed, got {x.dtype}.")
    if like.ndim and x.shape[-1:] != like.shape:
        raise ValueError(
            f"x must have the {like.shape[0]} channels of the state in its last axis, got shape "
            f"{list(x.shape)}; init(channels) sets their number, init() observes the whole tensor."
        )
    if x.size >= 2**32:
        raise ValueError(f"x has {x.size} elements, more than 2**32 - 1: update with parts of it.")
    x = jax.lax.stop_gradient(jnp.asarray(x)).astype(jnp.float32)
    # False of NaN, which stays.
    return jnp.where(jnp.abs(x) < TINY, jnp.float32(0), x)


def of(x: jax.Array, like: jax.Array) -> Extremes:
    """The extremes of what `samples` gave."""
    axes = tuple(range(x.ndim - like.ndim))
    finite = jnp.isfinite(x)
    return Extremes(
        jnp.min(x, axes, where=finite, initial=jnp.inf),
        jnp.max(x, axes, where=finite, initial=-jnp.inf),
        jnp.sum(~finite, axes, dtype=jnp.uint32),
    )


def merge(a: Extremes, b: Extremes) -> Extremes:
    """Those of both."""
    return Extremes(
        jnp.minimum(a.lowest, b.lowest),
        jnp.maximum(a.highest, b.highest),
        a.not_finite + jnp.minimum(b.not_finite, _MOST - a.not_finite),
    )
