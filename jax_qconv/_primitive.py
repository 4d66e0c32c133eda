"""The JAX primitive: its shape, its lowerings and how transformations act on it.

All transformation rules live here: jit, vmap, differentiation, shard_map, platforms.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jax_qconv import _native, _plans, _reference
from jax_qconv._arrays import INTEGER_OP_GRADIENT
from jax_qconv._problem import Problem
from jax_qconv._spec import is_int

IMPLEMENTATIONS = ("cudnn", "reference")
AUTOTUNE = _plans.AUTOTUNE

conv_p = Primitive("jax_qconv")


def bind(
    problem: Problem,
    operands: tuple[jax.Array, ...],
    *,
    implementation: str | None,
    plan: str | None,
    autotune: str,
) -> jax.Array:
    """Apply the convolution to operands in the order of ``problem.operand_names``."""
    params = {
        "problem": problem,
        "implementation": implementation,
        "plan": plan,
        "autotune": autotune,
    }
    return conv_p.bind(*_equally_varying(operands), **params)


def _equally_varying(operands: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """Inside shard_map, mark all operands as varying over the axes that any varies over."""
    varying = [jax.typeof(v).manual_axis_type.varying for v in operands]
    everywhere = frozenset().union(*varying)
    return tuple(
        jax.lax.pcast(v, tuple(everywhere - axes), to="varying") if everywhere - axes else v
        for v, axes in zip(operands, varying, strict=True)
    )


@functools.partial(jax.jit, static_argnames=("problem", "implementation", "plan", "autotune"))
def _jitted(*operands: jax.Array, **params: Any) -> jax.Array:
    return conv_p.bind(*operands, **params)


@conv_p.def_impl
def _impl(*operands: jax.Array, **params: Any) -> jax.Array:
    # Eager calls are compiled too, also under jax.disable_jit: there is no other way to run.
    with jax.disable_jit(False):
        return _jitted(*operands, **params)


@conv_p.def_abstract_eval
def _abstract_eval(x: Any, *_: Any, problem: Problem, **__: Any) -> Any:
    return x.update(shape=problem.out_shape, dtype=jnp.dtype(problem.out_dtype), weak_type=False)


def _lower_reference(
    ctx: Any,
    *operands: Any,
    problem: Problem,
    implementation: str | None,
    plan: str | None,
    autotune: str,
) -> Any:
    del autotune  # there is nothing to choose
    platforms = tuple(ctx.platforms or ctx.module_context.platforms)
    if implementation == "cudnn" or plan is not None:
        asked = "implementation='cudnn'" if plan is None else f"plan={plan!r}"
        raise _native.EngineUnavailableError(
            f"{asked} was asked for, but this computation is lowered for {', '.join(platforms)}, "
            "where cuDNN doesn't run. Put the arrays on a CUDA device, or use implementation=None."
        )
    return _lower_in_jax(ctx, operands, problem, native_conv=platforms == ("cpu",))


def _lower_in_jax(ctx: Any, operands: Any, problem: Problem, *, native_conv: bool) -> Any:
    def convolve(*values: jax.Array) -> jax.Array:
        if 0 in problem.out_shape:
            return jnp.zeros(problem.out_shape, problem.out_dtype)
        out = _reference.convolve(problem, *values, native_conv=native_conv)
        # Else XLA:CPU computes an epilogue again in each kernel that reads it, and those in it.
        return jax.lax.optimization_barrier(out)

    return mlir.lower_fun(convolve, multiple_results=False)(ctx, *operands)


def _lower_cuda(
    ctx: Any,
    *operands: Any,
    problem: Problem,
    implementation: str | None,
    plan: str | None,
    autotune: str,
) -> Any:
    if implementation == "reference":
        return _lower_in_jax(ctx, operands, problem, native_conv=False)
    _native.extension()
    asked = "implementation='cudnn'" if implementation == "cudnn" else f"plan={plan!r}"
    if problem.depthwise and (implementation == "cudnn" or (plan or "").startswith("cudnn")):
        raise _native.EngineUnavailableError(
            f"{asked} was asked for, but cuDNN has no int8 kernel for depthwise "
            "convolutions; use implementation=None, or dense blocks of groups from "
            "prepack(merge_groups=...)."
        )
    if 0 in problem.out_shape:
        # Nothing to launch; but a plan that was named is still read.
        if plan is not None:
            _plans.plan_for(problem, plan, autotune)
        return _lower_in_jax(ctx, operands, problem, native_conv=False)
    if not all(map(is_int, problem.x_shape)):
        raise ValueError(
            f"x has the symbolic shape {problem.x_shape}, but a plan of cuDNN is for one shape; "
            "export for CUDA with a fixed batch, or with implementation='reference'."
        )
    call = jax.ffi.ffi_lowering(_native.TARGET)
    return call(
        ctx,
        *operands,
        schema=np.int64(_native.SCHEMA),
        problem=str(problem),
        plan=_plans.plan_for(problem, plan, autotune, cudnn_only=implementation == "cudnn"),
        # A plan named by the caller is used or refused; one found by us may be replaced.
        pinned=plan is not None,
    )


mlir.register_lowering(conv_p, _lower_reference)
mlir.register_lowering(conv_p, _lower_cuda, platform="cuda")


def _batch(
    operands: tuple[Any, ...], axes: tuple[Any, ...], *, problem: Problem, **params: Any
) -> tuple[jax.Array, int]:
    """vmap over activations folds into N: still one call. Over weights or scales: one each."""
    named = dict(zip(problem.operand_names, zip(operands, axes, strict=True), strict=True))
    size = next(v.shape[a] for v, a in named.values() if a is not None)
    if any(a is not None for n, (_, a) in named.items() if n not in ("x", "r")):
        outs = []
        for index in range(size):
            item = [v if a is None else jnp.take(v, index, axis=a) for v, a in named.values()]
            outs.append(bind(problem, tuple(item), **params))
        empty = jnp.zeros((0, *problem.out_shape), problem.out_dtype)
        return jnp.stack(outs) if outs else empty, 0

    def fold(v: jax.Array, axis: Any) -> jax.Array:
        if axis is None:
            v = jnp.broadcast_to(v[None], (size, *v.shape))
        else:
            v = jnp.moveaxis(v, axis, 0)
        return v.reshape(size * v.shape[1], *v.shape[2:])

    folded = tuple(fold(v, a) if n in ("x", "r") else v for n, (v, a) in named.items())
    out = bind(problem.with_batch(folded[0].shape[0]), folded, **params)
    return out.reshape(size, *problem.out_shape), 0


batching.primitive_batchers[conv_p] = _batch


def _differentiate(primals: Any, tangents: Any, **params: Any) -> Any:
    raise TypeError(INTEGER_OP_GRADIENT.format(op="qconv"))


ad.primitive_jvps[conv_p] = _differentiate
