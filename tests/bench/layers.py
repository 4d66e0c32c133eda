"""Time ResNet-50's convolutions on this GPU: int8 by jax_qconv, JAX in bf16, the roofline.

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
from typing import Any

if __name__ == "__main__":
    # In place of this folder, whose `layers` is this file.
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

import jax
from bench import systems, timing
from bench.roofline import GPUS, Gpu, elements, operations, roofline_us
from layers import RESNET50, Layer
from tqdm import tqdm

import jax_qconv

LAUNCH_US = 3.0
"""What a call takes at least, however small."""


def measure(layer: Layer, batch: int, gpu: Gpu, *, xla_int8: bool) -> dict[str, Any]:
    """The row of a layer; a system that fails leaves its error there instead of times."""
    start = time.perf_counter()
    row = {"name": layer.name, "batch": batch, **dataclasses.asdict(layer)}
    row |= {"ops": operations(layer, batch), "bytes": elements(layer, batch)}
    row["roofline_us"] = roofline_us(layer, batch, gpu)
    least_us = max(row["roofline_us"], LAUNCH_US)
    data = systems.Data.make(layer, batch)
    compared = {
        "int8": systems.int8(data),
        "bf16": systems.bf16(data, graph=True),
        "bf16_without_graph": systems.bf16(data, graph=False),
    }
    if xla_int8:
        compared["xla_int8"] = systems.xla_int8(data)
    programs = {}
    for name, system in compared.items():
        try:
            programs[name] = timing.Program.make(system, least_us=least_us)
            if name == "int8":
                row |= examine(system, programs[name])
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
    if "xla_int8" in times:
        found |= best("xla_int8", "xla_int8_")
    if "int8" in times and ways:
        found["speedup_vs_bf16"] = found["bf16_us"] / found["us"]
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


def main() -> int | str:
    known = [layer.name for layer in RESNET50]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 1], help="sizes (128 1)")
    parser.add_argument("--layers", nargs="+", choices=known, default=known, help="these only")
    parser.add_argument(
        "--xla-int8",
        type=int,
        nargs="+",
        default=[],
        metavar="BATCH",
        help="JAX's int8 too at these",
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
    chosen = [layer for layer in RESNET50 if layer.name in args.layers]
    problems = [(layer, batch) for batch in args.batch for layer in chosen]
    with tqdm(problems, unit="layer") as progress:
        for layer, batch in progress:
            progress.set_description(f"{layer.name} x{batch}")
            rows.append(measure(layer, batch, gpu, xla_int8=batch in args.xla_int8))
            write(args.out / "layers.json", results)
    failed = [f"{row['name']} x{row['batch']}" for row in rows if not row.get("exact")]
    return f"failed or not exact: {', '.join(failed)}" if failed else 0


if __name__ == "__main__":
    sys.exit(main())
