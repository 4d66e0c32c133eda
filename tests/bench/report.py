"""Put the measured figures into README.md, between its two marks, and draw them.

    python tests/bench/report.py
    python tests/bench/report.py --check

The second changes nothing, and fails where README.md doesn't say what the JSON files say.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
BEGIN, END = "<!-- figures:begin -->", "<!-- figures:end -->"
PICTURE = "layers_b128.png"
RESULTS = ROOT / "tests/bench/results/h200"

SHOWN = (
    "3x224x224_7x7_to64_s2",
    "64x56x56_3x3",
    "64x56x56_1x1_to256",
    "128x28x28_3x3",
    "256x14x14_3x3",
    "256x14x14_1x1_to1024",
    "512x7x7_3x3",
)
"""Layers in README.md: the kinds of ResNet-50, the first one included, which is the slowest."""


def figures(summary: dict[str, Any], folder: str) -> str:
    """The section of README.md; ``folder`` is that of the results, as seen from README.md."""
    batches = sorted({int(key.split(".")[1][1:]) for key in summary if key.startswith("layers.")})
    sha, _, dirty = summary["commit"].partition("-")
    lines = [
        f"Measured by `bash tests/bench/run_gpu.sh` on one {summary['device']} on "
        f"{summary['date']}, JAX {summary['jax']}, cuDNN {summary['cudnn']}, commit {sha[:12]}"
        f"{dirty and ' with changes'}. [layers.json]({folder}/layers.json) has every layer, and "
        f"says in `method` how time was taken.",
        "",
        "| ResNet-50 layer | batch | int8, µs | JAX bf16, µs | speed-up | of the roofline |",
        "|---|---:|---:|---:|---:|---:|",
        *(_row(summary, batch, name) for batch in reversed(batches) for name in SHOWN),
        "",
        *(_mean(summary, batch) for batch in reversed(batches)),
        _exactness(summary, batches),
        "",
        f"![All layers at batch 128: int8, JAX bf16 and the roofline]({folder}/{PICTURE})",
    ]
    return "\n".join(lines)


def _row(summary: dict[str, Any], batch: int, name: str) -> str:
    def cell(key: str, form: str) -> str:
        value = summary.get(f"layers.b{batch}.{name}.{key}")
        return "failed" if value is None else format(value, form)

    cells = (
        f"`{name}`",
        str(batch),
        cell("us", ".1f"),
        cell("jax_bf16_us", ".1f"),
        cell("speedup_vs_jax_bf16", ".2f"),
        cell("share_of_roofline", ".0%"),
    )
    return f"| {' | '.join(cells)} |"


def _mean(summary: dict[str, Any], batch: int) -> str:
    def of(name: str) -> Any:
        return summary[f"layers.b{batch}.{name}"]

    return (
        f"- Batch {batch}: {of('geomean_speedup_vs_jax_bf16'):.2f} times as fast as JAX in bf16 "
        f"(geometric mean of {of('compared_with_jax_bf16')} of {of('layers')} layers; "
        f"least {of('min_speedup_vs_jax_bf16'):.2f})."
    )


def _exactness(summary: dict[str, Any], batches: list[int]) -> str:
    compared, wrong = (
        sum(summary[f"layers.b{batch}.{name}"] for batch in batches)
        for name in ("elements_compared", "elements_wrong")
    )
    tests = {
        name: summary[f"gpu_tests.{name}"]
        for name in ("passed", "failed", "error", "skipped", "elements_compared")
    }
    return (
        f"- GPU tests: {tests['passed']} passed, {tests['failed'] + tests['error']} failed, "
        f"{tests['skipped']} skipped; they compared {tests['elements_compared']:,} outputs bit for "
        f"bit. Of {compared:,} outputs of the timed programs {wrong:,} differed from the reference."
    )


def replace_section(readme: str, section: str) -> str:
    """README.md with another section between its marks.

    Raises:
        ValueError: unless both marks are there, once and in order.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end) or BEGIN in rest or END in before + after:
        raise ValueError(f"README.md must hold {BEGIN} and {END}, once each and in this order.")
    return f"{before}{begin}\n{section}\n{end}{after}"


def draw(rows: list[dict[str, Any]], title: str, path: pathlib.Path) -> None:
    """A line for each layer, with marks where the roofline, int8 and JAX in bf16 are."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    # Marks, not bars: times differ too much for a linear axis, and a logarithmic one has no zero.
    series = {"roofline of int8": ("roofline_us", "|"), "int8": ("us", "o")}
    series["JAX bf16"] = ("bf16_us", "s")
    figure, axes = plt.subplots(figsize=(8, 0.27 * len(rows) + 1.2), layout="constrained")
    places = range(len(rows))
    for label, (key, marker) in series.items():
        # A system that failed has no mark.
        times = [row.get(key, float("nan")) for row in rows]
        axes.plot(times, places, marker, markersize=7, markeredgewidth=2, label=label)
    axes.set_yticks(places, [row["name"] for row in rows])
    axes.invert_yaxis()
    axes.set_xscale("log")
    ticks = [digit * power for power in (1, 10, 100, 1000) for digit in (1, 2, 5)]
    low, high = axes.get_xlim()
    axes.set_xticks([t for t in ticks if low <= t <= high], minor=False)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.minorticks_off()
    axes.grid(alpha=0.4)
    axes.set_xlabel("microseconds")
    axes.set_title(title)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> int | str:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "folder", type=pathlib.Path, nargs="?", default=RESULTS, help="of the JSON files"
    )
    parser.add_argument("--check", action="store_true", help="only compare, change nothing")
    args = parser.parse_args()
    folder = args.folder.resolve()
    readme = ROOT / "README.md"
    text = readme.read_text()
    summary = json.loads((folder / "summary.json").read_text())
    new = replace_section(text, figures(summary, folder.relative_to(ROOT).as_posix()))
    if args.check:
        return 0 if new == text else f"README.md is stale: run {parser.prog} {args.folder}."
    readme.write_text(new)
    layers = json.loads((folder / "layers.json").read_text())
    rows = [row for row in layers["rows"] if row["batch"] == 128]
    draw(rows, f"ResNet-50's convolutions, batch 128, {layers['device']}", folder / PICTURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
