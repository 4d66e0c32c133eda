"""A network from `_ocr_graph` in float32, node by node, tensors laid out as ONNX has them."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _ocr_graph import Graph, Node, Weights

_FLOAT_ACTIVATIONS = {
    None: lambda x: x,
    "relu": jax.nn.relu,
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "silu": jax.nn.silu,
}


def float_values(graph: Graph, weights: Weights, image: jax.Array) -> dict[str, Any]:
    """Every tensor of the network by name; ``image`` is ``[N, 3, H, W; float32]``."""
    values = {**graph.constants, graph.input: image}
    for node in graph.nodes:
        values[node.output] = run_float(node, [values[i] for i in node.inputs], weights)
    return values


def run_float(node: Node, inputs: list[Any], weights: Weights) -> Any:
    if node.output not in weights:
        if node.op not in _FLOAT:
            raise NotImplementedError(f"ONNX operation {node.op} isn't supported.")
        return _FLOAT[node.op](node.attributes, *inputs)
    x, *residual = inputs
    weight, bias = weights[node.output]
    if node.op == "Conv":
        y = bias[:, None, None] + jax.lax.conv_general_dilated(
            x,
            weight,
            precision="highest",
            window_strides=node.attributes["strides"],
            padding=padding(node.attributes),
            rhs_dilation=node.attributes["dilations"],
            feature_group_count=node.attributes["group"],
        )
    else:
        y = jnp.matmul(x, weight, precision="highest") + bias
    y = _FLOAT_ACTIVATIONS[node.attributes.get("activation")](y)
    return y + residual[0] if residual else y


def padding(attributes: dict[str, Any]) -> Any:
    """As JAX has it."""
    if attributes.get("auto_pad", b"NOTSET") == b"SAME_UPPER":
        return "SAME"
    pads = attributes["pads"]
    return tuple(zip(pads[: len(pads) // 2], pads[len(pads) // 2 :], strict=True))


def _pool(attributes: dict[str, Any], x: jax.Array, start: float, function: Any) -> jax.Array:
    window, strides = attributes["kernel_shape"], attributes["strides"]
    if attributes.get("ceil_mode"):
        raise NotImplementedError("pooling with ceil_mode isn't supported.")
    pads = padding(attributes)
    pads = pads if isinstance(pads, str) else ((0, 0), (0, 0), *pads)
    return jax.lax.reduce_window(x, start, function, (1, 1, *window), (1, 1, *strides), pads)


def _average_pool(attributes: dict[str, Any], x: jax.Array) -> jax.Array:
    if any(attributes["pads"]):
        raise NotImplementedError("an average with padding isn't supported.")
    return _pool(attributes, x, 0.0, jax.lax.add) / np.prod(attributes["kernel_shape"])


def _layer_norm(_: Any, x: jax.Array, epsilon: Any, gain: Any, shift: Any) -> jax.Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * gain + shift


def _slice(_: Any, x: Any, starts: Any, ends: Any, axes: Any, steps: Any = (1,)) -> Any:
    index = [slice(None)] * x.ndim
    for axis, *bounds in zip(axes, starts, ends, steps, strict=True):
        index[axis] = slice(*map(int, bounds))
    return x[tuple(index)]


def _reshape(_: Any, x: Any, shape: Any) -> Any:
    return x.reshape([x.shape[i] if size == 0 else int(size) for i, size in enumerate(shape)])


def _concat(attributes: dict[str, Any], *parts: Any) -> Any:
    xp = np if all(isinstance(part, np.ndarray) for part in parts) else jnp
    return xp.concatenate(parts, axis=attributes["axis"])


_FLOAT = {
    "Add": lambda _, a, b: a + b,
    "Mul": lambda _, a, b: a * b,
    "MatMul": lambda _, a, b: jnp.matmul(a, b, precision="highest"),
    "Softmax": lambda attributes, x: jax.nn.softmax(x, axis=attributes["axis"]),
    "LayerNorm": _layer_norm,
    "MaxPool": lambda attributes, x: _pool(attributes, x, -jnp.inf, jax.lax.max),
    "AveragePool": _average_pool,
    "ReduceMean": lambda attributes, x: x.mean(
        tuple(attributes["axes"]), keepdims=bool(attributes["keepdims"])
    ),
    "Concat": _concat,
    "Shape": lambda _, x: np.array(x.shape),
    "Slice": _slice,
    "Reshape": _reshape,
    "Squeeze": lambda attributes, x: x.squeeze(tuple(attributes["axes"])),
    "Unsqueeze": lambda attributes, x: np.expand_dims(x, tuple(attributes["axes"])),
    "Transpose": lambda attributes, x: x.transpose(attributes["perm"]),
}
