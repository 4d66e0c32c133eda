"""The process that tries plans: one that faults takes only this process down.

    python -m jax_qconv._tuning_worker LIBRARIES

Speaks lines of JSON. Reads a task, builds its candidates, says that it is ready, waits for the
word that it has the GPU to itself, verifies and times, and says what it found. What it is about
to do it says beforehand, so that who hears nothing more knows what went wrong.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

from jax_qconv import _native
from jax_qconv._race import race

LAUNCHES = 10
"""Of a sample of a plan's time."""


def examine(task: dict[str, Any], extension: Any, say: Callable[..., None], wait: Any) -> None:
    """Find the fastest exact plan of a problem.

    Args:
        task: ``problem`` and ``device``; ``candidates``, names of plans to try, or None for all
            configurations; ``suggestions``, whether to try cuDNN's too; ``skip``, plans and the
            reasons why they aren't tried; ``alone``, whether to go plan by plan, to find one that
            crashes.
        extension: the native module.
        say: sends a message of its keyword arguments.
        wait: returns when the GPU is free.
    """
    tuner = extension.Tuner(task["problem"], task["device"])
    if task["candidates"] is None:
        names = tuner.configurations()
    else:
        suggestions = tuner.suggestions() if task["suggestions"] else []
        names = list(dict.fromkeys([*suggestions, *task["candidates"]]))
    rejected = dict(task["skip"])
    names = [name for name in names if name not in rejected]

    def each(doing: str, names: list[str]) -> Iterator[list[str]]:
        for part in [[name] for name in names] if task["alone"] else [names]:
            say(doing=doing, plans=part)
            yield part

    def passed(doing: str, names: list[str], check: Callable[[list[str]], list[str]]) -> list[str]:
        """Those that nothing is wrong with."""
        wrong: dict[str, str] = {}
        for part in each(doing, names):
            wrong |= zip(part, check(part), strict=True)
        rejected.update((name, reason) for name, reason in wrong.items() if reason)
        return [name for name, reason in wrong.items() if not reason]

    built = passed("building", names, tuner.build)
    say(ready=True)
    wait()
    exact = passed("verifying", built, tuner.verify) if built else []

    def time(name: str) -> float:
        if task["alone"]:
            say(doing="timing", plans=[name])
        return tuner.time(name, LAUNCHES)

    if not task["alone"]:
        say(doing="timing", plans=exact)
    times = race(exact, time)
    # Built plans are kept on disk until now, so that a search that is broken off goes on there.
    for name in built:
        if name != next(iter(times), None):
            tuner.forget(name)
    ranking = [{"plan": name, "us": us, "rejected": None} for name, us in times.items()]
    ranking += [{"plan": name, "us": None, "rejected": why} for name, why in rejected.items()]
    say(ranking=ranking)


def main() -> None:
    """Serve tasks until the input ends."""
    out = sys.stdout
    sys.stdout = sys.stderr  # what libraries print is no message

    def say(**message: Any) -> None:
        print(json.dumps(message), file=out, flush=True)

    # The caller's copies, before anything else is looked for and found.
    for path in json.loads(sys.argv[1]):
        ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
    say(started=True)
    for line in sys.stdin:
        try:
            examine(json.loads(line), _native.extension(), say, sys.stdin.readline)
        except Exception as error:
            say(error=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
