"""Loops over layers are unrolled, each layer with scales of its own; loops over data stay real."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_qconv
from jax_qconv import quantize_model
from jax_qconv._graph import MOST_ITERATIONS, trace

X = np.random.default_rng(0).normal(size=(2, 8, 8, 8)).astype(np.float32)
STACKED = (np.random.default_rng(1).normal(size=(3, 3, 3, 8, 8)) / 9).astype(np.float32)


def conv(x, w):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers)


def block(y, w):
    return jax.nn.relu(conv(y, w)), None


def quantized(function, parameters, x):
    return quantize_model(function, parameters, [x], observer="absmax", progress=False)


def sqnr(wanted, got):
    return 10 * np.log10(float(jnp.sum(wanted**2) / jnp.sum((wanted - got) ** 2)))


@pytest.mark.parametrize("wrap", [lambda f: f, jax.checkpoint, jax.jit])
def test_the_body_of_a_scan_over_weights_runs_in_int8(wrap):
    def net(p, x):
        return jax.lax.scan(wrap(block), x, p["blocks"])[0]

    p = {"blocks": STACKED}
    model = quantized(net, p, X)
    assert list(model.params["layers"]) == ["blocks", "blocks#2", "blocks#3"]
    assert not model.params["real"]
    assert len({float(pack.binding.x_scale) for pack in model.params["layers"].values()}) == 3
    assert sqnr(net(p, X), jax.jit(model)(model.params, X)) > 30


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_gives_what_it_carries_and_what_it_stacks(reverse):
    def net(p, x):
        def body(carry, row):
            (w, b), (y, i) = row, carry
            y = conv(y, w) + b[None, None, None]
            return (y, i + 1), (y.mean((1, 2)), i)

        return jax.lax.scan(body, (x, 0), (p["w"], p["b"]), reverse=reverse)

    p = {"w": STACKED, "b": np.arange(24, dtype=np.float32).reshape(3, 8)}
    (y, count), (means, order) = net(p, X)
    graph = trace(net, p, X)
    assert "scan" not in {step.name for step in graph.steps}
    model = quantized(net, p, X)
    (got, n), (got_means, got_order) = model(model.params, X)
    assert int(n) == int(count) == 3
    np.testing.assert_array_equal(order, got_order)
    assert sqnr(y, got) > 30 and sqnr(means, got_means) > 30


def test_a_scan_inside_of_a_scan_is_unrolled_too():
    def net(p, x):
        return jax.lax.scan(lambda y, w: (jax.lax.scan(block, y, w)[0], None), x, p)[0]

    p = np.stack([STACKED, STACKED[::-1]])
    model = quantized(net, p, X)
    assert len(model.params["layers"]) == 6
    assert sqnr(net(p, X), model(model.params, X)) > 25


def test_a_rule_is_for_all_iterations():
    def net(p, x):
        y = jax.lax.scan(block, x, p["blocks"])[0]
        return conv(y, p["head"])

    p = {"blocks": STACKED, "head": STACKED[0]}
    rules = [jax_qconv.Rule("blocks", skip=True)]
    model = quantize_model(net, p, [X], rules=rules, progress=False)
    assert list(model.params["layers"]) == ["head"]


@pytest.mark.parametrize("length", [MOST_ITERATIONS, MOST_ITERATIONS + 1])
def test_a_long_loop_stays_real(length):
    def net(p, x):
        def step(carry, row):
            return jnp.tanh(row @ p["w"] + carry), None

        return jax.lax.scan(step, jnp.zeros(8), x)[0]

    x, p = np.ones((length, 8), np.float32), {"w": np.eye(8, dtype=np.float32)}
    names = [step.name for step in trace(net, p, x).steps]
    assert ("scan" in names) == (length > MOST_ITERATIONS)


def test_loops_without_layers_stay_as_they_are():
    def net(p, x):
        y = conv(x, p)
        return jax.lax.fori_loop(0, 3, lambda i, y: jnp.sin(y), y)

    model = quantized(net, STACKED[0], X)
    assert len(model.params["layers"]) == 1
    assert sqnr(net(STACKED[0], X), model(model.params, X)) > 30
    reasons = {layer.kind: layer.why for layer in jax_qconv.report(model, STACKED[0], [X]).layers}
    assert reasons["scan"] == "its body is not looked into"
