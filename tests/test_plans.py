"""Which plan a call is lowered with: named, stored, tuned or modelled, without a GPU."""

import jax
import numpy as np
import pytest

import jax_qconv
from jax_qconv import (
    EngineUnavailableError,
    QTensor,
    _native,
    _plan_model,
    _plan_store,
    _plans,
    _tuning,
    prepack,
    qconv,
)
from jax_qconv._plan_store import Entry, Target
from jax_qconv._problem import Problem

TARGET = Target("NVIDIA Test GPU", 90, "9.12.0")
MODELLED, STORED, TUNED = "cudnn:4:cfg=1", "cudnn:4:cfg=2", "cudnn:4:cfg=3"
SHIPPED = "cudnn:4:cfg=4"


class FakeGpu:
    """A GPU whose tuning and model answer at once, and remember what they were asked."""

    def __init__(self):
        self.model = {MODELLED: 3.0, "cudnn:4:cfg=9": 4.0}
        self.error = None
        self.tuned = []

    def tune_problems(self, problems, *, device, target):
        self.tuned += problems
        for problem in problems:
            entry = None if self.error else store(problem, plan=TUNED, target=target)
            yield _tuning.Tuned(problem, entry, self.error)

    def rank(self, problem, compute_capability):
        assert compute_capability == TARGET.compute_capability
        return self.model


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    fake = FakeGpu()
    monkeypatch.setattr(_native, "cache_dir", lambda: tmp_path)
    monkeypatch.setattr(_plan_store, "shipped", lambda: ())
    monkeypatch.setattr(_plan_model, "rank", fake.rank)
    monkeypatch.setattr(_plans, "local_gpu", lambda: 0)
    monkeypatch.setattr(_plans, "target_of", lambda device: TARGET)
    monkeypatch.setattr(_tuning, "tune_problems", fake.tune_problems)
    return fake


def problem(n=1):
    return Problem.make(
        x_shape=(n, 8, 8, 16),
        w_shape=(16, 3, 3, 16),
        strides=(1, 1),
        padding="SAME",
        dilation=(1, 1),
        groups=1,
        out_dtype="int8",
        activation="none",
        slope=0.0,
        residual=False,
    )


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "groups", "known"),
    [
        ((8, 56, 56, 64), (64, 3, 3, 64), 1, True),
        ((8, 56, 56, 64), (64, 3, 3, 1), 64, False),
        ((8, 56, 56, 64), (64, 3, 3, 32), 2, False),
        ((8, 56, 56, 8, 64), (64, 3, 3, 1, 64), 1, False),
    ],
)
def test_the_model_knows_dense_convolutions_of_two_axes(x_shape, w_shape, groups, known):
    axes = len(x_shape) - 2
    shapes = {"x_shape": x_shape, "w_shape": w_shape, "groups": groups, "padding": "SAME"}
    steps = {"strides": (1,) * axes, "dilation": (1,) * axes}
    made = Problem.make(**shapes, **steps, out_dtype="int8", activation="none")
    assert bool(_plan_model.rank(made, 90)) == known


def store(problem, plan=STORED, target=TARGET):
    ranking = [{"plan": plan, "us": 5.0, "rejected": None}]
    entry = Entry.of_ranking(str(problem), target, ranking, tried="all")
    _plan_store.save(entry)
    return entry


HINT = Target(TARGET.gpu, TARGET.compute_capability, "9.9.0")


@pytest.mark.parametrize(
    ("autotune", "stored_for", "chosen"),
    [
        ("off", None, MODELLED),
        ("off", TARGET, MODELLED),
        ("cached", None, MODELLED),
        ("cached", TARGET, STORED),
        ("cached", HINT, STORED),
        ("on", None, TUNED),
        ("on", TARGET, STORED),
        ("on", HINT, TUNED),
    ],
)
def test_autotune_says_where_a_plan_comes_from(gpu, autotune, stored_for, chosen):
    if stored_for is not None:
        store(problem(), target=stored_for)
    assert _plans.plan_for(problem(), None, autotune) == chosen
    assert gpu.tuned == ([problem()] if chosen == TUNED else [])


def test_what_was_tuned_is_not_tuned_again(gpu):
    for _ in range(3):
        for n in (1, 2):
            assert _plans.plan_for(problem(n), None, "on") == TUNED
    assert gpu.tuned == [problem(1), problem(2)]
    assert _plans.plan_for(problem(), None, "cached") == TUNED


@pytest.mark.parametrize("autotune", ["off", "cached"])
def test_without_store_and_model_each_device_chooses(gpu, autotune):
    gpu.model = {}
    assert _plans.plan_for(problem(), None, autotune) == _plans.DEFERRED


@pytest.mark.parametrize("autotune", _plans.AUTOTUNE)
def test_a_plan_named_by_the_caller_wins(gpu, autotune):
    store(problem())
    assert _plans.plan_for(problem(), "cudnn:1", autotune) == "cudnn:1"
    with pytest.raises(ValueError, match="plan 'fast' names no known engine"):
        _plans.plan_for(problem(), "fast", autotune)
    assert gpu.tuned == []


@pytest.mark.parametrize("autotune", _plans.AUTOTUNE)
def test_without_a_gpu_each_device_chooses(gpu, monkeypatch, autotune):
    store(problem())
    monkeypatch.setattr(_plans, "local_gpu", lambda: None)
    assert _plans.plan_for(problem(), None, autotune) == _plans.DEFERRED
    assert gpu.tuned == []


@pytest.mark.parametrize(
    ("autotune", "chosen"), [("off", MODELLED), ("cached", SHIPPED), ("on", SHIPPED)]
)
def test_several_processes_choose_by_what_they_share(gpu, monkeypatch, autotune, chosen):
    """The user's store may differ between them; tables and the model come with the package."""
    store(problem())
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    table = _plan_store.Table(TARGET, {str(problem()): {"plan": SHIPPED, "us": 1.0}})
    monkeypatch.setattr(_plan_store, "shipped", lambda: (table,))
    assert _plans.plan_for(problem(), None, autotune) == chosen
    assert _plans.plan_for(problem(2), None, autotune) == MODELLED
    assert gpu.tuned == []


@pytest.mark.parametrize("autotune", ["cached", "on"])
def test_plans_are_chosen_for_a_named_target(gpu, monkeypatch, autotune):
    other = Target("NVIDIA Other", 90, "9.19.0")
    store(problem(), plan=SHIPPED, target=other)
    gpu.model = {}
    for local in (0, None):
        monkeypatch.setattr(_plans, "local_gpu", lambda local=local: local)
        with jax_qconv.target(other.gpu, compute_capability=90, cudnn=other.cudnn):
            assert _plans.plan_for(problem(), None, autotune) == SHIPPED
            assert _plans.plan_for(problem(2), None, autotune) == _plans.DEFERRED
    assert gpu.tuned == []


def test_a_function_is_compiled_again_for_another_target(gpu, monkeypatch):
    monkeypatch.setattr(_plans, "local_gpu", lambda: None)
    store(problem(), plan=SHIPPED, target=TARGET)
    (before,) = lowered_calls({})
    with jax_qconv.target(TARGET.gpu, compute_capability=90, cudnn=TARGET.cudnn):
        (inside,) = lowered_calls({})
    (after,) = lowered_calls({})
    assert SHIPPED in inside and SHIPPED not in before + after


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gpu": ""}, "gpu must be the name of a GPU.*got ''"),
        ({"gpu": None}, "gpu must be the name of a GPU.*got None"),
        ({"cudnn": "nine"}, "cudnn must be the version of cuDNN.*got 'nine'"),
        ({"cudnn": 9}, "cudnn must be the version of cuDNN.*got 9"),
        ({"compute_capability": "90"}, "compute_capability must be a number.*got '90'"),
        ({"compute_capability": 9}, "compute_capability must be a number.*got 9"),
        ({"compute_capability": True}, "compute_capability must be a number.*got True"),
    ],
)
def test_a_target_that_is_no_gpu_is_refused(changes, message):
    good = {"gpu": "NVIDIA H100", "cudnn": "9.19.0", "compute_capability": 90}
    with pytest.raises(ValueError, match=message):
        jax_qconv.target(**good | changes)


def test_no_exact_plan_is_an_error_with_every_reason_and_is_not_remembered(gpu):
    gpu.error = "cudnn:3: element 3 is 4, not 5; cudnn:7: needs 512 bytes"
    with pytest.raises(EngineUnavailableError) as caught:
        _plans.plan_for(problem(), None, "on")
    for part in (str(problem()), gpu.error, "implementation='reference'"):
        assert part in str(caught.value)
    gpu.error = None
    assert _plans.plan_for(problem(), None, "on") == TUNED


def test_a_store_that_cannot_be_written_costs_only_time(gpu, tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setattr(_native, "cache_dir", lambda: file)
    for tuned in (1, 2):
        with pytest.warns(UserWarning, match="can't be written"):
            assert _plans.plan_for(problem(), None, "on") == TUNED
        assert len(gpu.tuned) == tuned


@pytest.mark.parametrize("autotune", ["", "ON", None, True])
def test_autotune_is_checked_when_tracing(autotune):
    packed = prepack(np.ones((3, 3, 16, 16), np.float32)).bind(x_scale=1.0, out_scale=1.0)
    x = QTensor(np.zeros((1, 8, 8, 16), np.int8), 1.0)
    with pytest.raises(ValueError, match=r"autotune=.* is not known; use one of"):
        qconv(x, packed, autotune=autotune)


def lowered_calls(*options):
    """The lines of the custom calls of a program of a convolution for each dict of options."""
    packed = prepack(np.ones((3, 3, 16, 16), np.float32)).bind(x_scale=1.0, out_scale=1.0)
    x = QTensor(np.zeros((1, 8, 8, 16), np.int8), 1.0)
    traced = jax.jit(lambda x: [qconv(x, packed, **each) for each in options]).trace(x)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    return [line for line in text.splitlines() if f"@{_native.TARGET}(" in line]


@pytest.mark.parametrize(
    ("gpus", "plan", "written", "pinned"),
    [
        (1, None, STORED, "false"),
        (0, None, "auto", "false"),
        (1, "cudnn:4", "cudnn:4", "true"),
        (0, "cudnn:4", "cudnn:4", "true"),
    ],
    ids=["chosen", "deferred", "named", "named-without-gpu"],
)
def test_the_plan_is_written_into_the_lowered_call(gpu, monkeypatch, gpus, plan, written, pinned):
    if not gpus:
        monkeypatch.setattr(_plans, "local_gpu", lambda: None)
    store(problem())
    (call,) = lowered_calls({"plan": plan})
    assert f'plan = "{written}"' in call
    assert f"pinned = {pinned}" in call
    assert f'problem = "{problem()}"' in call


@pytest.mark.parametrize("gpus", [0, 1])
@pytest.mark.parametrize("stored", [STORED, "pointwise:0:rows=64,cols=64,run=1"])
def test_where_cudnn_is_named_the_plan_is_one_of_its_own(gpu, monkeypatch, gpus, stored):
    if not gpus:
        monkeypatch.setattr(_plans, "local_gpu", lambda: None)
    store(problem(), stored)
    free, cudnn = lowered_calls({}, {"implementation": "cudnn"})
    written = {STORED: STORED}.get(stored, MODELLED) if gpus else "cudnn"
    assert f'plan = "{written}"' in cudnn
    assert f'plan = "{stored if gpus else "auto"}"' in free


def test_calls_of_a_program_that_differ_in_autotune_get_each_its_plan(gpu):
    store(problem())
    off, cached = lowered_calls({"autotune": "off"}, {"autotune": "cached"})
    assert f'plan = "{MODELLED}"' in off and f'plan = "{STORED}"' in cached


@pytest.mark.parametrize(
    "fields",
    [
        {"x_shape": (1, 4, 8, 8, 64), "w_shape": (64, 3, 3, 3, 64), "rank": 3},
        {"x_shape": (1, 8, 8, 64), "w_shape": (64, 3, 3, 8), "groups": 8},
        {"out_dtype": "int32"},
    ],
    ids=["3-D", "groups", "int32"],
)
def test_the_model_passes_over_what_it_does_not_know(fields):
    rank = fields.pop("rank", 2)
    fields = {"x_shape": (1, 8, 8, 64), "w_shape": (64, 3, 3, 64), "groups": 1} | fields
    ones = (1,) * rank
    fields = {"out_dtype": "int8", "activation": "none"} | fields
    made = Problem.make(strides=ones, padding="SAME", dilation=ones, **fields)
    assert _plan_model.rank(made, 90) == {}


OWN = "pointwise:0:rows=64,cols=64,run=1"


def pointwise_problem(**fields):
    fields = {"activation": "relu", "padding": "VALID", "out_dtype": "int8"} | fields
    return Problem.make(
        x_shape=(8, 56, 56, 64),
        w_shape=(64, 1, 1, 64),
        strides=(1, 1),
        dilation=(1, 1),
        groups=1,
        **fields,
    )


@pytest.mark.parametrize(
    ("fields", "plan"),
    [
        ({}, OWN),
        ({"activation": "clip"}, OWN),
        ({"activation": "prelu", "offset": "channel", "requantize": True}, OWN),
        ({"activation": "silu"}, MODELLED),
        ({"residual": True}, MODELLED),
        ({"out_dtype": "float32"}, MODELLED),
        ({"padding": ((1, 1), (0, 0))}, MODELLED),
    ],
    ids=["same", "clip", "prelu", "not-by-this-kernel", "residual", "floats", "another-output"],
)
def test_another_epilogue_gets_the_plan_of_the_shipped_convolution(gpu, monkeypatch, fields, plan):
    plans = {str(pointwise_problem()): {"plan": OWN, "us": 9.0}}
    monkeypatch.setattr(_plan_store, "shipped", lambda: (_plan_store.Table(TARGET, plans),))
    assert _plans.plan_for(pointwise_problem(**fields), None, "cached") == plan
    assert _plans.plan_for(pointwise_problem(**fields), None, "off") == MODELLED
    only = _plans.plan_for(pointwise_problem(**fields), None, "cached", cudnn_only=True)
    assert only == MODELLED


def test_the_model_knows_the_kernel_of_1x1_convolutions():
    plans = _native.extension().own_plans(str(pointwise_problem()))
    configuration = {"places": 132, "us": [1.0] + [0.0] * 11}
    model = {"configurations": {_plan_model.pointwise_configuration(plans[0])[0]: configuration}}
    ranked = _plan_model.rank_by(model, pointwise_problem())
    assert ranked and set(ranked) <= set(plans) and plans[0] in ranked
    assert not _plan_model.rank_by(model, pointwise_problem(activation="silu"))


def test_first_layers_are_left_to_their_own_kernel_and_cudnn_on_the_device():
    fields = {"strides": (2, 2), "dilation": (1, 1), "groups": 1, "padding": "SAME"}
    fields |= {"x_shape": (8, 224, 224, 4), "w_shape": (32, 3, 3, 4), "out_dtype": "int8"}
    assert _plan_model.rank(Problem.make(**fields, activation="relu"), 90) == {}
    assert _plan_model.rank(Problem.make(**fields, activation="silu"), 90)


def lower_depthwise(**engine):
    packed = prepack(np.ones((3, 3, 1, 64), np.float32), groups=64)
    packed = packed.bind(x_scale=1.0, out_scale=1.0)
    x = QTensor(np.zeros((1, 8, 8, 64), np.int8), 1.0)
    traced = jax.jit(lambda x: qconv(x, packed, **engine)).trace(x)
    return traced.lower(lowering_platforms=("cuda",)).as_text()


def test_cudnn_is_refused_where_it_has_no_kernel(gpu):
    with pytest.raises(EngineUnavailableError, match=r"depthwise .* prepack\(merge_groups="):
        lower_depthwise(implementation="cudnn")
    assert _native.TARGET in lower_depthwise()


@pytest.mark.parametrize(
    ("implementation", "plan"), [("cudnn", "depthwise:1"), ("reference", "cudnn:4")]
)
def test_a_plan_of_another_implementation_is_refused(implementation, plan):
    with pytest.raises(ValueError, match=f"plan='{plan}' isn't one of .*'{implementation}'"):
        lower_depthwise(implementation=implementation, plan=plan)
