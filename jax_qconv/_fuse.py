"""A graph as a list of nodes: convolutions, int8 operations between them, and what stays real.

Whatever can be folded into a convolution is a part of its node.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp

from jax_qconv import _op_nodes as ops
from jax_qconv._conv_node import Affine, ConvNode, Placement
from jax_qconv._graph import Const, Graph, Ref, Step
from jax_qconv._op_nodes import OpNode, RealNode
from jax_qconv._regions import CASTS, Region, recognise, regions
from jax_qconv._steps import STEPWISE

Node = ConvNode | OpNode | RealNode

AFFINE = ("add", "sub", "mul", "div", "neg")
FLOATS = (jnp.float32, jnp.bfloat16, jnp.float16)
RESHAPES = ("reshape", "squeeze", "expand_dims", "transpose")

SKIPPED = "a rule skips it"
"""Why a layer is real that a rule leaves so."""

Skip = Callable[[str], bool]
"""Whether the layer of a name is to stay real."""


def nodes(graph: Graph, names: dict[int, str], skip: Skip) -> tuple[list[Node], list[str]]:
    """All nodes, in an order in which they can run, and the names of layers that were skipped.

    Args:
        graph: of the network.
        names: of the parameters, by their number.
        skip: which layers to leave real.
    """
    fuser = _Fuser(graph, names, skip)
    return fuser.nodes(), fuser.skipped


class _Fuser:
    def __init__(self, graph: Graph, names: dict[int, str], skip: Skip) -> None:
        self.graph, self.names, self.skip = graph, names, skip
        self.claimed: set[int] = set()
        self.taken_names: set[str] = set()
        self.skipped: list[str] = []

    def nodes(self) -> list[Node]:
        found: list[Node] = []
        for place, step in enumerate(self.graph.steps):
            dependent = any(map(self.graph.is_data, step.inputs))
            if place in self.claimed or not dependent:
                continue
            node = self._node(place, step)
            self.claimed.update(node.places)
            found.append(node)
        return sorted(found, key=lambda node: node.places[-1])

    def _node(self, place: int, step: Step) -> Node:
        makers: dict[str, Callable[[int, Step], Node | str]] = {
            "conv_general_dilated": self._conv,
            "dot_general": self._dot,
            "reduce_window_max": self._max_pool,
            "reduce_window_sum": self._avg_pool,
            "reduce_sum": self._global_avg_pool,
            "concatenate": self._concat,
            "pad": self._pad,
            **dict.fromkeys(RESHAPES, self._reshape),
            "add": self._binary,
            "mul": self._binary,
        }
        why: str | None = None
        if step.name in makers:
            made = makers[step.name](place, step)
            if not isinstance(made, str):
                return made
            why = made
        return self._lookup(place, step) or RealNode((place,), self._data(step), step, why)

    def _data(self, step: Step) -> tuple[int, ...]:
        return tuple(ref for ref in step.inputs if isinstance(ref, int) and self.graph.is_data(ref))

    # Convolutions.

    def _conv(self, place: int, step: Step) -> Node | str:
        x, weight = step.inputs
        if not isinstance(x, int) or not self.graph.is_data(x) or self.graph.is_data(weight):
            return "its weights depend on data"
        if not (self._is_float(x) and self._is_float(step.out)):
            return "it isn't of float32, bfloat16 or float16"
        inner, pads = self._unpadded(x, step)
        placement = Placement.of_conv(step, self.graph, pads)
        if isinstance(placement, str) and pads is not None:
            inner, placement = x, Placement.of_conv(step, self.graph, None)
        if isinstance(placement, str):
            return placement
        return self._layer([place], step, inner, weight, placement)

    def _unpadded(self, x: int, conv: Step) -> tuple[int, Any]:
        """The value before zeros were put around it, and how many along each spatial axis."""
        total: Any = None
        while (before := self.graph.producer.get(x)) is not None:
            pad = self.graph.steps[before]
            pads = self._spatial_pads(pad, conv) if pad.name == "pad" else None
            if pads is None or self.graph.only_consumer(x) is None:
                break
            x = pad.inputs[0]  # type: ignore[assignment]  # depends on data, so it is a number
            total = total or ((0, 0),) * len(pads)
            total = tuple((a + c, b + d) for (a, b), (c, d) in zip(total, pads, strict=True))
        return x, total

    def _spatial_pads(self, pad: Step, conv: Step) -> Any:
        """What a `pad` adds to the spatial axes of a convolution, if that is all it does."""
        config = [tuple(map(int, sides)) for sides in pad.params["padding_config"]]
        n, c, *spatial = conv.params["dimension_numbers"].lhs_spec
        zero = ops.is_zero(pad.inputs[1]) and not any(inner for *_, inner in config)
        if not zero or any(config[axis][:2] != (0, 0) for axis in (n, c)):
            return None
        return tuple(config[axis][:2] for axis in spatial)

    def _dot(self, place: int, step: Step) -> Node | str:
        first, second = map(self.graph.is_data, step.inputs)
        if first == second:
            return "both its operands depend on data"
        x, weight = step.inputs if first else step.inputs[::-1]
        if not (self._is_float_ref(x) and self._is_float(step.out)):
            return "it isn't of float32, bfloat16 or float16"
        placement = Placement.of_dot(step, self.graph, first)
        if isinstance(placement, str):
            return placement
        assert isinstance(x, int)
        return self._layer([place], step, x, weight, placement)

    def _layer(
        self, places: list[int], step: Step, x: int, weight: Ref, placement: Placement
    ) -> Node | str:
        name = self._name(step, weight)
        # A layer that is used several times goes by one rule.
        if self.skip(name.partition("#")[0]):
            self.skipped.append(name)
            return SKIPPED
        affine: list[Affine] = []
        value = self._follow_affine(step.out, placement.channel_axis, places, affine)
        mode = activation = None
        value, residual = self._follow_residual(value, places)
        if residual is not None:
            mode = "add"
        region = self._activation(value)
        if region is not None:
            places += region[0].places
            value, activation = region[0].end, region[1]
            if residual is None:
                value, residual = self._follow_residual(value, places)
                mode = None if residual is None else "add_after_activation"
        return ConvNode(
            name=name,
            places=tuple(sorted(places)),
            x=x,
            weight=weight,
            out=value,
            placement=placement,
            affine=tuple(affine),
            residual=residual,
            residual_mode=mode,
            activation=activation,
        )

    def _name(self, step: Step, weight: Ref) -> str:
        """The path of its weights, or where it was traced; unique."""
        name = self._source(weight) or step.scope or step.name
        unique, count = name, 1
        while unique in self.taken_names:
            count += 1
            unique = f"{name}#{count}"
        self.taken_names.add(unique)
        return unique

    def _source(self, ref: Ref) -> str | None:
        """The name of the parameter that an operand is made of, the largest if of several."""
        seen: set[int] = set()
        todo, found = [ref], []
        while todo:
            one = todo.pop()
            if isinstance(one, Const) or one in seen:
                continue
            seen.add(one)
            if one in self.names:
                found.append(one)
            elif one in self.graph.producer:
                todo += self.graph.steps[self.graph.producer[one]].inputs
        best = max(found, key=lambda r: math.prod(self.graph.shape(r)), default=None)
        return None if best is None else self.names[best]

    def _follow_affine(self, value: int, axis: int, places: list[int], to: list[Affine]) -> int:
        """Steps that scale and shift each channel; returns the value after them."""
        while (place := self.graph.only_consumer(value)) is not None:
            step = self.graph.steps[place]
            if step.name in CASTS and self._is_float(step.out):
                pass
            elif step.name == "neg":
                to.append(Affine("neg"))
            elif step.name in AFFINE:
                swapped = step.inputs[0] != value
                other = step.inputs[0] if swapped else step.inputs[1]
                if not self._by_channel(other, axis, len(self.graph.shape(value))) or (
                    swapped and step.name == "div"
                ):
                    break
                if self.graph.scalar(other) is not None and self._bends(value):
                    break
                to.append(Affine(step.name, other, swapped))
            else:
                break
            places.append(place)
            value = step.out
        return value

    def _bends(self, value: int) -> bool:
        """Whether an activation begins here, such as hard sigmoid by its x + 3."""
        found = self._activation(value)
        return found is not None and found[1].kind != "none"

    def _is_float(self, value: int) -> bool:
        return self.graph.avals[value].dtype in FLOATS

    def _is_float_ref(self, ref: Ref) -> bool:
        return isinstance(ref, int) and self._is_float(ref)

    def _by_channel(self, ref: Ref, axis: int, rank: int) -> bool:
        """Whether an operand is a number for each channel, whatever the data."""
        if self.graph.is_data(ref):
            return False
        shape = self.graph.shape(ref)
        if shape == () or (
            len(shape) == rank and all(n == 1 for i, n in enumerate(shape) if i != axis)
        ):
            return True
        if isinstance(ref, Const) or ref not in self.graph.producer:
            return False
        step = self.graph.steps[self.graph.producer[ref]]
        if step.name in CASTS:
            return self._by_channel(step.inputs[0], axis, rank)
        if step.name != "broadcast_in_dim":
            return False
        source = self.graph.shape(step.inputs[0])
        to = step.params["broadcast_dimensions"]
        return all(n == 1 or to[i] == axis for i, n in enumerate(source))

    def _follow_residual(self, value: int, places: list[int]) -> tuple[int, int | None]:
        """The value after something is added to it, and that."""
        place = self.graph.only_consumer(value)
        step = None if place is None else self.graph.steps[place]
        if place is None or step is None or step.name != "add" or place in self.claimed:
            return value, None
        (other,) = [ref for ref in step.inputs if ref != value] or [value]
        fits = self.graph.is_data(other) and self.graph.shape(other) == self.graph.shape(value)
        if not fits or other == value or not isinstance(other, int):
            return value, None
        places.append(place)
        return step.out, other

    def _activation(self, value: int) -> tuple[Region, Any] | None:
        for region in regions(self.graph, value):
            activation = recognise(region)
            if activation is not None:
                return region, activation
        return None

    # Operations.

    def _op(self, kind: type[OpNode], place: int, step: Step, *more: int, **fields: Any) -> Node:
        places = (place, *more)
        out = self.graph.steps[places[-1]].out
        name = step.scope or step.name
        return kind(name, places, self._data(step), out, step, **fields)

    def _max_pool(self, place: int, step: Step) -> Node | str:
        return ops.MaxPool.why_not(step, self.graph) or self._op(ops.MaxPool, place, step)

    def _concat(self, place: int, step: Step) -> Node | str:
        if not all(self.graph.is_data(ref) and self._is_float_ref(ref) for ref in step.inputs):
            return "a part of it doesn't depend on data"
        return self._op(ops.Concat, place, step)

    def _reshape(self, place: int, step: Step) -> Node | str:
        if step.params.get("dimensions") is not None:
            return "it reorders while it reshapes"
        if not self._is_float(step.out):
            return "it is of integers"
        scalar = self.graph.shape(step.out) == () or self.graph.shape(step.inputs[0]) == ()
        return "it is a scalar" if scalar else self._op(ops.Reshape, place, step)

    def _pad(self, place: int, step: Step) -> Node | str:
        return ops.Pad.why_not(step, self.graph) or self._op(ops.Pad, place, step)

    def _avg_pool(self, place: int, step: Step) -> Node | str:
        why = ops.AvgPool.why_not(step, self.graph)
        after = self._mean(step, math.prod(step.params["window_dimensions"]))
        if why or after is None:
            return why or "its sum isn't divided by the size of the window"
        return self._op(ops.AvgPool, place, step, after)

    def _global_avg_pool(self, place: int, step: Step) -> Node | str:
        shape, axes = self.graph.shape(step.inputs[0]), step.params["axes"]
        after = self._mean(step, math.prod(shape[axis] for axis in axes))
        rank = len(shape)
        if after is None or len(axes) != rank - 2 or 0 in axes:
            return "it isn't the mean over all spatial axes"
        return self._op(ops.GlobalAvgPool, place, step, after)

    def _mean(self, step: Step, count: int) -> int | None:
        """The place of the step that makes a mean of a sum."""
        place = self.graph.only_consumer(step.out)
        if place is None or self.graph.steps[place].name not in ("div", "mul"):
            return None
        after = self.graph.steps[place]
        (other,) = [ref for ref in after.inputs if ref != step.out] or [None]
        divided = after.name == "div"
        right_way = not divided or after.inputs[0] == step.out
        return place if right_way and ops.is_count(other, count, divided=divided) else None

    def _binary(self, place: int, step: Step) -> Node | str:
        a, b = step.inputs
        if not (self.graph.is_data(a) and self.graph.is_data(b)) or a == b:
            return "one operand alone depends on data"
        if not all(self._is_float(ref) for ref in (a, b) if isinstance(ref, int)):
            return "its operands are integers"
        region = self._activation(step.out)
        if region is None or region[1].kind not in STEPWISE:
            return self._op(ops.Binary, place, step)
        node = self._op(ops.Binary, place, step, *region[0].places, activation=region[1])
        return node

    def _lookup(self, place: int, step: Step) -> Node | None:
        """Any other function of one value."""
        data = self._data(step)
        if len(set(data)) != 1 or not self._is_float(data[0]):
            return None
        for region in self._ending(data[0], place):
            return ops.Lookup(
                step.scope or step.name, region.places, (data[0],), region.end, step, region
            )
        return None

    def _ending(self, start: int, place: int) -> Iterator[Region]:
        """Regions from a value that begin with a step; others may read the value too."""
        single = dataclasses.replace(
            self.graph,
            consumers=self.graph.consumers | {start: [place]},
            outputs=tuple(ref for ref in self.graph.outputs if ref != start),
        )
        for region in regions(single, start):
            if region.places[0] == place and self._is_float(region.end):
                yield region
