"""Tune the problems that the package's table and its model of the hardware are made from.

    python tests/bench/rankings.py --out tests/bench/results/h200 [--seconds 500]
    python tests/bench/rankings.py --out tests/bench/results/h100 \\
        --like tests/bench/results/h200/rankings.json --top 5

Goes on where the user's store of plans ends; with --missing, what the package's table has is left
out. With --like, only the plans are tried that were the fastest on another GPU of the same
architecture, and those of this package's kernels. Writes rankings.json, the time of every exact
plan that was tried (added to those that are in it from the same GPU model and cuDNN), and the table
of the fastest ones that comes with the package.
"""

from __future__ import annotations

import argparse
import itertools
import json
import pathlib
import random
import sys
import time
from collections.abc import Iterator
from typing import Any

if __name__ == "__main__":
    # In place of this folder, whose `layers` is another file than that of the tests.
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

import jax
from bench.record import commit
from tqdm import tqdm

from jax_qconv import _native, _plan_store, _plans, _tune, _tuning
from jax_qconv._networks import NETWORKS, Layer
from jax_qconv._problem import Problem
from jax_qconv._spec import padded_channels
from jax_qconv._storage import fine_channels

BATCHES = (128, 1, 32, 8)
TABLE = ("resnet50", "resnet50_plain", "resnet18", "mobilenet_v2", "efficientnet_lite0", "vgg16")
TABLE += ("unet",)
FINE = ("mobilenet_v2", "efficientnet_lite0")
"""Networks of 1x1 and depthwise convolutions alone, but for the first layer."""

HELD_OUT = "yolov8s"
"""The network that neither the table nor the model is made from, beside `odd_layers`."""

HELD_OUT_CANDIDATES = 64
"""Enough that the best plan is among them, so that the model is measured against it."""


def odd_layers(count: int = 48, seed: int = 0) -> list[tuple[Layer, int]]:
    """Convolutions that no network has, with batch sizes."""
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        kernel, stride = rng.choice((1, 1, 3, 3, 5)), rng.choice((1, 1, 1, 2))
        size, batch = rng.randint(5, 96), rng.choice((1, 2, 4, 16, 24, 64))
        c, k = (rng.choice((16, 24, 32, 64, 96, 128, 160, 192, 256, 320, 384, 512)) for _ in "ck")
        residual = stride == 1 and rng.random() < 0.3
        found.append((Layer(c, size, size, k, kernel, kernel, stride, residual=residual), batch))
    return found


def problems() -> tuple[list[Problem], list[Problem]]:
    """Those of the table, and those held out."""
    table = [
        _tune.layer_problem(layer, batch, pad_to=pad_to)
        for batch, name in itertools.product(BATCHES, TABLE)
        for layer in NETWORKS[name]
        for pad_to in (None, *_fine(name, layer))
    ]
    others = [(layer, batch) for batch in BATCHES for layer in NETWORKS[HELD_OUT]] + odd_layers()
    held_out = [_tune.layer_problem(layer, batch) for layer, batch in others]
    known = set(table)
    return list(dict.fromkeys(table)), [p for p in dict.fromkeys(held_out) if p not in known]


def _fine(name: str, layer: Layer) -> Iterator[tuple[int, int]]:
    """The channels that `quantize_model` stores, where `prepack` by its rule doesn't."""
    channels = fine_channels(layer.c), fine_channels(layer.k)
    if name in FINE and any(channels):
        c, k = channels
        yield c or padded_channels(layer.c), k or padded_channels(layer.k)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of rankings.json")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so many")
    parser.add_argument("--like", type=pathlib.Path, help="rankings.json of another GPU")
    parser.add_argument("--top", type=int, default=5, help="so many of its plans are tried")
    parser.add_argument("--missing", action="store_true", help="what the table lacks only")
    parser.add_argument("--workers", type=int, help="processes")
    args = parser.parse_args()
    device = jax.local_devices(backend="cuda")[0].local_hardware_id
    target = _plans.target_of(device)
    table, held_out = problems()
    known = {e.problem for e in _plan_store.entries() if e.target == target}
    if args.missing:
        known |= {*_shipped(target), *map(str, held_out)}
    rows = json.loads(args.like.read_text())["rows"] if args.like else []
    own_plans = _native.extension().own_plans
    only = {
        Problem.parse(row["problem"]): list(
            dict.fromkeys(
                [
                    *list(row["us"])[: args.top],
                    *own_plans(row["problem"], target.compute_capability),
                ]
            )
        )
        for row in rows
    }
    failed: dict[str, str] = {}
    end = time.monotonic() + args.seconds
    for chosen, candidates in ((table, None), (held_out, HELD_OUT_CANDIDATES)):
        todo = [p for p in chosen if str(p) not in known] if time.monotonic() < end else []
        results = _tuning.tune_problems(
            todo,
            device=device,
            target=target,
            candidates=candidates,
            only=only,
            workers=args.workers,
        )
        for result in tqdm(results, total=len(todo), mininterval=10):
            if result.error is not None:
                failed[str(result.problem)] = result.error
            if time.monotonic() > end:
                break
    write(args.out, target, {str(p) for p in held_out}, failed)


def write(
    out: pathlib.Path, target: _plan_store.Target, held_out: set[str], failed: dict[str, str]
) -> None:
    """rankings.json and the table."""
    entries = [e for e in _plan_store.entries() if e.target == target]
    rows = _earlier(out / "rankings.json", target)
    for entry in entries:
        split = "held out" if entry.problem in held_out else "table"
        row = rows.setdefault(entry.problem, {"problem": entry.problem, "split": split, "us": {}})
        us = row["us"] | {r["plan"]: round(r["us"], 3) for r in entry.ranking if r["us"]}
        row["us"] = dict(sorted(us.items(), key=lambda item: item[1]))
        wrong = [r["plan"] for r in entry.ranking if "wrong results" in (r["rejected"] or "")]
        row["wrong"] = list(dict.fromkeys([*row.get("wrong", []), *wrong]))
    lines = ",\n".join(map(json.dumps, rows.values()))
    head = {"gpu": target.gpu, "cudnn": target.cudnn, "commit": commit(), "failed": failed}
    head["date"] = max(entry.date for entry in entries)
    out.mkdir(parents=True, exist_ok=True)
    (out / "rankings.json").write_text(f'{json.dumps(head)[:-1]}, "rows": [\n{lines}\n]}}\n')
    table = _shipped(target) | {e.problem: e for e in entries if e.problem not in held_out}
    _plan_store.export(out / "plans.json", table.values())


def _shipped(target: _plan_store.Target) -> dict[str, _plan_store.Entry]:
    """The plans that the package has for a target, by problem."""
    tables = [table for table in _plan_store.shipped() if table.target == target]
    return {entry.problem: entry for table in tables for entry in table.entries()}


def _earlier(path: pathlib.Path, target: _plan_store.Target) -> dict[str, dict[str, Any]]:
    """The rows that a file has of a target, by problem."""
    if not path.exists():
        return {}
    found = json.loads(path.read_text())
    same = found["gpu"], found["cudnn"]
    return {r["problem"]: r for r in found["rows"]} if same == (target.gpu, target.cudnn) else {}


if __name__ == "__main__":
    main()
