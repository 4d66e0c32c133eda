"""Whole networks, timed by turns and written down: what their scripts share."""

from __future__ import annotations

import argparse
import functools
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from bench.record import clocks, earlier, error_text, origin, write

CALLS, REPEATS = 20, 7

METHOD = f"""\
ms is the wall clock around {CALLS} forward passes, dispatched one after another on the same input,
over their number: the least of {REPEATS} repeats, which take turns with those of the other systems
of a group; ms_median is their median, ms_spread what lies between the least and the most over it.
int8_ms is that of int8 in the same group, which speedup_of_int8 compares with. host_us is the time
until such a call returns. With _constants, the weights are constants of the program, as for
serving, not arguments, of which each costs the host time. With _graph, JAX's convolutions are put
into CUDA graphs too, which XLA leaves out by default. exact: at batch 2 all outputs are bit for bit
those of implementation='reference'."""

Systems = dict[str, Callable[[int], Any]]
"""How each is made for a batch size, those that matter most first."""


class Net:
    """A compiled network and its input."""

    def __init__(
        self,
        net: tuple[Any, Any],
        x: jax.Array,
        *,
        graph: str | None = None,
        options: dict[str, Any] | None = None,
        constants: bool = False,
    ) -> None:
        run, params = net
        if constants:
            run, params = (lambda _, x, run=run, params=params: run(params, x)), None
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


def exact(net: tuple[Any, Any], x: jax.Array) -> bool:
    """Whether the int8 network's outputs are those of the reference, bit for bit."""
    run, params = net
    outs = [
        jax.jit(functools.partial(run, implementation=name))(params, x)
        for name in (None, "reference")
    ]
    # And no constants.
    varied = len(np.unique(np.asarray(outs[0]))) > outs[0].shape[-1] // 2
    return bool((outs[0] == outs[1]).all()) and varied


def groups(chosen: Sequence[str], done: Sequence[str], core: Sequence[str]) -> Iterator[list[str]]:
    """What takes turns, in order, of the systems that are chosen and not done; int8 always.

    Those of ``core`` do so all together, the others with int8 alone: one that takes long to
    compile keeps no result waiting.
    """
    todo = [name for name in chosen if name not in done]
    together = [name for name in todo if name in core]
    if together:
        yield list(dict.fromkeys(["int8", *together]))
    for name in todo:
        if name not in core:
            yield ["int8", name]


def measure(
    systems: Systems, nets: dict[str, Any], batch: int, chosen: Sequence[str]
) -> list[dict[str, Any]]:
    """A row for each system, timed by turns; ``nets`` has those that were made, and gets others."""
    rows: dict[str, dict[str, Any]] = {name: {"system": name, "batch": batch} for name in chosen}
    for name in chosen:
        start = time.perf_counter()
        try:
            if name not in nets:
                nets[name] = systems[name](batch)
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


def timed(
    systems: Systems,
    rows: list[dict[str, Any]],
    *,
    batches: Sequence[int],
    chosen: Sequence[str],
    core: Sequence[str],
) -> Iterator[None]:
    """Add the rows that are missing, group by group."""
    for batch in batches:
        done = {row["system"] for row in rows if row["batch"] == batch}
        nets: dict[str, Any] = {}
        for group in groups(chosen, [*done], core):
            for row in measure(systems, nets, batch, group):
                rows.extend([row] if row["system"] not in done else [])
                done.add(row["system"])
                print(line(row), flush=True)
            nets = {key: net for key, net in nets.items() if key == "int8"}
            yield


def opened(folder: pathlib.Path, name: str, method: str) -> tuple[pathlib.Path, dict[str, Any]]:
    """The path of ``name``.json, and what an earlier run left there or what one begins with."""
    folder.mkdir(parents=True, exist_ok=True)
    path, head = folder / f"{name}.json", origin(jax.devices()[0])
    new = head | {"method": " ".join(method.split()), "clocks_before": clocks()}
    return path, earlier(path, head) or new


def main(
    name: str,
    systems: Systems,
    *,
    core: Sequence[str],
    batches: Sequence[int],
    exact: Callable[[], bool],
    method: str,
) -> int | str:
    """The command line of a network's script, which writes ``name``.json after each group."""
    parser = argparse.ArgumentParser(description=f"Time the whole of {name} on this GPU.")
    sizes = " ".join(map(str, batches))
    parser.add_argument("--batch", type=int, nargs="+", default=batches, help=f"sizes ({sizes})")
    parser.add_argument(
        "--systems", nargs="+", choices=systems, default=list(systems), help="these only"
    )
    parser.add_argument("--out", type=pathlib.Path, required=True, help=f"folder of {name}.json")
    args = parser.parse_args()
    path, results = opened(args.out, name, method)
    if "rows" not in results:
        results |= {"exact": exact(), "rows": []}
    chosen = [name for name in systems if name in args.systems]
    for _ in timed(systems, results["rows"], batches=args.batch, chosen=chosen, core=core):
        write(path, results | {"clocks_after": clocks()})
    return 0 if results["exact"] else "the int8 network differs from the reference"


def line(row: dict[str, Any]) -> str:
    """A row for the terminal."""
    figure = f"{row['ms']:9.3f} ms {row['images_per_s']:9.0f} images/s" if "ms" in row else ""
    return f"{row['system']:20} x{row['batch']:<4} {figure} {row.get('error', '')[:100]}"
