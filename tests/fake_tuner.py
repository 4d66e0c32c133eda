"""A worker of tuning without a GPU: plans whose names say what they do.

`cfg` is the time of a plan in microseconds, and these do something else:
"""

import os
import signal
import sys
import time

from jax_qconv import _native, _tuning_worker

UNBUILDABLE, WRONG, FAULTS, DIES_BUILDING, HANGS = range(1001, 1006)


def cfg(plan: str) -> int:
    """1 for ``cudnn:4:cfg=1``."""
    return int(plan.rpartition("=")[2])


class Tuner:
    """What the extension's does, in Python."""

    def __init__(self, problem: str, device: int) -> None:
        if "activation=none" in problem:
            raise RuntimeError(f"no plans for this one on device {device}")
        self.residual = "residual=1" in problem

    def suggestions(self) -> list[str]:
        return ["cudnn:4:cfg=50", "cudnn:4:cfg=40"]

    def configurations(self) -> list[str]:
        bad = [UNBUILDABLE, WRONG]
        if self.residual:
            bad += [FAULTS, DIES_BUILDING, HANGS]
        return [*self.suggestions(), *(f"cudnn:4:cfg={n}" for n in (30, *bad, 20))]

    def build(self, plans: list[str]) -> list[str]:
        if any(cfg(plan) == DIES_BUILDING for plan in plans):
            sys.exit(3)
        return ["can't be built" if cfg(plan) == UNBUILDABLE else "" for plan in plans]

    def verify(self, plans: list[str]) -> list[str]:
        for plan in plans:
            if cfg(plan) == FAULTS:
                os.kill(os.getpid(), signal.SIGSEGV)
            if cfg(plan) == HANGS:
                time.sleep(600)
        return ["one element differs" if cfg(plan) == WRONG else "" for plan in plans]

    def time(self, plan: str, launches: int) -> float:
        return cfg(plan) + 1 / launches

    def forget(self, plan: str) -> None:
        pass


if __name__ == "__main__":
    extension = type("Extension", (), {"Tuner": Tuner})
    _native.extension = lambda: extension
    _tuning_worker.main()
