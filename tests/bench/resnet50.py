"""Time the whole of ResNet-50 on this GPU: int8 by jax_qconv, JAX in bf16, PyTorch, others.

    python tests/bench/resnet50.py --batch 128 1 --out tests/bench/results/h100

Random weights, real shapes. Writes resnet50.json with every sample, again after each group of
systems, and goes on from one of the same commit, versions and device.
"""

from __future__ import annotations

import argparse
import functools
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

if __name__ == "__main__":
    # PyTorch's systems need memory too.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    # In place of this folder, whose `layers` is another file than that of the tests.
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

import jax
import jax.numpy as jnp
import numpy as np
from bench import resnet50_jax, resnet50_torch
from bench.record import clocks, earlier, error_text, origin, write
from bench.resnet50_jax import OUT_SCALE, images
from bench.resnet50_net import CLASSES
from bench.timing import GRAPH

CALLS, REPEATS = 20, 7

METHOD = f"""\
ms is the wall clock around {CALLS} forward passes, dispatched one after another on the same input,
over their number: the least of {REPEATS} repeats, which take turns with those of the other systems
of a group; ms_median is their median, ms_spread what lies between the least and the most over it.
int8_ms is that of int8 in the same group, which speedup_of_int8 compares with. host_us is the time
until such a call returns. With _graph, JAX's convolutions are put into CUDA graphs too, which XLA
leaves out by default; with _blocks, the first layer is one of 4x4 on blocks of 2x2 pixels.
xla_int8 has int8 between all layers and the epilogues in jax.numpy, xla_int8_fused with XLA's
experimental fusion of convolutions; qwix has float32 between them. torch_bf16_compiled is that of
torch.compile in a CUDA graph. exact: at batch 2 all outputs are bit for bit those of
implementation='reference'."""


class Net:
    """A compiled network and its input."""

    def __init__(
        self,
        net: tuple[Any, Any],
        x: jax.Array,
        *,
        graph: str | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        run, params = net
        options = dict(options or {})
        if graph is not None:
            options["xla_gpu_enable_command_buffer"] = graph
        # Not compiled ahead of time: calls of jitted functions take less of the host.
        self.compiled = jax.jit(run, compiler_options=options if _on_gpu() else None)
        self.arguments = params, x

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
    run, params = resnet50_jax.int8_net()
    x = images(batch)
    outs = [
        jax.jit(functools.partial(run, implementation=name))(params, x)
        for name in (None, "reference")
    ]
    return bool((outs[0] == outs[1]).all()) and len(np.unique(np.asarray(outs[0]))) > CLASSES // 2


def _int8(batch: int, *, graph: str | None) -> Net:
    return Net(resnet50_jax.int8_net(), images(batch), graph=graph)


def _bf16(batch: int, *, blocks: bool, graph: str | None) -> Net:
    return Net(
        resnet50_jax.bf16_net(blocks=blocks), images(batch).astype(jnp.bfloat16), graph=graph
    )


def _xla_int8(batch: int, *, fused: bool) -> Net:
    options = {"xla_gpu_experimental_enable_conv_fusion": True} if fused else {}
    return Net(resnet50_jax.xla_int8_net(), images(batch), graph=GRAPH, options=options)


def _qwix(batch: int) -> Net:
    x = images(batch).astype(jnp.float32) * OUT_SCALE
    return Net(resnet50_jax.qwix_net(), x, graph=GRAPH)


NETS: dict[str, Callable[[int], Any]] = {
    "int8": lambda n: _int8(n, graph=None),
    "bf16": lambda n: _bf16(n, blocks=False, graph=None),
    "bf16_graph": lambda n: _bf16(n, blocks=False, graph=GRAPH),
    "bf16_blocks": lambda n: _bf16(n, blocks=True, graph=None),
    "bf16_blocks_graph": lambda n: _bf16(n, blocks=True, graph=GRAPH),
    "seed": lambda n: resnet50_torch.seed(n),
    "torch_bf16_graph": lambda n: resnet50_torch.bf16(n, graph=True),
    "torch_bf16": lambda n: resnet50_torch.bf16(n, graph=False),
    "torch_bf16_compiled": lambda n: resnet50_torch.bf16(n, graph=True, compiled=True),
    "int8_without_graph": lambda n: _int8(n, graph=""),
    "xla_int8": lambda n: _xla_int8(n, fused=False),
    "xla_int8_fused": lambda n: _xla_int8(n, fused=True),
    "qwix": lambda n: _qwix(n),
}
"""The systems, the ones that matter most first. int8's calls are put into CUDA graphs by default.
The seed is PyTorch's quantized::conv2d, in eager mode, which is all it has."""

CORE = tuple(NETS)[:6]
"""Timed by turns, all of them. The others take turns with int8 alone: one that takes long to
compile keeps no result waiting."""


def groups(chosen: Sequence[str], done: Sequence[str]) -> Iterator[list[str]]:
    """What takes turns, in order, of the systems that are chosen and not done; int8 always."""
    todo = [name for name in chosen if name not in done]
    core = [name for name in todo if name in CORE]
    if core:
        yield list(dict.fromkeys(["int8", *core]))
    for name in todo:
        if name not in core:
            yield ["int8", name]


def measure(nets: dict[str, Any], batch: int, chosen: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each system, timed by turns; ``nets`` has those that were made, and gets others."""
    rows: dict[str, dict[str, Any]] = {name: {"system": name, "batch": batch} for name in chosen}
    for name in chosen:
        start = time.perf_counter()
        try:
            if name not in nets:
                nets[name] = NETS[name](batch)
            nets[name].execute(3)
        except Exception as error:
            nets.pop(name, None)
            rows[name]["error"] = error_text(error)
        rows[name]["seconds_to_compile"] = time.perf_counter() - start
    samples: dict[str, list[float]] = {name: [] for name in chosen if name in nets}
    for _ in range(REPEATS):
        for name, times in samples.items():
            times.append(nets[name].execute(CALLS))
    for name, times in samples.items():
        ms, median = min(times) / 1e3, statistics.median(times) / 1e3
        rows[name] |= {"ms": ms, "ms_median": median, "images_per_s": batch / ms * 1e3}
        rows[name] |= {"ms_spread": max(times) / 1e3 / median - ms / median, "samples_us": times}
        if isinstance(nets[name], Net):
            rows[name]["host_us"] = nets[name].host_us(CALLS)
        if name != "int8" and "int8" in samples:
            int8_ms = min(samples["int8"]) / 1e3
            rows[name] |= {"int8_ms": int8_ms, "speedup_of_int8": ms / int8_ms}
    return list(rows.values())


def main() -> int | str:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 1], help="sizes (128 1)")
    parser.add_argument("--systems", nargs="+", choices=NETS, default=list(NETS), help="these only")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of resnet50.json")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "resnet50.json"
    head = origin(jax.devices()[0])
    results = earlier(path, head)
    if results is None:
        results = head | {"method": " ".join(METHOD.split()), "clocks_before": clocks()}
        results |= {"exact": exact(2), "rows": []}
    rows = {(row["batch"], row["system"]): row for row in results["rows"]}
    for batch in args.batch:
        done = [name for size, name in rows if size == batch]
        nets: dict[str, Any] = {}
        for group in groups([n for n in NETS if n in args.systems], done):
            for row in measure(nets, batch, group):
                rows.setdefault((batch, row["system"]), row)
                print(line(row), flush=True)
            nets = {name: net for name, net in nets.items() if name == "int8"}
            results |= {"rows": list(rows.values()), "clocks_after": clocks()}
            write(path, results)
    return 0 if results["exact"] else "the int8 network differs from the reference"


def line(row: dict[str, Any]) -> str:
    """A row for the terminal."""
    figure = f"{row['ms']:9.3f} ms {row['images_per_s']:9.0f} images/s" if "ms" in row else ""
    return f"{row['system']:20} x{row['batch']:<4} {figure} {row.get('error', '')[:100]}"


if __name__ == "__main__":
    sys.exit(main())
