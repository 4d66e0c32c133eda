"""The exact convolution in plain JAX: the CPU path, and the truth other engines are held to.

It reads the same packed bytes as the GPU kernels and returns the same bytes.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_qconv._problem import Problem
from jax_qconv._spec import is_int

_NHWC = {2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}


def convolve(problem: Problem, *operands: jax.Array, native_conv: bool) -> jax.Array:
    """The whole problem: int32 accumulation, then the epilogue.

    Args:
        problem: of the call.
        *operands: in the order of ``problem.operand_names``.
        native_conv: accumulate with the backend's own int8 convolution (fast on the CPU, not
            available on GPUs) instead of one matrix product per kernel element.

    Returns:
        ``[N, P, Q, K; problem.out_dtype]``, channels as stored.
    """
    values = dict(zip(problem.operand_names, operands, strict=True))
    x, w, z = values.pop("x"), values.pop("w"), values.pop("z", None)
    acc = accumulate(problem, x, w, native_conv=native_conv)
    if z is not None:
        acc += jnp.broadcast_to(z, acc.shape)
    return epilogue(problem, acc, **values)


def accumulate(problem: Problem, x: jax.Array, w: jax.Array, *, native_conv: bool) -> jax.Array:
    """``[N, H, W, C; int8]``, ``[K, R, S, C / groups; int8]`` to ``[N, P, Q, K; int32]``."""
    # Where pixels are few, the transposition that the convolution needs costs more than it saves.
    # XLA:CPU's convolution is slow with groups, by an order of magnitude where it is depthwise.
    n, *out_size, k = problem.out_shape
    worth = problem.groups == 1 and max(problem.w_shape[1:-1]) > 1
    if native_conv and worth and not (is_int(n) and n * math.prod(out_size) < k):
        return _accumulate_conv(problem, x, w)
    return (_accumulate_products if problem.depthwise else _accumulate_dots)(problem, x, w)


def _accumulate_conv(problem: Problem, x: jax.Array, w: jax.Array) -> jax.Array:
    """By XLA's convolution."""
    padding = problem.padding
    if any(before != after for before, after in padding):
        # XLA:CPU's fast kernel takes symmetric padding only.
        x, padding = _pad(problem, x), ((0, 0),) * problem.rank
    return jax.lax.conv_general_dilated(
        # Behind a barrier padding stays where it is: where XLA:CPU brings it into a convolution,
        # 0.10 gets that wrong, and 0.12 fails on some shapes.
        jax.lax.optimization_barrier(x),
        _transpose_opaquely(w),
        window_strides=problem.strides,
        padding=padding,
        rhs_dilation=problem.dilation,
        dimension_numbers=_NHWC[problem.rank],
        preferred_element_type=jnp.int32,
    )


def _transpose_opaquely(w: jax.Array) -> jax.Array:
    """OHWI -> HWIO where XLA can't see it.

    XLA:CPU would fold a visible transpose back into the convolution, whose OHWI form is
    50 to 100 times slower. It can't see through a loop of unknown trip count (one, here).
    """
    first = w[(0,) * w.ndim]
    once = (first.astype(jnp.int32) < 1000).astype(jnp.int32)
    # A zero like w, so that it varies over the same axes inside shard_map.
    start = jax.lax.full_like(w, 0, shape=(*w.shape[1:], w.shape[0]))
    return jax.lax.fori_loop(0, once, lambda _, __: jnp.moveaxis(w, 0, -1), start)


def _accumulate_dots(problem: Problem, x: jax.Array, w: jax.Array) -> jax.Array:
    """By one int8 matrix product per kernel element and group; runs on any backend."""
    n, *out_size, k = problem.out_shape
    groups = problem.groups
    acc = jnp.zeros((n, *out_size, k), jnp.int32)
    for tap, window in _windows(problem, x):
        w_tap = w[(slice(None), *tap)]
        if groups == 1:
            acc += jax.lax.dot_general(
                window,
                w_tap,
                (((window.ndim - 1,), (1,)), ((), ())),
                preferred_element_type=jnp.int32,
            )
            continue
        parts = jax.lax.dot_general(
            window.reshape(n, *out_size, groups, -1),
            w_tap.reshape(groups, k // groups, -1),
            (((window.ndim,), (2,)), ((window.ndim - 1,), (0,))),
            preferred_element_type=jnp.int32,
        )
        acc += jnp.moveaxis(parts, 0, -2).reshape(acc.shape)
    return acc


def _accumulate_products(problem: Problem, x: jax.Array, w: jax.Array) -> jax.Array:
    """Depthwise: by one product per kernel element, channel by channel."""
    multiplier = problem.w_shape[0] // problem.groups
    acc = jnp.zeros(problem.out_shape, jnp.int32)
    for tap, window in _windows(problem, x):
        weight = w[(slice(None), *tap, 0)].astype(jnp.int32)
        seen = window if multiplier == 1 else jnp.repeat(window, multiplier, axis=-1)
        acc += seen.astype(jnp.int32) * weight[(None,) * (acc.ndim - 1)]
    return acc


def _windows(problem: Problem, x: jax.Array) -> Any:
    """For each kernel element its index, and what it sees: ``[N, P, Q, C]``."""
    x, out_size = _pad(problem, x), problem.out_shape[1:-1]
    for tap in np.ndindex(*problem.w_shape[1:-1]):
        places = []
        for index, dilation, out, stride in zip(
            tap, problem.dilation, out_size, problem.strides, strict=True
        ):
            start = index * dilation
            places.append(slice(start, start + (out - 1) * stride + 1, stride))
        yield tap, x[(slice(None), *places)]


def _pad(problem: Problem, x: jax.Array) -> jax.Array:
    return jnp.pad(x, ((0, 0), *problem.padding, (0, 0)))


def epilogue(
    problem: Problem,
    acc: jax.Array,
    *,
    m: Any = None,
    b: Any = None,
    r: Any = None,
    m_r: Any = None,
    z_r: Any = None,
    m_y: Any = None,
    b_y: Any = None,
    **bounds: Any,
) -> jax.Array:
    """act(fma(r - z_r, m_r, fma(float32(acc), m, b))), rounded to the output dtype.

    Args:
        problem: of the call. Its fields may put the residual after the activation, and
            fma(y, m_y, b_y) at the end.
        acc: ``[N, P, Q, K; int32]`` accumulator.
        m, b: ``[K; float32]`` factor and term; None only for an int32 output.
        r: ``[N, P, Q, K; int8]`` residual, or None.
        m_r, z_r: ``[; float32]`` factor and zero point of the residual.
        m_y, b_y: ``[; float32]`` from real units to steps of the output.
        bounds: lower, upper, slopes of `activate`.

    Returns:
        ``[N, P, Q, K; problem.out_dtype]``. int8 rounds half to even and saturates, NaN
        becomes 0; floats round half to even, NaN stays except that clip makes it ``lower``.
    """
    if problem.out_dtype == "int32":
        return acc
    channels = (None,) * (acc.ndim - 1)
    y = fma(acc.astype(jnp.float32), m[channels], b[channels])

    def add_residual(y: jax.Array) -> jax.Array:
        if r is None:
            return y
        # Exact: differences of two int8 numbers.
        steps = r.astype(jnp.float32) if z_r is None else r.astype(jnp.float32) - z_r
        return fma(steps, m_r, y)

    if problem.activation_first:
        y = add_residual(activate(problem, y, **bounds))
    else:
        y = activate(problem, add_residual(y), **bounds)
    if problem.requantize:
        y = fma(y, m_y, b_y)
    if problem.out_dtype == "int8":
        y = jnp.where(jnp.isnan(y), jnp.float32(0), jnp.clip(jnp.round(y), -128, 127))
    return y.astype(problem.out_dtype)


def activate(
    problem: Problem, y: jax.Array, *, lower: Any = None, upper: Any = None, slopes: Any = None
) -> jax.Array:
    """The activation of a problem, in float32; its formulas are the contract.

    Args:
        problem: has its kind, and the slope of leaky relu.
        y: ``[N, P, Q, K; float32]``.
        lower, upper: ``[; float32]`` bounds of clip.
        slopes: ``[K; float32]`` of prelu.
    """

    def hard_sigmoid(y: jax.Array) -> jax.Array:
        sixth = jnp.float32(1 / 6)
        return jnp.clip(fma(y, sixth, jnp.float32(0.5)), 0, 1)

    match problem.activation:
        case "none":
            return y
        case "relu":
            return jnp.maximum(y, jnp.float32(0))
        case "clip":
            # NaN becomes the lower bound, as the GPU's maximum has it.
            return jnp.where(jnp.isnan(y), lower, jnp.minimum(jnp.maximum(y, lower), upper))
        case "leaky_relu":
            return jnp.where(y > 0, y, y * jnp.float32(problem.slope))
        case "prelu":
            return jnp.where(y > 0, y, y * slopes[(None,) * (y.ndim - 1)])
        case "hard_sigmoid":
            return hard_sigmoid(y)
        case "hard_swish":
            return y * hard_sigmoid(y)
        case "sigmoid":
            return jax.nn.sigmoid(y)
        case "tanh":
            return jnp.tanh(y)
        case "silu":
            return jax.nn.silu(y)
        case "gelu":
            return jax.nn.gelu(y, approximate=False)
        case "gelu_tanh":
            return jax.nn.gelu(y, approximate=True)
    raise AssertionError(problem.activation)


def fma(a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
    """a * b + c in float32 with one rounding, on every backend and whatever is fused.

    The product is exact in float64. Their sum is rounded to odd there, which keeps enough of
    what is lost for the rounding to float32 to be the right one (Boldo and Melquiond,
    "Emulation of a FMA and correctly rounded sums: proved algorithms using rounding to odd",
    2008). Plain float64 would round twice; plain float32 is contracted or not as XLA likes.
    """
    with jax.enable_x64(True):
        product = a.astype(jnp.float64) * b.astype(jnp.float64)
        term = jnp.broadcast_to(c.astype(jnp.float64), product.shape)
        total = product + term
        # Knuth's two-sum: total + error is the exact sum.
        shadow = total - product
        error = (product - (total - shadow)) + (term - shadow)
        # NaN (of infinities) is neither below nor above zero, and stays.
        inexact = (error > 0) | (error < 0)
        bits = jax.lax.bitcast_convert_type(total, jnp.int64)
        away_from_zero = (error > 0) == (total > 0)
        step = jnp.where(away_from_zero, np.int64(1), np.int64(-1))
        odd = jnp.where(inexact & (bits & np.int64(1) == 0), bits + step, bits)
        rounded = jax.lax.bitcast_convert_type(odd, jnp.float64)
        # Round explicitly: a conversion to float32 and back is dropped where XLA may keep excess
        # precision, which it may on GPUs by default.
        return jax.lax.reduce_precision(rounded, 8, 23).astype(jnp.float32)
