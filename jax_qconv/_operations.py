"""Steps that can run in int8 between convolutions and products, as nodes."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

from jax_qconv import _move_nodes as moves
from jax_qconv import _op_nodes as ops
from jax_qconv._graph import Graph, Step, apply
from jax_qconv._op_nodes import OpNode
from jax_qconv._operands import constant, data_of, is_float
from jax_qconv._regions import Activations, is_gentle, regions
from jax_qconv._steps import STEPWISE

Made = OpNode | str | None
"""A node; or why there is none, where one might expect it."""


class Operations:
    """Makes nodes of steps, and of others that belong to them.

    Args:
        graph: they are of.
        activations: of the graph.
    """

    def __init__(self, graph: Graph, activations: Activations) -> None:
        self.graph, self.activations = graph, activations
        self._makers = {
            "reduce_window_max": self._max_pool,
            "reduce_window_sum": self._avg_pool,
            "reduce_sum": self._global_avg_pool,
            **dict.fromkeys(("reduce_max", "reduce_min"), self._extreme),
            "concatenate": self._concat,
            "pad": self._pad,
            "transpose": self._transpose,
            **dict.fromkeys(moves.RESHAPES, self._reshape),
            **dict.fromkeys(("add", "sub", "mul"), self._binary),
        }

    def make(self, place: int, step: Step) -> list[OpNode] | str | None:
        """Nodes that do a step, one for each output; or why there are none."""
        made: Made = None
        if self._is_of_floats(step):
            if step.name in moves.MOVES:
                return self._moves(place, step)
            if step.name in self._makers:
                made = self._makers[step.name](place, step)
        if not isinstance(made, OpNode):
            made = self._lookup(place, step) or made
        return [made] if isinstance(made, OpNode) else made

    def _is_of_floats(self, step: Step) -> bool:
        """Whether its data and outputs are, and none of them is a single number."""
        data = step.inputs[:1] if step.name in moves.INDEXED else data_of(self.graph, step)
        refs = *data, *step.outputs
        return all(is_float(self.graph, ref) and self.graph.shape(ref) != () for ref in refs)

    def _op(self, kind: type[OpNode], place: int, step: Step, *more: int, **fields: Any) -> OpNode:
        places = (place, *more)
        out = self.graph.steps[places[-1]].out
        name = step.scope or step.name
        return kind(name, places, data_of(self.graph, step), out, step, **fields)

    def _max_pool(self, place: int, step: Step) -> Made:
        return ops.MaxPool.why_not(step, self.graph) or self._op(ops.MaxPool, place, step)

    def _avg_pool(self, place: int, step: Step) -> Made:
        why = ops.AvgPool.why_not(step, self.graph)
        if why:
            return why
        after = self._mean(step, math.prod(step.params["window_dimensions"]))
        if after:
            return self._op(ops.AvgPool, place, step, *after)
        after = self._mean_inside(step)
        if after is None:
            return "its sum isn't divided by how many there are"
        return self._op(ops.AvgPool, place, step, after, count_padding=False)

    def _mean_inside(self, step: Step) -> int | None:
        """The place of the step that divides sums of windows by what they see but padding."""
        place = self.graph.only_consumer(step.out)
        after = None if place is None else self.graph.steps[place]
        if after is None or after.name != "div" or after.inputs[0] != step.out:
            return None
        divisor = constant(self.graph, after.inputs[1])
        if divisor is None:
            return None
        shape, pooled = self.graph.shape(step.inputs[0]), ops.pooled(step)
        ones = np.ones([n if axis in pooled else 1 for axis, n in enumerate(shape)], np.float32)
        with jax.ensure_compile_time_eval():
            count = np.asarray(apply(step, [ones])[0])
        return place if (divisor == count).all() else None

    def _extreme(self, place: int, step: Step) -> Made:
        return self._op(ops.Extreme, place, step)

    def _global_avg_pool(self, place: int, step: Step) -> Made:
        shape, axes = self.graph.shape(step.inputs[0]), step.params["axes"]
        after = self._mean(step, math.prod(shape[axis] for axis in axes))
        if not after:
            return "its sum isn't divided by how many there are"
        if len(axes) != len(shape) - 2 or 0 in axes:
            return "it isn't the mean over all spatial axes"
        return self._op(ops.GlobalAvgPool, place, step, *after)

    def _mean(self, step: Step, count: int) -> list[int]:
        """The places of steps that make a mean of a sum, whose axes may be kept; or none."""
        value, places = step.out, []
        while (place := self.graph.only_consumer(value)) is not None:
            after = self.graph.steps[place]
            places.append(place)
            if after.name in ("div", "mul"):
                (other,) = [ref for ref in after.inputs if ref != value] or [None]
                divided = after.name == "div"
                right_way = not divided or after.inputs[0] == value
                makes_mean = right_way and ops.is_count(other, count, divided=divided)
                return places if makes_mean else []
            if after.name not in ("broadcast_in_dim", "reshape") or not self._keeps(step, after):
                break
            value = after.out
        return []

    def _keeps(self, reduction: Step, after: Step) -> bool:
        """Whether a step gives back the axes of a reduction, with one element each."""
        shape, axes = self.graph.shape(reduction.inputs[0]), reduction.params.get("axes", ())
        kept = tuple(1 if axis in axes else n for axis, n in enumerate(shape))
        return self.graph.shape(after.out) == kept

    def _concat(self, place: int, step: Step) -> Made:
        if not all(map(self.graph.is_data, step.inputs)):
            return "a part of it doesn't depend on data"
        return self._op(ops.Concat, place, step)

    def _pad(self, place: int, step: Step) -> Made:
        return moves.Pad.why_not(step, self.graph) or self._op(moves.Pad, place, step)

    def _transpose(self, place: int, step: Step) -> Made:
        return self._op(moves.Transpose, place, step)

    def _reshape(self, place: int, step: Step) -> Made:
        if step.params.get("dimensions") is not None and step.name == "reshape":
            return "it reorders while it reshapes"
        return self._op(moves.Reshape, place, step)

    def _moves(self, place: int, step: Step) -> list[OpNode] | str:
        why = moves.Move.why_not(step, self.graph)
        name, data = step.scope or step.name, data_of(self.graph, step)
        return why or [moves.Move(name, (place,), data, out, step) for out in step.outputs]

    def _binary(self, place: int, step: Step) -> Made:
        a, b = step.inputs
        if not (self.graph.is_data(a) and self.graph.is_data(b)) or a == b:
            return "one operand alone depends on data"
        found = self.activations.at(step.out)
        if found is None or found[1].kind not in STEPWISE:
            return self._op(ops.Binary, place, step)
        region, activation = found
        return self._op(ops.Binary, place, step, *region.places, activation=activation)

    def _lookup(self, place: int, step: Step) -> OpNode | None:
        """Any other function of one value, which others may read too."""
        data = data_of(self.graph, step)
        if len(set(data)) != 1 or not is_float(self.graph, data[0]):
            return None
        for region in regions(self.graph, data[0], first=place):
            if is_float(self.graph, region.end) and is_gentle(region):
                name = step.scope or step.name
                return ops.Lookup(name, region.places, data[:1], region.end, step, region)
        return None
