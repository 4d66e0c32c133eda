"""EfficientNet-Lite0 in JAX: int8 by jax_qconv, and bfloat16."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from bench import systems
from bench.efficientnet_net import CLASSES, CONVS, Conv, forward

import jax_qconv
from jax_qconv import _groups
from jax_qconv._storage import fine_channels

OUT_SCALE = 0.05


@functools.cache
def _weights() -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], jax.Array]:
    """The same for all networks: OHWI weights and bias by name, and those of the head."""
    rng = np.random.default_rng(0)
    convs = {}
    for conv in CONVS:
        shape = conv.k, conv.kernel, conv.kernel, conv.c // conv.groups
        weight, bias = rng.normal(0, (2 / conv.taps) ** 0.5, shape), rng.normal(0, 0.3, conv.k)
        convs[conv.name] = weight.astype(np.float32), bias.astype(np.float32)
    return convs, jnp.asarray(rng.normal(0, 0.03, (CONVS[-1].k, CLASSES)), jnp.bfloat16)


def int8_net(*, merged: int | None = None, fine: bool = True) -> tuple[Any, Any]:
    """int8 between all layers, as a user would write it: bound packs, residuals as QTensors.

    With ``merged``, depthwise channels are merged into dense blocks of at most so many. With
    ``fine``, channels are padded as `quantize_model` does it, else by the rule of `prepack`.
    """
    weights, dense = _weights()
    packed = {
        conv.name: jax_qconv.prepack(
            *weights[conv.name],
            layout="OHWI",
            strides=conv.stride,
            padding="SAME",
            groups=conv.groups,
            merge_groups=_largest_merge(conv, merged),
            pad_to=(fine_channels(conv.c), fine_channels(conv.k)) if fine else None,
        ).bind(
            x_scale=OUT_SCALE,
            out_scale=OUT_SCALE,
            residual_scale=OUT_SCALE if conv.residual else None,
            activation="relu6" if conv.relu6 else None,
        )
        for conv in CONVS
    }

    def run(params: Any, x: jax.Array, **engine: Any) -> jax.Array:
        packed, dense = params

        def conv(conv: Conv, q: Any, residual: Any) -> jax_qconv.QTensor:
            return jax_qconv.qconv(q, packed[conv.name], residual=residual, **engine)

        def head(q: jax_qconv.QTensor) -> jax.Array:
            # Summed as integers, so that the order doesn't matter.
            _, h, w, _ = q.values.shape
            sums = q.values[..., : q.channels].astype(jnp.int32).sum((1, 2))
            means = sums.astype(jnp.float32) * (OUT_SCALE / (h * w))
            return means.astype(jnp.bfloat16) @ dense

        return forward(x, conv, head)

    return run, (packed, dense)


def _largest_merge(conv: Conv, most: int | None) -> int | None:
    """Of up to so many groups; None for the rule."""
    if most is None or conv.groups == 1:
        return None
    merges = _groups.allowed_merges(conv.c, conv.k, conv.groups)
    return max(merge for merge in merges if merge <= most)


def bf16_net(*, shifts: bool = False) -> tuple[Any, Any]:
    """JAX's convolutions; biases, ReLU6 and residuals as a user would write them.

    With ``shifts``, depthwise convolutions are sums of shifted images.
    """
    weights, dense = _weights()
    params = {
        name: (jnp.asarray(weight, jnp.bfloat16), jnp.asarray(bias, jnp.bfloat16))
        for name, (weight, bias) in weights.items()
    }

    def run(params: Any, x: jax.Array) -> jax.Array:
        params, dense = params

        def conv(conv: Conv, x: jax.Array, residual: Any) -> jax.Array:
            weight, bias = params[conv.name]
            if shifts and conv.groups > 1:
                y = systems.depthwise_by_shifts(x, weight, stride=conv.stride)
                y = (y + bias.astype(jnp.float32)[None, None, None]).astype(jnp.bfloat16)
            else:
                y = systems.convolve(
                    x, weight, stride=conv.stride, padding="SAME", feature_group_count=conv.groups
                )
                y = y + bias[None, None, None]
            y = y if residual is None else y + residual
            return jax.nn.relu6(y) if conv.relu6 else y

        return forward(x, conv, lambda x: x.mean((1, 2)) @ dense)

    return run, (params, dense)
