"""The zero point of a convolution's input, as an int32 that is added to the accumulator.

sum((x - z) * w) = sum(x * w) - z * sum(w). Where the kernel hangs over the border, padded elements
are real zeros, that is z, but kernels pad with 0. So the border is filled beforehand; or, for
depthwise kernels, where that would cost as much as the convolution, the second sum is over what of
the kernel lies inside of the image, and differs along the borders. (cuDNN 9.19 takes such a map
too, but its kernels then give wrong results or fault for all images after the first.)
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_qconv._problem import Problem

MAX_TERMS = 64
"""Kernel elements up to which their sums are written out, for XLA to make one kernel of them."""


def kind(problem: Problem) -> str:
    """The offset that a problem needs for a zero point: one per channel, or a map."""
    padded = any(side for pair in problem.padding for side in pair)
    return "map" if padded and problem.depthwise else "channel"


def fill_border(problem: Problem, x: jax.Array, zero_point: Any) -> tuple[Problem, jax.Array]:
    """The problem with its offset, and its padding brought into x unless the offset is a map.

    Args:
        problem: without an offset.
        x: as the problem has it.
        zero_point: ``[; int32]``.
    """
    problem = dataclasses.replace(problem, offset=kind(problem))
    problem.check()
    if problem.offset == "map" or not any(side for pair in problem.padding for side in pair):
        return problem, x
    pads = [(0, 0, 0), *((before, after, 0) for before, after in problem.padding), (0, 0, 0)]
    x = jax.lax.pad(x, jnp.asarray(zero_point, jnp.int8), pads)
    return dataclasses.replace(problem, x_shape=x.shape, padding=((0, 0),) * problem.rank), x


def offset(problem: Problem, weight: jax.Array, zero_point: Any) -> jax.Array:
    """``[K; int32]``, or ``[P, Q, K; int32]`` for a map.

    Args:
        problem: the geometry.
        weight: ``[K, R, S, C; int8]``, as stored.
        zero_point: ``[; int32]``.
    """
    if kind(problem) == "channel":
        return per_channel(weight, zero_point)
    # [K, R, S]: what each kernel element adds, for a pixel of ones.
    sums = jnp.sum(weight, axis=-1, dtype=jnp.int32)
    inside = [_inside(problem, axis) for axis in range(problem.rank)]
    if sums.size // len(sums) > MAX_TERMS:
        for mask in inside:
            # The first of the kernel's axes becomes the last one of the output's.
            sums = jnp.tensordot(sums, jnp.asarray(mask, jnp.int32), axes=((1,), (1,)))
        return -zero_point * jnp.moveaxis(sums, 0, -1)
    total = jnp.zeros(problem.out_shape[1:], jnp.int32)
    for tap in np.ndindex(*problem.w_shape[1:-1]):
        masks = (mask[:, index] for mask, index in zip(inside, tap, strict=True))
        seen = functools.reduce(np.logical_and.outer, masks)
        row = jnp.broadcast_to(sums[(slice(None), *tap)], total.shape)
        total += jnp.where(seen[..., None], row, jnp.int32(0))
    return -zero_point * total


def per_channel(weight: jax.Array, zero_point: Any) -> jax.Array:
    """``[K; int32]``, where the kernel never hangs over a border of zeros."""
    return -zero_point * jnp.sum(weight, axis=tuple(range(1, weight.ndim)), dtype=jnp.int32)


def _inside(problem: Problem, axis: int) -> np.ndarray:
    """Which elements of the kernel ``[P, R]`` lie inside of the image, along an axis."""
    outs, taps = problem.out_shape[1 + axis], problem.w_shape[1 + axis]
    start = np.arange(outs) * problem.strides[axis] - problem.padding[axis][0]
    at = start[:, None] + np.arange(taps) * problem.dilation[axis]
    return (at >= 0) & (at < problem.x_shape[1 + axis])
