"""The benchmarks of other kinds of convolution compute what they say, and write it down."""

from __future__ import annotations

import collections
import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bench import ceilings, kind_convs, kind_summary, kind_systems, roofline, timing
from bench.kind_convs import KINDS, Conv

pytest.importorskip("tqdm")
from bench import kinds

from jax_qconv import _groups

H200 = roofline.GPUS["NVIDIA H200"]
NARROW = Conv(12, 7, 12, 3, 2, groups=12, activation="relu6")
TINY = {
    "depthwise": (NARROW, Conv(36, 6, 36, 5, groups=36, activation="relu6")),
    "transposed": (
        Conv(8, 5, 6, 2, 2, padding=0, transpose=True, activation=None),
        Conv(8, 5, 4, 4, 2, padding=1, transpose=True),
        Conv(8, 5, 6, 3, 2, padding=1, transpose=True, output_padding=1),
    ),
    "groups": (Conv(32, 6, 32, 3, padding=1, groups=8), Conv(32, 6, 32, 3, 2, padding=1, groups=2)),
    "zero_points": (
        Conv(8, 6, 8, 3, padding=1, zero_point=True),
        Conv(8, 6, 12, 1, padding=0, residual=True, zero_point=True),
    ),
}
ALL = [(kind, conv) for kind, convs in TINY.items() for conv in convs]
each = pytest.mark.parametrize(("kind", "conv"), ALL, ids=lambda of: getattr(of, "name", of))


@pytest.fixture
def short(monkeypatch):
    """Programs of a millisecond."""
    for name, value in {"ROUND_BYTES": 1, "MIN_CALLS": 3, "PROGRAM_SECONDS": 1e-5}.items():
        monkeypatch.setattr(timing, name, value)


def run(system):
    return jax.jit(system.call)(system.shared, *system.own)


def test_the_convolutions_are_those_of_the_networks():
    counts = collections.Counter(kind for kind, convs in KINDS.items() for _ in convs)
    assert counts == {"depthwise": 19, "transposed": 12, "groups": 15, "zero_points": 4}
    for kind, convs in KINDS.items():
        assert len({conv.name for conv in convs}) == len(convs), kind
    outs = {conv.name: conv.out_size for convs in KINDS.values() for conv in convs}
    assert outs["144x56x56_5x5_s2_g144"] == 28
    assert outs["128x128x128_2x2_to64_s2_transposed"] == 256
    assert outs["128x32x32_4x4_to3_s2_transposed"] == 64
    assert outs["64x128x128_3x3_to32_s2_transposed"] == 256
    assert outs["1024x14x14_3x3_s2_g32"] == 7
    assert set(kind_convs.BATCHES) == set(KINDS)


def test_the_grouped_ones_are_those_that_resnext50_has():
    from layers import NETWORKS

    grouped = (layer for layer in NETWORKS["resnext50"] if layer.groups > 1)
    listed = {conv.name for conv in KINDS["groups"] if conv.groups == 32}
    assert {layer.name for layer in grouped} == listed


def test_the_depthwise_ones_are_those_that_efficientnet_has():
    from bench.efficientnet_net import CONVS

    size, found = 112, set()
    for conv in CONVS[1:]:
        if conv.groups > 1:
            found.add((conv.c, size, conv.kernel, conv.stride))
        size = -(-size // conv.stride)
    listed = {(conv.c, conv.size, conv.kernel, conv.stride) for conv in KINDS["depthwise"]}
    assert size == 7 and found < listed
    # What MobileNet-v2 has beside them.
    assert {c for c, *_ in listed - found} == {144, 192, 384, 576, 960}


@each
def test_bytes_and_operations_are_those_of_the_arrays(kind, conv):
    system = kind_systems.bf16(kind_systems.Data.make(conv, 2))
    (x, weight, residual), out = system.own, system.output
    assert out.shape == (2, conv.out_size, conv.out_size, conv.k)
    arrays = [x, weight, out, *([] if residual is None else [residual])]
    assert conv.nbytes(2) == sum(array.size for array in arrays)
    pixels = (x if conv.transpose else out).size // (conv.c if conv.transpose else conv.k)
    assert conv.operations(2) == 2 * pixels * weight.size


def test_known_figures():
    (conv,) = (c for c in KINDS["depthwise"] if c.name == "144x56x56_3x3_g144")
    assert conv.nbytes(128) == 2 * 128 * 56 * 56 * 144 + 144 * 9
    (conv,) = (c for c in KINDS["transposed"] if c.name == "256x64x64_2x2_to128_s2_transposed")
    assert conv.operations(1) == 2 * 64 * 64 * 256 * 128 * 4


@each
def test_outputs_spread_over_the_range(kind, conv):
    system = kind_systems.int8(kind_systems.Data.make(conv, 2))
    values = np.unique(np.asarray(run(system))[..., : conv.k])
    low, high = {"relu6": (0, 100), "relu": (0, 127), None: (-128, 127)}[conv.activation]
    assert (values.min(), values.max()) == (low, high) and len(values) > 60


@each
def test_every_system_computes_the_same(kind, conv):
    data = kind_systems.Data.make(conv, 2)
    exact = np.asarray(run(kind_systems.int8(data)))[..., : conv.k]
    real = np.float32(kind_systems.OUT_SCALE) * exact
    for name, make in kind_systems.of_kind(kind, conv).items():
        out = np.asarray(run(make(data)).astype(jnp.float32))[..., : conv.k]
        if name == "int8_symmetric":
            assert (out != exact).any()
        elif name.startswith("int8"):
            assert (out == exact).all(), name
        else:
            # int8 saturates; bfloat16 rounds coarsely.
            out = np.clip(out, *(kind_systems.OUT_SCALE * end for end in (-128, 127)))
            np.testing.assert_allclose(out, real, atol=0.15, err_msg=name)


def test_systems_are_those_that_the_kind_can_have():
    def names(kind, index):
        return list(kind_systems.of_kind(kind, TINY[kind][index]))

    bf16 = ["bf16", "bf16_without_graph"]
    ours = ["int8", "int8_merged", "int8_unpadded"]
    assert names("depthwise", 0) == [*ours, "bf16_shifts", *bf16]
    merges = ["int8_merge_1", "int8_merge_2", "int8_merge_4"]
    assert names("groups", 0) == ["int8", *merges, *bf16]  # the rule merges all eight
    assert names("groups", 1) == ["int8", "int8_merge_1", *bf16]
    assert names("zero_points", 0) == ["int8", "int8_symmetric"]
    flipped = ["bf16_flipped", "bf16_flipped_without_graph"]
    assert names("transposed", 0) == ["int8", "bf16", *flipped]
    # Every layer has a rival of dense blocks, and all merges of groups can be packed.
    for conv in KINDS["depthwise"]:
        assert "int8_merged" in kind_systems.of_kind("depthwise", conv)
    assert all(1 in _groups.allowed_merges(conv.c, conv.k, conv.groups) for conv in KINDS["groups"])


@pytest.mark.parametrize("conv", TINY["zero_points"])
def test_a_zero_point_is_corrected_beforehand(conv):
    packed = kind_systems.Data.make(conv, 1).packed()
    assert packed.binding.offset.shape == (packed.stored_channels[1],)


@each
def test_a_row_has_every_system_and_counts_what_is_wrong(kind, conv, short):
    row = kinds.measure(kind, conv, 2, H200)
    assert kinds.wrong(row) == []
    assert list(row["systems"]) == list(kind_systems.of_kind(kind, conv))
    assert (row["kind"], row["name"], row["bytes"]) == (kind, conv.name, conv.nbytes(2))
    for name, found in row["systems"].items():
        assert len(found["repeats"]) == timing.REPEATS and min(found["repeats"]) == found["us"] > 0
        if name.startswith("int8"):
            outputs = 3 * 2 * conv.out_size**2 * conv.k
            assert (found["elements_compared"], found["elements_wrong"]) == (outputs, 0)


def test_a_wrong_output_is_told(short, monkeypatch):
    real = kind_systems.int8

    def one_off(data, *, merge_groups=None, **form):
        system = real(data, merge_groups=merge_groups, **form)
        if merge_groups != 2:
            return system
        call = system.call
        return dataclasses.replace(system, call=lambda *args: call(*args).at[0, 1, 2, 3].add(1))

    monkeypatch.setattr(kind_systems, "int8", one_off)
    row = kinds.measure("groups", TINY["groups"][0], 2, H200)
    assert kinds.wrong(row) == ["int8_merge_2"]
    assert row["systems"]["int8_merge_2"]["elements_wrong"] == 1  # in each call the same


def test_a_system_that_fails_leaves_its_error_and_the_others_their_times(short, monkeypatch):
    def refuse(*_, **__):
        raise NotImplementedError("no such convolution")

    monkeypatch.setattr(kind_systems.systems, "convolve", refuse)
    row = kinds.measure("depthwise", NARROW, 1, H200)
    assert row["systems"]["bf16"] == {"error": "NotImplementedError: no such convolution"}
    assert row["systems"]["bf16_shifts"]["us"] > 0 and row["systems"]["int8"]["us"] > 0
    found = kind_summary.comparisons(row | {"copy_gbps": 1000.0})
    assert "speedup_vs_jax_bf16" not in found and "speedup_vs_jax_bf16_shifts" in found


def test_slow_systems_are_executed_less_often(monkeypatch):
    executed = []

    class Slow:
        def execute(self, times):
            executed.append(times)
            return 1.0

    now = iter(range(100))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: 0.4 * next(now))
    timing.by_turns({"slow": Slow()})
    assert executed == [1] + [2] * timing.REPEATS


def test_every_kind_has_its_turn_before_further_batch_sizes():
    found = list(dict.fromkeys((kind, batch) for kind, _, batch in kinds.chosen(list(KINDS), None)))
    assert found == [
        ("depthwise", 128),
        ("transposed", 32),
        ("groups", 32),
        ("zero_points", 128),
        ("depthwise", 32),
        ("transposed", 1),
    ]
    assert len(list(kinds.chosen(["zero_points"], [1, 8]))) == 8


@pytest.fixture
def script(short, monkeypatch, tmp_path):
    """Runs kinds.py on tiny convolutions and returns what it writes."""
    monkeypatch.setattr(kinds, "GPUS", {jax.devices()[0].device_kind: H200})
    monkeypatch.setattr(kinds, "KINDS", TINY)
    monkeypatch.setattr(kinds, "BATCHES", dict.fromkeys(TINY, (2,)))
    monkeypatch.setattr(ceilings, "copy_gbps", lambda: 3000.0)
    monkeypatch.setenv("JAX_QCONV_COMMIT", "0123456789abcdef")

    def run(arguments):
        monkeypatch.setattr("sys.argv", f"kinds.py {arguments} --out {tmp_path / 'new'}".split())
        assert kinds.main() == 0
        (path,) = (tmp_path / "new").iterdir()
        return json.loads(path.read_text())

    return run


def test_the_script_writes_kinds_json_and_goes_on(script, monkeypatch):
    first = script("--kinds zero_points")
    assert [row["name"] for row in first["rows"]] == [c.name for c in TINY["zero_points"]]
    assert {"device", "driver", "jax", "cudnn", "commit", "method", "nominal"} < set(first)
    assert first["rows"][0]["copy_gbps"] == first["runs"][0]["copy_gbps"] == 3000
    assert {"at", "clocks_before", "clocks_after", "copy_gbps"} == set(first["runs"][0])
    name = TINY["transposed"][0].name
    more = script(f"--kinds zero_points transposed --convs {name}")
    assert more["rows"][:2] == first["rows"] and len(more["rows"]) == 3 and len(more["runs"]) == 2
    # With plans that are chosen otherwise it is another measurement.
    again = script(f"--kinds transposed --convs {name} --autotune on")
    assert again["rows"][:2] == first["rows"] and again["rows"][2]["autotune"] == "on"
    monkeypatch.setenv("JAX_QCONV_COMMIT", "another")
    assert len(script("--kinds zero_points")["rows"]) == 2


def test_the_script_needs_a_gpu_whose_speed_it_knows(monkeypatch, tmp_path):
    monkeypatch.setattr(kinds, "GPUS", {})
    monkeypatch.setattr("sys.argv", ["kinds.py", "--out", str(tmp_path)])
    assert "is not in GPUS" in kinds.main()


def row(kind, name, batch=32, **systems):
    found = {key: of if isinstance(of, dict) else {"us": of} for key, of in systems.items()}
    found["int8"] = {"exact": True, "elements_compared": 10, "elements_wrong": 0} | found["int8"]
    sizes = {"bytes": 6e6, "copy_gbps": 3000.0, "roofline_us": 1.0}
    return {"kind": kind, "name": name, "batch": batch, "systems": found} | sizes


def test_depthwise_is_compared_with_a_copy_and_with_the_fastest_bf16():
    rows = [
        row("depthwise", "a", 128, int8=4.0, bf16=9.0, bf16_without_graph=8.0, bf16_shifts=6.0),
        row("depthwise", "b", 128, int8=10.0, bf16=5.0, int8_merged=20.0, int8_unpadded=8.0),
        row("depthwise", "a", 32, int8={"error": "no"}, bf16=9.0),
    ]
    found = kind_summary.summarise({"rows": rows})
    # 6 MB in 4 and in 10 us, of 3000 GB/s
    assert found["depthwise.b128.min_share_of_copy_bandwidth"] == 0.2
    assert found["depthwise.b128.a.share_of_copy_bandwidth"] == 0.5
    assert found["depthwise.b128.geomean_speedup_vs_jax_bf16"] == 1  # of 2 and a half
    assert found["depthwise.b128.min_speedup_vs_jax_bf16"] == 0.5
    assert found["depthwise.b128.geomean_speedup_vs_jax_bf16_shifts"] == 1.5
    assert found["depthwise.b128.geomean_speedup_vs_merged"] == 2
    assert found["depthwise.b128.geomean_speedup_vs_unpadded"] == 0.8
    assert (found["depthwise.layers"], found["depthwise.b32.layers"]) == (3, 1)
    assert "depthwise.b32.geomean_speedup_vs_jax_bf16" not in found


def test_groups_are_compared_with_cudnns_own_kernel_and_the_best_merge():
    def merged(merge, us):
        return {"merge": merge, "us": us}

    rows = [
        row("groups", "a", int8=merged(8, 4.0), int8_merge_1=merged(1, 8.0)),
        row("groups", "b", int8=merged(1, 6.0), int8_merge_2=merged(2, 3.0), bf16=12.0),
    ]
    found = kind_summary.summarise({"rows": rows})
    assert found["groups.geomean_speedup_vs_cudnn_grouped"] == round(math.sqrt(2), 4)
    assert found["groups.b32.b.merge_by_rule"] == 1 and found["groups.b32.b.best_merge"] == 2
    assert (found["groups.b32.a.best_merge"], found["groups.b32.b.best_us"]) == (8, 3)
    assert found["groups.max_over_best_merge"] == 2
    assert found["groups.b32.geomean_over_best_merge"] == round(math.sqrt(2), 4)


def test_the_other_kinds_have_their_figure_over_all_batch_sizes():
    rows = [
        row("transposed", "a", 32, int8=2.0, bf16=8.0, bf16_flipped=4.0),
        row("transposed", "a", 1, int8=2.0, bf16=1.0),
        row("zero_points", "a", 128, int8=3.0, int8_symmetric=2.0),
    ]
    found = kind_summary.summarise({"rows": rows})
    assert found["transposed.geomean_speedup_vs_jax_bf16"] == 1
    assert found["transposed.b32.geomean_speedup_vs_jax_bf16"] == 2
    assert found["zero_points.geomean_slowdown"] == found["zero_points.max_slowdown"] == 1.5
    assert kind_summary.outputs({"rows": rows}, "elements_compared") == 30


def test_the_depthwise_sum_of_shifts_is_a_convolution():
    rng = np.random.default_rng(0)
    weight = jnp.asarray(rng.normal(size=(4, 5, 5, 1)), jnp.float32)
    for size, stride in ((7, 1), (7, 2), (8, 2)):
        x = jnp.asarray(rng.normal(size=(2, size, size, 4)), jnp.float32)
        want = kind_systems.systems.convolve(
            x, weight, stride=stride, padding="SAME", feature_group_count=4
        )
        got = kind_systems.systems.depthwise_by_shifts(x, weight, stride=stride)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
