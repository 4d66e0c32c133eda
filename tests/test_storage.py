"""Channels that a whole network is stored with."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_qconv import quantize_model


def conv(x, w, groups=1):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=groups
    )


def inverted_residual(p, x):
    y = jax.nn.relu6(conv(x, p["expand"]))
    y = jax.nn.relu6(conv(y, p["depthwise"], groups=y.shape[-1]))
    return x + conv(y, p["project"])


def mobile(p, x):
    return inverted_residual(p, conv(x, p["stem"])).mean((1, 2))


def dense(p, x):
    """As `mobile`, with a dense 3x3 kernel beside the depthwise one."""
    x = conv(x, p["stem"])
    wide = jax.nn.relu6(conv(x, p["expand"]))
    y = jax.nn.relu6(conv(wide, p["depthwise"], groups=wide.shape[-1]))
    return (x + conv(y, p["project"]) + conv(wide, p["more"])).mean((1, 2))


SHAPES = {
    "stem": (3, 3, 3, 24),
    "expand": (1, 1, 24, 144),
    "depthwise": (3, 3, 1, 144),
    "project": (1, 1, 144, 24),
    "more": (3, 3, 144, 24),
}


def quantised(function, names):
    rng = np.random.default_rng(0)
    params = {name: rng.normal(0, 0.2, SHAPES[name]).astype(np.float32) for name in names}
    x = rng.normal(0, 1, (2, 6, 6, 3)).astype(np.float32)
    return params, x, quantize_model(function, params, [x], progress=False)


def stored(model):
    return {name: pack.stored_channels for name, pack in model.params["layers"].items()}


def test_what_only_narrow_kernels_touch_is_padded_less():
    params, x, model = quantised(mobile, ["stem", "expand", "depthwise", "project"])
    assert stored(model) == {
        "stem": (4, 24),
        "expand": (24, 144),
        "depthwise": (144, 144),
        "project": (144, 24),
    }
    wanted = mobile(params, jnp.asarray(x))
    got = jax.jit(model)(model.params, x)
    assert np.abs(got - wanted).max() < 0.1 * np.abs(wanted).max()


def test_what_a_dense_kernel_reads_is_padded_as_it_wants():
    _, _, model = quantised(dense, list(SHAPES))
    channels = stored(model)
    assert channels["expand"] == (24, 192)
    assert channels["depthwise"] == (192, 192)
    assert channels["more"] == channels["project"] == (192, 24)


@pytest.mark.parametrize(("channels", "wanted"), [(96, 96), (40, 48), (112, 128), (240, 256)])
def test_little_waste_is_left(channels, wanted):
    x = np.ones((1, 4, 4, 8), np.float32)
    params = {"a": np.ones((1, 1, 8, channels)), "b": np.ones((1, 1, channels, 8))}

    def two(p, x):
        return conv(conv(x, p["a"]), p["b"])

    model = quantize_model(two, jax.tree.map(np.float32, params), [x], progress=False)
    assert stored(model) == {"a": (8, wanted), "b": (wanted, 8)}
