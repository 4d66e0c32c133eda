"""Small float networks made int8: data, weights, and what became of them."""

from __future__ import annotations

import collections

import jax
import numpy as np

from jax_qconv import quantize_model


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


def real_steps(model, *data):
    """The steps that don't run in int8, and why."""
    network = model.network(*data)
    nodes = [node for node in network.nodes if not network.runs_in_int8(node)]
    return {node.step.name: getattr(node, "why", None) for node in nodes}


def between(function, *, channels=16, first=False):
    """A network, its parameters and data: a function of these and 16 channels, between two layers.

    Args:
        function: of parameters and a value, to ``channels`` of them.
        channels: of its output.
        first: whether channels are the second axis, not the last.
    """
    numbers = {"dimension_numbers": ("NCHW", "OIHW", "NCHW")} if first else {}

    def net(p, x):
        y = function(p, jax.nn.relu(conv(x, p["a"], **numbers)))
        return conv(y, p["b"], **numbers)

    p, x = {"a": weights(3, 3, 3, 16), "b": weights(3, 3, channels, 8)}, images(n=2, size=8)
    if first:
        p, x = jax.tree.map(lambda w: w.transpose(3, 2, 0, 1), p), x.transpose(0, 3, 1, 2)
    return net, p, x
