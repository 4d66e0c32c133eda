"""The benchmarks of layers compute what they say, and write it down."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench import ceilings, record, roofline, summary, systems, timing, torch_systems
from layers import RESNET50, Layer

pytest.importorskip("tqdm")
from bench import layers as bench_layers

TINY = (
    Layer(4, 6, 5, 8, 3, 3, residual=True),
    Layer(3, 15, 15, 8, 7, 7, stride=2),
    Layer(5, 6, 6, 12, 1, 1, stride=2, relu=False),
    Layer(8, 6, 6, 16, 3, 3, stride=2, groups=2),
)
ALL = ("int8", "bf16", "bf16_without_graph", "bf16_blocks", "xla_int8")
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


@pytest.mark.parametrize("layer", TINY, ids=lambda layer: layer.name)
def test_qwix_computes_the_layer(layer):
    pytest.importorskip("qwix")
    data = systems.Data.make(layer, 2)
    ours, qwix = systems.int8(data), systems.qwix(data)
    exact = jax.jit(ours.call)(ours.shared, *ours.own)[..., : layer.k].astype(jnp.int32)
    other = jax.jit(qwix.call)(qwix.shared, *qwix.own).astype(jnp.int32)
    assert jnp.abs(exact - other).max() <= 1


@pytest.mark.parametrize("size", [15, 16])
def test_blocks_of_pixels_compute_the_same(size):
    data = systems.Data.make(Layer(3, size, size, 8, 7, 7, stride=2), 2)
    assert systems.has_blocks(data.layer) and not systems.has_blocks(TINY[0])
    pixels, blocks = systems.bf16(data, graph=True), systems.bf16_blocks(data)
    assert blocks.own[1].shape == (8, 4, 4, 12)
    want, got = (jax.jit(system.call)(system.shared, *system.own) for system in (pixels, blocks))
    assert got.shape == want.shape and got.max() > 0
    want, got = want.astype(jnp.float32), got.astype(jnp.float32)
    assert jnp.allclose(got, want, rtol=0.01, atol=0.01 * want.max())


@pytest.mark.parametrize("layer", TINY, ids=lambda layer: layer.name)
def test_pytorch_computes_the_layer_on_the_same_integers(layer):
    torch = pytest.importorskip("torch")
    data = systems.Data.make(layer, 2)
    jax_bf16 = systems.bf16(data, graph=True)
    want = jax.jit(jax_bf16.call)(jax_bf16.shared, *jax_bf16.own).astype(jnp.float32)
    got = torch_systems.bf16_call(data)(*torch_systems.bf16_operands(data, "cpu"))
    assert got.is_contiguous(memory_format=torch.channels_last)
    got = jnp.asarray(got.permute(0, 2, 3, 1).float().numpy())
    assert jnp.allclose(got, want, rtol=0.01, atol=0.01 * want.max())


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
        assert row[f"{name}_spread"] >= 0
    blocks = ["bf16_blocks"] * (layer.r == 7)
    for name in ("bf16", "bf16_without_graph", "xla_int8", *blocks):
        assert len(row[f"{name}_repeats"]) == len(row["repeats"]) == timing.REPEATS
    assert row["systems"] == list(ALL)
    assert ("bf16_blocks_repeats" in row) == bool(blocks)


@pytest.mark.parametrize(("package", "name"), [("torch", "torch_bf16"), ("qwix", "qwix")])
def test_a_system_that_is_not_installed_says_so(package, name, short, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    row = bench_layers.measure(TINY[0], 1, H200, chosen=["int8", name])
    assert row[f"{name}_error"].startswith("ModuleNotFoundError: ")
    assert package in row[f"{name}_error"] and row["us"] > 0


def test_a_system_that_fails_leaves_its_error_and_the_others_their_times(short, monkeypatch):
    def refuse(*_, **__):
        raise NotImplementedError("no such convolution")

    monkeypatch.setattr(systems, "convolve", refuse)
    row = bench_layers.measure(TINY[0], 1, H200, chosen=ALL)
    for name in ("bf16_error", "bf16_without_graph_error", "xla_int8_error"):
        assert row[name] == "NotImplementedError: no such convolution"
    assert row["us"] > 0 and "bf16_us" not in row and "speedup_vs_bf16" not in row


def test_a_round_is_larger_than_the_cache_and_fits_into_memory():
    assert timing.calls_of_round(1e6) == 120
    assert timing.calls_of_round(50e6) == 16
    assert timing.calls_of_round(400e6) == 5
    assert timing.calls_of_round(5e9) == 2


def test_calls_are_counted_as_custom_calls_and_as_fusions():
    hlo = 'custom_call_target="__cudnn$convForward"\n"kind":"__cudnn$fusion"\n' * 3
    assert timing.count_calls(hlo, "__cudnn$conv") == timing.count_calls(hlo, "__cudnn$fusion") == 3


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
    assert (row["bf16_us"], row["bf16_us_median"], row["bf16_way"]) == (3, 9, "bf16_without_graph")
    assert row["speedup_vs_bf16"] == 3


def test_the_fastest_way_of_pytorch_counts():
    times = {"int8": [2.0], "torch_bf16": [9.0], "torch_bf16_graph": [8.0], "seed": [6.0]}
    row = bench_layers.figures(times, 0.5)
    assert (row["torch_bf16_us"], row["torch_bf16_way"]) == (8, "torch_bf16_graph")
    assert row["torch_bf16_repeats"] == [9]
    assert (row["speedup_vs_torch_bf16"], row["speedup_vs_seed"]) == (4, 3)
    assert "speedup_vs_torch_bf16_graph" not in row


@pytest.fixture
def script(short, monkeypatch, tmp_path):
    """Runs layers.py on tiny layers and returns what it writes."""
    monkeypatch.setattr(bench_layers, "GPUS", {jax.devices()[0].device_kind: H200})
    monkeypatch.setattr(bench_layers, "NETWORKS", {"resnet50": TINY, "other": TINY[1:]})
    found = {"copy_gbps": 3000.0, "int8_tops": 1500.0, "int8_products": []}
    monkeypatch.setattr(ceilings, "measure", lambda: found)
    monkeypatch.setenv("JAX_QCONV_COMMIT", "0123456789abcdef")

    def run(arguments):
        line = f"layers.py {arguments} --out {tmp_path / 'new'}"
        monkeypatch.setattr("sys.argv", line.split())
        assert bench_layers.main() == 0
        (path,) = (tmp_path / "new").iterdir()
        return json.loads(path.read_text())

    return run


def test_the_script_writes_layers_json(script):
    name = TINY[2].name
    results = script(f"--batch 1 2 --layers {name} --systems int8 bf16")
    assert [(row["name"], row["batch"]) for row in results["rows"]] == [(name, 1), (name, 2)]
    assert all({"us", "bf16_us"} < set(row) for row in results["rows"])
    assert {*summary.ORIGIN, "int8_tops", "method", "nominal"} < set(results)
    assert results["device"] == jax.devices()[0].device_kind
    assert results["commit"] == "0123456789abcdef"
    assert results["rows"][0]["suites"] == ["resnet50", "other"]
    (run,) = results["runs"]
    assert {"at", "clocks_before", "clocks_after"} == set(run)


def test_the_script_goes_on(script, monkeypatch):
    first = script(f"--batch 1 --layers {TINY[0].name} --systems int8")
    more = script("--batch 1 --systems int8")
    assert more["rows"][0] == first["rows"][0]
    assert len(more["rows"]) == len(TINY) and len(more["runs"]) == 2
    # A system more: all of them again, by turns.
    both = script(f"--batch 1 --layers {TINY[0].name} --systems bf16")
    assert both["rows"][1:] == more["rows"][1:]
    assert both["rows"][0]["systems"] == ["int8", "bf16"]
    assert both["rows"][0]["repeats"] != first["rows"][0]["repeats"]
    monkeypatch.setenv("JAX_QCONV_COMMIT", "another")
    assert len(script(f"--batch 1 --layers {TINY[0].name} --systems int8")["rows"]) == 1


def test_the_script_that_is_cut_off_leaves_what_it_has(script, monkeypatch, tmp_path):
    measure = bench_layers.measure

    def cut(layer, *args, **kwargs):
        if layer == TINY[2]:
            raise KeyboardInterrupt
        return measure(layer, *args, **kwargs)

    monkeypatch.setattr(bench_layers, "measure", cut)
    with pytest.raises(KeyboardInterrupt):
        script("--batch 1 --systems int8")
    results = json.loads((tmp_path / "new" / "layers.json").read_text())
    assert [row["name"] for row in results["rows"]] == [layer.name for layer in TINY[:2]]


def test_the_layers_of_a_batch_come_before_the_next_batch_each_once():
    found = bench_layers.problems(["resnet50", "resnet50_plain"], [128, 1])
    batches = [batch for *_, batch in found]
    assert batches == [128] * 27 + [1] * 27  # four have a residual, and are there without one too
    assert list(found.values())[:23] == [
        (dataclasses.replace(layer, count=1), 128) for layer in RESNET50
    ]


def test_the_script_needs_a_gpu_whose_speed_it_knows(monkeypatch, tmp_path):
    monkeypatch.setattr(bench_layers, "GPUS", {})
    monkeypatch.setattr("sys.argv", ["layers.py", "--out", str(tmp_path)])
    assert "is not in GPUS" in bench_layers.main()


def test_ceilings(monkeypatch):
    monkeypatch.setattr(ceilings, "PRODUCTS", ((64, 32, 16), (32, 32, 32)))
    monkeypatch.setattr(ceilings, "copy_gbps", functools.partial(ceilings.copy_gbps, 1 << 16, 2))
    monkeypatch.setitem(sys.modules, "torch", None)
    found = ceilings.measure()
    xla = [row["tops"] for row in found["int8_products"] if row["library"] == "xla"]
    errors = [row["error"] for row in found["int8_products"] if row["library"] == "torch"]
    assert found["copy_gbps"] > 0 and found["int8_tops"] == max(xla) > 0
    assert len(xla) == len(errors) == 2 and all("ModuleNotFoundError" in e for e in errors)


@pytest.mark.parametrize("library", ["xla", "torch"])
def test_the_product_is_one_of_integers(library):
    if library == "torch":
        pytest.importorskip("torch")
    m, n, k = 32, 48, 64
    out = ceilings.product(library, m, n, k, device="cpu")()
    a, b = (matrix.astype(np.int32) for matrix in ceilings.matrices(m, n, k))
    assert (np.asarray(out) == a @ b.T).all()


def test_clocks_are_those_of_nvidia_smi(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert record.clocks()["error"].startswith("FileNotFoundError")
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\necho '1980, 2619, 1980, 41, 123.45'\n")
    fake.chmod(0o755)
    names = ("sm_mhz", "memory_mhz", "max_sm_mhz", "celsius", "watts")
    assert record.clocks() == dict(zip(names, (1980, 2619, 1980, 41, 123.45), strict=True))
    fake.write_text("#!/bin/sh\necho '[N/A], 2619, 1980, 41, 123.45'\n")
    assert "could not convert" in record.clocks()["error"]


@pytest.mark.parametrize("name", record.SAME_RUN)
def test_what_another_run_left_is_not_added_to(name, tmp_path):
    head = dict.fromkeys(record.SAME_RUN, "1")
    path = tmp_path / "layers.json"
    assert record.earlier(path, head) is None
    record.write(path, head | {"rows": [1 / 3]})
    assert record.earlier(path, head) == head | {"rows": [0.3333]}
    assert record.earlier(path, head | {name: "2"}) is None


@pytest.mark.parametrize("commit", ["unknown", "0123-dirty"])
def test_what_an_unknown_commit_left_is_not_added_to(commit, tmp_path):
    head = dict.fromkeys(record.SAME_RUN, "1") | {"commit": commit}
    record.write(tmp_path / "layers.json", head)
    assert record.earlier(tmp_path / "layers.json", head) is None
