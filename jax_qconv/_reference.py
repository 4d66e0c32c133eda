"""The exact convolution in plain JAX: the CPU path, and the truth other engines are held to.

It reads the same packed bytes as the GPU kernels and returns the same bytes.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_qconv._spec import Problem, is_int


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
    # Where pixels are few, the transposition that the convolution needs costs more than it saves.
    n, p, q, k = problem.out_shape
    pointwise = problem.w_shape[1:3] == (1, 1)
    native_conv = native_conv and not pointwise and not (is_int(n) and n * p * q < k)
    accumulate = _accumulate_conv if native_conv else _accumulate_dots
    acc = accumulate(problem, values.pop("x"), values.pop("w"))
    return epilogue(problem, acc, **values)


def _accumulate_conv(problem: Problem, x: jax.Array, w: jax.Array) -> jax.Array:
    """[N,H,W,C; int8], [K,R,S,C; int8] -> [N,P,Q,K; int32] by XLA's convolution."""
    padding = problem.padding
    if any(before != after for before, after in padding):
        # XLA:CPU's fast kernel takes symmetric padding only.
        x, padding = _pad(problem, x), ((0, 0), (0, 0))
    return jax.lax.conv_general_dilated(
        x,
        _transpose_opaquely(w),
        window_strides=problem.strides,
        padding=padding,
        rhs_dilation=problem.dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        preferred_element_type=jnp.int32,
    )


def _transpose_opaquely(w: jax.Array) -> jax.Array:
    """OHWI -> HWIO where XLA can't see it.

    XLA:CPU would fold a visible transpose back into the convolution, whose OHWI form is
    50 to 100 times slower. It can't see through a loop of unknown trip count (one, here).
    """
    k, r, s, c = w.shape
    once = (w[0, 0, 0, 0].astype(jnp.int32) < 1000).astype(jnp.int32)
    # A zero like w, so that it varies over the same axes inside shard_map.
    start = jax.lax.full_like(w, 0, shape=(r, s, c, k))
    return jax.lax.fori_loop(0, once, lambda _, __: w.transpose(1, 2, 3, 0), start)


def _accumulate_dots(problem: Problem, x: jax.Array, w: jax.Array) -> jax.Array:
    """The same sum as one int8 matrix product per kernel element; runs on any backend."""
    x = _pad(problem, x)
    n, p, q, k = problem.out_shape
    (stride_h, stride_w), (dil_h, dil_w) = problem.strides, problem.dilation
    acc = jnp.zeros((n, p, q, k), jnp.int32)
    for r in range(w.shape[1]):
        for s in range(w.shape[2]):
            top, left = r * dil_h, s * dil_w
            bottom, right = top + (p - 1) * stride_h + 1, left + (q - 1) * stride_w + 1
            window = x[:, top:bottom:stride_h, left:right:stride_w, :]
            acc += jax.lax.dot_general(
                window, w[:, r, s, :], (((3,), (1,)), ((), ())), preferred_element_type=jnp.int32
            )
    return acc


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
    lower: Any = None,
    upper: Any = None,
) -> jax.Array:
    """act(fma(r, m_r, fma(float32(acc), m, b))), rounded to the output dtype.

    Args:
        problem: of the call.
        acc: ``[N, P, Q, K; int32]`` accumulator.
        m, b: ``[K; float32]`` factor and term; None only for an int32 output.
        r: ``[N, P, Q, K; int8]`` residual, or None.
        m_r: ``[; float32]`` factor of the residual.
        lower, upper: ``[; float32]`` bounds of clip.

    Returns:
        ``[N, P, Q, K; problem.out_dtype]``. int8 rounds half to even and saturates, NaN
        becomes 0; floats round half to even, NaN stays except that clip makes it ``lower``.
    """
    if problem.out_dtype == "int32":
        return acc
    y = fma(acc.astype(jnp.float32), m[None, None, None], b[None, None, None])
    if r is not None:
        y = fma(r.astype(jnp.float32), m_r, y)
    if problem.activation == "relu":
        y = jnp.maximum(y, jnp.float32(0))
    elif problem.activation == "clip":
        # NaN becomes the lower bound, as the GPU's maximum has it.
        y = jnp.where(jnp.isnan(y), lower, jnp.minimum(jnp.maximum(y, lower), upper))
    elif problem.activation == "leaky_relu":
        y = jnp.where(y > 0, y, y * jnp.float32(problem.slope))
    if problem.out_dtype == "int8":
        y = jnp.where(jnp.isnan(y), jnp.float32(0), jnp.clip(jnp.round(y), -128, 127))
    return y.astype(problem.out_dtype)


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
