"""The figures as pictures, from what layers.json and resnet50.json hold."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from bench.readme_section import NETS, digest
from matplotlib.figure import Figure

MARKS = {
    "roofline of int8": ("roofline_us", "|"),
    "int8": ("us", "o"),
    "JAX bf16": ("bf16_us", "s"),
    "PyTorch bf16": ("torch_bf16_us", "^"),
    "PyTorch int8": ("seed_us", "x"),
    "XLA int8": ("xla_int8_us", "v"),
    "qwix": ("qwix_us", "d"),
}
"""By label: the key of a row's time, and how it is marked."""

Results = dict[str, Any]


def _resnet50(layers: Results) -> list[dict[str, Any]]:
    return [row for row in layers["rows"] if "resnet50" in row.get("suites", ["resnet50"])]


def layer_times(layers: Results) -> Figure:
    """ResNet-50's layers at batch 128: a line each, with a mark where each system is."""
    rows = [row for row in _resnet50(layers) if row["batch"] == 128]
    # Marks, not bars: times differ too much for a linear axis, and a logarithmic one has no zero.
    figure, axes = plt.subplots(figsize=(8, 0.27 * len(rows) + 1.2), layout="constrained")
    places = range(len(rows))
    for label, (key, marker) in MARKS.items():
        # A system that failed has no mark.
        times = [row.get(key, float("nan")) for row in rows]
        if not np.isnan(times).all():
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
    axes.set_title(f"ResNet-50's convolutions, batch 128, {layers['device']}")
    axes.legend()
    return figure


def roofline(layers: Results) -> Figure:
    """Operations a second over operations per byte, below both ceilings; a point for each layer."""
    rows = [row for row in layers["rows"] if "us" in row and "ops" in row]
    intensity = np.array([row["ops"] / row["bytes"] for row in rows])
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for batch in sorted({row["batch"] for row in rows}, reverse=True):
        this = np.array([row["batch"] == batch for row in rows])
        tops = np.array([row["ops"] / row["us"] / 1e6 for row in rows])
        axes.plot(intensity[this], tops[this], "o", alpha=0.7, label=f"int8, batch {batch}")
    span = np.geomspace(intensity.min() / 1.5, intensity.max() * 1.5, 200)
    nominal = layers["nominal"]
    ceilings = {"nominal": (nominal["bandwidth"] / 1e12, nominal["ops"] / 1e12)}
    if layers.get("int8_tops"):
        ceilings["reached in this run"] = layers["copy_gbps"] / 1e3, layers["int8_tops"]
    for (label, (bandwidth, peak)), style in zip(ceilings.items(), ("k-", "k--"), strict=False):
        axes.plot(span, np.minimum(span * bandwidth, peak), style, label=f"ceilings, {label}")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.grid(alpha=0.4)
    axes.set_xlabel("int8 operations per byte")
    axes.set_ylabel("int8 operations a second, 10$^{12}$")
    axes.set_title(f"Layers and the roofline, {layers['device']}")
    axes.legend()
    return figure


def networks(resnet50: Results) -> Figure:
    """Images a second of each system, a panel for each batch size."""
    batches = sorted({row["batch"] for row in resnet50["rows"]}, reverse=True)
    timed = [row for row in resnet50["rows"] if "images_per_s" in row]
    names = [name for name in NETS if any(row["system"] == name for row in timed)]
    size = (8, (0.32 * len(names) + 0.9) * len(batches))
    figure, panels = plt.subplots(
        len(batches), 1, figsize=size, layout="constrained", squeeze=False
    )
    for batch, axes in zip(batches, panels[:, 0], strict=True):
        speed = {row["system"]: row["images_per_s"] for row in timed if row["batch"] == batch}
        titles = [NETS[name].replace("`", "") for name in names]
        colors = ["C1" if name == "int8" else "C0" for name in names]
        bars = axes.barh(titles, [speed.get(name, 0) for name in names], color=colors)
        labels = [f"{speed[name]:,.0f}" if name in speed else "not measured" for name in names]
        axes.bar_label(bars, labels, padding=3)
        axes.margins(x=0.15)
        axes.invert_yaxis()
        axes.set_title(f"ResNet-50, images a second, batch {batch}, {resnet50['device']}")
    return figure


DRAWN: dict[str, Callable[[Results], Figure]] = {
    "layers_b128.png": layer_times,
    "roofline.png": roofline,
    "resnet50.png": networks,
}
"""Who draws which of `readme_section.PICTURES`."""


def draw(picture: str, source: bytes, path: pathlib.Path) -> None:
    """A picture of what a JSON file holds; it keeps the file's `digest`."""
    figure = DRAWN[picture](json.loads(source))
    figure.savefig(path, dpi=120, metadata={"Source": digest(source)})
    plt.close(figure)
