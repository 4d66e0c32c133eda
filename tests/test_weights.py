"""Weights are rounded as was asked, and compensated rounding does less harm to sums."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float_nets import conv, images, quantized, sqnr, weights

import jax_qconv
from jax_qconv import MSE, AbsMax, Percentile, Rule, _weights, prepack, quantize_model, unpack
from jax_qconv._weight_clipping import clipped_weight_scale

# Op by op, each of many would be compiled alone.
rounded = jax.jit(_weights.rounded)
weight_scale = jax.jit(_weights.weight_scale, static_argnames=("observer", "per_channel"))


def correlated(n, taps, seed=0):
    """Rows whose numbers are large together, as after a relu."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(n, taps // 2)) @ rng.normal(size=(taps // 2, taps))
    return np.maximum(mixed + 1, 0).astype(np.float32)


@pytest.mark.parametrize("per_channel", [True, False])
def test_weights_to_nearest_are_those_of_prepack(per_channel):
    w = weights(3, 3, 8, 16)
    expected = unpack(prepack(w, per_channel=per_channel))
    scale = weight_scale(w, observer=AbsMax(), per_channel=per_channel)
    np.testing.assert_array_equal(scale, expected.weight_scale)
    np.testing.assert_array_equal(rounded(w, scale), expected.weight)


def test_the_observer_of_weights_decides_on_their_scale():
    w = weights(3, 3, 8, 16)
    w[0, 0, 0] *= 20
    full = weight_scale(w, observer=AbsMax(), per_channel=True)
    np.testing.assert_array_equal(
        weight_scale(w, observer=MSE(), per_channel=True), clipped_weight_scale(w)
    )
    clipped = weight_scale(w, observer=Percentile(95.0), per_channel=True)
    assert (clipped < full).all() and clipped.shape == (16,)
    assert weight_scale(w, observer=Percentile(95.0), per_channel=False).shape == ()


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_compensated_rounding_makes_sums_more_accurate(groups):
    x = correlated(500, 72 * 8)
    w = weights(3, 3, 64 // groups, 16)
    taps = 9 * 64 // groups
    rows = x[:, : taps * groups].reshape(-1, groups, taps)
    second = jnp.asarray(np.einsum("ngt,ngu->gtu", rows, rows) / len(rows))
    scale = weight_scale(w, observer=AbsMax(), per_channel=True)
    noise = {}
    for name, given in (("nearest", None), ("compensated", second)):
        integers = rounded(w, scale, second=given)
        assert integers.dtype == jnp.int8 and integers.shape == w.shape
        assert np.abs(np.asarray(integers)).max() <= 127
        error = np.asarray(integers) * np.asarray(scale) - w
        by_group = np.moveaxis(error, -2, 0).reshape(taps, groups, -1)
        noise[name] = (np.einsum("ngt,tgk->ngk", rows, by_group) ** 2).mean()
    assert noise["compensated"] < 0.7 * noise["nearest"]


def test_compensated_rounding_is_to_nearest_where_inputs_have_nothing_in_common():
    w = weights(3, 3, 8, 16)
    scale = weight_scale(w, observer=AbsMax(), per_channel=True)
    second = jnp.eye(72)[None] * 3
    np.testing.assert_array_equal(rounded(w, scale, second=second), rounded(w, scale))


def test_moments_that_rounding_made_irregular_still_help():
    rng = np.random.default_rng(0)
    # Fewer samples than taps: no say in most directions, less than none in some.
    rows = rng.normal(size=(40, 128)).astype(np.float32)
    w = weights(128, 16)
    scale = weight_scale(w, observer=AbsMax(), per_channel=True)
    exact = rows.T @ rows / len(rows)
    second = exact + rng.normal(0, 3e-5, exact.shape).astype(np.float32)
    second = (second + second.T) / 2
    assert np.linalg.eigvalsh(second).min() < -1e-4
    noise = [
        ((rows @ (np.asarray(rounded(w, scale, second=given)) * np.asarray(scale) - w)) ** 2).mean()
        for given in (None, jnp.asarray(second)[None])
    ]
    assert noise[1] < 0.7 * noise[0]


def test_moments_that_are_none_leave_weights_rounded_to_nearest():
    w = weights(8, 16)
    scale = weight_scale(w, observer=AbsMax(), per_channel=True)
    second = -100.0 * jnp.eye(8)[None] + 1.0
    np.testing.assert_array_equal(rounded(w, scale, second=second), rounded(w, scale))


def test_inputs_that_are_never_active_do_no_harm():
    w = weights(8, 16)
    scale = weight_scale(w, observer=AbsMax(), per_channel=True)
    x = correlated(100, 8)
    x[:, 3] = 0
    second = jnp.asarray(x.T @ x / 100)[None]
    integers = rounded(w, scale, second=second)
    np.testing.assert_array_equal(integers[3], rounded(w, scale)[3])
    np.testing.assert_array_equal(rounded(w, scale, second=jnp.zeros((1, 8, 8))), rounded(w, scale))


def shifted(x):
    """Data as after a relu: of one sign, and alike in all channels."""
    return (np.abs(x) + 2).astype(np.float32)


KINDS = {
    "dense": dict(shape=(3, 3, 8, 16)),
    "strided": dict(shape=(3, 3, 8, 16), window_strides=(2, 2)),
    "grouped": dict(shape=(3, 3, 4, 16), feature_group_count=2),
    "depthwise": dict(shape=(3, 3, 1, 8), feature_group_count=8),
    "dilated": dict(shape=(3, 3, 8, 16), rhs_dilation=(2, 2)),
    "transposed": dict(shape=(4, 4, 8, 16), lhs_dilation=(2, 2), padding=((2, 2), (2, 2))),
    "NCHW": dict(shape=(16, 8, 3, 3), dimension_numbers=("NCHW", "OIHW", "NCHW")),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_layer_can_be_compensated(kind):
    options = dict(KINDS[kind])
    w, x = weights(*options.pop("shape")), shifted(images(c=8))
    if kind == "NCHW":
        x = np.moveaxis(x, -1, 1)

    def net(w, x):
        return conv(x, w, **options)

    found = {}
    for rounding in ("nearest", "compensated"):
        model = quantized(net, w, x, rounding=rounding, asymmetric=True)
        found[rounding] = sqnr(net(w, x), model(model.params, x))
    assert found["compensated"] > found["nearest"] + (0.3 if kind == "depthwise" else 1.5)


def test_products_can_be_compensated():
    w, x = weights(64, 16), shifted(images(n=32, size=4, c=4).reshape(32, 64))
    found = {}
    for rounding in ("nearest", "compensated"):
        model = quantized(lambda w, x: x @ w, w, x, rounding=rounding, asymmetric=True)
        found[rounding] = sqnr(x @ w, model(model.params, x))
    assert found["compensated"] > found["nearest"] + 1


def test_weights_given_later_are_compensated_too():
    x = shifted(images(c=8))
    first, second = weights(3, 3, 8, 16), weights(3, 3, 8, 16, seed=7)

    def net(w, x):
        return conv(x, w)

    model = quantized(net, first, x, rounding="compensated")
    fresh = quantized(net, second, x, rounding="compensated")
    repacked = jax.jit(model.pack)(second)
    np.testing.assert_array_equal(
        repacked["layers"].popitem()[1].weight, fresh.params["layers"].popitem()[1].weight
    )


def test_rules_choose_the_rounding_of_single_layers():
    def net(p, x):
        return conv(jax.nn.relu(conv(x, p["a"])), p["b"])

    p, x = {"a": weights(3, 3, 8, 16), "b": weights(3, 3, 16, 8)}, shifted(images(c=8))
    plain = quantized(net, p, x).params["layers"]
    mixed = quantized(net, p, x, rules=[Rule("b", rounding="compensated")]).params["layers"]
    np.testing.assert_array_equal(plain["a"].weight, mixed["a"].weight)
    assert (np.asarray(plain["b"].weight) != np.asarray(mixed["b"].weight)).any()


def test_an_unknown_rounding_is_refused():
    with pytest.raises(ValueError, match=r"rounding='up' is not known; use one of"):
        quantize_model(lambda w, x: x @ w, weights(4, 4), [images()], rounding="up")
    with pytest.raises(ValueError, match=r"rounding='up' is not known"):
        quantized(lambda w, x: x @ w, weights(4, 4), images(), rules=[Rule(rounding="up")])


def test_bias_correction_takes_what_rounding_left():
    x = shifted(images(c=8))
    w = weights(3, 3, 1, 8)

    def net(w, x):
        return conv(x, w, feature_group_count=8, padding="VALID")

    for rounding in ("nearest", "compensated"):
        model = quantized(net, w, x, rounding=rounding, bias_correction=True, asymmetric=True)
        shift = np.asarray(net(w, x) - model(model.params, x)).mean((0, 1, 2))
        uncorrected = quantized(net, w, x, rounding=rounding, asymmetric=True)
        before = np.asarray(net(w, x) - uncorrected(uncorrected.params, x)).mean((0, 1, 2))
        assert np.abs(shift).mean() < 0.5 * np.abs(before).mean()
    assert jax_qconv.report(model, w, [x]).output_sqnr_db > 30
