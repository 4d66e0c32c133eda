"""What XLA compiles the ops between convolutions to on an H100: one kernel each.

Two where scales are traced, for then the program computes what follows from them first: a table of
256 entries or a handful of numbers. And two for a global average, whose sums [N, C] a second
kernel divides. No tensor as large as an input or output is ever written in anything but int8.
"""

from __future__ import annotations

import functools
import math
import re

import h100
import jax.numpy as jnp
import pytest

import jax_qconv as q
from jax_qconv import QTensor

SHAPE = (8, 56, 56, 64)
SYMMETRIC = QTensor(jnp.zeros(SHAPE, jnp.int8), jnp.float32(0.1))
X = QTensor(jnp.zeros(SHAPE, jnp.int8), jnp.float32(0.1), jnp.int32(3))
GATE = QTensor(jnp.zeros((8, 1, 1, 64), jnp.int8), jnp.float32(0.1), jnp.int32(-128))
PIXELS = jnp.zeros((8, 224, 224, 3), jnp.uint8)
S = jnp.float32(0.2)


def with_constants(x):
    """The tensor with scales that are no arguments."""
    return QTensor(x, 0.1, 3)


def compiled(function, *args):
    """The instructions; and what each writes: dtype and number of elements."""
    hlo = h100.compile(lambda *args: function(*args).values, *h100.shapes(args))
    entry = hlo[hlo.index("\nENTRY ") :]
    written = re.findall(r"= (\w+)\[([\d,]*)\]\S* fusion\(", entry)
    sizes = [
        (dtype, math.prod(map(int, dims.split(","))) if dims else 1) for dtype, dims in written
    ]
    assert "custom-call" not in entry
    return h100.instructions(hlo), sizes


ONE_KERNEL = {
    "requantize": (lambda v: q.requantize(with_constants(v), out_scale=0.2), [X.values]),
    "qgelu": (lambda v: q.qgelu(with_constants(v), out_scale=0.2), [X.values]),
    "silu": (lambda v: q.qactivation(with_constants(v), "silu", out_scale=0.2), [X.values]),
    "qadd": (
        lambda v, w: q.qadd(with_constants(v), QTensor(w, 0.3), out_scale=0.2, activation="relu6"),
        [X.values, X.values],
    ),
    "qmul": (
        lambda v, w: q.qmul(with_constants(v), QTensor(w, 0.3, -128), out_scale=0.2),
        [X.values, GATE.values],
    ),
    "qmax_pool": (lambda x: q.qmax_pool(x, 3, strides=2, padding=1), [X]),
    "qmax_pool-dilated": (lambda x: q.qmax_pool(x, 3, dilation=2, ceil_mode=True), [X]),
    "qavg_pool": (lambda x: q.qavg_pool(x, 3, strides=2, padding=1), [X]),
    "qavg_pool-borders": (
        lambda x: q.qavg_pool(x, 3, strides=2, padding="SAME", count_include_pad=False),
        [X],
    ),
    "qavg_pool-scaled": (lambda v: q.qavg_pool(with_constants(v), 2, out_scale=0.3), [X.values]),
    "qadaptive_avg_pool": (lambda x: q.qadaptive_avg_pool(x, 7), [X]),
    "qadaptive_avg_pool-unequal": (lambda x: q.qadaptive_avg_pool(x, 6), [X]),
    "qconcat-same": (
        lambda v, w: q.qconcat([QTensor(v, 0.1, None, 50), QTensor(w, 0.1)]),
        [X.values, X.values],
    ),
    "qconcat": (
        lambda v, w: q.qconcat([with_constants(v), QTensor(w, 0.1, None, 50)], out_scale=0.3),
        [X.values, X.values],
    ),
    "nearest": (lambda x: q.qresize(x, 112), [X]),
    "bilinear": (lambda x: q.qresize(x, 112, method="bilinear"), [X]),
    "bilinear-down": (lambda x: q.qresize(x, 28, method="bilinear"), [X]),
    "bilinear-odd": (lambda x: q.qresize(x, (113, 77), method="bilinear"), [X]),
    "qpixel_shuffle": (lambda x: q.qpixel_shuffle(x, 2), [X]),
    "qpixel_unshuffle": (lambda x: q.qpixel_unshuffle(x, 2), [X]),
    "qchannel_shuffle": (lambda x: q.qchannel_shuffle(x, 4), [X]),
    "qpad": (lambda x: q.qpad(x, 1), [X]),
    "quantize_image": (lambda x: q.quantize_image(x, 1 / 255), [PIXELS]),
}


@pytest.mark.parametrize("op", ONE_KERNEL)
def test_it_is_one_kernel(op):
    instructions, written = compiled(ONE_KERNEL[op][0], *ONE_KERNEL[op][1])
    assert instructions == ["fusion"]
    assert [dtype for dtype, _ in written] == ["s8"]


# The program makes tables or constants first, in a kernel for each table.
TRACED = {
    "requantize": (lambda x, s: q.requantize(x, out_scale=s), [X, S], 1),
    "qgelu": (lambda x, s: q.qgelu(x, out_scale=s), [X, S], 1),
    "silu": (lambda x, s: q.qactivation(x, "silu", out_scale=s), [X, S], 1),
    "qadd": (lambda a, b, s: q.qadd(a, b, out_scale=s), [X, SYMMETRIC, S], 1),
    "qadd-clip": (lambda a, b: q.qadd(a, b, out_scale=0.3, activation="relu6"), [X, SYMMETRIC], 1),
    "qmul": (lambda a, b, s: q.qmul(a, b, out_scale=s), [X, GATE, S], 1),
    "qavg_pool-borders": (
        functools.partial(q.qavg_pool, window=3, padding=1, count_include_pad=False),
        [X],
        0,
    ),
    "qconcat": (lambda a, b, s: q.qconcat([a, b], out_scale=s), [X, SYMMETRIC, S], 2),
}


@pytest.mark.parametrize("op", TRACED)
def test_traced_scales_add_only_small_kernels(op):
    function, args, small = TRACED[op]
    instructions, written = compiled(function, *args)
    assert instructions == ["fusion"] * (small + 1)
    *before, (dtype, _) = written
    assert dtype == "s8" and all(size <= 256 for _, size in before)


def test_a_count_per_pixel_is_one_small_kernel_more():
    # With a traced scale of its own, a factor for each of the 28 x 28 outputs.
    instructions, written = compiled(
        lambda x, s: q.qavg_pool(x, 3, strides=2, padding=1, count_include_pad=False, out_scale=s),
        X,
        S,
    )
    assert instructions == ["fusion"] * 2
    assert written == [("f64", 28 * 28), ("s8", 8 * 28 * 28 * 64)]


@pytest.mark.parametrize("out_scale", [None, 0.3])
def test_a_global_average_is_two_kernels_with_only_sums_between(out_scale):
    instructions, written = compiled(lambda x: q.qglobal_avg_pool(x, out_scale=out_scale), X)
    assert instructions == ["fusion"] * 2
    assert written == [("s32", 8 * 64), ("s8", 8 * 64)]
