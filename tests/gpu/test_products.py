"""Convolutions of few terms on a GPU: own kernels beside cuDNN, chosen and named."""

from __future__ import annotations

import pytest
from cases import Case, Geometry
from pointwise_cases import CASES as POINTWISE
from stem_cases import CASES as STEM
from stem_cases import stem
from wgmma_cases import CASES as WGMMA
from wgmma_cases import wgmma

from jax_qconv import _native


def pointwise(size: int, c: int, k: int, **fields) -> Case:
    return Case(Geometry((8, size, size, c), (k, 1, 1, c)), pack=(("pad_to", (c, k)),), **fields)


LARGER = [
    pointwise(56, 24, 144, activation="clip"),
    pointwise(56, 144, 24, residual=True),
    pointwise(28, 64, 256, activation="relu", residual=True, zero_points=("x", "residual")),
    pointwise(14, 256, 512, activation="prelu"),
    stem((224, 224), 3, 64, 7, 2, ((3, 3), (3, 3)), activation="relu"),
    stem((225, 223), 3, 32, 3, 2, "SAME", activation="clip", zero_points=("x", "out")),
    stem((65, 130), 16, 96, 4, 1, "SAME", activation="hard_swish"),
    pointwise(14, 256, 1024, activation="relu", residual=True),
    pointwise(7, 512, 2048, activation="relu", zero_points=("x", "out")),
    wgmma((56, 56), 64, 64, 3, 1, 1, "SAME", activation="relu"),
    wgmma((29, 30), 64, 48, 3, 1, (1, 2), "SAME", activation="clip", residual=True),
    wgmma((57, 56), 256, 512, 1, 2, activation="relu"),
]
CAPABILITIES = _native.extension().compute_capabilities()
NAMED = POINTWISE | STEM | (WGMMA if 90 in CAPABILITIES else {})


@pytest.mark.parametrize(
    ("case", "plan"), NAMED.items(), ids=lambda value: getattr(value, "activation", "")
)
def test_a_named_plan_gives_the_right_bytes(case, plan, account):
    account.same(case.run(jit=True, plan=plan), case.expected())


@pytest.mark.parametrize("case", LARGER, ids=lambda case: f"{case.geometry.w_shape}")
def test_every_plan_is_exact(case, account):
    problem, extension = case.problem(), _native.extension()
    plans = extension.own_plans(problem, CAPABILITIES[0])
    assert {plan: extension.verify(problem, plan, 0) for plan in plans} == dict.fromkeys(plans, "")
    for plan in (None, plans[0], plans[-1]):
        account.same(case.run(jit=True, plan=plan), case.expected())


def test_the_tuner_offers_them_beside_those_of_cudnn():
    problem, extension = LARGER[4].problem(), _native.extension()
    suggestions = extension.Tuner(problem, 0).suggestions()
    assert set(extension.own_plans(problem)[:3]) < set(suggestions)
    assert any(plan.startswith("cudnn") for plan in suggestions)
