"""How near `quantize_model` comes to real float networks.

    python tests/bench/accuracy.py --data DIR
    python tests/bench/accuracy.py --data DIR --only hed

DIR has the archives that the examples ask for, and the extracted package of Fashion-MNIST. Each
network goes through `quantize_model` alone, by each of the options below, and is judged on other
data than it was calibrated on. Runs on a CPU; writes accuracy.json after each network, and leaves
what it says of others.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from typing import Any

if __name__ == "__main__":
    # In place of this folder, whose `layers` is another file than that of the tests.
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

import jax
from bench.accuracy_nets import NETS, Case, compare
from bench.record import origin, write

OUT = pathlib.Path(__file__).parent / "results/accuracy"
ORIGIN = ("device", "jax", "jax_qconv", "commit", "date")

OPTIONS: dict[str, dict[str, Any]] = {
    "symmetric": {},
    "asymmetric": {"asymmetric": True},
    "asymmetric_corrected": {"asymmetric": True, "bias_correction": True},
    "compensated": {"asymmetric": True, "bias_correction": True, "rounding": "compensated"},
}
"""Of `quantize_model`, by name."""


def measure(case: Case) -> dict[str, Any]:
    """What a network reaches by each of the options."""
    start, found = time.perf_counter(), {}
    for name, options in OPTIONS.items():
        chosen = {**options, **case.fixed}
        each = []
        for weights in case.weights:
            made = compare(case.function, weights, case.folds, progress=False, **chosen)
            each.append(case.figures(made.in_float, made.in_int8))
        found[name] = each[0]
        if len(each) > 1:
            means = {key: statistics.fmean(one[key] for one in each) for key in each[0]}
            found[name] = means | {"of_each": each}
        print(case.title, name, found[name], flush=True)
    return {
        "title": case.title,
        "judged": case.judged,
        "goals": case.goals,
        **found,
        "seconds": time.perf_counter() - start,
    }


def measure_all(names: Iterable[str], folder: pathlib.Path, path: pathlib.Path) -> None:
    """Measure networks, and put each into accuracy.json as soon as it is done."""
    head = origin(jax.devices()[0])
    for name in names:
        found = measure(NETS[name](folder)) | {key: head[key] for key in ORIGIN}
        results = json.loads(path.read_text()) if path.exists() else {}
        write(path, results | {name: found})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, required=True, help="folder of the archives")
    parser.add_argument("--out", type=pathlib.Path, default=OUT, help="folder of accuracy.json")
    parser.add_argument("--only", choices=NETS, help="one of the networks")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as programs:
        # Folds and options compile much the same programs.
        jax.config.update("jax_compilation_cache_dir", programs)
        measure_all([args.only] if args.only else NETS, args.data, args.out / "accuracy.json")


if __name__ == "__main__":
    main()
