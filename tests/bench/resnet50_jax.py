"""ResNet-50 in JAX: int8 by jax_qconv, bfloat16, int8 through XLA and through qwix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from bench import systems
from bench.resnet50_net import CLASSES, CONVS, Conv, forward

import jax_qconv

OUT_SCALE = 0.05


def images(batch: int) -> jax.Array:
    """``[N, 224, 224, 3; int8]``, random."""
    rng = np.random.default_rng(1)
    return jnp.asarray(rng.integers(-128, 128, (batch, 224, 224, 3), np.int8))


def _weights() -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], jax.Array]:
    """The same for all networks: OHWI weights and bias by name, and those of the head."""
    rng = np.random.default_rng(0)
    convs = {}
    for conv in CONVS:
        shape = (conv.k, conv.kernel, conv.kernel, conv.c)
        weight, bias = rng.normal(0, conv.taps**-0.5, shape), rng.normal(0, 0.3, conv.k)
        convs[conv.name] = weight.astype(np.float32), bias.astype(np.float32)
    return convs, jnp.asarray(rng.normal(0, 0.02, (2048, CLASSES)), jnp.bfloat16)


def int8_net() -> tuple[Any, Any]:
    """int8 between all layers, as a user would write it: bound packs, residuals as QTensors."""
    weights, dense = _weights()
    packed = {
        conv.name: jax_qconv.prepack(
            *weights[conv.name],
            layout="OHWI",
            strides=conv.stride,
            padding=conv.kernel // 2,
        ).bind(
            x_scale=OUT_SCALE,
            out_scale=OUT_SCALE,
            residual_scale=OUT_SCALE if conv.residual else None,
            activation="relu" if conv.relu else None,
        )
        for conv in CONVS
    }

    def run(params: Any, x: jax.Array, **engine: Any) -> jax.Array:
        packed, dense = params

        def pool(q: jax_qconv.QTensor) -> jax_qconv.QTensor:
            return jax_qconv.QTensor(_max_pool(q.values, np.int8(-128)), q.scale, None, q.channels)

        def conv(name: str, q: Any, residual: Any = None) -> jax_qconv.QTensor:
            return jax_qconv.qconv(q, packed[name], residual=residual, **engine)

        return forward(x, conv, pool, lambda q: _head(q.values, dense))

    return run, (packed, dense)


def bf16_net(*, blocks: bool) -> tuple[Any, Any]:
    """JAX's convolutions; biases, ReLU and residuals as a user would write them.

    With ``blocks`` the first layer is one of 4x4 on blocks of 2x2 pixels.
    """
    weights, dense = _weights()
    params = {
        name: (jnp.asarray(weight, jnp.bfloat16), jnp.asarray(bias, jnp.bfloat16))
        for name, (weight, bias) in weights.items()
    }
    if blocks:
        weight, bias = params["stem"]
        params["stem"] = systems.blocks_of_taps(weight), bias

    def run(params: Any, x: jax.Array) -> jax.Array:
        params, dense = params

        def conv(conv: Conv, x: jax.Array, residual: Any) -> jax.Array:
            weight, bias = params[conv.name]
            if blocks and conv.name == "stem":
                y = systems.convolve(systems.blocks_of_pixels(x), weight)
            else:
                y = _convolve(conv, x, weight)
            return _activate(conv, y + bias[None, None, None], residual)

        def pool(x: jax.Array) -> jax.Array:
            return _max_pool(x, x.dtype.type(-jnp.inf))

        return forward(x, _named(conv), pool, lambda x: x.mean((1, 2)) @ dense)

    return run, (params, dense)


def xla_int8_net() -> tuple[Any, Any]:
    """int8 between all layers, with `lax.conv_general_dilated` and an epilogue in jax.numpy."""
    params, dense = _int8_weights(unit=OUT_SCALE)

    def run(params: Any, x: jax.Array) -> jax.Array:
        params, dense = params

        def conv(conv: Conv, x: jax.Array, residual: Any) -> jax.Array:
            weight, scale, bias = params[conv.name]
            y = _convolve(conv, x, weight, preferred_element_type=jnp.int32)
            y = y.astype(jnp.float32) * scale[None, None, None] + bias[None, None, None]
            y = _activate(conv, y, None if residual is None else residual.astype(jnp.float32))
            return jnp.clip(jnp.round(y), -128, 127).astype(jnp.int8)

        def pool(x: jax.Array) -> jax.Array:
            return _max_pool(x, np.int8(-128))

        return forward(x, _named(conv), pool, lambda x: _head(x, dense))

    return run, (params, dense)


def qwix_net() -> tuple[Any, Any]:
    """As qwix makes a network with fixed scales: each layer quantises its float32 input.

    Raises:
        ImportError: if it isn't installed.
    """
    import qwix

    params, dense = _int8_weights(unit=1.0)
    x_scale = np.full((1, 1, 1, 1), OUT_SCALE, np.float32)

    def run(params: Any, x: jax.Array) -> jax.Array:
        params, dense = params

        def conv(conv: Conv, x: jax.Array, residual: Any) -> jax.Array:
            weight, scale, bias = params[conv.name]
            values = jnp.clip(jnp.round(x / OUT_SCALE), -128, 127).astype(jnp.int8)
            operands = qwix.QArray(values, x_scale), qwix.QArray(weight, scale[:, None, None, None])
            # It multiplies integers with floats.
            with jax.numpy_dtype_promotion("standard"):
                y = _convolve(conv, *operands, convolution=qwix.conv_general_dilated)
            return _activate(conv, y + bias[None, None, None], residual)

        def pool(x: jax.Array) -> jax.Array:
            return _max_pool(x, np.float32(-np.inf))

        def head(x: jax.Array) -> jax.Array:
            return x.mean((1, 2)).astype(jnp.bfloat16) @ dense

        return forward(x, _named(conv), pool, head)

    return run, (params, dense)


def _int8_weights(*, unit: float) -> tuple[dict[str, tuple[jax.Array, ...]], jax.Array]:
    """Weights of 8 bits, their scales, and bias in a unit, by name; and those of the head."""
    weights, dense = _weights()
    params = {}
    for name, (weight, bias) in weights.items():
        scale = np.abs(weight).max((1, 2, 3)) / 127
        values = np.rint(weight / scale[:, None, None, None]).astype(np.int8)
        params[name] = tuple(map(jnp.asarray, (values, scale, bias / np.float32(unit))))
    return params, dense


def _named(conv: Callable[[Conv, Any, Any], Any]) -> Callable[..., Any]:
    """What `forward` calls, with the name of a convolution, of what takes the convolution."""
    by_name = {conv.name: conv for conv in CONVS}
    return lambda name, x, residual=None: conv(by_name[name], x, residual)


def _convolve(conv: Conv, x: Any, weight: Any, **kwargs: Any) -> jax.Array:
    pads = ((conv.kernel // 2,) * 2,) * 2
    return systems.convolve(x, weight, stride=conv.stride, padding=pads, **kwargs)


def _activate(conv: Conv, y: jax.Array, residual: jax.Array | None) -> jax.Array:
    y = y if residual is None else y + residual
    return jax.nn.relu(y) if conv.relu else y


def _head(x: jax.Array, dense: jax.Array) -> jax.Array:
    _, h, w, _ = x.shape
    means = x.astype(jnp.int32).sum((1, 2)).astype(jnp.float32) * (OUT_SCALE / (h * w))
    return means.astype(jnp.bfloat16) @ dense


def _max_pool(x: jax.Array, least: Any) -> jax.Array:
    pads = ((0, 0), (1, 1), (1, 1), (0, 0))
    return jax.lax.reduce_window(x, least, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), pads)
