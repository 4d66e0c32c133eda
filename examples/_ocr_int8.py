"""A network from `_ocr_graph` in int8: which nodes, with which scales, and how they run.

Convolutions and linear layers run in int8, and so does what lies between two of them and has an
int8 form. Everything else takes floats. Tensors are int8 where an int8 node reads them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from _ocr_float import padding, run_float
from _ocr_graph import Graph, Node

from jax_qconv import (
    PackedConv,
    QTensor,
    dequantize,
    prepack,
    prepack_linear,
    qavg_pool,
    qconcat,
    qconv,
    qglobal_avg_pool,
    qlinear,
    qmax_pool,
    qmul,
    quantize,
)


class Quantisation(NamedTuple):
    """What the integers of a tensor mean: real = (integer - zero_point) * scale."""

    scale: float
    zero_point: int | None


Packs = dict[str, PackedConv]  # bound, by the output of their node
Meanings = dict[str, Quantisation]  # of tensors, by name
Ranges = dict[str, tuple[Any, Any]]  # (least, greatest) of tensors, by name


def quantisation(low: float, high: float) -> Quantisation:
    """One that covers a range: symmetric, or with a zero point where steps get a quarter finer."""
    low, high = min(low, 0.0), max(high, 0.0)
    largest = max(-low, high)
    if low + high == 0 or (high - low) > 1.5 * largest:
        return Quantisation(largest / 127 or 1.0, None)
    scale = (high - low) / 255
    return Quantisation(scale, round(-128 - low / scale))


def int8_nodes(graph: Graph) -> set[str]:
    """Outputs of the nodes that run in int8."""
    found = set()
    for node in graph.nodes:
        between = _has_int8_form(node) and found.issuperset(node.inputs)
        if node.output in graph.weights or between:
            found.add(node.output)
    return found


def _has_int8_form(node: Node) -> bool:
    """Whether `_BETWEEN` does it, which concatenates channels and averages images."""
    axes = node.attributes.get("axis", 1), node.attributes.get("axes", [2, 3])
    return node.op in _BETWEEN and axes == (1, [2, 3])


def int8_tensors(graph: Graph) -> set[str]:
    """Tensors that int8 nodes read or, but for layers, write; layers can write floats."""
    outputs = int8_nodes(graph)
    nodes = [node for node in graph.nodes if node.output in outputs]
    written = {node.output for node in nodes if node.output not in graph.weights}
    return written.union(*(node.inputs for node in nodes))


def ranges(graph: Graph, values: dict[str, Any]) -> Ranges:
    """The least and the greatest element of each tensor that is going to be int8.

    Args:
        graph: a simplified one.
        values: from `float_values`.
    """
    return {name: (values[name].min(), values[name].max()) for name in int8_tensors(graph)}


def union(several: Sequence[Ranges]) -> Ranges:
    """Ranges that cover all of several."""
    return {
        name: (min(float(r[name][0]) for r in several), max(float(r[name][1]) for r in several))
        for name in several[0]
    }


def quantise(graph: Graph, calibrated: Ranges) -> tuple[Packs, Meanings]:
    """Pack all layers and bind them to the ranges of their tensors."""
    tensors = {name: quantisation(*bounds) for name, bounds in calibrated.items()}
    for node in graph.nodes:
        if node.op == "MaxPool":  # keeps what integers mean
            tensors[node.output] = tensors[node.inputs[0]]
    packs = {}
    for node in graph.nodes:
        if node.output not in graph.weights:
            continue
        weight, bias = graph.weights[node.output]
        if node.op == "Conv":
            packed = prepack(
                weight,
                bias,
                layout="OIHW",
                strides=node.attributes["strides"],
                padding=padding(node.attributes),
                dilation=node.attributes["dilations"],
                groups=node.attributes["group"],
            )
        else:
            packed = prepack_linear(weight, bias)
        x, *residual = (tensors[name] for name in node.inputs)
        out = tensors.get(node.output, Quantisation(None, None))
        activation = node.attributes.get("activation")
        r = residual[0] if residual else Quantisation(None, None)
        mode = "add_after_activation" if residual and activation else None
        packs[node.output] = packed.bind(
            x_scale=x.scale,
            x_zero_point=x.zero_point,
            out_scale=out.scale,
            out_zero_point=out.zero_point,
            residual_scale=r.scale,
            residual_zero_point=r.zero_point,
            residual_mode=mode,
            activation=activation,
        )
    return packs, tensors


def int8_values(graph: Graph, packs: Packs, tensors: Meanings, image: jax.Array) -> dict[str, Any]:
    """Every tensor by name: `QTensor`s, channels last, or floats in ONNX's layout."""
    values = {**graph.constants, graph.input: image}
    int8_names = int8_nodes(graph)
    for node in graph.nodes:
        inputs = [values[name] for name in node.inputs]
        if node.output in int8_names:
            inputs = [as_int8(values[n], tensors[n]) for n in node.inputs]
            values[node.output] = _run_int8(node, inputs, packs, tensors)
        else:
            values[node.output] = run_float(node, [as_float(v) for v in inputs], {})
    return values


def as_int8(value: Any, meaning: Quantisation) -> QTensor:
    """Channels last: images are transposed, sequences ``[N, T, C]`` have them there already."""
    if isinstance(value, QTensor):
        return value
    value = value.transpose(0, 2, 3, 1) if value.ndim == 4 else value
    return quantize(value, meaning.scale, zero_point=meaning.zero_point)


def as_float(value: Any) -> Any:
    if not isinstance(value, QTensor):
        return value
    real = dequantize(value)
    return real.transpose(0, 3, 1, 2) if real.ndim == 4 else real


def _run_int8(node: Node, inputs: list[QTensor], packs: Packs, tensors: Meanings) -> Any:
    x, *others = inputs
    if node.output in packs:
        run = qconv if node.op == "Conv" else qlinear
        out = run(x, packs[node.output], residual=others[0] if others else None)
        return out if isinstance(out, QTensor) or out.ndim < 4 else out.transpose(0, 3, 1, 2)
    out = tensors[node.output]
    return _BETWEEN[node.op](
        node.attributes, inputs, {"out_scale": out.scale, "out_zero_point": out.zero_point}
    )


def _max_pool(attributes: Any, inputs: list[QTensor], _: Any) -> QTensor:
    window, strides = attributes["kernel_shape"], attributes["strides"]
    return qmax_pool(inputs[0], window, strides=strides, padding=padding(attributes))


def _average_pool(attributes: Any, inputs: list[QTensor], out: Any) -> QTensor:
    window, strides = attributes["kernel_shape"], attributes["strides"]
    return qavg_pool(inputs[0], window, strides=strides, padding=padding(attributes), **out)


_BETWEEN = {
    "Mul": lambda _, inputs, out: qmul(*inputs, **out),
    "Concat": lambda _, inputs, out: qconcat(inputs, **out),
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "ReduceMean": lambda _, inputs, out: qglobal_avg_pool(inputs[0], keepdims=True, **out),
}


def layer_plans(graph: Graph, packs: Packs, tensors: Meanings, image: Any) -> dict[str, str]:
    """What runs each layer, by its output: a plan of cuDNN, or the reference.

    A plan is chosen when a program is lowered, and written into it.

    Args:
        graph, packs, tensors: of the quantised network.
        image: the shape and dtype of its input.
    """
    values = jax.eval_shape(lambda packs, x: int8_values(graph, packs, tensors, x), packs, image)
    plans = {}
    for node in graph.nodes:
        if node.output in packs:
            inputs = [values[name] for name in node.inputs]
            plans[node.output] = plan_of(_lower_layer(node, inputs, packs, tensors))
    return plans


def _lower_layer(node: Node, inputs: list[Any], packs: Packs, tensors: Meanings) -> str:
    def run(packed: PackedConv, *inputs: Any) -> Any:
        quantised = [as_int8(v, tensors[n]) for n, v in zip(node.inputs, inputs, strict=True)]
        return _run_int8(node, quantised, {node.output: packed}, tensors)

    return jax.jit(run).lower(packs[node.output], *inputs).as_text()


def plan_of(lowered: str) -> str:
    """The plan that a lowered program names; none means the reference."""
    return ", ".join(sorted(set(re.findall(r'\bplan = "([^"]*)"', lowered)))) or "reference"
