"""What became of each layer of a network: where it runs, and how near it is to the float one."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_qconv import _plans, _report_plot
from jax_qconv._columns import columns
from jax_qconv._conv_node import ConvNode, macs
from jax_qconv._equalise import divided
from jax_qconv._graph import Graph
from jax_qconv._layer_plan import layer_plan
from jax_qconv._layer_report import BINS, FIRST_STEP, INSIDE, STEPS_PER_BIN, LayerReport
from jax_qconv._layers import SKIPPED
from jax_qconv._network import Network
from jax_qconv._noise import Sums, over
from jax_qconv._op_nodes import OpNode, RealNode
from jax_qconv._packed_conv import PackedConv
from jax_qconv._quantize import QTensor
from jax_qconv._quantize_model import QuantizedModel
from jax_qconv._values import Values

_NUMBERS = ("MMACs", "us", "share", "scale", "clipped", "SQNR dB", "worst")
"""Columns of the table whose cells go to the right."""


@dataclasses.dataclass(frozen=True)
class Report:
    """All nodes of a network, in the order in which they run. Its text is a table.

    Attributes:
        layers: each of them.
        output_sqnr_db: of the network's outputs.
    """

    layers: tuple[LayerReport, ...]
    output_sqnr_db: float

    def to_json(self) -> str:
        """As JSON, a line for each layer."""
        layers = ",\n".join(json.dumps(dataclasses.asdict(layer)) for layer in self.layers)
        return f'{{"output_sqnr_db": {json.dumps(self.output_sqnr_db)}, "layers": [\n{layers}\n]}}'

    @classmethod
    def from_json(cls, text: str) -> Report:
        """The opposite of `to_json`."""
        fields = json.loads(text)
        layers = [
            LayerReport(**layer | {"histogram": layer["histogram"] and tuple(layer["histogram"])})
            for layer in fields["layers"]
        ]
        return cls(tuple(layers), fields["output_sqnr_db"])

    def plot(self, path: str | os.PathLike[str], *, histograms: int = 24) -> None:
        """Draw it to a PNG.

        On the left, the SQNR of each layer, in the order in which they run. On the right,
        histograms of the float network's numbers where the int8 network has int8 outputs, with the
        range of int8 between two lines and what is clipped beyond them; counts are logarithmic.

        Args:
            path: of the file.
            histograms: how many at most; those of the lowest SQNR are drawn.

        Raises:
            ImportError: without matplotlib.
            ValueError: if ``histograms`` is no count.
        """
        _report_plot.draw(self.layers, self.output_sqnr_db, path, histograms)

    def __str__(self) -> str:
        rows = [_cells(layer) for layer in self.layers]
        # What no layer has, such as times without a GPU, gets no column.
        heads = [head for head in _cells(self.layers[0]) if any(row[head] for row in rows)]
        cells = [[row[head] for head in heads] for row in rows]
        table = columns(heads, cells, numbers=_NUMBERS)
        return f"{table}\noutputs: {self.output_sqnr_db:.1f} dB"


def _cells(layer: LayerReport) -> dict[str, str]:
    """A row of the table, by the names of the columns."""
    return {
        "layer": layer.name,
        "kind": layer.kind,
        "out": layer.out,
        "weights": layer.weight_scales or "",
        "plan": (layer.engine if layer.plan in (None, _plans.DEFERRED) else layer.plan) or "",
        "MMACs": f"{layer.macs / 1e6:.1f}" if layer.macs else "",
        "us": _show(layer.tuned_us, "{:.1f}"),
        "share": _show(layer.tuned_share, "{:.1%}"),
        "scale": _show(layer.scale, "{:.4g}"),
        "clipped": _show(layer.clipped, "{:.2%}"),
        "SQNR dB": _show(layer.sqnr_db, "{:.1f}"),
        "worst": _show(layer.worst_error, "{:.3g}"),
        "note": layer.why or "",
    }


def _show(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def report(model: QuantizedModel, parameters: Any, batches: Iterable[Any]) -> Report:
    """Run a network and its float original on data, and compare them layer by layer.

    Args:
        model: from `quantize_model`.
        parameters: the float ones that it was made of.
        batches: data, as `quantize_model` takes it, in one pass and not kept.

    Returns:
        A `Report`: its text is a table, `Report.plot` a picture. Engines and plans are those that
        calls get here, or for the GPU of `target`.

    Raises:
        TypeError: if ``batches`` is a single batch.
        ValueError: without data.
    """
    compare = jax.jit(lambda *a: _compare(model, *a))
    shown: Any = None

    def of_batch(data: tuple[Any, ...]) -> Any:
        nonlocal shown
        shown = data
        return compare(parameters, model.params, data)

    found = over(batches, of_batch)
    network = model.network(*shown)
    skipped = [n for n in network.nodes if isinstance(n, RealNode) and n.why == SKIPPED]
    names = {node: layer.name for node, layer in zip(skipped, network.skipped, strict=True)}
    layers = [
        _real(node, network.graph, names.get(node))
        if isinstance(node, RealNode)
        else _layer(node, network, model, found["nodes"][i], found["counts"].get(i))
        for i, node in enumerate(network.nodes)
    ]
    return Report(_with_shares([*filter(None, layers)]), found["outputs"].sqnr_db)


def _compare(model: QuantizedModel, parameters: Any, packed: Any, data: Any) -> dict[str, Any]:
    network = model.network(*data)
    graph = network.graph
    real = Values.of_float(graph, parameters, data)
    values = model.run(packed, *data)
    nodes, counts = {}, {}
    for i, node in enumerate(network.nodes):
        if isinstance(node, RealNode):
            continue
        # Of an equalised value, as it is quantised.
        wanted = divided(real.real(node.out), model.calibration.factors.get(node.out))
        nodes[i] = Sums.of(wanted, values.real(node.out))
        if node.out in network.int8:
            counts[i] = _counts(wanted, values.held(node.out).q)
    outputs = [[found.real(ref) for ref in graph.outputs] for found in (real, values)]
    return {"nodes": nodes, "counts": counts, "outputs": Sums.of_all(*outputs)}


def _counts(real: Any, q: QTensor) -> jax.Array:
    """How many real numbers are in each bin around the range of the integers ``[BINS; uint32]``."""
    zero = jnp.float32(0 if q.zero_point is None else q.zero_point)
    steps = jnp.asarray(real).astype(jnp.float32).reshape(-1) / q.scale + zero
    place = jnp.floor((steps - np.float32(FIRST_STEP)) / np.float32(STEPS_PER_BIN))
    place = jnp.clip(place, 0, BINS - 1).astype(jnp.int32)
    return jnp.zeros(BINS, jnp.uint32).at[place].add(np.uint32(1))


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
    node: ConvNode | OpNode, network: Network, model: QuantizedModel, sums: Sums, counts: Any
) -> LayerReport:
    """Of a node that runs in int8, or might; ``counts`` are those of `_counts`, or None."""
    graph = network.graph
    fields: dict[str, Any] = {"sqnr_db": sums.sqnr_db, "worst_error": float(sums.worst)}
    fields["mean_error"] = float(sums.error / max(sums.count, 1))
    if counts is not None:
        scale, zero_point = model.calibration.quantisation[network.group[node.out]]
        fields["scale"] = float(scale)
        fields["zero_point"] = None if zero_point is None else int(zero_point)
        fields["clipped"] = float(1 - counts[INSIDE].sum() / max(counts.sum(), 1))
        fields["histogram"] = tuple(map(int, counts))
    if isinstance(node, ConvNode):
        kind = "linear" if node.placement.linear else "conv"
        fields |= _of_kernel(node, graph, model.params["layers"][node.name])
    else:
        kind = _KINDS.get(type(node).__name__) or str(node.step.name)
    why = None if network.runs_in_int8(node) else "what it reads, or what reads it, is real"
    out = "int8" if node.out in network.int8 else str(np.dtype(graph.avals[node.out].dtype))
    return LayerReport(node.name, kind, out, why, **fields)


def _of_kernel(node: ConvNode, graph: Graph, packed: PackedConv) -> dict[str, Any]:
    """What is told of a call of a kernel."""
    chosen = layer_plan(node, graph, packed)
    return {
        "macs": macs(node, graph),
        "weight_scales": "per channel" if packed.weight_scale.shape else "per tensor",
        "engine": chosen.engine,
        "plan": chosen.plan,
        "tuned_us": chosen.us,
    }


def _with_shares(layers: Sequence[LayerReport]) -> tuple[LayerReport, ...]:
    """With the share that each has in the sum of tuned times."""
    total = sum(layer.tuned_us or 0 for layer in layers)
    return tuple(
        layer
        if layer.tuned_us is None
        else dataclasses.replace(layer, tuned_share=layer.tuned_us / total)
        for layer in layers
    )


def _real(node: RealNode, graph: Graph, name: str | None) -> LayerReport | None:
    """Of what stays float, if one might expect it not to; ``name`` if a rule says so."""
    step = node.step
    if node.why is None and step.name not in ("conv_general_dilated", "dot_general", "scan"):
        return None
    out = str(np.dtype(graph.avals[step.outputs[0]].dtype))
    why = node.why or "its body is not looked into"
    return LayerReport(name or step.scope or step.name, step.name, out, why)
