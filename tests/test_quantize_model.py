"""A float network becomes an int8 one: what is folded, what flows in int8, and how near it is."""

from __future__ import annotations

import collections

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jax_qconv
from jax_qconv import quantize_model
from jax_qconv._conv_node import ConvNode
from jax_qconv._op_nodes import RealNode


def images(n=4, size=16, c=3, seed=0):
    return np.random.default_rng(seed).normal(size=(n, size, size, c)).astype(np.float32)


def sqnr(wanted, got):
    wanted, got = np.asarray(wanted, np.float64), np.asarray(got, np.float64)
    return 10 * np.log10((wanted**2).sum() / ((wanted - got) ** 2).sum())


def weights(*shape, seed=1):
    fan_in = np.prod(shape[:-1])
    return (np.random.default_rng(seed).normal(size=shape) / np.sqrt(fan_in)).astype(np.float32)


def quantized(function, parameters, *data, **options):
    """Calibrated on the very data that it then sees."""
    batch = data if len(data) > 1 else data[0]
    # The quickest observer to compile.
    options = {"observer": "absmax", "progress": False} | options
    return quantize_model(function, parameters, [batch], **options)


def kinds(model, *data):
    """How many nodes of each kind there are."""
    return collections.Counter(type(node).__name__ for node in model.network(*data).nodes)


def conv(x, w, **options):
    options = {"window_strides": (1, 1), "padding": "SAME"} | options
    numbers = options.pop("dimension_numbers", ("NHWC", "HWIO", "NHWC"))
    return jax.lax.conv_general_dilated(x, w, dimension_numbers=numbers, **options)


class Net(nn.Module):
    """Everything that a residual network has."""

    @nn.compact
    def __call__(self, x):
        y = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(16, (3, 3))(x)))
        z = nn.BatchNorm(use_running_average=True)(nn.Conv(16, (3, 3), use_bias=False)(y))
        y = nn.relu(y + z)
        y = nn.max_pool(y, (2, 2), (2, 2))
        y = nn.relu6(nn.Conv(32, (3, 3), feature_group_count=16)(y))
        y = nn.silu(nn.Conv(24, (1, 1))(y))
        y = jnp.concatenate([y, nn.Conv(8, (3, 3))(y)], -1)
        y = nn.avg_pool(y, (2, 2), (2, 2))
        return nn.Dense(10)(y.mean((1, 2)))


@pytest.fixture(scope="module")
def net():
    x = images()
    # Flax itself mixes dtypes and ranks.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        params = Net().init(jax.random.key(0), x)
    rng = np.random.default_rng(2)
    params = jax.tree.map(lambda v: v + np.abs(rng.normal(0, 0.05, v.shape)).astype("f"), params)

    def function(params, x):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return Net().apply(params, x)

    return function, params, x


def test_a_network_of_flax_runs_in_int8_from_end_to_end(net):
    function, params, x = net
    model = quantized(function, params, x)
    found = kinds(model, x)
    assert found == {"ConvNode": 6, "MaxPool": 1, "Concat": 1, "AvgPool": 1, "GlobalAvgPool": 1}
    assert model.params["real"] == {}
    assert sqnr(function(params, x), model(model.params, x)) > 35


def test_jit_changes_no_bit_and_batches_may_differ(net):
    function, params, x = net
    model = quantized(function, params, x)
    out = model(model.params, x)
    np.testing.assert_array_equal(jax.jit(model)(model.params, x), out)
    np.testing.assert_array_equal(model(model.params, x[:1]), out[:1])


def test_packing_can_be_jitted_and_gives_the_same_bytes(net):
    function, params, x = net
    model = quantized(function, params, x)
    again = jax.jit(model.pack)(params)
    weights, others = (
        [np.asarray(p.weight) for p in tree["layers"].values()] for tree in (model.params, again)
    )
    for a, b in zip(weights, others, strict=True):
        assert (a != b).mean() < 1e-3  # batch norms are folded by other fusions of XLA


def test_other_parameters_can_be_packed_at_the_same_scales(net):
    function, params, x = net
    model = quantized(function, params, x)
    other = jax.tree.map(lambda v: v * np.float32(1.01), params)
    assert sqnr(function(other, x), model(model.pack(other), x)) > 30


def test_layers_are_named_by_their_weights(net):
    function, params, x = net
    names = set(quantized(function, params, x).params["layers"])
    assert names == {f"params/Conv_{i}" for i in range(5)} | {"params/Dense_0"}


def test_a_batch_norm_is_folded_into_weights_and_bias(net):
    function, params, x = net
    packed = quantized(function, params, x).params["layers"]["params/Conv_0"]
    batch_norm, stats = params["params"]["BatchNorm_0"], params["batch_stats"]["BatchNorm_0"]
    factor = np.asarray(batch_norm["scale"]) / np.sqrt(np.asarray(stats["var"]) + 1e-5)
    bias = (params["params"]["Conv_0"]["bias"] - stats["mean"]) * factor + batch_norm["bias"]
    np.testing.assert_allclose(packed.bias, bias, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        jax_qconv.unpack(packed).weight_scale,
        np.abs(np.asarray(params["params"]["Conv_0"]["kernel"]) * factor).max((0, 1, 2)) / 127,
        rtol=1e-5,
    )


def test_nnx_modules_are_quantised_as_they_are():
    class Small(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(3, 16, (3, 3), rngs=rngs)
            self.norm = nnx.BatchNorm(16, use_running_average=True, rngs=rngs)
            self.out = nnx.Linear(16, 5, rngs=rngs)

        def __call__(self, x):
            return self.out(nnx.relu(self.norm(self.conv(x))).mean((1, 2)))

    graphdef, state = nnx.split(Small(nnx.Rngs(0)))
    x = images()
    model = quantized(lambda state, x: nnx.merge(graphdef, state)(x), state, x)
    assert kinds(model, x) == {"ConvNode": 2, "GlobalAvgPool": 1}
    assert sqnr(nnx.merge(graphdef, state)(x), model(model.params, x)) > 35


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


def test_a_network_that_does_other_things_for_other_sizes_is_refused():
    def net(w, x):
        y = jax.nn.relu(conv(x, w))
        return y[:, :8] if x.shape[1] > 8 else y

    x, w = images(size=8, c=8), weights(3, 3, 8, 16)
    model = quantized(net, w, x)
    with pytest.raises(ValueError, match="does other things for data of shape"):
        model(model.params, images(size=16, c=8))


def test_a_layer_that_is_used_twice_goes_by_one_rule():
    def net(p, x):
        return conv(conv(conv(x, p["b"]), p["a"]), p["a"])

    p, x = {"a": weights(3, 3, 8, 8), "b": weights(3, 3, 8, 8)}, images(c=8)
    model = quantized(net, p, x, rules=[jax_qconv.Rule("a", skip=True)])
    assert set(model.params["layers"]) == {"b"}


def test_a_gate_of_squeeze_and_excitation_stays_int8():
    def net(p, x):
        y = jax.nn.silu(conv(x, p["a"]))
        gate = jax.nn.sigmoid(y.mean((1, 2), keepdims=True) @ p["b"])
        return conv(y * gate, p["c"])

    p = {"a": weights(3, 3, 3, 16), "b": weights(16, 16), "c": weights(1, 1, 16, 8)}
    x = images()
    model = quantized(net, p, x)
    assert kinds(model, x)["ConvNode"] == 3 and kinds(model, x)["Binary"] == 1
    assert sqnr(net(p, x), model(model.params, x)) > 25


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


def test_a_network_of_bfloat16_gives_bfloat16():
    x, w = images(c=8), weights(3, 3, 8, 16)
    x, w = jnp.asarray(x, jnp.bfloat16), jnp.asarray(w, jnp.bfloat16)
    model = quantized(lambda w, x: jax.nn.relu(conv(x, w)), w, x)
    out = model(model.params, x)
    assert out.dtype == jnp.bfloat16
    assert sqnr(jax.nn.relu(conv(x, w)).astype("f"), out.astype("f")) > 30


def test_zero_points_help_one_sided_values():
    def net(p, x):
        return conv(jax.nn.relu(conv(x, p["a"])), p["b"])

    p, x = {"a": weights(3, 3, 3, 16), "b": weights(3, 3, 16, 8)}, images()
    found = {}
    for asymmetric in (False, True):
        model = quantized(net, p, x, asymmetric=asymmetric, observer="minmax")
        found[asymmetric] = sqnr(net(p, x), model(model.params, x))
    assert found[True] > found[False] + 1


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"feature_group_count": 8},
        {"feature_group_count": 2},
        {"lhs_dilation": (2, 2), "padding": ((2, 2), (2, 2))},
    ],
    ids=["dense", "depthwise", "groups", "transposed"],
)
def test_a_corrected_bias_keeps_the_mean_of_each_channel(options):
    size = 4 if "lhs_dilation" in options else 3
    w = weights(size, size, 8 // options.get("feature_group_count", 1), 16)
    w = w * np.geomspace(1, 30, 16, dtype="f")  # one scale for all: a coarse one for most
    x = np.abs(images(n=8, size=32, c=8)) + np.float32(1)
    function = lambda w, x: conv(x, w, **options)  # noqa: E731
    errors = {}
    for corrected in (False, True):
        model = quantized(function, w, x, per_channel=False, bias_correction=corrected)
        difference = np.asarray(model(model.params, x) - function(w, x))
        errors[corrected] = np.abs(difference.mean((0, 1, 2))).mean()
    assert errors[True] < errors[False] / 3


def test_one_custom_call_for_each_layer(net):
    function, params, x = net
    model = quantized(function, params, x)
    text = jax.jit(model).trace(model.params, x).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@jax_qconv.conv(") == 6


def test_vmap_over_a_model(net):
    function, params, x = net
    model = quantized(function, params, x)
    out = jax.vmap(model, in_axes=(None, 0))(model.params, x[:, None])
    np.testing.assert_allclose(out[:, 0], model(model.params, x), rtol=1e-6)


def test_rules_leave_layers_real_or_change_their_weights(net):
    function, params, x = net
    rules = [
        jax_qconv.Rule("params/Dense_*", skip=True),
        jax_qconv.Rule("*Conv_0", per_channel=False),
    ]
    model = quantized(function, params, x, rules=rules)
    layers = model.params["layers"]
    assert "params/Dense_0" not in layers
    assert set(model.params["real"]) == {"params/Dense_0/kernel", "params/Dense_0/bias"}
    assert layers["params/Conv_0"].weight_scale.shape == ()
    assert layers["params/Conv_1"].weight_scale.shape == (16,)
    whys = [n.why for n in model.network(x).nodes if isinstance(n, RealNode) and n.why]
    assert "a rule skips it" in whys


def test_a_rule_that_fits_nothing_is_reported(net):
    function, params, x = net
    with pytest.warns(UserWarning, match=r"\['nothing'\] fit no layer"):
        quantized(function, params, x, rules=[jax_qconv.Rule("nothing", skip=True)])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"batches": []}, ValueError, "at least one batch"),
        ({"batches": images()}, TypeError, "wrap a single batch in a list"),
        ({"function": lambda w, x: x * 2}, ValueError, "no convolution or product with weights"),
        (
            {"function": lambda w, x: jnp.einsum("nhwc,nhwd->cd", x, x)},
            ValueError,
            "depend on data",
        ),
        ({"batches": [np.full_like(images(c=8), np.nan)]}, ValueError, "the input made .* finite"),
        ({"parameters": weights(3, 3, 8, 16) * np.inf}, ValueError, "finite"),
        ({"observer": "best"}, ValueError, "mse"),
        ({"rules": jax_qconv.Rule("*")}, TypeError, "pass a list"),
        ({"rules": ["*"]}, TypeError, "must hold Rule"),
    ],
)
def test_bad_input_is_refused_in_words(change, error, message):
    good = {"function": lambda w, x: conv(x, w), "parameters": weights(3, 3, 8, 16)}
    good |= {"batches": [images(c=8)], "progress": False}
    with pytest.raises(error, match=message):
        quantize_model(**good | change)


def test_values_that_are_all_zero_get_a_scale():
    x, w = np.zeros((1, 6, 6, 8), np.float32), weights(3, 3, 8, 16)
    model = quantized(lambda w, x: conv(conv(x, w), w.transpose(0, 1, 3, 2)), w, x)
    assert np.asarray(model(model.params, x) == 0).all()
