"""Depthwise convolutions on a GPU: own kernels, chosen and named."""

from __future__ import annotations

import pytest
from cases import Case
from depthwise_cases import CASES, TRANSCENDENTAL, depthwise

import jax_qconv
from jax_qconv import _native

LARGER = [
    Case(depthwise(56, 56, 64, 3, n=8), activation="relu"),
    Case(depthwise(57, 55, 72, 3, 2, n=4), residual=True, zero_points=("x", "out")),
    Case(depthwise(29, 31, 240, 5, n=4), activation="hard_swish"),
    Case(depthwise(14, 14, 960, 7, n=2), out_dtype="bfloat16", zero_points=("x",)),
    Case(depthwise(7, 7, 1280, 3, n=1), activation="clip"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.geometry.w_shape}")
def test_a_call_gives_the_right_bytes(case, account):
    account.same(case.run(jit=True), case.expected())


@pytest.mark.parametrize("case", LARGER, ids=lambda case: f"{case.geometry.w_shape}")
def test_every_plan_is_exact(case, account):
    problem, extension = case.problem(), _native.extension()
    plans = extension.own_plans(problem)
    assert {plan: extension.verify(problem, plan, 0) for plan in plans} == dict.fromkeys(plans, "")
    for plan in (plans[0], plans[-1]):
        account.same(case.run(jit=True, plan=plan), case.expected())


@pytest.mark.parametrize("case", TRANSCENDENTAL, ids=lambda case: f"{case.activation}")
def test_functions_without_one_right_result_pass_the_checker(case):
    problem, extension = case.problem(), _native.extension()
    plans = extension.own_plans(problem)
    assert {plan: extension.verify(problem, plan, 0) for plan in plans} == dict.fromkeys(plans, "")


def test_the_tuner_offers_own_kernels_only():
    problem, extension = LARGER[0].problem(), _native.extension()
    tuner = extension.Tuner(problem, 0)
    assert tuner.configurations() == extension.own_plans(problem)
    assert tuner.suggestions() == extension.own_plans(problem)[:6]
    assert tuner.build(tuner.suggestions()) == [""] * 6
    assert tuner.verify(tuner.suggestions()) == [""] * 6
    assert all(tuner.time(plan, 10) > 0 for plan in tuner.suggestions())


def test_a_plan_of_another_engine_is_refused_and_the_next_call_works(account):
    with pytest.raises(jax_qconv.EngineUnavailableError, match="cuDNN has no int8 kernel"):
        LARGER[0].run(jit=True, plan="cudnn:4:cfg=26")
    account.same(LARGER[0].run(jit=True), LARGER[0].expected())
