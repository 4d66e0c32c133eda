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
    guard,
    is_concrete,
    pad_channels,
    reciprocal,
    undifferentiable,
)
from jax_qconv._spec import is_int, padded_channels


# Equality is identity: that of arrays is an array, and has no truth value.
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
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
        if self.channels in (-1, None) and getattr(self.values, "shape", ()):
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
        dtype = getattr(self.values, "dtype", "")
        return f"QTensor({dtype}{list(self.shape)}, scale={_show(self.scale)}{zero}{padding})"


def _show(value: Any) -> str:
    readable = isinstance(value, float | np.generic | np.ndarray | jax.Array)
    if readable and is_concrete(value) and np.ndim(value) == 0:
        return f"{float(value):.6g}"
    return str(value)


def checked(name: str, q: Any) -> QTensor:
    """``q`` with values of JAX, its scale and zero point as they are; ``name`` is for messages.

    Raises:
        TypeError: unless it is a `QTensor` of int8 values, and counts its channels by an int.
        ValueError: unless it has a channel axis, with as many channels as it says.
    """
    if not isinstance(q, QTensor):
        raise TypeError(
            f"{name} must be a QTensor, got {type(q).__name__}; wrap int8 data as "
            "QTensor(values, scale), or quantise floats with quantize(x, scale)."
        )
    values = jnp.asarray(as_array(f"{name}.values", q.values))
    if values.dtype != jnp.int8:
        raise TypeError(
            f"{name} must hold int8 values, got {values.dtype}; quantise floats with "
            "quantize(x, scale), images with quantize_image(x, scale)."
        )
    if values.ndim == 0:
        raise ValueError(f"{name} must have a channel axis (the last one), got a scalar.")
    # Of values without a shape, such as a list, QTensor could not count them.
    channels = values.shape[-1] if q.channels in (-1, None) else q.channels
    if not is_int(channels):
        raise TypeError(
            f"{name}.channels must be an int, or None for all that are stored, got {channels!r}."
        )
    if not 0 <= channels <= values.shape[-1]:
        raise ValueError(f"{name} says it has {channels} channels, but stores {values.shape[-1]}.")
    return QTensor(values, q.scale, q.zero_point, int(channels))


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
    scale = check_scale("scale", scale)
    values = jax.lax.bitcast_convert_type(x ^ jnp.uint8(0x80), jnp.int8)
    values = guard(values, scale, "quantize_image")
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
        ValueError: unless ``q`` stores the channels it says; on a bad scale or zero point.
    """
    q, dtype = checked("q", q), _as_float(dtype)
    scale = check_scale("q.scale", q.scale)
    steps = q.unpadded().astype(jnp.int32)
    if q.zero_point is not None:
        steps = steps - check_zero_point("q.zero_point", q.zero_point)
    return (steps.astype(jnp.float32) * scale).astype(dtype)


def _as_float(dtype: Any) -> Any:
    """``dtype``, unless it isn't one of floats."""
    try:
        # numpy reads None as float64.
        is_float = dtype is not None and jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        is_float = False
    if not is_float:
        raise TypeError(f"dtype must be a float one, such as float32 or bfloat16, got {dtype!r}.")
    return dtype
