"""Rules find the layers they are for, by name, shape or place, and change these alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float_nets import conv, images, quantized, sqnr, weights

from jax_qconv import LayerInfo, MinMax, Rule, unpack


def net(p, x):
    y = jax.nn.relu(conv(x, p["stem"]["kernel"]))
    y = jax.nn.relu(conv(y, p["depthwise"]["kernel"], feature_group_count=16))
    y = jax.nn.relu(conv(y, p["body"]["kernel"]))
    return y.mean((1, 2)) @ p["head"]["kernel"]


PARAMS = {
    "stem": {"kernel": weights(3, 3, 3, 16)},
    "depthwise": {"kernel": weights(3, 3, 1, 16)},
    "body": {"kernel": weights(3, 3, 16, 32)},
    "head": {"kernel": weights(32, 10)},
}
X = images()


def layers(*rules, **options):
    return set(quantized(net, PARAMS, X, rules=list(rules), **options).params["layers"])


def test_layers_are_told_by_what_they_are():
    seen = {}

    def remember(layer):
        seen[layer.name] = layer
        return False

    with pytest.warns(UserWarning, match="fit no layer"):
        layers(Rule(where=remember, skip=True))
    assert seen["stem"] == LayerInfo("stem", "conv", (3, 3, 3, 16), first=True)
    assert seen["depthwise"] == LayerInfo("depthwise", "conv", (3, 3, 1, 16), groups=16)
    assert seen["body"] == LayerInfo("body", "conv", (3, 3, 16, 32))
    assert seen["head"] == LayerInfo("head", "linear", (32, 10), last=True)
    assert seen["the input"] == LayerInfo("the input", "input")


@pytest.mark.parametrize(
    ("rule", "left"),
    [
        (Rule("stem", skip=True), {"depthwise", "body", "head"}),
        (Rule("*th*", skip=True), {"stem", "body", "head"}),
        (Rule(where=lambda layer: layer.first or layer.last, skip=True), {"depthwise", "body"}),
        (Rule(where=lambda layer: layer.groups > 1, skip=True), {"stem", "body", "head"}),
        (Rule("*", where=lambda layer: layer.kind == "linear", skip=True),
         {"stem", "depthwise", "body"}),
        (Rule("b*", where=lambda layer: layer.weight_shape[0] == 3, skip=True),
         {"stem", "depthwise", "head"}),
    ],
)  # fmt: skip
def test_a_rule_skips_what_fits_pattern_and_predicate(rule, left):
    assert layers(rule) == left


def test_the_last_rule_that_says_something_wins():
    assert layers(Rule("*", skip=True), Rule("body", skip=False)) == {"body"}
    assert layers(Rule("body", skip=True), Rule("body", asymmetric=True)) == {
        "stem",
        "depthwise",
        "head",
    }


def test_weights_can_be_clipped_layer_by_layer():
    p = jax.tree.map(np.copy, PARAMS)
    p["body"]["kernel"][0, 0, 0] *= 30
    plain = quantized(net, p, X).params["layers"]
    rules = [Rule("body", weight_observer="percentile:95")]
    clipped = quantized(net, p, X, rules=rules).params["layers"]
    scales = {n: np.asarray(unpack(v).weight_scale) for n, v in plain.items()}
    found = {n: np.asarray(unpack(v).weight_scale) for n, v in clipped.items()}
    assert (found["body"] < scales["body"]).all()
    for name in ("stem", "depthwise", "head"):
        np.testing.assert_array_equal(found[name], scales[name])


def test_a_layer_can_write_floats():
    model = quantized(net, PARAMS, X, rules=[Rule("body", out_dtype=jnp.bfloat16)])
    packs = model.params["layers"]
    assert packs["body"].binding.out_scale is None
    assert packs["stem"].binding.out_scale is not None
    network = model.network(X)
    (body,) = [layer for layer in network.layers if layer.name == "body"]
    assert body.out not in network.int8
    out = model(model.params, X)
    assert out.dtype == jnp.float32 and sqnr(net(PARAMS, X), out) > 25


def test_observers_and_zero_points_are_those_of_the_layer_that_makes_a_value():
    rules = [Rule("stem", asymmetric=True, observer=MinMax())]
    model = quantized(net, PARAMS, X, rules=rules)
    network, found = model.network(X), {}
    for layer in network.layers[:-1]:
        found[layer.name] = model.calibration.quantisation[network.group[layer.out]]
    assert found["stem"][1] == -128 and found["depthwise"][1] is None


def test_the_input_can_have_rules():
    rules = [Rule("the input", asymmetric=True)]
    model = quantized(net, PARAMS, X + 3, rules=rules)
    network = model.network(X)
    assert model.calibration.quantisation[network.group[network.graph.data[0]]][1] is not None


@pytest.mark.parametrize(
    ("rule", "error", "message"),
    [
        (Rule(7), TypeError, "pattern of a Rule must be a text, got 7"),
        (Rule(where="conv"), TypeError, "where of a Rule must be a function, got 'conv'"),
        (Rule(skip=1), TypeError, "skip of a Rule must be True, False or None, got 1"),
        (Rule(bias_correction="yes"), TypeError, "bias_correction of a Rule must be True"),
        (Rule(weight_observer="best"), ValueError, "'best' is not known"),
        (Rule(out_dtype=jnp.int8), ValueError, "out_dtype of a Rule must be float32, bfloat16"),
        ("stem", TypeError, "rules must hold Rule, got 'stem'"),
    ],
)
def test_wrong_rules_are_refused(rule, error, message):
    with pytest.raises(error, match=message):
        layers(rule)
