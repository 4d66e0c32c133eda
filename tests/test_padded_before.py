"""Padding before a convolution, which compilers may bring into it."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jax_qconv import QTensor, prepack, qconv, qpad, quantize


def data(kernel=3):
    rng = np.random.default_rng(0)
    x = rng.integers(-128, 128, (2, 8, 8, 32), np.int8)
    return QTensor(x, np.float32(0.03)), rng.normal(size=(kernel, kernel, 32, 32)).astype("f")


@pytest.mark.parametrize("padding", ["SAME", 1, 2])
def test_a_padded_input_gives_the_same_bytes_compiled_or_not(padding):
    q, w = data()
    packed = prepack(w, padding=padding)
    call = lambda q, packed: qconv(qpad(q, 1), packed)  # noqa: E731
    np.testing.assert_array_equal(jax.jit(call)(q, packed), call(q, packed))


@pytest.mark.parametrize(("kernel", "padding"), [(3, 2), (5, 4)])
def test_a_zero_point_of_zero_changes_nothing(kernel, padding):
    q, w = data(kernel)
    packed = prepack(w, padding=padding)
    x = np.asarray(q.values, np.float32) * q.scale
    plain = qconv(quantize(x, q.scale), packed)
    for zero_point in (0, np.int32(0)):
        call = lambda x, packed, z=zero_point: qconv(  # noqa: E731
            quantize(x, q.scale, zero_point=z), packed
        )
        np.testing.assert_array_equal(jax.jit(call)(x, packed), plain)
