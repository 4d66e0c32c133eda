"""The values of a network while it runs: real ones as arrays, int8 ones with channels last."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jax_qconv._graph import Const, Graph, Ref, apply
from jax_qconv._quantize import QTensor, dequantize, quantize
from jax_qconv._spec import Ints, padded_channels


@dataclasses.dataclass(frozen=True, eq=False)
class Held:
    """An int8 value whose axes are stored in an order of their own.

    Attributes:
        q: as stored.
        axes: for each stored axis, which one of the network's value it is; the last is channels.
    """

    q: QTensor
    axes: Ints

    def real(self, dtype: Any) -> jax.Array:
        """As the network has it, in real units."""
        order = sorted(range(len(self.axes)), key=self.axes.__getitem__)
        return jnp.transpose(dequantize(self.q, dtype), order)

    def stored(self, axes: Ints) -> QTensor:
        """In another order of axes; free if it is the same."""
        if axes == self.axes:
            return self.q
        order = [self.axes.index(axis) for axis in axes]
        if axes[-1] == self.axes[-1]:
            return dataclasses.replace(self.q, values=jnp.transpose(self.q.values, order))
        values = jnp.transpose(self.q.unpadded(), order)
        return padded(dataclasses.replace(self.q, values=values, channels=values.shape[-1]))


def padded(q: QTensor) -> QTensor:
    """With the channels that the rule of `prepack` stores."""
    more = padded_channels(q.channels) - q.values.shape[-1]
    pads = ((0, 0),) * (q.values.ndim - 1) + ((0, more),)
    return dataclasses.replace(q, values=jnp.pad(q.values, pads)) if more > 0 else q


Quantisation = tuple[Any, Any]
"""A scale and a zero point (or None)."""


class Values:
    """What is known of a network's values, computed when it is asked for.

    Args:
        graph: of the network.
        known: arrays by the number of the value: data, and leaves of the parameters.
        quantisation: of an int8 value, by its number.
    """

    def __init__(
        self,
        graph: Graph,
        known: Mapping[int, Any],
        quantisation: Callable[[int], Quantisation] | None = None,
    ) -> None:
        self.graph = graph
        self.quantisation = quantisation
        self._real: dict[int, Any] = dict(known)
        self._held: dict[int, Held] = {}

    @classmethod
    def of_float(cls, graph: Graph, parameters: Any, data: tuple[Any, ...]) -> Values:
        """Those of the float function, all computed."""
        known = dict(zip(graph.parameters, jax.tree.leaves(parameters), strict=True))
        known |= zip(graph.data, jax.tree.leaves(data), strict=True)
        values = cls(graph, known)
        for place in range(len(graph.steps)):
            values.run(place)
        return values

    def set_real(self, value: int, array: Any) -> None:
        """Keep an array."""
        self._real[value] = array

    def set_held(self, value: int, held: Held) -> None:
        """Keep an int8 value."""
        self._held[value] = held

    def real(self, ref: Ref) -> Any:
        """An operand as an array; steps that lead to it from what is known are run."""
        if isinstance(ref, Const):
            return ref.value
        if ref not in self._real and ref in self._held:
            self._real[ref] = self._held[ref].real(self.graph.avals[ref].dtype)
        if ref not in self._real:
            self.run(self.graph.producer[ref])
        return self._real[ref]

    def run(self, place: int) -> None:
        """Run a step on real values."""
        step = self.graph.steps[place]
        outs = apply(step, [self.real(ref) for ref in step.inputs])
        self._real |= zip(step.outputs, outs, strict=True)

    def held(self, value: int, axes: Ints | None = None) -> Held:
        """An int8 value, quantised if it is real; ``axes`` is the order that would suit."""
        if value not in self._held:
            assert self.quantisation is not None
            axes = axes or tuple(range(len(self.graph.shape(value))))
            scale, zero_point = self.quantisation(value)
            x = jnp.transpose(self.real(value), axes)
            self._held[value] = Held(quantize(x, scale, zero_point=zero_point, pad=True), axes)
        return self._held[value]

    def int8(self, value: int, axes: Ints) -> QTensor:
        """An int8 value with its axes in a given order."""
        return self.held(value, axes).stored(axes)
