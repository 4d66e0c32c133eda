"""Other numbers of merged groups: which are tried, what is told of them, and that none shows."""

import pathlib

import fake_tuner
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import jax_qconv
from jax_qconv import (
    QTensor,
    __main__,
    _choices,
    _merges,
    _plan_store,
    _plans,
    _tuning,
    prepack,
    qconv,
    tune_merges,
)
from jax_qconv._choices import Times
from jax_qconv._collect import problems_of
from jax_qconv._networks import NETWORKS, Layer
from jax_qconv._tune import layer_problem

LAYER = Layer(64, 6, 6, 64, 3, 3, groups=16)
GROUPED = [layer for layer in NETWORKS["resnext50"] if layer.groups > 1]


@pytest.mark.parametrize(
    ("channels", "out_channels", "groups", "merges"),
    [
        (64, 64, 16, [16, 1, 2, 4, 8]),  # the rule's first
        (128, 128, 32, [32, 1, 2, 4, 8, 16]),
        (512, 512, 32, [4, 1, 2, 8, 16, 32]),  # dense at last
        (1024, 1024, 32, [2, 1, 4, 8, 16]),  # dense is 1024 wide
        (960, 960, 960, [1, 4, 8, 12, 16, 20, 24, 32, 40, 48, 60, 64]),  # depthwise
        (12, 24, 12, [1, 4, 12]),  # with a multiplier; no blocks of 2, which have two inputs
        (256, 256, 128, [128, 2, 4, 8, 16, 32, 64]),  # the rule wastes more than is allowed
        (2048, 2048, 2, [1]),  # wide as they are
    ],
)
def test_all_merges_are_tried_that_can_be_packed_and_waste_little(
    channels, out_channels, groups, merges
):
    assert _merges.choices(channels, out_channels, groups) == merges
    for merge in merges[1:]:
        dense = max(channels, out_channels) // groups * merge
        assert merge == 1 or (merge <= 64 and dense <= 512)


@pytest.mark.parametrize("layer", GROUPED, ids=lambda layer: layer.name)
def test_merges_have_as_many_times_the_products_and_weights(layer):
    (case,) = _merges.cases([layer], [8])
    own = layer_problem(layer, 8, merge_groups=1)
    assert case.problems[case.by_rule] == {layer_problem(layer, 8): 1}
    for merge, (problem,) in ((n, list(found)) for n, found in case.problems.items()):
        assert problem.groups * merge == layer.groups
        assert problem.macs == merge * own.macs
        assert np.prod(problem.w_shape) == merge * np.prod(own.w_shape)
        assert (problem.x_shape, problem.out_shape) == (own.x_shape, own.out_shape)


def test_layers_without_groups_have_nothing_to_merge():
    assert _merges.cases([Layer(64, 8, 8, 64, 3, 3)], [1, 8]) == []


def case_and_times(**us):
    """The case of `LAYER`, and times by merge, such as ``_4=9.0``."""
    (case,) = _merges.cases([LAYER], [8])
    by_merge = {int(name[1:]): value for name, value in us.items()}
    return Times.of(case, {str(*case.problems[n]): value for n, value in by_merge.items()})


def test_a_line_has_the_time_of_each_merge_and_how_much_the_best_gains():
    times = case_and_times(_1=90.0, _4=8.0, _8=9.0, _16=12.0)
    assert times.pays
    assert _merges.line(times) == (
        "64x6x6_3x3_g16 x8: merge_groups=4 8.00 us, 8 9.00 us, 16 (by rule) 12.00 us, 1 90.00 us, "
        "2 no plan; merge_groups=4 is 1.50 times as fast as the rule's"
    )


@pytest.mark.parametrize(
    ("us", "verdict"),
    [
        ({"_8": 11.9, "_16": 12.0}, "the rule's will do"),  # noise
        ({"_8": 13.0, "_16": 12.0}, "the rule's will do"),
        ({"_8": 9.0}, "the rule's has no plan to compare with"),
        ({}, "the rule's has no plan to compare with"),
    ],
)
def test_only_a_gain_that_is_known_is_told(us, verdict):
    times = case_and_times(**us)
    assert not times.pays
    assert _merges.line(times).endswith(f"; {verdict}")


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs `tune` for some layers; what it printed, and what it complained of."""

    def run(*layers, options="--merges"):
        monkeypatch.setitem(NETWORKS, "small", layers)
        complaint = __main__.main(["tune", "--model", "small", "--batch", "1", *options.split()])
        return capsys.readouterr().out, complaint

    return run


def test_the_command_tunes_all_merges_and_tells_them(command, tuned_to):
    asked = tuned_to(lambda problem: 5.0 if problem.groups == 4 else 10.0)
    plain = Layer(48, 8, 8, 20, 1, 1)
    out, complaint = command(LAYER, plain)
    assert complaint is None
    tuned = {str(layer_problem(LAYER, 1, merge_groups=n)) for n in (1, 2, 4, 8, 16)}
    assert set(map(str, asked)) == tuned | {str(layer_problem(plain, 1))}
    assert len(asked) == 6
    (line,) = (line for line in out.splitlines() if "merge_groups" in line)
    assert line.startswith("64x6x6_3x3_g16 x1: merge_groups=4 5.00 us, ")
    assert line.endswith("; merge_groups=4 is 2.00 times as fast as the rule's")


def test_the_command_compares_paddings_and_merges_at_once(command, tuned_to):
    tuned_to(lambda problem: 1.0)
    out, _ = command(LAYER, options="--merges --paddings")
    assert "No padding is faster than the rule's." in out
    assert "; the rule's will do" in out


def test_the_command_says_when_there_is_nothing_to_merge(command, tuned_to):
    tuned_to(lambda problem: 1.0)
    assert "No layer has groups to merge." in command(Layer(8, 8, 8, 8, 1, 1))[0]


def test_a_merge_without_a_plan_is_told(command, tuned_to):
    tuned_to(lambda problem: 1.0 if problem.groups == 1 else None)
    out, complaint = command(LAYER)
    assert "merge_groups=16 (by rule) 1.00 us, 1 no plan, 2 no plan" in out
    assert complaint.startswith("no plan for ") and "none is exact" in complaint


def test_what_the_package_knows_of_this_gpu_needs_no_tuning(monkeypatch, tuned_to):
    tuned_to(lambda problem: 1.0)
    target = _plans.local_target()
    other = _plan_store.Target("NVIDIA Other", 90, "9.12.0")
    shipped = tuple(
        _plan_store.Table(on, {"x=1": {"us": us}, name: {"us": us}})
        for on, us, name in ((target, 2.0, "x=2"), (other, 3.0, "x=3"))
    )
    monkeypatch.setattr(_plan_store, "shipped", lambda: shipped)
    assert _choices.known_us(target) == {"x=1": 2.0, "x=2": 2.0}


def packed_of(channels=32, out_channels=32, groups=8, rank=2, **kwargs):
    rng = np.random.default_rng(0)
    shape = (out_channels, *(3, 2, 3)[:rank], channels // groups)
    weight = rng.integers(-128, 128, shape, np.int8)
    layout = {1: "OWI", 2: "OHWI", 3: "ODHWI"}[rank]
    return weight, prepack(weight, weight_scale=1.0, layout=layout, groups=groups, **kwargs)


def call(packed, x):
    return qconv(QTensor(x, 1.0), packed, out_scale=1.0, activation="relu").values


X = jax.ShapeDtypeStruct((2, 6, 6, 32), jnp.int8)


@pytest.fixture
def fake_worker(monkeypatch, tmp_path):
    monkeypatch.setattr(_tuning, "WORKER", (str(pathlib.Path(fake_tuner.__file__)),))
    monkeypatch.setattr(_plan_store, "root", lambda: tmp_path / "plans")
    target = _plan_store.Target("NVIDIA Test", 12, "9.19.0")
    monkeypatch.setattr(_plans, "local_gpu", lambda: 0)
    monkeypatch.setattr(_plans, "target_of", lambda device: target)


def test_one_convolution_is_tuned_with_each_merge(fake_worker):
    _, packed = packed_of()
    times = tune_merges(call, packed, X, workers=1, progress=False)
    assert set(times) == {1, 2, 4, 8}
    # The fastest of the made-up plans.
    assert list(times.values()) == pytest.approx([20.1] * 4)
    # Known now, from the store.
    assert tune_merges(call, packed, X, workers=1, progress=False) == times


def test_merges_without_a_plan_are_missing(fake_worker):
    _, packed = packed_of()

    def bare(packed, x):
        return qconv(QTensor(x, 1.0), packed, out_scale=1.0).values

    assert tune_merges(bare, packed, X, workers=1, progress=False) == {}


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_fastest_merge_comes_first_and_problems_are_those_of_real_packs(tuned_to, rank):
    asked = tuned_to(lambda problem: 10.0 * problem.groups + 1 / problem.groups)
    geometry = {"strides": 2, "padding": 1, "rank": rank}
    _, packed = packed_of(**geometry)
    x = jax.ShapeDtypeStruct((2, *(7, 6, 5)[:rank], 32), jnp.int8)
    times = tune_merges(call, packed, x)
    assert list(times) == [8, 4, 2, 1]
    assert list(times.values()) == [11.0, 20.5, 40.25, 80.125]
    for merge in times:
        _, real = packed_of(**geometry, merge_groups=merge)
        assert set(problems_of(call, real, x)) < set(asked)


def test_all_convolutions_of_the_function_count(tuned_to):
    tuned_to(lambda problem: 1.0 + problem.groups)
    _, packed = packed_of()
    times = tune_merges(lambda packed, x: call(packed, call(packed, x)), packed, X)
    assert times[8] == 2 * 2.0 and times[1] == 2 * 9.0


def test_depthwise_ones_too(tuned_to):
    asked = tuned_to(lambda problem: float(problem.groups))
    _, packed = packed_of(channels=32, out_channels=32, groups=32)
    assert packed.merge == 1
    assert list(tune_merges(call, packed, X)) == [32, 16, 8, 4, 1]
    assert [problem.depthwise for problem in asked] == [True, False, False, False, False]


@pytest.mark.parametrize(
    ("packed", "error", "message"),
    [
        (lambda: packed_of(groups=1)[1], ValueError, "packed has no groups that could be merged"),
        (
            lambda: packed_of(transpose=True)[1],
            ValueError,
            "packed has no groups that could be merged",
        ),
        (
            lambda: packed_of()[1].bind(x_scale=1.0, out_scale=1.0),
            ValueError,
            "packed is bound.*take one that isn't",
        ),
        (lambda: 8, TypeError, "packed must be a PackedConv from prepack, got int"),
    ],
    ids=["no-groups", "transposed", "bound", "no-pack"],
)
def test_packs_without_a_choice_are_refused(packed, error, message):
    with pytest.raises(error, match=message):
        tune_merges(call, packed(), X)


@pytest.mark.parametrize("arguments", [{"candidates": -1}, {"workers": 0}], ids=str)
def test_arguments_of_tuning_are_checked(arguments):
    with pytest.raises(ValueError, match=f"{next(iter(arguments))} must be"):
        tune_merges(call, packed_of()[1], X, **arguments)


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(_plans, "local_gpu", lambda: None)
    with pytest.raises(jax_qconv.EngineUnavailableError, match="CUDA device"):
        tune_merges(call, packed_of()[1], X)


@pytest.mark.parametrize(
    ("channels", "out_channels", "groups"), [(32, 32, 8), (16, 32, 4), (24, 24, 24), (12, 36, 12)]
)
def test_no_merge_changes_a_byte(channels, out_channels, groups):
    rng = np.random.default_rng(1)
    x = rng.integers(-128, 128, (2, 5, 4, channels), np.int8)
    scales = {"x_scale": np.float32(0.02), "out_scale": np.float32(150.0)}
    for merge in _merges.choices(channels, out_channels, groups):
        weight, packed = packed_of(channels, out_channels, groups, padding=1, merge_groups=merge)
        assert packed.merge == merge
        out = qconv(QTensor(jnp.asarray(x), scales["x_scale"]), packed, out_scale=150.0)
        want = oracle.convolve(
            x, weight, padding=((1, 1),) * 2, groups=groups, w_scale=np.float32(1.0), **scales
        )
        assert len(np.unique(want)) > 5
        np.testing.assert_array_equal(out.values[..., :out_channels], want)
