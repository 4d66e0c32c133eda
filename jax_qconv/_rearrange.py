"""Moving int8 numbers without changing what they mean: pad, shuffle, concatenate. Each one kernel.

Scale and zero point pass through, except where tensors of different scales are put together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp

from jax_qconv import _steps, _table
from jax_qconv._activation import as_activation
from jax_qconv._arrays import pad_channels, reshape_images
from jax_qconv._quantize import QTensor
from jax_qconv._spec import AXES, Pads, as_padding, is_int, is_sequence, padded_channels

_RANKS = (3, 4, 5)


def qconcat(
    tensors: Sequence[QTensor],
    *,
    axis: int = -1,
    out_scale: Any = None,
    out_zero_point: Any = None,
) -> QTensor:
    """Concatenate int8 tensors, each brought to the common scale as `requantize` does.

    Where all have the same scale and zero point (the same traced value, or equal concrete ones)
    these are kept unless others are given, and no arithmetic is done. Along channels the padded
    ones between the parts are dropped, and the result is padded by the rule of `prepack`.

    Args:
        tensors: ``[..., C; int8]`` of one rank, with equal sizes but along ``axis``.
        axis: to concatenate along; -1 are the channels.
        out_scale: ``[; float32]`` positive, real units per integer step; None keeps the common
            one.
        out_zero_point: ``[; int32]`` in [-128, 127]; None with an ``out_scale`` means symmetric
            data.

    Returns:
        A `QTensor`.

    Raises:
        TypeError: unless all are `QTensor` of int8 values; if one is differentiated.
        ValueError: if there are none, or their shapes don't fit; without ``out_scale`` if their
            scales or zero points aren't known to be equal; on a bad scale or zero point.
    """
    if isinstance(tensors, QTensor) or not isinstance(tensors, Sequence):
        raise TypeError(
            f"tensors must be a sequence of QTensor, got {type(tensors).__name__}; pass a list."
        )
    if not tensors:
        raise ValueError("tensors must hold at least one QTensor, got none.")
    parts = [_steps.operand("qconcat", f"tensors[{i}]", x) for i, x in enumerate(tensors)]
    first, rank = parts[0], parts[0].values.ndim
    if not is_int(axis) or not -rank <= axis < rank:
        raise ValueError(f"axis must be an int in [{-rank}, {rank - 1}], got {axis!r}.")
    axis = int(axis) % rank
    for index, part in enumerate(parts):
        shapes = [[*q.shape[:axis], *q.shape[axis + 1 :]] for q in (first, part)]
        if part.values.ndim != rank or shapes[0] != shapes[1]:
            raise ValueError(
                f"tensors[{index}] has shape {list(part.shape)}, and tensors[0] "
                f"{list(first.shape)}; they may differ along axis {axis} only."
            )
    if out_scale is None:
        for index, part in enumerate(parts):
            # What is traced is the same as itself only.
            pairs = (part.scale, first.scale), (part.zero_point, first.zero_point)
            if not all(_steps.same(*pair) for pair in pairs):
                raise ValueError(
                    f"tensors[{index}] isn't known to have the scale and zero point of "
                    "tensors[0]; give the out_scale that all are brought to."
                )
    scale, zero = _steps.output(first, out_scale, out_zero_point)
    parts = [_steps.guarded("qconcat", part, scale) for part in parts]
    if out_scale is None and out_zero_point is None:
        values = [part.values for part in parts]
    else:
        tables = [_table.table(part, as_activation(None), scale, zero) for part in parts]
        values = [_table.lookup(t, part.values) for t, part in zip(tables, parts, strict=True)]
    if axis == rank - 1:
        channels = sum(part.channels for part in parts)
        joined = jnp.concatenate(
            [v[..., : part.channels] for v, part in zip(values, parts, strict=True)], axis=axis
        )
        joined = pad_channels(joined, padded_channels(channels))
    else:
        channels = first.channels
        stored = max(v.shape[-1] for v in values)
        joined = jnp.concatenate([pad_channels(v, stored) for v in values], axis=axis)
    return QTensor(joined, scale, zero, channels)


def qpad(x: QTensor, padding: int | Sequence[Any]) -> QTensor:
    """Pad the spatial axes with real zeros, that is with the zero point.

    Args:
        x: ``[N, W, C; int8]``, ``[N, H, W, C; int8]`` or ``[N, D, H, W, C; int8]``.
        padding: an int, or for each spatial axis an int or a (before, after) pair; not negative.

    Returns:
        A `QTensor` of the larger shape, padded channels included.

    Raises:
        TypeError: if ``x`` isn't a `QTensor` of int8 values, or is differentiated.
        ValueError: on another rank or negative padding.
    """
    x = _steps.operand("qpad", "x", x, ranks=_RANKS)
    rank = x.values.ndim - 2
    if not is_int(padding) and not is_sequence(padding, rank):
        raise TypeError(
            f"padding must be numbers of elements: an int, or {rank} ints or (before, after) "
            f"pairs ({', '.join(AXES[rank])}), got {padding!r}."
        )
    pads = cast(Pads, as_padding(padding, rank=rank))
    zero = jnp.asarray(0 if x.zero_point is None else x.zero_point).astype(jnp.int8)
    config = [(0, 0, 0), *((before, after, 0) for before, after in pads), (0, 0, 0)]
    return dataclasses.replace(x, values=jax.lax.pad(x.values, zero, config))


def qpixel_shuffle(x: QTensor, factor: int) -> QTensor:
    """Channels to pixels (depth to space), in PyTorch's order of channels.

    out[n, h * f + i, w * f + j, c] = x[n, h, w, (c * f + i) * f + j] for a factor f.

    Args:
        x: ``[N, H, W, C * f**2; int8]``; or with 1 or 3 spatial axes, f or f**3 in place of
            f**2.
        factor: pixels that each pixel becomes, along each spatial axis.

    Returns:
        A `QTensor` of ``[N, H * f, W * f, C; int8]``, channels padded by the rule of `prepack`.

    Raises:
        TypeError: if ``x`` isn't a `QTensor` of int8 values, or is differentiated.
        ValueError: on another rank, or if the channels can't be divided.
    """
    x = _steps.operand("qpixel_shuffle", "x", x, ranks=_RANKS)
    _check_unsharded(x, range(1, x.values.ndim), "only N may be")
    n, *sizes, _ = x.values.shape
    factor, rank = _count("factor", factor), len(sizes)
    _check_divides(f"factor={factor}", x.channels, factor**rank)
    channels = x.channels // factor**rank
    values = reshape_images(x.unpadded(), (n, *sizes, channels, *[factor] * rank))
    # Each spatial axis, followed by its part of the channels.
    pairs = [axis for i in range(rank) for axis in (1 + i, 2 + rank + i)]
    values = values.transpose(0, *pairs, 1 + rank)
    values = reshape_images(values, (n, *(size * factor for size in sizes), channels))
    return QTensor(pad_channels(values, padded_channels(channels)), x.scale, x.zero_point, channels)


def qpixel_unshuffle(x: QTensor, factor: int) -> QTensor:
    """Pixels to channels (space to depth): the inverse of `qpixel_shuffle`.

    Args:
        x: ``[N, H * f, W * f, C; int8]`` for a factor f, or the like with 1 or 3 spatial axes.
        factor: pixels that become one, along each spatial axis.

    Returns:
        A `QTensor` of ``[N, H, W, C * f**2; int8]``, channels padded by the rule of `prepack`.

    Raises:
        TypeError: if ``x`` isn't a `QTensor` of int8 values, or is differentiated.
        ValueError: on another rank, or if the sizes can't be divided.
    """
    x = _steps.operand("qpixel_unshuffle", "x", x, ranks=_RANKS)
    _check_unsharded(x, range(1, x.values.ndim), "only N may be")
    n, *sizes, _ = x.values.shape
    factor, rank = _count("factor", factor), len(sizes)
    if any(size % factor for size in sizes):
        raise ValueError(
            f"factor={factor} must divide the spatial sizes of x, got shape {list(x.shape)}; pad "
            "it with qpad."
        )
    smaller = [size // factor for size in sizes]
    pairs = [v for s in smaller for v in (s, factor)]
    values = reshape_images(x.unpadded(), (n, *pairs, x.channels))
    firsts, seconds = (range(start, 1 + 2 * rank, 2) for start in (1, 2))
    values = values.transpose(0, *firsts, 1 + 2 * rank, *seconds)
    channels = x.channels * factor**rank
    values = reshape_images(values, (n, *smaller, channels))
    return QTensor(pad_channels(values, padded_channels(channels)), x.scale, x.zero_point, channels)


def qchannel_shuffle(x: QTensor, groups: int) -> QTensor:
    """Mix the channels of ``groups``, as ShuffleNet does: out[..., i * g + j] = x[..., j * n + i].

    Args:
        x: ``[..., C; int8]``, with C = g * n.
        groups: g; channel i of each group, in the order of the groups, follows channel i - 1.

    Returns:
        A `QTensor` of the shape of ``x``, padded channels included.

    Raises:
        TypeError: if ``x`` isn't a `QTensor` of int8 values, or is differentiated.
        ValueError: if ``groups`` don't divide the channels.
    """
    x = _steps.operand("qchannel_shuffle", "x", x)
    _check_unsharded(x, (x.values.ndim - 1,), "its channels may not be")
    groups = _count("groups", groups)
    _check_divides(f"groups={groups}", x.channels, groups)
    values = x.unpadded().reshape(*x.shape[:-1], groups, x.channels // groups)
    values = values.swapaxes(-1, -2).reshape(x.shape)
    return dataclasses.replace(x, values=pad_channels(values, x.values.shape[-1]))


def _check_unsharded(x: QTensor, axes: Iterable[int], rule: str) -> None:
    """Refuse explicit shardings of axes that are taken apart: no sharding is invented."""
    spec = jax.typeof(x.values).sharding.spec
    if any(spec[axis] is not None for axis in axes):
        raise ValueError(
            f"x is sharded as {spec}, but {rule}; jax.sharding.reshard it, or work on each part "
            "with jax.shard_map."
        )


def _count(name: str, value: Any) -> int:
    if not is_int(value):
        raise TypeError(f"{name} must be an int, got {value!r}.")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value!r}.")
    return int(value)


def _check_divides(argument: str, channels: int, divisor: int) -> None:
    if channels % divisor:
        raise ValueError(
            f"{argument} needs a multiple of {divisor} channels, but x has {channels}."
        )
