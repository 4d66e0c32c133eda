"""The report of a network: every layer, and how near it is to the float one."""

from __future__ import annotations

import json
import sys

import jax
import numpy as np
import pytest

from jax_qconv import Report, Rule, _plan_store, quantize_model, report, target
from jax_qconv._collect import problems_of


def net(p, x):
    y = jax.nn.relu(jax.lax.conv_general_dilated(
        x, p["a"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")))  # fmt: skip
    y = jax.lax.conv_general_dilated(
        y, p["b"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y.mean((1, 2)) @ p["c"]


@pytest.fixture(scope="module")
def parts():
    rng = np.random.default_rng(0)
    shapes = {"a": (3, 3, 3, 16), "b": (3, 3, 16, 8), "c": (8, 5)}
    p = {name: rng.normal(size=shape).astype("f") / 8 for name, shape in shapes.items()}
    batches = [rng.normal(size=(2, 12, 12, 3)).astype("f") for _ in range(3)]
    return p, batches


def made(parts, **options):
    p, batches = parts
    options = {"observer": "absmax", "progress": False} | options
    model = quantize_model(net, p, batches, **options)
    return model, report(model, p, batches)


def test_every_layer_is_told_with_its_error(parts):
    _model, found = made(parts)
    a, b, mean, c = found.layers
    assert [layer.kind for layer in found.layers] == ["conv", "conv", "global average", "linear"]
    assert (a.name, b.name, c.name) == ("a", "b", "c")
    assert (a.out, mean.out, c.out) == ("int8", "int8", "float32")
    assert a.macs == 2 * 12 * 12 * 27 * 16 and b.macs == 2 * 6 * 6 * 9 * 16 * 8
    assert a.clipped == 0 and a.zero_point is None and a.scale > 0
    assert all(20 < layer.sqnr_db < 70 for layer in found.layers)
    assert 0 < a.mean_error < a.worst_error < 2 * a.scale


def test_the_outputs_are_compared_over_all_batches(parts):
    p, batches = parts
    model, found = made(parts)
    wanted = np.concatenate([net(p, x) for x in batches])
    got = np.concatenate([model(model.params, x) for x in batches])
    sqnr = 10 * np.log10((wanted**2).sum() / ((wanted - got) ** 2).sum())
    assert found.output_sqnr_db == pytest.approx(sqnr, abs=1e-3)


def test_numbers_beyond_the_range_are_counted(parts):
    p, batches = parts
    model = quantize_model(net, p, [x / 4 for x in batches], observer="absmax", progress=False)
    first = report(model, p, batches).layers[0]
    assert 0.001 < first.clipped < 0.5


def test_what_stays_real_is_told_with_its_reason(parts):
    _, found = made(parts, rules=[Rule("c", skip=True)])
    last = found.layers[-1]
    assert (last.kind, last.out, last.why) == ("dot_general", "float32", "a rule skips it")


def test_it_is_a_table_and_json(parts):
    _, found = made(parts)
    lines = str(found).splitlines()
    assert lines[0].split()[:3] == ["layer", "kind", "out"] and len(lines) == 6
    assert lines[-1] == f"outputs: {found.output_sqnr_db:.1f} dB"
    fields = json.loads(found.to_json())
    assert next(layer["name"] for layer in fields["layers"]) == "a"


def test_no_data_is_refused(parts):
    model, _ = made(parts)
    with pytest.raises(ValueError, match="at least one batch"):
        report(model, parts[0], [])


def test_a_single_batch_is_refused_as_quantize_model_does(parts):
    p, batches = parts
    model, _ = made(parts)
    with pytest.raises(TypeError) as refused:
        quantize_model(net, p, batches[0])
    with pytest.raises(TypeError, match="wrap a single batch in a list") as also:
        report(model, p, batches[0])
    assert str(also.value) == str(refused.value)


def test_a_layer_that_a_rule_skips_has_its_name(parts):
    _, found = made(parts, rules=[Rule("c", skip=True)])
    assert found.layers[-1].name == "c"


def test_json_becomes_the_same_report(parts):
    _, found = made(parts, rules=[Rule("b", skip=True)])
    assert Report.from_json(found.to_json()) == found
    assert len(found.to_json().splitlines()) == len(found.layers) + 2


def test_without_a_gpu_the_reference_runs(parts):
    _, found = made(parts)
    a, _b, mean, _c = found.layers
    assert (a.engine, a.plan, a.tuned_us) == ("reference", None, None)
    assert (mean.engine, mean.weight_scales) == (None, None)
    assert {layer.weight_scales for layer in found.layers} == {"per channel", None}
    assert "reference" in str(found) and "share" not in str(found).splitlines()[0]


def test_plans_are_those_of_the_target_and_tuned_times_are_told(parts):
    pytest.importorskip("jax_qconv._ext")
    p, batches = parts
    model, _ = made(parts, per_channel=False)
    gpu = {"compute_capability": 90, "cudnn": "9.19.0"}
    with target("NVIDIA H100 80GB HBM3", **gpu):
        found = report(model, p, batches).layers
        problems = [str(problem) for problem in problems_of(model, model.params, batches[0])]
    first = next(text for text in problems if text.startswith("x=2,12,12"))
    on = _plan_store.Target("NVIDIA H100 80GB HBM3", **gpu)
    row = {"plan": "cudnn:7:cfg=26", "us": 6.0, "rejected": None}
    entry = _plan_store.Entry.of_ranking(first, on, [row], tried="some")
    _plan_store.save(entry)
    with target("NVIDIA H100 80GB HBM3", **gpu):
        tuned = report(model, p, batches).layers
    _plan_store.remove(entry)
    assert all(layer.plan and layer.engine in ("cudnn", "auto") for layer in found if layer.macs)
    assert found[0].weight_scales == "per tensor" and found[0].tuned_us is None
    a = tuned[0]
    assert (a.engine, a.plan, a.tuned_us, a.tuned_share) == ("cudnn", "cudnn:7:cfg=26", 6.0, 1.0)
    assert tuned[1].tuned_share is None


@pytest.mark.parametrize("asymmetric", [False, True])
def test_histograms_count_every_number_of_every_batch_where_it_lies(parts, asymmetric):
    p, batches = parts
    model = quantize_model(
        net, p, [x / 2 for x in batches], asymmetric=asymmetric, observer="absmax", progress=False
    )
    a = report(model, p, batches).layers[0]
    y = np.concatenate([
        jax.nn.relu(jax.lax.conv_general_dilated(
            x, p["a"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")))
        for x in batches])  # fmt: skip
    assert sum(a.histogram) == y.size
    wanted, _ = np.histogram(np.clip(y, a.edges[0], a.edges[-1]), a.edges)
    np.testing.assert_allclose(a.histogram, wanted, atol=2)
    low, high = a.clip_points
    assert low < 0 < high and (a.zero_point is not None) == asymmetric
    beyond = (y > high + a.scale / 2) | (y < low - a.scale / 2)
    assert a.clipped == pytest.approx(beyond.mean(), abs=2 / y.size) and a.clipped > 0


def test_its_picture_is_a_png_that_shows_something(parts, tmp_path):
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("PIL.Image")
    _, found = made(parts, rules=[Rule("c", skip=True)])
    found.plot(tmp_path / "all.png")
    found.plot(tmp_path / "bars.png", histograms=0)
    with pytest.raises(ValueError, match="histograms must be a number of them, got -1"):
        found.plot(tmp_path / "none.png", histograms=-1)
    with image.open(tmp_path / "all.png") as all_, image.open(tmp_path / "bars.png") as bars:
        assert all_.format == "PNG" and all_.width > bars.width > 500
        assert len(all_.convert("RGB").getcolors(1 << 24)) > 50


def test_without_matplotlib_the_picture_says_what_to_install(parts, monkeypatch, tmp_path):
    _, found = made(parts)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install 'matplotlib"):
        found.plot(tmp_path / "report.png")


def test_a_depthwise_layer_is_run_by_the_engine_for_those(parts):
    pytest.importorskip("jax_qconv._ext")
    p, batches = {"w": np.ones((3, 3, 1, 3), "f")}, parts[1]

    def depthwise(p, x):
        return jax.lax.conv_general_dilated(
            x, p["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=3)  # fmt: skip

    model = quantize_model(depthwise, p, batches, observer="absmax", progress=False)
    with target("NVIDIA Test GPU", compute_capability=90, cudnn="9.19.0"):
        found = report(model, p, batches)
    (layer,) = found.layers
    assert (layer.engine, layer.plan) == ("depthwise", "auto")
    assert "depthwise" in str(found).splitlines()[1].split()
