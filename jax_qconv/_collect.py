"""The convolutions that a function makes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import (
    ClosedJaxpr,  # pyright: ignore[reportPrivateImportUsage]
    Jaxpr,
)

from jax_qconv import _primitive
from jax_qconv._problem import Problem


def problems_of(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Counter[Problem]:
    """The distinct problems that a function's plans are chosen for, and how often each occurs.

    Calls with a plan of their own, in the reference implementation or on an empty batch have
    nothing to choose. A loop's body counts once.

    Args:
        fn: any function that JAX can trace.
        args, kwargs: as it is called; arrays or `jax.ShapeDtypeStruct`.
    """
    found: Counter[Problem] = Counter()
    for (problem, plan), count in calls_of(fn, *args, **kwargs).items():
        if plan is None:
            found[problem] += count
    return found


def calls_of(
    fn: Callable[..., Any], *args: Any, **kwargs: Any
) -> Counter[tuple[Problem, str | None]]:
    """`problems_of`, of all calls that have a kernel, each with the plan that it names or None."""
    return Counter(_walk(jax.make_jaxpr(fn)(*args, **kwargs).jaxpr))


def _walk(jaxpr: Jaxpr) -> Iterator[tuple[Problem, str | None]]:
    for equation in jaxpr.eqns:
        if equation.primitive is _primitive.conv_p:
            params = equation.params
            problem = params["problem"]
            if params["implementation"] != "reference" and 0 not in problem.out_shape:
                yield problem, params["plan"]
        for inner in _jaxprs(list(equation.params.values())):
            yield from _walk(inner)


def _jaxprs(value: Any) -> Iterator[Jaxpr]:
    """Those in a parameter: itself, in a closure, or in a sequence (branches of a cond)."""
    if isinstance(value, ClosedJaxpr):
        yield value.jaxpr
    elif isinstance(value, Jaxpr):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _jaxprs(item)
