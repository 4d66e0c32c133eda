"""What tests of the ops between convolutions share: drawn tensors, and the ways to call an op."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from oracle import assert_same

from jax_qconv import QTensor

# Powers of two make ties, others don't.
SCALES = st.sampled_from([0.125, 0.25, 0.5, 1.0, 2.0]) | st.floats(2.0**-6, 2.0**3, width=32)
WIDE_SCALES = SCALES | st.floats(2.0**-126, 2.0**126, width=32)
ZEROS = st.none() | st.sampled_from([-128, 127, 0, 1]) | st.integers(-128, 127)


@st.composite
def qtensors(draw: Any, shape: Any, scales: Any = SCALES) -> QTensor:
    """A tensor of a logical shape, or of a strategy for one, with junk in padded channels."""
    shape = shape if isinstance(shape, tuple) else draw(shape)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    stored = (*shape[:-1], shape[-1] + draw(st.sampled_from([0, 0, 1, 5])))
    if draw(st.booleans()):
        values = rng.integers(-128, 128, stored, np.int8)
    else:
        values = rng.choice(np.int8([-128, -127, 127]), stored)
    zero = draw(ZEROS)
    return QTensor(
        values, np.float32(draw(scales)), None if zero is None else np.int32(zero), shape[-1]
    )


def plain(q: QTensor) -> tuple[np.ndarray, Any, Any]:
    """Values without padded channels, scale and zero point."""
    return np.asarray(q.unpadded()), q.scale, None if q.zero_point is None else int(q.zero_point)


def check(call: Any, tensors: Any, want: np.ndarray, scale: Any, zero: Any, **given: Any) -> None:
    """Call eagerly, and in jit with scales that are traced, then constant: all give ``want``."""
    values = [q.values for q in tensors]

    def with_constants(values: Any) -> QTensor:
        pairs = zip(values, tensors, strict=True)
        return call(*(QTensor(v, q.scale, q.zero_point, q.channels) for v, q in pairs), **given)

    for got in (
        call(*tensors, **given),
        jax.jit(call)(*tensors, **given),
        jax.jit(with_constants)(values),
    ):
        assert got.shape == want.shape
        assert_same(got.unpadded(), want)
        assert np.asarray(got.scale) == np.float32(scale)
        assert (got.zero_point is None) == (zero is None)
        assert zero is None or int(got.zero_point) == zero


def check_vmap(call: Any, *tensors: QTensor) -> None:
    """vmap over an axis of the values gives what a loop does."""
    want = np.stack([np.asarray(call(*(take(q, i) for q in tensors)).values) for i in range(3)])
    out = jax.eval_shape(call, *(take(q, 0) for q in tensors))
    mapped = jax.vmap(
        lambda *values: call(*map(with_values, tensors, values)).values, in_axes=0, out_axes=0
    )
    assert_same(mapped(*(jnp.asarray(q.values) for q in tensors)), want)
    whole = jax.vmap(call, in_axes=tuple(q.in_axes(0) for q in tensors), out_axes=out.in_axes(0))
    assert_same(whole(*tensors).values, want)


def with_values(q: QTensor, values: Any) -> QTensor:
    return QTensor(values, q.scale, q.zero_point, q.channels)


def take(q: QTensor, index: int) -> QTensor:
    return with_values(q, q.values[index])


def mapped(seed: int, *shape: int, zero: Any = 3, channels: int = -1) -> QTensor:
    """Three tensors of a shape in one, to be mapped over."""
    values = np.random.default_rng(seed).integers(-128, 128, (3, *shape), np.int8)
    return QTensor(values, np.float32(0.3), None if zero is None else np.int32(zero), channels)
