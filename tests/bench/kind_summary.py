"""The figures of kinds.json under flat keys: how its systems compare, kind by kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from bench.geomean import geomean

WAYS = ("bf16", "bf16_without_graph", "bf16_flipped", "bf16_flipped_without_graph")
"""Of JAX's convolution in bfloat16, of which the fastest counts."""

Row = dict[str, Any]


def comparisons(row: Row) -> dict[str, float]:
    """What a row says of int8 by its name; it lacks what failed, all of it if int8 itself did."""
    us = {name: of["us"] for name, of in row["systems"].items() if "us" in of}
    if "int8" not in us:
        return {}
    own, found = us["int8"], {}
    jax_bf16 = min((us[name] for name in WAYS if name in us), default=None)
    merges = dict(_merges(row))
    rivals = {
        "jax_bf16": jax_bf16,
        "jax_bf16_shifts": us.get("bf16_shifts"),
        "merged": us.get("int8_merged"),
        "unpadded": us.get("int8_unpadded"),
        "cudnn_grouped": merges.get(1),
    }
    for name, time in rivals.items():
        if time is not None:
            found[f"speedup_vs_{name}"] = time / own
    if row["kind"] == "depthwise":
        found["share_of_copy_bandwidth"] = row["bytes"] / own / row["copy_gbps"] / 1e3
    if merges:
        found["over_best_merge"] = own / min(merges.values())
    if "int8_symmetric" in us:
        found["slowdown"] = own / us["int8_symmetric"]
    return found


def _merges(row: Row) -> Iterator[tuple[int, float]]:
    """Microseconds by the number of groups that are merged, where that is the question."""
    for of in row["systems"].values() if row["kind"] == "groups" else ():
        if "merge" in of and "us" in of:
            yield of["merge"], of["us"]


WORST: dict[str, Callable[..., float]] = {"slowdown": max, "over_best_merge": max}
"""What is the worst of these; of others it is the least."""


def summarise(kinds: dict[str, Any]) -> dict[str, Any]:
    """Each kind's figures, over all batch sizes and for each, and those of each row."""
    summary: dict[str, Any] = {}
    for kind in dict.fromkeys(row["kind"] for row in kinds["rows"]):
        rows = [row for row in kinds["rows"] if row["kind"] == kind]
        summary |= {f"{kind}.{name}": value for name, value in _of_rows(rows).items()}
        for batch in sorted({row["batch"] for row in rows}):
            of_batch = [row for row in rows if row["batch"] == batch]
            figures = _of_rows(of_batch)
            for row in of_batch:
                figures |= {f"{row['name']}.{name}": value for name, value in _of_row(row).items()}
            summary |= {f"{kind}.b{batch}.{name}": value for name, value in figures.items()}
    return summary


def _of_rows(rows: list[Row]) -> dict[str, Any]:
    """Counts over all rows, means over those in which both systems ran."""
    exact = [row["systems"]["int8"].get("exact", False) for row in rows]
    figures: dict[str, Any] = {"layers": len(rows), "exact": sum(exact)}
    compared = [comparisons(row) for row in rows]
    for name in dict.fromkeys(name for found in compared for name in found):
        values = [found[name] for found in compared if name in found]
        worst = WORST.get(name, min)
        figures |= {
            f"geomean_{name}": round(geomean(values), 4),
            f"{worst.__name__}_{name}": round(worst(values), 4),
        }
    return figures


def _of_row(row: Row) -> dict[str, Any]:
    """A row's own figures."""
    ours = row["systems"]["int8"]
    if "us" not in ours:
        return {}
    figures = {"us": ours["us"], "roofline_us": row["roofline_us"]}
    figures |= {name: round(value, 4) for name, value in comparisons(row).items()}
    merges = dict(_merges(row))
    if merges:
        best = min(merges, key=lambda merge: merges[merge])
        figures |= {"merge_by_rule": ours["merge"], "best_merge": best, "best_us": merges[best]}
    return figures


def outputs(kinds: dict[str, Any], name: str) -> int:
    """How many outputs of all int8 programs were compared, or wrong: ``elements_...``."""
    systems = [of for row in kinds["rows"] for of in row["systems"].values()]
    return sum(of.get(name, 0) for of in systems)
