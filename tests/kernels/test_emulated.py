"""Own kernels against the oracle, bit for bit, on the host: the source is what a GPU gets."""

from __future__ import annotations

import shutil
from typing import Any

import jax.numpy as jnp
import oracle
import pytest
from cases import Case, Geometry
from emulation import Emulated

from jax_qconv import _native, _primitive
from jax_qconv._problem import Problem

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


def depthwise(h, w, c, kernel, stride=1, dilation=1, pads="SAME", multiplier=1, n=2) -> Geometry:
    """Two axes; single numbers are those of both."""
    kernel, strides, dilations = (
        v if isinstance(v, tuple) else (v, v) for v in (kernel, stride, dilation)
    )
    shapes = (n, h, w, c), (c * multiplier, *kernel, 1)
    return Geometry(*shapes, strides, dilations, pads, pads, groups=c)


GEOMETRIES = [
    depthwise(9, 11, 8, 3),
    depthwise(8, 8, 4, 3, 2),
    depthwise(3, 2, 36, 3),
    depthwise(1, 1, 72, 3),
    depthwise(15, 10, 16, 3, 1, 2),
    depthwise(13, 12, 8, 3, (2, 1), (1, 3), ((0, 1), (3, 0))),
    depthwise(10, 9, 8, 5),
    depthwise(17, 16, 12, 5, 2, 1, ((1, 2), (2, 1))),
    depthwise(14, 11, 8, 7),
    depthwise(12, 15, 4, 7, 2, 1, "VALID"),
    depthwise(7, 9, 20, (3, 1), 1, 1, ((2, 0), (0, 3))),
    depthwise(6, 9, 8, (1, 2), (1, 3)),
    depthwise(5, 7, 8, (2, 6)),
    depthwise(4, 30, 5, (1, 9), n=1),
    depthwise(6, 5, 64, 1, 2),
    Geometry((2, 21, 8), (8, 5, 1), (2,), (1,), "SAME", "SAME", groups=8),
    depthwise(7, 6, 6, 3, multiplier=2),
    depthwise(6, 7, 4, 3, 2, multiplier=3),
    Geometry((1, 4, 5, 6, 8), (8, 3, 2, 3, 1), (1, 2, 1), (1, 1, 2), "SAME", "SAME", groups=8),
]
EPILOGUES: list[dict[str, Any]] = [
    {"activation": "relu"},
    {"out_dtype": "int32"},
    {"residual": True, "activation": "relu"},
    {"out_dtype": "float32", "activation": "leaky_relu", "values": "large"},
    {"out_dtype": "bfloat16", "residual": True, "residual_mode": "average"},
    {"out_dtype": "float16", "activation": "clip", "values": "extreme"},
    {"activation": "clip", "zero_points": ("x", "out"), "residual": True, "dyadic": True},
    {"activation": "prelu", "zero_points": ("x",), "bias": False},
    {"residual": True, "residual_mode": "add_after_activation", "activation": "relu",
     "zero_points": ("x", "out", "residual")},
    {"activation": "hard_swish", "dyadic": True, "values": "extreme"},
    {"activation": "hard_sigmoid", "out_dtype": "float16", "zero_points": ("x",)},
    {"out_dtype": "int32", "zero_points": ("x",), "values": "large"},
    {"activation": "prelu", "residual": True, "zero_points": ("out", "residual"), "seed": 3},
]  # fmt: skip
# Every geometry with three epilogues, each with another plan; every epilogue with all three.
CASES = [
    Case(geometry, **EPILOGUES[(3 * i + 4 * j) % len(EPILOGUES)] | {"seed": 7 * i + j})
    for i, geometry in enumerate(GEOMETRIES)
    for j in range(3)
]
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
        for case in CASES + DENSE:
            case.run(jit=False)
            problem = calls.problems[-1]
            for plan in plans_of(case, problem):
                if plan == "checker":
                    emulated.add_checker(problem)
                else:
                    emulated.add_plan(problem, plan)
    emulated.compile()
    return emulated


@pytest.mark.parametrize("case", CASES + DENSE, ids=lambda case: f"{case.geometry.w_shape}")
def test_a_plan_and_the_checker_give_the_right_bytes(case, emulated, monkeypatch):
    calls = Calls(monkeypatch)
    case.run(jit=False)
    wanted = case.expected()
    for plan in plans_of(case, calls.problems[-1]):
        calls.run = lambda problem, operands, plan=plan: emulated.run(problem, plan, operands)
        oracle.assert_same(case.run(jit=False), wanted)
