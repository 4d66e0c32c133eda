"""Own kernels against the oracle, bit for bit, on the host: the source is what a GPU gets."""

from __future__ import annotations

import shutil
from typing import Any

import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import Case, Geometry
from depthwise_cases import CASES, EPILOGUES, TRANSCENDENTAL
from emulation import Emulated
from pointwise_cases import CASES as POINTWISE
from stem_cases import CASES as STEM
from wgmma_cases import CASES as WGMMA

from jax_qconv import _native, _primitive
from jax_qconv._problem import Problem

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


TILES = "depthwise:0:rows=1,cols=1", "depthwise:0:rows=3,cols=5"
DENSE = [
    Case(
        Geometry((2, 5, 6, c), (k, 3, 2, c // groups), (1, 2), (2, 1), "SAME", "SAME", groups),
        **epilogue,
    )
    for (c, k, groups), epilogue in zip(
        [(8, 12, 1), (16, 68, 1), (32, 64, 4), (64, 32, 2)], EPILOGUES[5:9], strict=True
    )
]


PLANNED = POINTWISE | STEM | WGMMA
"""Cases that have their plans beside them."""


class Calls:
    """What becomes of calls of the primitive."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.problems: list[Problem] = []
        self.run: Any = lambda problem, operands: jnp.zeros(problem.out_shape, problem.out_dtype)
        monkeypatch.setattr(_primitive, "bind", self.bind)

    def bind(self, problem: Problem, operands: tuple[Any, ...], **_: Any) -> Any:
        self.problems.append(problem)
        return jnp.asarray(self.run(problem, operands))


def plans_of(case: Case, problem: Problem) -> list[str]:
    """The checker and one of: the best guess, a plan of another tile, the general one."""
    if case in DENSE:
        return ["checker"]
    if case in PLANNED:
        return [PLANNED[case]]
    best, *_, general = _native.extension().own_plans(str(problem)) * 2
    assert general == "depthwise:1"
    other = general if best == general else TILES[case.seed // 7 % 2]
    return ["checker", [best, other, general][case.seed % 7]]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory) -> Emulated:
    """The kernels of all cases."""
    emulated = Emulated(tmp_path_factory.mktemp("emulated"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        calls = Calls(monkeypatch)
        for case in [*CASES, *DENSE, *PLANNED, *TRANSCENDENTAL]:
            case.run(jit=False)
            problem = calls.problems[-1]
            for plan in plans_of(case, problem):
                if plan == "checker":
                    emulated.add_checker(problem)
                else:
                    emulated.add_plan(problem, plan)
    emulated.compile()
    return emulated


@pytest.mark.parametrize(
    "case", [*CASES, *DENSE, *PLANNED], ids=lambda case: f"{case.geometry.w_shape}"
)
def test_a_plan_and_the_checker_give_the_right_bytes(case, emulated, monkeypatch):
    calls = Calls(monkeypatch)
    case.run(jit=False)
    wanted = case.expected()
    for plan in plans_of(case, calls.problems[-1]):
        calls.run = lambda problem, operands, plan=plan: emulated.run(problem, plan, operands)
        oracle.assert_same(case.run(jit=False), wanted)


def close(got: Any, wanted: Any) -> None:
    """As near as the checker wants it."""
    got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    allowed = 1 if np.array_equal(wanted, np.rint(wanted)) else 0.01 * np.abs(wanted) + 0.002
    assert np.all(np.abs(got - wanted) <= allowed)


@pytest.mark.parametrize(
    "case", TRANSCENDENTAL, ids=lambda case: f"{case.activation}-{case.out_dtype}"
)
def test_functions_without_one_right_result_are_near_it(case, emulated, monkeypatch):
    wanted = case.run(jit=True)
    calls = Calls(monkeypatch)
    case.run(jit=False)
    for plan in plans_of(case, calls.problems[-1]):
        calls.run = lambda problem, operands, plan=plan: emulated.run(problem, plan, operands)
        close(case.run(jit=False), wanted)
