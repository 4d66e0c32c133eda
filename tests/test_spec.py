"""The rules about shapes, padding, channels and names."""

import dataclasses
import math

import cases
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_qconv import Activation, _spec
from jax_qconv._activation import as_activation
from jax_qconv._problem import Problem

ANY_CASE = {
    "x_shape": (1, 8, 8, 4),
    "w_shape": (4, 3, 3, 4),
    "strides": (1, 1),
    "padding": "SAME",
    "dilation": (1, 1),
    "groups": 1,
    "out_dtype": "int8",
    "activation": "none",
    "slope": 0.0,
    "residual": False,
}


@hypothesis.given(cases.geometries())
def test_padding_and_output_shape_are_those_of_lax(geometry):
    problem = Problem.make(
        **ANY_CASE
        | {
            "x_shape": geometry.x_shape,
            "w_shape": geometry.w_shape,
            "strides": geometry.strides,
            "dilation": geometry.dilation,
            "padding": _spec.as_padding(geometry.padding, rank=2),
        }
    )
    if isinstance(geometry.pads, str):
        extent = [
            (n - 1) * d + 1 for n, d in zip(geometry.w_shape[1:3], geometry.dilation, strict=True)
        ]
        pads = jax.lax.padtype_to_pads(
            geometry.x_shape[1:3], extent, geometry.strides, geometry.pads
        )
    else:
        pads = geometry.pads
    assert problem.padding == tuple(map(tuple, pads))
    out = jax.eval_shape(
        lambda x, w: jax.lax.conv_general_dilated(
            x,
            w,
            geometry.strides,
            geometry.pads,
            rhs_dilation=geometry.dilation,
            dimension_numbers=("NHWC", "OHWI", "NHWC"),
        ),
        jax.ShapeDtypeStruct(geometry.x_shape, jnp.float32),
        jax.ShapeDtypeStruct(geometry.w_shape, jnp.float32),
    )
    assert problem.out_shape == out.shape
    assert problem.macs == math.prod(out.shape) * math.prod(geometry.w_shape[1:])


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("same", "SAME"),
        ("valid", "VALID"),
        (2, ((2, 2), (2, 2))),
        ((1, 2), ((1, 1), (2, 2))),
        ([[0, 1], [2, 3]], ((0, 1), (2, 3))),
        ((np.int64(1), (0, 1)), ((1, 1), (0, 1))),
    ],
)
def test_padding_forms(said, meant):
    assert _spec.as_padding(said, rank=2) == meant


@pytest.mark.parametrize("padding", [1.0, True, (1,), (1, 2, 3), ((1, 2, 3), 1), None, "AB"])
def test_padding_of_another_form_is_refused(padding):
    with pytest.raises((TypeError, ValueError), match="padding"):
        _spec.as_padding(padding, rank=2)


def test_negative_padding_is_refused():
    with pytest.raises(ValueError, match="padding must be at least 0"):
        _spec.as_padding(((0, -1), 0), rank=2)


def test_an_int_means_both_dimensions():
    assert _spec.as_ints("strides", 2, rank=2, minimum=1) == (2, 2)
    assert _spec.as_ints("strides", [1, 2], rank=2, minimum=1) == (1, 2)


@pytest.mark.parametrize("value", [1.5, True, "2", (1,), (1, 2, 3), (1, 2.0), None])
def test_what_is_no_pair_of_ints_is_refused(value):
    with pytest.raises(TypeError, match="strides must be an int or a pair"):
        _spec.as_ints("strides", value, rank=2, minimum=1)


def test_a_stride_of_zero_is_refused():
    with pytest.raises(ValueError, match="strides must be at least 1"):
        _spec.as_ints("strides", (1, 0), rank=2, minimum=1)


def test_stored_channels_are_enough_aligned_and_stable():
    counts = range(1, 4097)
    stored = [_spec.padded_channels(c) for c in counts]
    assert all(s >= c and s % 4 == 0 for c, s in zip(counts, stored, strict=True))
    assert stored == sorted(stored)
    assert stored == [_spec.padded_channels(s) for s in stored]


@pytest.mark.parametrize(
    ("channels", "stored"),
    [(1, 4), (4, 4), (5, 8), (8, 8), (17, 24), (32, 32), (33, 64), (64, 64), (65, 128)],
)
def test_stored_channels_are_part_of_the_format(channels, stored):
    assert _spec.padded_channels(channels) == stored


def test_activations_have_names():
    assert as_activation(None) == as_activation("none") == Activation()
    assert as_activation("relu") == Activation("relu")
    assert as_activation("relu6") == Activation.clip(0, 6)
    assert as_activation("leaky_relu") == Activation.leaky_relu(0.01)
    clip = Activation.clip(-1, 1)
    assert as_activation(clip) is clip


@pytest.mark.parametrize("activation", ["swoosh", 3, jnp.maximum])
def test_unknown_activations_are_refused(activation):
    with pytest.raises(ValueError, match="is not known; use one of"):
        as_activation(activation)


@pytest.mark.parametrize(("lower", "upper"), [(1, 1), (2, 1), (math.nan, 1), (0, math.nan)])
def test_clip_needs_ordered_bounds(lower, upper):
    with pytest.raises(ValueError, match="lower < upper"):
        Activation.clip(lower, upper)


@pytest.mark.parametrize("slope", [-0.1, math.inf, math.nan])
def test_leaky_relu_needs_a_finite_slope(slope):
    with pytest.raises(ValueError, match="slope must be positive and finite"):
        Activation.leaky_relu(slope)


@pytest.mark.parametrize("name", _spec.OUT_DTYPES)
def test_out_dtypes_come_as_names_types_and_dtypes(name):
    assert _spec.as_out_dtype(name) == name
    assert _spec.as_out_dtype(getattr(jnp, name)) == name
    assert _spec.as_out_dtype(jnp.dtype(name)) == name


@pytest.mark.parametrize("out_dtype", ["uint8", "float64", jnp.uint8, float, 8])
def test_other_out_dtypes_are_refused(out_dtype):
    with pytest.raises(ValueError, match="is not supported; use one of"):
        _spec.as_out_dtype(out_dtype)


def test_a_kernel_larger_than_the_padded_input_is_refused():
    wide = {"x_shape": (1, 8, 3, 4), "padding": ((0, 0), (1, 0)), "dilation": (1, 2)}
    with pytest.raises(ValueError, match=r"kernel width 3 with dilation 2 spans 5 .* 3 \+ 1 \+ 0"):
        Problem.make(**ANY_CASE | wide)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("x", {"x_shape": (2**20, 64, 32, 4)}),
        ("weight", {"w_shape": (2**26, 3, 3, 4)}),
        ("output", {"w_shape": (2**18, 1, 1, 4), "x_shape": (1, 128, 64, 4)}),
    ],
)
def test_tensors_beyond_32_bit_indices_are_refused(name, shapes):
    with pytest.raises(ValueError, match=rf"{name} of shape .* 2\*\*31 - 1"):
        Problem.make(**ANY_CASE | shapes)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"out_dtype": "int32"}, "x w"),
        ({}, "x w m b"),
        ({"residual": True}, "x w m b r m_r"),
        ({"activation": "clip"}, "x w m b lower upper"),
        ({"residual": True, "activation": "clip"}, "x w m b r m_r lower upper"),
        ({"out_dtype": "int32", "offset": "channel"}, "x w z"),
        (
            {"residual": True, "residual_zero_point": True, "activation": "prelu"},
            "x w m b r m_r z_r slopes",
        ),
        ({"activation": "silu", "requantize": True}, "x w m b m_y b_y"),
    ],
)
def test_operands_follow_from_the_epilogue(changes, names):
    assert Problem.make(**ANY_CASE | changes).operand_names == tuple(names.split())


CHANGES = {
    "x_shape": (2, 8, 8, 4),
    "w_shape": (8, 3, 3, 4),
    "strides": (1, 2),
    "padding": ((0, 0), (0, 1)),
    "dilation": (2, 1),
    "groups": 2,
    "out_dtype": "float32",
    "activation": "relu",
    "slope": 0.5,
    "residual": True,
    "offset": "map",
    "residual_zero_point": True,
    "activation_first": True,
    "requantize": True,
}


@pytest.mark.parametrize("field", dataclasses.fields(Problem), ids=lambda field: field.name)
def test_the_text_of_a_problem_tells_all_of_it(field):
    problem = Problem.make(**ANY_CASE)
    other = dataclasses.replace(problem, **{field.name: CHANGES[field.name]})
    assert str(other) != str(problem)
