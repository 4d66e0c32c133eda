"""Weights to their packed form and back: `prepack`, `unpack`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_qconv import _spec
from jax_qconv._arrays import as_array, check_scale, is_concrete, reciprocal, undifferentiable
from jax_qconv._packed_conv import PackedConv, check_format
from jax_qconv._space_to_depth import Blocks, pays, why_not

# Axes of each layout that give OHWI, the packed one (K, R, S, C).
_TO_OHWI = {"HWIO": (3, 0, 1, 2), "OIHW": (0, 2, 3, 1), "OHWI": (0, 1, 2, 3)}


def prepack(
    weight: jax.Array,
    bias: jax.Array | None = None,
    *,
    weight_scale: Any = None,
    layout: str = "HWIO",
    strides: int | Sequence[int] = 1,
    padding: str | int | Sequence[Any] = "SAME",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    per_channel: bool = True,
    pad_to: tuple[int | None, int | None] | None = None,
    space_to_depth: bool | None = None,
) -> PackedConv:
    """Quantise, pad and lay out the weights of a 2-D convolution for the int8 kernels.

    A transformation of arrays: works inside and outside `jax.jit`, with the same bytes.
    Float weights are quantised symmetrically to [-127, 127]: scale = absmax / 127 (1 where
    all weights are zero), q = rint(w * (1/scale)), half to even, constants from float64.

    Args:
        weight: ``[R, S, C, K; float]``, or in another ``layout``; or int8 data, taken as
            they are together with ``weight_scale``.
        bias: ``[K; float]`` in real units, or None.
        weight_scale: ``[K or scalar; float32]`` of int8 weights; refused for float ones.
        layout: ``"HWIO"`` (JAX, Flax), ``"OIHW"`` (PyTorch) or ``"OHWI"``.
        strides: window strides, an int or (height, width).
        padding: ``"SAME"``, ``"VALID"``, an int, (height, width) or
            ((top, bottom), (left, right)); padded elements are real zeros.
        dilation: of the kernel, an int or (height, width).
        groups: feature groups; only 1 so far.
        per_channel: one scale per output channel (True) or one for the tensor.
        pad_to: (C, K) channel counts to store, multiples of 4, None for the rule in either
            place. The rule is a pure function of the channel count, equal on all machines.
        space_to_depth: whether blocks of pixels become channels, for strided convolutions of at
            most 4 channels: a form with the same results that is several times faster on a GPU
            for large kernels. None means where it pays: for kernels of 5x5 or more with stride 2,
            and for those as large as their strides.

    Returns:
        An unbound `PackedConv`.

    Raises:
        TypeError, ValueError: on a bad shape, dtype, scale, layout, stride, padding or
            dilation, if the int32 accumulation could overflow, if concrete values aren't
            finite, or if the weights are differentiated.
    """
    weight = jnp.asarray(as_array("weight", weight))
    to_ohwi = _axes(layout)
    if weight.ndim != 4:
        raise ValueError(f"weight must have 4 axes ({layout}), got shape {list(weight.shape)}.")
    if 0 in weight.shape:
        raise ValueError(f"weight must not be empty, got shape {list(weight.shape)}.")
    if not _spec.is_int(groups) or groups != 1:
        raise ValueError(f"groups must be 1 in this version, got {groups!r}.")
    if not isinstance(per_channel, bool):
        raise TypeError(f"per_channel must be True or False, got {per_channel!r}.")
    k, r, s, c = (weight.shape[axis] for axis in to_ohwi)
    strides = _spec.as_pair("strides", strides, minimum=1)
    dilation = _spec.as_pair("dilation", dilation, minimum=1)
    cut = _cut(space_to_depth, c, (r, s), strides, dilation)
    stored_c, stored_k = _stored_channels(c, k, pad_to)
    _spec.check_accumulator((stored_k, r, s, stored_c))
    if bias is not None:
        bias = _check_bias(bias, k)
    if weight.dtype == jnp.int8:
        if weight_scale is None:
            raise ValueError("int8 weight needs weight_scale, a scalar or one scale per channel.")
        scale = check_scale("weight_scale", weight_scale, length=k)
        packed = _lay_out(weight, layout=layout, stored=(stored_c, stored_k))
    elif jnp.issubdtype(weight.dtype, jnp.floating):
        if weight_scale is not None:
            raise ValueError("weight_scale goes with int8 weights; float ones get their own.")
        weight = undifferentiable(weight, "prepack")
        packed, scale = _quantize_weight(
            weight, layout=layout, stored=(stored_c, stored_k), per_channel=per_channel
        )
        if is_concrete(scale) and not np.isfinite(np.asarray(scale)).all():
            raise ValueError("weight holds NaN or infinite values.")
    else:
        raise TypeError(f"weight must be of a float dtype or int8, got {weight.dtype}.")
    blocks = Blocks((r, s), strides, stored_c) if cut else None
    return PackedConv(
        weight=packed if blocks is None else _to_blocks(packed, blocks=blocks),
        weight_scale=scale,
        bias=bias,
        binding=None,
        in_channels=c,
        out_channels=k,
        strides=strides,
        padding=_spec.as_padding(padding),
        dilation=dilation,
        groups=1,
        blocks=blocks,
    )


def _cut(
    asked: bool | None,
    channels: int,
    kernel: tuple[int, int],
    strides: tuple[int, int],
    dilation: tuple[int, int],
) -> bool:
    """Whether to cut into blocks."""
    if asked is not None and not isinstance(asked, bool):
        raise TypeError(f"space_to_depth must be True, False or None, got {asked!r}.")
    reason = why_not(channels, strides, dilation)
    if asked and reason is not None:
        raise ValueError(f"space_to_depth=True doesn't suit this convolution: {reason}.")
    return reason is None and (pays(kernel, strides) if asked is None else asked)


@functools.partial(jax.jit, static_argnames="blocks")
def _to_blocks(weight: jax.Array, *, blocks: Blocks) -> jax.Array:
    return blocks.weight(weight)


def _check_bias(bias: Any, k: int) -> jax.Array:
    bias = as_array("bias", bias)
    if bias.shape != (k,):
        raise ValueError(f"bias must be of shape [{k}], got {list(bias.shape)}.")
    if not jnp.issubdtype(bias.dtype, jnp.floating):
        raise TypeError(
            f"bias must be of a float dtype, in real units, got {bias.dtype}; an integer "
            "bias in steps of the accumulator is bias * x_scale * weight_scale."
        )
    if is_concrete(bias):
        with np.errstate(over="ignore"):
            bias = np.asarray(bias).astype(np.float32)
        if not np.isfinite(bias).all():
            raise ValueError("bias holds values that are NaN or infinite in float32.")
    return jnp.asarray(bias, jnp.float32)


def _axes(layout: str) -> tuple[int, int, int, int]:
    if not isinstance(layout, str) or layout not in _TO_OHWI:
        raise ValueError(f"layout={layout!r} is not known; use one of {list(_TO_OHWI)}.")
    return _TO_OHWI[layout]


def _stored_channels(
    c: int, k: int, pad_to: tuple[int | None, int | None] | None
) -> tuple[int, int]:
    if pad_to is None:
        pad_to = (None, None)
    if not _spec.is_pair(pad_to) or not all(v is None or _spec.is_int(v) for v in pad_to):
        raise TypeError(f"pad_to must be a pair of ints or None, (C, K), got {pad_to!r}.")
    stored = []
    for name, channels, wanted in zip("CK", (c, k), pad_to, strict=True):
        if wanted is None:
            wanted = _spec.padded_channels(channels)
        elif wanted < channels or wanted % 4:
            raise ValueError(
                f"pad_to stores {wanted} channels for {name}={channels}; it must be a multiple "
                f"of 4 and at least {channels}."
            )
        stored.append(wanted)
    return stored[0], stored[1]


@functools.partial(jax.jit, static_argnames=("layout", "stored"))
def _lay_out(weight: jax.Array, *, layout: str, stored: tuple[int, int]) -> jax.Array:
    """[any layout; int8] -> [K, R, S, C; int8], stored channels."""
    weight = weight.transpose(_TO_OHWI[layout])
    k, _, _, c = weight.shape
    return jnp.pad(weight, [(0, stored[1] - k), (0, 0), (0, 0), (0, stored[0] - c)])


@functools.partial(jax.jit, static_argnames=("layout", "stored", "per_channel"))
def _quantize_weight(
    weight: jax.Array, *, layout: str, stored: tuple[int, int], per_channel: bool
) -> tuple[jax.Array, jax.Array]:
    weight = weight.astype(jnp.float32)
    out_axis = _TO_OHWI[layout][0]
    axes = tuple(a for a in range(4) if a != out_axis) if per_channel else (0, 1, 2, 3)
    absmax = jnp.max(jnp.abs(weight), axis=axes)
    with jax.enable_x64(True):
        # A product with a constant: division by one is not IEEE on every device.
        scale = (absmax.astype(jnp.float64) * np.float64(1 / 127)).astype(jnp.float32)
    # A zero scale has no reciprocal; the weights are all (almost) zero, so any scale serves.
    scale = jnp.where(scale < np.finfo(np.float32).tiny, jnp.float32(1), scale)
    inverse = jnp.expand_dims(reciprocal(scale), axes) if per_channel else reciprocal(scale)
    q = jnp.clip(jnp.round(weight * inverse), -127, 127).astype(jnp.int8)
    return _lay_out(q, layout=layout, stored=stored), scale


class Unpacked(NamedTuple):
    """What a pack was made from, unpadded; its geometry are attributes of the pack.

    Attributes:
        weight: int8, in the layout asked for.
        weight_scale: ``[K or scalar; float32]``.
        bias: ``[K; float32]`` or None.
    """

    weight: jax.Array
    weight_scale: jax.Array
    bias: jax.Array | None


def unpack(packed: PackedConv, *, layout: str = "HWIO") -> Unpacked:
    """The int8 weights, scales and bias of a pack, without padding.

    Args:
        packed: from `prepack`, bound or not.
        layout: of the weights to return: ``"HWIO"``, ``"OIHW"`` or ``"OHWI"``.

    Returns:
        An `Unpacked`; ``prepack(u.weight, u.bias, weight_scale=u.weight_scale, ...)`` gives
        the same pack back.

    Raises:
        TypeError, ValueError: if it isn't a pack, is of a newer format, or on an unknown layout.
    """
    check_format(packed)
    to_ohwi = _axes(layout)
    weight = packed.weight if packed.blocks is None else packed.blocks.unweight(packed.weight)
    weight = weight[: packed.out_channels, ..., : packed.in_channels]
    return Unpacked(weight.transpose(np.argsort(to_ohwi)), packed.weight_scale, packed.bias)
