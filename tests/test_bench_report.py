"""The summary, README.md and the pictures show what the benchmarks measured."""

from __future__ import annotations

import json

import pytest
from bench import (
    accuracy_section,
    efficientnet,
    kind_convs,
    models,
    readme_section,
    report,
    resnet50,
    summary,
)
from layers import RESNET50

STORED = sorted(report.RESULTS.glob("*/summary.json"))
COUNTS = {"passed": 90, "failed": 0, "error": 0, "skipped": 3, "elements_compared": 12345}
HELD_OUT = {"problems": 116, "picked": 116, "geomean": 1.5, "worst": 2.5}
ACCURACY = {
    "net": {
        "title": "A network",
        "judged": "20 photos",
        "device": "cpu",
        "date": "2026-01-31",
        "seconds": 90.0,
        "goals": {"same_top1": 19},
        "symmetric": {"same_top1": 18},
        "asymmetric": {"same_top1": 19},
        "asymmetric_corrected": {"same_top1": 20},
        "compensated": {"same_top1": 20},
    }
}
STARTUP = {"cold": 30.0, "warm": 9.0, "warm_with_programs": 6.0}


@pytest.fixture
def layers():
    """What layers.json may hold: residuals at 1 and 128, plain ones and another network at 128."""
    found = dict.fromkeys(summary.ORIGIN, "?") | {
        "device": "NVIDIA H200",
        "commit": "0123456789abcdef",
        "copy_gbps": 4000.0,
        "int8_tops": 1500.0,
        "nominal": {"ops": 2000e12, "bandwidth": 5000e9},
        "runs": [{"clocks_before": {"sm_mhz": 1980.0}, "clocks_after": {"sm_mhz": 1500.0}}, {}],
    }
    rows = []
    for batch in (1, 128):
        for i, layer in enumerate(RESNET50):
            speedup = (2.0, 0.5)[i % 2]
            row = {"name": layer.name, "batch": batch, "us": 10.5, "bf16_us": 10.5 * speedup}
            row |= {"speedup_vs_bf16": speedup, "roofline_us": 2.1, "share_of_roofline": 0.2}
            row |= {"ops": 6e9, "bytes": 2e6, "c": layer.c, "residual": layer.residual}
            row |= {"exact": True, "elements_compared": 1000, "elements_wrong": 0}
            row["suites"] = ["resnet50"] + ([] if layer.residual else ["resnet50_plain"])
            rows.append(row)
            if layer.residual and batch == 128:
                plain = {"residual": False, "suites": ["resnet50_plain"], "us": 4.2}
                rows.append(row | plain | {"speedup_vs_seed": 8.0})
    rows.append(rows[-1] | {"suites": ["vgg16"], "us_spread": 0.01})
    return found | {"rows": rows}


@pytest.fixture
def files(layers):
    """All that `summary.summarise` takes."""
    origin = {name: layers[name] for name in summary.ORIGIN}
    times = {"int8": 2.0, "bf16": 4.0, "bf16_blocks_graph": 3.0, "seed": 40.0, "torch_bf16": 9.0}
    rows = [
        {
            "system": name,
            "batch": batch,
            "ms": ms,
            "images_per_s": batch / ms * 1e3,
            "speedup_of_int8": ms / 2.5 if name == "torch_bf16" else ms / 2,
        }
        for batch in (128, 1)
        for name, ms in times.items()
    ]
    lite = [row | {"images_per_s": 7.0} for row in rows if row["system"] in ("int8", "bf16")]
    rows.append({"system": "qwix", "batch": 128, "error": "no qwix"})
    kinds = []
    rivals = {"groups": {"int8_merge_1": {"us": 8.0, "merge": 1}}}
    rivals |= {"zero_points": {"int8_symmetric": {"us": 1.6}}}
    for kind in ("depthwise", "groups", "transposed", "zero_points"):
        row = {"kind": kind, "name": "a", "batch": 128, "bytes": 4e6, "copy_gbps": 4000.0}
        found = {"us": 2.0, "merge": 4, "exact": True}
        found |= {"elements_compared": 100, "elements_wrong": 0}
        systems = {"int8": found, **rivals.get(kind, {"bf16": {"us": 5.0}})}
        kinds.append(row | {"roofline_us": 0.8, "systems": systems})
    made = {name: {"exact": True, "rows": lite} for name in readme_section.MODELS}
    by_hand = {"system": "by_hand", "batch": 128, "ms": 16.0, "images_per_s": 8.0}
    made["resnet50"] = {"exact": True, "rows": [*lite, by_hand], "quantise_seconds": 12.5}
    return {
        "layers": layers,
        "gpu_tests": origin | COUNTS,
        "resnet50": origin | {"exact": True, "rows": rows},
        "efficientnet_lite0": origin | {"exact": True, "rows": lite},
        "models": origin | {"models": made},
        "kinds": origin | {"rows": kinds},
        "startup": origin | {"seconds": STARTUP},
        "model": {"held_out": HELD_OUT},
    }


def test_geomean():
    assert summary.geomean([1, 8, 27]) == pytest.approx(6)


def test_summary_has_the_figures_under_flat_keys(files):
    merged = summary.summarise(**files)
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
    assert (merged["clocks.min_sm_mhz"], merged["clocks.max_sm_mhz"]) == (1500, 1980)
    assert merged["startup.cold_s"] == 30 and merged["plans.model.held_out.worst"] == 2.5
    assert {"device", "date", "commit", "jax", "cudnn", "int8_tops"} <= set(merged)
    assert not any(isinstance(value, dict | list) for value in merged.values())


def test_the_roofline_is_that_of_plain_layers_without_the_stem(files):
    merged = summary.summarise(**files)
    assert merged["layers.b128.over_roofline_layers"] == 22
    # 18 layers at 5 times the roofline, four at twice
    expected = (5**18 * 2**4) ** (1 / 22)
    assert merged["layers.b128.geomean_over_nominal_roofline"] == pytest.approx(expected, rel=1e-4)
    # 6e9 operations at 1500e12 a second: 4 us
    reached = ((10.5 / 4) ** 18 * (4.2 / 4) ** 4) ** (1 / 22)
    assert merged["layers.b128.geomean_over_roofline"] == pytest.approx(reached, rel=1e-4)
    assert merged["layers.b1.over_roofline_layers"] == 18


def test_no_convolution_is_faster_than_the_roofline(files):
    for row in files["layers"]["rows"]:
        row["us"] = 2.0
    merged = summary.summarise(**files)
    assert merged["layers.b128.geomean_over_roofline"] == 1


def test_other_networks_have_their_own_keys(files):
    merged = summary.summarise(**files)
    assert merged["suites.resnet50_plain.b128.layers"] == 23
    assert merged["suites.resnet50_plain.b128.geomean_speedup_vs_seed"] == 8
    assert merged["layers.b128.with_residuals"]
    # Each output counts once, however many networks have the layer.
    assert merged["programs.elements_compared"] == 1000 * len(files["layers"]["rows"]) + 400


def test_a_network_of_which_layers_are_missing_has_no_keys(layers):
    merged = summary.summarise(layers)
    assert not any(key.startswith("suites.vgg16") for key in merged)
    of_plain = [row for row in layers["rows"] if "resnet50_plain" in row["suites"]]
    merged = summary.summarise(layers | {"rows": of_plain})
    assert merged["layers.b128.layers"] == 23 and not merged["layers.b128.with_residuals"]
    lines = readme_section.section(merged, "results").splitlines()
    assert not any(line.startswith("| `resnet50` | 128") for line in lines)


def test_the_network_is_compared_with_the_best_variants(files):
    merged = summary.summarise(**files)
    assert merged["resnet50.b128.images_per_s"] == 64000
    assert merged["resnet50.b1.ms"] == 2
    assert merged["resnet50.b128.speedup_vs_jax_bf16"] == 1.5
    assert merged["resnet50.b128.speedup_vs_seed"] == 20
    # by turns with int8, not by int8 as another group saw it
    assert merged["resnet50.b128.speedup_vs_torch_bf16"] == 3.6
    assert "resnet50.b128.speedup_vs_qwix" not in merged


def test_the_other_network_has_its_own_keys(files):
    merged = summary.summarise(**files)
    key = "efficientnet_lite0.b128"
    assert merged["efficientnet_lite0.exact"] and merged[f"{key}.images_per_s"] == 7
    assert merged[f"{key}.jax_bf16_images_per_s"] == 7
    assert merged[f"{key}.speedup_vs_jax_bf16"] == 2
    # The fastest way counts.
    assert merged["resnet50.b128.jax_bf16_images_per_s"] == pytest.approx(128e3 / 3)


def test_what_quantize_model_makes_is_compared_with_the_network_by_hand(files):
    merged = summary.summarise(**files)
    key = "models.resnet50.b128"
    assert merged["models.resnet50.exact"] and merged["models.resnet50.quantise_seconds"] == 12.5
    assert merged[f"{key}.images_per_s"] == merged[f"{key}.jax_bf16_images_per_s"] == 7
    assert merged[f"{key}.speedup_vs_jax_bf16"] == 2
    assert merged[f"{key}.share_of_hand_written"] == 0.875
    assert "models.unet.b128.share_of_hand_written" not in merged


def test_every_target_has_its_figure(files):
    files["layers"]["rows"][-3] |= {"suites": ["resnet50"], "batch": 128, "speedup_vs_seed": 8.0}
    assert set(summary.TARGETS) <= set(summary.summarise(**files))


def test_summary_counts_what_failed(layers):
    layers["rows"][0] = {"name": RESNET50[0].name, "batch": 1, "int8_error": "out of memory"}
    merged = summary.summarise(layers)
    assert merged["layers.b1.layers"] == 23
    assert merged["layers.b1.exact"] == merged["layers.b1.compared_with_jax_bf16"] == 22
    assert f"| `{RESNET50[0].name}` | 1 | failed | failed |" in readme_section.section(merged, "r")


@pytest.mark.parametrize("file", ["gpu_tests", "resnet50", "startup", "kinds"])
def test_summary_refuses_figures_of_two_gpus(file, files):
    files[file]["device"] = "NVIDIA H100"
    with pytest.raises(ValueError, match=f"device NVIDIA H200, but {file}"):
        summary.summarise(**files)


def test_the_section_has_all_that_was_measured(files):
    text = readme_section.section(summary.summarise(**files), "results")
    for line in (
        "| `resnet50` | 128 | 23 | 23 | 2.22 (22) | 1.03 (0.50) | - |",
        "| `resnet50_plain` | 128 | 23 | 23 | 2.24 (23) | 1.03 (0.50) | 8.00 (8.00) |",
        "| jax_qconv, int8 | 2.000 | 64,000 | 2.000 | 500 |",
        "| JAX bf16, space-to-depth stem, CUDA graphs | 3.000 | 42,667 | 3.000 | 333 |",
        "- ResNet-50 at batch 128, as fast as the best variant of: 1.50 times JAX bf16, 3.60",
        "30.0 s, 9.0 s with plans kept from earlier, 6.0 s with JAX's compiled programs",
        "on 116 convolutions it wasn't fitted to, its picks take 1.50 times",
        "90 passed, 0 failed, 3 skipped; they compared 12,345 outputs",
        "int8 matrix products 1,500 TOPS, clocks of 1500 to 1980 MHz were seen",
        "| EfficientNet-Lite0, whole forward pass | batch 128, ms | images/s |",
        "- EfficientNet-Lite0 at batch 128, as fast as the best variant of: 2.00 times JAX bf16.",
        "| ResNet-50 | 128 | yes | 7 | 7 | 2.00 | 88% |",
        "| U-Net | 128 | yes | 7 | 7 | 2.00 | - |",
        "- `quantize_model` of ResNet-50 with 512 images: 12.5 s.",
        "| depthwise: bytes a second over those of a copy | 128 | 1 | 1 | 0.50 (0.50) |",
        "| depthwise: times as fast as JAX bf16 | 128 | 1 | 1 | 2.50 (2.50) |",
        "| groups: times as fast as cuDNN's grouped kernel | 128 | 1 | 1 | 4.00 (4.00) |",
        "| groups: time over that of the best merge | 128 | 1 | 1 | 1.00 (1.00) |",
        "| transposed: times as fast as JAX bf16 | 128 | 1 | 1 | 2.50 (2.50) |",
        "| zero point of the input: time over that without one | 128 | 1 | 1 | 1.25 (1.25) |",
        "](results/layers_b128.png)",
        "](results/roofline.png)",
        "](results/resnet50.png)",
    ):
        assert line in text
    assert "qwix" not in text


def test_the_section_says_what_is_missing(layers):
    text = readme_section.section(summary.summarise(layers), "results")
    assert "- Not measured here: GPU tests, the whole of ResNet-50, the time to the first" in text
    assert "images/s" not in text and "resnet50.png" not in text
    assert "quantize_model" not in text
    assert "other kinds" not in text and "EfficientNet" not in text


def test_the_section_says_what_failed(files):
    files["layers"]["rows"][-1] |= {"exact": False, "elements_wrong": 7}
    files["gpu_tests"] |= {"passed": 85, "failed": 4, "error": 1}
    text = readme_section.section(summary.summarise(**files), "results")
    assert "85 passed, 5 failed, 3 skipped" in text
    assert "Of 51,400 outputs of the timed programs 7 differed" in text


def test_the_section_shows_layers_and_systems_that_exist():
    assert set(readme_section.SHOWN) <= {layer.name for layer in RESNET50}
    assert set(readme_section.NETS) == {*resnet50.NETS, *efficientnet.NETS}
    assert set(readme_section.NETWORKS) == set(summary.NETWORKS)
    assert set(readme_section.MODELS) == set(models.NETS)
    assert set(readme_section.KINDS) == set(kind_convs.KINDS)
    assert set(readme_section.RIVALS) <= set(summary.COMPARED.values())


def test_the_accuracy_of_each_network_stands_beside_its_goal():
    text = accuracy_section.section(ACCURACY, "accuracy.json")
    assert "(cpu, 2026-01-31, 2 minutes in all); [accuracy.json](accuracy.json)" in text
    assert "| A network | 20 photos | top-1 as in float32 | ≥ 19 | *18* | 19 | 20 |" in text


def test_a_goal_that_must_not_be_exceeded_is_missed_from_above(monkeypatch):
    monkeypatch.setattr(accuracy_section, "AT_MOST", frozenset({"same_top1"}))
    text = accuracy_section.section(ACCURACY, "accuracy.json")
    assert "| ≤ 19 | 18 | 19 | *20* |" in text


def test_report_replaces_its_section_only():
    readme = "# Title\n{}\nold\n{}\nrest\n".format(*report.marks("figures"))
    new = report.replace_section(readme, "figures", "new")
    assert new == readme.replace("old", "new")
    assert report.replace_section(new, "figures", "new") == new


BEGIN, END = report.marks("figures")


@pytest.mark.parametrize("readme", ["", BEGIN, END + BEGIN, 2 * (BEGIN + END)])
def test_report_needs_both_marks_once(readme):
    with pytest.raises(ValueError, match="once each"):
        report.replace_section(readme, "figures", "new")


def test_what_was_measured_last_is_shown(monkeypatch, tmp_path):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    with pytest.raises(FileNotFoundError, match="no summary"):
        report.chosen_folder()
    for gpu, date in (("h200", "2026-11-22"), ("h100", "2026-11-25"), ("b200", "2026-11-23")):
        (tmp_path / gpu).mkdir()
        (tmp_path / gpu / "summary.json").write_text(json.dumps({"date": date}))
    assert report.chosen_folder() == tmp_path / "h100"


def test_report_fills_the_readme_and_notices_what_is_stale(files, monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    readme, folder = tmp_path / "README.md", tmp_path / "results"
    readme.write_text("\n".join([*report.marks("figures"), *report.marks("accuracy")]))
    folder.mkdir()
    accuracy = tmp_path / report.ACCURACY
    accuracy.parent.mkdir(parents=True)
    accuracy.write_text(json.dumps(ACCURACY))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    monkeypatch.setattr("sys.argv", ["summary.py", str(folder)])
    summary.main()
    merged = json.loads((folder / "summary.json").read_text())
    assert merged == summary.summarise(**files)

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["report.py", str(folder), *arguments])
        return report.main()

    monkeypatch.setattr(report, "ROOT", tmp_path)
    stale = "Stale: layers_b128.png, roofline.png, resnet50.png, README.md."
    assert run("--check").startswith(stale)
    assert run() == 0
    assert readme_section.section(merged, "results") in readme.read_text()
    assert accuracy_section.section(ACCURACY, report.ACCURACY) in readme.read_text()
    for name in readme_section.PICTURES:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    assert run("--check") == 0
    files["resnet50"]["rows"][0]["ms"] = 1.9
    (folder / "resnet50.json").write_text(json.dumps(files["resnet50"]))
    assert run("--check").startswith("Stale: resnet50.png. Run")
    (folder / "summary.json").write_text(json.dumps(merged | {"device": "NVIDIA H300"}))
    assert "README.md" in run("--check")
    (folder / "summary.json").write_text(json.dumps(merged))
    accuracy.write_text(json.dumps({"net": ACCURACY["net"] | {"title": "Other"}}))
    assert run("--check").endswith("README.md. Run report.py.")


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.parent.name)
def test_stored_summary_follows_from_the_stored_figures(path):
    assert json.loads(path.read_text()) == summary.summarise(**summary.read(path.parent))


@pytest.mark.skipif(not STORED, reason="no results are stored")
def test_readme_and_pictures_show_the_stored_figures(monkeypatch):
    monkeypatch.setattr("sys.argv", ["report.py", "--check"])
    assert report.main() == 0
