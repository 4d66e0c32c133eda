"""How shapes and places are said: dtypes, strides, padding, stored channels. No arrays."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any, TypeGuard

FORMAT_VERSION = 1
"""Version of the packed format; a pack of a newer one is refused."""

OUT_DTYPES = ("int8", "int32", "float32", "bfloat16", "float16")
"""Accepted output dtypes of a convolution."""

AXES = {1: ("width",), 2: ("height", "width"), 3: ("depth", "height", "width")}
"""The spatial axes of a convolution of each rank, in the order of arguments."""

_COUNTED = {1: "a sequence of one int", 2: "a pair of ints", 3: "three ints"}

Ints = tuple[int, ...]
Pads = tuple[tuple[int, int], ...]
Padding = str | Pads


def as_out_dtype(out_dtype: Any) -> str:
    """Normalise the ``out_dtype`` argument to one of `OUT_DTYPES`."""
    name = getattr(out_dtype, "name", None) or getattr(out_dtype, "__name__", None) or out_dtype
    if isinstance(name, str) and name in OUT_DTYPES:
        return name
    raise ValueError(f"out_dtype={out_dtype!r} is not supported; use one of {list(OUT_DTYPES)}.")


def is_int(value: Any) -> TypeGuard[int]:
    """Whether ``value`` is an integer of Python or numpy, and no bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_sequence(value: Any, length: int) -> TypeGuard[Sequence[Any]]:
    """Whether ``value`` is a sequence of so many, and no text."""
    return (
        isinstance(value, Sequence) and not isinstance(value, str | bytes) and len(value) == length
    )


def as_ints(name: str, value: int | Sequence[int], *, rank: int, minimum: int) -> Ints:
    """Normalise an int, or one for each spatial axis, each at least ``minimum``."""
    ints = (value,) * rank if is_int(value) else value
    if not is_sequence(ints, rank) or not all(is_int(v) for v in ints):
        raise TypeError(
            f"{name} must be an int or {_COUNTED[rank]} ({', '.join(AXES[rank])}), got {value!r}."
        )
    if min(ints) < minimum:
        raise ValueError(f"{name} must be at least {minimum} in each dimension, got {value!r}.")
    return tuple(map(int, ints))


def as_padding(padding: str | int | Sequence[Any], *, rank: int) -> Padding:
    """Normalise padding to ``"SAME"``, ``"VALID"`` or (before, after) for each spatial axis."""
    if isinstance(padding, str):
        if padding.upper() in ("SAME", "VALID"):
            return padding.upper()
        raise ValueError(
            f"padding={padding!r} is not known; use 'SAME', 'VALID', an int, or for each of "
            f"{', '.join(AXES[rank])} an int or a (before, after) pair."
        )
    sides = (padding,) * rank if is_int(padding) else padding
    if not is_sequence(sides, rank):
        raise TypeError(
            f"padding must be 'SAME', 'VALID', an int, or {rank} ints or (before, after) pairs "
            f"({', '.join(AXES[rank])}), got {padding!r}."
        )
    return tuple(_as_side(side) for side in sides)


def _as_side(side: Any) -> tuple[int, int]:
    pair = (side, side) if is_int(side) else side
    if not is_sequence(pair, 2) or not all(is_int(v) for v in pair):
        raise TypeError(f"padding of an axis must be an int or a (before, after) pair, got {side}.")
    if min(pair) < 0:
        raise ValueError(f"padding must be at least 0 on each side, got {side!r}.")
    return int(pair[0]), int(pair[1])


def resolve_padding(
    padding: Padding, size: Sequence[int], kernel: Ints, strides: Ints, dilation: Ints
) -> Pads:
    """Turn padding into explicit (before, after) pairs for an input of ``size`` (H, W).

    ``"SAME"`` is that of `jax.lax.padtype_to_pads`: the output has ceil(size / stride)
    elements, and an odd number of padded elements puts the extra one at the end.
    """
    if not isinstance(padding, str):
        return padding
    if padding == "VALID":
        return ((0, 0),) * len(kernel)

    def same(n: int, k: int, stride: int, dil: int) -> tuple[int, int]:
        total = max((-(-n // stride) - 1) * stride + (k - 1) * dil + 1 - n, 0)
        return total // 2, total - total // 2

    return tuple(same(*v) for v in zip(size, kernel, strides, dilation, strict=True))


def padded_channels(channels: int) -> int:
    """Channels stored for ``channels`` logical ones: a pure function, equal on every machine.

    Measured on an H200 (tests/bench/results/h200/channels.json): up to 32 channels the kernels
    that take C % 4 == 0 win, best in steps of 8; above that those that read 64 at a time.
    """
    step = 4 if channels <= 4 else 8 if channels <= 32 else 64
    return -(-channels // step) * step
