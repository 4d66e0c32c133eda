"""The shapes, scales and data on which PyTorch tests its cuDNN int8 convolutions.

PyTorch allows its result to be off by one. Here it has to be exact, and within one of the
float convolution that PyTorch compares with.
"""

import hypothesis
import jax
import numpy as np
import oracle
from effort import examples
from hypothesis import strategies as st

from jax_qconv import Activation, QTensor, prepack, qconv

CHANNELS = st.integers(1, 32)
STRIDE = st.integers(1, 2)
PAD = st.integers(0, 2)


def check(data, shape, kernel, strides, pads):
    """Draw the rest of one upstream case, ``shape`` (N, H, W), and compare."""
    c, k = data.draw(CHANNELS, "C"), data.draw(CHANNELS, "K")
    x_scale = np.float32(data.draw(st.floats(1.2, 1.6), "x_scale"))
    w_scale = np.float32(data.draw(st.floats(0.2, 1.6), "w_scale"))
    out_scale = np.float32(data.draw(st.floats(4.2, 5.6), "out_scale"))
    relu, with_bias = data.draw(st.booleans(), "relu"), data.draw(st.booleans(), "bias")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), "seed"))
    x = rng.integers(0, 4, (*shape, c), np.int8)
    w = rng.integers(-5, 5, (k, *kernel, c), np.int8)
    bias = (x_scale * w_scale * rng.integers(0, 10, k)).astype(np.float32) if with_bias else None

    activation = Activation("relu" if relu else "none")

    @jax.jit
    def convolve(x, w, bias):
        packed = prepack(
            w, bias, weight_scale=w_scale, layout="OIHW", strides=strides, padding=pads
        )
        return qconv(QTensor(x, x_scale), packed, out_scale=out_scale, activation=activation)

    out = np.asarray(convolve(x, w.transpose(0, 3, 1, 2), bias).values)[..., :k]
    sides = tuple((pad, pad) for pad in pads)
    geometry = {"strides": strides, "padding": sides}
    scales = {"x_scale": x_scale, "w_scale": w_scale, "bias": bias, "out_scale": out_scale}
    oracle.assert_same(out, oracle.convolve(x, w, activation=activation, **scales, **geometry))
    real = oracle.accumulate(x, w, **geometry) * float(x_scale) * float(w_scale)
    real = real + (0 if bias is None else bias)
    float_result = np.clip(np.rint((np.maximum(real, 0) if relu else real) / out_scale), -128, 127)
    assert np.abs(out.astype(int) - float_result).max() <= 1


@hypothesis.given(st.data())
@examples(8)
def test_conv2d_with_and_without_bias_and_relu(data):
    shape = tuple(data.draw(st.integers(*span)) for span in ((1, 3), (10, 16), (7, 14)))
    kernel = tuple(data.draw(st.integers(1, 7)) for _ in range(2))
    check(data, shape, kernel, data.draw(st.tuples(STRIDE, STRIDE)), data.draw(st.tuples(PAD, PAD)))


@hypothesis.given(st.data())
@examples(8)
def test_conv1d_as_a_row(data):
    kernel, pad = data.draw(st.integers(1, 7)), data.draw(PAD)
    length = data.draw(st.integers(max(4, kernel - 2 * pad), 16))
    batch = data.draw(st.integers(1, 6))
    check(data, (batch, 1, length), (1, kernel), (1, data.draw(STRIDE)), (0, pad))
