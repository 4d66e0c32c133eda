"""What XLA compiles other kinds of convolution to on an H100, beside the custom call."""

from __future__ import annotations

import h100
import jax.numpy as jnp
import pytest

import jax_qconv as q


def compiled(x_shape, w_shape, *, pack=None, call=None, **bind):
    """Instructions of a bound call, to int8 unless told otherwise."""
    packed = q.prepack(jnp.ones(w_shape), **pack or {})
    packed = packed.bind(**{"x_scale": 0.1, "out_scale": 0.1} | bind)
    zero_point = bind.get("x_zero_point") and jnp.int32(bind["x_zero_point"])
    x = q.QTensor(jnp.ones(x_shape, jnp.int8), jnp.float32(0.1), zero_point)

    def run(x, packed):
        return (call or q.qconv)(x, packed).values

    return h100.instructions(h100.compile(run, *h100.shapes((x, packed))))


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "pack"),
    [
        ((8, 512, 64), (3, 64, 64), {}),
        ((8, 8, 14, 14, 64), (3, 3, 3, 64, 64), {}),
        ((14, 14, 64), (3, 3, 64, 64), {}),
        ((512, 64), (3, 64, 64), {}),
        ((8, 14, 14, 64), (3, 3, 8, 64), {"groups": 8}),
        ((8, 14, 14, 64), (3, 3, 16, 64), {"groups": 4, "merge_groups": 2}),
    ],
    ids=["1-D", "3-D", "unbatched", "unbatched-1-D", "merged", "partly-merged"],
)
def test_one_custom_call_and_nothing_else(x_shape, w_shape, pack):
    assert compiled(x_shape, w_shape, pack=pack) == ["custom-call"]


@pytest.mark.parametrize(("padding", "before"), [("SAME", ["pad"]), ("VALID", [])])
def test_a_zero_point_costs_one_pass_over_a_padded_input_and_else_nothing(padding, before):
    bind = {"x_zero_point": 3, "out_zero_point": -5, "activation": "relu"}
    found = compiled((8, 14, 14, 64), (3, 3, 64, 64), pack={"padding": padding}, **bind)
    assert len(found) == len(before) + 1 and found[-1] == "custom-call"


def test_a_depthwise_zero_point_bound_for_a_size_costs_nothing_beside_the_call():
    bind = {"x_zero_point": 3, "out_zero_point": -5, "activation": "relu", "input_size": 14}
    found = compiled((8, 14, 14, 64), (3, 3, 1, 64), pack={"groups": 64}, **bind)
    assert found == ["custom-call"]


def test_without_a_size_a_depthwise_border_is_small_work_before_the_call():
    pack = {"groups": 64}
    found = compiled((8, 14, 14, 64), (3, 3, 1, 64), pack=pack, x_zero_point=3)
    assert found.count("custom-call") == 1 and found[-1] == "custom-call"
    assert len(found) <= 4


@pytest.mark.parametrize("kernel", [2, 3, 4])
def test_a_transposed_convolution_is_a_call_and_one_pass_over_its_output(kernel):
    found = compiled(
        (8, 16, 16, 64), (kernel, kernel, 64, 64), pack={"strides": 2, "transpose": True}
    )
    assert found[0] == "custom-call" and len(found) == 2


def test_floats_are_quantised_by_one_kernel():
    packed = q.prepack(jnp.ones((3, 3, 64, 64))).bind(x_scale=0.1, out_scale=0.1)
    x = jnp.ones((8, 14, 14, 64), jnp.bfloat16)
    hlo = h100.compile(lambda x, p: q.qconv(x, p).values, *h100.shapes((x, packed)))
    found = h100.instructions(hlo)
    assert found[-1] == "custom-call" and set(found[:-1]) == {"fusion"}
    # One over the data; the reciprocal of the scale, a scalar, may be one of its own.
    assert len(found) <= 3


def test_a_linear_layer_is_one_custom_call():
    packed = q.prepack_linear(jnp.ones((64, 128))).bind(x_scale=0.1, out_scale=0.1)
    x = q.QTensor(jnp.ones((8, 32, 64), jnp.int8), jnp.float32(0.1))
    hlo = h100.compile(lambda x, p: q.qlinear(x, p).values, *h100.shapes((x, packed)))
    assert h100.instructions(hlo) == ["custom-call"]
