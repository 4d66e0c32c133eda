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
from jax_qconv._problem import Problem

HERE = pathlib.Path(__file__).parent
PLANS = pathlib.Path(_plan_model.__file__).parent / "plans"
SPLITS = ("table", "sweep", "held out")
"""Of rankings.json: what ships, sweeps of all configurations (the table's candidates were chosen
by an earlier model, which alone would believe itself), and what the model is tested on."""
LEAST_SAMPLES = 14
"""Configurations with fewer times are left out: there are a dozen coefficients to fit."""
TILES_PER_SM = (1, 2, 3, 4)
"""That may be resident on a multiprocessor; which, no name tells, so all are tried."""


def fit(rows: list[dict[str, Any]], tiles: dict[str, list[int]], sms: int) -> dict[str, Any]:
    """The model of the times of each configuration."""
    configurations = {}
    for name, timed in _by_configuration(rows, tiles).items():
        if len(timed) < LEAST_SAMPLES:
            continue
        fits = [_coefficients(timed, sms * resident) for resident in TILES_PER_SM]
        best = min(range(len(fits)), key=lambda index: fits[index][0])
        us = [float(f"{c:.5g}") for c in fits[best][1]]
        configurations[name] = {"places": sms * TILES_PER_SM[best], "us": us}
        if name in tiles:
            configurations[name]["tile"] = tiles[name]
    return {"format": _plan_model.FORMAT, "configurations": configurations}


Timed = list[tuple[Problem, list[int], float]]
"""Problems, with the tile and the microseconds of a configuration."""


def _by_configuration(rows: list[dict[str, Any]], tiles: dict[str, list[int]]) -> dict[str, Timed]:
    found: dict[str, Timed] = {}
    for row in rows:
        problem = Problem.parse(row["problem"])
        for plan, us in row["us"].items():
            name, tile = _plan_model.pointwise_configuration(plan)
            tile = tile or tiles.get(name)
            if tile:
                found.setdefault(name, []).append((problem, tile, us))
    return found


def _coefficients(timed: Timed, places: int) -> tuple[float, np.ndarray]:
    """The median relative error of the best coefficients, none of them negative."""
    found = np.array([_plan_model.features(problem, tile, places) for problem, tile, _ in timed])
    us = np.array([time for *_, time in timed])
    # Divided by the time, for what counts is the relative error; and times that are far off, which
    # something else on the machine may have disturbed, count less and less.
    weights, errors, coefficients = np.ones(len(us)), np.zeros(len(us)), np.zeros(0)
    for _ in range(6):
        coefficients, _ = nnls(found * (weights / us)[:, None], weights)
        errors = found @ coefficients / us - 1
        weights = 1 / np.sqrt(1 + (errors / 0.1) ** 2)
    return float(np.median(np.abs(errors))), coefficients


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
    split = {name: [row for row in rankings["rows"] if row["split"] == name] for name in SPLITS}
    table, held_out = split["table"], split["held out"]
    model = fit(table + split["sweep"], tiles, args.sms)
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
