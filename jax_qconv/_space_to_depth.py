"""Strided convolutions of few channels as dense ones: blocks of pixels become channels.

Hopper's matrix units want many input channels; the first layer of a network has three. Cut the
(padded) input into blocks of b x b pixels, b = strides * phases, and a convolution by blocks gives
the same integer sums, with all phases x phases outputs of a block as channels. For 7x7 with stride
2: 4x4 blocks of 4 channels, a 3x3 convolution from 64 to 4 K channels, and depth to space. A kernel
as large as its strides needs one phase: then it is a reshape and a 1x1 convolution.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jax_qconv._arrays import reshape_images
from jax_qconv._spec import Ints, Padding, Pads, resolve_padding


@dataclasses.dataclass(frozen=True)
class Blocks:
    """How a convolution is cut; a static part of its pack.

    Attributes:
        kernel: (R, S) of the convolution.
        strides: (height, width) of the convolution.
        channels: C as stored.
    """

    kernel: Ints
    strides: Ints
    channels: int

    @property
    def phases(self) -> Ints:
        """Outputs of a block along height and width."""
        return (1, 1) if self.kernel == self.strides else (2, 2)

    @property
    def size(self) -> Ints:
        """(height, width) of a block in pixels."""
        return self.strides[0] * self.phases[0], self.strides[1] * self.phases[1]

    @property
    def count(self) -> int:
        """Outputs of a block: its share of the output channels has as many parts."""
        return self.phases[0] * self.phases[1]

    @property
    def blocked_kernel(self) -> Ints:
        """(R, S) in blocks: from the first pixel of the first phase to the last of the last."""
        last = [
            (phases - 1) * stride + kernel - 1
            for phases, stride, kernel in zip(self.phases, self.strides, self.kernel, strict=True)
        ]
        return last[0] // self.size[0] + 1, last[1] // self.size[1] + 1

    def weight(self, weight: jax.Array) -> jax.Array:
        """``[K, R, S, C]`` to ``[phases * K, R', S', block * C]``."""
        k, r, s, _ = weight.shape
        (rows, columns), (height, width) = self.blocked_kernel, self.size
        parts = []
        for i in range(self.phases[0]):
            for j in range(self.phases[1]):
                top, left = i * self.strides[0], j * self.strides[1]
                below = rows * height - r - top, columns * width - s - left
                pads = ((0, 0), (top, below[0]), (left, below[1]), (0, 0))
                parts.append(jnp.pad(weight, pads))
        split = jnp.concatenate(parts).reshape(-1, rows, height, columns, width, self.channels)
        return split.transpose(0, 1, 3, 2, 4, 5).reshape(self.count * k, rows, columns, -1)

    def unweight(self, weight: jax.Array) -> jax.Array:
        """The opposite of `weight`; the first phase holds all of it."""
        (rows, columns), (height, width) = self.blocked_kernel, self.size
        first = weight[: weight.shape[0] // self.count]
        split = first.reshape(-1, rows, columns, height, width, self.channels)
        whole = split.transpose(0, 1, 3, 2, 4, 5)
        whole = whole.reshape(-1, rows * height, columns * width, self.channels)
        return whole[:, : self.kernel[0], : self.kernel[1]]

    def out_size(self, size: Ints, padding: Padding) -> Ints:
        """(P, Q) of the convolution, for an input of ``size`` (H, W)."""
        pads = resolve_padding(padding, size, self.kernel, self.strides, (1, 1))
        axes = zip(size, self.kernel, self.strides, pads, strict=True)
        return tuple((n + sum(pad) - k) // stride + 1 for n, k, stride, pad in axes)

    def padding(self, size: Ints, padding: Padding) -> Pads:
        """Of the dense convolution: none, `x` has brought it in."""
        del size, padding
        return (0, 0), (0, 0)

    def x(self, x: jax.Array, padding: Padding, fill: Any = 0) -> jax.Array:
        """``[N, H, W, C]`` to ``[N, H', W', block * C]``, the padding brought in.

        Args:
            x: channels as stored.
            padding: of the convolution.
            fill: ``[; int8]`` what a real zero is.
        """
        n, *image, _ = x.shape
        pads = resolve_padding(padding, tuple(image), self.kernel, self.strides, (1, 1))
        rows, columns = (
            -(-out // phases) + kernel - 1
            for out, phases, kernel in zip(
                self.out_size(tuple(image), padding), self.phases, self.blocked_kernel, strict=True
            )
        )
        height, width = self.size
        (top, _), (left, _) = pads
        bottom = rows * height - top - x.shape[1]
        right = columns * width - left - x.shape[2]
        # A stride may leave pixels at the end that no output sees: those are cut off.
        x = x[:, : x.shape[1] + min(bottom, 0), : x.shape[2] + min(right, 0)]
        sides = ((0, 0), (top, max(bottom, 0)), (left, max(right, 0)), (0, 0))
        x = jnp.pad(x, sides, constant_values=fill)
        split = reshape_images(x, (n, rows, height, columns, width, self.channels))
        return reshape_images(
            split.transpose(0, 1, 3, 2, 4, 5), (n, rows, columns, height * width * self.channels)
        )

    def out(self, out: jax.Array, size: Ints, padding: Padding) -> jax.Array:
        """``[N, P', Q', phases * K]`` to ``[N, P, Q, K]``; ``size`` is that of the input."""
        n, rows, columns, channels = out.shape
        i, j = self.phases
        split = reshape_images(out, (n, rows, columns, i, j, channels // self.count))
        whole = reshape_images(
            split.transpose(0, 1, 3, 2, 4, 5), (n, rows * i, columns * j, channels // self.count)
        )
        p, q = self.out_size(size, padding)
        return whole[:, :p, :q]

    def residual(self, residual: jax.Array, padding: Padding) -> jax.Array:
        """The opposite of `out`, zeros where a block has more outputs than there are."""
        del padding
        n, p, q, k = residual.shape
        i, j = self.phases
        rows, columns = -(-p // i), -(-q // j)
        padded = jnp.pad(residual, ((0, 0), (0, rows * i - p), (0, columns * j - q), (0, 0)))
        split = reshape_images(padded, (n, rows, i, columns, j, k))
        return reshape_images(split.transpose(0, 1, 3, 2, 4, 5), (n, rows, columns, self.count * k))


def why_not(channels: int, strides: Ints, dilation: Ints, groups: int) -> str | None:
    """Why a convolution can't be cut into blocks; None if it can."""
    if len(strides) != 2:
        return f"it has {len(strides)} spatial axes, not 2"
    if groups != 1:
        return f"groups is {groups}, not 1"
    if dilation != (1, 1):
        return f"dilation is {dilation}, not 1"
    if min(strides) < 2:
        return f"strides are {strides}, not 2 or more"
    if channels > 4:
        return f"there are {channels} input channels, more than 4"
    return None


def pays(kernel: Ints, strides: Ints) -> bool:
    """Whether cutting into blocks is faster, for a convolution that can be cut.

    It is where it is only another view of the input. Else the engine "stem" is faster, for what
    follows a first layer in most networks: see `prepack`.
    """
    return kernel == strides
