"""What runs in int8 between the convolutions of a network, and what runs on real numbers."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_qconv import _steps, _table
from jax_qconv._activation import Activation
from jax_qconv._elementwise import qadd, qmul
from jax_qconv._graph import Const, Graph, Step
from jax_qconv._pool import qavg_pool, qglobal_avg_pool, qmax_pool
from jax_qconv._quantize import QTensor
from jax_qconv._rearrange import qconcat
from jax_qconv._regions import Region
from jax_qconv._spec import Ints
from jax_qconv._values import Held, Quantisation, Values


@dataclasses.dataclass(frozen=True, eq=False)
class OpNode:
    """An operation of int8 values.

    Attributes:
        name: of the layer.
        places: of the steps that it stands for.
        inputs: numbers of the values that depend on data.
        out: number of its output.
        step: the first of its steps.
    """

    name: str
    places: tuple[int, ...]
    inputs: tuple[int, ...]
    out: int
    step: Step

    keeps_scale = False
    """Whether the output has the scale and zero point of all inputs."""

    def run(self, values: Values, out: Quantisation) -> None:
        """Leave the output among the values; ``out`` is how it is to be quantised."""
        raise NotImplementedError


class MaxPool(OpNode):
    """The largest of each window."""

    keeps_scale = True

    @classmethod
    def why_not(cls, step: Step, graph: Graph) -> str | None:
        """What keeps a ``reduce_window_max`` from being one."""
        return _why_no_window(step)

    def run(self, values: Values, out: Quantisation) -> None:
        x = values.held(self.inputs[0])
        axes = with_ends(x.axes, pooled(self.step))
        window = _window(self.step, axes)
        q = qmax_pool(x.stored(axes), **window, dilation=_inner(self.step, axes))
        values.set_held(self.out, Held(q, axes))


class Extreme(OpNode):
    """The largest or smallest along some axes, which are dropped."""

    keeps_scale = True

    def run(self, values: Values, out: Quantisation) -> None:
        x, reduced = values.held(self.inputs[0]), self.step.params["axes"]
        reduce = jnp.max if self.step.name == "reduce_max" else jnp.min
        array = reduce(x.q.unpadded(), tuple(x.axes.index(axis) for axis in reduced))
        left = [axis for axis in x.axes if axis not in reduced]
        q = dataclasses.replace(x.q, values=array, channels=array.shape[-1])
        values.set_held(self.out, Held(q, tuple(sorted(left).index(axis) for axis in left)))


@dataclasses.dataclass(frozen=True, eq=False)
class AvgPool(OpNode):
    """The mean of each window.

    Attributes:
        count_padding: whether padding counts as zeros, or not at all.
    """

    count_padding: bool = True

    @classmethod
    def why_not(cls, step: Step, graph: Graph) -> str | None:
        """What keeps a ``reduce_window_sum`` from being one."""
        if any(n > 1 for n in step.params["window_dilation"]):
            return "its window is dilated"
        return _why_no_window(step)

    def run(self, values: Values, out: Quantisation) -> None:
        x = values.held(self.inputs[0])
        axes = with_ends(x.axes, pooled(self.step))
        window = _window(self.step, axes)
        scale, zero_point = out
        q = qavg_pool(
            x.stored(axes),
            **window,
            count_include_pad=self.count_padding,
            out_scale=scale,
            out_zero_point=zero_point,
        )
        values.set_held(self.out, Held(q, axes))


class GlobalAvgPool(OpNode):
    """The mean over all spatial axes; these are kept with one element each, or dropped."""

    def run(self, values: Values, out: Quantisation) -> None:
        reduced = frozenset(self.step.params["axes"])
        x = values.held(self.inputs[0])
        axes = with_ends(x.axes, reduced)
        scale, zero_point = out
        keepdims = len(values.graph.shape(self.out)) == len(axes)
        q = qglobal_avg_pool(
            x.stored(axes), out_scale=scale, out_zero_point=zero_point, keepdims=keepdims
        )
        left = sorted((axes[0], axes[-1]))
        dropped = left.index(axes[0]), left.index(axes[-1])
        values.set_held(self.out, Held(q, axes if keepdims else dropped))


class Concat(OpNode):
    """Values side by side."""

    keeps_scale = True

    def run(self, values: Values, out: Quantisation) -> None:
        first = values.held(self.inputs[0])
        # All are of one group, so these are the same numbers, of whatever leaf.
        parts = [
            dataclasses.replace(
                values.int8(number, first.axes), scale=first.q.scale, zero_point=first.q.zero_point
            )
            for number in self.inputs
        ]
        at = first.axes.index(self.step.params["dimension"])
        q = qconcat(parts, axis=-1 if at == len(first.axes) - 1 else at)
        values.set_held(self.out, Held(q, first.axes))


@dataclasses.dataclass(frozen=True, eq=False)
class Binary(OpNode):
    """The sum, difference or product of two values, broadcast, and an activation.

    Attributes:
        activation: that follows, or None.
    """

    activation: Activation | None = None

    def run(self, values: Values, out: Quantisation) -> None:
        largest = max(self.inputs, key=lambda number: math.prod(values.graph.shape(number)))
        axes = values.held(largest).axes
        a, b = (values.int8(number, axes) for number in self.inputs)
        if self.step.name == "sub":
            b = _negative(b)
        op = qmul if self.step.name == "mul" else qadd
        scale, zero_point = out
        q = op(a, b, out_scale=scale, out_zero_point=zero_point, activation=self.activation)
        values.set_held(self.out, Held(q, axes))


@dataclasses.dataclass(frozen=True, eq=False)
class Lookup(OpNode):
    """Any function of each element: a table of 256 entries.

    Attributes:
        region: the function.
    """

    region: Region

    def run(self, values: Values, out: Quantisation) -> None:
        x = values.held(self.inputs[0])
        scale, zero_point = out
        integers = jnp.arange(256, dtype=jnp.uint8).view(jnp.int8).astype(jnp.float32)
        zero = jnp.float32(0 if x.q.zero_point is None else x.q.zero_point)
        reals = self.region((integers - zero) * x.q.scale)
        with jax.enable_x64(True):
            steps = _steps.wide(jnp, reals) * _steps.ratio(np.float64(1), over=[scale])
            entries = _steps.to_int8(jnp, steps, zero_point)
        q = QTensor(_table.lookup(entries, x.q.values), scale, zero_point, x.q.channels)
        values.set_held(self.out, Held(q, x.axes))


@dataclasses.dataclass(frozen=True, eq=False)
class RealNode:
    """A step on real numbers.

    Attributes:
        places: its place.
        inputs: numbers of the values that depend on data.
        step: it.
        why: why it isn't int8, where one might expect it.
    """

    places: tuple[int, ...]
    inputs: tuple[int, ...]
    step: Step
    why: str | None = None


def _negative(q: QTensor) -> QTensor:
    """-q, as -((q - z) * s) = ((-1 - q) - (-1 - z)) * s, and -1 - q is an int8 for every int8."""
    zero_point = jnp.int32(-1) - (jnp.int32(0) if q.zero_point is None else q.zero_point)
    return dataclasses.replace(q, values=~q.values, zero_point=zero_point)


def is_count(ref: Any, count: int, *, divided: bool) -> bool:
    """Whether dividing by a constant (or multiplying with it) makes a mean of a sum."""
    if not isinstance(ref, Const) or ref.shape != ():
        return False
    value = float(np.asarray(ref.value, np.float64))
    return math.isclose(value, count if divided else 1 / count, rel_tol=1e-6)


def _why_no_window(step: Step) -> str | None:
    p = step.params
    if any(n > 1 for n in p["base_dilation"]):
        return "its input is dilated"
    rank = len(p["window_dimensions"])
    if rank not in (3, 4, 5):
        return "it hasn't one to three spatial axes"
    return None if rank - len(pooled(step)) >= 2 else "it pools over batch or channels"


def pooled(step: Step) -> frozenset[int]:
    """The axes that a window moves along, or changes."""
    p = step.params
    sides = zip(p["window_dimensions"], p["window_strides"], p["padding"], strict=True)
    return frozenset(
        axis
        for axis, (size, stride, pads) in enumerate(sides)
        if (size, stride) != (1, 1) or tuple(pads) != (0, 0)
    )


def with_ends(axes: Ints, inner: frozenset[int]) -> Ints:
    """An order of axes, near to ``axes``, whose first and last aren't among ``inner``."""
    if axes[0] not in inner and axes[-1] not in inner:
        return axes
    ends = [axis for axis in axes if axis not in inner]
    middle = [axis for axis in axes if axis not in (ends[0], ends[-1])]
    return (ends[0], *middle, ends[-1])


def _window(step: Step, axes: tuple[int, ...]) -> dict[str, Any]:
    p, spatial = step.params, axes[1:-1]
    return {
        "window": tuple(p["window_dimensions"][axis] for axis in spatial),
        "strides": tuple(p["window_strides"][axis] for axis in spatial),
        "padding": tuple(tuple(p["padding"][axis]) for axis in spatial),
    }


def _inner(step: Step, axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(step.params["window_dilation"][axis] for axis in axes[1:-1])
