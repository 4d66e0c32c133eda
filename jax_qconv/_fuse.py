"""A graph as a list of nodes: convolutions, int8 operations between them, and what stays real."""

from __future__ import annotations

from jax_qconv._conv_node import ConvNode
from jax_qconv._graph import Graph, Step
from jax_qconv._layer_info import LayerInfo
from jax_qconv._layers import Layers, Skip
from jax_qconv._op_nodes import OpNode, RealNode
from jax_qconv._operands import data_of
from jax_qconv._operations import Operations
from jax_qconv._regions import ELEMENTWISE, Activations

Node = ConvNode | OpNode | RealNode

LOOPS = ("scan", "while", "cond")


def nodes(graph: Graph, names: dict[int, str], skip: Skip) -> tuple[list[Node], list[LayerInfo]]:
    """All nodes, in an order in which they can run, and the layers that were skipped.

    Args:
        graph: of the network.
        names: of the parameters, by their number.
        skip: which layers to leave real.
    """
    claimed: set[int] = set()
    activations = Activations(graph)
    layers = Layers(graph, names, skip, activations, claimed)
    operations = Operations(graph, activations)

    def made(place: int, step: Step) -> list[Node]:
        match step.name:
            case "conv_general_dilated":
                found = layers.conv(place, step)
            case "dot_general":
                found = layers.dot(place, step)
            case _:
                found = operations.make(place, step)
        if isinstance(found, ConvNode):
            return [found]
        if isinstance(found, list):
            return [*found]
        return [RealNode((place,), data_of(graph, step), step, found or _why(step))]

    found: list[Node] = []
    for place, step in enumerate(graph.steps):
        if place not in claimed and any(map(graph.is_data, step.inputs)):
            new = made(place, step)
            claimed.update(place for node in new for place in node.places)
            found += new
    return sorted(found, key=lambda node: node.places[-1]), layers.skipped


def _why(step: Step) -> str | None:
    """Why a step is real that is neither a layer nor an operation that int8 has."""
    if step.name in LOOPS:
        return "its body is not looked into"
    # Single elements that are between real values cost next to nothing.
    return None if step.name in ELEMENTWISE else "there is no int8 form of it"
