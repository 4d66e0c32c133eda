"""A network read from an ONNX file, as a list of layers and what lies between them.

`read` parses the file; `simplify` puts the operations together that one kernel can do.
`_ocr_float` and `_ocr_int8` run what is left.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import onnx

Weights = dict[str, tuple[np.ndarray, np.ndarray]]


class Node(NamedTuple):
    """An operation with one output; names of tensors are those of the ONNX file."""

    op: str
    inputs: tuple[str, ...]
    output: str
    attributes: Mapping[str, Any] = MappingProxyType({})


@dataclasses.dataclass(frozen=True)
class Graph:
    """A network of one input and one output.

    Attributes:
        nodes: in an order in which they can run.
        constants: by name.
        input, output: names; the input is ``[N, C, H, W; float32]``.
        metadata: strings that the file brings along.
        weights: of ``Conv`` (OIHW) and ``Linear`` (IO) nodes by the name of their output, each
            with a bias. Before `simplify` there are none.
    """

    nodes: list[Node]
    constants: dict[str, np.ndarray]
    input: str
    output: str
    metadata: dict[str, str]
    weights: Weights = dataclasses.field(default_factory=dict)


def read(data: bytes) -> Graph:
    """The graph in an ONNX file, operations that do nothing left out."""
    model = onnx.load_model_from_string(data)
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    nodes, same = [], {}
    for node in model.graph.node:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        inputs = tuple(same.get(name, name) for name in node.input)
        (output,) = node.output
        if node.op_type == "Identity":
            same[output] = inputs[0]
        elif node.op_type == "Constant":
            constants[output] = onnx.numpy_helper.to_array(attributes["value"])
        else:
            nodes.append(Node(node.op_type, inputs, output, attributes))
    output = model.graph.output[0].name
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    name = model.graph.input[0].name
    return Graph(nodes, constants, name, same.get(output, output), metadata)


# What one name stands for: an operation, then its inputs. A string is anything, the same
# wherever it occurs; a number is a constant.
_CENTRED = ("Sub", "x", ("ReduceMean", "x"))
_VARIANCE = ("ReduceMean", ("Pow", _CENTRED, 2.0))
_NORMALISED = ("Div", _CENTRED, ("Sqrt", ("Add", _VARIANCE, "epsilon")))
PATTERNS = {
    "Gelu": ("Mul", ("Mul", "x", ("Add", ("Erf", ("Div", "x", 2**0.5)), 1.0)), 0.5),
    "Silu": ("Mul", "x", ("Sigmoid", "x")),
    "LayerNorm": ("Add", ("Mul", _NORMALISED, "gain"), "shift"),
}


def simplify(graph: Graph) -> Graph:
    """Name what `PATTERNS` has, and move biases, batch norms, activations and sums into layers."""
    return _with_layers(_with_patterns_named(graph))


def _with_patterns_named(graph: Graph) -> Graph:
    made = {}
    for node in graph.nodes:
        made[node.output] = node
        for op, pattern in PATTERNS.items():
            bound = {}
            if _matches(pattern, node.output, made, graph.constants, bound):
                made[node.output] = Node(op, tuple(bound.values()), node.output)
    return dataclasses.replace(graph, nodes=_needed(list(made.values()), graph.output))


def _with_layers(graph: Graph) -> Graph:
    """Constant weights taken out, and what follows merged; what is read twice stays."""
    constants, uses = graph.constants, Counter(i for node in graph.nodes for i in node.inputs)
    made, weights = {}, {}
    for node in graph.nodes:
        layers = [made[i] for i in node.inputs if i in weights and uses[i] == 1]
        merged = (_merge(node, layer, constants, weights) for layer in layers)
        new = next(filter(None, merged), node)
        if node.op in ("Conv", "MatMul") and node.inputs[1] in constants:
            new, weights[node.output] = _layer(node, constants)
        made[node.output] = new
    nodes = _needed(list(made.values()), graph.output)
    weights = {node.output: weights[node.output] for node in nodes if node.output in weights}
    return dataclasses.replace(graph, nodes=nodes, weights=weights)


def _layer(node: Node, constants: Any) -> tuple[Node, tuple[np.ndarray, np.ndarray]]:
    """A convolution or a product with a constant matrix, without and with its weights."""
    x, *names = node.inputs
    weight, *bias = (constants[name] for name in names)
    op, axis = ("Conv", 0) if node.op == "Conv" else ("Linear", -1)
    bias = bias[0] if bias else np.zeros(weight.shape[axis], np.float32)
    return Node(op, (x,), node.output, node.attributes), (weight, bias)


def _matches(pattern: Any, name: str, made: Any, constants: Any, bound: dict[str, str]) -> bool:
    """Whether the tensor was made as the pattern says; fills ``bound``."""
    if isinstance(pattern, str):
        return bound.setdefault(pattern, name) == name
    if isinstance(pattern, float):
        return name in constants and bool(np.allclose(constants[name], pattern))
    node = made.get(name)
    return (
        node is not None
        and (node.op, len(node.inputs)) == (pattern[0], len(pattern) - 1)
        and all(map(lambda p, i: _matches(p, i, made, constants, bound), pattern[1:], node.inputs))
    )


def _needed(nodes: list[Node], output: str) -> list[Node]:
    """Those that the output depends on."""
    wanted, kept = {output}, []
    for node in reversed(nodes):
        if node.output in wanted:
            wanted.update(node.inputs)
            kept.append(node)
    return kept[::-1]


_MERGED_ACTIVATIONS = {
    "Relu": "relu",
    "HardSigmoid": "hard_sigmoid",
    "Gelu": "gelu",
    "Silu": "silu",
}


def _merge(node: Node, layer: Node, constants: Any, weights: Weights) -> Node | None:
    """The layer with ``node`` done in its epilogue, or None if it can't be."""
    weight, bias = weights[layer.output]
    plain = "activation" not in layer.attributes and len(layer.inputs) == 1
    attributes, inputs = layer.attributes, layer.inputs
    if node.op == "BatchNormalization" and plain:
        gain, shift, mean, variance = (constants[name] for name in node.inputs[1:])
        factor = gain / np.sqrt(variance + node.attributes["epsilon"])
        weight, bias = weight * factor[:, None, None, None], (bias - mean) * factor + shift
    elif node.op == "Add" and plain and constants.get(node.inputs[1], bias[:0]).size == bias.size:
        bias = bias + constants[node.inputs[1]].ravel()
    elif node.op in _MERGED_ACTIVATIONS and plain:
        _check_hard_sigmoid(node)
        attributes = attributes | {"activation": _MERGED_ACTIVATIONS[node.op]}
    elif node.op == "Add" and len(inputs) == 1 and not constants.keys() & set(node.inputs):
        inputs += tuple(name for name in node.inputs if name != layer.output)
    else:
        return None
    weights[node.output] = weight, bias
    return Node(layer.op, inputs, node.output, attributes)


def _check_hard_sigmoid(node: Node) -> None:
    if node.op == "HardSigmoid":
        slope_and_offset = node.attributes["alpha"], node.attributes["beta"]
        if not np.allclose(slope_and_offset, (1 / 6, 1 / 2)):
            raise NotImplementedError(f"HardSigmoid with {slope_and_offset} isn't supported.")
