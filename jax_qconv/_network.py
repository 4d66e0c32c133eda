"""Which values of a network are int8, and which of them share a scale."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jax_qconv._conv_node import ConvNode
from jax_qconv._fuse import Node, Skip, nodes
from jax_qconv._graph import Graph, Ref
from jax_qconv._layer_info import LayerInfo
from jax_qconv._op_nodes import OpNode, RealNode
from jax_qconv._storage import fine_values


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A graph, its nodes and how its values are kept.

    Attributes:
        graph: of the function.
        nodes: in an order in which they can run.
        int8: values that nodes leave as int8.
        group: for each value that is quantised at some place, the number of its group: values of
            a group have one scale and zero point.
        skipped: layers that a rule left real.
    """

    graph: Graph
    nodes: tuple[Node, ...]
    int8: frozenset[int]
    group: Mapping[int, int]
    skipped: tuple[LayerInfo, ...]

    @classmethod
    def make(
        cls,
        graph: Graph,
        names: dict[int, str],
        skip: Skip,
        writes_floats: Callable[[LayerInfo], bool],
    ) -> Network:
        """Of a graph.

        Args:
            graph: of the function.
            names: of the parameters.
            skip: whether a layer stays real.
            writes_floats: whether a layer's output does.
        """
        found, skipped = nodes(graph, names, skip)
        real = set(graph.outputs)
        real |= {n.out for n in found if isinstance(n, ConvNode) and writes_floats(n.info)}
        int8 = _int8(found, real)
        return cls(graph, tuple(found), frozenset(int8), _groups(found, int8), tuple(skipped))

    @property
    def layers(self) -> tuple[ConvNode, ...]:
        """Convolutions and matrix products."""
        return tuple(node for node in self.nodes if isinstance(node, ConvNode))

    def check_like(self, other: Network, shapes: Any) -> None:
        """Raise ValueError unless another network does the same, only with other sizes."""
        same = dict(self.group) == dict(other.group) and self.int8 == other.int8
        names = [[step.name for step in network.graph.steps] for network in (self, other)]
        if not same or names[0] != names[1]:
            raise ValueError(
                f"the function does other things for data of shape {shapes} than for the first "
                "batch of its calibration; calibrate it for that shape."
            )

    def runs_in_int8(self, node: Node) -> bool:
        """Whether a node is a call of an int8 kernel or operation."""
        return isinstance(node, ConvNode) or (isinstance(node, OpNode) and node.out in self.int8)

    @functools.cached_property
    def fine(self) -> frozenset[int]:
        """Values whose channels are padded less than `prepack` does by itself."""
        return fine_values(self.nodes)

    @functools.cached_property
    def observed(self) -> dict[int, list[int]]:
        """For each group the values whose numbers decide on its scale."""
        carried = {node.out for node in self.nodes if isinstance(node, OpNode) and node.keeps_scale}
        found: dict[int, list[int]] = {}
        for value, group in self.group.items():
            if value not in self.int8 or value not in carried:
                found.setdefault(group, []).append(value)
        return found

    @functools.cached_property
    def rescaled(self) -> frozenset[int]:
        """Groups whose scale is asked for while the network runs: not only by bound packs."""
        found = {self.group[value] for value in self.group if value not in self.int8}
        found |= {
            self.group[node.out]
            for node in self.nodes
            if isinstance(node, OpNode) and node.out in self.int8 and not node.keeps_scale
        }
        return frozenset(found)

    @functools.cached_property
    def real_parameters(self) -> frozenset[int]:
        """Parameters that are needed as they are, beside the packed ones."""
        found: set[int] = set()
        self._trace_back(self.graph.outputs, found)
        for node in self.nodes:
            if not self.runs_in_int8(node):
                for place in node.places:
                    self._trace_back(self.graph.steps[place].inputs, found)
        return frozenset(found.intersection(self.graph.parameters))

    def _trace_back(self, refs: Iterable[Ref], found: set[int]) -> None:
        for ref in refs:
            if not isinstance(ref, int) or ref in found or self.graph.is_data(ref):
                continue
            found.add(ref)
            if ref in self.graph.producer:
                self._trace_back(self.graph.steps[self.graph.producer[ref]].inputs, found)


def _int8(found: Sequence[Node], real: set[Ref]) -> set[int]:
    """Values that are left as int8: those that int8 nodes read, and can have as such."""
    allowed = {node.out for node in found if isinstance(node, OpNode)}
    while True:
        wanted: set[int] = set()
        for node in reversed(found):
            is_op = isinstance(node, OpNode) and node.out in wanted and node.out in allowed
            if isinstance(node, ConvNode) or is_op:
                wanted.update(node.inputs)
        int8: set[int] = set()
        for node in found:
            if isinstance(node, RealNode) or node.out not in wanted or node.out in real:
                continue
            if isinstance(node, ConvNode) or int8.issuperset(node.inputs):
                int8.add(node.out)
        # What turns out to be real reads no int8 itself.
        if (left := allowed & int8) == allowed & wanted:
            return int8
        allowed = left


def _groups(found: Sequence[Node], int8: set[int]) -> dict[int, int]:
    """The group of each quantised value, named by its first."""
    parent: dict[int, int] = {}

    def root(value: int) -> int:
        parent.setdefault(value, value)
        while parent[value] != value:
            value = parent[value]
        return value

    for node in found:
        if isinstance(node, ConvNode):
            for value in node.inputs:
                root(value)
        if isinstance(node, OpNode) and node.out in int8:
            for value in (*node.inputs, node.out):
                root(value)
            if node.keeps_scale:
                for value in node.inputs:
                    a, b = sorted((root(value), root(node.out)))
                    parent[b] = a
    return {value: root(value) for value in list(parent)}


def key_of(data: Any) -> str:
    """What tells networks for data of different shapes apart."""
    return str(jax.tree.map(lambda v: (jnp.shape(v), jnp.result_type(v)), data))


def names_of(parameters: Any, graph: Graph) -> dict[int, str]:
    """The path of each parameter, made unique."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(parameters)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    # {"a/b": ...} and {"a": {"b": ...}} have the same path.
    unique = [
        path if path not in paths[:i] else f"{path}#{1 + paths[: i + 1].count(path)}"
        for i, path in enumerate(paths)
    ]
    return dict(zip(graph.parameters, unique, strict=True))
