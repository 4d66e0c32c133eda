"""The systems that are compared: each says how it computes a layer, on which data."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from bench.roofline import out_shape
from layers import Layer

import jax_qconv


@dataclasses.dataclass(frozen=True)
class System:
    """One way to compute a layer.

    Attributes:
        call: (shared, x, weights, residual or None) to the output.
        shared: what all calls have in common, such as scales and bias; a pytree.
        own: x, weights and residual or None, of which each call is to have a copy of its own.
        target: how the name of the custom call or fusion begins that a GPU makes of each call;
            None if it isn't one.
        graph: whether XLA may put all calls into CUDA graphs, convolutions included, or none.
        options: more of the compiler's.
    """

    call: Callable[..., jax.Array]
    shared: Any
    own: tuple[jax.Array, jax.Array, jax.Array | None]
    target: str | None
    graph: bool = True
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def output(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of an output."""
        return jax.eval_shape(self.call, self.shared, *self.own)


@dataclasses.dataclass(frozen=True)
class Data:
    """A layer in int8 on random data, whose outputs spread over the int8 range.

    Attributes:
        layer: what it computes.
        x: ``[N, H, W, C; int8]``, channels as stored.
        packed: the weights, bound.
        residual: ``[N, P, Q, K; int8]``, or None.
    """

    layer: Layer
    x: jax.Array
    packed: jax_qconv.PackedConv
    residual: jax.Array | None

    @classmethod
    def make(cls, layer: Layer, batch: int) -> Data:
        """The data of a layer; the same in every run."""
        rng = np.random.default_rng(0)

        def int8(shape: tuple[int, ...]) -> np.ndarray:
            return np.frombuffer(rng.bytes(math.prod(shape)), np.int8).reshape(shape)

        taps = layer.r, layer.s, layer.c // layer.groups
        # Standard deviation of a sum of products of uniform int8 numbers.
        step = 2**14 / 3 * math.sqrt(math.prod(taps)) / 50
        packed = jax_qconv.prepack(
            int8((layer.k, *taps)),
            rng.normal(0, 10 * step, layer.k).astype(np.float32),
            weight_scale=rng.uniform(0.5, 2, layer.k).astype(np.float32),
            layout="OHWI",
            strides=layer.stride,
            padding=layer.padding,
            groups=layer.groups,
        ).bind(
            x_scale=1.0,
            out_scale=step,
            residual_scale=step / 2 if layer.residual else None,
            activation="relu" if layer.relu else None,
        )
        stored, _ = packed.stored_channels
        x = jnp.asarray(int8((batch, layer.h, layer.w, stored)))
        residual = jnp.asarray(int8(out_shape(layer, batch))) if layer.residual else None
        return cls(layer, x, packed, residual)


def int8(data: Data) -> System:
    """This package, int8 to int8: bias, residual and ReLU are part of the call."""
    own = data.x, data.packed.weight, data.residual
    return System(_qconv, data.packed, own, target="jax_qconv.conv")


def _qconv(packed: Any, x: Any, weight: Any, residual: Any, **engine: Any) -> jax.Array:
    packed = dataclasses.replace(packed, weight=weight)
    if residual is not None:
        residual = jax_qconv.QTensor(residual, packed.binding.residual_scale)
    return jax_qconv.qconv(x, packed, residual=residual, **engine).values


def bf16(data: Data, *, graph: bool) -> System:
    """JAX's convolution in bfloat16 of the same integers, the rest as a user would write it."""
    layer = data.layer
    x, weight, bias, residual = (
        None if v is None else v.astype(jnp.bfloat16) for v in (*unpadded(data), data.residual)
    )

    def call(bias: Any, x: Any, weight: Any, residual: Any) -> jax.Array:
        y = _convolve_layer(layer, x, weight) + bias[None, None, None]
        if residual is not None:
            y = y + residual
        return jax.nn.relu(y) if layer.relu else y

    return System(call, bias, (x, weight, residual), target="__cudnn$conv", graph=graph)


def bf16_blocks(data: Data) -> System:
    """The same for a first layer of 7x7 with stride 2: as 4x4 on blocks of 2x2 pixels.

    The input comes as pixels, the weights as blocks.
    """
    system = bf16(data, graph=True)
    x, weight, residual = system.own

    def call(bias: Any, x: Any, weight: Any, residual: Any) -> jax.Array:
        y = convolve(blocks_of_pixels(x), weight) + bias[None, None, None]
        return jax.nn.relu(y) if data.layer.relu else y

    return dataclasses.replace(system, call=call, own=(x, blocks_of_taps(weight), residual))


def has_blocks(layer: Layer) -> bool:
    """Whether a layer is one of those first ones."""
    return (layer.c, layer.r, layer.s, layer.stride, layer.residual) == (3, 7, 7, 2, False)


def blocks_of_pixels(x: jax.Array) -> jax.Array:
    """``[N, H, W, C]`` padded and in blocks of 2x2 pixels, for the weights of `blocks_of_taps`."""
    # Where a size is odd, one row more, which only taps of zero read.
    x = jnp.pad(x, ((0, 0), (3, 3 + x.shape[1] % 2), (3, 3 + x.shape[2] % 2), (0, 0)))
    n, h, w, c = x.shape
    x = x.reshape(n, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, h // 2, w // 2, 4 * c)


def blocks_of_taps(weight: jax.Array) -> jax.Array:
    """``[K, 7, 7, C]`` as ``[K, 4, 4, 4 * C]``."""
    weight = jnp.pad(weight, ((0, 0), (0, 1), (0, 1), (0, 0)))
    k, _, _, c = weight.shape
    weight = weight.reshape(k, 4, 2, 4, 2, c).transpose(0, 1, 3, 2, 4, 5)
    return weight.reshape(k, 4, 4, 4 * c)


def xla_int8(data: Data, *, fused: bool = False) -> System:
    """JAX's own int8 convolution, with the same epilogue in jax.numpy.

    With ``fused``, XLA's experimental fusion of convolutions is asked for.
    """
    options = {"xla_gpu_experimental_enable_conv_fusion": True} if fused else {}
    target = "__cudnn$fusion" if fused else "__cudnn$conv"
    layer = data.layer
    x, weight, _ = unpadded(data)

    def call(constants: Any, x: Any, weight: Any, residual: Any) -> jax.Array:
        acc = _convolve_layer(layer, x, weight, preferred_element_type=jnp.int32)
        y = acc.astype(jnp.float32) * constants.m[None, None, None, : layer.k]
        return _to_int8(layer, y, constants, residual)

    constants = data.packed.binding.constants
    own = (x, weight, data.residual)
    return System(call, constants, own, target=target, options=options)


def qwix(data: Data) -> System:
    """The convolution of the package qwix on quantised arrays, with the rest as `xla_int8` has it.

    Raises:
        ImportError: if it isn't installed.
    """
    import qwix

    layer, constants = data.layer, data.packed.binding.constants
    x, weight, _ = unpadded(data)

    def call(constants: Any, x: Any, weight: Any, residual: Any) -> jax.Array:
        scales = jnp.ones((1, 1, 1, 1), jnp.float32), constants.m[: layer.k, None, None, None]
        operands = map(qwix.QArray, (x, weight), scales)
        # It multiplies integers with floats.
        with jax.numpy_dtype_promotion("standard"):
            y = _convolve_layer(layer, *operands, convolution=qwix.conv_general_dilated)
        return _to_int8(layer, y, constants, residual)

    return System(call, constants, (x, weight, data.residual), target="__cudnn$conv")


def _to_int8(layer: Layer, y: jax.Array, constants: Any, residual: jax.Array | None) -> jax.Array:
    """What follows the scaled accumulator, in jax.numpy."""
    y = y + constants.b[None, None, None, : layer.k]
    if residual is not None:
        y = y + residual.astype(jnp.float32) * constants.m_r
    if layer.relu:
        y = jax.nn.relu(y)
    return jnp.clip(jnp.round(y), -128, 127).astype(jnp.int8)


def unpadded(data: Data) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x, weights (OHWI) and bias without padded channels."""
    weight, _, bias = jax_qconv.unpack(data.packed, layout="OHWI")
    return data.x[..., : data.layer.c], weight, bias


def _convolve_layer(layer: Layer, x: Any, weight: Any, **kwargs: Any) -> jax.Array:
    placed = {"stride": layer.stride, "padding": layer.padding}
    return convolve(x, weight, **placed, feature_group_count=layer.groups, **kwargs)


def convolve(
    x: Any,
    weight: Any,
    *,
    stride: int = 1,
    padding: Any = ((0, 0), (0, 0)),
    convolution: Callable[..., jax.Array] = jax.lax.conv_general_dilated,
    **kwargs: Any,
) -> jax.Array:
    """NHWC and OHWI, because XLA transposes HWIO weights in each call."""
    return convolution(
        x, weight, (stride, stride), padding, dimension_numbers=("NHWC", "OHWI", "NHWC"), **kwargs
    )


def depthwise_by_shifts(x: jax.Array, weight: jax.Array, *, stride: int = 1) -> jax.Array:
    """A depthwise convolution with "SAME" padding in float32, which XLA makes one loop.

    Args:
        x: ``[N, H, W, C]``.
        weight: ``[C, R, S, 1]``.
        stride: in both dimensions.
    """
    size, (_, *kernel, _) = x.shape[1:3], weight.shape
    p, q = ((n - 1) // stride * stride + 1 for n in size)
    sides = jax.lax.padtype_to_pads(size, kernel, (stride, stride), "SAME")
    x = jnp.pad(x, ((0, 0), *sides, (0, 0)))
    products = [
        x[:, r : r + p : stride, s : s + q : stride].astype(jnp.float32)
        * weight[None, None, None, :, r, s, 0].astype(jnp.float32)
        for r, s in itertools.product(*map(range, kernel))
    ]
    return functools.reduce(jnp.add, products)


def count_wrong(system: System, outs: list[jax.Array]) -> int:
    """Elements in several outputs of the int8 system that differ from the reference's."""
    first, *others = outs
    # Image by image, so that the reference is compiled once for all batch sizes.
    images = range(first.shape[0])
    wrong = [_wrong_in_image(system.shared, system.own, first, image) for image in images]
    wrong += [_differences(system.shared, other, first) for other in others]
    return sum(map(int, wrong))


@jax.jit
def _wrong_in_image(packed: Any, own: Any, out: jax.Array, image: Any) -> jax.Array:
    x, weight, residual = own
    x, residual, out = jax.tree.map(
        lambda batch: jax.lax.dynamic_slice_in_dim(batch, image, 1), (x, residual, out)
    )
    want = _qconv(packed, x, weight, residual, implementation="reference")
    return _differences(packed, out, want)


@jax.jit
def _differences(packed: Any, a: jax.Array, b: jax.Array) -> jax.Array:
    k = packed.out_channels  # what is stored beyond them may differ, and so may how many there are
    return (a[..., :k] != b[..., :k]).sum()
