"""What a layer costs at best: its operations, its bytes, and the GPU's nominal speeds."""

from __future__ import annotations

import dataclasses
import math

from layers import Layer


@dataclasses.dataclass(frozen=True)
class Gpu:
    """Nominal speeds, of its data sheet.

    Attributes:
        ops: dense int8 operations a second; a multiply-accumulate is two.
        bandwidth: bytes a second, of its memory.
    """

    ops: float
    bandwidth: float


GPUS = {
    "NVIDIA H100 80GB HBM3": Gpu(ops=1979e12, bandwidth=3.35e12),
    "NVIDIA H200": Gpu(ops=1979e12, bandwidth=4.8e12),
}
"""By the name that JAX gives the device."""


def out_shape(layer: Layer, batch: int) -> tuple[int, int, int, int]:
    """(N, P, Q, K) of a layer's output."""
    sizes = zip((layer.h, layer.w), (layer.r, layer.s), layer.padding, strict=True)
    p, q = ((size + sum(pads) - kernel) // layer.stride + 1 for size, kernel, pads in sizes)
    return batch, p, q, layer.k


def operations(layer: Layer, batch: int) -> int:
    """Two for each multiply-accumulate, channels unpadded."""
    return 2 * math.prod(out_shape(layer, batch)) * _taps(layer)


def _taps(layer: Layer) -> int:
    """Products in a sum."""
    return layer.r * layer.s * layer.c // layer.groups


def elements(layer: Layer, batch: int) -> int:
    """Elements read and written once: x, weights, residual, output; channels unpadded."""
    x = batch * layer.h * layer.w * layer.c
    weights = layer.k * _taps(layer)
    return x + weights + math.prod(out_shape(layer, batch)) * (2 if layer.residual else 1)


def roofline_us(layer: Layer, batch: int, gpu: Gpu) -> float:
    """Microseconds that the int8 layer takes at least, by operations or by bytes."""
    # An int8 element is a byte.
    seconds = max(operations(layer, batch) / gpu.ops, elements(layer, batch) / gpu.bandwidth)
    return seconds * 1e6
