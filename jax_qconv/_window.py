"""Where windows lie on the spatial axes: strides, padding, dilation, ceil_mode. No arrays."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from jax_qconv._spec import AXES, as_ints, as_padding, resolve_padding


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
        placed = window, strides, dilation
        pads = resolve_padding(as_padding(padding, rank=rank), sizes, *placed)
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
