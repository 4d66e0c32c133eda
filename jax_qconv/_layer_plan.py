"""Which plan the call of a layer gets."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from jax_qconv import _plan_store, _plans
from jax_qconv._collect import problems_of
from jax_qconv._conv_node import ConvNode
from jax_qconv._graph import Graph
from jax_qconv._packed_conv import PackedConv
from jax_qconv._problem import Problem
from jax_qconv._values import Values


@dataclasses.dataclass(frozen=True)
class LayerPlan:
    """What runs a layer.

    Attributes:
        engine: ``"reference"``, or whose plan it is; ``"auto"`` where that isn't known yet.
        plan: its name; ``"auto"`` where it is chosen on the first call; None for the reference.
        us: its time where it was tuned, in microseconds; None if it wasn't.
    """

    engine: str
    plan: str | None = None
    us: float | None = None


def layer_plan(node: ConvNode, graph: Graph, packed: PackedConv) -> LayerPlan:
    """The plan that a layer of a network gets when it is lowered here, or for `target`'s GPU."""
    on = _plans.current_target()
    problem = None if on is None else _problem(node, graph, packed)
    if on is None or problem is None:
        return LayerPlan("reference")
    plan = _plans.plan_for(problem, None, "cached")
    found = _plan_store.find(str(problem), on)
    us = found.us if found is not None and found.plan == plan else None
    # Whichever plan a depthwise one gets, no other engine has any.
    engine = "depthwise" if problem.depthwise else plan.partition(":")[0]
    return LayerPlan(engine, plan, us)


def _problem(node: ConvNode, graph: Graph, packed: PackedConv) -> Problem | None:
    """What its plan is chosen for; None on an empty batch."""
    binding = packed.binding
    assert binding is not None

    def quantisation(value: int) -> tuple[Any, Any]:
        if value == node.x:
            return binding.x_scale, binding.x_zero_point
        return binding.residual_scale, binding.residual_zero_point

    def call(packed: PackedConv, *inputs: Any) -> Any:
        values = Values(graph, dict(zip(node.inputs, inputs, strict=True)), quantisation)
        node.run(values, packed)
        return values.real(node.out)

    inputs = [jax.ShapeDtypeStruct(*_aval(graph, value)) for value in node.inputs]
    return next(iter(problems_of(call, packed, *inputs)), None)


def _aval(graph: Graph, value: int) -> tuple[Any, Any]:
    return graph.avals[value].shape, graph.avals[value].dtype
