"""Fit the model of the hardware (jax_qconv/_plan_model.py) to tuned plans, and test it.

    python tests/bench/fit_model.py tests/bench/results/h200 --sms 132

Reads rankings.json (see rankings.py) and tiles_sm90.json, writes jax_qconv/plans/model_sm90.json
and model.json with what the model's picks cost on problems that it wasn't fitted on.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import statistics
from typing import Any

import numpy as np
from scipy.optimize import nnls

from jax_qconv import _plan_model
from jax_qconv._spec import Problem

HERE = pathlib.Path(__file__).parent
PLANS = pathlib.Path(_plan_model.__file__).parent / "plans"
LEAST_SAMPLES = 12
"""Configurations with fewer times are left out: seven coefficients can't be fitted to them."""


def fit(rows: list[dict[str, Any]], tiles: dict[str, list[int]], sms: int) -> dict[str, Any]:
    """The model of the times of each configuration; coefficients aren't negative."""
    configurations = {}
    for name, tile in tiles.items():
        timed = [
            (Problem.parse(row["problem"]), row["us"][name]) for row in rows if name in row["us"]
        ]
        if len(timed) < LEAST_SAMPLES:
            continue
        found = np.array([_plan_model.features(problem, tile, sms) for problem, _ in timed])
        us = np.array([time for _, time in timed])
        # Divided by the time: what counts is the relative error.
        coefficients, _ = nnls(found / us[:, None], np.ones(len(us)))
        configurations[name] = {"tile": tile, "us": [float(f"{c:.5g}") for c in coefficients]}
    return {"format": _plan_model.FORMAT, "sms": sms, "configurations": configurations}


def judge(rows: list[dict[str, Any]], model: dict[str, Any]) -> dict[str, Any]:
    """What the model's picks cost, as ratios to the best plan that tuning found."""
    ratios = {}
    for row in rows:
        ranked = _plan_model.rank_by(model, Problem.parse(row["problem"]))
        pick = next(iter(ranked), None)
        if pick in row["us"]:
            ratios[row["problem"]] = row["us"][pick] / min(row["us"].values())
    return {
        "problems": len(rows),
        "picked": len(ratios),
        "geomean": math.exp(statistics.fmean(map(math.log, ratios.values()))) if ratios else None,
        "worst": max(ratios.values(), default=None),
        "ratios": {p: round(r, 4) for p, r in sorted(ratios.items(), key=lambda item: -item[1])},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path, help="of rankings.json")
    parser.add_argument("--sms", type=int, default=132, help="multiprocessors of the GPU")
    args = parser.parse_args()
    rankings = json.loads((args.folder / "rankings.json").read_text())
    tiles = json.loads((HERE / "tiles_sm90.json").read_text())
    table = [row for row in rankings["rows"] if row["split"] == "table"]
    held_out = [row for row in rankings["rows"] if row["split"] == "held out"]
    model = fit(table, tiles, args.sms)
    PLANS.mkdir(exist_ok=True)
    (PLANS / "model_sm90.json").write_text(
        json.dumps(model, indent=None).replace('}, "', '},\n"') + "\n"
    )
    verdict = {
        **{name: rankings[name] for name in ("gpu", "cudnn", "date", "commit")},
        "fitted_on": judge(table, model),
        "held_out": judge(held_out, model),
    }
    (args.folder / "model.json").write_text(json.dumps(verdict, indent=1) + "\n")
    for split in ("fitted_on", "held_out"):
        print(split, {k: v for k, v in verdict[split].items() if k != "ratios"})


if __name__ == "__main__":
    main()
