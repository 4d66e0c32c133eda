"""Which of several plans is the fastest, by timing them in turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable

ROUNDS = (
    # (samples of each, how much slower than the best so far a plan may be to go on)
    (3, 1.3),
    (3, 1.08),
    (4, 1.02),
)
"""Rounds of the race. Nothing is dropped on one timing: the first one may be anything."""


def race(plans: Iterable[str], time: Callable[[str], float]) -> dict[str, float]:
    """The time of each plan, the fastest first.

    Plans take turns, so that a drift of clocks meets all of them; those that can't win any
    more stop early, close ones are timed more often.

    Args:
        plans: names.
        time: takes one sample of a plan's time, in microseconds.
    """
    samples: dict[str, list[float]] = {plan: [] for plan in plans}
    running = list(samples)
    for count, slack in ROUNDS:
        for _ in range(count):
            for plan in running:
                samples[plan].append(time(plan))
        # The least of a plan's samples decides who goes on: noise only ever adds time.
        least = min((min(samples[plan]) for plan in running), default=0.0)
        running = [plan for plan in running if min(samples[plan]) <= slack * least]
    # Those who finished are compared by their medians. The others' few samples may hold one that
    # something disturbed, so the least of them tells most.
    times = {
        plan: statistics.median(found) if plan in running else min(found)
        for plan, found in samples.items()
    }
    return dict(sorted(times.items(), key=lambda item: (item[0] not in running, item[1])))
