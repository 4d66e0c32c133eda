"""Time depthwise, grouped and transposed convolutions, and zero points, on this GPU.

    python tests/bench/kinds.py --out tests/bench/results/h100

Writes kinds.json, again after each convolution, and goes on from one of the same commit, versions
and device. See `METHOD` in timing.py for how time is taken.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

if __name__ == "__main__":
    # Plans that are tuned here (--autotune on) need memory beside JAX's.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    # In place of this folder, whose `layers` is another file than that of the tests.
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

import jax
from bench import ceilings, kind_systems, timing
from bench.kind_convs import BATCHES, KINDS, Conv
from bench.layers import LAUNCH_US, examine
from bench.record import clocks, earlier, error_text, origin, write
from bench.roofline import GPUS, Gpu
from tqdm import tqdm

METHOD = f"""\
{timing.HOW} All systems of a row compute with the same numbers; bias, residual and activation are
part of each. bytes are those of x, weights, residual and output, channels unpadded; copy_gbps is
what a copy of 2 GiB reached in the same run. int8 is what a user gets, with the groups merged that
prepack merges by its rule; int8_merge_N has N groups merged (of 1, it is cuDNN's own kernel of
grouped convolutions), int8_merged depthwise channels merged into dense blocks of up to
{kind_systems.MERGED_CHANNELS}, int8_unpadded no padded channels, int8_symmetric no zero point. The
correction for a zero point is computed beforehand, and all calls share it. bf16 is JAX's
convolution, with a CUDA graph or without; bf16_flipped a transposed one written as the gradient
that it is, bf16_shifts a depthwise one as a sum of shifted images, in float32. Their weights are
OHWI."""


def measure(
    kind: str, conv: Conv, batch: int, gpu: Gpu, *, autotune: str = "cached"
) -> dict[str, Any]:
    """The row of a convolution; a system that fails has its error there instead of times."""
    start = time.perf_counter()
    ops, nbytes = conv.operations(batch), conv.nbytes(batch)
    roofline_us = max(ops / gpu.ops, nbytes / gpu.bandwidth) * 1e6
    row: dict[str, Any] = {"kind": kind, "name": conv.name, "batch": batch}
    row |= dataclasses.asdict(conv)
    row |= {"autotune": autotune, "ops": ops, "bytes": nbytes, "roofline_us": roofline_us}
    data = kind_systems.Data.make(conv, batch)
    # All ways to compute it are held to one reference, which is then compiled only once.
    truth = kind_systems.int8(data)
    found: dict[str, dict[str, Any]] = {}
    programs = {}
    for name, make in kind_systems.of_kind(kind, conv, autotune=autotune).items():
        found[name] = {}
        try:
            system = make(data)
            programs[name] = timing.Program.make(system, least_us=max(roofline_us, LAUNCH_US))
            if name.startswith("int8"):
                packed = system.shared
                found[name] |= {"merge": packed.merge, "stored": list(packed.stored_channels)}
                same = name != "int8_symmetric"
                found[name] |= examine(truth if same else system, programs[name])
        except Exception as error:
            found[name]["error"] = error_text(error)
    for name, repeats in timing.by_turns(programs).items():
        median = statistics.median(repeats)
        found[name] |= {"us": min(repeats), "us_median": median, "repeats": repeats}
        found[name]["us_spread"] = (max(repeats) - min(repeats)) / median
    return row | {"systems": found, "seconds": time.perf_counter() - start}


def wrong(row: dict[str, Any]) -> list[str]:
    """The int8 systems of a row that failed, or aren't exact."""
    systems = row["systems"].items()
    return [name for name, of in systems if name.startswith("int8") and not of.get("exact")]


def chosen(kinds: Sequence[str], batches: Sequence[int] | None) -> Iterator[tuple[str, Conv, int]]:
    """What is measured, in order: what the first kinds and batch sizes have comes first."""
    for turn in range(max(len(batches or BATCHES[kind]) for kind in kinds)):
        for kind in kinds:
            for batch in (batches or BATCHES[kind])[turn : turn + 1]:
                yield from ((kind, conv, batch) for conv in KINDS[kind])


def table(rows: list[dict[str, Any]]) -> str:
    """For the terminal: a line for each row, with the microseconds of each system."""
    lines = []
    for row in rows:
        times = [
            f"{name} {of['us']:.1f}" if "us" in of else f"{name} failed"
            for name, of in row["systems"].items()
        ]
        lines.append(f"{row['kind']:12} {row['name']:32} x{row['batch']:<4} {', '.join(times)}")
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="these only")
    parser.add_argument("--batch", type=int, nargs="+", help="sizes (those of `BATCHES`)")
    parser.add_argument("--convs", nargs="+", help="convolutions of these names only")
    parser.add_argument(
        "--autotune", choices=("cached", "on"), default="cached", help="how int8 gets its plans"
    )
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of kinds.json")
    return parser.parse_args()


def main() -> int | str:
    args = arguments()
    device = jax.devices()[0]
    if device.device_kind not in GPUS:
        return f"{device.device_kind} is not in GPUS of tests/bench/roofline.py: {list(GPUS)}."
    gpu = GPUS[device.device_kind]
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "kinds.json"
    head = origin(device)
    results = earlier(path, head)
    if results is None:
        results = head | {"method": " ".join(METHOD.split()), "nominal": dataclasses.asdict(gpu)}
        results |= {"runs": [], "rows": []}
    run = {"at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
    run |= {"clocks_before": clocks(), "copy_gbps": ceilings.copy_gbps()}
    results["runs"].append(run)
    rows = {(row["kind"], row["name"], row["batch"]): row for row in results["rows"]}
    with tqdm(list(chosen(args.kinds, args.batch)), unit="layer") as progress:
        for kind, conv, batch in progress:
            key = kind, conv.name, batch
            done = key in rows and rows[key]["autotune"] == args.autotune
            if done or (args.convs is not None and conv.name not in args.convs):
                continue
            progress.set_description(f"{conv.name} x{batch}")
            row = measure(kind, conv, batch, gpu, autotune=args.autotune)
            rows[key] = row | {"copy_gbps": run["copy_gbps"]}
            run["clocks_after"] = clocks()
            write(path, results | {"rows": list(rows.values())})
    print(table(list(rows.values())))
    failed = [f"{row['name']} x{row['batch']}: {w}" for row in rows.values() for w in wrong(row)]
    return f"failed or not exact: {', '.join(failed)}" if failed else 0


if __name__ == "__main__":
    sys.exit(main())
