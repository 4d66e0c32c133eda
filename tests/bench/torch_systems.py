"""PyTorch's convolutions, timed as the others are: on memory of their own, by turns.

The seed is `quantized::conv2d` on CUDA, which this package grew from. It runs in eager mode only.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from bench import systems, timing
from bench.roofline import out_shape

IN_SCALE, OUT_SCALE = 1.0, 5000.0
"""Of the seed's tensors; times don't depend on them."""


class Program:
    """Calls that take turns on sets of buffers; with the interface of `timing.Program`."""

    def __init__(self, make: Callable[[], Callable[[], Any]], *, nbytes: int, graph: bool) -> None:
        import torch

        self.torch = torch
        count = timing.calls_of_round(nbytes)
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


def release() -> None:
    """Gives memory that is free again back to the GPU, where JAX needs it."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.cuda.empty_cache()


def bf16(data: systems.Data, *, graph: bool, compiled: bool = False) -> Program:
    """`bf16_call` in eager mode or through torch.compile, one by one or in a CUDA graph."""
    import torch

    torch.backends.cudnn.benchmark = True
    call = bf16_call(data)
    if compiled:
        # Each layer is compiled anew; at most eight variants of a function are kept.
        torch.compiler.reset()
        call = torch.compile(call, dynamic=False)
    return Program(_with_copies(call, bf16_operands(data, "cuda")), **_size(data, 2), graph=graph)


def seed(data: systems.Data) -> Program:
    """`quantized::conv2d[_relu]`, and `quantized::add_relu` where there is a residual."""
    import torch

    layer, ops = data.layer, torch.ops.quantized
    conv = ops.conv2d_relu if layer.relu and not layer.residual else ops.conv2d
    add = ops.add_relu if layer.relu else ops.add
    pads, by = [layer.r // 2, layer.s // 2], [layer.stride] * 2

    def quantized(integers: Any) -> Any:
        if integers is None:
            return None
        return torch._make_per_tensor_quantized_tensor(integers, IN_SCALE, 0)

    x, weight, bias, residual = integer_operands(data, "cuda")
    x, weight, residual = map(quantized, (x, weight, residual))

    def make() -> Callable[[], Any]:
        x_, r = x.clone(), None if residual is None else residual.clone()
        packed = ops.conv2d_prepack(weight.clone(), bias, by, pads, [1, 1], layer.groups)
        if r is None:
            return lambda: conv(x_, packed, OUT_SCALE, 0)
        return lambda: add(conv(x_, packed, OUT_SCALE, 0), r, OUT_SCALE, 0)

    return Program(make, **_size(data, 1), graph=False)


def bf16_call(data: systems.Data) -> Callable[..., Any]:
    """`torch.nn.functional.conv2d` and what follows, of x, weight, bias, residual or None."""
    import torch

    layer = data.layer
    pads = layer.r // 2, layer.s // 2

    def call(x: Any, weight: Any, bias: Any, residual: Any) -> Any:
        placed = {"stride": layer.stride, "padding": pads, "groups": layer.groups}
        y = torch.nn.functional.conv2d(x, weight, bias, **placed)
        y = y if residual is None else y.add_(residual)
        return y.relu_() if layer.relu else y

    return call


def bf16_operands(data: systems.Data, device: str) -> tuple[Any, ...]:
    """The layer's integers as bfloat16."""
    import torch

    operands = integer_operands(data, device)
    return tuple(None if v is None else v.to(torch.bfloat16) for v in operands)


def integer_operands(data: systems.Data, device: str) -> tuple[Any, ...]:
    """x, weights, bias (float32) and residual or None, those of JAX; what torch calls
    channels_last is NHWC data seen as NCHW."""
    import torch

    def tensor(array: jax.Array) -> Any:
        return torch.tensor(np.asarray(array), device=device)

    x, weight, bias = systems.unpadded(data)
    x, weight, residual = (
        None if v is None else tensor(v).permute(0, 3, 1, 2) for v in (x, weight, data.residual)
    )
    return x, weight, tensor(bias), residual


def _with_copies(call: Callable[..., Any], operands: tuple[Any, ...]) -> Callable[[], Any]:
    """Makes calls on operands of their own."""

    def make() -> Callable[[], Any]:
        own = [None if v is None else v.clone() for v in operands]
        return lambda: call(*own)

    return make


def _size(data: systems.Data, itemsize: int) -> dict[str, int]:
    x = math.prod(data.x.shape[:3]) * data.layer.c
    out = math.prod(out_shape(data.layer, data.x.shape[0]))
    return {"nbytes": itemsize * (x + out * (2 if data.layer.residual else 1))}
