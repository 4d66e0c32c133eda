"""The accuracy benchmark judges each network by each option, and keeps what it knew of others."""

from __future__ import annotations

import importlib
import json

import jax
import numpy as np
import pytest
from bench import accuracy_section, report


@pytest.fixture
def bench(monkeypatch):
    """Imports a module of the benchmark, which sees the examples."""
    for package in ("PIL", "h5py"):
        pytest.importorskip(package)
    # Put back afterwards: it makes the examples' modules visible.
    monkeypatch.setattr("sys.path", [*importlib.import_module("sys").path])
    return lambda name: importlib.import_module(f"bench.{name}")


def project(weights, x):
    return jax.nn.relu(x @ weights["a"]) @ weights["b"]


@pytest.fixture
def case(bench):
    rng = np.random.default_rng(0)
    nets = bench("accuracy_nets")
    batches = [rng.normal(size=(4, 8)).astype("f") for _ in range(2)]
    weights = {"a": rng.normal(size=(8, 8)).astype("f"), "b": rng.normal(size=(8, 3)).astype("f")}

    def figures(in_float, in_int8):
        assert [out.shape for out in in_float] == [out.shape for out in in_int8] == [(4, 3)] * 2
        same = sum(
            (a.argmax(1) == b.argmax(1)).sum() for a, b in zip(in_float, in_int8, strict=True)
        )
        return {"same_top1": int(same)}

    folds = [nets.Fold([batches[0]], batches)]
    return nets.Case("Tiny", project, [weights], folds, "8 rows", figures, {"same_top1": 7})


def test_one_network_is_measured_again_and_the_others_stay(bench, case, monkeypatch, tmp_path):
    accuracy = bench("accuracy")
    monkeypatch.setattr(accuracy, "NETS", {"tiny": lambda folder: case})
    for options in accuracy.OPTIONS.values():
        monkeypatch.setitem(options, "observer", "absmax")  # compiles faster
    path = tmp_path / "accuracy.json"
    path.write_text(json.dumps({"other": {"seconds": 1}}))
    accuracy.measure_all(["tiny"], tmp_path, path)
    found = json.loads(path.read_text())
    assert found.keys() == {"other", "tiny"} and found["other"] == {"seconds": 1}
    for option in accuracy.OPTIONS:
        assert 6 <= found["tiny"][option]["same_top1"] <= 8
    assert {"commit", "date", "jax", "device", "seconds"} <= found["tiny"].keys()
    text = accuracy_section.section({"tiny": found["tiny"]}, "accuracy.json")
    assert "| Tiny | 8 rows | top-1 as in float32 | ≥ 7 |" in text


def test_trainings_are_judged_each_and_by_their_mean(bench, case, monkeypatch):
    accuracy = bench("accuracy")
    monkeypatch.setattr(accuracy, "OPTIONS", {"symmetric": {"observer": "absmax"}})
    (weights,) = case.weights
    backwards = {"a": weights["a"], "b": -weights["b"]}
    alone = [accuracy.measure(case._replace(weights=[w])) for w in (weights, backwards)]
    found = accuracy.measure(case._replace(weights=[weights, backwards]))["symmetric"]
    assert found["of_each"] == [one["symmetric"] for one in alone]
    assert found["same_top1"] == sum(one["same_top1"] for one in found["of_each"]) / 2


def test_options_and_goals_have_their_place_in_the_readme(bench):
    assert accuracy_section.OPTIONS.keys() == bench("accuracy").OPTIONS.keys()
    stored = json.loads((report.ROOT / report.ACCURACY).read_text())
    assert stored and stored.keys() <= bench("accuracy_nets").NETS.keys()
    for net in stored.values():
        assert net["goals"].keys() <= accuracy_section.MEASURES.keys() & net["symmetric"].keys()
