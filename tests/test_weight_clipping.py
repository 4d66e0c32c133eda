"""Scales of weights that clip: the least squared error on the grid, as prepack quantises."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from effort import examples
from hypothesis import strategies as st

from jax_qconv import prepack, unpack
from jax_qconv._weight_clipping import clipped_weight_scale, quantized_weight


def by_hand(weight):
    """The best of 100 thresholds of one channel; the larger of equals."""
    weight = np.asarray(weight, np.float32)
    full = np.float64(np.abs(weight).max()) * (1 / 127)
    best = None
    for hundredths in range(100, 0, -1):
        scale = np.float32(full if hundredths == 100 else full * (hundredths * (1 / 100)))
        inverse = np.float32(1 / np.float64(scale))
        q = np.clip(np.rint(weight * inverse), -127, 127).astype(np.float64)
        error = np.sum((np.float64(weight) - q * np.float64(scale)) ** 2)
        if best is None or error < best[0]:
            best = error, scale
    return best[1]


@hypothesis.given(st.integers(0, 2**32 - 1), st.integers(0, 3))
@examples(10)
def test_the_scale_is_the_best_of_the_grid(seed, axis):
    rng = np.random.default_rng(seed)
    weight = (rng.standard_t(2, size=(3, 3, 3, 3)) * rng.uniform(1e-3, 1e3)).astype(np.float32)
    want = [by_hand(w) for w in np.moveaxis(weight, axis, 0)]
    np.testing.assert_array_equal(clipped_weight_scale(weight, axis=axis), want)
    np.testing.assert_array_equal(clipped_weight_scale(weight, axis=axis - 4), want)
    assert clipped_weight_scale(weight, per_channel=False) == by_hand(weight)


def test_outliers_are_clipped_where_that_pays():
    weight = np.random.default_rng(0).normal(size=(5000, 2)).astype(np.float32)
    weight[0, 0] = 8.0
    scale = np.asarray(clipped_weight_scale(weight))
    assert scale[0] * 127 < 7.9 and scale[1] <= np.abs(weight[:, 1]).max() * np.float32(
        1.0001 / 127
    )


def test_of_equal_errors_the_larger_scale_wins():
    # Whole steps of several scales: each represents -1, 0 and 1 exactly, the largest is kept.
    weight = np.array([[1.0, -2.0], [0.0, 2.0], [-1.0, 0.0]], np.float32)
    full = (np.float64([1, 2]) * (1 / 127)).astype(np.float32)
    np.testing.assert_array_equal(clipped_weight_scale(weight), [by_hand(w) for w in weight.T])
    assert (np.asarray(clipped_weight_scale(weight)) <= full).all()
    exact = np.arange(-127, 128, dtype=np.float32)[:, None] / 128
    assert clipped_weight_scale(exact).tolist() == [1 / 128]


@pytest.mark.parametrize("value", [0.0, 1e-40, 2.0**-126])
def test_channels_of_nothing_have_a_scale_of_one(value):
    weight = np.array([[value, 1.0], [-value, -1.0]], np.float32)
    assert clipped_weight_scale(weight)[0] == prepack_scale(weight)[0] == 1


def prepack_scale(weight):
    return np.asarray(prepack(weight.reshape(1, 1, *weight.shape)).weight_scale)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_jit_changes_nothing_and_short_floats_are_what_they_are(dtype):
    weight = jnp.asarray(np.random.default_rng(1).normal(size=(3, 3, 8, 4)), jnp.float32)
    weight = weight.astype(dtype)
    want = clipped_weight_scale(weight.astype(jnp.float32))
    np.testing.assert_array_equal(clipped_weight_scale(weight), want)
    np.testing.assert_array_equal(jax.jit(clipped_weight_scale)(weight), want)


def test_at_the_scale_of_prepack_the_integers_are_those_of_prepack():
    weight = np.random.default_rng(2).laplace(size=(3, 3, 64, 4)).astype(np.float32)
    plain = unpack(prepack(weight))
    np.testing.assert_array_equal(quantized_weight(weight, plain.weight_scale), plain.weight)
    scale = clipped_weight_scale(weight)
    clipped = prepack(quantized_weight(weight, scale), weight_scale=scale)
    real, plain_real = (
        np.asarray(u.weight) * np.asarray(u.weight_scale) for u in (unpack(clipped), plain)
    )
    assert np.sum((weight - real) ** 2) < np.sum((weight - plain_real) ** 2)


@pytest.mark.parametrize(
    ("weight", "arguments", "error", "message"),
    [
        (np.ones((2, 3), np.int8), {}, TypeError, "weight must be float32, .*got int8"),
        (None, {}, TypeError, "weight must be an array, got NoneType"),
        (np.ones((2, 3), np.float32), {"axis": 2}, ValueError, "axis=2 is not one of weight, of"),
        (np.ones((2, 3), np.float32), {"axis": 1.0}, TypeError, "axis must be an int, got 1.0"),
        (np.ones((2, 3), np.float32), {"per_channel": 1}, TypeError, "per_channel must be True or"),
        (np.ones((0, 3), np.float32), {}, ValueError, "weight must not be empty, got shape .0, 3"),
        (np.float32([[1, np.nan]]), {}, ValueError, "weight holds NaN or infinite values"),
        (np.float32([[1, np.inf]]), {}, ValueError, "weight holds NaN or infinite values"),
    ],
)
def test_bad_arguments_are_named(weight, arguments, error, message):
    with pytest.raises(error, match=message):
        clipped_weight_scale(weight, **arguments)


def test_a_gradient_is_an_error():
    with pytest.raises(TypeError, match="has no gradient"):
        jax.grad(lambda w: clipped_weight_scale(w).sum())(jnp.ones((2, 3)))
