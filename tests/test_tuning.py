"""Tuning finds the fastest exact plan, and survives what candidates do. The GPU is made up."""

import pathlib
import signal

import fake_tuner
import jax
import jax.numpy as jnp
import pytest

import jax_qconv
from jax_qconv import _native, _plan_store, _plans, _race, _tuning
from jax_qconv._activation import as_activation
from jax_qconv._problem import Problem

TARGET = _plan_store.Target("NVIDIA Test", 12, "9.19.0")


def problem(n=1, residual=False, activation="relu") -> Problem:
    return Problem.make(
        x_shape=(n, 8, 8, 16),
        w_shape=(16, 3, 3, 16),
        strides=(1, 1),
        padding="SAME",
        dilation=(1, 1),
        groups=1,
        out_dtype="int8",
        activation=as_activation(activation).kind,
        slope=as_activation(activation).slope,
        residual=residual,
    )


@pytest.fixture(autouse=True)
def fake_worker(monkeypatch, tmp_path):
    monkeypatch.setattr(_tuning, "WORKER", (str(pathlib.Path(fake_tuner.__file__)),))
    monkeypatch.setattr(_plan_store, "root", lambda: tmp_path / "plans")


def tuned(*problems, **options):
    results = _tuning.tune_problems(problems, device=0, target=TARGET, **options)
    return {result.problem: result for result in results}


def test_the_fastest_exact_plan_of_all_configurations_is_stored():
    result = tuned(problem())[problem()]
    assert result.entry.plan == "cudnn:4:cfg=20"
    assert result.entry.us == pytest.approx(20.1)
    assert result.entry.tried == "all"
    assert _plan_store.find(str(problem()), TARGET).plan == "cudnn:4:cfg=20"


def test_the_ranking_keeps_every_plan_with_its_time_or_its_reason():
    ranking = tuned(problem())[problem()].entry.ranking
    assert [row["plan"] for row in ranking if row["us"]] == [
        f"cudnn:4:cfg={us}" for us in (20, 30, 40, 50)
    ]
    assert {row["plan"]: row["rejected"] for row in ranking if row["us"] is None} == {
        f"cudnn:4:cfg={fake_tuner.UNBUILDABLE}": "can't be built",
        f"cudnn:4:cfg={fake_tuner.WRONG}": "one element differs",
    }


def test_several_problems_are_tuned_by_several_workers():
    problems = [problem(n) for n in range(1, 6)]
    found = tuned(*problems, workers=3)
    assert set(found) == set(problems)
    assert all(result.entry.plan == "cudnn:4:cfg=20" for result in found.values())


def test_plans_that_take_the_process_down_or_hang_are_rejected_and_the_rest_goes_on(monkeypatch):
    monkeypatch.setattr(_tuning, "SILENCE_S", 6.0)
    bad, good = problem(residual=True), problem()
    found = tuned(bad, good, workers=1)
    assert found[bad].entry.plan == found[good].entry.plan == "cudnn:4:cfg=20"
    rejected = {row["plan"]: row["rejected"] for row in found[bad].entry.ranking}
    faults, dies, hangs = (
        rejected[f"cudnn:4:cfg={cfg}"]
        for cfg in (fake_tuner.FAULTS, fake_tuner.DIES_BUILDING, fake_tuner.HANGS)
    )
    assert "verifying" in faults and f"signal {signal.SIGSEGV.value}" in faults
    assert "building" in dies and "exit status 3" in dies
    assert "verifying" in hangs and "didn't answer for 6 s" in hangs


def test_a_problem_that_fails_leaves_the_others_alone():
    failing = problem(activation="none")
    found = tuned(failing, problem(), workers=1)
    assert found[failing].entry is None and "no plans for this one" in found[failing].error
    assert found[problem()].entry is not None


def test_a_few_candidates_are_the_models_best_beside_what_is_suggested_or_unknown_to_it(
    monkeypatch,
):
    model = {f"cudnn:4:cfg={us}": float(us) for us in (20, 30, 60)}
    monkeypatch.setattr(_tuning._plan_model, "rank", lambda problem, capability: model)
    entry = tuned(problem(), candidates=2)[problem()].entry
    assert entry.tried == "some"
    own = _native.extension().own_plans(str(problem()), TARGET.compute_capability)
    assert own
    assert {row["plan"] for row in entry.ranking} == {
        *(f"cudnn:4:cfg={us}" for us in (20, 30, 40, 50)),
        *own,
    }


def test_named_plans_are_tried_without_suggestions():
    named = ["cudnn:4:cfg=50"]
    found = tuned(problem(), problem(2), only={problem(): named})
    assert [row["plan"] for row in found[problem()].entry.ranking] == named
    assert found[problem()].entry.tried == "some"
    assert found[problem(2)].entry.tried == "all"


@pytest.mark.parametrize("candidates", ["some", -1, 1.5, True])
def test_how_many_candidates_is_checked(candidates):
    with pytest.raises(
        ValueError, match=f"candidates must be a count, 'all' or None.*{candidates}"
    ):
        tuned(problem(), candidates=candidates)


def test_a_worker_that_cannot_start_is_an_error(monkeypatch):
    monkeypatch.setattr(_tuning, "WORKER", ("-c", "import sys; sys.exit(7)"))
    with pytest.raises(_tuning.TuningError, match=r"starting.*exit status 7"):
        tuned(problem())


def test_what_is_finished_is_stored_when_tuning_is_interrupted():
    results = _tuning.tune_problems(
        [problem(n) for n in (1, 2, 3)], device=0, target=TARGET, workers=1
    )
    first = next(results)
    results.close()  # as an exception in the loop over them does
    assert _plan_store.find(str(first.problem), TARGET) is not None
    assert len(list(_plan_store.entries())) == 1


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(_plans, "local_gpu", lambda: 0)
    monkeypatch.setattr(_plans, "target_of", lambda device: TARGET)


def two_layers(x, weight):
    packed = jax_qconv.prepack(weight, weight_scale=1.0, layout="OHWI")
    for _ in range(2):
        x = jax_qconv.qconv(x, packed, out_scale=1.0, activation="relu")
    return x.values


ARGS = (
    jax_qconv.QTensor(jax.ShapeDtypeStruct((1, 8, 8, 16), jnp.int8), jax.ShapeDtypeStruct((), "f")),
    jax.ShapeDtypeStruct((16, 3, 3, 16), jnp.int8),
)


def test_tune_finds_the_distinct_problems_of_a_function_and_tunes_each_once(gpu, capsys):
    (result,) = jax_qconv.tune(two_layers, *ARGS)
    assert result.problem == problem()
    assert result.entry.plan == "cudnn:4:cfg=20"
    assert "1/1" in capsys.readouterr().err
    assert jax_qconv.tune(two_layers, *ARGS) == []
    assert len(jax_qconv.tune(two_layers, *ARGS, again=True, progress=False)) == 1


def test_tune_without_a_gpu_says_so(monkeypatch):
    monkeypatch.setattr(_plans, "local_gpu", lambda: None)
    with pytest.raises(jax_qconv.EngineUnavailableError, match="CUDA device"):
        jax_qconv.tune(two_layers, *ARGS)


def test_a_race_times_close_plans_more_often_and_drops_none_on_one_timing():
    calls: list[str] = []
    us = {"fast": 1.0, "close": 1.01, "slow": 5.0}

    def time(plan):
        first = plan not in calls
        calls.append(plan)
        return 100.0 if first else us[plan]  # the first timing is wrong, for all of them

    ranking = _race.race(us, time)
    assert list(ranking) == ["fast", "close", "slow"]
    assert ranking["fast"] == 1.0
    assert calls.count("slow") == 3 < calls.count("close") == calls.count("fast")


def test_a_race_of_none_has_no_winner():
    assert _race.race([], lambda plan: 1.0) == {}
