"""Whether other numbers of stored channels than the rule's would be faster, for layers of a net."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping

from jax_qconv._networks import Layer
from jax_qconv._problem import Problem
from jax_qconv._spec import padded_channels
from jax_qconv._tune import layer_problem

STEPS = (4, 8, 16, 32, 64)
"""Channels are stored in multiples of these: what kernels of one kind or another want."""

WORTH = 1.03
"""How much faster it must be to be reported: closer times are noise."""


@dataclasses.dataclass(frozen=True)
class Better:
    """A padding that beats the rule.

    Attributes:
        layer: of which network doesn't matter.
        batch: size.
        pad_to: (C, K) for `prepack`.
        us: microseconds with it.
        us_by_rule: with the rule's.
    """

    layer: Layer
    batch: int
    pad_to: tuple[int, int]
    us: float
    us_by_rule: float

    def __str__(self) -> str:
        by_rule = tuple(map(padded_channels, (self.layer.c, self.layer.k)))
        return (
            f"{self.layer.name} x{self.batch}: pad_to={self.pad_to} takes {self.us:.2f} us, "
            f"{by_rule} by rule {self.us_by_rule:.2f} us"
        )


def choices(layer: Layer) -> Iterator[tuple[int, int]]:
    """(C, K) to store, the rule's first. They differ in one place: neighbours pad the other."""
    c, k = layer.c, layer.k
    by_rule = padded_channels(c), padded_channels(k)
    found = [by_rule]
    found += [(-(-c // step) * step, by_rule[1]) for step in STEPS]
    found += [(by_rule[0], -(-k // step) * step) for step in STEPS]
    yield from dict.fromkeys(found)


def problems(layers: Iterable[Layer], batches: Iterable[int]) -> list[Problem]:
    """All choices for all layers, each distinct problem once."""
    pairs = [(layer, batch) for layer in layers for batch in batches]
    found = (
        layer_problem(layer, batch, pad_to=choice)
        for layer, batch in pairs
        for choice in choices(layer)
    )
    return list(dict.fromkeys(found))


def better(
    layers: Iterable[Layer], batches: Iterable[int], us: Mapping[str, float]
) -> Iterator[Better]:
    """Where another choice is faster.

    Args:
        layers: without repetition.
        batches: sizes.
        us: microseconds by the text of a problem; those that are missing can't win.
    """
    for layer in layers:
        for batch in batches:
            times = {
                choice: us[str(problem)]
                for choice in choices(layer)
                if str(problem := layer_problem(layer, batch, pad_to=choice)) in us
            }
            by_rule = times.get(next(choices(layer)))
            if by_rule is None:
                continue
            best = min(times, key=lambda choice: times[choice])
            if by_rule > WORTH * times[best]:
                yield Better(layer, batch, best, times[best], by_rule)
