"""A network from `_ocr_graph` in plain JAX, node by node, tensors laid out as ONNX has them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _ocr_graph import Graph, Weights


def run_float(graph: Graph, weights: Weights, image: jax.Array) -> jax.Array:
    """The output of the network for ``image``, ``[N, 3, H, W; float32]``."""
    values: dict[str, Any] = {**graph.constants, **weights, graph.input: image}
    for node in graph.nodes:
        if node.op not in _OPERATIONS:
            raise NotImplementedError(f"ONNX operation {node.op} isn't supported.")
        inputs = [values[name] for name in node.inputs]
        values[node.output] = _OPERATIONS[node.op](node.attributes, *inputs)
    return values[graph.output]


def _conv(attributes: dict[str, Any], x: jax.Array, weight: jax.Array, *bias: Any) -> jax.Array:
    y = jax.lax.conv_general_dilated(
        x,
        weight,
        precision="highest",
        window_strides=attributes["strides"],
        padding=_padding(attributes),
        rhs_dilation=attributes["dilations"],
        feature_group_count=attributes["group"],
    )
    return y + bias[0][:, None, None] if bias else y


def _padding(attributes: dict[str, Any]) -> Any:
    """As JAX has it."""
    if attributes.get("auto_pad", b"NOTSET") == b"SAME_UPPER":
        return "SAME"
    pads = attributes["pads"]
    return tuple(zip(pads[: len(pads) // 2], pads[len(pads) // 2 :], strict=True))


def _pool(attributes: dict[str, Any], x: jax.Array, start: float, function: Any) -> jax.Array:
    window, strides = attributes["kernel_shape"], attributes["strides"]
    if attributes.get("ceil_mode"):
        raise NotImplementedError("pooling with ceil_mode isn't supported.")
    pads = _padding(attributes)
    pads = pads if isinstance(pads, str) else ((0, 0), (0, 0), *pads)
    return jax.lax.reduce_window(x, start, function, (1, 1, *window), (1, 1, *strides), pads)


def _average_pool(attributes: dict[str, Any], x: jax.Array) -> jax.Array:
    if any(attributes["pads"]):
        raise NotImplementedError("an average with padding isn't supported.")
    return _pool(attributes, x, 0.0, jax.lax.add) / np.prod(attributes["kernel_shape"])


def _batch_norm(attributes: dict[str, Any], x: jax.Array, *parameters: Any) -> jax.Array:
    gain, shift, mean, variance = (p[:, None, None] for p in parameters)
    return (x - mean) / jnp.sqrt(variance + attributes["epsilon"]) * gain + shift


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


_OPERATIONS = {
    "Add": lambda _, a, b: a + b,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Concat": _concat,
    "Conv": _conv,
    "Div": lambda _, a, b: a / b,
    "Erf": lambda _, x: jax.lax.erf(x),
    "HardSigmoid": lambda attributes, x: jnp.clip(
        x * attributes["alpha"] + attributes["beta"], 0, 1
    ),
    "MatMul": lambda _, a, b: jnp.matmul(a, b, precision="highest"),
    "MaxPool": lambda attributes, x: _pool(attributes, x, -jnp.inf, jax.lax.max),
    "Mul": lambda _, a, b: a * b,
    "Pow": lambda _, a, b: a**b,
    "ReduceMean": lambda attributes, x: x.mean(
        tuple(attributes["axes"]), keepdims=bool(attributes.get("keepdims", 1))
    ),
    "Relu": lambda _, x: jax.nn.relu(x),
    "Reshape": _reshape,
    "Shape": lambda _, x: np.array(x.shape),
    "Sigmoid": lambda _, x: jax.nn.sigmoid(x),
    "Slice": _slice,
    "Softmax": lambda attributes, x: jax.nn.softmax(x, axis=attributes["axis"]),
    "Sqrt": lambda _, x: jnp.sqrt(x),
    "Squeeze": lambda attributes, x: x.squeeze(tuple(attributes["axes"])),
    "Sub": lambda _, a, b: a - b,
    "Transpose": lambda attributes, x: x.transpose(attributes["perm"]),
    "Unsqueeze": lambda attributes, x: np.expand_dims(x, tuple(attributes["axes"])),
}
