"""Which value of an argument of `prepack` makes a convolution the fastest, by tuned plans.

Packs must be equal on all machines, and what a machine has tuned isn't: so the values are told, and
callers of `prepack` pass them.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from jax_qconv import _plan_store
from jax_qconv._networks import Layer
from jax_qconv._problem import Problem
from jax_qconv._tune import layer_problem
from jax_qconv._tuning import Tuned

WORTH = 1.03
"""How much faster it must be to pay: closer times are noise."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A convolution, and how it can be stored.

    Attributes:
        name: of the convolution.
        argument: of `prepack`.
        by_rule: the value that the rule takes.
        problems: those of the convolution, and how often each occurs, by value.
    """

    name: str
    argument: str
    by_rule: Any
    problems: Mapping[Any, Counter[Problem]]


@dataclasses.dataclass(frozen=True)
class Times:
    """How long a convolution takes, stored one way or another.

    Attributes:
        case: the convolution.
        us: microseconds by value, the fastest first; those without an exact plan are missing.
    """

    case: Case
    us: Mapping[Any, float]

    @classmethod
    def of(cls, case: Case, us: Mapping[str, float]) -> Times:
        """The times of a case, from microseconds by the text of a problem."""
        found = {
            value: sum(us[str(problem)] * count for problem, count in problems.items())
            for value, problems in case.problems.items()
            if all(str(problem) in us for problem in problems)
        }
        return cls(case, dict(sorted(found.items(), key=lambda item: item[1])))

    @property
    def gain(self) -> float:
        """How many times as fast as the rule's the fastest is; 1 where one of them is unknown."""
        by_rule = self.us.get(self.case.by_rule)
        return 1.0 if by_rule is None else by_rule / min(self.us.values())

    @property
    def pays(self) -> bool:
        """Whether another value than the rule's is worth passing."""
        return self.gain > WORTH


def of_layers(
    argument: str,
    choices: Callable[[Layer], Iterable[Any]],
    layers: Iterable[Layer],
    batches: Iterable[int],
) -> list[Case]:
    """A case for each layer and batch size.

    Args:
        argument: of `layer_problem`.
        choices: its values for a layer, the rule's first.
        layers: without repetition.
        batches: sizes.
    """
    pairs = [(layer, batch, list(choices(layer))) for layer in layers for batch in batches]
    return [
        Case(
            f"{layer.name} x{batch}",
            argument,
            values[0],
            {v: Counter([layer_problem(layer, batch, **{argument: v})]) for v in values},
        )
        for layer, batch, values in pairs
    ]


def problems(cases: Iterable[Case]) -> Iterator[Problem]:
    """All problems of all cases, repeated where they have them in common."""
    for case in cases:
        for found in case.problems.values():
            yield from found


def known_us(target: _plan_store.Target, results: Iterable[Tuned] = ()) -> dict[str, float]:
    """Microseconds of the fastest plans on a target by the text of a problem.

    Args:
        target: of which times are wanted; those of other targets are no match for them.
        results: of tuning, which count also where the store couldn't keep them.
    """
    shipped = [table for table in _plan_store.shipped() if table.target == target]
    us = {text: plan["us"] for table in shipped for text, plan in table.plans.items()}
    us |= {entry.problem: entry.us for entry in _plan_store.entries() if entry.target == target}
    entries = [result.entry for result in results if result.entry is not None]
    return us | {entry.problem: entry.us for entry in entries}
