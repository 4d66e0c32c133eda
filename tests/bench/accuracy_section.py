"""The accuracy of README.md as text, all of it from accuracy.json."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bench.readme_section import table

OPTIONS = {
    "symmetric": "symmetric",
    "asymmetric": "asymmetric",
    "asymmetric_corrected": "asymmetric, biases corrected",
    "compensated": "and compensated rounding",
}
"""Options of `quantize_model`, by their names in accuracy.json."""

MEASURES = {
    "top1": ("top-1 right; float32: {float_top1}", "{top1}"),
    "top5": ("top-5 right; float32: {float_top5}", "{top5}"),
    "same_top1": ("top-1 as in float32", "{same_top1}"),
    "mean_logit_sqnr_db": (
        "SQNR of logits, mean (least), dB",
        "{mean_logit_sqnr_db:.1f} ({least_logit_sqnr_db:.1f})",
    ),
    "mean_psnr_db": ("PSNR, mean (least), dB", "{mean_psnr_db:.1f} ({least_psnr_db:.1f})"),
    "equal_lines": ("lines read as in float32", "{equal_lines}"),
    "accuracy": ("right, %; float32: {float_accuracy:.2f}", "{accuracy:.2f}"),
    "loss": ("points lost", "{loss:.2f}"),
    "agreement": ("answers as in float32, %", "{agreement:.2f}"),
}
"""What is shown of a network, if it has it: a label and a cell, both made of its figures."""

AT_MOST = frozenset({"loss"})
"""Figures whose goals they mustn't exceed; others have to reach theirs."""

Results = dict[str, dict[str, Any]]


def section(results: Results, path: str) -> str:
    """The section; ``path`` is that of accuracy.json, as seen from README.md."""
    dates = sorted({net["date"] for net in results.values()})
    seconds = sum(net["seconds"] for net in results.values())
    between = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    devices = " and ".join(sorted({net["device"] for net in results.values()}))
    heads = ["network", "judged on", "", "goal", *OPTIONS.values()]
    lines = [
        f"Measured by `python tests/bench/accuracy.py` ({devices}, {between}, {seconds / 60:.0f} "
        f"minutes in all); [accuracy.json]({path}) has the commit and JAX of each network. Figures "
        "that miss their goal are in italics.",
        "",
        *table(heads, [row for net in results.values() for row in _rows(net)], left=3),
    ]
    return "\n".join(lines)


def _rows(net: dict[str, Any]) -> Iterator[list[str]]:
    """A line for each measure of a network."""
    first = [net["title"], net["judged"]]
    for name, (label, cell) in MEASURES.items():
        figures = [net.get(option, {}) for option in OPTIONS]
        if name not in figures[0]:
            continue
        goal = net["goals"].get(name)
        bound = "≤" if name in AT_MOST else "≥"
        cells = [_cell(name, cell, found, goal) for found in figures]
        yield [
            *first,
            label.format(**figures[0]),
            "" if goal is None else f"{bound} {goal}",
            *cells,
        ]
        first = ["", ""]


def _cell(name: str, cell: str, found: dict[str, float], goal: float | None) -> str:
    """A figure, in italics if it misses its goal; nothing where there is none."""
    text = cell.format(**found) if found else ""
    return f"*{text}*" if found and _misses(name, found[name], goal) else text


def _misses(name: str, value: float, goal: float | None) -> bool:
    return goal is not None and (value > goal if name in AT_MOST else value < goal)
