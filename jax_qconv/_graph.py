"""A function of parameters and data as a flat list of steps: its jaxpr, with all calls inlined.

Loops over layers, such as `jax.lax.scan` over stacked weights, are unrolled: each layer then has
its own scales.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex_core

INLINED = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}
"""Primitives that are only a frame around other steps, and the parameter that holds these."""

LAYERS = ("conv_general_dilated", "dot_general")
"""Primitives of convolutions and matrix products."""

MOST_ITERATIONS = 64
"""Of a `scan` that is unrolled; what is longer loops over data, such as a recurrent network."""


@dataclasses.dataclass(frozen=True, eq=False)
class Const:
    """A constant operand: a literal or a closed-over array."""

    value: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return tuple(np.shape(self.value))


Ref = int | Const
"""An operand: the number of a value, or a constant."""


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """One primitive, applied.

    Attributes:
        primitive: with its parameters in ``params``.
        inputs: operands.
        outputs: numbers of the values that it makes.
        scope: names that were in force where it was traced, such as Flax's of modules.
    """

    primitive: Any
    params: dict[str, Any]
    inputs: tuple[Ref, ...]
    outputs: tuple[int, ...]
    scope: str

    @property
    def name(self) -> str:
        """Of the primitive."""
        return self.primitive.name

    @property
    def out(self) -> int:
        """The only output."""
        (out,) = self.outputs
        return out


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """All steps that outputs need, in order. Values are numbered.

    Attributes:
        steps: in order.
        avals: shape and dtype of each value.
        parameters: numbers of the leaves of the parameters.
        data: numbers of the leaves of all other arguments.
        outputs: leaves of the result.
        out_tree: structure of the result.
        dependent: values that depend on data.
        consumers: for each value the steps that read it, by their place.
        producer: for each value the place of the step that made it.
    """

    steps: tuple[Step, ...]
    avals: tuple[Any, ...]
    parameters: tuple[int, ...]
    data: tuple[int, ...]
    outputs: tuple[Ref, ...]
    out_tree: Any
    dependent: frozenset[int]
    consumers: dict[int, list[int]]
    producer: dict[int, int]

    def is_data(self, ref: Ref) -> bool:
        """Whether an operand depends on data."""
        return isinstance(ref, int) and ref in self.dependent

    def shape(self, ref: Ref) -> tuple[int, ...]:
        """Of an operand."""
        return ref.shape if isinstance(ref, Const) else tuple(self.avals[ref].shape)

    def scalar(self, ref: Ref) -> Const | None:
        """The constant number that an operand is everywhere; None if it isn't one."""
        if isinstance(ref, Const):
            return ref if ref.shape == () else None
        step = self.steps[self.producer[ref]] if ref in self.producer else None
        if step is None or step.name != "broadcast_in_dim":
            return None
        return self.scalar(step.inputs[0])

    def only_consumer(self, value: int) -> int | None:
        """The place of the one step that reads a value; None if there are others, or outputs."""
        places = self.consumers.get(value, [])
        return places[0] if len(places) == 1 and value not in self.outputs else None


def trace(function: Callable[..., Any], parameters: Any, *data: Any) -> Graph:
    """The graph of a function of a pytree of parameters and of data, at given shapes."""
    flat, tree = jax.tree.flatten((parameters, data))
    n_parameters = len(jax.tree.leaves(parameters))
    out_trees = []

    def on_leaves(*leaves: Any) -> list[Any]:
        params, args = jax.tree.unflatten(tree, leaves)
        outs, out_tree = jax.tree.flatten(function(params, *args))
        out_trees.append(out_tree)
        return outs

    shapes = [jax.ShapeDtypeStruct(jnp.shape(v), jnp.result_type(v)) for v in flat]
    closed = jax.make_jaxpr(on_leaves)(*shapes)
    builder = _Builder()
    inputs = tuple(builder.new(var.aval) for var in closed.jaxpr.invars)
    outputs = builder.inline(closed.jaxpr, closed.consts, inputs, "")
    return builder.graph(inputs[:n_parameters], inputs[n_parameters:], outputs, out_trees[-1])


class _Builder:
    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.avals: list[Any] = []

    def new(self, aval: Any) -> int:
        self.avals.append(aval)
        return len(self.avals) - 1

    def inline(
        self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Ref], scope: str
    ) -> list[Ref]:
        """Append the steps of a jaxpr; returns its outputs."""
        names: dict[Any, Ref] = dict(zip(jaxpr.invars, inputs, strict=True))
        names |= zip(jaxpr.constvars, map(Const, consts), strict=True)

        def read(atom: Any) -> Ref:
            return Const(atom.val) if isinstance(atom, jex_core.Literal) else names[atom]

        for eqn in jaxpr.eqns:
            operands = [read(atom) for atom in eqn.invars]
            inside = "/".join(filter(None, (scope, str(eqn.source_info.name_stack))))
            body = INLINED.get(eqn.primitive.name)
            if body is not None:
                found = self.inline(*_opened(eqn.params[body]), operands, inside)
                names |= zip(eqn.outvars, found, strict=True)
                continue
            if eqn.primitive.name == "scan" and _loops_over_layers(eqn.params):
                found = self._unroll(eqn, operands, inside)
                names |= zip(eqn.outvars, found, strict=True)
                continue
            outs = tuple(self.new(var.aval) for var in eqn.outvars)
            step = Step(eqn.primitive, dict(eqn.params), tuple(operands), outs, inside)
            names |= zip(eqn.outvars, _number(step) or outs, strict=True)
            self.steps.append(step)
        return [read(atom) for atom in jaxpr.outvars]

    def _unroll(self, scan: Any, operands: list[Ref], scope: str) -> list[Ref]:
        """Append the steps of a `scan`, one iteration after another; returns its outputs."""
        body, length = scan.params["jaxpr"], scan.params["length"]
        # Constants, what is carried, rows: JAX's releases say it in different parameters.
        n_rows, n_stacked = (
            sum(outer.aval.ndim > inner.ndim for outer, inner in zip(of_scan, of_body, strict=True))
            for of_scan, of_body in ((scan.invars, body.in_avals), (scan.outvars, body.out_avals))
        )
        n_carry = len(scan.outvars) - n_stacked
        first = len(operands) - n_rows
        consts, carry = operands[: first - n_carry], operands[first - n_carry : first]
        xs = operands[first:]
        stacked: list[list[Ref]] = [[]] * length
        for i in reversed(range(length)) if scan.params["reverse"] else range(length):
            at = functools.partial(jax.lax.index_in_dim, index=i, axis=0, keepdims=False)
            row = [self._call(at, x) for x in xs]
            outs = self.inline(*_opened(body), [*consts, *carry, *row], scope)
            carry, stacked[i] = outs[:n_carry], outs[n_carry:]
        return [*carry, *(self._call(_stack, *rows) for rows in zip(*stacked, strict=True))]

    def _call(self, function: Callable[..., jax.Array], *refs: Ref) -> Ref:
        """Append the steps of a function of operands; returns its output."""
        avals = [jax.typeof(r.value) if isinstance(r, Const) else self.avals[r] for r in refs]
        (out,) = self.inline(*_opened(jax.make_jaxpr(function)(*avals)), refs, "")
        return out

    def graph(
        self, parameters: tuple[int, ...], data: tuple[int, ...], outputs: list[Ref], tree: Any
    ) -> Graph:
        needed = {ref for ref in outputs if isinstance(ref, int)}
        kept: list[Step] = []
        for step in reversed(self.steps):
            if needed.intersection(step.outputs):
                kept.append(step)
                needed.update(ref for ref in step.inputs if isinstance(ref, int))
        steps = tuple(reversed(kept))
        dependent = set(data)
        consumers: dict[int, list[int]] = collections.defaultdict(list)
        producer: dict[int, int] = {}
        for place, step in enumerate(steps):
            if any(isinstance(ref, int) and ref in dependent for ref in step.inputs):
                dependent.update(step.outputs)
            for ref in dict.fromkeys(r for r in step.inputs if isinstance(r, int)):
                consumers[ref].append(place)
            producer |= dict.fromkeys(step.outputs, place)
        return Graph(
            steps=steps,
            avals=tuple(self.avals),
            parameters=parameters,
            data=data,
            outputs=tuple(outputs),
            out_tree=tree,
            dependent=frozenset(dependent),
            consumers=dict(consumers),
            producer=producer,
        )


def _opened(jaxpr: Any) -> tuple[Any, Sequence[Any]]:
    """A jaxpr and its constants, of a closed one or one without any."""
    return (jaxpr.jaxpr, jaxpr.consts) if hasattr(jaxpr, "jaxpr") else (jaxpr, ())


def _stack(*arrays: jax.Array) -> jax.Array:
    return jnp.stack(arrays)


def _loops_over_layers(params: dict[str, Any]) -> bool:
    """Whether a `scan` is to be unrolled."""
    return 0 < params["length"] <= MOST_ITERATIONS and _has_layer(_opened(params["jaxpr"])[0])


def _has_layer(jaxpr: Any) -> bool:
    """Whether there is a convolution or matrix product in a jaxpr, or in a call within it."""
    return any(
        eqn.primitive.name in LAYERS
        or any(
            hasattr(v, "eqns") and _has_layer(v) for v in jax.tree.leaves(list(eqn.params.values()))
        )
        for eqn in jaxpr.eqns
    )


def _number(step: Step) -> list[Const] | None:
    """What a step of constant numbers makes."""
    if not all(isinstance(ref, Const) and ref.shape == () for ref in step.inputs):
        return None
    with jax.ensure_compile_time_eval():
        found = apply(step, [ref.value for ref in step.inputs if isinstance(ref, Const)])
    return [Const(v) for v in found] if all(jnp.shape(v) == () for v in found) else None


def apply(step: Step, operands: Iterable[Any]) -> list[Any]:
    """The outputs of a step for given arrays."""
    found = step.primitive.get_bind_params(step.params)
    # Before JAX 0.12 functions came beside them.
    functions, params = found if isinstance(found, tuple) else ((), found)
    outs = step.primitive.bind(*functions, *operands, **params)
    return list(outs) if step.primitive.multiple_results else [outs]
