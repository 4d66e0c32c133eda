"""Float to int8 and back: `QTensor`, `quantize`, `dequantize`, and checks of scales."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_qconv._spec import padded_channels

INTEGER_OP_GRADIENT = (
    "{op} works on integers and has no gradient. Train the float model and quantise it "
    "afterwards, or put jax.lax.stop_gradient around the inputs that need no gradient."
)


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
        if self.channels == -1 and hasattr(self.values, "shape"):
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
        stored = getattr(self.values, "shape", None)
        if stored is None:
            return (
                f"QTensor(values={self.values!r}, scale={self.scale!r}, "
                f"zero_point={self.zero_point!r}, channels={self.channels})"
            )
        padding = "" if stored[-1] == self.channels else f", stored channels {stored[-1]}"
        zero = "" if self.zero_point is None else f", zero_point={_show(self.zero_point)}"
        return f"QTensor(int8{list(self.shape)}, scale={_show(self.scale)}{zero}{padding})"


def _show(value: Any) -> str:
    return f"{float(value):.6g}" if is_concrete(value) and np.ndim(value) == 0 else str(value)


def is_concrete(value: Any) -> bool:
    """Whether ``value`` can be read now, that is, isn't traced."""
    return not isinstance(value, jax.core.Tracer)


def check_scale(name: str, scale: Any, *, length: int | None = None) -> jax.Array:
    """Return ``scale`` as float32, of shape [] or, where ``length`` is given, [length] too.

    Raises:
        TypeError: if it isn't a real number or float array.
        ValueError: on another shape, or, when concrete, unless positive and finite.
    """
    try:
        kind = jnp.result_type(scale)
    except TypeError as error:
        raise TypeError(f"{name} must be a number or a float array, got {scale!r}.") from error
    if not (jnp.issubdtype(kind, jnp.floating) or jnp.issubdtype(kind, jnp.integer)):
        raise TypeError(f"{name} must be of a float dtype, got {kind}.")
    shape = np.shape(scale)
    allowed = [()] if length is None else [(), (length,)]
    if shape not in allowed:
        want = "a scalar" if length is None else f"a scalar or of shape [{length}]"
        raise ValueError(f"{name} must be {want}, got shape {list(shape)}.")
    if is_concrete(scale):
        # As float32, because that is what is used: 1e-60 would be zero there.
        values = np.asarray(scale, np.float32)
        bad = ~(np.isfinite(values) & (values > 0))
        if bad.any():
            raise ValueError(
                f"{name} must be positive and finite in float32, got {values[bad].flat[0]}."
            )
    return jnp.asarray(scale, jnp.float32)


def reciprocal(scale: jax.Array) -> jax.Array:
    """1 / scale ``[float32]``, through float64: float32 division isn't IEEE on every device."""
    with jax.enable_x64(True):
        return (1.0 / scale.astype(jnp.float64)).astype(jnp.float32)


@jax.custom_jvp
def _quantize(x: jax.Array, scale: jax.Array, zero_point: jax.Array | None) -> jax.Array:
    y = jnp.round(x.astype(jnp.float32) * reciprocal(scale))
    y = jnp.where(jnp.isnan(y), jnp.float32(0), y)
    if zero_point is not None:
        # Exact where it matters: |y| < 2**24, or the sum saturates anyway.
        y = y + zero_point.astype(jnp.float32)
    return jnp.clip(y, -128, 127).astype(jnp.int8)


@_quantize.defjvp
def _quantize_jvp(primals: Any, tangents: Any) -> Any:
    raise TypeError(INTEGER_OP_GRADIENT.format(op="quantize"))


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
        TypeError: if ``x`` isn't float, has no dimension, or is differentiated.
        ValueError: on a bad scale, zero point or channel count.
    """
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"x must be float32, bfloat16 or float16 to be quantised, got {x.dtype}; "
            "wrap int8 data you already have as QTensor(values, scale)."
        )
    if x.ndim == 0:
        raise ValueError("x must have a channel axis (the last one), got a scalar.")
    scale = check_scale("scale", scale)
    zero = None if zero_point is None else _check_zero_point(zero_point)
    channels = x.shape[-1]
    stored = padded_channels(channels) if pad is True else channels if pad is False else pad
    if stored < channels:
        raise ValueError(f"pad={pad} stores fewer channels than the {channels} of x.")
    values = pad_channels(_quantize(x, scale, zero), stored)
    return QTensor(values, scale, zero, channels)


def _check_zero_point(zero_point: Any) -> jax.Array:
    if not jnp.issubdtype(jnp.result_type(zero_point), jnp.integer) or np.shape(zero_point):
        raise TypeError(f"zero_point must be an integer scalar or None, got {zero_point!r}.")
    if is_concrete(zero_point) and not -128 <= int(zero_point) <= 127:
        raise ValueError(f"zero_point must lie in [-128, 127], got {int(zero_point)}.")
    return jnp.asarray(zero_point, jnp.int32)


def pad_channels(values: jax.Array, stored: int) -> jax.Array:
    """Zero-pad or slice the last axis to ``stored`` elements; no operation if equal."""
    if values.shape[-1] > stored:
        return values[..., :stored]
    if values.shape[-1] == stored:
        return values
    return jnp.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, stored - values.shape[-1])])


def dequantize(q: QTensor, dtype: Any = jnp.float32) -> jax.Array:
    """Back to real numbers: (values - zero_point) * scale, without padded channels.

    Args:
        q: the quantised tensor.
        dtype: float dtype of the result; the product is float32, then rounded to it.

    Returns:
        ``[..., channels; dtype]``.
    """
    values = q.unpadded().astype(jnp.int32)
    if q.zero_point is not None:
        values = values - q.zero_point
    return (values.astype(jnp.float32) * q.scale).astype(dtype)
