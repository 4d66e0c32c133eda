"""Weights to their packed form and back: `prepack`, `unpack`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_qconv import _groups, _spec
from jax_qconv._arrays import as_array, check_scale, is_concrete, reciprocal, undifferentiable
from jax_qconv._packed_conv import PackedConv, check_format
from jax_qconv._problem import check_accumulator
from jax_qconv._space_to_depth import Blocks, pays, why_not
from jax_qconv._subpixel import Phases

_SPATIAL = {1: "W", 2: "HW", 3: "DHW"}
_LAYOUTS = {
    order.replace("*", axes): rank
    for rank, axes in _SPATIAL.items()
    for order in ("*IO", "OI*", "O*I", "IO*")
}
"""Layouts of weights and their spatial axes; IOHW is how PyTorch has transposed ones."""


def prepack(
    weight: jax.Array,
    bias: jax.Array | None = None,
    *,
    weight_scale: Any = None,
    layout: str | None = None,
    strides: int | Sequence[int] = 1,
    padding: str | int | Sequence[Any] = "SAME",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    transpose: bool = False,
    output_padding: int | Sequence[int] = 0,
    per_channel: bool = True,
    pad_to: tuple[int | None, int | None] | None = None,
    space_to_depth: bool | None = None,
    merge_groups: int | None = None,
) -> PackedConv:
    """Quantise, pad and lay out the weights of a 1-D, 2-D or 3-D convolution for the int8 kernels.

    A transformation of arrays: works inside and outside `jax.jit`, with the same bytes.
    Float weights are quantised symmetrically to [-127, 127]: scale = absmax / 127 (1 where
    all weights are zero), q = rint(w * (1/scale)), half to even, constants from float64.

    A transposed convolution adds x[i] * w[r] to output i * stride + r * dilation - padding, as
    PyTorch has it and as the gradient of a convolution does. `jax.lax.conv_transpose` and Flax
    meet the kernel from its other end: flip its spatial axes first (``weight[::-1, ::-1]``).

    Args:
        weight: ``[R, S, C / groups, K; float]``, or in another ``layout``; or int8 data, taken
            as they are together with ``weight_scale``.
        bias: ``[K; float]`` in real units, or None.
        weight_scale: ``[K or scalar; float32]`` of int8 weights; refused for float ones.
        layout: ``"HWIO"`` (JAX, Flax), ``"OIHW"`` (PyTorch), ``"OHWI"`` or ``"IOHW"`` (PyTorch's
            transposed convolutions); with W for 1-D and DHW for 3-D convolutions in place of HW.
            None means HWIO or its kin, by the number of axes. I is C / groups, O is K; in IOHW
            with groups, I is C and O is K / groups.
        strides: window strides, an int or one for each spatial axis, (height, width).
        padding: ``"SAME"``, ``"VALID"``, an int, (height, width) or
            ((top, bottom), (left, right)); padded elements are real zeros. Of a transposed
            convolution, numbers say how much of the output is cut off; ``"SAME"`` gives
            size * stride outputs, ``"VALID"`` all of them.
        dilation: of the kernel, an int or one for each spatial axis.
        groups: feature groups, of C / groups input and K / groups output channels.
        transpose: whether it is a transposed convolution.
        output_padding: of a transposed convolution, elements added at the end of each axis, less
            than its stride.
        per_channel: one scale per output channel (True) or one for the tensor.
        pad_to: (C, K) channel counts to store, multiples of 4, None for the rule in either
            place. The rule is a pure function of the channel count, equal on all machines.
        space_to_depth: whether blocks of pixels become channels, for strided 2-D convolutions of
            at most 4 channels, with the same results. None means for kernels as large as their
            strides, where it is only another view of the input. True is several times faster on
            a GPU for large kernels that this package's own kernel for first layers doesn't take:
            those with a residual, with outputs that aren't int8, or with an activation that isn't
            exact, such as silu.
        merge_groups: how many groups to store as one dense group, with the same results: the
            matrix units of a GPU want many channels. None means a rule: all of them up to 256
            channels, then blocks of 64 or more where there are such; depthwise convolutions stay
            as they are.

    Returns:
        An unbound `PackedConv`.

    Raises:
        TypeError, ValueError: on a bad shape, dtype, scale, layout, stride, padding, dilation or
            group count, if the int32 accumulation could overflow, if concrete values aren't
            finite, or if the weights are differentiated.
    """
    weight = jnp.asarray(as_array("weight", weight))
    layout, rank = _layout(layout, weight)
    if 0 in weight.shape:
        raise ValueError(f"weight must not be empty, got shape {list(weight.shape)}.")
    for name, flag in (("per_channel", per_channel), ("transpose", transpose)):
        if not isinstance(flag, bool):
            raise TypeError(f"{name} must be True or False, got {flag!r}.")
    if not _spec.is_int(groups) or groups < 1:
        raise ValueError(f"groups must be a positive int, got {groups!r}.")
    weight, layout = _ungrouped_io(weight, layout, groups)
    k, *kernel, c_per_group = (weight.shape[axis] for axis in _to_ohwi(layout))
    c = c_per_group * groups
    if k % groups:
        raise ValueError(f"groups={groups} must divide the {k} output channels of weight.")
    placed = {
        "strides": _spec.as_ints("strides", strides, rank=rank, minimum=1),
        "padding": _spec.as_padding(padding, rank=rank),
        "dilation": _spec.as_ints("dilation", dilation, rank=rank, minimum=1),
    }
    output_padding = _check_output_padding(output_padding, transpose, padding, placed["strides"])
    merge = _merge(merge_groups, c, k, groups, transpose)
    stored = _stored(c, k, groups // merge, pad_to)
    check_accumulator((stored[1], *kernel, stored[0] // stored[2]))
    if bias is not None:
        bias = _check_bias(bias, k)
    if weight.dtype == jnp.int8:
        if weight_scale is None:
            raise ValueError("int8 weight needs weight_scale, a scalar or one scale per channel.")
        scale = check_scale("weight_scale", weight_scale, length=k)
    elif jnp.issubdtype(weight.dtype, jnp.floating):
        if weight_scale is not None:
            raise ValueError("weight_scale goes with int8 weights; float ones get their own.")
        weight = undifferentiable(weight, "prepack")
        weight, scale = _quantize_weight(
            weight, out_axis=_to_ohwi(layout)[0], per_channel=per_channel
        )
        if is_concrete(scale) and not np.isfinite(np.asarray(scale)).all():
            raise ValueError("weight holds NaN or infinite values.")
    else:
        raise TypeError(f"weight must be of a float dtype or int8, got {weight.dtype}.")
    form: Blocks | Phases | None = None
    if transpose:
        size = tuple(kernel), placed["strides"], placed["dilation"]
        form = Phases(*size, output_padding, stored[0])
    if _cut(space_to_depth, c, tuple(kernel), placed, groups, transpose):
        form = Blocks(tuple(kernel), placed["strides"], stored[0])
    packed = _lay_out(
        weight, to_ohwi=_to_ohwi(layout), groups=groups, merge=merge, stored=stored, form=form
    )
    return PackedConv(
        weight=packed,
        weight_scale=scale,
        bias=bias,
        binding=None,
        in_channels=c,
        out_channels=k,
        **placed,
        groups=int(groups),
        merge=merge,
        form=form,
    )


def _layout(layout: Any, weight: jax.Array) -> tuple[str, int]:
    """The layout by name, and its spatial axes."""
    if layout is None:
        if weight.ndim - 2 not in _SPATIAL:
            raise ValueError(
                f"weight must have 3, 4 or 5 axes, two of channels and the rest spatial, got shape "
                f"{list(weight.shape)}."
            )
        layout = f"{_SPATIAL[weight.ndim - 2]}IO"
    if not isinstance(layout, str) or layout not in _LAYOUTS:
        raise ValueError(f"layout={layout!r} is not known; use one of {list(_LAYOUTS)} or None.")
    if weight.ndim != len(layout):
        raise ValueError(
            f"weight must have {len(layout)} axes ({layout}), got shape {list(weight.shape)}."
        )
    return layout, _LAYOUTS[layout]


def _ungrouped_io(weight: jax.Array, layout: str, groups: int) -> tuple[jax.Array, str]:
    """IOHW with I = C, O = K / groups as OIHW with O = K, I = C / groups; others as they are."""
    if not layout.startswith("IO"):
        return weight, layout
    c, k, *kernel = weight.shape
    if c % groups:
        raise ValueError(f"groups={groups} must divide the {c} input channels of weight.")
    parts = weight.reshape(groups, c // groups, k, *kernel)
    return jnp.swapaxes(parts, 1, 2).reshape(groups * k, c // groups, *kernel), f"OI{layout[2:]}"


def _to_ohwi(layout: str) -> tuple[int, ...]:
    """Axes of a layout that give OHWI or its kin, the packed one (K, R, S, C)."""
    spatial = [axis for axis, letter in enumerate(layout) if letter in "DHW"]
    return layout.index("O"), *spatial, layout.index("I")


def _check_output_padding(
    output_padding: Any, transpose: bool, padding: Any, strides: _spec.Ints
) -> _spec.Ints:
    ints = _spec.as_ints("output_padding", output_padding, rank=len(strides), minimum=0)
    if max(ints) == 0:
        return ints
    if not transpose:
        raise ValueError(
            f"output_padding={output_padding!r} is for transposed convolutions; set transpose=True."
        )
    if isinstance(padding, str):
        raise ValueError(
            f"output_padding={output_padding!r} goes with padding in numbers, but padding is "
            f"{padding!r}, which says the size of the output by itself."
        )
    if any(more >= stride for more, stride in zip(ints, strides, strict=True)):
        raise ValueError(
            f"output_padding must be less than strides={strides} in each dimension, got "
            f"{output_padding!r}."
        )
    return ints


def _merge(asked: int | None, c: int, k: int, groups: int, transpose: bool) -> int:
    """How many groups to store as one."""
    if asked is None:
        return groups if transpose else _groups.merge_by_rule(c, k, groups)
    if not _spec.is_int(asked) or asked < 1:
        raise ValueError(f"merge_groups must be a positive int or None, got {asked!r}.")
    reason = _groups.why_not(c, k, groups, asked)
    if transpose and asked != groups:
        reason = "a transposed convolution needs all of them merged"
    if reason is not None:
        raise ValueError(
            f"merge_groups={asked} doesn't suit {c} -> {k} channels in {groups} groups: {reason}."
        )
    return int(asked)


def _cut(
    asked: bool | None,
    channels: int,
    kernel: _spec.Ints,
    placed: dict[str, Any],
    groups: int,
    transpose: bool,
) -> bool:
    """Whether to cut into blocks."""
    if asked is not None and not isinstance(asked, bool):
        raise TypeError(f"space_to_depth must be True, False or None, got {asked!r}.")
    reason = why_not(channels, placed["strides"], placed["dilation"], groups)
    if transpose:
        reason = "it is transposed"
    if asked and reason is not None:
        raise ValueError(f"space_to_depth=True doesn't suit this convolution: {reason}.")
    return reason is None and (pays(kernel, placed["strides"]) if asked is None else asked)


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


def _stored(
    c: int, k: int, groups: int, pad_to: tuple[int | None, int | None] | None
) -> tuple[int, int, int]:
    """(C, K, groups) to store; padded channels of a grouped convolution are groups of their own."""
    if pad_to is None:
        pad_to = (None, None)
    if not _spec.is_sequence(pad_to, 2) or not all(v is None or _spec.is_int(v) for v in pad_to):
        raise TypeError(f"pad_to must be a pair of ints or None, (C, K), got {pad_to!r}.")
    stored = list(_groups.stored_channels(c, k, groups))
    for place, (name, channels, wanted) in enumerate(zip("CK", (c, k), pad_to, strict=True)):
        if wanted is None:
            continue
        if wanted < channels or wanted % 4:
            raise ValueError(
                f"pad_to stores {wanted} channels for {name}={channels}; it must be a multiple "
                f"of 4 and at least {channels}."
            )
        stored[place] = wanted
    if groups == 1:
        return stored[0], stored[1], 1
    per_group = c // groups, k // groups
    stored_groups = stored[0] // per_group[0]
    if stored[0] % per_group[0] or stored[1] != stored_groups * per_group[1]:
        raise ValueError(
            f"pad_to={tuple(pad_to)} stores {stored[0]} -> {stored[1]} channels, which aren't "
            f"whole groups of {per_group[0]} -> {per_group[1]}."
        )
    return stored[0], stored[1], stored_groups


@functools.partial(jax.jit, static_argnames=("to_ohwi", "groups", "merge", "stored", "form"))
def _lay_out(
    weight: jax.Array,
    *,
    to_ohwi: tuple[int, ...],
    groups: int,
    merge: int,
    stored: tuple[int, int, int],
    form: Blocks | Phases | None,
) -> jax.Array:
    """[any layout; int8] -> [K, R, S, C / groups; int8], stored channels, in its form."""
    weight = _groups.merged(weight.transpose(to_ohwi), groups=groups, merge=merge)
    stored_c, stored_k, stored_groups = stored
    more = stored_k - weight.shape[0], stored_c // stored_groups - weight.shape[-1]
    kernel = [(0, 0)] * (weight.ndim - 2)
    weight = jnp.pad(weight, [(0, more[0]), *kernel, (0, more[1])])
    return weight if form is None else form.weight(weight)


@functools.partial(jax.jit, static_argnames=("out_axis", "per_channel"))
def _quantize_weight(
    weight: jax.Array, *, out_axis: int, per_channel: bool
) -> tuple[jax.Array, jax.Array]:
    """int8 weights in the same layout, and their scale."""
    weight = weight.astype(jnp.float32)
    axes = tuple(a for a in range(weight.ndim) if not per_channel or a != out_axis)
    absmax = jnp.max(jnp.abs(weight), axis=axes)
    with jax.enable_x64(True):
        # A product with a constant: division by one is not IEEE on every device.
        scale = (absmax.astype(jnp.float64) * np.float64(1 / 127)).astype(jnp.float32)
    # A zero scale has no reciprocal; the weights are all (almost) zero, so any scale serves.
    scale = jnp.where(scale < np.finfo(np.float32).tiny, jnp.float32(1), scale)
    inverse = jnp.expand_dims(reciprocal(scale), axes) if per_channel else reciprocal(scale)
    return jnp.clip(jnp.round(weight * inverse), -127, 127).astype(jnp.int8), scale


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


def unpack(packed: PackedConv, *, layout: str | None = None) -> Unpacked:
    """The int8 weights, scales and bias of a pack, without padding.

    Args:
        packed: from `prepack`, bound or not.
        layout: of the weights to return, ``"HWIO"``, ``"OIHW"`` or ``"OHWI"``, or their kin for
            1-D and 3-D; None means HWIO. I is C / groups.

    Returns:
        An `Unpacked`; ``prepack(u.weight, u.bias, weight_scale=u.weight_scale, ...)`` gives
        the same pack back.

    Raises:
        TypeError, ValueError: if it isn't a pack, is of a newer format, or on an unknown layout.
    """
    check_format(packed)
    weight = packed.weight if packed.form is None else packed.form.unweight(packed.weight)
    channels = packed.in_channels // packed.groups * packed.merge
    weight = weight[: packed.out_channels, ..., :channels]
    weight = _groups.parted(weight, groups=packed.groups, merge=packed.merge)
    layout, _ = _layout(layout, weight)
    if layout.startswith("IO"):
        raise ValueError(
            f"layout={layout!r} is for prepack only; take the weights as OI{layout[2:]}."
        )
    return Unpacked(
        weight.transpose(np.argsort(_to_ohwi(layout))), packed.weight_scale, packed.bias
    )
