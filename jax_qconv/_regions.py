"""Elementwise functions of one value: where they begin and end, and which activation they are.

Whatever a network writes, such as max(x, 0) or x * logistic(x), is recognised by what it computes:
the steps are run on a few thousand numbers, and compared with the activations that can be fused.
"""

from __future__ import annotations

import dataclasses
import functools
import heapq
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_qconv._activation import ACTIVATIONS, Activation
from jax_qconv._graph import Graph, Ref, Step, apply
from jax_qconv._operands import CASTS, differs_by_channel, is_float
from jax_qconv._spec import Ints

_ARITHMETIC = {"add", "sub", "mul", "div", "max", "min", "neg", "abs", "sign", "clamp"}
_FUNCTIONS_OF_ONE = {"exp", "exp2", "expm1", "log", "log1p", "tanh", "logistic", "erf", "erfc"}
_FUNCTIONS_OF_ONE |= {"sqrt", "rsqrt", "cbrt", "square", "integer_pow", "pow", "sin", "cos"}
_FUNCTIONS_OF_ONE |= {"floor", "ceil", "round"}
_CHOICES = {"select_n", "ge", "gt", "le", "lt", "eq", "ne", "and", "or", "not", "xor", "is_finite"}
ELEMENTWISE = frozenset(_ARITHMETIC | _FUNCTIONS_OF_ONE | _CHOICES | CASTS)
"""Primitives whose output at a place depends on their inputs at that place only."""

MOST_STEPS = 24
"""Of a region; the tanh form of gelu has eight."""


@dataclasses.dataclass(frozen=True, eq=False)
class Region:
    """Steps that compute one value from one other, element by element.

    Attributes:
        graph: they are of.
        start: number of the value they read.
        end: number of the value they make.
        places: of the steps, in order.
        slopes: the one operand that isn't a constant number, but one for each channel; or None.
    """

    graph: Graph
    start: int
    end: int
    places: tuple[int, ...]
    slopes: Ref | None = None

    def __call__(self, x: jax.Array, slope: float | None = None) -> jax.Array:
        """The function, of float32; ``slope`` is what ``slopes`` have."""
        values: dict[int, Any] = {self.start: x}
        for place in self.places:
            step = self.graph.steps[place]
            operands = [self._operand(ref, values, x, slope) for ref in step.inputs]
            if step.name in CASTS and _is_float(step.params.get("new_dtype", np.float32)):
                values[step.out] = operands[0].astype(x.dtype)
            else:
                values[step.out] = apply(_elementwise(step), operands)[0]
        return values[self.end]

    def _operand(self, ref: Ref, values: dict[int, Any], like: jax.Array, slope: Any) -> Any:
        if isinstance(ref, int) and ref in values:
            return values[ref]
        number = self.graph.scalar(ref)
        value = jnp.asarray(np.float32(slope) if number is None else number.value)
        # The function is computed in float32, whatever the network's floats are.
        return jnp.broadcast_to(
            value.astype(like.dtype) if _is_float(value.dtype) else value, like.shape
        )


def regions(
    graph: Graph, start: int, *, first: int | None = None, axes: Ints = ()
) -> Iterator[Region]:
    """All regions that begin at a value, the longest first; nothing else sees what is inside.

    Args:
        graph: in which to look.
        start: the value. Only the region sees it, unless ``first`` is given.
        first: the place of a step that the region has to hold.
        axes: of channels; a region may have one operand that differs along them.
    """
    leading = _leading(graph, start, axes)
    for end, taken in sorted(leading.items(), key=lambda item: len(item[1]), reverse=True):
        steps = [graph.steps[place] for place in sorted(taken)]
        hidden = {step.out for step in steps} - {end}
        if first is None:
            hidden.add(start)
        elif first not in taken:
            continue
        inputs = dict.fromkeys(ref for step in steps for ref in step.inputs)
        made = {start, *hidden}
        slopes = [ref for ref in inputs if ref not in made and graph.scalar(ref) is None]
        if len(slopes) < 2 and all(_seen_inside(graph, value, taken) for value in hidden):
            yield Region(graph, start, end, tuple(sorted(taken)), *slopes)


def _leading(graph: Graph, start: int, axes: Ints) -> dict[int, frozenset[int]]:
    """What is computed of a value element by element, each with the places of steps up to it."""
    shape = graph.shape(start)
    found: dict[int, frozenset[int]] = {start: frozenset()}
    places = list(graph.consumers.get(start, ()))

    def fits(ref: Ref) -> bool:
        if graph.scalar(ref) is not None:
            return True
        by_channel = bool(axes) and differs_by_channel(graph, ref, axes, len(shape))
        return by_channel and is_float(graph, ref)

    while places and len(found) <= MOST_STEPS:
        place = heapq.heappop(places)
        step = graph.steps[place]
        if step.name not in ELEMENTWISE or step.out in found or graph.shape(step.out) != shape:
            continue
        inside = [ref for ref in step.inputs if isinstance(ref, int) and ref in found]
        if all(map(fits, set(step.inputs).difference(inside))):
            found[step.out] = frozenset({place}).union(*(found[ref] for ref in inside))
            for after in graph.consumers.get(step.out, ()):
                heapq.heappush(places, after)
    del found[start]
    return found


def _seen_inside(graph: Graph, value: int, taken: frozenset[int]) -> bool:
    return value not in graph.outputs and taken.issuperset(graph.consumers.get(value, ()))


def _is_float(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.floating)


def _elementwise(step: Step) -> Step:
    """The step for another shape; sharding is left to the new one."""
    params = {k: None if "sharding" in k else v for k, v in step.params.items()}
    return dataclasses.replace(step, params=params)


NEAR = 4097
"""Probes that lie close together, around zero."""

STEEPEST = 512
"""Times the mean rise of a function; a sigmoid has 6, a jump as many as there are probes."""


@functools.cache
def _probes() -> np.ndarray:
    near = np.linspace(-12, 12, NEAR)
    scales = np.geomspace(1e-8, 1e8, 513)
    return np.concatenate([near, scales, -scales]).astype(np.float32)


class Activations:
    """The activations in a graph; each is looked for once."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._found: dict[tuple[int, Ints], tuple[Region, Activation] | None] = {}

    def at(self, value: int, axes: Ints = ()) -> tuple[Region, Activation] | None:
        """The one that begins at a value, with its steps; ``axes`` are those of channels."""
        key = value, axes
        if key not in self._found:
            found = (
                (region, recognise(region)) for region in regions(self.graph, value, axes=axes)
            )
            self._found[key] = next(((r, a) for r, a in found if a is not None), None)
        return self._found[key]


def recognise(region: Region) -> Activation | None:
    """The activation that a region computes, or None."""
    x = _probes()
    if region.slopes is not None:
        prelu = all(_agrees(_computed(region, slope), "prelu", slope) for slope in _SLOPES)
        return ACTIVATIONS["prelu"] if prelu else None
    y = _computed(region)
    return next((a for a in _candidates(x, y) if _agrees(y, a.kind, a)), None)


_SLOPES = (-0.5, 0.0, 0.25, 1.5)
"""That tell prelu from all else, such as max(x, slope * x)."""


def _computed(region: Region, slope: float | None = None) -> np.ndarray:
    # Where the network is traced, too, these are numbers.
    with jax.ensure_compile_time_eval():
        return np.asarray(region(jnp.asarray(_probes()), slope), np.float64)


def _agrees(y: np.ndarray, kind: str, parameter: Any) -> bool:
    """Whether numbers are those of an activation of the probes."""
    x = _probes().astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = _FUNCTIONS[kind](x, parameter)
    # Relative near zero, too, but for what float32 loses where terms cancel.
    allowed = 1e-5 * np.abs(expected) + 1e-6 * np.minimum(np.abs(x), 1)
    return bool((np.abs(y - expected) <= allowed).all())


def is_gentle(region: Region) -> bool:
    """Whether steps of int8 can follow a function: it is finite, and nowhere has jumps or poles."""
    y = _computed(region)[:NEAR]
    if not np.isfinite(y).all():
        return False
    return bool(np.abs(np.diff(y)).max() <= STEEPEST / NEAR * (y.max() - y.min()))


def _candidates(x: np.ndarray, y: np.ndarray) -> Iterator[Activation]:
    yield from (ACTIVATIONS[kind] for kind in ("none", "relu", "hard_sigmoid", "hard_swish"))
    yield from (ACTIVATIONS[kind] for kind in ("sigmoid", "tanh", "silu", "gelu", "gelu_tanh"))
    low, high = y[np.argmin(x)], y[np.argmax(x)]
    lower = low if low > x.min() else -np.inf
    upper = high if high < x.max() else np.inf
    if lower < upper:
        yield Activation.clip(float(lower), float(upper))
    slope = float(np.float32(low / x.min()))
    if 0 < slope < 2.0**100:
        yield Activation.leaky_relu(slope)


def _erf(x: np.ndarray) -> np.ndarray:
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        return np.asarray(jax.lax.erf(jnp.asarray(x, jnp.float64)))


_FUNCTIONS = {
    "none": lambda x, a: x,
    "relu": lambda x, a: np.maximum(x, 0),
    "clip": lambda x, a: np.clip(x, a.lower, a.upper),
    "leaky_relu": lambda x, a: np.where(x > 0, x, x * a.slope),
    "prelu": lambda x, slope: np.where(x > 0, x, x * slope),
    "hard_sigmoid": lambda x, a: np.clip(x + 3, 0, 6) / 6,
    "hard_swish": lambda x, a: x * np.clip(x + 3, 0, 6) / 6,
    "sigmoid": lambda x, a: 1 / (1 + np.exp(-np.clip(x, -700, 700))),
    "tanh": lambda x, a: np.tanh(x),
    "silu": lambda x, a: x / (1 + np.exp(-np.clip(x, -700, 700))),
    "gelu": lambda x, a: x / 2 * (1 + _erf(x / np.sqrt(2))),
    "gelu_tanh": lambda x, a: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
}
"""In float64, with x and the activation (of prelu, the slope)."""
