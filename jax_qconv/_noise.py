"""How near numbers are to those that they stand for."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_qconv._batches import arguments


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sums:
    """Sums over numbers and their differences to the wanted ones. A pytree.

    Attributes:
        signal: of the squares of the wanted numbers.
        noise: of the squares of the differences.
        error: of their magnitudes.
        worst: the largest of these.
        count: how many numbers there are.
    """

    signal: Any
    noise: Any
    error: Any
    worst: Any
    count: Any

    @staticmethod
    def of(wanted: Any, got: Any) -> Sums:
        """Of two arrays, computed in float32."""
        wanted, got = (jnp.asarray(v).astype(jnp.float32) for v in (wanted, got))
        difference = jnp.abs(wanted - got)
        return Sums(
            jnp.sum(wanted * wanted),
            jnp.sum(difference * difference),
            jnp.sum(difference),
            jnp.max(difference, initial=0.0),
            jnp.float32(wanted.size),
        )

    @staticmethod
    def of_all(wanted: Sequence[Any], got: Sequence[Any]) -> Sums:
        """Of several arrays together, such as all outputs of a network."""
        return functools.reduce(Sums.joined, map(Sums.of, wanted, got))

    def joined(self, other: Sums) -> Sums:
        """Of two parts of the numbers."""
        both = jax.tree.map(lambda a, b: a + b, self, other)
        return dataclasses.replace(both, worst=jnp.maximum(self.worst, other.worst))

    @property
    def sqnr_db(self) -> float:
        """Signal over noise; -inf where a number isn't finite."""
        noise, signal = float(self.noise), float(self.signal)
        if noise == 0:
            return math.inf
        ratio = max(signal, 1e-30) / noise
        return 10 * math.log10(ratio) if ratio > 0 else -math.inf


def over(batches: Iterable[Any], compare: Callable[[tuple[Any, ...]], Any]) -> Any:
    """What a comparison finds in all batches together.

    Args:
        batches: as `quantize_model` takes them.
        compare: makes of the arguments of a batch a pytree of `Sums` and of arrays to be added.

    Raises:
        TypeError: if ``batches`` is a single one.
        ValueError: without any.
    """
    total: Any = None
    for data in arguments(batches):
        # In float64, in which counts stay exact.
        found = jax.tree.map(lambda v: np.asarray(v, np.float64), jax.device_get(compare(data)))
        total = found if total is None else jax.tree.map(_joined, total, found, is_leaf=_is_sums)
    if total is None:
        raise ValueError("batches is empty: networks are compared on at least one batch of data.")
    return total


def _is_sums(value: Any) -> bool:
    return isinstance(value, Sums)


def _joined(a: Any, b: Any) -> Any:
    return a.joined(b) if _is_sums(a) else a + b
