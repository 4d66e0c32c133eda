"""The systems that convolutions of other kinds are compared in; beside `systems`."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from bench import systems
from bench.kind_convs import Conv
from bench.systems import System

import jax_qconv
from jax_qconv import _groups
from jax_qconv._spec import padded_channels

OUT_SCALE = 6 / 100
"""relu6 clips well inside of the int8 range, so that it is seen to."""

ZERO_POINT = -7

MERGED_CHANNELS = 64
"""Merged blocks of depthwise channels have at most so many."""


@dataclasses.dataclass(frozen=True)
class Data:
    """A convolution in int8 on random data, whose outputs spread over the int8 range.

    Attributes:
        conv: what it computes.
        x: ``[N, H, W, C; int8]``, without padded channels.
        x_scale: of it.
        weight: ``[K, R, S, C / groups; int8]``.
        weight_scale: ``[K; float32]``.
        bias: ``[K; float32]``.
        residual: ``[N, P, Q, K; int8]``, or None.
    """

    conv: Conv
    x: jax.Array
    x_scale: float
    weight: np.ndarray
    weight_scale: np.ndarray
    bias: np.ndarray
    residual: jax.Array | None

    @classmethod
    def make(cls, conv: Conv, batch: int) -> Data:
        """The data of a convolution; the same in every run."""
        rng = np.random.default_rng(0)

        def int8(*shape: int) -> np.ndarray:
            return np.frombuffer(rng.bytes(math.prod(shape)), np.int8).reshape(shape)

        # Over the standard deviation of a sum of products of uniform int8 numbers.
        x_scale = 50 * OUT_SCALE / (2**14 / 3 * math.sqrt(conv.taps))
        out = batch, conv.out_size, conv.out_size, conv.k
        return cls(
            conv=conv,
            x=jnp.asarray(int8(batch, conv.size, conv.size, conv.c)),
            x_scale=x_scale,
            weight=int8(conv.k, conv.kernel, conv.kernel, conv.c // conv.groups),
            weight_scale=rng.uniform(0.5, 2, conv.k).astype(np.float32),
            bias=rng.normal(0, 10 * OUT_SCALE, conv.k).astype(np.float32),
            residual=jnp.asarray(int8(*out)) if conv.residual else None,
        )

    def packed(self, *, symmetric: bool = False, **form: Any) -> jax_qconv.PackedConv:
        """The weights, bound; ``form`` says how `prepack` stores them."""
        conv = self.conv
        packed = jax_qconv.prepack(
            self.weight,
            self.bias,
            weight_scale=self.weight_scale,
            layout="OHWI",
            strides=conv.stride,
            padding=conv.padding,
            groups=conv.groups,
            transpose=conv.transpose,
            output_padding=conv.output_padding,
            **form,
        )
        return packed.bind(
            x_scale=self.x_scale,
            x_zero_point=ZERO_POINT if conv.zero_point and not symmetric else None,
            out_scale=OUT_SCALE,
            residual_scale=OUT_SCALE / 2 if conv.residual else None,
            activation=conv.activation,
            input_size=(conv.size, conv.size),
        )


def int8(data: Data, *, autotune: str = "cached", **form: Any) -> System:
    """This package, int8 to int8; ``form`` is that of `Data.packed`."""
    packed = data.packed(**form)
    more = packed.stored_channels[0] - data.conv.c
    x = jnp.pad(data.x, ((0, 0), (0, 0), (0, 0), (0, more)))
    system = systems.int8(systems.Data(data.conv, x, packed, data.residual))
    return dataclasses.replace(system, call=functools.partial(system.call, autotune=autotune))


def bf16(data: Data, *, flipped: bool = False, graph: bool = True) -> System:
    """JAX's convolution in bfloat16 of the same numbers, the rest as a user would write it.

    With ``flipped``, a transposed one is written as the gradient that it is, which XLA computes
    with a kernel of its own; else zeros are put between the pixels.
    """
    conv, stride = data.conv, (data.conv.stride,) * 2
    if conv.transpose:
        assert isinstance(conv.padding, int)
        # conv_transpose says how much is added to the input, not how much is cut off.
        before = conv.kernel - 1 - conv.padding
        convolve: Callable[..., jax.Array] = functools.partial(
            jax.lax.conv_transpose,
            strides=stride,
            padding=((before, before + conv.output_padding),) * 2,
            transpose_kernel=flipped,
            dimension_numbers=("NHWC", "OHWI", "NHWC"),
        )
    else:
        padding = conv.padding if conv.padding == "SAME" else ((conv.padding,) * 2,) * 2
        convolve = functools.partial(
            systems.convolve,
            stride=conv.stride,
            padding=padding,
            feature_group_count=conv.groups,
        )
    x, weight, bias, residual = _real(data)
    if conv.transpose:
        weight = weight.transpose(3, 1, 2, 0) if flipped else weight[:, ::-1, ::-1]

    def call(bias: Any, x: Any, weight: Any, residual: Any) -> jax.Array:
        return _finish(conv, convolve(x, weight) + bias[None, None, None], residual)

    return System(call, bias, (x, weight, residual), target="__cudnn$conv", graph=graph)


def bf16_shifts(data: Data) -> System:
    """A depthwise one as a sum of shifted images."""
    conv = data.conv
    x, weight, bias, residual = _real(data)

    def call(bias: Any, x: Any, weight: Any, residual: Any) -> jax.Array:
        y = systems.depthwise_by_shifts(x, weight, stride=conv.stride)
        y = y + bias.astype(jnp.float32)[None, None, None]
        return _finish(conv, y, residual).astype(jnp.bfloat16)

    return System(call, bias, (x, weight, residual), target=None)


def _real(data: Data) -> tuple[Any, ...]:
    """x in steps, and what makes real numbers of them: weights, bias and residual. bfloat16."""
    scale = (data.weight_scale * np.float32(data.x_scale))[:, None, None, None]
    weight = data.weight.astype(np.float32) * scale
    residual = None
    if data.residual is not None:
        residual = data.residual.astype(jnp.bfloat16) * jnp.bfloat16(OUT_SCALE / 2)
    x, weight, bias = (jnp.asarray(v, jnp.bfloat16) for v in (data.x, weight, data.bias))
    return x, weight, bias, residual


def _finish(conv: Conv, y: jax.Array, residual: jax.Array | None) -> jax.Array:
    y = y if residual is None else y + residual
    if conv.activation == "relu6":
        return jax.nn.relu6(y)
    return y if conv.activation is None else jax.nn.relu(y)


Maker = Callable[[Data], System]


def of_kind(kind: str, conv: Conv, *, autotune: str = "cached") -> dict[str, Maker]:
    """The systems of a convolution; ``int8`` is what a user gets, ``int8_...`` other ways to it."""

    def ours(**form: Any) -> Maker:
        return lambda data: int8(data, autotune=autotune, **form)

    found: dict[str, Maker] = {"int8": ours()}
    if kind == "depthwise":
        merges = _groups.allowed_merges(conv.c, conv.k, conv.groups)
        merge = max(m for m in merges if m <= MERGED_CHANNELS)
        if merge > 1:
            found["int8_merged"] = ours(merge_groups=merge)
        if padded_channels(conv.c) != conv.c:
            found["int8_unpadded"] = ours(pad_to=(conv.c, conv.c))
        found["bf16_shifts"] = bf16_shifts
    if kind == "groups":
        by_rule = _groups.merge_by_rule(conv.c, conv.k, conv.groups)
        for merge in _groups.allowed_merges(conv.c, conv.k, conv.groups):
            if merge != by_rule:
                found[f"int8_merge_{merge}"] = ours(merge_groups=merge)
    if kind == "zero_points":
        return found | {"int8_symmetric": ours(symmetric=True)}
    found["bf16"] = bf16
    if conv.transpose:
        found["bf16_flipped"] = functools.partial(bf16, flipped=True)
        found["bf16_flipped_without_graph"] = functools.partial(bf16, flipped=True, graph=False)
    else:
        found["bf16_without_graph"] = functools.partial(bf16, graph=False)
    return found
