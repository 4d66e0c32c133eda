"""What is asked of the operands of a graph's steps: what they are made of, how they differ."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_qconv._graph import Const, Graph, Ref, Step
from jax_qconv._spec import Ints
from jax_qconv._values import Values

CASTS = {"convert_element_type", "stop_gradient", "copy", "copy_p", "reduce_precision"}
"""Primitives that leave numbers as they are, rounding aside."""

FLOATS = (jnp.float32, jnp.bfloat16, jnp.float16)


def is_float(graph: Graph, ref: Ref) -> bool:
    """Whether an operand is of floats."""
    dtype = jnp.result_type(ref.value) if isinstance(ref, Const) else graph.avals[ref].dtype
    return dtype in FLOATS


def data_of(graph: Graph, step: Step) -> tuple[int, ...]:
    """The operands of a step that depend on data."""
    return tuple(ref for ref in step.inputs if isinstance(ref, int) and graph.is_data(ref))


def origins(graph: Graph, ref: Ref) -> list[Ref]:
    """Arguments of the function and constants that an operand is made of."""
    seen: set[Ref] = set()
    todo, found = [ref], []
    while todo:
        one = todo.pop()
        if one in seen:
            continue
        seen.add(one)
        if isinstance(one, int) and one in graph.producer:
            todo += graph.steps[graph.producer[one]].inputs
        else:
            found.append(one)
    return found


def constant(graph: Graph, ref: Ref) -> Any:
    """The array that an operand is, whatever the arguments; None if it depends on any."""
    if not all(isinstance(one, Const) for one in origins(graph, ref)):
        return None
    # Where the network is traced, too, it is a number.
    with jax.ensure_compile_time_eval():
        return np.asarray(Values(graph, {}).real(ref))


def is_zero(ref: Ref) -> bool:
    """Whether an operand is the constant zero."""
    return isinstance(ref, Const) and bool(np.all(np.asarray(ref.value) == 0))


def differs_by_channel(graph: Graph, ref: Ref, axes: Ints, rank: int) -> bool:
    """Whether an operand is a number for each channel (or one for all), whatever the data.

    Args:
        graph: it is of.
        ref: the operand.
        axes: of channels.
        rank: of what it is broadcast to.
    """
    if graph.is_data(ref):
        return False
    shape = graph.shape(ref)
    if shape == () or (
        len(shape) == rank and all(n == 1 for i, n in enumerate(shape) if i not in axes)
    ):
        return True
    if isinstance(ref, Const) or ref not in graph.producer:
        return False
    step = graph.steps[graph.producer[ref]]
    if step.name in CASTS:
        return differs_by_channel(graph, step.inputs[0], axes, rank)
    if step.name != "broadcast_in_dim":
        return False
    source = graph.shape(step.inputs[0])
    to = step.params["broadcast_dimensions"]
    return all(n == 1 or to[i] in axes for i, n in enumerate(source))
