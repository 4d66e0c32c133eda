"""Arguments of a call that fit together: tests of bad ones change them."""

import dataclasses
import functools
import types

import numpy as np

from jax_qconv import QTensor, prepack, qconv

X_SHAPE, W_SHAPE, OUT_SHAPE = (2, 5, 5, 6), (3, 3, 6, 7), (2, 5, 5, 7)


@functools.cache
def good_arguments():
    """Arguments that fit together, and what they give."""
    rng = np.random.default_rng(0)
    g = types.SimpleNamespace(
        x=rng.integers(-128, 128, X_SHAPE, np.int8),
        w=rng.normal(size=W_SHAPE).astype(np.float32),
        b=rng.normal(size=W_SHAPE[3]).astype(np.float32),
        r=rng.integers(-128, 128, OUT_SHAPE, np.int8),
    )
    g.q, g.residual = QTensor(g.x, np.float32(0.5)), QTensor(g.r, np.float32(0.25))
    g.packed, g.biased = prepack(g.w), prepack(g.w, g.b)
    g.int8, g.float = g.biased.bind(x_scale=0.5, out_scale=2.0), g.biased.bind(x_scale=0.5)
    g.with_residual = g.biased.bind(x_scale=0.5, residual_scale=0.25)
    g.relu = g.biased.bind(x_scale=0.5, activation="relu")
    g.zero = g.packed.bind(x_scale=0.5, x_zero_point=3)
    g.newer = dataclasses.replace(g.packed, format_version=2)
    g.out = np.asarray(qconv(g.q, g.float))
    return g
