"""The report of a network as a picture."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from jax_qconv._layer_report import INSIDE, LayerReport
from jax_qconv._spec import is_int

PANELS_IN_A_ROW = 3
ROW, PANEL, LEFT = 0.19, 1.35, 5.5
"""Inches: the height of a layer's bar and of a panel, the width of the left half."""

INT8, FLOAT, LEFT_FLOAT, CLIPPED = "C0", "C2", "0.6", "C3"
KINDS = {INT8: "int8", FLOAT: "int8 with a float output", LEFT_FLOAT: "stays float"}
"""Colours of layers, and what they mean."""


def draw(
    layers: Sequence[LayerReport],
    output_sqnr_db: float,
    path: str | os.PathLike[str],
    histograms: int,
) -> None:
    """Write a PNG; for its parts see `Report.plot`."""
    if not is_int(histograms) or histograms < 0:
        raise ValueError(f"histograms must be a number of them, got {histograms!r}.")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "the picture of a report needs matplotlib, which isn't installed; "
            "pip install 'matplotlib>=3.8', the extra `bench`."
        ) from error
    counted = [layer for layer in layers if layer.histogram is not None]
    worst = sorted(counted, key=_sqnr)[:histograms]
    rows = math.ceil(len(worst) / PANELS_IN_A_ROW)
    height = max(ROW * len(layers) + 1.6, PANEL * rows + 0.9, 3.5)
    width = LEFT + 2.4 * PANELS_IN_A_ROW if worst else LEFT
    figure: Any = Figure(figsize=(width, height), dpi=130, layout="constrained")
    if not worst:
        _bars(figure.subplots(), layers, output_sqnr_db)
    else:
        ratios = [LEFT, width - LEFT]
        left, right = figure.subfigures(1, 2, width_ratios=ratios, wspace=0.03)
        _bars(left.subplots(), layers, output_sqnr_db)
        which = "all" if len(worst) == len(counted) else f"the worst {len(worst)} of"
        title = f"Float values of {which} {len(counted)} int8 outputs, lowest SQNR first"
        right.suptitle(f"{title}, log counts", fontsize=9)
        panels = right.subplots(rows, PANELS_IN_A_ROW, squeeze=False).flatten()
        for axes, layer in zip(panels, worst, strict=False):
            _histogram(axes, layer)
        for axes in panels[len(worst) :]:
            axes.set_axis_off()
    figure.savefig(path, format="png")


def _sqnr(layer: LayerReport) -> float:
    return math.inf if layer.sqnr_db is None else layer.sqnr_db


def _color(layer: LayerReport) -> str:
    if layer.why is not None or layer.sqnr_db is None:
        return LEFT_FLOAT
    return INT8 if layer.out == "int8" else FLOAT


def _short(name: str, length: int) -> str:
    """The end of a name tells more than its beginning. A dollar doesn't begin a formula."""
    end = name if len(name) <= length else f"…{name[1 - length :]}"
    return end.replace("$", r"\$")


def _bars(axes: Any, layers: Sequence[LayerReport], output_sqnr_db: float) -> None:
    """The SQNR of each layer, from the top to the bottom; what stays float has a note for a bar."""
    finite = [_sqnr(layer) for layer in layers if math.isfinite(_sqnr(layer))]
    longest = max([*finite, 1.0])
    # In front of the line of the outputs.
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0}
    text: dict[str, Any] = {"va": "center", "fontsize": 6.5, "zorder": 3, "bbox": box}
    for place, layer in enumerate(layers):
        if layer.sqnr_db is None:
            note = textwrap.shorten(f"float: {layer.why}", 48, placeholder="…")
            axes.text(0, place, f" {note}", color="0.4", **text)
            continue
        length = min(max(layer.sqnr_db, 0.0), longest)
        axes.barh(place, length, height=0.72, color=_color(layer))
        axes.text(length, place, f" {layer.sqnr_db:.1f}", **text)
    for color, label in KINDS.items():
        if color in map(_color, layers):
            axes.barh([0], [0], color=color, label=label)
    if math.isfinite(output_sqnr_db):
        label = f"network's outputs: {output_sqnr_db:.1f} dB"
        axes.axvline(output_sqnr_db, color="k", linewidth=0.9, linestyle="--", label=label)
    axes.set_yticks(range(len(layers)), [_short(layer.name, 34) for layer in layers], fontsize=7)
    for label, layer in zip(axes.get_yticklabels(), layers, strict=True):
        label.set_color(LEFT_FLOAT if layer.sqnr_db is None else "k")
    axes.set_ylim(len(layers) - 0.4, -0.6)
    axes.set_xlim(0, longest * 1.13)
    axes.tick_params(axis="x", labelsize=7)
    axes.set_xlabel("SQNR against the float network, dB", fontsize=8)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)


def _histogram(axes: Any, layer: LayerReport) -> None:
    """Counts in bins around the range of int8, whose ends are lines."""
    counts, edges = np.array(layer.histogram), layer.edges
    clipped = np.ones(len(counts), bool)
    clipped[INSIDE] = False
    for part, color in ((~clipped, INT8), (clipped, CLIPPED)):
        axes.stairs(np.where(part, counts, 0), edges, fill=True, color=color)
    low, high = layer.clip_points
    for point in (low, high):
        axes.axvline(point, color=CLIPPED, linewidth=0.9)
    # The range of int8, and as much on its sides as there are numbers.
    (seen,) = np.nonzero(counts)
    first, last = (edges[seen[0]], edges[seen[-1] + 1]) if len(seen) else (low, high)
    margin = (high - low) / 40
    axes.set_xlim(min(first, low) - margin, max(last, high) + margin)
    axes.set_yscale("log")
    axes.set_ylim(0.7, max(counts.max(), 1) * 2)
    axes.locator_params(axis="x", nbins=4)
    axes.minorticks_off()
    axes.tick_params(labelsize=6, length=2, pad=1.5)
    axes.spines[["top", "right"]].set_visible(False)
    told = f"{_sqnr(layer):.1f} dB, clipped {layer.clipped or 0:.2%}"
    axes.set_title(f"{_short(layer.name, 32)}\n{told}", fontsize=7, pad=2)
