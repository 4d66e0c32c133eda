"""What became of each layer of a network: where it runs, and how near it is to the float one."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_qconv._conv_node import ConvNode, macs
from jax_qconv._graph import Step
from jax_qconv._network import Network
from jax_qconv._op_nodes import OpNode, RealNode
from jax_qconv._quantize import QTensor
from jax_qconv._quantize_model import QuantizedModel
from jax_qconv._values import Values


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """One node of a network.

    Attributes:
        name: of the layer.
        kind: what it is, such as ``"conv"`` or ``"max pool"``.
        out: ``"int8"`` or the float dtype of its output.
        why: why it isn't int8, where one might expect it.
        macs: multiply-accumulates for the data that was shown.
        scale: of an int8 output, real units per step.
        zero_point: of an int8 output, or None.
        clipped: share of the float network's numbers that lie beyond the range of int8.
        sqnr_db: signal over the noise of quantisation, of the output against the float network's,
            errors of earlier layers included.
        mean_error: mean absolute difference to the float network.
        worst_error: largest absolute difference.
    """

    name: str
    kind: str
    out: str
    why: str | None = None
    macs: int = 0
    scale: float | None = None
    zero_point: int | None = None
    clipped: float | None = None
    sqnr_db: float | None = None
    mean_error: float | None = None
    worst_error: float | None = None


@dataclasses.dataclass(frozen=True)
class Report:
    """All nodes of a network, in the order in which they run.

    Attributes:
        layers: each of them.
        output_sqnr_db: of the network's outputs.
    """

    layers: tuple[LayerReport, ...]
    output_sqnr_db: float

    def to_json(self) -> str:
        """As JSON."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    def __str__(self) -> str:
        heads = ("layer", "kind", "out", "MMACs", "scale", "clipped", "SQNR dB", "worst", "note")
        rows = [
            (
                layer.name,
                layer.kind,
                layer.out,
                f"{layer.macs / 1e6:.1f}" if layer.macs else "",
                _show(layer.scale, "{:.4g}"),
                _show(layer.clipped, "{:.2%}"),
                _show(layer.sqnr_db, "{:.1f}"),
                _show(layer.worst_error, "{:.3g}"),
                layer.why or "",
            )
            for layer in self.layers
        ]
        widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in (heads, *rows)
        ]
        return "\n".join([*lines, f"outputs: {self.output_sqnr_db:.1f} dB"])


def _show(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def report(model: QuantizedModel, parameters: Any, batches: Iterable[Any]) -> Report:
    """Run a network and its float original on data, and compare them layer by layer.

    Args:
        model: from `quantize_model`.
        parameters: the float ones that it was made of.
        batches: data, as `quantize_model` takes it; all of the same shapes.

    Returns:
        A `Report`; its text is a table.

    Raises:
        ValueError: without data.
    """
    sums: Any = None
    network: Network | None = None
    compare = jax.jit(lambda *a: _compare(model, *a))
    for batch in batches:
        data = batch if isinstance(batch, tuple) else (batch,)
        network = model.network(*data)
        found = jax.device_get(compare(parameters, model.params, data))
        sums = (
            found
            if sums is None
            else jax.tree.map(_join, sums, found, is_leaf=lambda v: isinstance(v, _Sums))
        )
    if network is None:
        raise ValueError("batches is empty: a report needs at least one batch of data.")
    layers = [
        _layer(node, network, model, sums["nodes"].get(i)) for i, node in enumerate(network.nodes)
    ]
    return Report(tuple(filter(None, layers)), _sqnr(sums["outputs"]))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Sums:
    signal: Any
    noise: Any
    error: Any
    worst: Any
    clipped: Any
    count: Any

    @classmethod
    def of(cls, wanted: Any, got: Any, clipped: Any) -> _Sums:
        wanted, got = (jnp.asarray(v).astype(jnp.float32) for v in (wanted, got))
        difference = jnp.abs(wanted - got)
        return cls(
            jnp.sum(wanted * wanted),
            jnp.sum(difference * difference),
            jnp.sum(difference),
            jnp.max(difference),
            clipped,
            jnp.float32(wanted.size),
        )


def _join(a: _Sums, b: _Sums) -> _Sums:
    """Of two parts of the data, or two outputs."""
    joined = jax.tree.map(lambda v, w: v + w, a, b)
    return dataclasses.replace(joined, worst=jnp.maximum(a.worst, b.worst))


def _compare(model: QuantizedModel, parameters: Any, packed: Any, data: Any) -> dict[str, Any]:
    network = model.network(*data)
    graph = network.graph
    real = Values.of_float(graph, parameters, data)
    values = model.run(packed, *data)
    nodes = {}
    for i, node in enumerate(network.nodes):
        if isinstance(node, RealNode):
            continue
        wanted = real.real(node.out)
        clipped = jnp.float32(0)
        if node.out in network.int8:
            q = values.held(node.out).q
            clipped = _outside(wanted, q)
        nodes[i] = _Sums.of(wanted, values.real(node.out), clipped)
    outputs = [_Sums.of(real.real(ref), values.real(ref), jnp.float32(0)) for ref in graph.outputs]
    return {"nodes": nodes, "outputs": functools.reduce(_join, outputs)}


def _outside(real: Any, q: QTensor) -> jax.Array:
    """How many real numbers lie beyond what the integers reach, by half a step or more."""
    zero = jnp.float32(0 if q.zero_point is None else q.zero_point)
    steps = jnp.asarray(real).astype(jnp.float32) / q.scale + zero
    return jnp.sum((steps < -128.5) | (steps > 127.5)).astype(jnp.float32)


def _sqnr(sums: _Sums) -> float:
    noise, signal = float(sums.noise), float(sums.signal)
    return math.inf if noise == 0 else 10 * math.log10(max(signal, 1e-30) / noise)


_KINDS = {
    "MaxPool": "max pool",
    "AvgPool": "average pool",
    "GlobalAvgPool": "global average",
    "Concat": "concatenation",
    "Lookup": "table",
    "Reshape": "reshape",
    "Pad": "pad",
}


def _layer(
    node: Any, network: Network, model: QuantizedModel, sums: _Sums | None
) -> LayerReport | None:
    graph = network.graph
    if isinstance(node, RealNode):
        return _real(node, graph.avals)
    fields: dict[str, Any] = {}
    is_int8 = node.out in network.int8
    if is_int8:
        scale, zero_point = model.calibration.quantisation[network.group[node.out]]
        fields["scale"] = float(scale)
        fields["zero_point"] = None if zero_point is None else int(zero_point)
    if sums is not None:
        count = float(sums.count)
        fields |= {"sqnr_db": _sqnr(sums), "worst_error": float(sums.worst)}
        fields["mean_error"] = float(sums.error) / count
        if is_int8:
            fields["clipped"] = float(sums.clipped) / count
    if isinstance(node, ConvNode):
        kind = "linear" if node.placement.linear else "conv"
        fields["macs"] = macs(node, graph)
    else:
        kind = _KINDS.get(type(node).__name__) or str(node.step.name)
    why = (
        None
        if network.runs_in_int8(node) or not isinstance(node, OpNode)
        else ("what it reads, or what reads it, is real")
    )
    out = "int8" if is_int8 else str(np.dtype(graph.avals[node.out].dtype))
    return LayerReport(node.name, kind, out, why, **fields)


def _real(node: RealNode, avals: Any) -> LayerReport | None:
    step: Step = node.step
    if node.why is None and step.name not in ("conv_general_dilated", "dot_general", "scan"):
        return None
    out = str(np.dtype(avals[step.outputs[0]].dtype))
    why = node.why or "its body is not looked into"
    return LayerReport(step.scope or step.name, step.name, out, why)
