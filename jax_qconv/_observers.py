"""Observers: what calibration learns of the numbers of a tensor, in one pass, keeping none."""

from __future__ import annotations

import dataclasses
import functools
import numbers
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jax_qconv import _extremes, _histogram, _thresholds
from jax_qconv._extremes import Extremes
from jax_qconv._histogram import Histogram
from jax_qconv._range import Range


@runtime_checkable
class Observer(Protocol):
    """Finds the range of real numbers that int8 should span, one batch after another.

    All methods may be jitted. States are pytrees of arrays of fixed shapes. Of `AbsMax`,
    `MinMax`, `Percentile`, `Entropy` and `MSE` the state depends only on the numbers seen: it is
    the same bytes in whatever order and parts they come. That of a batch sharded over devices is
    the same as of the whole batch, for each of them, `MovingAverage` too. NaN and infinities are
    counted and left out, denormals count as zero.
    """

    def init(self, channels: int | None = None) -> Any:
        """The state that has seen nothing: per tensor, or for each index of the last axis."""
        ...

    def update(self, state: Any, x: Any) -> Any:
        """The state that has also seen ``x`` ``[..., C]``, of any float dtype and shape."""
        ...

    def merge(self, a: Any, b: Any) -> Any:
        """The state that has seen what ``a`` and ``b`` have, such as those of two devices."""
        ...

    def finish(self, state: Any) -> Range:
        """What was found: a `Range` of scalars, or of arrays ``[C]``."""
        ...


class _OfExtremes:
    """What observers of the lowest and highest number share."""

    def init(self, channels: int | None = None) -> Extremes:
        """The state that has seen nothing."""
        return _extremes.nothing(channels)

    def update(self, state: Extremes, x: Any) -> Extremes:
        """The state that has also seen ``x``."""
        return _extremes.merge(
            state, _extremes.of(_extremes.samples(x, state.lowest), state.lowest)
        )

    def merge(self, a: Extremes, b: Extremes) -> Extremes:
        """The state that has seen what both have."""
        return _extremes.merge(a, b)


@dataclasses.dataclass(frozen=True)
class AbsMax(_OfExtremes):
    """The largest magnitude: nothing is clipped; asymmetric data spans as much on both sides."""

    def finish(self, state: Extremes) -> Range:
        """The `Range` from -absmax to absmax."""
        absmax = state.absmax
        return Range(absmax, -absmax, absmax, state.empty, state.not_finite)


@dataclasses.dataclass(frozen=True)
class MinMax(_OfExtremes):
    """The lowest and highest number: nothing is clipped."""

    def finish(self, state: Extremes) -> Range:
        """The `Range` from the lowest to the highest number."""
        return Range(state.absmax, *state.ends, state.empty, state.not_finite)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class _Averages:
    """The state of `MovingAverage`: averages ``[] or [C]``, and of how many updates they are."""

    extremes: Extremes
    updates: jax.Array


@dataclasses.dataclass(frozen=True)
class MovingAverage:
    """Moving averages of the lowest and the highest number of each batch.

    The first batch counts in full; after it, average = momentum * average + (1 - momentum) * new.
    What comes later counts more: the order of batches matters, and `merge`, which weighs two states
    by the number of their updates, is close to one state that saw all batches, not the same.

    Attributes:
        momentum: in [0, 1), the weight of what was seen before.
    """

    momentum: float = 0.99

    def __post_init__(self) -> None:
        _check_number("momentum", self.momentum, lambda m: 0 <= m < 1, "in [0, 1)")

    def init(self, channels: int | None = None) -> _Averages:
        """The state that has seen nothing."""
        extremes = _extremes.nothing(channels)
        return _Averages(extremes, jnp.zeros(extremes.lowest.shape, jnp.uint32))

    def update(self, state: _Averages, x: Any) -> _Averages:
        """The state after one more batch; one without a finite number only counts those."""
        new = _extremes.of(_extremes.samples(x, state.updates), state.updates)
        keep = jnp.where(state.updates == 0, 0.0, self.momentum)
        return self._mix(state, _Averages(new, (~new.empty).astype(jnp.uint32)), keep)

    def merge(self, a: _Averages, b: _Averages) -> _Averages:
        """The mean of two states, weighed by the number of their updates."""
        with jax.enable_x64(True):
            updates = a.updates.astype(jnp.float64), b.updates.astype(jnp.float64)
            keep = updates[0] / jnp.maximum(updates[0] + updates[1], 1.0)
        return self._mix(a, b, keep)

    def finish(self, state: _Averages) -> Range:
        """The `Range` from one average to the other."""
        extremes = state.extremes
        return Range(extremes.absmax, *extremes.ends, extremes.empty, extremes.not_finite)

    def _mix(self, a: _Averages, b: _Averages, keep: jax.Array) -> _Averages:
        both = _extremes.merge(a.extremes, b.extremes)

        def mixed(one: jax.Array, other: jax.Array, extreme: jax.Array) -> jax.Array:
            with jax.enable_x64(True):
                weight = keep.astype(jnp.float64)
                mean = one.astype(jnp.float64) * weight + other.astype(jnp.float64) * (1.0 - weight)
                # Of an empty state the ends are infinite, and the extreme is the other's.
                alone = a.extremes.empty | b.extremes.empty
                return jnp.where(alone, extreme.astype(jnp.float64), mean).astype(jnp.float32)

        one, other = a.extremes, b.extremes
        lowest = mixed(one.lowest, other.lowest, both.lowest)
        highest = mixed(one.highest, other.highest, both.highest)
        return _Averages(Extremes(lowest, highest, both.not_finite), a.updates + b.updates)


class _OfHistogram:
    """What observers of the distribution share. They are static arguments: equal by value."""

    def init(self, channels: int | None = None) -> Histogram:
        """The state that has seen nothing."""
        return _histogram.nothing(channels)

    def update(self, state: Histogram, x: Any) -> Histogram:
        """The state that has also seen ``x``."""
        return _histogram.update(state, x)

    def merge(self, a: Histogram, b: Histogram) -> Histogram:
        """The state that has seen what both have."""
        return _histogram.merge(a, b)

    def finish(self, state: Histogram) -> Range:
        """The `Range` that was found."""
        return _found(self, state)

    def _find(self, masses: jax.Array, edges: jax.Array, ends: jax.Array) -> jax.Array:
        """Threshold, lower and upper end ``[3]``, of what `_thresholds` takes."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Percentile(_OfHistogram):
    """The range that holds so many percent of the numbers.

    Symmetric data: that share of magnitudes. Asymmetric: each end leaves out half of the rest. To
    the width of a bin, 1/256 of the value.

    Attributes:
        percent: in (0, 100]; 100 is `MinMax`.
    """

    percent: float = 99.99

    def __post_init__(self) -> None:
        _check_number("percent", self.percent, lambda p: 0 < p <= 100, "in (0, 100]")

    def _find(self, masses: jax.Array, edges: jax.Array, ends: jax.Array) -> jax.Array:
        return _thresholds.percentile(masses, edges, float(self.percent))


@dataclasses.dataclass(frozen=True)
class Entropy(_OfHistogram):
    """The threshold that loses the least information, by Kullback-Leibler divergence.

    TensorRT's calibration: the threshold is between 1/16 of the largest magnitude and all of it.
    The ends for asymmetric data are the threshold, or the lowest and highest number within it.
    """

    def _find(self, masses: jax.Array, edges: jax.Array, ends: jax.Array) -> jax.Array:
        threshold = _thresholds.least_divergence(masses, edges)
        return jnp.stack([threshold, *jnp.clip(ends, -threshold, threshold)])


@dataclasses.dataclass(frozen=True)
class MSE(_OfHistogram):
    """The range with the least mean squared error in int8, of rounding and clipping together.

    Threshold and ends are searched each for itself, to 0.3%.
    """

    def _find(self, masses: jax.Array, edges: jax.Array, ends: jax.Array) -> jax.Array:
        return _thresholds.least_squares(masses, edges, ends)


@functools.partial(jax.jit, static_argnums=0)
def _found(observer: _OfHistogram, state: Histogram) -> Range:
    """What the observer finds in a histogram, or in that of each channel."""
    ends = state.extremes.ends
    with jax.enable_x64(True):
        masses, edges = _histogram.wide(state).astype(jnp.float64), _histogram.edges(state)
        args = masses, edges, jnp.stack(ends, axis=-1).astype(jnp.float64)
        if state.octave.ndim:
            # One after another: a search takes megabytes.
            found = jax.lax.map(lambda one: observer._find(*one), args)
        else:
            found = observer._find(*args)
        found = found.astype(jnp.float32)
    # Not beyond what was seen, where numbers are few in their bin.
    absmax = jnp.minimum(found[..., 0], state.extremes.absmax)
    lower, upper = (jnp.clip(found[..., i], *ends) for i in (1, 2))
    return Range(absmax, lower, upper, state.extremes.empty, state.extremes.not_finite)


def _check_number(name: str, value: Any, good: Callable[[Any], bool], rule: str) -> None:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a Python number, got {value!r}.")
    if not good(value):
        raise ValueError(f"{name} must be {rule}, got {value!r}.")


OBSERVERS: dict[str, Callable[..., Observer]] = {
    "absmax": AbsMax,
    "entropy": Entropy,
    "minmax": MinMax,
    "moving_average": MovingAverage,
    "mse": MSE,
    "percentile": Percentile,
}
"""The observers that have a name."""


def as_observer(observer: Observer | str) -> Observer:
    """Normalise the ``observer`` argument: a name, ``"percentile:99.9"``, or an observer.

    Raises:
        TypeError: if it is neither.
        ValueError: if the name isn't known, or the percentile isn't in (0, 100].
    """
    if isinstance(observer, str):
        name, colon, percent = observer.partition(":")
        if name in OBSERVERS and not colon:
            return OBSERVERS[name]()
        if name == "percentile":
            try:
                return Percentile(float(percent))
            except ValueError as error:
                raise ValueError(
                    f"observer={observer!r}: a percentile is a number in (0, 100], as in "
                    "'percentile:99.9'."
                ) from error
        raise ValueError(
            f"observer={observer!r} is not known; use one of {sorted(OBSERVERS)}, "
            "'percentile:99.9', or an Observer such as Percentile(99.9)."
        )
    if isinstance(observer, type) or not isinstance(observer, Observer):
        raise TypeError(
            f"observer must be a name or an Observer, got {observer!r}; names are "
            f"{sorted(OBSERVERS)}, and an Observer has init, update, merge and finish."
        )
    return observer
