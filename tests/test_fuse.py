"""What is found in a network: what is folded into layers, and what flows between in int8."""

from __future__ import annotations

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float_nets import conv, images, kinds, quantized, real_steps, sqnr, weights

from jax_qconv import _regions
from jax_qconv._conv_node import ConvNode, macs
from jax_qconv._op_nodes import Lookup


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


@pytest.mark.parametrize(
    "function",
    [lambda y: jnp.exp(-y * y), lambda y: jax.nn.elu(y), lambda y: jax.nn.softplus(y) * 0.5],
    ids=["bell", "elu", "softplus"],
)
def test_any_other_function_of_single_elements_is_a_table(function):
    def net(p, x):
        return conv(function(conv(x, p["a"])), p["b"])

    p, x = {"a": weights(3, 3, 8, 16), "b": weights(3, 3, 16, 8)}, images(c=8)
    model = quantized(net, p, x)
    assert kinds(model, x) == {"ConvNode": 2, "Lookup": 1}
    assert sqnr(net(p, x), model(model.params, x)) > 30


def test_pads_are_folded_and_zero_rows_are_kept():
    def function(w, x):
        x = jnp.pad(x, ((0, 0), (1, 2), (0, 1), (0, 0)))
        return conv(x, w, padding=((1, 0), (0, 0)))

    x, w = images(c=8), weights(3, 3, 8, 16)
    model = quantized(function, w, x)
    (node,) = (n for n in model.network(x).nodes if isinstance(n, ConvNode))
    assert dict(node.placement.options)["padding"] == ((2, 2), (0, 1))
    assert sqnr(function(w, x), model(model.params, x)) > 35


def test_flattened_values_keep_their_order():
    def net(p, x):
        y = jax.nn.relu(conv(x, p["a"], dimension_numbers=("NCHW", "OIHW", "NCHW")))
        return y.reshape(len(y), -1) @ p["b"]

    p = {"a": weights(20, 3, 3, 3), "b": weights(20 * 36, 7)}
    x = images(n=2, size=6).transpose(0, 3, 1, 2)
    model = quantized(net, p, x)
    assert kinds(model, x) == {"ConvNode": 2, "Reshape": 1}
    assert sqnr(net(p, x), model(model.params, x)) > 30


@pytest.mark.parametrize(
    "between",
    [
        lambda y: jax.lax.reduce_window(
            y.reshape(2, 4, 4, 64), -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID"
        ),
        lambda y: y.reshape(2, 16, 8, 8).mean((2, 3)),
        lambda y: y.reshape(2, 16, 8, 8).mean((1, 2)),
        lambda y: y.mean((2, 3)),
        lambda y: jnp.pad(y.reshape(2, 16, 8, 8), ((0, 0), (0, 0), (1, 0), (0, 2))),
        lambda y: jnp.pad(y, ((0, 0), (0, 0), (0, 0), (0, 3))),
        lambda y: jnp.concatenate([y, y[:, ::-1]], 1),
    ],
    ids=["pool", "mean", "other mean", "mean of channels", "pad", "pad channels", "rows"],
)
def test_operations_find_their_axes_wherever_they_are_stored(between):
    def net(p, x):
        y = between(jax.nn.relu(conv(x, p["a"])))
        return y.reshape(2, -1) @ p["b"]

    x = images(n=2, size=8)
    p = {"a": weights(3, 3, 3, 16)}
    inner = jax.eval_shape(lambda x: between(conv(x, p["a"])).reshape(2, -1), x).shape[-1]
    p["b"] = weights(inner, 5)
    model = quantized(net, p, x)
    assert sqnr(net(p, x), model(model.params, x)) > 28


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


@pytest.mark.parametrize(
    "net",
    [
        lambda p, x: (
            jnp.concatenate([jnp.broadcast_to(p["c"], (4, 1, 32)), hidden(p, x)], 1) @ p["d"]
        ),
        lambda p, x: jnp.concatenate([hidden(p, x), jnp.ones((4, 64, 32))], -1)[..., :32] @ p["d"],
        lambda p, x: jnp.einsum("ntd,td->nt", hidden(p, x), p["e"]),
        lambda p, x: jax.lax.reshape(hidden(p, x), (4, 32, 64), (0, 2, 1))[..., :32] @ p["d"],
        lambda p, x: conv(image(p, x) * jnp.cumsum(image(p, x), 1), p["f"]),
    ],
    ids=["concat parameter", "concat constant", "batched product", "reordering", "real product"],
)
def test_what_looks_like_int8_but_is_not_stays_right(net):
    p = {"a": weights(3, 3, 3, 32), "c": weights(32), "d": weights(32, 5), "e": weights(64, 32)}
    p["f"] = weights(3, 3, 32, 8)
    x = images(size=8)
    model = quantized(net, p, x)
    assert sqnr(net(p, x), model(model.params, x)) > 28


def image(p, x):
    return jax.nn.relu(conv(x, p["a"]))


def hidden(p, x):
    return image(p, x).reshape(4, 64, 32)


def between(function, *, first=False, size=8):
    """A network with a function between two convolutions, of channels first or last."""
    numbers = {"dimension_numbers": ("NCHW", "OIHW", "NCHW")} if first else {}

    def net(p, x):
        y = function(p, jax.nn.relu(conv(x, p["a"], **numbers)))
        return conv(y, p["b"], **numbers)

    def parameters(channels):
        a, b = weights(3, 3, 3, 16), weights(3, 3, channels, 8)
        return {"a": a.transpose(3, 2, 0, 1), "b": b.transpose(3, 2, 0, 1)} if first else {
            "a": a, "b": b}  # fmt: skip

    x = images(n=2, size=size)
    return net, parameters, x.transpose(0, 3, 1, 2) if first else x


@pytest.mark.parametrize(
    "gate",
    [
        lambda p, y: jax.nn.sigmoid(y.mean((1, 2), keepdims=True) @ p["c"]),
        lambda p, y: jax.nn.hard_sigmoid(y.mean((1, 2)) @ p["c"])[:, None, None],
        lambda p, y: jax.nn.sigmoid(conv(y.mean((1, 2), keepdims=True), p["c"][None, None])),
    ],
    ids=["axes kept", "axes dropped", "convolution"],
)
def test_a_gate_of_squeeze_and_excitation_stays_int8(gate):
    net, parameters, x = between(lambda p, y: y * gate(p, y))
    p = parameters(16) | {"c": weights(16, 16)}
    model = quantized(net, p, x)
    assert kinds(model, x)["ConvNode"] == 3 and kinds(model, x)["Binary"] == 1
    assert real_steps(model, x) == {}
    assert sqnr(net(p, x), model(model.params, x)) > 25


@pytest.mark.parametrize(
    "function",
    [
        lambda y: y * jax.nn.sigmoid(y) + jnp.tanh(y),
        lambda y: jnp.concatenate([jnp.tanh(y), y * jax.nn.sigmoid(y)], -1)[..., :16],
        lambda y: jnp.concatenate([jax.nn.gelu(y) + jnp.tanh(y), jnp.tanh(y) - y], -1)[..., 8:24],
    ],
    ids=["one function", "two readers", "a reader of both"],
)
def test_every_elementwise_reader_of_a_value_stays_int8(function):
    net, parameters, x = between(lambda _, y: function(y) + y)
    p = parameters(16)
    model = quantized(net, p, x)
    assert real_steps(model, x) == {}
    assert sqnr(net(p, x), model(model.params, x)) > 28


def shuffled(y):
    """[N, H, W, 4 * C] to [N, 2 * H, 2 * W, C]."""
    n, h, w, c = y.shape
    y = y.reshape(n, h, w, 2, 2, c // 4).transpose(0, 1, 3, 2, 4, 5)
    return y.reshape(n, 2 * h, 2 * w, c // 4)


MOVES = {
    "pixel shuffle": (shuffled, 4),
    "repeat": (lambda y: jnp.repeat(jnp.repeat(y, 2, axis=1), 2, axis=2), 16),
    "resize": (lambda y: jax.image.resize(y, (2, 16, 12, 16), "nearest"), 16),
    "slices": (lambda y: y[:, 1:, ::2, 3:9], 6),
    "index": (lambda y: y[:, 2, None], 16),
    "reversed": (lambda y: y[:, ::-1, :, ::-1], 16),
    "split": (lambda y: sum(jnp.split(y, 2, axis=-1)), 8),
    "stack": (lambda y: jnp.stack([y, y[:, ::-1]], 3).reshape(2, 8, 8, 32), 32),
    "roll": (lambda y: jnp.roll(y, 3, axis=(1, 3)), 16),
    "tile": (lambda y: jnp.tile(y, (1, 2, 1, 1)), 16),
    "gather": (lambda y: y[..., np.array([3, 1, 15])], 3),
    "take": (lambda y: jnp.take(y, np.array([3, 1]), axis=1), 16),
    "from a place": (lambda y: jax.lax.dynamic_slice(y, (0, 1, 2, 0), (2, 5, 5, 8)), 8),
}


@pytest.mark.parametrize("first", [False, True], ids=["channels last", "channels first"])
@pytest.mark.parametrize("name", MOVES)
def test_what_only_moves_elements_stays_int8(name, first):
    function, channels = MOVES[name]

    def moved(_, y):
        y = function(y.transpose(0, 2, 3, 1) if first else y)
        return y.transpose(0, 3, 1, 2) if first else y

    net, parameters, x = between(moved, first=first)
    p = parameters(channels)
    model = quantized(net, p, x)
    assert real_steps(model, x) == {}
    assert sqnr(net(p, x), model(model.params, x)) > 30


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
    net, parameters, x = between(lambda _, y: jax.nn.hard_swish(y * 2 + 1) + y)
    model = quantized(net, parameters(16), x)
    assert model and max(seen.values()) == 1 < len(seen)


STEEP = {
    "a pole": lambda y: jax.lax.rsqrt(y * y + 1e-6),
    "a jump": lambda y: jnp.sign(y - 1e-3),
    "undefined": lambda y: jnp.sqrt(y + 0.01),
}


@pytest.mark.parametrize("name", STEEP)
def test_functions_that_are_too_steep_for_a_table_stay_real(name):
    net, parameters, x = between(lambda _, y: STEEP[name](y))
    p = parameters(16)
    model = quantized(net, p, x)
    network = model.network(x)
    assert not any(isinstance(n, Lookup) and network.runs_in_int8(n) for n in network.nodes)


@pytest.mark.parametrize(
    ("read", "why"),
    [
        (lambda y: jnp.take(y, np.array([3, 9]), axis=1, fill_value=7.0), "it may read outside"),
        (
            lambda y: jnp.take(y, jnp.argmax(y[0, 0, 0, :2]).reshape(1), axis=1, mode="clip"),
            "where it reads depends on data",
        ),
    ],
    ids=["outside", "data"],
)
def test_what_reads_anywhere_stays_real(read, why):
    net, parameters, x = between(lambda _, y: read(y))
    p = parameters(16)
    model = quantized(net, p, x)
    assert real_steps(model, x)["gather"] == why
    assert sqnr(net(p, x), model(model.params, x)) > 30


WHYS = {
    "bilinear": (
        lambda y: jax.image.resize(y, (2, 16, 16, 16), "bilinear"),
        {"dot_general": "its matrix isn't learned, but computed, as for a resize"},
    ),
    "softmax": (jax.nn.softmax, {"reduce_sum": "its sum isn't divided by how many there are"}),
    "sort": (lambda y: jnp.sort(y, 1), {"sort": "there is no int8 form of it"}),
    "sums": (lambda y: jnp.cumsum(y, 1), {"cumsum": "there is no int8 form of it"}),
    "while": (
        lambda y: jax.lax.while_loop(lambda v: v.sum() > 1, lambda v: v / 2, y),
        {"while": "its body is not looked into"},
    ),
    "cond": (
        lambda y: jax.lax.cond(y.sum() > 1, lambda v: v * 2, lambda v: v, y),
        {"cond": "its body is not looked into"},
    ),
    "attention": (
        lambda y: jnp.einsum("nhwc,nhvc,nhvd->nhwd", y, y, y),
        {"dot_general": "both its operands depend on data"},
    ),
}


@pytest.mark.parametrize("name", WHYS)
def test_what_stays_real_says_why(name):
    function, whys = WHYS[name]
    net, parameters, x = between(lambda _, y: function(y))
    p = parameters(16)
    model = quantized(net, p, x)
    assert whys.items() <= real_steps(model, x).items()
    assert sqnr(net(p, x), model(model.params, x)) > 28


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint, jax.named_call])
def test_frames_around_steps_are_looked_through(wrap):
    block = wrap(lambda w, x: jax.nn.relu(conv(x, w)))
    x, w = images(c=8), weights(3, 3, 8, 8)
    model = quantized(lambda w, x: block(w, block(w, x)), w, x)
    assert kinds(model, x) == {"ConvNode": 2}
    assert len(model.params["layers"]) == 2


def test_what_is_not_understood_stays_real_and_right():
    def net(p, x):
        y = jnp.sort(conv(x, p["a"]), axis=1)
        return conv(y, p["b"])

    p, x = {"a": weights(3, 3, 3, 8), "b": weights(3, 3, 8, 8)}, images()
    model = quantized(net, p, x)
    assert kinds(model, x) == {"ConvNode": 2, "RealNode": 1}
    assert sqnr(net(p, x), model(model.params, x)) > 35


def test_loops_stay_real():
    def net(p, x):
        y = jax.nn.relu(conv(x, p["a"]))
        y, _ = jax.lax.scan(lambda y, w: (jax.nn.relu(conv(y, w)), None), y, p["b"])
        return y

    p = {"a": weights(3, 3, 3, 8), "b": np.stack([weights(3, 3, 8, 8, seed=i) for i in range(3)])}
    x = images()
    model = quantized(net, p, x)
    assert sqnr(net(p, x), model(model.params, x)) > 35
    assert set(model.params["real"]) == {"b"}
