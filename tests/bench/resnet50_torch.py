"""ResNet-50 in PyTorch: bfloat16, and the seed's quantized convolutions."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from bench.resnet50_net import CLASSES, CONVS, forward


class Net:
    """A network on its input, in a CUDA graph or not."""

    def __init__(self, run: Callable[[], Any], *, graph: bool) -> None:
        import torch

        self.torch, self.run = torch, run
        with torch.inference_mode():
            for _ in range(3):
                run()
            torch.cuda.synchronize()
            if graph:
                captured = torch.cuda.CUDAGraph()
                with torch.cuda.graph(captured):
                    self.out = run()
                self.run = captured.replay

    def execute(self, times: int) -> float:
        """Microseconds of a forward pass, the mean of so many."""
        start = time.perf_counter()
        with self.torch.inference_mode():
            for _ in range(times):
                self.run()
        self.torch.cuda.synchronize()
        return (time.perf_counter() - start) * 1e6 / times


def bf16(batch: int, *, graph: bool, compiled: bool = False) -> Net:
    """channels_last, with cuDNN's benchmark mode; ``compiled`` by torch.compile."""
    import torch
    from torch.nn import functional as f

    torch.backends.cudnn.benchmark = True
    last = {"memory_format": torch.channels_last}

    def normal(*shape: int) -> Any:
        return torch.randn(shape, device="cuda", dtype=torch.bfloat16)

    weights = {
        c.name: ((normal(c.k, c.c, c.kernel, c.kernel) * c.taps**-0.5).to(**last), normal(c.k))
        for c in CONVS
    }
    by_name, dense = {c.name: c for c in CONVS}, normal(2048, CLASSES)
    x = normal(batch, 3, 224, 224).to(**last)

    def conv(name: str, x: Any, residual: Any = None) -> Any:
        this = by_name[name]
        y = f.conv2d(x, *weights[name], this.stride, this.kernel // 2)
        y = y if residual is None else y.add_(residual)
        return y.relu_() if this.relu else y

    def run() -> Any:
        return forward(
            x, conv, lambda v: f.max_pool2d(v, 3, 2, 1), lambda v: v.mean((2, 3)) @ dense
        )

    return Net(torch.compile(run, dynamic=False) if compiled else run, graph=graph)


def seed(batch: int) -> Net:
    """quantized::conv2d[_relu], add_relu and a max-pool of the dequantised integers."""
    import torch

    ops = torch.ops.quantized

    def quantized(*shape: int) -> Any:
        values = torch.randint(-128, 128, shape, dtype=torch.int8, device="cuda")
        values = values.contiguous(memory_format=torch.channels_last)
        return torch._make_per_tensor_quantized_tensor(values, 0.05, 0)

    packed = {
        c.name: ops.conv2d_prepack(
            quantized(c.k, c.c, c.kernel, c.kernel),
            torch.zeros(c.k, device="cuda"),
            [c.stride] * 2,
            [c.kernel // 2] * 2,
            [1, 1],
            1,
        )
        for c in CONVS
    }
    by_name = {c.name: c for c in CONVS}
    dense = torch.randn(2048, CLASSES, device="cuda")
    x = quantized(batch, 3, 224, 224)

    def conv(name: str, x: Any, residual: Any = None) -> Any:
        this = by_name[name]
        if residual is not None:
            return ops.add_relu(ops.conv2d(x, packed[name], 5.0, 0), residual, 5.0, 0)
        return (ops.conv2d_relu if this.relu else ops.conv2d)(x, packed[name], 5.0, 0)

    def pool(x: Any) -> Any:
        return torch.nn.functional.max_pool2d(x, 3, 2, 1)

    def head(x: Any) -> Any:
        return x.dequantize().mean((2, 3)) @ dense

    return Net(lambda: forward(x, conv, pool, head), graph=False)
