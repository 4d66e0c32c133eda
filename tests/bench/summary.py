"""Merge layers.json and gpu_tests.json of a folder into one flat summary.json.

python tests/bench/summary.py tests/bench/results/h200
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

ORIGIN = ("device", "driver", "jax", "jaxlib", "cudnn", "jax_qconv", "commit", "date", "copy_gbps")
"""Taken from layers.json as they are."""


def geomean(values: Sequence[float]) -> float:
    """The geometric mean of positive numbers."""
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def summarise(layers: dict[str, Any], gpu_tests: dict[str, Any]) -> dict[str, Any]:
    """The figures under flat keys such as ``layers.b128.256x14x14_3x3.us``.

    Raises:
        ValueError: if the two come from different GPUs or versions.
    """
    for name in ("device", "jax", "cudnn"):
        if layers[name] != gpu_tests[name]:
            raise ValueError(
                f"layers.json has {name} {layers[name]}, but gpu_tests.json {gpu_tests[name]}; "
                "run both again in one environment."
            )
    summary = {name: layers[name] for name in ORIGIN}
    for name in ("passed", "failed", "error", "skipped", "elements_compared"):
        summary[f"gpu_tests.{name}"] = gpu_tests[name]
    for batch in sorted({row["batch"] for row in layers["rows"]}):
        rows = [row for row in layers["rows"] if row["batch"] == batch]
        figures = _of_batch(rows)
        summary |= {f"layers.b{batch}.{name}": value for name, value in figures.items()}
    return summary


def _of_batch(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts over all rows, means over those in which both systems ran, then each row's own."""
    speedups = [row["speedup_vs_bf16"] for row in rows if "speedup_vs_bf16" in row]
    figures: dict[str, Any] = {
        "layers": len(rows),
        "compared_with_jax_bf16": len(speedups),
        "exact": sum(row.get("exact", False) for row in rows),
        "elements_compared": sum(row.get("elements_compared", 0) for row in rows),
        "elements_wrong": sum(row.get("elements_wrong", 0) for row in rows),
    }
    if speedups:
        figures["geomean_speedup_vs_jax_bf16"] = round(geomean(speedups), 4)
        figures["least_speedup_vs_jax_bf16"] = min(speedups)
    kept = {"us": "us", "bf16_us": "jax_bf16_us", "speedup_vs_bf16": "speedup_vs_jax_bf16"}
    kept |= {name: name for name in ("roofline_us", "share_of_roofline")}
    for row in rows:
        figures |= {f"{row['name']}.{to}": row[name] for name, to in kept.items() if name in row}
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path, help="of layers.json and gpu_tests.json")
    folder = parser.parse_args().folder
    parts = (json.loads((folder / f"{name}.json").read_text()) for name in ("layers", "gpu_tests"))
    (folder / "summary.json").write_text(json.dumps(summarise(*parts), indent=1) + "\n")


if __name__ == "__main__":
    main()
