"""What XLA compiles a convolution to on an H100: one custom call, and nothing beside it."""

from __future__ import annotations

import h100
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jax_qconv as q
from jax_qconv._problem import Problem

CHANNELS = 64


@pytest.fixture(scope="module")
def net():
    """An input and a bound pack whose output can be its input again."""
    x = q.quantize(jnp.ones((8, 56, 56, CHANNELS)), 0.1)
    weight = jnp.ones((3, 3, CHANNELS, CHANNELS))
    packed = q.prepack(weight).bind(x_scale=0.1, out_scale=0.1, activation="relu")
    return x, packed


def values(function):
    """Return int8 values only: a scale passed through would be a copy of its own."""
    return lambda *args: function(*args).values


def test_a_bound_convolution_is_one_custom_call(net):
    hlo = h100.compile(values(q.qconv), *h100.shapes(net))
    assert h100.instructions(hlo) == ["custom-call"]
    assert 'custom_call_target="jax_qconv.conv"' in hlo


@pytest.mark.parametrize("activation", ["none", "relu6", "leaky_relu"])
@pytest.mark.parametrize("out_dtype", ["int8", "float32", "bfloat16", "float16"])
def test_every_epilogue_is_inside_the_custom_call(net, activation, out_dtype):
    x, packed = net
    bound = packed.bind(
        x_scale=0.1,
        residual_scale=0.1,
        activation=activation,
        out_dtype=out_dtype,
        out_scale=0.1 if out_dtype == "int8" else None,
    )

    def block(x, bound):
        out = q.qconv(x, bound, residual=x)
        return out.values if isinstance(out, q.QTensor) else out

    assert h100.instructions(h100.compile(block, *h100.shapes((x, bound)))) == ["custom-call"]


def test_a_depthwise_convolution_is_one_custom_call_whose_plan_each_device_chooses(net):
    x, _ = net
    packed = q.prepack(jnp.ones((3, 3, 1, CHANNELS)), groups=CHANNELS)
    hlo = h100.compile(values(q.qconv), *h100.shapes((x, packed.bind(x_scale=0.1, out_scale=0.1))))
    assert h100.instructions(hlo) == ["custom-call"]
    assert f"groups={CHANNELS}" in hlo and 'plan = "auto"' in hlo


def test_the_accumulator_is_one_custom_call(net):
    x, _ = net
    packed = q.prepack(jnp.ones((3, 3, CHANNELS, CHANNELS)))
    hlo = h100.compile(
        lambda x, p: q.qconv(x, p, out_dtype="int32"), *h100.shapes((x.values, packed))
    )
    assert h100.instructions(hlo) == ["custom-call"]


def test_folding_in_the_program_adds_only_small_fusions(net):
    x, _ = net
    packed = q.prepack(jnp.ones((3, 3, CHANNELS, CHANNELS)), jnp.ones(CHANNELS))

    def unbound(x, packed, out_scale):
        return q.qconv(x, packed, out_scale=out_scale).values

    hlo = h100.compile(unbound, *h100.shapes((x, packed, jnp.float32(0.1))))
    others = [op for op in h100.instructions(hlo) if op != "custom-call"]
    assert set(others) == {"fusion"} and len(others) == 2  # m and b, K numbers each
    # IEEE float64 divisions, not products with a reciprocal.
    assert "f64" in hlo and "divide" in hlo


def test_a_constant_out_scale_is_still_divided_by(net):
    x, _ = net
    packed = q.prepack(jnp.ones((3, 3, CHANNELS, CHANNELS)), jnp.ones(CHANNELS))
    hlo = h100.compile(
        lambda x, packed: q.qconv(x, packed, out_scale=0.3).values, *h100.shapes((x, packed))
    )
    assert "divide" in hlo


def test_reference_rounds_to_float32_where_xla_may_keep_excess_precision(net):
    x, packed = net
    hlo = h100.compile(
        lambda x, p: q.qconv(x, p, implementation="reference").values, *h100.shapes((x, packed))
    )
    assert "custom_call_target" not in hlo or "jax_qconv.conv" not in hlo
    assert "reduce-precision" in hlo


def test_six_calls_in_a_row_are_one_cuda_graph(net, tmp_path):
    def chain(x, packed):
        for _ in range(6):
            x = q.qconv(x, packed)
        return x.values

    hlo = h100.compile(chain, *h100.shapes(net), dump_to=tmp_path)
    assert h100.instructions(hlo) == ["custom-call"] * 6
    (dump,) = tmp_path.glob("*thunk_sequence_after_thunk_passes.txt")
    thunks = [line.split()[1] for line in dump.read_text().splitlines() if line.strip()]
    assert thunks == ["kCommandBuffer"] + ["kCustomCall"] * 6


def test_batch_sharding_needs_no_communication(net):
    x, packed = net
    sharded = jax.shard_map(
        q.qconv,
        mesh=h100.mesh(2),
        in_specs=(x.specs(P("x")), P()),
        out_specs=x.specs(P("x")),
    )
    hlo = h100.compile(
        values(sharded),
        q.QTensor(h100.shapes(x.values, P("x"), 2), h100.shapes(x.scale, P(), 2), None, CHANNELS),
        h100.shapes(packed, P(), 2),
    )
    assert h100.instructions(hlo) == ["custom-call"]
    assert "all-" not in hlo


def test_the_plan_travels_as_an_attribute(net):
    hlo = h100.compile(lambda x, p: q.qconv(x, p, plan="cudnn:4:cfg=26").values, *h100.shapes(net))
    assert "cudnn:4:cfg=26" in hlo and "pinned = true" in hlo
    assert "strides=1,1" in hlo  # the problem, in words


def test_a_name_that_is_no_plan_is_refused_when_lowering(net):
    with pytest.raises(ValueError, match="names no known engine"):
        h100.compile(lambda x, p: q.qconv(x, p, plan="magic:1").values, *h100.shapes(net))


def test_both_sides_speak_of_the_same_schema():
    assert q._native.extension().versions()["schema"] == q._native.SCHEMA


def test_instantiate_refuses_a_schema_of_another_version(net, monkeypatch):
    monkeypatch.setattr(q._native, "SCHEMA", 2)
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"schema 2 .* compile it again"):
        h100.compile(values(q.qconv), *h100.shapes(net))


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("x=0,56,56,64", "between 1 and"),
        ("strides=0,1", "strides=0,1 must be 2 integers between 1"),
        ("out=int4", "out=int4 must be one of"),
        ("activation=swish", "activation=swish must be one of"),
        ("groups=2", "w has 64 input channels and x has 64 in 2 groups"),
        ("groups=3", "groups=3 must divide the 64 input and 64 output channels"),
        ("offset=row", "offset=row must be one of"),
        ("requantize=2", "requantize=2 must be one of"),
        ("w=64,3,3,32", "w has 32 input channels and x has 64"),
        ("w=64,99,3,64", "kernel is larger"),
        ("x=9,56,56,64", r"operand 'x' is S8\[8,56,56,64\].* needs S8\[9,56,56,64\]"),
        ("colour=blue", "'colour' is not known"),
    ],
)
def test_instantiate_says_what_is_wrong_with_a_problem(net, monkeypatch, field, message):
    name = field.split("=")[0] + "="
    to_text = Problem.__str__

    def altered(problem):
        words = [w for w in to_text(problem).split() if not w.startswith(name)]
        return " ".join([*words, field])

    monkeypatch.setattr(Problem, "__str__", altered)
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        h100.compile(values(q.qconv), *h100.shapes(net))
    monkeypatch.undo()
    h100.compile(values(q.qconv), *h100.shapes(net))


def test_padded_channels_are_no_operation(net):
    x = q.quantize(jnp.ones((1, 8, 8, 3)), 0.1)
    packed = q.prepack(np.ones((3, 3, 3, 10), np.float32)).bind(x_scale=0.1, out_scale=0.1)
    hlo = h100.compile(values(q.qconv), *h100.shapes((x, packed)))
    assert h100.instructions(hlo) == ["custom-call"]
