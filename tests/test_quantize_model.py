"""`quantize_model`: a float network becomes an int8 one, calibrated, packed, by rules."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from float_nets import conv, images, kinds, quantized, sqnr, weights

import jax_qconv
from jax_qconv import quantize_model
from jax_qconv._op_nodes import RealNode


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
        params = jax.jit(Net().init)(jax.random.key(0), x)
    rng = np.random.default_rng(2)
    params = jax.tree.map(lambda v: v + np.abs(rng.normal(0, 0.05, v.shape)).astype("f"), params)

    def function(params, x):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return Net().apply(params, x)

    return function, params, x


@pytest.fixture(scope="module")
def model(net):
    return quantized(*net)


def test_a_network_of_flax_runs_in_int8_from_end_to_end(net, model):
    function, params, x = net
    found = kinds(model, x)
    assert found == {"ConvNode": 6, "MaxPool": 1, "Concat": 1, "AvgPool": 1, "GlobalAvgPool": 1}
    assert model.params["real"] == {}
    assert sqnr(jax.jit(function)(params, x), model(model.params, x)) > 35


def test_jit_changes_no_bit_and_batches_may_differ(net, model):
    _, _, x = net
    out = model(model.params, x)
    np.testing.assert_array_equal(jax.jit(model)(model.params, x), out)
    np.testing.assert_array_equal(model(model.params, x[:1]), out[:1])


def test_packing_can_be_jitted_and_gives_the_same_bytes(net, model):
    _, params, _ = net
    again = jax.jit(model.pack)(params)
    weights, others = (
        [np.asarray(p.weight) for p in tree["layers"].values()] for tree in (model.params, again)
    )
    for a, b in zip(weights, others, strict=True):
        assert (a != b).mean() < 1e-3  # batch norms are folded by other fusions of XLA


def test_other_parameters_can_be_packed_at_the_same_scales(net, model):
    function, params, x = net
    other = jax.tree.map(lambda v: v * np.float32(1.01), params)
    assert sqnr(jax.jit(function)(other, x), jax.jit(model)(model.pack(other), x)) > 30


def test_layers_are_named_by_their_weights(model):
    names = set(model.params["layers"])
    assert names == {f"params/Conv_{i}" for i in range(5)} | {"params/Dense_0"}


def test_a_batch_norm_is_folded_into_weights_and_bias(net, model):
    _, params, _ = net
    packed = model.params["layers"]["params/Conv_0"]
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


def test_one_custom_call_for_each_layer(net, model):
    _, _, x = net
    text = jax.jit(model).trace(model.params, x).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@jax_qconv.conv(") == 6


def test_vmap_over_a_model(net, model):
    _, _, x = net
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
