"""Packs of every kind and binding, and what it means that two trees are the same."""

import dataclasses

import jax
import numpy as np

from jax_qconv import Activation, prepack

RESIDUAL = {"residual_scale": 0.3, "residual_zero_point": 2}
OUT = {"x_scale": 0.1, "out_scale": 0.2}
KINDS = {
    "plain": ((3, 3, 5, 8), {}),
    "stem": ((7, 7, 3, 8), {"strides": 2, "padding": 3}),
    "patches": ((4, 4, 3, 8), {"strides": 4, "padding": "VALID"}),
    "transposed": ((3, 3, 5, 8), {"transpose": True, "strides": 2, "padding": 1}),
    "transposed, output padded": (
        (3, 2, 4, 8),
        {"transpose": True, "strides": (2, 3), "padding": 1, "output_padding": (1, 2)},
    ),
    "grouped": ((3, 3, 4, 12), {"groups": 3}),
    "partly merged": ((3, 3, 4, 16), {"groups": 4, "merge_groups": 2}),
    "depthwise": ((3, 3, 1, 300), {"groups": 300}),
    "1-D": ((5, 6, 8), {"dilation": 2, "padding": ((2, 3),)}),
    "3-D": ((2, 3, 3, 4, 8), {"strides": (1, 2, 2)}),
    "1-D transposed": ((3, 6, 8), {"transpose": True, "strides": 2, "padding": "SAME"}),
    "per tensor": ((1, 1, 5, 8), {"per_channel": False}),
    "padded by hand": ((3, 3, 5, 8), {"pad_to": (16, 16)}),
}
BINDINGS = {
    "unbound": None,
    "float": {"x_scale": 0.1, "out_dtype": "bfloat16"},
    "relu6": {**OUT, "activation": "relu6"},
    "clip": {**OUT, "activation": Activation.clip(-1.5, 1e30), "out_zero_point": 5},
    "leaky": {**OUT, "activation": Activation.leaky_relu(0.3)},
    "silu": {**OUT, "activation": "silu"},
    "prelu": {**OUT, "activation": "prelu"},
    "residual": {**OUT, **RESIDUAL, "residual_mode": "average", "out_zero_point": -7},
    "zero point": {**OUT, "x_zero_point": -9},
    "zero point, one size": {**OUT, "x_zero_point": -9, "input_size": 9},
}

PROBLEM = (
    "x=1,8,8,16 w=16,3,3,16 strides=1,1 padding=1,1,1,1 dilation=1,1 groups=1 "
    "out=int8 activation=none slope=0.0 residual=0"
)
"""The text of a problem."""


def made(kind, binding="unbound", bias=True):
    shape, placed = KINDS[kind]
    rng = np.random.default_rng(3)
    bias = rng.normal(size=shape[-1]).astype(np.float32) if bias else None
    packed = prepack(rng.normal(size=shape).astype(np.float32), bias, **placed)
    how = BINDINGS[binding]
    if how is None:
        return packed
    if binding == "prelu":
        how = how | {"slopes": rng.normal(size=shape[-1]).astype(np.float32)}
    return packed.bind(**how)


PACK = made("plain", "relu6")


def same(a, b):
    """Types, structure and every bit."""
    assert type(a) is type(b) or (isinstance(a, jax.Array) and isinstance(b, jax.Array)), (a, b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for pair in zip(a, b, strict=True):
            same(*pair)
    elif dataclasses.is_dataclass(a):
        for field in dataclasses.fields(a):
            same(getattr(a, field.name), getattr(b, field.name))
    elif hasattr(a, "dtype"):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    else:
        assert repr(a) == repr(b)
