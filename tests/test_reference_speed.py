"""The reference stays close to XLA's own int8 convolution on the CPU."""

import time

import jax
import jax.numpy as jnp
import layers
import numpy as np
import pytest

from jax_qconv import prepack, qconv

NAMES = (
    "64x56x56_3x3",
    "256x14x14_3x3",
    "512x7x7_3x3",
    "512x28x28_1x1_to128",
    "2048x7x7_1x1_to512",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "layer", [v for v in layers.RESNET50 if v.name in NAMES], ids=lambda layer: layer.name
)
def test_the_reference_takes_at_most_twice_the_time_of_lax(layer):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(-128, 128, (1, layer.h, layer.w, layer.c), np.int8))
    w = jnp.asarray(rng.integers(-128, 128, (layer.r, layer.s, layer.c, layer.k), np.int8))
    packed = prepack(w, weight_scale=1.0, strides=layer.stride, padding=layer.padding)

    @jax.jit
    def ours(x, packed):
        return qconv(x, packed, out_dtype="int32")

    @jax.jit
    def lax(x, w):
        return jax.lax.conv_general_dilated(
            x,
            w,
            (layer.stride, layer.stride),
            layer.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            preferred_element_type=jnp.int32,
        )

    # Other work on the machine slows down either one at random: three attempts.
    ratios = []
    for _ in range(3):
        ratios.append(best_time(ours, x, packed) / best_time(lax, x, w))
        if ratios[-1] <= 2:
            return
    pytest.fail(f"{layer.name}: {ratios} times the time of lax.conv_general_dilated")


def best_time(function, *operands):
    """The shortest of 30 calls after the first, in seconds."""
    function(*operands).block_until_ready()
    times = []
    for _ in range(30):
        start = time.perf_counter()
        function(*operands).block_until_ready()
        times.append(time.perf_counter() - start)
    return min(times)
