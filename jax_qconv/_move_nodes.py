"""What only moves the int8 numbers of a network: their scale and zero point stay."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from jax_qconv._graph import Graph, Step, apply
from jax_qconv._op_nodes import OpNode, with_ends
from jax_qconv._operands import constant, is_zero
from jax_qconv._rearrange import qpad
from jax_qconv._spec import Ints
from jax_qconv._values import Held, Quantisation, Values

RESHAPES = ("reshape", "squeeze", "expand_dims")
ALONG_AXES = ("slice", "rev", "split", "tile")
"""Their outputs have the axes of their inputs."""

INDEXED = ("gather", "dynamic_slice")
_MODES = jax.lax.GatherScatterMode
MOVES = (*ALONG_AXES, *INDEXED, "broadcast_in_dim", "stack", "unstack")


class Transpose(OpNode):
    """Axes in another order: it is only noted."""

    keeps_scale = True

    def run(self, values: Values, out: Quantisation) -> None:
        x = values.held(self.inputs[0])
        order = tuple(self.step.params["permutation"])
        values.set_held(self.out, Held(x.q, tuple(order.index(axis) for axis in x.axes)))


class Reshape(OpNode):
    """The same elements in another shape."""

    keeps_scale = True

    def run(self, values: Values, out: Quantisation) -> None:
        x, shape = values.held(self.inputs[0]), values.graph.shape(self.out)
        old = values.graph.shape(self.inputs[0])
        axes, wanted = x.axes, _matched(x.axes, old, shape)
        if wanted is None:
            axes, wanted = tuple(range(len(old))), tuple(range(len(shape)))
        array = x.stored(axes).unpadded().reshape([shape[axis] for axis in wanted])
        values.set_held(self.out, _moved(x, array, wanted))


class Move(OpNode):
    """Any step that takes elements from one place to another: it is applied to the integers."""

    keeps_scale = True

    @classmethod
    def why_not(cls, step: Step, graph: Graph) -> str | None:
        """What keeps a step from being one."""
        if step.name in INDEXED and any(map(graph.is_data, step.inputs[1:])):
            return "where it reads depends on data"
        return None if step.name != "gather" or _is_inside(step, graph) else "it may read outside"

    def run(self, values: Values, out: Quantisation) -> None:
        x, step = values.held(self.inputs[0]), self.step
        axes = tuple(range(len(x.axes)))
        if step.name in ALONG_AXES:
            axes, step = x.axes, _along(step, x.axes)
        if step.params.get("mode") == _MODES.FILL_OR_DROP:
            # int8 has no NaN, which isn't read anyway.
            params = step.params | {"mode": _MODES.PROMISE_IN_BOUNDS, "fill_value": None}
            step = dataclasses.replace(step, params=params)
        arrays = {number: values.int8(number, axes).unpadded() for number in self.inputs}
        operands = [
            arrays[ref] if isinstance(ref, int) and ref in arrays else values.real(ref)
            for ref in step.inputs
        ]
        array = apply(step, operands)[step.outputs.index(self.out)]
        left = axes if step.name in ALONG_AXES else tuple(range(array.ndim))
        values.set_held(self.out, _moved(x, array, left))


class Pad(OpNode):
    """Zeros around the spatial axes."""

    keeps_scale = True

    @classmethod
    def why_not(cls, step: Step, graph: Graph) -> str | None:
        """What keeps a ``pad`` from being one."""
        pads = step.params["padding_config"]
        if not is_zero(step.inputs[1]):
            return "it pads with something else than zero"
        if any(low < 0 or high < 0 or inner for low, high, inner in pads):
            return "it cuts off, or pads between elements"
        if not 3 <= len(pads) <= 5 or len(pads) - len(_padded_axes(step)) < 2:
            return "it pads more than spatial axes"
        return None

    def run(self, values: Values, out: Quantisation) -> None:
        x = values.held(self.inputs[0])
        axes = with_ends(x.axes, _padded_axes(self.step))
        pads = [self.step.params["padding_config"][axis] for axis in axes[1:-1]]
        q = qpad(x.stored(axes), [(int(low), int(high)) for low, high, _ in pads])
        values.set_held(self.out, Held(q, axes))


def _moved(x: Held, array: jax.Array, axes: Ints) -> Held:
    """Numbers of ``x`` at other places."""
    return Held(dataclasses.replace(x.q, values=array, channels=array.shape[-1]), axes)


def _matched(axes: Ints, old: Ints, new: Ints) -> Ints | None:
    """Stored axes after a reshape that only adds or drops axes of one element; else None."""
    kept, found = ([axis for axis, n in enumerate(shape) if n != 1] for shape in (old, new))
    if [old[axis] for axis in kept] != [new[axis] for axis in found]:
        return None
    ones = [axis for axis, n in enumerate(new) if n == 1]
    return (*ones, *(found[kept.index(axis)] for axis in axes if axis in kept))


def _along(step: Step, axes: Ints) -> Step:
    """A step of `ALONG_AXES` for a value whose axes are stored in an order of their own."""
    params = dict(step.params)
    for name in ("start_indices", "limit_indices", "strides", "reps"):
        if params.get(name) is not None:
            params[name] = tuple(params[name][axis] for axis in axes)
    if "dimensions" in params:
        params["dimensions"] = tuple(axes.index(axis) for axis in params["dimensions"])
    if "axis" in params:
        params["axis"] = axes.index(params["axis"])
    return dataclasses.replace(step, params=params)


def _is_inside(step: Step, graph: Graph) -> bool:
    """Whether a ``gather`` reads elements only: beyond them there may be NaN, which int8 lacks."""
    p = step.params
    if p["mode"] != _MODES.FILL_OR_DROP:
        return True
    indices = constant(graph, step.inputs[1])
    if indices is None:
        return False
    axes = list(p["dimension_numbers"].start_index_map)
    last = np.subtract(graph.shape(step.inputs[0]), p["slice_sizes"])[axes]
    return bool(((indices >= 0) & (indices <= last)).all())


def _padded_axes(step: Step) -> frozenset[int]:
    """The axes along which a ``pad`` adds something."""
    pads = step.params["padding_config"]
    return frozenset(axis for axis, (low, high, _) in enumerate(pads) if low or high)
