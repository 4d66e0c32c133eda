"""Scales are refused by name, or taken as any kind of number; so are weights and biases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from good_arguments import good_arguments

from jax_qconv import QTensor, dequantize, prepack, qconv, quantize

WHERE = {"eager": lambda call: call(), "tracing": jax.eval_shape}


@pytest.fixture(scope="module")
def good():
    return good_arguments()


# Who takes a scale, by the name it must be refused with.
SCALED = {
    "x_scale": lambda g, s: qconv(QTensor(g.x, s), g.packed),
    "x_scale-bound": lambda g, s: g.packed.bind(x_scale=s),
    "out_scale": lambda g, s: qconv(g.q, g.packed, out_scale=s),
    "residual_scale": lambda g, s: qconv(g.q, g.packed, residual=QTensor(g.r, s)),
    "weight_scale": lambda g, s: prepack(g.w.astype(np.int8), weight_scale=s),
    "scale": lambda g, s: quantize(g.w, s),
}
RANGE = "within [2**-126, 2**126] where it and its reciprocal are normal in float32"
BAD_SCALES = {
    "zero": (0, ValueError, f"{RANGE}; got 0.0"),
    "negative": (-0.5, ValueError, f"{RANGE}; got -0.5"),
    "nan": (np.float32(np.nan), ValueError, f"{RANGE}; got nan"),
    "infinite": (jnp.inf, ValueError, f"{RANGE}; got inf"),
    "subnormal": (1e-40, ValueError, f"{RANGE}; got 1e-40"),
    "zero-in-float32": (1e-60, ValueError, f"{RANGE}; got 1e-60"),
    "reciprocal-subnormal": (2.0**127, ValueError, f"{RANGE}; got 1.7"),
    "infinite-in-float32": (1e60, ValueError, f"{RANGE}; got 1e+60"),
    "shape": (np.ones((1, 1), np.float32), ValueError, "got shape [1, 1]"),
    "list": ([0.5], ValueError, "got shape [1]"),
    "text": ("big", TypeError, "must be an array, got str"),
    "bool": (True, TypeError, "must be of a float dtype, got bool"),
    "complex": (1j, TypeError, "must be of a float dtype, got complex128"),
}


@pytest.mark.parametrize(("scale", "error", "fragment"), BAD_SCALES.values(), ids=BAD_SCALES)
@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("where", WHERE)
def test_bad_scales_are_refused_by_name(good, where, name, scale, error, fragment):
    with pytest.raises(error, match=f"^{name.split('-')[0]} ") as caught:
        WHERE[where](lambda: SCALED[name](good, scale))
    assert fragment in str(caught.value)


@pytest.mark.parametrize("scale", [2.0**-126, 2.0**126])
@pytest.mark.parametrize("name", SCALED)
def test_the_ends_of_the_range_of_scales_are_good(good, name, scale):
    SCALED[name](good, scale)


@pytest.mark.parametrize("x64", [False, True], ids=["x32", "x64"])
@pytest.mark.parametrize(
    "scale",
    [2, 2.0, np.int32(2), np.float64(2), np.float16(2), np.array(2.0), jnp.bfloat16(2)],
    ids=lambda s: type(s).__name__,
)
def test_a_scale_may_be_any_number(good, scale, x64):
    def call(scale):
        packed = prepack(good.w.astype(np.int8), good.b, weight_scale=scale)
        x = quantize(good.x.astype(np.float32), scale)
        residual = QTensor(good.r, scale)
        return qconv(x, packed, out_scale=scale, residual=residual, activation="relu6")

    expected = call(jnp.float32(2))
    with jax.enable_x64(x64):
        found = call(scale)
    assert [leaf.dtype for leaf in jax.tree.leaves(found)] == [jnp.int8, jnp.float32]
    np.testing.assert_array_equal(found.unpadded(), expected.unpadded())


def test_the_type_of_a_scale_does_not_change_real_values(good):
    expected = dequantize(QTensor(good.x, np.float32(0.1)))
    with jax.enable_x64(True):
        for scale in (0.1, np.float64(0.1), np.array(0.1), jnp.float32(0.1)):
            np.testing.assert_array_equal(dequantize(QTensor(good.x, scale)), expected)


@pytest.mark.parametrize("form", ["float64", "jax", "list"])
def test_weights_and_bias_may_come_in_any_form(good, form):
    convert = {
        "float64": lambda v: v.astype(np.float64),
        "jax": jnp.asarray,
        "list": np.ndarray.tolist,
    }[form]
    packed = prepack(convert(good.w), convert(good.b)).bind(x_scale=0.5)
    np.testing.assert_array_equal(qconv(good.q, packed), good.out)
