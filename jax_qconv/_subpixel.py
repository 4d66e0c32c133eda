"""Transposed convolutions as dense ones: a block of output pixels becomes channels.

A transposed convolution adds x[i] * w[r] to output i * stride + r. With r = phase + stride * t,
all ``stride`` phases of output block j are ordinary sums over x[j - t]: a convolution of stride 1
with a kernel of ceil(R / stride) elements and ``stride`` times the output channels, which then go
from depth to space. The 2x2 kernel with stride 2 of a decoder is a matrix product.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from jax_qconv._arrays import reshape_images
from jax_qconv._spec import Ints, Padding, Pads


@dataclasses.dataclass(frozen=True)
class Phases:
    """How a transposed convolution is cut; a static part of its pack.

    Attributes:
        kernel: of the transposed convolution, one for each spatial axis.
        strides: of it.
        dilation: of its kernel.
        output_padding: elements added at the end of each axis.
        channels: C as stored.
    """

    kernel: Ints
    strides: Ints
    dilation: Ints
    output_padding: Ints
    channels: int

    @property
    def count(self) -> int:
        """Phases: the output channels are there so often."""
        return math.prod(self.strides)

    @property
    def extent(self) -> Ints:
        """The kernel with its holes."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    @property
    def taps(self) -> Ints:
        """The kernel of the dense convolution."""
        return tuple(-(-e // s) for e, s in zip(self.extent, self.strides, strict=True))

    def weight(self, weight: jax.Array) -> jax.Array:
        """``[K, R, S, C]`` to ``[phases * K, R', S', C]``."""
        k, *_, c = weight.shape
        rank = len(self.kernel)
        sides = [
            (0, taps * stride - extent, dilation - 1)
            for taps, stride, extent, dilation in zip(
                self.taps, self.strides, self.extent, self.dilation, strict=True
            )
        ]
        whole = jax.lax.pad(weight, jnp.zeros((), weight.dtype), [(0, 0, 0), *sides, (0, 0, 0)])
        pairs = [n for pair in zip(self.taps, self.strides, strict=True) for n in pair]
        split = whole.reshape(k, *pairs, c)
        taps, phases = (tuple(range(first, 2 * rank + 1, 2)) for first in (1, 2))
        # The last tap comes first: it meets the earliest pixel.
        ordered = jnp.flip(split, taps).transpose(*phases, 0, *taps, 2 * rank + 1)
        return ordered.reshape(self.count * k, *self.taps, c)

    def unweight(self, weight: jax.Array) -> jax.Array:
        """The opposite of `weight`."""
        k, rank, c = weight.shape[0] // self.count, len(self.kernel), weight.shape[-1]
        split = weight.reshape(*self.strides, k, *self.taps, c)
        taps = tuple(range(rank + 1, 2 * rank + 1))
        pairs = [axis for pair in zip(taps, range(rank), strict=True) for axis in pair]
        whole = jnp.flip(split, taps).transpose(rank, *pairs, 2 * rank + 1)
        whole = whole.reshape(k, *(t * s for t, s in zip(self.taps, self.strides, strict=True)), c)
        places = [slice(0, e, d) for e, d in zip(self.extent, self.dilation, strict=True)]
        return whole[(slice(None), *places)]

    def crop(self, padding: Padding) -> Pads:
        """How much of the whole output, of (size - 1) * stride + extent, is cut off at each end.

        Negative where zeros are added. ``"SAME"`` and ``"VALID"`` are those of
        `jax.lax.conv_transpose`: size * stride outputs, and as many more as the kernel is longer
        than its stride.
        """
        if not isinstance(padding, str):
            return tuple(
                (before, after - more)
                for (before, after), more in zip(padding, self.output_padding, strict=True)
            )
        crops = []
        for extent, stride in zip(self.extent, self.strides, strict=True):
            surplus = extent - stride
            before = max(surplus, 0) // 2 if padding == "SAME" else 0
            after = surplus - before if padding == "SAME" else min(surplus, 0)
            crops.append((before, after))
        return tuple(crops)

    def out_size(self, size: Ints, padding: Padding) -> Ints:
        """Of the transposed convolution."""
        axes = zip(size, self.strides, self.extent, self.crop(padding), strict=True)
        return tuple((n - 1) * s + e - sum(crop) for n, s, e, crop in axes)

    def padding(self, size: Ints, padding: Padding) -> Pads:
        """Of the dense convolution."""
        return tuple((max(a, 0), max(b, 0)) for a, b in self._sides(size, padding))

    def x(self, x: jax.Array, padding: Padding, fill: Any = 0) -> jax.Array:
        """``[N, H, W, C]`` without the pixels at the border that no output sees."""
        del fill
        size = x.shape[1:-1]
        sides = self._sides(size, padding)
        places = [slice(max(-a, 0), n + min(b, 0)) for n, (a, b) in zip(size, sides, strict=True)]
        return x[(slice(None), *places)]

    def _sides(self, size: Ints, padding: Padding) -> Pads:
        """What the dense convolution needs of zeros at each end; negative: of fewer pixels."""
        pads = []
        for n, stride, taps, (before, _), out in zip(
            size,
            self.strides,
            self.taps,
            self.crop(padding),
            self.out_size(size, padding),
            strict=True,
        ):
            first, rest = divmod(before, stride)
            blocks = -(-(rest + out) // stride)
            pads.append((taps - 1 - first, first + blocks - n))
        return tuple(pads)

    def _starts(self, padding: Padding) -> list[int]:
        """Where in its first block the output begins."""
        crops = zip(self.crop(padding), self.strides, strict=True)
        return [before % stride for (before, _), stride in crops]

    def out(self, out: jax.Array, size: Ints, padding: Padding) -> jax.Array:
        """``[N, P', Q', phases * K]`` to ``[N, P, Q, K]``; ``size`` is that of the input."""
        n, *blocks, channels = out.shape
        rank = len(blocks)
        split = reshape_images(out, (n, *blocks, *self.strides, channels // self.count))
        pairs = [axis for i in range(rank) for axis in (1 + i, 1 + rank + i)]
        whole = split.transpose(0, *pairs, 2 * rank + 1)
        sizes = [b * s for b, s in zip(blocks, self.strides, strict=True)]
        whole = reshape_images(whole, (n, *sizes, channels // self.count))
        starts = self._starts(padding)
        ends = [a + b for a, b in zip(starts, self.out_size(size, padding), strict=True)]
        return whole[(slice(None), *map(slice, starts, ends))]

    def residual(self, residual: jax.Array, padding: Padding) -> jax.Array:
        """The opposite of `out`, zeros where blocks hang over."""
        n, *sizes, k = residual.shape
        rank = len(sizes)
        starts = self._starts(padding)
        places = zip(starts, sizes, self.strides, strict=True)
        blocks = [-(-(start + size) // stride) for start, size, stride in places]
        sides = [
            (start, b * s - start - size)
            for start, b, s, size in zip(starts, blocks, self.strides, sizes, strict=True)
        ]
        padded = jnp.pad(residual, ((0, 0), *sides, (0, 0)))
        pairs = [x for pair in zip(blocks, self.strides, strict=True) for x in pair]
        split = reshape_images(padded, (n, *pairs, k))
        order = [*range(1, 2 * rank, 2), *range(2, 2 * rank + 1, 2)]
        return reshape_images(
            split.transpose(0, *order, 2 * rank + 1), (n, *blocks, self.count * k)
        )
