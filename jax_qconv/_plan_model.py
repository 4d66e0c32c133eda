"""A small model of the hardware: which plan an untuned convolution should get.

A kernel of cuDNN's computes the output in tiles of so many pixels and channels, in steps of so
many bytes of the reduction. Tiles are dealt out to the multiprocessors in waves, so

    us = c0 + c1 waves + c2 waves steps + c3 tiles + c4 tiles steps + c5 bytes + c6 residual

with waves = ceil(tiles / multiprocessors). Tile sizes are part of cuDNN's kernel names; the
coefficients of each configuration are fitted on tuned plans (tests/bench/fit_model.py).
"""

from __future__ import annotations

import functools
import json
import math
from importlib import resources
from typing import Any

from jax_qconv._spec import Problem

FORMAT = 1
CHANNEL_STEP = {"cudnn:4": 16, "cudnn:7": 4}
"""Input channels that an engine wants a multiple of; others aren't modelled."""


def rank(problem: Problem, compute_capability: int) -> dict[str, float]:
    """Estimated microseconds of each plan that the model knows, the fastest first.

    Empty where there is no model: for other GPUs, and for bare int32 outputs.
    """
    model = _load(compute_capability)
    return {} if model is None else rank_by(model, problem)


def rank_by(model: dict[str, Any], problem: Problem) -> dict[str, float]:
    """`rank`, by a given model."""
    if problem.out_dtype == "int32":
        return {}
    estimates = {
        name: sum(map(float.__mul__, features(problem, c["tile"], model["sms"]), c["us"]))
        for name, c in model["configurations"].items()
        if problem.x_shape[3] % CHANNEL_STEP[name.rpartition(":")[0]] == 0
    }
    return dict(sorted(estimates.items(), key=lambda item: item[1]))


def features(problem: Problem, tile: list[int], sms: int) -> list[float]:
    """What the coefficients c0 ... c6 multiply.

    Args:
        problem: to estimate.
        tile: output pixels, output channels and reduction bytes of a step.
        sms: multiprocessors of the GPU.
    """
    n, p, q, k = problem.out_shape
    _, r, s, c = problem.w_shape
    pixels, channels, step = tile
    tiles = math.ceil(n * p * q / pixels) * math.ceil(k / channels)
    waves, share, steps = math.ceil(tiles / sms), tiles / sms, r * s * math.ceil(c / step)
    out_bytes = n * p * q * k * {"int8": 1, "float32": 4}.get(problem.out_dtype, 2)
    extra = n * p * q * k if problem.residual else 0
    moved = (math.prod(problem.x_shape) + math.prod(problem.w_shape) + out_bytes + extra) / 1e6
    # The residual is read tile by tile, at a cost of its own.
    residual = share * pixels * channels / 2**14 if problem.residual else 0.0
    return [1.0, float(waves), float(waves * steps), share, share * steps, moved, residual]


@functools.cache
def _load(compute_capability: int) -> dict[str, Any] | None:
    file = resources.files("jax_qconv") / "plans" / f"model_sm{compute_capability}.json"
    if not file.is_file():
        return None
    model = json.loads(file.read_text())
    return model if model["format"] == FORMAT else None
