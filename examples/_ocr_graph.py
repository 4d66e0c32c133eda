"""A network read from an ONNX file, as a list of operations; `_ocr_float` runs them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx

Weights = dict[str, np.ndarray]


class Node(NamedTuple):
    """An operation with one output; names of tensors are those of the ONNX file."""

    op: str
    inputs: tuple[str, ...]
    output: str
    attributes: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Graph:
    """A network of one input and one output.

    Attributes:
        nodes: in an order in which they can run.
        weights: arrays of floats by name.
        constants: by name: numbers, and integers such as shapes and axes.
        input, output: names; the input is ``[N, C, H, W; float32]``.
        metadata: strings that the file brings along.
    """

    nodes: list[Node]
    weights: Weights
    constants: dict[str, Any]
    input: str
    output: str
    metadata: dict[str, str]


def read(data: bytes) -> Graph:
    """The graph in an ONNX file, operations that do nothing left out."""
    model = onnx.load_model_from_string(data)
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    nodes, same = [], {}
    for node in model.graph.node:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        inputs = tuple(same.get(name, name) for name in node.input)
        (output,) = node.output
        if node.op_type == "Identity":
            same[output] = inputs[0]
        elif node.op_type == "Constant":
            arrays[output] = onnx.numpy_helper.to_array(attributes["value"])
        else:
            nodes.append(Node(node.op_type, inputs, output, attributes))
    weights = {n: a for n, a in arrays.items() if a.dtype == np.float32 and a.size > 1}
    rest = {n: a for n, a in arrays.items() if n not in weights}
    return Graph(
        nodes=nodes,
        weights=weights,
        # A number that is an array of one element is one for all.
        constants={n: a.item() if a.dtype == np.float32 else a for n, a in rest.items()},
        input=model.graph.input[0].name,
        output=same.get(model.graph.output[0].name, model.graph.output[0].name),
        metadata={entry.key: entry.value for entry in model.metadata_props},
    )
