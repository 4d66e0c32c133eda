"""Time the convolutions of networks on this GPU: int8 by jax_qconv, other systems, the roofline.

    python tests/bench/layers.py --batch 128 1 --out tests/bench/results/h100

Writes layers.json, again after each layer, and goes on from one of the same commit, versions and
device: a layer is measured again, all systems by turns, only where one of them is missing. See
`METHOD` in timing.py for how time is taken.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import os
import pathlib
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

if __name__ == "__main__":
    # PyTorch's systems need memory too.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    # In place of this folder, whose `layers` is this file.
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

import jax
from bench import ceilings, systems, timing, torch_systems
from bench.record import clocks, earlier, error_text, origin, write
from bench.roofline import GPUS, Gpu, elements, operations, roofline_us
from layers import NETWORKS, Layer
from tqdm import tqdm

LAUNCH_US = 3.0
"""What a call takes at least, however small."""


def _jax(make: Callable[[systems.Data], systems.System]) -> Callable[[systems.Data, float], Any]:
    return lambda data, least_us: timing.Program.make(make(data), least_us=least_us)


def _torch(make: Callable[[systems.Data], Any]) -> Callable[[systems.Data, float], Any]:
    return lambda data, _: make(data)


SYSTEMS: dict[str, Callable[[systems.Data, float], Any]] = {
    "int8": _jax(lambda data: systems.int8(data)),
    "bf16": _jax(lambda data: systems.bf16(data, graph=True)),
    "bf16_without_graph": _jax(lambda data: systems.bf16(data, graph=False)),
    "bf16_blocks": _jax(lambda data: systems.bf16_blocks(data)),
    "xla_int8": _jax(lambda data: systems.xla_int8(data)),
    "xla_int8_fused": _jax(lambda data: systems.xla_int8(data, fused=True)),
    "qwix": _jax(lambda data: systems.qwix(data)),
    "torch_bf16": _torch(lambda data: torch_systems.bf16(data, graph=False)),
    "torch_bf16_graph": _torch(lambda data: torch_systems.bf16(data, graph=True)),
    "torch_bf16_compiled": _torch(lambda data: torch_systems.bf16(data, graph=True, compiled=True)),
    "seed": _torch(lambda data: torch_systems.seed(data)),
}
"""What can be compared; see `METHOD` in timing.py."""

WAYS = {
    "bf16": ("bf16", "bf16_without_graph", "bf16_blocks"),
    "torch_bf16": ("torch_bf16", "torch_bf16_graph", "torch_bf16_compiled"),
}
"""Of a system that can be used in several ways, of which the fastest counts."""

COMPARED = ("bf16", "xla_int8", "xla_int8_fused", "qwix", "torch_bf16", "seed")
"""What int8 is compared with."""

DEFAULT = ("int8", *WAYS["bf16"])


def measure(layer: Layer, batch: int, gpu: Gpu, *, chosen: Sequence[str]) -> dict[str, Any]:
    """The row of a layer; a system that fails leaves its error there instead of times."""
    start = time.perf_counter()
    row = {"name": layer.name, "batch": batch, "suites": suites_of(layer)}
    row |= dataclasses.asdict(dataclasses.replace(layer, count=1))
    row |= {"ops": operations(layer, batch), "bytes": elements(layer, batch)}
    row["roofline_us"] = roofline_us(layer, batch, gpu)
    least_us = max(row["roofline_us"], LAUNCH_US)
    data = systems.Data.make(layer, batch)
    programs = {}
    for name in applicable(layer, chosen):
        try:
            programs[name] = SYSTEMS[name](data, least_us)
            if name == "int8":
                row |= examine(systems.int8(data), programs[name])
        except Exception as error:
            row[f"{name}_error"] = error_text(error)
    row |= figures(timing.by_turns(programs), row["roofline_us"])
    programs.clear()
    torch_systems.release()
    return row | {"systems": list(chosen), "seconds": time.perf_counter() - start}


def applicable(layer: Layer, chosen: Sequence[str]) -> list[str]:
    """The systems that can have a layer."""
    return [name for name in chosen if name != "bf16_blocks" or systems.has_blocks(layer)]


def suites_of(layer: Layer) -> list[str]:
    """The networks that have a layer, however often."""
    return [name for name, network in NETWORKS.items() if layer in map(_once, network)]


def _once(layer: Layer) -> Layer:
    return dataclasses.replace(layer, count=1)


def examine(system: systems.System, program: timing.Program) -> dict[str, Any]:
    """Plan, size and exactness of the int8 program."""
    plan = re.search(r'plan = "([^"]*)"', program.hlo)
    wrong = systems.count_wrong(system, program.outs)
    n, p, q, _ = system.output.shape
    return {
        "plan": plan and plan[1],
        "calls": program.calls,
        "rounds": program.rounds,
        "elements_compared": program.calls * n * p * q * system.shared.out_channels,
        "elements_wrong": wrong,
        "exact": wrong == 0,
    }


def figures(times: dict[str, list[float]], roofline_us: float) -> dict[str, Any]:
    """The figures of a row from the repeats of each system that ran."""

    def best(name: str, prefix: str) -> dict[str, float]:
        repeats = times[name]
        least, median = min(repeats), statistics.median(repeats)
        spread = (max(repeats) - least) / median
        return {f"{prefix}us": least, f"{prefix}us_median": median, f"{prefix}us_spread": spread}

    found: dict[str, Any] = {}
    if "int8" in times:
        found |= best("int8", "") | {"repeats": times["int8"]}
        found["share_of_roofline"] = roofline_us / found["us"]
    for name in times.keys() - {"int8"}:
        found |= best(name, f"{name}_") | {f"{name}_repeats": times[name]}
    for system, ways in WAYS.items():
        ran = [name for name in ways if name in times]
        if ran:
            way = min(ran, key=lambda name: min(times[name]))
            found |= best(way, f"{system}_") | {f"{system}_way": way}
    if "int8" in times:
        for name in COMPARED:
            if f"{name}_us" in found:
                found[f"speedup_vs_{name}"] = found[f"{name}_us"] / found["us"]
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """For the terminal: microseconds of each system, a line for each layer."""
    names = [name for name in COMPARED if any(f"{name}_us" in row for row in rows)]
    lines = [f"{'layer':28} batch  roofline      int8" + "".join(f"{n:>16}" for n in names)]
    for row in rows:
        times = [row.get(key, float("nan")) for key in ("roofline_us", "us")]
        others = [row.get(f"{name}_us", float("nan")) for name in names]
        cells = [f"{us:>10.1f}" for us in times] + [f"{us:>16.1f}" for us in others]
        lines.append(f"{row['name']:28} {row['batch']:5}{''.join(cells)}")
    return "\n".join(lines)


Problem = tuple[str, bool, bool, int]


def key(row: dict[str, Any]) -> Problem:
    """What tells a row from another."""
    return row["name"], row["relu"], row["residual"], row["batch"]


def problems(suites: Sequence[str], batches: Sequence[int]) -> dict[Problem, tuple[Layer, int]]:
    """Each once, in the order in which they are measured."""
    found: dict[Problem, tuple[Layer, int]] = {}
    for batch in batches:
        for layer in (_once(layer) for suite in suites for layer in NETWORKS[suite]):
            row = dataclasses.asdict(layer) | {"name": layer.name, "batch": batch}
            found.setdefault(key(row), (layer, batch))
    return found


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 1], help="sizes (128 1)")
    parser.add_argument(
        "--suite", nargs="+", choices=NETWORKS, default=["resnet50"], help="networks (resnet50)"
    )
    parser.add_argument("--layers", nargs="+", help="layers of these names only")
    parser.add_argument(
        "--systems",
        nargs="+",
        choices=SYSTEMS,
        default=DEFAULT,
        help=f"what to compare ({' '.join(DEFAULT)})",
    )
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of layers.json")
    return parser.parse_args()


def main() -> int | str:
    args = arguments()
    device = jax.devices()[0]
    if device.device_kind not in GPUS:
        return f"{device.device_kind} is not in GPUS of tests/bench/roofline.py: {list(GPUS)}."
    gpu = GPUS[device.device_kind]
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "layers.json"
    head = origin(device)
    run = {"at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
    run |= {"clocks_before": clocks()}
    results = earlier(path, head)
    if results is None:
        results = head | {"method": " ".join(f"{timing.METHOD} {ceilings.METHOD}".split())}
        results |= {
            "nominal": dataclasses.asdict(gpu),
            **ceilings.measure(),
            "runs": [],
            "rows": [],
        }
    results["runs"].append(run)
    rows = {key(row): row for row in results["rows"]}
    with tqdm(problems(args.suite, args.batch).items(), unit="layer") as progress:
        for problem, (layer, batch) in progress:
            if args.layers is not None and layer.name not in args.layers:
                continue
            done = rows[problem]["systems"] if problem in rows else []
            if set(args.systems) <= set(done):
                continue
            progress.set_description(f"{layer.name} x{batch}")
            chosen = [name for name in SYSTEMS if name in {*done, *args.systems}]
            rows[problem] = measure(layer, batch, gpu, chosen=chosen)
            run["clocks_after"] = clocks()
            write(path, results | {"rows": list(rows.values())})
    print(table(list(rows.values())))
    failed = [f"{row['name']} x{row['batch']}" for row in rows.values() if not row.get("exact")]
    return f"failed or not exact: {', '.join(failed)}" if failed else 0


if __name__ == "__main__":
    sys.exit(main())
