"""What flows between the layers of a network in int8, and what stays real."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float_nets import between, conv, images, kinds, quantized, real_steps, sqnr, weights

from jax_qconv._op_nodes import Lookup


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
    net, p, x = between(lambda p, y: y * gate(p, y))
    p |= {"c": weights(16, 16)}
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
    net, p, x = between(lambda _, y: function(y) + y)
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


# Where channels are first: those that do to the last axis what they don't to others.
FIRST = ["pixel shuffle", "resize", "slices", "split", "gather"]
CHANNELS = {False: "channels last", True: "channels first"}


@pytest.mark.parametrize(
    ("name", "first"),
    [*((name, False) for name in MOVES), *((name, True) for name in FIRST)],
    ids=lambda v: CHANNELS.get(v, v),
)
def test_what_only_moves_elements_stays_int8(name, first):
    function, channels = MOVES[name]

    def moved(_, y):
        y = function(y.transpose(0, 2, 3, 1) if first else y)
        return y.transpose(0, 3, 1, 2) if first else y

    net, p, x = between(moved, first=first, channels=channels)
    model = quantized(net, p, x)
    assert real_steps(model, x) == {}
    assert sqnr(net(p, x), model(model.params, x)) > 30


def average(y, padding, **options):
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        return nn.avg_pool(y, (3, 3), (1, 2), padding, **options)


@pytest.mark.parametrize("first", CHANNELS, ids=CHANNELS.get)
@pytest.mark.parametrize(
    "pool",
    [
        lambda y: average(y, "SAME"),
        lambda y: average(y, "SAME", count_include_pad=False),
        lambda y: average(y, "VALID", count_include_pad=False),
        lambda y: jnp.repeat(y.max((1, 2), keepdims=True) - y.min((1, 2))[:, None, None], 4, 1),
        lambda y: y - y.max(3, keepdims=True),
    ],
    ids=["padding counts", "padding doesn't count", "no padding", "extremes", "of channels"],
)
def test_pools_of_all_kinds_stay_int8(pool, first):
    def pooled(_, y):
        y = pool(y.transpose(0, 2, 3, 1) if first else y)
        return y.transpose(0, 3, 1, 2) if first else y

    net, p, x = between(pooled, first=first)
    model = quantized(net, p, x)
    assert real_steps(model, x) == {}
    assert sqnr(net(p, x), model(model.params, x)) > 28


STEEP = {
    "a pole": lambda y: jax.lax.rsqrt(y * y + 1e-6),
    "a jump": lambda y: jnp.sign(y - 1e-3),
    "undefined": lambda y: jnp.sqrt(y + 0.01),
}


@pytest.mark.parametrize("name", STEEP)
def test_functions_that_are_too_steep_for_a_table_stay_real(name):
    net, p, x = between(lambda _, y: STEEP[name](y))
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
    net, p, x = between(lambda _, y: read(y))
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
    net, p, x = between(lambda _, y: function(y))
    model = quantized(net, p, x)
    assert whys.items() <= real_steps(model, x).items()
    assert sqnr(net(p, x), model(model.params, x)) > 28


def test_what_is_not_understood_stays_real_and_right():
    def net(p, x):
        y = jnp.sort(conv(x, p["a"]), axis=1)
        return conv(y, p["b"])

    p, x = {"a": weights(3, 3, 3, 8), "b": weights(3, 3, 8, 8)}, images()
    model = quantized(net, p, x)
    assert kinds(model, x) == {"ConvNode": 2, "RealNode": 1}
    assert sqnr(net(p, x), model(model.params, x)) > 35
