"""Elementwise functions of one value: where they begin and end, and which activation they are.

Whatever a network writes, such as max(x, 0) or x * logistic(x), is recognised by what it computes:
the steps are run on a few thousand numbers, and compared with the activations that can be fused.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_qconv._activation import ACTIVATIONS, Activation
from jax_qconv._graph import Graph, Ref, Step, apply

_ARITHMETIC = {"add", "sub", "mul", "div", "max", "min", "neg", "abs", "sign", "clamp"}
_FUNCTIONS_OF_ONE = {"exp", "exp2", "expm1", "log", "log1p", "tanh", "logistic", "erf", "erfc"}
_FUNCTIONS_OF_ONE |= {"sqrt", "rsqrt", "cbrt", "square", "integer_pow", "pow", "sin", "cos"}
_FUNCTIONS_OF_ONE |= {"floor", "ceil", "round"}
_CHOICES = {"select_n", "ge", "gt", "le", "lt", "eq", "ne", "and", "or", "not", "xor", "is_finite"}
CASTS = {"convert_element_type", "stop_gradient", "copy", "copy_p", "reduce_precision"}
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
    """

    graph: Graph
    start: int
    end: int
    places: tuple[int, ...]

    def __call__(self, x: jax.Array) -> jax.Array:
        """The function."""
        values: dict[int, Any] = {self.start: x}
        for place in self.places:
            step = self.graph.steps[place]
            operands = [self._operand(ref, values, x) for ref in step.inputs]
            if step.name in CASTS and _is_float(step.params.get("new_dtype", np.float32)):
                values[step.out] = operands[0].astype(x.dtype)
            else:
                values[step.out] = apply(_elementwise(step), operands)[0]
        return values[self.end]

    def _operand(self, ref: Ref, values: dict[int, Any], like: jax.Array) -> Any:
        if isinstance(ref, int) and ref in values:
            return values[ref]
        number = self.graph.scalar(ref)
        assert number is not None
        value = jnp.asarray(number.value)
        # The function is computed in float32, whatever the network's floats are.
        return jnp.broadcast_to(
            value.astype(like.dtype) if _is_float(value.dtype) else value, like.shape
        )


def regions(graph: Graph, start: int) -> Iterator[Region]:
    """All regions that begin at a value, the longest first; nothing else sees what is inside."""
    shape = graph.shape(start)
    inside, places, open_ends = {start}, [], []
    first = graph.producer.get(start, -1) + 1
    for place in range(first, len(graph.steps)):
        step = graph.steps[place]
        others = [ref for ref in step.inputs if not (isinstance(ref, int) and ref in inside)]
        if len(others) == len(step.inputs):
            continue
        fits = step.name in ELEMENTWISE and len(step.outputs) == 1
        fits = fits and all(graph.scalar(ref) is not None for ref in others)
        if not (fits and graph.shape(step.out) == shape):
            continue
        inside.add(step.out)
        places.append(place)
        open_ends.append(step.out)
        if len(places) == MOST_STEPS:
            break
    for count in range(len(places), 0, -1):
        taken, end = frozenset(places[:count]), open_ends[count - 1]
        hidden = {start, *open_ends[: count - 1]}
        if all(_seen_inside(graph, value, taken) for value in hidden):
            yield Region(graph, start, end, tuple(places[:count]))


def _seen_inside(graph: Graph, value: int, taken: frozenset[int]) -> bool:
    return value not in graph.outputs and taken.issuperset(graph.consumers.get(value, ()))


def _is_float(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.floating)


def _elementwise(step: Step) -> Step:
    """The step for another shape; sharding is left to the new one."""
    params = {k: None if "sharding" in k else v for k, v in step.params.items()}
    return dataclasses.replace(step, params=params)


@functools.cache
def _probes() -> np.ndarray:
    near = np.linspace(-12, 12, 4097)
    scales = np.geomspace(1e-8, 1e8, 513)
    return np.concatenate([near, scales, -scales]).astype(np.float32)


def recognise(region: Region) -> Activation | None:
    """The activation that a region computes, or None."""
    x = _probes()
    # Where the network is traced, too, these are numbers.
    with jax.ensure_compile_time_eval():
        y = np.asarray(region(jnp.asarray(x)), np.float64)
    for activation in _candidates(x, y):
        with np.errstate(over="ignore", invalid="ignore"):
            expected = _FUNCTIONS[activation.kind](x.astype(np.float64), activation)
        # Relative near zero, too, but for what float32 loses where terms cancel.
        allowed = 1e-5 * np.abs(expected) + 1e-6 * np.minimum(np.abs(x), 1)
        if (np.abs(y - expected) <= allowed).all():
            return activation
    return None


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
    "hard_sigmoid": lambda x, a: np.clip(x + 3, 0, 6) / 6,
    "hard_swish": lambda x, a: x * np.clip(x + 3, 0, 6) / 6,
    "sigmoid": lambda x, a: 1 / (1 + np.exp(-np.clip(x, -700, 700))),
    "tanh": lambda x, a: np.tanh(x),
    "silu": lambda x, a: x / (1 + np.exp(-np.clip(x, -700, 700))),
    "gelu": lambda x, a: x / 2 * (1 + _erf(x / np.sqrt(2))),
    "gelu_tanh": lambda x, a: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
}
"""In float64, with x and the activation."""
