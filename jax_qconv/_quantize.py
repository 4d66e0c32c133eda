"""Floats and images to int8 and back: `QTensor`, `quantize`, `quantize_image`, `dequantize`."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_qconv._arrays import (
    as_array,
    check_scale,
    check_zero_point,
    is_concrete,
    pad_channels,
    reciprocal,
    undifferentiable,
)
from jax_qconv._spec import is_int, padded_channels


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QTensor:
    """An int8 tensor and what its integers mean: real = (values - zero_point) * scale.

    A pytree: values, scale and zero_point are data; `channels` is static. Channels past
    `channels` are padding, only there so that the next convolution needs no copy; what they
    hold is unspecified. Make one with `quantize`, or directly from int8 data you have.

    Attributes:
        values: ``[..., C; int8]``, channels last, C as stored (padded).
        scale: ``[; float32]``, positive.
        zero_point: ``[; int32]`` in [-128, 127], or None for symmetric data.
        channels: logical channel count; None at construction means all of them.
    """

    values: Any
    scale: Any
    zero_point: Any = None
    channels: int = dataclasses.field(default=-1, metadata={"static": True})

    def __post_init__(self) -> None:
        # Unflattening puts arbitrary leaves here (axes, shardings, None): never validate.
        if self.channels == -1 and getattr(self.values, "shape", ()):
            object.__setattr__(self, "channels", int(self.values.shape[-1]))

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape, without padded channels."""
        return (*self.values.shape[:-1], self.channels)

    def unpadded(self) -> jax.Array:
        """The values ``[..., channels; int8]`` without padded channels (a slice)."""
        return self.values[..., : self.channels]

    def in_axes(self, axis: int | None = 0) -> QTensor:
        """The ``in_axes`` or ``out_axes`` of `jax.vmap` that map the values only."""
        return dataclasses.replace(self, values=axis, scale=None, zero_point=None)

    def specs(self, spec: jax.sharding.PartitionSpec) -> QTensor:
        """Partition specs for `jax.shard_map`: ``spec`` for the values, the rest replicated."""
        everywhere = jax.sharding.PartitionSpec()
        zero_point = None if self.zero_point is None else everywhere
        return dataclasses.replace(self, values=spec, scale=everywhere, zero_point=zero_point)

    def __repr__(self) -> str:
        stored = getattr(self.values, "shape", ())
        if not stored:
            return (
                f"QTensor(values={self.values!r}, scale={self.scale!r}, "
                f"zero_point={self.zero_point!r}, channels={self.channels})"
            )
        padding = "" if stored[-1] == self.channels else f", stored channels {stored[-1]}"
        zero = "" if self.zero_point is None else f", zero_point={_show(self.zero_point)}"
        return f"QTensor(int8{list(self.shape)}, scale={_show(self.scale)}{zero}{padding})"


def _show(value: Any) -> str:
    readable = isinstance(value, float | np.generic | np.ndarray | jax.Array)
    if readable and is_concrete(value) and np.ndim(value) == 0:
        return f"{float(value):.6g}"
    return str(value)


def quantize(
    x: jax.Array, scale: Any, *, zero_point: Any = None, pad: bool | int = True
) -> QTensor:
    """Quantise a float tensor: q = clip(rint(x * (1/scale)) + zero_point, -128, 127).

    The reciprocal is computed in float64 and rounded once to float32; the product is a
    float32 one; rint rounds half to even. NaN becomes ``zero_point``; infinities saturate.

    Args:
        x: ``[..., C; float32, bfloat16 or float16]``, channels last.
        scale: ``[; float32]`` positive, real units per integer step. Data: changing it
            never recompiles.
        zero_point: ``[; int32]`` in [-128, 127], or None for symmetric data.
        pad: True pads channels by the rule that `prepack` uses, so that the first
            convolution needs no copy; False doesn't; an int is the count to store.

    Returns:
        A `QTensor` with C logical channels.

    Raises:
        TypeError: if ``x`` isn't float, or is differentiated.
        ValueError: if ``x`` has no axis; on a bad scale, zero point or channel count.
    """
    x = as_array("x", x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"x must be float32, bfloat16 or float16 to be quantised, got {x.dtype}; "
            "wrap int8 data you already have as QTensor(values, scale)."
        )
    stored = _stored_channels(x, pad)
    scale = check_scale("scale", scale)
    zero = None if zero_point is None else check_zero_point("zero_point", zero_point)
    x32 = undifferentiable(jnp.asarray(x).astype(jnp.float32), "quantize")
    y = jnp.round(x32 * reciprocal(undifferentiable(scale, "quantize")))
    y = jnp.where(jnp.isnan(y), jnp.float32(0), y)
    if zero is not None:
        # Exact where it matters: |y| < 2**24, or the sum saturates anyway.
        y = y + zero.astype(jnp.float32)
    values = jnp.clip(y, -128, 127).astype(jnp.int8)
    return QTensor(pad_channels(values, stored), scale, zero, x.shape[-1])


def quantize_image(
    x: jax.Array, scale: Any, *, zero_point: Any = -128, pad: bool | int = True
) -> QTensor:
    """Take uint8 images as int8 data: q = x - 128, so real = (x - 128 - zero_point) * scale.

    No number is rounded: the sign bit of each byte is flipped. With zero point -128 and a
    ``scale`` of 1/255 the pixels are the reals in [0, 1]; with zero point -1 and 1/128 they are
    (x - 127) / 128, as some networks have them. A mean and a deviation per channel belong into the
    weights of the first convolution.

    Args:
        x: ``[..., C; uint8]``, channels last.
        scale: ``[; float32]`` positive, real units per integer step. Data: changing it
            never recompiles.
        zero_point: ``[; int32]`` in [-128, 127]: the real zero is the pixel 128 + zero_point.
        pad: True pads channels by the rule that `prepack` uses, so that the first
            convolution needs no copy; False doesn't; an int is the count to store.

    Returns:
        A `QTensor` with C logical channels and that zero point.

    Raises:
        TypeError: if ``x`` isn't uint8, or its ``scale`` is differentiated.
        ValueError: if ``x`` has no axis; on a bad scale, zero point or channel count.
    """
    x = jnp.asarray(as_array("x", x))
    if x.dtype != jnp.uint8:
        raise TypeError(
            f"x must be a uint8 image, got {x.dtype}; quantise floats with quantize(x, scale)."
        )
    stored = _stored_channels(x, pad)
    scale = undifferentiable(check_scale("scale", scale), "quantize_image")
    values = jax.lax.bitcast_convert_type(x ^ jnp.uint8(0x80), jnp.int8)
    zero = check_zero_point("zero_point", zero_point)
    return QTensor(pad_channels(values, stored), scale, zero, x.shape[-1])


def _stored_channels(x: Any, pad: bool | int) -> int:
    """The channels to store for those of ``x``, as the argument ``pad`` has it."""
    if x.ndim == 0:
        raise ValueError("x must have a channel axis (the last one), got a scalar.")
    if not isinstance(pad, bool) and not is_int(pad):
        raise TypeError(f"pad must be True, False or a channel count, got {pad!r}.")
    channels = x.shape[-1]
    stored = padded_channels(channels) if pad is True else channels if pad is False else pad
    if stored < channels:
        raise ValueError(f"pad={pad} stores fewer channels than the {channels} of x.")
    return int(stored)


def dequantize(q: QTensor, dtype: Any = jnp.float32) -> jax.Array:
    """Back to real numbers: (values - zero_point) * scale, without padded channels.

    Args:
        q: the quantised tensor.
        dtype: float dtype of the result; the product is float32, then rounded to it.

    Returns:
        ``[..., channels; dtype]``.

    Raises:
        TypeError: if ``q`` isn't a `QTensor` of int8 values, or ``dtype`` isn't a float one.
        ValueError: on a bad scale or zero point.
    """
    if not isinstance(q, QTensor):
        raise TypeError(f"q must be a QTensor, got {type(q).__name__}.")
    values = jnp.asarray(as_array("q.values", q.values))
    if values.dtype != jnp.int8 or not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"dequantize takes int8 values to a float dtype, got {values.dtype} to {dtype}."
        )
    scale = check_scale("q.scale", q.scale)
    steps = values[..., : q.channels].astype(jnp.int32)
    if q.zero_point is not None:
        steps = steps - check_zero_point("q.zero_point", q.zero_point)
    return (steps.astype(jnp.float32) * scale).astype(dtype)
