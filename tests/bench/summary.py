"""Merge the JSON files of a folder into one flat summary.json: layers, and what there is of others.

python tests/bench/summary.py tests/bench/results/h100
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import sys
from typing import Any

if __name__ == "__main__":
    # In place of this folder, whose `layers` is another file than that of the tests.
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from bench import kind_summary
from bench.geomean import geomean

from jax_qconv._networks import NETWORKS as LAYERS

ORIGIN = ("device", "driver", "jax", "jaxlib", "cudnn", "jax_qconv", "commit", "date", "copy_gbps")
"""Taken from layers.json as they are, as is int8_tops where it was measured."""

COMPARED = {
    "bf16": "jax_bf16",
    "seed": "seed",
    "torch_bf16": "torch_bf16",
    "xla_int8": "xla_int8",
    "xla_int8_fused": "xla_int8_fused",
    "qwix": "qwix",
}
"""What int8 is compared with: its name in rows, and in the summary."""

OURS = ("int8", "int8_constants")
"""The ways of this package that a user has by default; the fastest of them counts."""

WAYS = ("", "_graph", "_blocks", "_blocks_graph", "_compiled", "_shifts", "_shifts_graph")
WAYS += ("_graph_constants", "_blocks_graph_constants")
"""What follows a system's name in a network's file; the fastest of its ways counts."""

NETWORKS = ("resnet50", "efficientnet_lite0")
"""Whole networks, each with a file of its name."""

BY_HAND = ("by_hand", "by_hand_constants")
"""The ways of the network that `quantize_model`'s is measured by; the fastest of them counts."""

FILES = ("gpu_tests", *NETWORKS, "startup", "model", "kinds", "models")
"""That may be there beside layers.json."""

TARGETS = (
    "layers.b128.geomean_over_roofline",
    "layers.b128.geomean_speedup_vs_jax_bf16",
    "layers.b128.min_speedup_vs_jax_bf16",
    "layers.b128.geomean_speedup_vs_seed",
    "layers.b1.geomean_speedup_vs_jax_bf16",
    "resnet50.b128.images_per_s",
    "resnet50.b128.speedup_vs_jax_bf16",
    "resnet50.b1.ms",
    "efficientnet_lite0.b128.speedup_vs_jax_bf16",
    "depthwise.b128.min_share_of_copy_bandwidth",
    "depthwise.b128.geomean_speedup_vs_jax_bf16",
    "groups.geomean_speedup_vs_cudnn_grouped",
    "transposed.geomean_speedup_vs_jax_bf16",
    "zero_points.geomean_slowdown",
    "models.resnet50.b128.share_of_hand_written",
    "models.resnet50.quantise_seconds",
    "models.efficientnet_lite0.b128.speedup_vs_jax_bf16",
    "models.mobilenet_v2.b128.speedup_vs_jax_bf16",
    "models.vgg16.b128.speedup_vs_jax_bf16",
    "models.unet.b128.speedup_vs_jax_bf16",
)
"""The figures that there are targets for."""

Rows = list[dict[str, Any]]


def summarise(layers: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The figures under flat keys such as ``layers.b128.256x14x14_3x3.us``.

    Args:
        layers: what layers.json holds.
        more: that of `FILES`, where they exist.

    Raises:
        ValueError: if they come from different GPUs or versions.
    """
    for file, found in more.items():
        for name in ("device", "jax", "cudnn"):
            if layers[name] != found.get(name, layers[name]):
                raise ValueError(
                    f"layers.json has {name} {layers[name]}, but {file}.json {found[name]}; "
                    "run both again in one environment."
                )
    summary = {name: layers[name] for name in ORIGIN}
    if layers.get("int8_tops") is not None:
        summary["int8_tops"] = layers["int8_tops"]
    summary |= _clocks(layers.get("runs", []))
    if "gpu_tests" in more:
        for name in ("passed", "failed", "error", "skipped", "elements_compared"):
            summary[f"gpu_tests.{name}"] = more["gpu_tests"][name]
    for batch in sorted({row["batch"] for row in layers["rows"]}):
        suites = _whole_suites([row for row in layers["rows"] if row["batch"] == batch])
        rows = suites.pop("resnet50", None)
        for suite, others in suites.items():
            figures = _of_rows(others) | _over_roofline(others, layers)
            summary |= {f"suites.{suite}.b{batch}.{k}": v for k, v in figures.items()}
        figures = {"with_residuals": rows is not None}
        if rows := rows or suites.get("resnet50_plain"):
            figures |= _of_rows(rows) | _over_roofline(plain(layers["rows"], batch), layers)
            figures |= _of_each(rows)
            summary |= {f"layers.b{batch}.{k}": v for k, v in figures.items()}
    for name in ("elements_compared", "elements_wrong"):
        summary[f"programs.{name}"] = sum(row.get(name, 0) for row in layers["rows"])
        if "kinds" in more:
            summary[f"programs.{name}"] += kind_summary.outputs(more["kinds"], name)
    for network in NETWORKS:
        if network in more:
            summary |= _of_network(network, more[network])
    for model, found in more.get("models", {"models": {}})["models"].items():
        summary |= _of_model(f"models.{model}", found)
    if "kinds" in more:
        summary |= kind_summary.summarise(more["kinds"])
    if "startup" in more:
        summary |= {f"startup.{name}_s": s for name, s in more["startup"]["seconds"].items()}
    if "model" in more:
        held_out = more["model"]["held_out"]
        for name in ("problems", "picked", "geomean", "worst"):
            summary[f"plans.model.held_out.{name}"] = held_out[name]
    return summary


def _whole_suites(rows: Rows) -> dict[str, Rows]:
    """The rows of each network all of whose layers are among those of a batch size."""
    found: dict[str, Rows] = {}
    for row in rows:
        for suite in _suites(row):
            found.setdefault(suite, []).append(row)
    sizes = {name: len(layers) for name, layers in LAYERS.items()}
    return {suite: found[suite] for suite in sorted(found) if len(found[suite]) >= sizes[suite]}


def _suites(row: dict[str, Any]) -> list[str]:
    """The networks of a row; the first files had ResNet-50 alone."""
    return row.get("suites", ["resnet50"])


def _clocks(runs: Rows) -> dict[str, Any]:
    """The least and the most that was seen of the clock, before and after each run."""
    seen = [run.get(when, {}) for run in runs for when in ("clocks_before", "clocks_after")]
    sm = [clocks["sm_mhz"] for clocks in seen if "sm_mhz" in clocks]
    return {"clocks.min_sm_mhz": min(sm), "clocks.max_sm_mhz": max(sm)} if sm else {}


def plain(rows: Rows, batch: int) -> Rows:
    """Those of ResNet-50 without a residual, and without the first layer."""
    of_resnet50 = [row for row in rows if {"resnet50", "resnet50_plain"} & {*_suites(row)}]
    return [
        row
        for row in of_resnet50
        if row["batch"] == batch and row.get("c") != 3 and not row.get("residual")
    ]


def reached_us(row: dict[str, Any], layers: dict[str, Any]) -> float:
    """The roofline of a row by what a copy and a matrix product reached in the same run.

    Or a convolution, where one reached more than the best product.
    """
    rates = [row["ops"] / row["us"] / 1e6 for row in layers["rows"] if "us" in row and "ops" in row]
    product = layers.get("int8_tops")
    ops = max(product, *rates) * 1e12 if product else layers["nominal"]["ops"]
    return max(row["ops"] / ops, row["bytes"] / layers["copy_gbps"] / 1e9) * 1e6


def _over_roofline(rows: Rows, layers: dict[str, Any]) -> dict[str, Any]:
    """How many times the roofline the layers take: that of reached speeds, and of nominal ones."""
    timed = [row for row in rows if "us" in row and "ops" in row]
    if not timed:
        return {}
    nominal = [row["us"] / row["roofline_us"] for row in timed]
    reached = [row["us"] / reached_us(row, layers) for row in timed]
    return {
        "over_roofline_layers": len(timed),
        "geomean_over_roofline": round(geomean(reached), 4),
        "geomean_over_nominal_roofline": round(geomean(nominal), 4),
    }


def _of_network(network: str, found: dict[str, Any]) -> dict[str, Any]:
    """The figures of a whole network, of all systems and of int8 beside the others."""
    figures: dict[str, Any] = {f"{network}.exact": found["exact"]}
    for batch in sorted({row["batch"] for row in found["rows"]}):
        rows = {row["system"]: row for row in found["rows"] if row["batch"] == batch}
        timed = {name: row for name, row in rows.items() if "ms" in row}
        key = f"{network}.b{batch}"
        ours = min((n for n in OURS if n in timed), key=lambda n: timed[n]["ms"], default=None)
        if ours is not None:
            figures |= {f"{key}.{k}": timed[ours][k] for k in ("ms", "images_per_s")}
        for name, row in timed.items():
            figures |= {f"{key}.{name}_{k}": row[k] for k in ("ms", "images_per_s")}
            if name.startswith("int8") and "host_us" in row:
                figures[f"{key}.{name}_host_us"] = row["host_us"]
        for name, other in COMPARED.items():
            ways = [timed[f"{name}{way}"] for way in WAYS if f"{name}{way}" in timed]
            faster = timed["int8"]["ms"] / timed[ours]["ms"] if "int8" in timed and ours else 1.0
            speedups = [row["speedup_of_int8"] * faster for row in ways if "speedup_of_int8" in row]
            if speedups:
                figures[f"{key}.speedup_vs_{other}"] = round(min(speedups), 4)
            if name == "bf16" and ways:
                figures[f"{key}.{other}_images_per_s"] = max(row["images_per_s"] for row in ways)
    return figures


def _of_model(key: str, found: dict[str, Any]) -> dict[str, Any]:
    """The figures of a network that `quantize_model` made."""
    figures = _of_network(key, found)
    for batch in sorted({row["batch"] for row in found["rows"]}):
        place = f"{key}.b{batch}"
        names = [f"{place}.{name}_images_per_s" for name in BY_HAND]
        by_hand = [figures[name] for name in names if name in figures]
        if by_hand and f"{place}.images_per_s" in figures:
            share = figures[f"{place}.images_per_s"] / max(by_hand)
            figures[f"{place}.share_of_hand_written"] = round(share, 4)
    if "quantise_seconds" in found:
        figures[f"{key}.quantise_seconds"] = found["quantise_seconds"]
    return figures


def _of_rows(rows: Rows) -> dict[str, Any]:
    """Counts over all rows, means over those in which both systems ran."""
    speedups = [row["speedup_vs_bf16"] for row in rows if "speedup_vs_bf16" in row]
    figures: dict[str, Any] = {
        "layers": len(rows),
        "compared_with_jax_bf16": len(speedups),
        "exact": sum(row.get("exact", False) for row in rows),
        "elements_compared": sum(row.get("elements_compared", 0) for row in rows),
        "elements_wrong": sum(row.get("elements_wrong", 0) for row in rows),
    }
    spreads = [row["us_spread"] for row in rows if "us_spread" in row]
    if spreads:
        figures["median_spread"] = round(statistics.median(spreads), 4)
    for name, other in COMPARED.items():
        found = [row[f"speedup_vs_{name}"] for row in rows if f"speedup_vs_{name}" in row]
        if found:
            figures[f"geomean_speedup_vs_{other}"] = round(geomean(found), 4)
            figures[f"min_speedup_vs_{other}"] = min(found)
    return figures


def _of_each(rows: Rows) -> dict[str, Any]:
    """Each row's own figures."""
    kept = {name: name for name in ("us", "us_median", "roofline_us", "share_of_roofline")}
    for name, other in COMPARED.items():
        kept |= {f"{name}_us": f"{other}_us", f"speedup_vs_{name}": f"speedup_vs_{other}"}
    return {
        f"{row['name']}.{to}": row[name] for row in rows for name, to in kept.items() if name in row
    }


def read(folder: pathlib.Path) -> dict[str, Any]:
    """The files of a folder that `summarise` takes."""
    files = {name: folder / f"{name}.json" for name in ("layers", *FILES)}
    found = {name: path for name, path in files.items() if path.exists() or name == "layers"}
    return {name: json.loads(path.read_text()) for name, path in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path, help="of the JSON files")
    folder = parser.parse_args().folder
    summary = summarise(**read(folder))
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    for name in TARGETS:
        print(f"{name:45} {summary.get(name, 'not measured')}")


if __name__ == "__main__":
    main()
