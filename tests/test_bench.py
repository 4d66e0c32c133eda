"""The benchmarks compute what they say, and README.md shows what they measured."""

from __future__ import annotations

import functools
import json
import math

import jax
import jax.numpy as jnp
import pytest
from bench import report, roofline, summary, systems, timing
from layers import RESNET50, Layer

pytest.importorskip("tqdm")
from bench import layers as bench_layers

STORED = sorted(report.RESULTS.parent.glob("*/summary.json"))
TINY = (
    Layer(4, 6, 5, 8, 3, 3, residual=True),
    Layer(3, 15, 15, 8, 7, 7, stride=2),
    Layer(5, 6, 6, 12, 1, 1, stride=2, relu=False),
)
ALL = ("int8", "bf16", "bf16_without_graph", "xla_int8")
H200 = roofline.GPUS["NVIDIA H200"]


@pytest.fixture
def short(monkeypatch):
    """Programs of a millisecond."""
    for name, value in {"ROUND_BYTES": 1, "MIN_CALLS": 3, "PROGRAM_SECONDS": 1e-5}.items():
        monkeypatch.setattr(timing, name, value)


@pytest.mark.parametrize(
    ("name", "batch", "us"),
    [
        # 2 * 128 * 14 * 14 * 256 * 9 * 256 operations, 1979e12 a second
        ("256x14x14_3x3", 128, 14.954),
        # 128 * 56 * 56 * (64 + 2 * 256) + 64 * 256 bytes, 4.8e12 a second
        ("64x56x56_1x1_to256", 128, 48.173),
        # 224 * 224 * 3 + 64 * 7 * 7 * 3 + 112 * 112 * 64 bytes
        ("3x224x224_7x7_to64_s2", 1, 0.20057),
    ],
)
def test_roofline(name, batch, us):
    (layer,) = (layer for layer in RESNET50 if layer.name == name)
    assert roofline.roofline_us(layer, batch, H200) == pytest.approx(us, rel=1e-4)


@pytest.mark.parametrize("layer", TINY, ids=lambda layer: layer.name)
def test_roofline_counts_the_arrays_that_a_system_has(layer):
    system = systems.bf16(systems.Data.make(layer, 2), graph=True)
    (x, weight, residual), out = system.own, system.output
    assert out.shape == roofline.out_shape(layer, 2)
    arrays = [x, weight, out, *([] if residual is None else [residual])]
    assert roofline.elements(layer, 2) == sum(array.size for array in arrays)
    assert roofline.operations(layer, 2) == 2 * out.size * weight[0].size


@pytest.mark.parametrize("layer", TINY, ids=lambda layer: layer.name)
def test_every_system_computes_the_layer(layer):
    data = systems.Data.make(layer, 2)
    ours, xla = systems.int8(data), systems.xla_int8(data)
    exact = jax.jit(ours.call)(ours.shared, *ours.own)[..., : layer.k].astype(jnp.int32)
    values = jnp.unique(exact)
    assert len(values) > 60 and 127 in values  # spread over the range, saturated
    assert (0 if layer.relu else -128) in values
    # XLA is free to contract products and sums: one step at most, where a tie is broken.
    other = jax.jit(xla.call)(xla.shared, *xla.own).astype(jnp.int32)
    assert jnp.abs(exact - other).max() <= 1


def test_bf16_computes_the_layer():
    data = systems.Data.make(TINY[0], 2)
    bf16 = systems.bf16(data, graph=True)
    got = jax.jit(bf16.call)(bf16.shared, *bf16.own)
    x, weight, residual = (v.astype(jnp.float32) for v in bf16.own)
    want = jax.lax.conv_general_dilated(
        x, weight, (1, 1), "SAME", dimension_numbers=("NHWC", "OHWI", "NHWC")
    )
    want = jnp.maximum(want + bf16.shared.astype(jnp.float32)[None, None, None] + residual, 0)
    assert got.dtype == jnp.bfloat16
    assert jnp.allclose(got.astype(jnp.float32), want, rtol=0.03, atol=0.03 * want.max())


@pytest.mark.parametrize("layer", TINY, ids=lambda layer: layer.name)
def test_a_layer_is_measured(layer, short):
    row = bench_layers.measure(layer, 2, H200, chosen=ALL)
    assert not [name for name in row if name.endswith("_error")], row
    assert row["exact"] and row["elements_wrong"] == 0
    assert row["elements_compared"] == 3 * math.prod(roofline.out_shape(layer, 2))
    assert row["speedup_vs_bf16"] == row["bf16_us"] / row["us"]
    for name in ("us", "bf16_us", "xla_int8_us"):
        assert 0 < row[name] <= row[f"{name}_median"]


def test_a_system_that_fails_leaves_its_error_and_the_others_their_times(short, monkeypatch):
    def refuse(*_, **__):
        raise NotImplementedError("no such convolution")

    monkeypatch.setattr(systems, "_convolve", refuse)
    row = bench_layers.measure(TINY[0], 1, H200, chosen=ALL)
    for name in ("bf16_error", "bf16_without_graph_error", "xla_int8_error"):
        assert row[name] == "NotImplementedError: no such convolution"
    assert row["us"] > 0 and "bf16_us" not in row and "speedup_vs_bf16" not in row


def test_a_wrong_output_is_counted():
    data = systems.Data.make(TINY[0], 2)
    system = systems.int8(data)
    right = jax.jit(system.call)(system.shared, *system.own)
    wrong = right.at[1, 2, 3, 4].add(1).at[0, 0, 0, 0].add(1)
    assert systems.count_wrong(system, [right, right]) == 0
    assert systems.count_wrong(system, [right, wrong]) == 2
    assert systems.count_wrong(system, [wrong, wrong, wrong]) == 2


def test_the_faster_of_bf16_is_reported():
    times = {
        "int8": [2.0, 1.0, 3.0],
        "bf16": [5.0, 4.0, 4.5],
        "bf16_without_graph": [3.0, 9.0, 9.0],
    }
    row = bench_layers.figures(times, 0.5)
    assert (row["us"], row["us_median"], row["share_of_roofline"]) == (1, 2, 0.5)
    assert (row["bf16_us"], row["bf16_us_median"], row["bf16_graph"]) == (3, 9, False)
    assert row["speedup_vs_bf16"] == 3


def test_the_script_writes_layers_json(short, monkeypatch, tmp_path):
    device = jax.devices()[0].device_kind
    monkeypatch.setattr(bench_layers, "GPUS", {device: H200})
    monkeypatch.setattr(bench_layers, "NETWORKS", {"resnet50": TINY})
    monkeypatch.setattr(timing, "copy_gbps", functools.partial(timing.copy_gbps, 1 << 16, 2))
    monkeypatch.setenv("JAX_QCONV_COMMIT", "0123456789abcdef")
    out, name = tmp_path / "new", TINY[2].name
    arguments = f"layers.py --batch 1 2 --layers {name} --systems int8 bf16 --out {out}"
    monkeypatch.setattr("sys.argv", arguments.split())
    assert bench_layers.main() == 0
    (path,) = out.iterdir()
    results = json.loads(path.read_text())
    assert [(row["name"], row["batch"]) for row in results["rows"]] == [(name, 1), (name, 2)]
    assert all({"us", "bf16_us"} < set(row) for row in results["rows"])
    assert set(summary.ORIGIN) < set(results)
    assert (results["device"], results["commit"]) == (device, "0123456789abcdef")
    assert results["copy_gbps"] > 0


def test_the_script_needs_a_gpu_whose_speed_it_knows(monkeypatch, tmp_path):
    monkeypatch.setattr(bench_layers, "GPUS", {})
    monkeypatch.setattr("sys.argv", ["layers.py", "--out", str(tmp_path)])
    assert "is not in GPUS" in bench_layers.main()


def test_geomean():
    assert summary.geomean([1, 8, 27]) == pytest.approx(6)


@pytest.fixture
def measured():
    """What layers.json and gpu_tests.json may hold."""
    origin = dict.fromkeys(summary.ORIGIN, "?") | {
        "device": "NVIDIA H200",
        "commit": "0123456789abcdef",
    }
    rows = []
    for batch in (1, 128):
        for i, layer in enumerate(RESNET50):
            speedup = (2.0, 0.5)[i % 2]
            row = {"name": layer.name, "batch": batch, "us": 10.5, "bf16_us": 10.5 * speedup}
            row |= {"speedup_vs_bf16": speedup, "roofline_us": 2.1, "share_of_roofline": 0.2}
            rows.append(row | {"exact": True, "elements_compared": 1000, "elements_wrong": 0})
    tests = {"passed": 90, "failed": 0, "error": 0, "skipped": 3, "elements_compared": 12345}
    return origin | {"rows": rows}, origin | tests


def test_summary_has_the_figures_under_flat_keys(measured):
    merged = summary.summarise(*measured)
    assert merged["layers.b128.256x14x14_3x3.us"] == 10.5
    assert merged["layers.b128.256x14x14_3x3.speedup_vs_jax_bf16"] == 2.0
    for batch in ("b1", "b128"):
        # twelve layers at 2, eleven at a half
        mean = merged[f"layers.{batch}.geomean_speedup_vs_jax_bf16"]
        assert mean == pytest.approx(2 ** (1 / 23), rel=1e-4)
        assert merged[f"layers.{batch}.min_speedup_vs_jax_bf16"] == 0.5
        assert merged[f"layers.{batch}.exact"] == merged[f"layers.{batch}.layers"] == 23
    assert merged["gpu_tests.passed"] == 90
    assert merged["gpu_tests.failed"] == 0
    assert merged["gpu_tests.elements_compared"] == 12345
    assert {"device", "date", "commit", "jax", "cudnn"} <= set(merged)
    assert not any(isinstance(value, dict | list) for value in merged.values())


def test_summary_counts_what_failed(measured):
    layers, tests = measured
    layers["rows"][0] = {"name": RESNET50[0].name, "batch": 1, "int8_error": "out of memory"}
    merged = summary.summarise(layers, tests)
    assert merged["layers.b1.layers"] == 23
    assert merged["layers.b1.exact"] == merged["layers.b1.compared_with_jax_bf16"] == 22
    assert f"| `{RESNET50[0].name}` | 1 | failed | failed |" in report.figures(merged, "results")


def test_summary_refuses_figures_of_two_gpus(measured):
    layers, tests = measured
    with pytest.raises(ValueError, match="device NVIDIA H200, but gpu_tests"):
        summary.summarise(layers, tests | {"device": "NVIDIA H100"})


def test_report_says_what_failed(measured):
    layers, tests = measured
    layers["rows"][-1] |= {"exact": False, "elements_wrong": 7}
    merged = summary.summarise(layers, tests | {"passed": 85, "failed": 4, "error": 1})
    text = report.figures(merged, "results")
    assert "85 passed, 5 failed, 3 skipped" in text
    assert "Of 46,000 outputs of the timed programs 7 differed" in text


def test_report_replaces_its_section_only():
    readme = f"# Title\n{report.BEGIN}\nold\n{report.END}\nrest\n"
    new = report.replace_section(readme, "new")
    assert new == f"# Title\n{report.BEGIN}\nnew\n{report.END}\nrest\n"
    assert report.replace_section(new, "new") == new


@pytest.mark.parametrize(
    "readme", ["", report.BEGIN, report.END + report.BEGIN, 2 * (report.BEGIN + report.END)]
)
def test_report_needs_both_marks_once(readme):
    with pytest.raises(ValueError, match="once each"):
        report.replace_section(readme, "new")


def test_report_shows_layers_that_exist():
    assert set(report.SHOWN) <= {layer.name for layer in RESNET50}


def test_report_fills_the_readme_and_notices_when_it_is_stale(measured, monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    layers, tests = measured
    merged = summary.summarise(layers, tests)
    readme, folder = tmp_path / "README.md", tmp_path / "results"
    readme.write_text(f"{report.BEGIN}\n{report.END}\n")
    folder.mkdir()
    (folder / "layers.json").write_text(json.dumps(layers))
    (folder / "summary.json").write_text(json.dumps(merged))

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["report.py", str(folder), *arguments])
        return report.main()

    monkeypatch.setattr(report, "ROOT", tmp_path)
    assert "README.md is stale" in run("--check")
    assert run() == 0
    assert report.figures(merged, "results") in readme.read_text()
    assert (folder / report.PICTURE).read_bytes().startswith(b"\x89PNG")
    assert run("--check") == 0
    (folder / "summary.json").write_text(json.dumps(merged | {"device": "NVIDIA H300"}))
    assert "README.md is stale" in run("--check")


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.parent.name)
def test_stored_summary_follows_from_the_stored_figures(path):
    assert json.loads(path.read_text()) == summary.summarise(**summary.read(path.parent))


@pytest.mark.skipif(not STORED, reason="no results are stored")
def test_readme_shows_the_stored_figures(monkeypatch):
    monkeypatch.setattr("sys.argv", ["report.py", "--check"])
    assert report.main() == 0
