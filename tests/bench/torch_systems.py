"""PyTorch's convolutions, timed as the others are: on memory of their own, by turns.

The seed is `quantized::conv2d` on CUDA, which this package grew from. It runs in eager mode only.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from bench import timing
from bench.roofline import out_shape
from layers import Layer


class Program:
    """Calls that take turns on sets of buffers; with the interface of `timing.Program`."""

    def __init__(self, make: Callable[[], Callable[[], Any]], *, nbytes: int, graph: bool) -> None:
        import torch

        self.torch = torch
        count = max(math.ceil(timing.ROUND_BYTES / nbytes), timing.MIN_CALLS)
        calls = [make() for _ in range(count)]
        with torch.inference_mode():
            for call in calls[:2] * 2:
                call()
        torch.cuda.synchronize()
        self.calls = count
        if graph:
            captured = torch.cuda.CUDAGraph()
            with torch.inference_mode(), torch.cuda.graph(captured):
                self.outs = [call() for call in calls]
            self.round = captured.replay
        else:
            self.round = lambda: [call() for call in calls]

    def execute(self, times: int) -> float:
        """Microseconds of a call, the mean of so many rounds."""
        start = time.perf_counter()
        with self.torch.inference_mode():
            for _ in range(times):
                self.round()
        self.torch.cuda.synchronize()
        return (time.perf_counter() - start) * 1e6 / (times * self.calls)


def seed(layer: Layer, batch: int) -> Program:
    """`quantized::conv2d[_relu]`, and `quantized::add_relu` where there is a residual."""
    import torch

    def quantized(shape: tuple[int, ...]) -> Any:
        values = torch.from_numpy(np.random.default_rng(0).integers(-128, 128, shape, np.int8))
        # NHWC data seen as NCHW: what torch calls channels_last.
        nchw = values.cuda().permute(0, 3, 1, 2)
        return torch._make_per_tensor_quantized_tensor(nchw, 0.05, 0)

    pads, by = [layer.r // 2, layer.s // 2], [layer.stride] * 2
    bias = torch.zeros(layer.k, device="cuda")
    ops = torch.ops.quantized
    conv = ops.conv2d_relu if layer.relu and not layer.residual else ops.conv2d

    def make() -> Callable[[], Any]:
        x = quantized((batch, layer.h, layer.w, layer.c))
        weight = quantized((layer.k, layer.r, layer.s, layer.c))
        packed = ops.conv2d_prepack(weight, bias, by, pads, [1, 1], 1)
        if not layer.residual:
            return lambda: conv(x, packed, 5.0, 0)
        r = quantized(out_shape(layer, batch))
        return lambda: ops.add_relu(conv(x, packed, 5.0, 0), r, 5.0, 0)

    return Program(make, nbytes=_elements(layer, batch), graph=False)


def bf16(layer: Layer, batch: int) -> Program:
    """`torch.nn.functional.conv2d` in bfloat16, channels_last, in a CUDA graph."""
    import torch

    torch.backends.cudnn.benchmark = True

    def normal(*shape: int) -> Any:
        values = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
        return values.to(memory_format=torch.channels_last)

    bias = torch.zeros(layer.k, device="cuda", dtype=torch.bfloat16)
    pads = (layer.r // 2, layer.s // 2)
    n, p, q, k = out_shape(layer, batch)

    def make() -> Callable[[], Any]:
        x = normal(batch, layer.c, layer.h, layer.w)
        weight = normal(layer.k, layer.c, layer.r, layer.s)
        r = normal(n, k, p, q) if layer.residual else None

        def call() -> Any:
            y = torch.nn.functional.conv2d(x, weight, bias, layer.stride, pads)
            y = y if r is None else y.add_(r)
            return y.relu_() if layer.relu else y

        return call

    return Program(make, nbytes=2 * _elements(layer, batch), graph=True)


def _elements(layer: Layer, batch: int) -> int:
    x = batch * layer.h * layer.w * layer.c
    return x + math.prod(out_shape(layer, batch)) * (2 if layer.residual else 1)
