"""requantize, qactivation and qgelu: functions of one int8 tensor."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import oracle_ops
import pytest
from effort import examples
from hypothesis import strategies as st
from op_cases import SCALES, WIDE_SCALES, ZEROS, check, check_vmap, mapped, plain, qtensors

from jax_qconv import Activation, QTensor, qactivation, qgelu, requantize

ALL = np.arange(-128, 128, dtype=np.int8).reshape(2, 8, 16)
SHAPES = st.sampled_from([(5,), (3, 4), (2, 3, 3, 6), (0, 2, 3)])
SCALE_FREE = st.sampled_from(
    [
        Activation(),
        Activation("relu"),
        Activation.clip(0.0, 6.0),
        Activation.clip(-0.7, 1.3),
        Activation.clip(-np.inf, 2.5),
        Activation.leaky_relu(0.01),
        Activation.leaky_relu(0.5),
        Activation.leaky_relu(3.0),
    ]
)


def everything(scale, zero):
    """A tensor of all integers, beside as many padded channels."""
    values = np.concatenate([ALL, ALL[..., ::-1]], axis=-1)
    return QTensor(
        values, np.float32(scale), None if zero is None else np.int32(zero), ALL.shape[-1]
    )


@hypothesis.given(qtensors(SHAPES), SCALES, ZEROS)
@examples(8)
def test_requantize_is_exact(x, out_scale, out_zero):
    want = oracle_ops.requantize(*plain(x), out_scale, out_zero)
    given = {"out_scale": out_scale, "out_zero_point": out_zero}
    check(requantize, [x], want, out_scale, out_zero, **given)


@hypothesis.given(WIDE_SCALES, ZEROS, WIDE_SCALES, ZEROS, SCALE_FREE)
@examples(8)
def test_scale_free_activations_are_exact(scale, zero, out_scale, out_zero, activation):
    x = everything(scale, zero)
    want = oracle_ops.requantize(ALL, scale, zero, out_scale, out_zero, activation)
    call = functools.partial(qactivation, activation=activation)
    given = {"out_scale": out_scale, "out_zero_point": out_zero}
    check(call, [x], want, out_scale, out_zero, **given)


@pytest.mark.parametrize("name", oracle_ops.REAL)
@hypothesis.given(WIDE_SCALES, ZEROS, SCALES, ZEROS)
@examples(8)
def test_other_activations_are_right_but_for_near_ties(name, scale, zero, out_scale, out_zero):
    x = everything(scale, zero)
    exact = oracle_ops.real_activation(ALL, scale, zero, out_scale, out_zero, name)
    # Each bound is rounded by itself: they differ where rounding may go either way.
    # Two roundings to float32.
    slack = 2.0**-22 * np.maximum(np.abs(exact), 256)
    low, high = (np.clip(np.rint(exact + d), -128, 127).astype(np.int8) for d in (-slack, slack))
    given = {"out_scale": np.float32(out_scale), "out_zero_point": out_zero}
    traced = jax.jit(functools.partial(qactivation, activation=name))
    for call in (functools.partial(qactivation, activation=name), traced):
        got = np.asarray(call(x, **given).unpadded())
        assert ((low <= got) & (got <= high)).all()


@pytest.mark.parametrize("name", ["hard_sigmoid", "hard_swish"])
@hypothesis.given(SCALES, ZEROS, SCALES, ZEROS)
@examples(8)
def test_hard_activations_are_exact(name, scale, zero, out_scale, out_zero):
    want = oracle_ops.hard(ALL, scale, zero, out_scale, out_zero, name)
    call = functools.partial(qactivation, activation=name)
    given = {"out_scale": out_scale, "out_zero_point": out_zero}
    check(call, [everything(scale, zero)], want, out_scale, out_zero, **given)


@pytest.mark.parametrize(
    ("q", "ratio", "zero", "want"),
    [
        (1, 0.5, 0, 0), (3, 0.5, 0, 2), (-1, 0.5, 0, 0), (-3, 0.5, 0, -2), (5, 0.5, 0, 2),
        (1, 0.5, 1, 2), (-128, 1.0, 0, -128), (-128, 2.0, 0, -128), (127, 2.0, 0, 127),
        (127, 1.0, 1, 127), (-128, 1.0, -1, -128), (0, 2.0**250, 5, 5), (1, 2.0**250, 5, 127),
        (-1, 2.0**250, 5, -128), (127, 2.0**-250, 5, 5),
    ],
)  # fmt: skip
def test_ties_go_to_even_after_the_zero_point_and_extremes_saturate(q, ratio, zero, want):
    scale, out_scale = np.float32(2.0 ** (np.log2(ratio) / 2)), 1 / np.sqrt(ratio)
    x = QTensor(np.full(4, q, np.int8), scale)
    if ratio in (0.5, 2.0):
        x, out_scale = QTensor(x.values, np.float32(ratio)), 1.0
    for call in (requantize, jax.jit(requantize)):
        got = call(x, out_scale=np.float32(out_scale), out_zero_point=zero)
        assert got.values.tolist() == [want] * 4


def test_a_product_is_rounded_once():
    # In float32 q * m is the tie 12.5, which goes to 12; the exact product is above it.
    q, m = next(
        (q, m)
        for q in range(26, 127)
        for m in (np.float32(12.5) / np.float32(q), np.nextafter(np.float32(12.5 / q), 1))
        if np.float32(q) * m == 12.5 and q * np.float64(m) > 12.5
    )
    x = QTensor(np.full(4, q, np.int8), m)
    for call in (requantize, jax.jit(requantize)):
        assert call(x, out_scale=np.float32(1)).values.tolist() == [13] * 4


def test_requantizing_to_the_same_scale_changes_nothing():
    x = everything(0.3, 5)
    assert requantize(x, out_scale=np.float32(0.3), out_zero_point=5).values is not None
    for call in (requantize, jax.jit(requantize)):
        got = call(x, out_scale=np.float32(0.3), out_zero_point=5)
        np.testing.assert_array_equal(got.unpadded(), ALL)


def test_names_and_activations_are_the_same():
    x = everything(0.05, -3)

    def call(activation):
        return np.asarray(qactivation(x, activation, out_scale=0.04).values)

    np.testing.assert_array_equal(call("relu"), call(Activation("relu")))
    np.testing.assert_array_equal(call("relu6"), call(Activation.clip(0, 6)))
    np.testing.assert_array_equal(call("leaky_relu"), call(Activation.leaky_relu()))
    np.testing.assert_array_equal(call(None), requantize(x, out_scale=0.04).values)
    np.testing.assert_array_equal(call("gelu_tanh"), qgelu(x, out_scale=0.04).values)
    exact = qgelu(x, out_scale=0.04, approximate=False)
    np.testing.assert_array_equal(call("gelu"), exact.values)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("gelu", functools.partial(jax.nn.gelu, approximate=False)),
        ("gelu_tanh", jax.nn.gelu),
        ("silu", jax.nn.silu),
        ("sigmoid", jax.nn.sigmoid),
        ("tanh", jnp.tanh),
        ("hard_sigmoid", jax.nn.hard_sigmoid),
        ("hard_swish", jax.nn.hard_swish),
    ],
)
def test_activations_are_those_of_jax(name, function):
    x = everything(0.05, 10)
    want = np.asarray(function((ALL.astype(np.float32) - 10) * np.float32(0.05))) / 0.06
    got = qactivation(x, name, out_scale=0.06).unpadded()
    assert np.abs(np.asarray(got, np.float64) - want).max() < 0.5001


def test_vmap_over_values_and_over_scales():
    check_vmap(lambda x: requantize(x, out_scale=0.7, out_zero_point=-2), mapped(0, 3, 5))
    check_vmap(lambda x: qactivation(x, "silu", out_scale=0.7), mapped(1, 3, 5, zero=None))
    x, scales = mapped(2, 3, 5), jnp.float32([0.1, 0.5, 2.0])
    got = jax.vmap(lambda s: requantize(x, out_scale=s).values)(scales)
    for index, scale in enumerate(scales):
        np.testing.assert_array_equal(got[index], requantize(x, out_scale=scale).values)


def test_a_new_scale_recompiles_nothing():
    call = jax.jit(lambda x, s: qactivation(x, "silu", out_scale=s, out_zero_point=3))
    for scale in (0.5, 0.25, 0.125):
        call(everything(scale, 1), scale)
    assert call._cache_size() == 1


def test_constant_scales_make_no_table_in_the_program():
    text = jax.jit(lambda v: qgelu(QTensor(v, 0.1, 3), out_scale=0.3).values).lower(ALL).as_text()
    assert "f64" not in text and "gather" in text
