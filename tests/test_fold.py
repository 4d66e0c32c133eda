"""Scales, bias and bounds folded into the constants of the epilogue."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from effort import examples
from hypothesis import strategies as st

from jax_qconv import Activation
from jax_qconv._fold import Epilogue, fold

SCALES = st.floats(2.0**-20, 2.0**20, width=32)
K, STORED = 5, 8


@st.composite
def arguments(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    per_channel = (2.0 ** rng.uniform(-20, 20, K)).astype(np.float32)
    return {
        "weight_scale": per_channel if draw(st.booleans()) else np.float32(draw(SCALES)),
        "bias": rng.normal(0, 1e3, K).astype(np.float32) if draw(st.booleans()) else None,
        "x_scale": np.float32(draw(SCALES)),
        "out_scale": np.float32(draw(SCALES)) if draw(st.booleans()) else None,
        "residual_scale": np.float32(draw(SCALES)) if draw(st.booleans()) else None,
    }


def folded(activation, **scales):
    """The constants by name, those that are None left out."""
    scales = {name: v if v is None else jnp.asarray(v) for name, v in scales.items()}
    given = dict.fromkeys(("out_zero_point", "residual_zero_point", "slopes")) | scales
    epilogue = Epilogue(
        activation=activation,
        out_dtype="float32" if scales["out_scale"] is None else "int8",
        residual_mode=None if scales["residual_scale"] is None else "add",
        out_zero_point=given["out_zero_point"] is not None,
        residual_zero_point=False,
    )
    constants = fold(epilogue, channels=K, stored=STORED, **given)
    return {name: v for name, v in vars(constants).items() if v is not None}


@hypothesis.given(
    arguments(),
    st.sampled_from([Activation("relu"), Activation.clip(-0.1, 7.7)]),
    st.sampled_from([(), ("out_scale",), ("x_scale", "residual_scale")]),
)
@examples(40)
def test_constants_are_rounded_once_from_float64_traced_or_not(scales, activation, known):
    want = oracle.fold(
        x_scale=scales["x_scale"],
        w_scale=scales["weight_scale"],
        bias=scales["bias"],
        out_scale=scales["out_scale"],
        residual_scale=scales["residual_scale"],
        activation=activation,
    )
    # Some scales may be constants of the traced program.
    constants = {name: scales[name] for name in known}
    traced = jax.jit(lambda scales: folded(activation, **scales | constants))
    for got in (folded(activation, **scales), traced(scales)):
        assert got.keys() == {name for name, v in want.items() if v is not None}
        for name, value in got.items():
            expected = np.asarray(want[name])
            if name in ("m", "b"):
                # Padded channels get zeros.
                expected = np.pad(np.broadcast_to(expected, K), (0, STORED - K))
            oracle.assert_same(value, expected)


def test_a_zero_bound_stays_zero():
    scales = {"weight_scale": 1.0, "bias": None, "x_scale": 1.0, "residual_scale": None}
    relu6 = folded(Activation.clip(0, 6), out_scale=np.float32(0.5), **scales)
    assert (relu6["lower"], relu6["upper"]) == (0, 12)


def test_subnormal_constants_become_zero():
    # Some devices read them as zero and some don't.
    tiny = np.float32(1e-40)
    bias = np.full(K, tiny)
    scales = {"weight_scale": np.float32(1e-20), "bias": bias, "x_scale": np.float32(1e-20)}
    got = folded(Activation.clip(-1e-40, 1e-40), residual_scale=tiny, out_scale=None, **scales)
    assert got.keys() == {"m", "b", "m_r", "lower", "upper"}
    for value in got.values():
        oracle.assert_same(value, np.zeros(value.shape, np.float32))


@pytest.mark.parametrize("bias", [None, np.zeros(K, np.float32)])
def test_no_bias_is_a_bias_of_zero(bias):
    scales = {"weight_scale": 0.5, "x_scale": 0.25, "out_scale": None, "residual_scale": None}
    got = folded(Activation(), bias=bias, **scales)
    np.testing.assert_array_equal(got["b"], np.zeros(STORED))
    np.testing.assert_array_equal(got["m"], [0.125] * K + [0] * (STORED - K))


def test_traced_scales_are_divided_not_multiplied_with_a_reciprocal():
    """With the reciprocal, which XLA likes better, this one comes out one unit higher."""
    scale, x_scale, out_scale = map(
        float.fromhex, ("0x1.4000c4p-9", "0x1.4dea46p-8", "0x1.aaabbp-3")
    )
    scales = {"x_scale": np.float32(x_scale), "out_scale": np.float32(out_scale)}
    scales |= {"weight_scale": np.full(K, scale, np.float32), "bias": None, "residual_scale": None}
    on_the_host = folded(Activation(), **scales)["m"]
    traced = jax.jit(lambda scales: folded(Activation(), bias=None, residual_scale=None, **scales))
    del scales["bias"], scales["residual_scale"]
    oracle.assert_same(traced(scales)["m"], np.asarray(on_the_host))
