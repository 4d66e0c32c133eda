"""Merge the JSON files of a folder into one flat summary.json: layers, gpu_tests, and what there is
of resnet50, startup and model.

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


def summarise(layers: dict[str, Any], gpu_tests: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The figures under flat keys such as ``layers.b128.256x14x14_3x3.us``.

    Args:
        layers, gpu_tests: what the files hold.
        more: that of resnet50.json, startup.json, model.json, where they exist.

    Raises:
        ValueError: if they come from different GPUs or versions.
    """
    for file, found in {"gpu_tests": gpu_tests, **more}.items():
        for name in ("device", "jax", "cudnn"):
            if layers[name] != found.get(name, layers[name]):
                raise ValueError(
                    f"layers.json has {name} {layers[name]}, but {file}.json {found[name]}; "
                    "run both again in one environment."
                )
    summary = {name: layers[name] for name in ORIGIN}
    for name in ("passed", "failed", "error", "skipped", "elements_compared"):
        summary[f"gpu_tests.{name}"] = gpu_tests[name]
    resnet50 = [row for row in layers["rows"] if row.get("suite", "resnet50") == "resnet50"]
    for batch in sorted({row["batch"] for row in resnet50}):
        rows = [row for row in resnet50 if row["batch"] == batch]
        plain = _plain(layers["rows"], batch)
        figures = _of_batch(rows) | _over_roofline(plain, layers)
        summary |= {f"layers.b{batch}.{name}": value for name, value in figures.items()}
    if "resnet50" in more:
        summary |= _of_network(more["resnet50"])
    if "startup" in more:
        summary |= {f"startup.{name}_s": s for name, s in more["startup"]["seconds"].items()}
    if "model" in more:
        held_out = more["model"]["held_out"]
        for name in ("problems", "picked", "geomean", "worst"):
            summary[f"plans.model.held_out.{name}"] = held_out[name]
    return summary


def _plain(rows: list[dict[str, Any]], batch: int) -> list[dict[str, Any]]:
    """Those of ResNet-50 without a residual, and without the first layer."""
    plain = {
        row["name"]: row
        for suite in ("resnet50", "resnet50_plain")
        for row in rows
        if row.get("suite", "resnet50") == suite and row["batch"] == batch
    }
    return [row for row in plain.values() if row.get("c") != 3 and not row.get("residual")]


def _over_roofline(rows: list[dict[str, Any]], layers: dict[str, Any]) -> dict[str, Any]:
    """How many times the roofline the layers take: that of nominal speeds, and with the bandwidth
    that a copy reached in the same run."""
    timed = [row for row in rows if "us" in row and "ops" in row]
    if not timed:
        return {}
    reached = [
        max(row["ops"] / layers["nominal"]["ops"], row["bytes"] / layers["copy_gbps"] / 1e9) * 1e6
        for row in timed
    ]
    return {
        "over_roofline_layers": len(timed),
        "geomean_over_roofline": round(geomean([r["us"] / r["roofline_us"] for r in timed]), 4),
        "geomean_over_reached_roofline": round(
            geomean([row["us"] / us for row, us in zip(timed, reached, strict=True)]), 4
        ),
    }


def _of_network(resnet50: dict[str, Any]) -> dict[str, Any]:
    figures: dict[str, Any] = {"resnet50.exact": resnet50["exact"]}
    for batch in sorted({row["batch"] for row in resnet50["rows"]}):
        ms = {r["system"]: r["ms"] for r in resnet50["rows"] if r["batch"] == batch and "ms" in r}
        key = f"resnet50.b{batch}"
        figures |= {f"{key}.{name}_ms": value for name, value in ms.items() if name != "int8"}
        if "int8" in ms:
            figures |= {f"{key}.ms": ms["int8"], f"{key}.images_per_s": batch / ms["int8"] * 1e3}
            jax_bf16 = [value for name, value in ms.items() if name.startswith("bf16")]
            for name, others in {
                "jax_bf16": jax_bf16,
                "torch_bf16": [v for n, v in ms.items() if n.startswith("torch_bf16")],
                "seed": [ms["seed"]] if "seed" in ms else [],
            }.items():
                if others:
                    figures[f"{key}.speedup_vs_{name}"] = round(min(others) / ms["int8"], 4)
        for row in resnet50["rows"]:
            if row["batch"] == batch and row["system"].startswith("int8") and "host_us" in row:
                figures[f"{key}.{row['system']}_host_us"] = row["host_us"]
    return figures


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
    for name in ("bf16", "seed", "torch_bf16"):
        found = [row[f"speedup_vs_{name}"] for row in rows if f"speedup_vs_{name}" in row]
        if found:
            other = "jax_bf16" if name == "bf16" else name
            figures[f"geomean_speedup_vs_{other}"] = round(geomean(found), 4)
            figures[f"min_speedup_vs_{other}"] = min(found)
    kept = {"us": "us", "bf16_us": "jax_bf16_us", "speedup_vs_bf16": "speedup_vs_jax_bf16"}
    kept |= {"seed_us": "seed_us", "speedup_vs_seed": "speedup_vs_seed"}
    kept |= {name: name for name in ("roofline_us", "share_of_roofline")}
    for row in rows:
        figures |= {f"{row['name']}.{to}": row[name] for name, to in kept.items() if name in row}
    return figures


def read(folder: pathlib.Path) -> dict[str, Any]:
    """The files of a folder that `summarise` takes."""
    names = ("layers", "gpu_tests", "resnet50", "startup", "model")
    files = {name: folder / f"{name}.json" for name in names}
    found = {name: path for name, path in files.items() if path.exists() or name in names[:2]}
    return {name: json.loads(path.read_text()) for name, path in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path, help="of the JSON files")
    folder = parser.parse_args().folder
    (folder / "summary.json").write_text(json.dumps(summarise(**read(folder)), indent=1) + "\n")


if __name__ == "__main__":
    main()
