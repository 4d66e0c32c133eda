"""Whether other numbers of stored channels than the rule's would be faster, for layers of a net."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from jax_qconv import _choices, _groups
from jax_qconv._choices import Case, Times
from jax_qconv._networks import Layer

STEPS = (4, 8, 16, 32, 64)
"""Channels are stored in multiples of these: what kernels of one kind or another want."""


def choices(layer: Layer) -> Iterator[tuple[int, int]]:
    """(C, K) to store, the rule's first. They differ in one place: neighbours pad the other."""
    c, k = layer.c, layer.k
    merge = _groups.merge_by_rule(c, k, layer.groups)
    by_rule = _groups.stored_channels(c, k, layer.groups // merge)
    found = [by_rule]
    if layer.groups == 1:  # with groups, both neighbours would have to follow
        found += [(-(-c // step) * step, by_rule[1]) for step in STEPS]
        found += [(by_rule[0], -(-k // step) * step) for step in STEPS]
    yield from dict.fromkeys(found)


def cases(layers: Iterable[Layer], batches: Iterable[int]) -> list[Case]:
    """All choices for all layers."""
    return _choices.of_layers("pad_to", choices, layers, batches)


def line(times: Times) -> str:
    """What the fastest choice is, in words."""
    case, best = times.case, next(iter(times.us))
    return (
        f"{case.name}: {case.argument}={best} takes {times.us[best]:.2f} us, "
        f"{case.by_rule} by rule {times.us[case.by_rule]:.2f} us"
    )
