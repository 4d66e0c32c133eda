"""Ranges to scales and zero points."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from observing import found

from jax_qconv import MinMax
from jax_qconv._range import Range, scale_of


@hypothesis.given(
    st.floats(-(2.0**100), 2.0**100, width=32), st.floats(-(2.0**100), 2.0**100, width=32)
)
def test_scales_are_computed_in_float64_and_rounded_once(a, b):
    lower, upper = np.float32(min(a, b)), np.float32(max(a, b))
    absmax = np.maximum(np.abs(lower), np.abs(upper))
    range_ = Range(*map(jnp.asarray, (absmax, lower, upper, False, np.uint32(0))))

    def rounded(scale):
        return np.float32(scale if scale >= 2.0**-126 else 1 / 127)

    with jax.numpy_dtype_promotion("strict"):
        for call in (scale_of, jax.jit(scale_of, static_argnames="asymmetric")):
            scale, zero_point = call(range_)
            assert zero_point is None
            assert scale == rounded(np.float64(absmax) * (1 / 127)) and scale.dtype == jnp.float32
            scale, zero_point = call(range_, asymmetric=True)
            low, high = min(np.float64(lower), 0.0), max(np.float64(upper), 0.0)
            assert scale == rounded((high - low) * (1 / 255))
            want = np.clip(np.rint(-128 - low / np.float64(scale)), -128, 127)
            assert int(zero_point) == want and zero_point.dtype == jnp.int32


@pytest.mark.parametrize(
    ("lower", "upper", "zero_point"),
    [(0, 255, -128), (-255, 0, 127), (-128, 127, 0), (3, 255, -128)],
)
def test_zero_is_in_every_range(lower, upper, zero_point):
    scale, zero = scale_of(found(MinMax(), np.float32([lower, upper])), asymmetric=True)
    assert (scale, zero) == (1, zero_point)


def test_scales_of_channels():
    range_ = found(MinMax(), np.float32([[127, -127, 0], [-1, 0, 0]]), channels=3)
    assert scale_of(range_)[0].tolist() == [1, 1, np.float32(1 / 127)]
