"""The whole of ResNet-50 in each system: the same network, timed by turns, written down."""

from __future__ import annotations

import json
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench import nets, resnet50, resnet50_jax, startup
from bench.resnet50_net import STAGES


@pytest.fixture(scope="module")
def image():
    """Small, which changes nothing but the sizes."""
    return jnp.asarray(np.random.default_rng(2).integers(-128, 128, (1, 64, 64, 3), np.int8))


@pytest.fixture(scope="module")
def int8(image):
    run, params = resnet50_jax.int8_net()
    return np.asarray(jax.jit(run)(params, image).astype(jnp.float32))


def close(got, want):
    """What networks agree on that round differently in 50 layers."""
    got = np.asarray(got.astype(jnp.float32))
    return got.shape == want.shape and np.corrcoef(got.ravel(), want.ravel())[0, 1] > 0.95


@pytest.mark.slow
def test_xla_int8_is_the_same_network(image, int8):
    run, params = resnet50_jax.xla_int8_net()
    assert close(jax.jit(run)(params, image), int8)


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [False, True])
def test_bf16_is_the_same_network(blocks, image, int8):
    run, params = resnet50_jax.bf16_net(blocks=blocks)
    x = image.astype(jnp.bfloat16) * jnp.bfloat16(resnet50_jax.OUT_SCALE)
    assert close(jax.jit(run)(params, x), int8)


@pytest.mark.slow
def test_qwix_is_the_same_network(image, int8):
    pytest.importorskip("qwix")
    run, params = resnet50_jax.qwix_net()
    x = image.astype(jnp.float32) * resnet50_jax.OUT_SCALE
    assert close(jax.jit(run)(params, x), int8)


def test_what_matters_most_comes_first_and_the_rest_waits_for_nothing():
    core, all_systems = resnet50.CORE, list(resnet50.NETS)
    found = list(nets.groups(all_systems, [], core))
    assert found[0] == list(core) and {"int8", "seed", "bf16_blocks_graph"} <= {*found[0]}
    assert found[1:] == [["int8", name] for name in all_systems if name not in core]
    done = [*core, "xla_int8"]
    assert ["int8", "xla_int8"] not in nets.groups(all_systems, done, core)
    assert list(nets.groups(["int8", "bf16"], done, core)) == []
    assert list(nets.groups(["int8"], [], core)) == [["int8"]]


class Fake:
    """A network whose forward passes take as long as it is told."""

    def __init__(self, us):
        self.us = us

    def execute(self, times):
        self.us += 1
        return self.us


@pytest.fixture
def fakes(monkeypatch):
    """Systems that take no time, one of which fails."""

    def fail(batch):
        raise ImportError("no such package")

    systems = {"int8": lambda n: Fake(1000 * n), "bf16": lambda n: Fake(3000 * n), "qwix": fail}
    monkeypatch.setattr(resnet50, "NETS", systems)
    monkeypatch.setattr(resnet50, "CORE", ("int8", "bf16"))
    monkeypatch.setattr(resnet50, "exact", lambda batch: True)
    monkeypatch.setenv("JAX_QCONV_COMMIT", "0123456789abcdef")


def test_rows_have_every_sample_and_the_speed_against_int8(fakes):
    int8, bf16, qwix = nets.measure(resnet50.NETS, {}, 2, ["int8", "bf16", "qwix"])
    assert len(bf16["samples_us"]) == nets.REPEATS
    assert bf16["ms"] == min(bf16["samples_us"]) / 1e3 < bf16["ms_median"]
    assert bf16["int8_ms"] == int8["ms"]
    assert bf16["speedup_of_int8"] == pytest.approx(bf16["ms"] / int8["ms"])
    assert int8["images_per_s"] == pytest.approx(2e3 / int8["ms"])
    assert qwix["error"] == "ImportError: no such package" and "ms" not in qwix


def test_the_script_goes_on_where_it_was_cut_off(fakes, monkeypatch, tmp_path):
    def run(*systems):
        monkeypatch.setattr(
            "sys.argv", ["resnet50.py", "--out", str(tmp_path), "--systems", *systems]
        )
        assert resnet50.main() == 0
        return json.loads((tmp_path / "resnet50.json").read_text())

    first = run("int8", "bf16")
    assert [(r["batch"], r["system"]) for r in first["rows"]] == [
        (batch, name) for batch in (128, 1) for name in ("int8", "bf16")
    ]
    assert first["exact"] and {"clocks_before", "clocks_after", "method", "commit"} <= set(first)
    more = run("int8", "bf16", "qwix")
    assert [row for row in more["rows"] if row["system"] != "qwix"] == first["rows"]
    assert len(more["rows"]) == 6


def test_a_network_is_timed():
    run, params = (lambda params, x: params * x.sum()), jnp.float32(2)
    net = nets.Net((run, params), jnp.ones(8), graph="")
    assert net.execute(2) > 0 and net.host_us(2) > 0


def test_the_start_of_a_process_is_timed(monkeypatch, tmp_path):
    names = re.findall(r"resnet50_jax\.\w+", startup.FIRST_RESULT)
    assert len(names) == 2
    monkeypatch.setattr(
        startup, "FIRST_RESULT", f"from bench import resnet50_jax; {'; '.join(names)}"
    )
    monkeypatch.setattr(sys, "path", [str(pathlib.Path(__file__).parent), *sys.path])
    monkeypatch.setattr("sys.argv", ["startup.py", "--out", str(tmp_path)])
    startup.main()
    results = json.loads((tmp_path / "startup.json").read_text())
    assert set(results["seconds"]) == {"cold", "warm", "warm_with_programs"}
    assert min(results["seconds"].values()) > 0 and "device" in results


def test_the_network_has_its_blocks():
    assert sum(blocks for _, blocks in STAGES) == 16
    assert len(resnet50_jax.CONVS) == 53
