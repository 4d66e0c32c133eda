"""What is found in a network: its layers, and what is folded into them."""

from __future__ import annotations

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float_nets import between, conv, images, kinds, quantized, real_steps, sqnr, weights

from jax_qconv import _regions
from jax_qconv._conv_node import ConvNode, macs


@pytest.mark.parametrize(
    ("numbers", "to_x", "to_w"),
    [
        (("NHWC", "HWIO", "NHWC"), (0, 1, 2, 3), (0, 1, 2, 3)),
        (("NCHW", "OIHW", "NCHW"), (0, 3, 1, 2), (3, 2, 0, 1)),
        (("NHWC", "OHWI", "NCHW"), (0, 1, 2, 3), (3, 0, 1, 2)),
        (("CHWN", "IHWO", "NHWC"), (3, 1, 2, 0), (2, 0, 1, 3)),
    ],
)
def test_every_layout_of_a_convolution_gives_the_same_bytes(numbers, to_x, to_w):
    x, w = images(c=8), weights(3, 3, 8, 16)
    straight = quantized(lambda w, x: jax.nn.relu(conv(x, w)), w, x)
    other = quantized(
        lambda w, x: jax.nn.relu(conv(x, w, dimension_numbers=numbers)),
        w.transpose(to_w),
        x.transpose(to_x),
    )
    out = other(other.params, x.transpose(to_x))
    out = out.transpose([numbers[2].index(axis) for axis in "NHWC"])
    np.testing.assert_array_equal(out, straight(straight.params, x))


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "options"),
    [
        ((2, 9, 11, 8), (3, 3, 8, 16), {"window_strides": (2, 1), "padding": ((0, 1), (2, 0))}),
        ((2, 9, 11, 8), (3, 3, 8, 16), {"rhs_dilation": (2, 2)}),
        ((2, 9, 11, 8), (3, 3, 2, 16), {"feature_group_count": 4}),
        ((2, 9, 11, 8), (3, 3, 1, 8), {"feature_group_count": 8}),
        ((2, 9, 11, 8), (3, 3, 8, 16), {"lhs_dilation": (2, 2), "padding": ((1, 2), (1, 2))}),
        ((2, 9, 11, 8), (4, 4, 8, 16), {"lhs_dilation": (2, 2), "padding": ((2, 2), (2, 2))}),
        ((2, 9, 11, 8), (2, 2, 8, 16), {"lhs_dilation": (2, 2), "padding": ((1, 1), (1, 1))}),
        (
            (2, 30, 8),
            (5, 8, 16),
            {"window_strides": (2,), "dimension_numbers": ("NWC", "WIO", "NWC")},
        ),
        (
            (2, 5, 6, 7, 8),
            (3, 3, 3, 8, 16),
            {"window_strides": (1, 1, 1), "dimension_numbers": ("NDHWC", "DHWIO", "NDHWC")},
        ),
    ],
    ids=["placed", "dilated", "groups", "depthwise", "up3", "up4", "up2", "1-D", "3-D"],
)  # fmt: skip
def test_every_kind_of_convolution_is_found(x_shape, w_shape, options):
    x, w = np.random.default_rng(0).normal(size=x_shape).astype("f"), weights(*w_shape)
    function = lambda w, x: conv(x, w, **options)  # noqa: E731
    model = quantized(function, w, x)
    assert kinds(model, x) == {"ConvNode": 1}
    assert sqnr(function(w, x), model(model.params, x)) > 35


@pytest.mark.parametrize("transpose_kernel", [False, True])
def test_conv_transpose_is_found(transpose_kernel):
    x, w = images(c=8), weights(4, 4, 16, 8) if transpose_kernel else weights(4, 4, 8, 16)

    def function(w, x):
        return jax.lax.conv_transpose(x, w, (2, 2), "SAME", transpose_kernel=transpose_kernel)

    model = quantized(function, w, x)
    assert kinds(model, x)["ConvNode"] == 1 and kinds(model, x)["RealNode"] == 0
    assert sqnr(function(w, x), model(model.params, x)) > 35


@pytest.mark.parametrize("first", [False, True])
def test_products_with_weights_on_either_side_are_found(first):
    x, w = images(n=1, size=8, c=24)[0], weights(24, 10)

    def function(w, x):
        return jnp.einsum("ck,hwc->khw", w, x) if first else jnp.einsum("hwc,ck->hwk", x, w)

    model = quantized(function, w, x)
    assert kinds(model, x)["ConvNode"] == 1
    assert sqnr(function(w, x), model(model.params, x)) > 35


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_products_with_weights_of_several_axes_are_found(first, corrected):
    def net(p, x):
        if first:
            y = jnp.einsum("chd,ntc->hdnt", p["a"], x) + p["b"][:, :, None, None]
            z = jnp.einsum("hdkc,hdnt->kcnt", p["c"], jax.nn.gelu(y))
            return (z + p["d"][:, :, None, None]).transpose(2, 3, 0, 1)
        y = jnp.einsum("ntc,chd->nthd", x, p["a"]) + p["b"][None, None]
        y = jnp.einsum("nthd,hdkc->ntkc", jax.nn.gelu(y), p["c"]) + p["d"][None, None]
        return jnp.where(y > 0, y, y * p["d"][None, None])

    p = {"a": weights(24, 4, 8), "b": weights(4, 8), "c": weights(4, 8, 3, 5), "d": weights(3, 5)}
    x = images(n=2, size=6, c=24).reshape(2, 36, 24)
    model = quantized(net, p, x, bias_correction=corrected)
    network = model.network(x)
    assert real_steps(model, x) == {}
    assert [macs(layer, network.graph) for layer in network.layers] == [72 * 24 * 32, 72 * 32 * 15]
    wanted = None if first else "prelu"
    assert [n.activation and n.activation.kind for n in network.layers] == ["gelu_tanh", wanted]
    assert sqnr(net(p, x), model(model.params, x)) > 30


ACTIVATIONS = {
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "leaky_relu": jax.nn.leaky_relu,
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": jax.nn.gelu,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "hard_swish": jax.nn.hard_swish,
    "clip": lambda x: jnp.clip(x, -0.5, 1.25),
    "where": lambda x: jnp.where(x > 0, x, 0.25 * x),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_recognised_by_what_they_compute(name):
    function = lambda w, x: ACTIVATIONS[name](conv(x, w))  # noqa: E731
    x, w = images(c=8), weights(3, 3, 8, 16)
    model = quantized(function, w, x)
    (node,) = model.network(x).nodes
    assert isinstance(node, ConvNode)
    wanted = {"relu6": "clip", "where": "leaky_relu"}.get(name, name)
    assert node.activation is not None and node.activation.kind == wanted
    assert sqnr(function(w, x), model(model.params, x)) > 30


def test_pads_are_folded_and_zero_rows_are_kept():
    def function(w, x):
        x = jnp.pad(x, ((0, 0), (1, 2), (0, 1), (0, 0)))
        return conv(x, w, padding=((1, 0), (0, 0)))

    x, w = images(c=8), weights(3, 3, 8, 16)
    model = quantized(function, w, x)
    (node,) = (n for n in model.network(x).nodes if isinstance(n, ConvNode))
    assert dict(node.placement.options)["padding"] == ((2, 2), (0, 1))
    assert sqnr(function(w, x), model(model.params, x)) > 35


@pytest.mark.parametrize(
    "function",
    [
        lambda y: jnp.float32(1e-6) * jnp.tanh(y),
        lambda y: jax.nn.relu(y * jnp.float32(1e-11)),
        lambda y: jnp.where(y > 0.004, y, jnp.float32(0)),
        lambda y: y * (y > 0),
        lambda y: jnp.clip(y, 0, 2e4),
    ],
    ids=["tiny", "tiny relu", "threshold", "mask", "high clip"],
)
def test_functions_like_activations_are_not_taken_for_them(function):
    x, w = images(c=8), weights(3, 3, 8, 16)

    def net(w, x):
        with jax.numpy_dtype_promotion("standard"):
            return function(conv(x, w))

    model = quantized(net, w, x)
    assert sqnr(net(w, x), model(model.params, x)) > 30


PRELUS = {
    "where": lambda s, y: jnp.where(y >= 0, y, s * y),
    "parts": lambda s, y: jnp.maximum(y, 0) + s * jnp.minimum(y, 0),
}


@pytest.mark.parametrize("shape", [(16,), (1, 1, 1, 16), ()], ids=str)
@pytest.mark.parametrize("form", PRELUS)
def test_prelu_is_recognised_by_what_it_computes(form, shape):
    def net(p, x):
        with jax.numpy_rank_promotion("allow"):
            return PRELUS[form](p["s"], conv(x, p["a"]))

    x = images(size=8)
    slopes = np.random.default_rng(3).uniform(-0.5, 1.5, shape).astype("f")
    p = {"a": weights(3, 3, 3, 16), "s": slopes}
    model = quantized(net, p, x)
    (node,) = model.network(x).nodes
    assert isinstance(node, ConvNode)
    assert node.activation is not None and node.activation.kind == "prelu"
    assert sqnr(net(p, x), model(model.params, x)) > 35


@pytest.mark.parametrize(
    "function",
    [
        lambda s, y: jnp.maximum(y, s * y),
        lambda s, y: jnp.where(s > 1, y, jnp.tanh(y)),
        lambda s, y: jnp.maximum(y, s),
    ],
    ids=["slopes below 1", "a mask", "a floor"],
)
def test_functions_like_prelu_are_not_taken_for_it(function):
    def net(p, x):
        with jax.numpy_rank_promotion("allow"):
            return function(p["s"], conv(x, p["a"]))

    p, x = {"a": weights(3, 3, 3, 16), "s": np.linspace(0, 2, 16, dtype="f")}, images(size=8)
    model = quantized(net, p, x)
    assert not any(layer.slopes for layer in model.network(x).layers)
    assert sqnr(net(p, x), model(model.params, x)) > 30


def test_what_follows_a_transposition_is_folded_in_too():
    def net(p, x):
        y = conv(x, p["a"]) * p["c"].reshape(1, 1, 1, 16)
        y = y.transpose(0, 3, 1, 2) + p["c"].reshape(1, 16, 1, 1)
        return jax.nn.relu(y)

    p, x = {"a": weights(3, 3, 3, 16), "c": np.linspace(0.1, 1, 16, dtype="f")}, images(size=8)
    model = quantized(net, p, x)
    assert kinds(model, x) == {"ConvNode": 1}
    assert sqnr(net(p, x), model(model.params, x)) > 35


def test_each_region_is_looked_at_once(monkeypatch):
    seen = collections.Counter()
    recognise = _regions.recognise

    def counted(region):
        seen[region.start, region.end] += 1
        return recognise(region)

    monkeypatch.setattr(_regions, "recognise", counted)
    net, p, x = between(lambda _, y: jax.nn.hard_swish(y * 2 + 1) + y)
    model = quantized(net, p, x)
    assert model and max(seen.values()) == 1 < len(seen)


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint, jax.named_call])
def test_frames_around_steps_are_looked_through(wrap):
    block = wrap(lambda w, x: jax.nn.relu(conv(x, w)))
    x, w = images(c=8), weights(3, 3, 8, 8)
    model = quantized(lambda w, x: block(w, block(w, x)), w, x)
    assert kinds(model, x) == {"ConvNode": 2}
    assert len(model.params["layers"]) == 2
