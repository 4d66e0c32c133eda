"""Time the whole of ResNet-50 on this GPU: int8 by jax_qconv, JAX in bf16, PyTorch.

    python tests/bench/resnet50.py --batch 128 1 --out tests/bench/results/h200

Random weights, real shapes. Writes resnet50.json with every sample.
"""

from __future__ import annotations

import argparse
import functools
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

if __name__ == "__main__":
    # PyTorch's systems need memory too.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    # In place of this folder, whose `layers` is another file than that of the tests.
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

import jax
import jax.numpy as jnp
import numpy as np
from bench import resnet50_torch
from bench.layers import origin, write
from bench.resnet50_net import CLASSES, CONVS, forward
from bench.timing import GRAPH

import jax_qconv

CALLS, REPEATS = 20, 7
OUT_SCALE = 0.05

METHOD = f"""\
ms is the wall clock around {CALLS} forward passes, dispatched one after another on the same input,
over their number: the least of {REPEATS} repeats, which take turns with those of the other systems.
host_us is the time until such a call returns. exact: at batch 2 all outputs are bit for bit those
of implementation='reference'."""


def int8_net(rng: np.random.Generator) -> tuple[Any, Any]:
    """int8 between all layers, as a user would write it: bound packs, residuals as QTensors."""
    packed = {}
    for conv in CONVS:
        shape = (conv.kernel, conv.kernel, conv.c, conv.k)
        packed[conv.name] = jax_qconv.prepack(
            rng.normal(0, conv.taps**-0.5, shape).astype(np.float32),
            rng.normal(0, 0.3, conv.k).astype(np.float32),
            strides=conv.stride,
            padding=conv.kernel // 2,
        ).bind(
            x_scale=OUT_SCALE,
            out_scale=OUT_SCALE,
            residual_scale=OUT_SCALE if conv.residual else None,
            activation="relu" if conv.relu else None,
        )
    dense = jnp.asarray(rng.normal(0, 0.02, (2048, CLASSES)), jnp.bfloat16)

    def run(params: Any, x: jax.Array, **engine: Any) -> jax.Array:
        packed, dense = params

        def pool(q: jax_qconv.QTensor) -> jax_qconv.QTensor:
            return jax_qconv.QTensor(_max_pool(q.values, np.int8(-128)), q.scale, None, q.channels)

        def head(q: jax_qconv.QTensor) -> jax.Array:
            means = q.values.astype(jnp.int32).sum((1, 2)).astype(jnp.float32) * (OUT_SCALE / 49)
            return means.astype(jnp.bfloat16) @ dense

        def conv(name: str, q: Any, residual: Any = None) -> jax_qconv.QTensor:
            return jax_qconv.qconv(q, packed[name], residual=residual, **engine)

        return forward(x, conv, pool, head)

    return run, (packed, dense)


def bf16_net(rng: np.random.Generator, *, space_to_depth: bool) -> Any:
    """JAX's convolutions; biases, ReLU and residuals as a user would write them."""
    params = {}
    for conv in CONVS:
        shape = (conv.k, conv.kernel, conv.kernel, conv.c)  # OHWI, which XLA needn't transpose
        weight = jnp.asarray(rng.normal(0, conv.taps**-0.5, shape), jnp.bfloat16)
        params[conv.name] = weight, jnp.asarray(rng.normal(0, 0.3, conv.k), jnp.bfloat16)
    dense = jnp.asarray(rng.normal(0, 0.02, (2048, CLASSES)), jnp.bfloat16)
    by_name = {conv.name: conv for conv in CONVS}

    def run(params: Any, x: jax.Array) -> jax.Array:
        params, dense = params

        def convolve(x: jax.Array, weight: jax.Array, stride: int, pad: int) -> jax.Array:
            return jax.lax.conv_general_dilated(
                x,
                weight,
                (stride, stride),
                ((pad, pad), (pad, pad)),
                dimension_numbers=("NHWC", "OHWI", "NHWC"),
            )

        def conv(name: str, x: jax.Array, residual: Any = None) -> jax.Array:
            weight, bias = params[name]
            this = by_name[name]
            if name == "stem" and space_to_depth:
                y = convolve(*_two_by_two(x, weight), 1, 0)
            else:
                y = convolve(x, weight, this.stride, this.kernel // 2)
            y = y + bias[None, None, None]
            if residual is not None:
                y = y + residual
            return jax.nn.relu(y) if this.relu else y

        def pool(x: jax.Array) -> jax.Array:
            return _max_pool(x, x.dtype.type(-jnp.inf))

        def head(x: jax.Array) -> jax.Array:
            return x.mean((1, 2)) @ dense

        return forward(x, conv, pool, head)

    return run, (params, dense)


def _two_by_two(x: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """7x7 with stride 2 as 4x4 with stride 1 on blocks of 2x2 pixels."""
    x = jnp.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0)))
    n, h, w, c = x.shape
    x = x.reshape(n, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
    weight = jnp.pad(weight, ((0, 0), (0, 1), (0, 1), (0, 0)))
    weight = weight.reshape(-1, 4, 2, 4, 2, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, h // 2, w // 2, 4 * c), weight.reshape(-1, 4, 4, 4 * c)


def _max_pool(x: jax.Array, least: Any) -> jax.Array:
    pads = ((0, 0), (1, 1), (1, 1), (0, 0))
    return jax.lax.reduce_window(x, least, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), pads)


class Net:
    """A compiled network and its input."""

    def __init__(self, run: Any, params: Any, x: jax.Array, *, graph: str | None) -> None:
        options = {} if graph is None else {"xla_gpu_enable_command_buffer": graph}
        # Not compiled ahead of time: calls of jitted functions take less of the host.
        self.compiled = jax.jit(run, compiler_options=options if _on_gpu() else None)
        self.arguments = params, x
        self.calls = 1

    def execute(self, times: int) -> float:
        """Microseconds of a forward pass, the mean of so many."""
        start = time.perf_counter()
        for _ in range(times):
            out = self.compiled(*self.arguments)
        jax.block_until_ready(out)
        return (time.perf_counter() - start) * 1e6 / times

    def host_us(self, times: int) -> float:
        """Microseconds that a call takes of the host: until it returns, unfinished."""
        jax.block_until_ready(self.compiled(*self.arguments))
        start = time.perf_counter()
        outs = [self.compiled(*self.arguments) for _ in range(times)]
        taken = (time.perf_counter() - start) * 1e6 / times
        jax.block_until_ready(outs)
        return taken


def _on_gpu() -> bool:
    return jax.default_backend() == "gpu"


def exact(batch: int) -> bool:
    """Whether the int8 network's outputs are those of the reference, bit for bit."""
    run, params = int8_net(np.random.default_rng(0))
    x = images(batch)
    outs = [
        jax.jit(functools.partial(run, implementation=name))(params, x)
        for name in (None, "reference")
    ]
    return bool((outs[0] == outs[1]).all()) and len(np.unique(np.asarray(outs[0]))) > CLASSES // 2


def images(batch: int) -> jax.Array:
    """``[N, 224, 224, 3; int8]``, random."""
    rng = np.random.default_rng(1)
    return jnp.asarray(rng.integers(-128, 128, (batch, 224, 224, 3), np.int8))


NETS: dict[str, Callable[[int], Any]] = {
    "int8": lambda n: Net(*int8_net(np.random.default_rng(0)), images(n), graph=None),
    "int8_without_graph": lambda n: Net(*int8_net(np.random.default_rng(0)), images(n), graph=""),
    "bf16": lambda n: _bf16(n, space_to_depth=False, graph=None),
    "bf16_graph": lambda n: _bf16(n, space_to_depth=False, graph=GRAPH),
    "bf16_s2d": lambda n: _bf16(n, space_to_depth=True, graph=None),
    "bf16_s2d_graph": lambda n: _bf16(n, space_to_depth=True, graph=GRAPH),
    "torch_bf16_graph": lambda n: resnet50_torch.bf16(n, graph=True),
    "torch_bf16": lambda n: resnet50_torch.bf16(n, graph=False),
    "seed": lambda n: resnet50_torch.seed(n),
}
"""The systems. With ``graph``, convolutions of JAX are put into CUDA graphs too; ours are by
default. The seed is PyTorch's quantized::conv2d, in eager mode, which is all it has."""


def _bf16(batch: int, *, space_to_depth: bool, graph: str | None) -> Net:
    run, params = bf16_net(np.random.default_rng(0), space_to_depth=space_to_depth)
    return Net(run, params, images(batch).astype(jnp.bfloat16), graph=graph)


def measure(batch: int, chosen: list[str]) -> list[dict[str, Any]]:
    """A row for each system, timed by turns."""
    nets: dict[str, Any] = {}
    rows = {name: {"system": name, "batch": batch} for name in chosen}
    for name in chosen:
        try:
            nets[name] = NETS[name](batch)
            nets[name].execute(3)
        except Exception as error:
            nets.pop(name, None)
            rows[name]["error"] = f"{type(error).__name__}: {error}"[:1000]
    samples: dict[str, list[float]] = {name: [] for name in nets}
    for _ in range(REPEATS):
        for name, net in nets.items():
            samples[name].append(net.execute(CALLS))
    for name, times in samples.items():
        ms = min(times) / 1e3
        rows[name] |= {"ms": ms, "ms_median": statistics.median(times) / 1e3}
        rows[name] |= {"images_per_s": batch / ms * 1e3, "samples_us": times}
        if isinstance(nets[name], Net):
            rows[name]["host_us"] = nets[name].host_us(CALLS)
    return list(rows.values())


def main() -> int | str:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 1], help="sizes (128 1)")
    parser.add_argument("--systems", nargs="+", choices=NETS, default=list(NETS), help="these only")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of resnet50.json")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    results = origin(jax.devices()[0]) | {"exact": exact(2), "rows": rows}
    results["method"] = " ".join(METHOD.split())
    for batch in args.batch:
        rows += measure(batch, args.systems)
        write(args.out / "resnet50.json", results)
    for row in rows:
        figure = f"{row['ms']:9.3f} ms {row['images_per_s']:9.0f} images/s" if "ms" in row else ""
        print(f"{row['system']:20} x{row['batch']:<4} {figure} {row.get('error', '')[:100]}")
    return 0 if results["exact"] else "the int8 network differs from the reference"


if __name__ == "__main__":
    sys.exit(main())
