"""Equalisation leaves the float network as it is, and saves networks whose channels differ."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float_nets import conv, images, quantized, sqnr, weights

import jax_qconv


def uneven(w, axis=-1, seed=3):
    """Weights whose output channels differ a thousandfold."""
    factors = np.geomspace(1e-2, 10, w.shape[axis]).astype(np.float32)
    np.random.default_rng(seed).shuffle(factors)
    return w * factors


def undo(w, made_by):
    """Weights that read channels as uneven as those of others."""
    return w / np.abs(made_by).max(tuple(range(made_by.ndim - 1)))[:, None]


@pytest.fixture(scope="module")
def net():
    """Depthwise and pointwise, as in MobileNet, with channels of very different size."""
    x = images(c=8)
    a = uneven(weights(1, 1, 8, 16))
    b = weights(3, 3, 1, 16)
    c = undo(weights(1, 1, 16, 8, seed=5), a)

    def function(p, x):
        y = jax.nn.relu(conv(x, p["a"]) + p["bias"])
        y = jax.nn.relu(conv(y, p["b"], feature_group_count=16))
        return conv(y, p["c"])

    return function, {"a": a, "bias": 0.1 * a.max((0, 1, 2), keepdims=True), "b": b, "c": c}, x


@pytest.mark.parametrize("per_channel", [True, False])
def test_uneven_channels_are_rescued(net, per_channel):
    function, p, x = net
    wanted, found = function(p, x), {}
    for equalise in (False, True):
        model = quantized(function, p, x, equalise=equalise, per_channel=per_channel)
        found[equalise] = sqnr(wanted, model(model.params, x))
    assert found[True] > found[False] + 5
    assert found[True] > 28


def test_ranges_on_both_sides_become_the_same(net):
    function, p, x = net
    model = quantized(function, p, x, equalise=True, per_channel=False)
    factors = {v.reshape(-1).shape: v for v in model.calibration.factors.values()}
    assert len(model.calibration.factors) == 2 and set(factors) == {(16,)}
    unpacked = {
        name: jax_qconv.unpack(pack).weight.astype(np.float32)
        for name, pack in model.params["layers"].items()
    }
    made = np.abs(unpacked["a"]).max((0, 1, 2)) / np.abs(unpacked["a"]).max()
    read = np.abs(unpacked["b"]).max((0, 1, 2)) / np.abs(unpacked["b"]).max()
    np.testing.assert_allclose(made, read, atol=0.03)
    assert made.min() > 0.05


def test_a_value_that_others_see_is_left_alone():
    def net(p, x):
        y = jax.nn.relu(conv(x, p["a"]))
        return conv(y, p["b"]), y.sum()

    p = {"a": uneven(weights(1, 1, 8, 16)), "b": weights(1, 1, 16, 8)}
    assert not quantized(net, p, images(c=8), equalise=True).calibration.factors


@pytest.mark.parametrize(
    "between",
    [
        pytest.param(jax.nn.silu, id="silu"),
        pytest.param(jax.nn.relu6, id="relu6"),
        pytest.param(lambda y: jnp.concatenate([y, y], -1)[..., :16], id="concat"),
    ],
)
def test_what_does_not_commute_with_scaling_is_left_alone(between):
    def net(p, x):
        return conv(between(conv(x, p["a"])), p["b"])

    p = {"a": uneven(weights(1, 1, 8, 16)), "b": weights(1, 1, 16, 8)}
    assert not quantized(net, p, images(c=8), equalise=True).calibration.factors


def test_residuals_are_left_alone():
    def net(p, x):
        y = jax.nn.relu(conv(x, p["a"]))
        return conv(conv(y, p["b"]) + y, p["b"])

    p = {"a": uneven(weights(1, 1, 8, 16)), "b": weights(1, 1, 16, 16)}
    assert not quantized(net, p, images(c=8), equalise=True).calibration.factors


def test_pools_and_several_readers_are_passed():
    def net(p, x):
        y = jax.nn.relu(conv(x, p["a"]))
        y = jax.lax.reduce_window(y, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        return conv(y, p["b"]) + conv(y, p["c"])

    a = uneven(weights(1, 1, 8, 16))
    p = {"a": a, "b": undo(weights(1, 1, 16, 8), a), "c": undo(weights(1, 1, 16, 8, seed=9), a)}
    x = images(c=8)
    model = quantized(net, p, x, equalise=True, per_channel=False)
    assert len(model.calibration.factors) == 2
    assert sqnr(net(p, x), model(model.params, x)) > 28


def test_dead_channels_stay_dead(net):
    function, p, x = net
    p = p | {"a": p["a"].copy(), "c": p["c"].copy()}
    p["a"][..., 3] = 0
    p["c"][..., 5, :] = 0
    model = quantized(function, p, x, equalise=True, bias_correction=True)
    assert all(np.isfinite(v).all() for v in model.calibration.factors.values())
    assert sqnr(function(p, x), model(model.params, x)) > 28


def test_equalised_layers_can_be_compensated_and_corrected(net):
    function, p, x = net
    options = {"equalise": True, "asymmetric": True}
    plain = quantized(function, p, x, **options)
    fitted = quantized(function, p, x, rounding="compensated", bias_correction=True, **options)
    wanted = function(p, x)
    assert sqnr(wanted, fitted(fitted.params, x)) > sqnr(wanted, plain(plain.params, x))


def test_jitted_packing_gives_the_same_bytes_whatever_was_learned(net):
    function, params, x = net
    model = quantized(function, params, x, equalise=True, bias_correction=True)
    found, wanted = jax.jit(model.pack)(params), model.params
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
