"""Time the convolutions of networks on this GPU: int8 by jax_qconv, other systems, the roofline.

    python tests/bench/layers.py --batch 128 1 --out tests/bench/results/h200

Writes layers.json, again after each layer; see `METHOD` in timing.py for how time is taken.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import pathlib
import re
import statistics
import subprocess
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
from bench import systems, timing, torch_systems
from bench.roofline import GPUS, Gpu, elements, operations, roofline_us
from layers import NETWORKS, Layer
from tqdm import tqdm

import jax_qconv

LAUNCH_US = 3.0
"""What a call takes at least, however small."""


SYSTEMS: dict[str, Callable[[systems.Data, int, float], Any]] = {
    "int8": lambda data, batch, least: timing.Program.make(systems.int8(data), least_us=least),
    "bf16": lambda data, batch, least: timing.Program.make(
        systems.bf16(data, graph=True), least_us=least
    ),
    "bf16_without_graph": lambda data, batch, least: timing.Program.make(
        systems.bf16(data, graph=False), least_us=least
    ),
    "xla_int8": lambda data, batch, least: timing.Program.make(
        systems.xla_int8(data), least_us=least
    ),
    "xla_int8_fused": lambda data, batch, least: timing.Program.make(
        systems.xla_int8(data, fused=True), least_us=least
    ),
    "torch_bf16": lambda data, batch, least: torch_systems.bf16(data.layer, batch),
    "seed": lambda data, batch, least: torch_systems.seed(data.layer, batch),
}
"""What can be compared. xla_int8_fused is with XLA's experimental fusion of convolutions, seed
PyTorch's quantized::conv2d."""


def measure(layer: Layer, batch: int, gpu: Gpu, *, chosen: Sequence[str]) -> dict[str, Any]:
    """The row of a layer; a system that fails leaves its error there instead of times."""
    start = time.perf_counter()
    row = {"name": layer.name, "batch": batch, **dataclasses.asdict(layer)}
    row |= {"ops": operations(layer, batch), "bytes": elements(layer, batch)}
    row["roofline_us"] = roofline_us(layer, batch, gpu)
    least_us = max(row["roofline_us"], LAUNCH_US)
    data = systems.Data.make(layer, batch)
    programs = {}
    for name in chosen:
        try:
            programs[name] = SYSTEMS[name](data, batch, least_us)
            if name == "int8":
                row |= examine(systems.int8(data), programs[name])
        except Exception as error:
            row[f"{name}_error"] = f"{type(error).__name__}: {error}"[:1000]
    row |= figures(timing.by_turns(programs), row["roofline_us"])
    return row | {"seconds": time.perf_counter() - start}


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
        return {f"{prefix}us": min(repeats), f"{prefix}us_median": statistics.median(repeats)}

    found: dict[str, Any] = {}
    if "int8" in times:
        found |= best("int8", "")
        found["share_of_roofline"] = roofline_us / found["us"]
    ways = [name for name in ("bf16", "bf16_without_graph") if name in times]
    if ways:
        way = min(ways, key=lambda name: min(times[name]))
        found |= best(way, "bf16_") | {"bf16_graph": way == "bf16"}
        found |= {f"{name}_repeats": times[name] for name in ways}
    for name in times.keys() - {"int8", *ways}:
        found |= best(name, f"{name}_")
    if "int8" in times:
        found["repeats"] = times["int8"]
        others = {"bf16"} if ways else set()
        others |= times.keys() & {"seed", "torch_bf16"}
        found |= {f"speedup_vs_{name}": found[f"{name}_us"] / found["us"] for name in others}
    return found


def origin(device: jax.Device) -> dict[str, Any]:
    """What the figures were measured on, with what, when and how."""
    info = jax_qconv.info()
    return {
        "device": device.device_kind,
        "driver": info.driver,
        "jax": info.jax,
        "jaxlib": info.jaxlib,
        "cudnn": info.cudnn,
        "jax_qconv": info.package,
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "method": " ".join(timing.METHOD.split()),
        "nominal": dataclasses.asdict(GPUS[device.device_kind]),
        "copy_gbps": timing.copy_gbps(),
    }


def commit() -> str:
    """JAX_QCONV_COMMIT, for machines that have no checkout, or this checkout's commit."""
    if "JAX_QCONV_COMMIT" in os.environ:
        return os.environ["JAX_QCONV_COMMIT"]
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    here = pathlib.Path(__file__).parent
    git = subprocess.run(command, cwd=here, capture_output=True, text=True)
    return git.stdout.strip() or "unknown"


def write(path: pathlib.Path, results: dict[str, Any]) -> None:
    """Atomically: a reader sees the old file or the new one."""
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(rounded(results), indent=1) + "\n")
    os.replace(draft, path)


def rounded(value: Any) -> Any:
    """Figures as they are read: floats to four places."""
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value


def table(rows: list[dict[str, Any]]) -> str:
    """For the terminal: microseconds of each system, a line for each layer."""
    names = [name for name in ("bf16", "torch_bf16", "seed", "xla_int8") if f"{name}_us" in rows[0]]
    lines = [f"{'layer':28} batch  roofline      int8" + "".join(f"{n:>11}" for n in names)]
    for row in rows:
        keys = ["roofline_us", "us", *(f"{name}_us" for name in names)]
        times = "".join(
            f"{row.get(key, float('nan')):>{10 + (i > 1)}.1f}" for i, key in enumerate(keys)
        )
        lines.append(f"{row['name']:28} {row['batch']:5}{times}")
    return "\n".join(lines)


def main() -> int | str:
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
        default=["int8", "bf16", "bf16_without_graph"],
        help="what to compare (int8 bf16 bf16_without_graph)",
    )
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of layers.json")
    args = parser.parse_args()
    device = jax.devices()[0]
    if device.device_kind not in GPUS:
        return f"{device.device_kind} is not in GPUS of tests/bench/roofline.py: {list(GPUS)}."
    gpu = GPUS[device.device_kind]
    args.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    results = origin(device) | {"rows": rows}
    problems: dict[tuple[Layer, int], str] = {}  # with the first network that has them
    for suite in args.suite:
        for batch in args.batch:
            for layer in NETWORKS[suite]:
                if args.layers is None or layer.name in args.layers:
                    problems.setdefault((layer, batch), suite)
    with tqdm(problems.items(), unit="layer") as progress:
        for (layer, batch), suite in progress:
            progress.set_description(f"{layer.name} x{batch}")
            rows.append({"suite": suite} | measure(layer, batch, gpu, chosen=args.systems))
            write(args.out / "layers.json", results)
    print(table(rows))
    failed = [f"{row['name']} x{row['batch']}" for row in rows if not row.get("exact")]
    return f"failed or not exact: {', '.join(failed)}" if failed else 0


if __name__ == "__main__":
    sys.exit(main())
