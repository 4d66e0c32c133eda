"""Where windows lie on the spatial axes: strides, padding, dilation, ceil_mode. No arrays."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np

from jax_qconv._spec import is_int

AXES = {1: ("width",), 2: ("height", "width"), 3: ("depth", "height", "width")}
"""Names of the spatial axes, by their number."""

_PADDING = (
    "padding must be an int, or for each of {axes} an int or a (before, after) pair, got "
    "{padding!r}."
)

Ints = tuple[int, ...]
Pads = tuple[tuple[int, int], ...]


def as_ints(name: str, value: int | Sequence[int], *, rank: int, minimum: int) -> Ints:
    """Normalise an int, or one for each spatial axis, each at least ``minimum``."""
    ints = (value,) * rank if is_int(value) else value
    if not _is_sequence(ints, rank) or not all(is_int(v) for v in ints):
        raise TypeError(
            f"{name} must be an int or {rank} of them ({', '.join(AXES[rank])}), got {value!r}."
        )
    if min(ints) < minimum:
        raise ValueError(f"{name} must be at least {minimum} in each dimension, got {value!r}.")
    return tuple(int(v) for v in ints)


def as_pads(padding: int | Sequence[Any], *, rank: int) -> Pads:
    """Normalise an int, or an int or a (before, after) pair for each spatial axis."""
    sides = (padding,) * rank if is_int(padding) else padding
    if not _is_sequence(sides, rank):
        raise TypeError(_PADDING.format(axes=", ".join(AXES[rank]), padding=padding))
    pads = []
    for side in sides:
        pair = (side, side) if is_int(side) else side
        if not _is_sequence(pair, 2) or not all(is_int(v) for v in pair):
            raise TypeError(_PADDING.format(axes=", ".join(AXES[rank]), padding=padding))
        if min(pair) < 0:
            raise ValueError(f"padding must be at least 0 on each side, got {padding!r}.")
        pads.append((int(pair[0]), int(pair[1])))
    return tuple(pads)


def _is_sequence(value: Any, length: int) -> TypeGuard[Sequence[Any]]:
    return (
        isinstance(value, Sequence) and not isinstance(value, str | bytes) and len(value) == length
    )


@dataclasses.dataclass(frozen=True)
class Windows:
    """The windows along one spatial axis.

    Attributes:
        name: of the axis.
        size: elements of the input.
        window: elements that a window takes.
        stride: elements from one window to the next.
        dilation: elements from one that a window takes to the next.
        pads: elements that are added (before, after), as the caller means it.
        ceil_mode: whether a last window may reach beyond the padding, as long as it starts
            within the input or the padding before it. It is PyTorch's.
    """

    name: str
    size: int
    window: int
    stride: int
    dilation: int
    pads: tuple[int, int]
    ceil_mode: bool

    @classmethod
    def make(
        cls,
        sizes: Sequence[int],
        *,
        window: int | Sequence[int],
        strides: int | Sequence[int] | None,
        padding: str | int | Sequence[Any],
        dilation: int | Sequence[int] = 1,
        ceil_mode: bool = False,
    ) -> tuple[Windows, ...]:
        """Read the arguments of a pool over axes of ``sizes``; strides None are the window.

        Raises:
            TypeError, ValueError: if one of them isn't as it must be, naming it.
        """
        rank = len(sizes)
        window = as_ints("window", window, rank=rank, minimum=1)
        strides = as_ints("strides", window if strides is None else strides, rank=rank, minimum=1)
        dilation = as_ints("dilation", dilation, rank=rank, minimum=1)
        if not isinstance(ceil_mode, bool):
            raise TypeError(f"ceil_mode must be True or False, got {ceil_mode!r}.")
        if isinstance(padding, str):
            if padding.upper() not in ("SAME", "VALID"):
                raise ValueError(
                    f"padding={padding!r} is not known; use 'SAME', 'VALID', an int, or for each "
                    f"of {', '.join(AXES[rank])} an int or a (before, after) pair."
                )
            same = padding.upper() == "SAME"
            numbers = zip(sizes, window, strides, dilation, strict=True)
            pads = tuple(_same(*v) if same else (0, 0) for v in numbers)
        else:
            pads = as_pads(padding, rank=rank)
        columns = zip(AXES[rank], sizes, window, strides, dilation, pads, strict=True)
        windows = tuple(cls(*column, ceil_mode=ceil_mode) for column in columns)
        for each in windows:
            each.check()
        return windows

    @property
    def extent(self) -> int:
        """Elements from the first to the last of a window."""
        return (self.window - 1) * self.dilation + 1

    @property
    def count(self) -> int:
        """How many windows there are."""
        before, after = self.pads
        room = self.size + before + after - self.extent
        if not self.ceil_mode:
            return room // self.stride + 1
        return min(-(-room // self.stride) + 1, -(-(self.size + before) // self.stride))

    @property
    def needed_pads(self) -> tuple[int, int]:
        """Padding (before, after) that holds all windows and no more."""
        before, _ = self.pads
        end = (self.count - 1) * self.stride + self.extent
        return before, max(end - before - self.size, 0)

    @property
    def inside(self) -> np.ndarray:
        """How many elements of the input each window takes."""
        return _taken(self, 0, self.size)

    @property
    def inside_or_padding(self) -> np.ndarray:
        """How many elements of the input and its padding each window takes."""
        before, after = self.pads
        return _taken(self, -before, self.size + after)

    def check(self) -> None:
        """Raise ValueError where a window doesn't fit, or sees nothing but padding."""
        before, after = self.pads
        if self.extent > self.size + before + after:
            raise ValueError(
                f"window {self.window} with dilation {self.dilation} spans {self.extent} elements "
                f"of the {self.name}, more than the padded input's {self.size} + {before} + "
                f"{after}; make the window smaller, or enlarge padding or x."
            )
        if not self.inside.all():
            raise ValueError(
                f"padding {self.pads} of the {self.name} gives windows that hold padding only "
                f"(window {self.window}, dilation {self.dilation}, {self.size} elements); make "
                "padding smaller than the window."
            )


def _same(size: int, window: int, stride: int, dilation: int) -> tuple[int, int]:
    """The padding of `jax.lax.padtype_to_pads`: the odd element goes to the end."""
    total = max((-(-size // stride) - 1) * stride + (window - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


@functools.lru_cache(maxsize=256)
def _taken(windows: Windows, low: int, high: int) -> np.ndarray:
    starts = np.arange(windows.count) * windows.stride - windows.pads[0]
    # The first element at or after a position, counted from the window's own first.
    first, end = (
        np.clip(-((starts - position) // windows.dilation), 0, windows.window)
        for position in (low, high)
    )
    return end - first


def bins(size: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """First element and the one after the last of each of ``count`` bins, as PyTorch has them.

    Bin i goes from floor(i * size / count) to ceil((i + 1) * size / count): neighbours overlap
    by one element where the size isn't a multiple.
    """
    index = np.arange(count)
    return index * size // count, -(-(index + 1) * size // count)
