"""Float to int8 and back, and the `QTensor` between."""

import math
import re

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from jax_qconv import QTensor, dequantize, quantize, quantize_image

SCALES = st.floats(2.0**-40, 2.0**40, width=32)
ZERO_POINTS = st.none() | st.integers(-128, 127)
DTYPES = ("float32", "bfloat16", "float16")


def formula(x, scale, zero_point):
    """q = clip(rint(x * (1/scale)) + zero_point, -128, 127), the reciprocal from float64."""
    inverse = np.float32(1.0 / np.float64(scale))
    with np.errstate(invalid="ignore", over="ignore"):
        y = np.rint(x.astype(np.float32) * inverse).astype(np.float64)
    return np.clip(np.where(np.isnan(y), 0, y) + (zero_point or 0), -128, 127).astype(np.int8)


@hypothesis.given(SCALES, ZERO_POINTS, st.sampled_from(DTYPES), st.integers(0, 2**32 - 1))
def test_quantize_is_its_formula_inside_and_outside_jit(scale, zero_point, dtype, seed):
    rng = np.random.default_rng(seed)
    steps = np.concatenate([rng.normal(0, 60, 40), rng.integers(-300, 300, 20) / 2])
    with np.errstate(over="ignore"):
        x = np.append(steps * scale, [0, -0.0, np.nan, np.inf]).reshape(16, 4).astype(dtype)
    want = formula(x, scale, zero_point)
    for call in (quantize, jax.jit(quantize)):
        got = call(x, scale, zero_point=zero_point)
        np.testing.assert_array_equal(got.values, want)
        assert got.shape == (16, 4)


TIES = [(0.5, 0), (1.5, 2), (2.5, 2), (-0.5, 0), (-1.5, -2), (-2.5, -2), (126.5, 126)]
BEYOND = [(127.5, 127), (-128.5, -128), (1e30, 127), (math.inf, 127), (-math.inf, -128)]


@pytest.mark.parametrize(("real", "integer"), [*TIES, *BEYOND])
def test_half_goes_to_even_and_what_is_too_large_saturates(real, integer):
    assert quantize(jnp.full(4, real), 1.0).values.tolist() == [integer] * 4
    # Scaled by a power of two, nothing else changes.
    assert quantize(jnp.full(4, real / 8), 0.125).values.tolist() == [integer] * 4


def test_nan_becomes_the_zero_point():
    assert quantize(jnp.full(4, math.nan), 1.0).values.tolist() == [0] * 4
    assert quantize(jnp.full(4, math.nan), 1.0, zero_point=-7).values.tolist() == [-7] * 4


def test_the_zero_point_comes_after_rounding():
    # Ties go to even before the odd zero point is added; the sum saturates.
    x = jnp.array([0.5, 1.5, -0.5, 130.0])
    assert quantize(x, 1.0, zero_point=1).values.tolist() == [1, 3, 1, 127]


@hypothesis.given(SCALES, ZERO_POINTS)
def test_every_integer_survives_the_way_to_real_and_back(scale, zero_point):
    values = np.arange(-128, 128, dtype=np.int8).reshape(64, 4)
    zero = None if zero_point is None else jnp.int32(zero_point)
    real = dequantize(QTensor(jnp.asarray(values), jnp.float32(scale), zero))
    np.testing.assert_array_equal(quantize(real, scale, zero_point=zero_point).values, values)


@hypothesis.given(SCALES, ZERO_POINTS, st.sampled_from(DTYPES))
def test_dequantize_is_one_float32_product(scale, zero_point, dtype):
    values = np.arange(-128, 128, dtype=np.int8).reshape(64, 4)
    zero = None if zero_point is None else jnp.int32(zero_point)
    with np.errstate(over="ignore"):
        want = ((values.astype(np.float32) - (zero_point or 0)) * np.float32(scale)).astype(dtype)
    for call in (dequantize, jax.jit(dequantize, static_argnums=1)):
        got = call(QTensor(jnp.asarray(values), jnp.float32(scale), zero), dtype)
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, want)


@hypothesis.given(SCALES, st.integers(0, 2**32 - 1))
def test_the_error_is_half_a_step(scale, seed):
    x = np.random.default_rng(seed).uniform(-127, 127, (64, 4)) * scale
    real = dequantize(quantize(jnp.asarray(x, jnp.float32), scale))
    assert np.abs(np.asarray(real, np.float64) - x).max() <= scale * (0.5 + 1e-4)


def test_a_new_scale_recompiles_nothing():
    call = jax.jit(lambda x, scale: quantize(x, scale, zero_point=3))
    for scale in (0.5, 0.25, 0.125):
        call(jnp.ones((2, 4)), scale)
    assert call._cache_size() == 1


@pytest.mark.parametrize(
    ("pad", "stored"), [(True, 4), (False, 3), (3, 3), (7, 7), (np.int64(8), 8)]
)
def test_padding_of_channels(pad, stored):
    q = quantize(jnp.ones((2, 5, 3)), 0.1, pad=pad)
    assert q.values.shape == (2, 5, stored)
    assert q.shape == q.unpadded().shape == dequantize(q).shape == (2, 5, 3)


def test_too_little_padding_is_refused():
    with pytest.raises(ValueError, match="pad=2 stores fewer channels than the 3"):
        quantize(jnp.ones((2, 3)), 0.1, pad=2)


@pytest.mark.parametrize("scale", [2.0**-126, 2.0**126])
def test_scales_at_the_ends_of_their_range_are_exact(scale):
    x = np.float32([-1, 0, 1, 1.5]) * np.float32(scale)
    for call in (quantize, jax.jit(quantize)):
        q = call(x, scale)
        assert q.values.tolist() == [-1, 0, 1, 2]
        np.testing.assert_array_equal(dequantize(q)[:3], x[:3])


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan, 1e-60, 1e60, 1e-38, 2.0**127])
def test_scales_must_be_positive_and_finite(scale):
    with np.errstate(over="ignore"), pytest.raises(ValueError, match="positive and finite"):
        quantize(jnp.ones(4), scale)


@pytest.mark.parametrize("scale", ["0.1", True, 1j])
def test_scales_must_be_numbers(scale):
    with pytest.raises(TypeError, match="scale must be"):
        quantize(jnp.ones(4), scale)


def test_scales_must_be_scalars():
    with pytest.raises(ValueError, match=r"scale must be a scalar, got shape \[4\]"):
        quantize(jnp.ones(4), jnp.ones(4))


@pytest.mark.parametrize("zero_point", [0.0, jnp.zeros(4, jnp.int32)])
def test_zero_points_must_be_integer_scalars(zero_point):
    with pytest.raises(TypeError, match="zero_point must be an integer scalar"):
        quantize(jnp.ones(4), 0.1, zero_point=zero_point)


@pytest.mark.parametrize("zero_point", [-129, 128])
def test_zero_points_must_be_int8(zero_point):
    with pytest.raises(ValueError, match=r"zero_point must lie in \[-128, 127\]"):
        quantize(jnp.ones(4), 0.1, zero_point=zero_point)


def test_integers_and_scalars_are_not_quantised():
    with pytest.raises(TypeError, match="must be float32, bfloat16 or float16"):
        quantize(jnp.ones(4, jnp.int8), 0.1)
    with pytest.raises(ValueError, match="channel axis"):
        quantize(jnp.float32(1), 0.1)


def test_images_are_moved_by_128_and_mean_the_same():
    x = np.arange(256, dtype=np.uint8).reshape(2, 8, 16)
    for call in (quantize_image, jax.jit(quantize_image)):
        q = call(x, 1 / 255)
        assert q.values.tolist() == (x.astype(np.int16) - 128).tolist()
        assert int(q.zero_point) == -128
        np.testing.assert_array_equal(dequantize(q), x.astype(np.float32) * np.float32(1 / 255))


@pytest.mark.parametrize("zero_point", [-1, 0, 127])
def test_the_real_zero_of_an_image_may_be_any_pixel(zero_point):
    x = np.arange(256, dtype=np.uint8)
    q = quantize_image(x, 1 / 128, zero_point=zero_point)
    assert q.values.tolist() == (x.astype(np.int16) - 128).tolist()
    np.testing.assert_array_equal(dequantize(q), (x.astype(np.float32) - 128 - zero_point) / 128)


@pytest.mark.parametrize(("pad", "stored"), [(True, 4), (False, 3), (7, 7)])
def test_images_are_padded_like_floats(pad, stored):
    q = quantize_image(np.ones((2, 5, 3), np.uint8), 0.1, pad=pad)
    assert (q.values.shape, q.shape) == ((2, 5, stored), (2, 5, 3))


@pytest.mark.parametrize(
    ("x", "arguments", "error", "message"),
    [
        (np.ones((2, 3)), {}, TypeError, "x must be a uint8 image, got float.*quantize.x, scale"),
        (np.ones((2, 3), np.int8), {}, TypeError, "x must be a uint8 image, got int8"),
        (None, {}, TypeError, "x must be an array, got NoneType"),
        (np.uint8(1), {}, ValueError, "x must have a channel axis .the last one., got a scalar"),
        (np.ones((2, 3), np.uint8), {"pad": 2}, ValueError, "pad=2 stores fewer channels than"),
        (np.ones((2, 3), np.uint8), {"pad": "no"}, TypeError, "pad must be True, False or a"),
        (np.ones((2, 3), np.uint8), {"scale": 0}, ValueError, "scale must be positive and finite"),
        (np.ones((2, 3), np.uint8), {"zero_point": 128}, ValueError, "zero_point must lie in"),
    ],
)
def test_what_is_no_image_is_refused(x, arguments, error, message):
    with pytest.raises(error, match=message):
        quantize_image(x, **{"scale": 0.1, **arguments})


def test_an_image_is_one_flip_of_bits():
    text = jax.jit(lambda x: quantize_image(x, 0.1).values).lower(np.ones(4, np.uint8)).as_text()
    assert "xor" in text and "f32" not in text


def test_the_scale_of_an_image_has_no_gradient():
    x = np.ones((2, 4), np.uint8)
    with pytest.raises(TypeError, match="quantize_image works on integers and has no gradient"):
        jax.grad(lambda s: dequantize(quantize_image(x, s)).sum())(0.1)


def test_a_gradient_is_an_error_and_never_zero():
    with pytest.raises(TypeError, match="quantize works on integers and has no gradient"):
        jax.grad(lambda x: dequantize(quantize(x, 0.1)).sum())(jnp.ones(4))


def test_a_qtensor_is_a_pytree_that_anything_may_fill():
    q = QTensor(jnp.zeros((2, 8), jnp.int8), jnp.float32(0.5), None, 5)
    leaves, treedef = jax.tree.flatten(q)
    assert [leaf.shape for leaf in leaves] == [(2, 8), ()]
    for filler in (None, 0, "axis", object()):
        filled = jax.tree.unflatten(treedef, [filler] * 2)
        assert (filled.values, filled.scale, filled.channels) == (filler, filler, 5)
        assert "channels=5" in repr(filled)
    assert jax.jit(lambda q: q)(q).shape == (2, 5)


def test_a_qtensor_has_all_its_channels_unless_told():
    assert QTensor(jnp.zeros((2, 8), jnp.int8), jnp.float32(1)).channels == 8


def test_a_qtensor_maps_and_shards_its_values_only():
    q = quantize(jnp.ones((3, 2, 4)), 0.5, zero_point=1)
    double = jax.vmap(lambda q: q.values + q.values, in_axes=(q.in_axes(0),))
    np.testing.assert_array_equal(double(q), 2 * np.asarray(q.values))
    batch, everywhere = jax.sharding.PartitionSpec("batch"), jax.sharding.PartitionSpec()
    specs = q.specs(batch)
    assert (specs.values, specs.scale, specs.zero_point) == (batch, everywhere, everywhere)


def test_a_qtensor_reads_well():
    q = quantize(jnp.ones((2, 3)), 0.25)
    assert repr(q) == "QTensor(int8[2, 3], scale=0.25, stored channels 4)"
    q = quantize(jnp.ones((2, 4)), 0.25, zero_point=-3)
    assert repr(q) == "QTensor(int8[2, 4], scale=0.25, zero_point=-3)"


def test_a_qtensor_of_shapes_reads_well():
    q = jax.eval_shape(lambda x, s: quantize(x, s), jnp.ones((2, 3)), 0.25)
    assert re.fullmatch(r"QTensor\(int8\[2, 3\], scale=.*float32.*, stored channels 4\)", repr(q))


def test_scales_that_are_known_stay_known_while_tracing():
    """Later ops then see that two of them are equal, and compute their constants once."""
    seen = []

    @jax.jit
    def call(x, traced):
        for scale in (0.1, np.float32(0.1), traced):
            q = quantize(x, scale, zero_point=3)
            seen.append(
                (isinstance(q.scale, jax.core.Tracer), isinstance(q.zero_point, jax.core.Tracer))
            )
        return q.values

    call(np.ones(4, np.float32), np.float32(0.1))
    assert seen == [(False, False), (False, False), (True, False)]


@pytest.mark.parametrize(
    ("q", "error", "message"),
    [
        (QTensor(np.ones((2, 3), np.int8), 0.1, None, 7), ValueError,
         "^q says it has 7 channels, but stores 3"),
        (QTensor(np.ones((2, 3), np.int8), 0.1, None, -2), ValueError,
         "^q says it has -2 channels, but stores 3"),
        (QTensor(np.ones((2, 3), np.int8), 0.1, None, "8"), TypeError,
         "^q.channels must be an int, or None for all that are stored, got '8'"),
        (QTensor(np.int8(3), 0.1), ValueError, "^q must have a channel axis .*got a scalar"),
        (QTensor([[1.5, 2.0]], 0.1), TypeError, "^q must hold int8 values, got float32; quantise"),
        (np.ones(3, np.int8), TypeError, "^q must be a QTensor, got ndarray; wrap int8 data"),
    ],
)  # fmt: skip
def test_dequantize_takes_tensors_that_are_what_they_say(q, error, message):
    with pytest.raises(error, match=message):
        dequantize(q)


@pytest.mark.parametrize("dtype", [None, "foo", 3, jnp.int32, np.bool_])
def test_dequantize_takes_float_dtypes(dtype):
    with pytest.raises(TypeError, match=r"^dtype must be a float one, such as float32.*, got"):
        dequantize(QTensor(np.ones((2, 3), np.int8), 0.1), dtype)


def test_no_channel_count_means_all():
    assert QTensor(np.ones((2, 3), np.int8), 0.1, None, None).shape == (2, 3)


def test_repr_has_the_dtype_of_the_values():
    assert repr(QTensor(np.ones((2, 3), np.float32), 0.5)) == "QTensor(float32[2, 3], scale=0.5)"
    assert repr(QTensor(np.ones((2, 3), np.int8), 0.5)) == "QTensor(int8[2, 3], scale=0.5)"


def test_equality_is_identity():
    a, b = (QTensor(np.ones((2, 3), np.int8), np.float32(0.5)) for _ in range(2))
    assert a == a and a != b and len({a, b, a}) == 2
