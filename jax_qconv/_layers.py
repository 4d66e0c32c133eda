"""Convolutions and products of a graph, each with all that can be folded into it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from jax_qconv._conv_node import Affine, ConvNode
from jax_qconv._graph import LAYERS, Const, Graph, Ref, Step
from jax_qconv._layer_info import LayerInfo
from jax_qconv._operands import CASTS, data_of, differs_by_channel, is_float, is_zero, origins
from jax_qconv._placement import Placement
from jax_qconv._regions import Activations
from jax_qconv._spec import Ints

AFFINE = ("add", "sub", "mul", "div", "neg")

SKIPPED = "a rule skips it"
"""Why a layer is real that a rule leaves so."""

Skip = Callable[[LayerInfo], bool]
"""Whether a layer is to stay real."""


class Layers:
    """Makes nodes of convolutions and products.

    Args:
        graph: they are of.
        names: of the parameters, by their number.
        skip: which layers to leave real.
        activations: of the graph.
        claimed: places of steps that are parts of other nodes.
    """

    def __init__(
        self,
        graph: Graph,
        names: dict[int, str],
        skip: Skip,
        activations: Activations,
        claimed: set[int],
    ) -> None:
        self.graph, self.names, self.skip = graph, names, skip
        self.activations, self.claimed = activations, claimed
        self.skipped: list[LayerInfo] = []
        self._after, self._before = _neighbours(graph)
        self._taken_names: set[str] = set()

    def conv(self, place: int, step: Step) -> ConvNode | str:
        """Of a ``conv_general_dilated``; or why it stays real."""
        x, weight = step.inputs
        if not isinstance(x, int) or not self.graph.is_data(x) or self.graph.is_data(weight):
            return "its weights depend on data"
        if not (is_float(self.graph, x) and is_float(self.graph, step.out)):
            return "it isn't of float32, bfloat16 or float16"
        inner, pads = self._unpadded(x, step)
        placement = Placement.of_conv(step, self.graph, pads)
        if isinstance(placement, str) and pads is not None:
            inner, placement = x, Placement.of_conv(step, self.graph, None)
        if isinstance(placement, str):
            return placement
        return self._layer(place, step, inner, weight, placement)

    def dot(self, place: int, step: Step) -> ConvNode | str:
        """Of a ``dot_general``; or why it stays real."""
        first, second = map(self.graph.is_data, step.inputs)
        if first == second:
            return "both its operands depend on data"
        x, weight = step.inputs if first else step.inputs[::-1]
        if not (is_float(self.graph, x) and is_float(self.graph, step.out)):
            return "it isn't of float32, bfloat16 or float16"
        if all(isinstance(one, Const) and one.shape == () for one in origins(self.graph, weight)):
            return "its matrix isn't learned, but computed, as for a resize"
        placement = Placement.of_dot(step, self.graph, first)
        if isinstance(placement, str):
            return placement
        assert isinstance(x, int)
        return self._layer(place, step, x, weight, placement)

    def _unpadded(self, x: int, conv: Step) -> tuple[int, Any]:
        """The value before zeros were put around it, and how many along each spatial axis."""
        total: Any = None
        while (before := self.graph.producer.get(x)) is not None:
            pad = self.graph.steps[before]
            pads = _spatial_pads(pad, conv) if pad.name == "pad" else None
            if pads is None or self.graph.only_consumer(x) is None:
                break
            x = pad.inputs[0]  # type: ignore[assignment]  # depends on data, so it is a number
            total = total or ((0, 0),) * len(pads)
            total = tuple((a + c, b + d) for (a, b), (c, d) in zip(total, pads, strict=True))
        return x, total

    def _layer(
        self, place: int, step: Step, x: int, weight: Ref, placement: Placement
    ) -> ConvNode | str:
        name = self._name(step, weight)
        info = LayerInfo(
            # A layer that is used several times goes by one rule.
            name=name.partition("#")[0],
            kind="linear" if placement.linear else "conv",
            weight_shape=placement.weight_shape(self.graph.shape(weight)),
            groups=dict(placement.options).get("groups", 1),
            first=x not in self._after,
            last=step.out not in self._before,
        )
        if self.skip(info):
            self.skipped.append(info)
            return SKIPPED
        places, affine = [place], []
        value, placement = self._follow_affine(step.out, placement, places, affine)
        mode = activation = slopes = None
        value, residual = self._follow_residual(value, places)
        if residual is not None:
            mode = "add"
        found = self.activations.at(value, placement.channel_axes)
        if found is not None:
            region, activation = found
            places += region.places
            value, slopes = region.end, region.slopes
            if residual is None:
                value, residual = self._follow_residual(value, places)
                mode = None if residual is None else "add_after_activation"
        return ConvNode(
            name=name,
            info=info,
            places=tuple(sorted(places)),
            x=x,
            weight=weight,
            out=value,
            placement=placement,
            affine=tuple(affine),
            residual=residual,
            residual_mode=mode,
            activation=activation,
            slopes=slopes,
        )

    def _name(self, step: Step, weight: Ref) -> str:
        """The path of its weights, or where it was traced; unique."""
        # The largest parameter that they are made of.
        made_of = origins(self.graph, weight)
        named = [ref for ref in made_of if isinstance(ref, int) and ref in self.names]
        best = max(named, key=lambda ref: math.prod(self.graph.shape(ref)), default=None)
        name = step.scope or step.name if best is None else self.names[best]
        unique, count = name, 1
        while unique in self._taken_names:
            count += 1
            unique = f"{name}#{count}"
        self._taken_names.add(unique)
        return unique

    def _follow_affine(
        self, value: int, placement: Placement, places: list[int], to: list[Affine]
    ) -> tuple[int, Placement]:
        """Steps that scale and shift each channel, or reorder axes; the value after them."""
        while (place := self.graph.only_consumer(value)) is not None:
            step, axes = self.graph.steps[place], placement.channel_axes
            if step.name in CASTS and is_float(self.graph, step.out):
                pass
            elif step.name == "transpose":
                placement = placement.transposed(step.params["permutation"])
            elif step.name == "neg":
                to.append(Affine("neg"))
            elif step.name in AFFINE:
                swapped = step.inputs[0] != value
                other = step.inputs[0] if swapped else step.inputs[1]
                rank = len(self.graph.shape(value))
                if not differs_by_channel(self.graph, other, axes, rank) or (
                    swapped and step.name == "div"
                ):
                    break
                if self.graph.scalar(other) is not None and self._bends(value, axes):
                    break
                to.append(Affine(step.name, other, swapped, axes))
            else:
                break
            places.append(place)
            value = step.out
        return value, placement

    def _bends(self, value: int, axes: Ints) -> bool:
        """Whether an activation begins here, such as hard sigmoid by its x + 3."""
        found = self.activations.at(value, axes)
        return found is not None and found[1].kind != "none"

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


def _neighbours(graph: Graph) -> tuple[set[int], set[int]]:
    """Values that come after any layer, and those that come before any."""
    after: set[int] = set()
    for step in graph.steps:
        is_layer = step.name in LAYERS and any(map(graph.is_data, step.inputs))
        if is_layer or not after.isdisjoint(data_of(graph, step)):
            after.update(step.outputs)
    before: set[int] = set()
    for step in reversed(graph.steps):
        if step.name in LAYERS or not before.isdisjoint(step.outputs):
            before.update(data_of(graph, step))
    return after, before


def _spatial_pads(pad: Step, conv: Step) -> Any:
    """What a ``pad`` adds to the spatial axes of a convolution, if that is all it does."""
    config = [tuple(map(int, sides)) for sides in pad.params["padding_config"]]
    n, c, *spatial = conv.params["dimension_numbers"].lhs_spec
    zero = is_zero(pad.inputs[1]) and not any(inner for *_, inner in config)
    if not zero or any(config[axis][:2] != (0, 0) for axis in (n, c)):
        return None
    return tuple(config[axis][:2] for axis in spatial)
