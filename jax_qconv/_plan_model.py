"""A small model of the hardware: which plan an untuned convolution should get.

A kernel computes the output in tiles of so many pixels and channels, in steps of so many bytes of
the reduction. Tiles are dealt out to the multiprocessors, each with room for so many
of them, in waves: ``waves = ceil(tiles / places)``, of which the last may be partly empty. A
configuration's time is a sum of what it does in every wave, for every tile, and for every byte
(`features`); its coefficients are fitted on tuned plans (tests/bench/fit_model.py). Tile sizes are
part of the names of cuDNN's kernels, and of the plans of this package's 1x1 kernel.
"""

from __future__ import annotations

import functools
import json
import math
from importlib import resources
from typing import Any

from jax_qconv import _native
from jax_qconv._problem import Problem

FORMAT = 1
HOPPER, AMPERE = "cudnn:4", "cudnn:7"
HOPPER_STEP = 16
"""Input channels that the Hopper engine wants a multiple of."""
AMPERE_END = 64
"""Input channels from which on the older engine was never the fastest."""

FIRST_LAYER = 4
"""Up to so many input channels the kernel of first layers is the fastest, and cuDNN's far off."""

POINTWISE, POINTWISE_STEP = "pointwise:0", 32
"""This package's kernel, and the channels of its products."""


def rank(problem: Problem, compute_capability: int) -> dict[str, float]:
    """Estimated microseconds of each plan that the model knows, the fastest first.

    Empty where there is no model: for other GPUs, bare int32 outputs, groups, three axes, and first
    layers, which have a kernel of their own.
    """
    model = _load(compute_capability)
    return {} if model is None else rank_by(model, problem)


def rank_by(model: dict[str, Any], problem: Problem) -> dict[str, float]:
    """`rank`, by a given model."""
    if problem.out_dtype == "int32" or problem.rank != 2 or problem.groups != 1:
        return {}
    channels = problem.x_shape[3]
    own = _native.extension().own_plans(str(problem))
    if channels <= FIRST_LAYER and own and not own[0].startswith(POINTWISE):
        return {}
    suits = {HOPPER: channels % HOPPER_STEP == 0, AMPERE: channels < AMPERE_END}
    known = model["configurations"]
    estimates = {
        name: estimate(problem, known[name]) for name in known if suits.get(name.rpartition(":")[0])
    }
    for plan in own:
        name, tile = pointwise_configuration(plan)
        if name in known:
            estimates[plan] = estimate(problem, known[name] | {"tile": tile})
    return dict(sorted(estimates.items(), key=lambda item: item[1]))


def pointwise_configuration(plan: str) -> tuple[str, list[int]]:
    """The name of a plan of the 1x1 kernel without its channels, which few problems share.

    Returns:
        That name, and the tile as `features` takes it: of all the tiles that a block makes.
    """
    engine, _, knobs = plan.rpartition(":")
    if engine != POINTWISE:
        return plan, []
    sizes = {name: int(size) for name, size in (knob.split("=") for knob in knobs.split(","))}
    name = f"{POINTWISE}:rows={sizes['rows']},run={sizes['run']}"
    return name, [sizes["rows"] * sizes["run"], sizes["cols"], POINTWISE_STEP]


def estimate(problem: Problem, configuration: dict[str, Any]) -> float:
    """Microseconds by one configuration of the model."""
    found = features(problem, configuration["tile"], configuration["places"])
    return sum(map(float.__mul__, found, configuration["us"]))


def features(problem: Problem, tile: list[int], places: int) -> list[float]:
    """What the coefficients of a configuration multiply.

    Args:
        problem: to estimate.
        tile: output pixels, output channels and reduction bytes of a step.
        places: tiles that the GPU works on at a time.
    """
    n, p, q, k = problem.out_shape
    _, r, s, c = problem.w_shape
    pixels, channels, step = tile
    tiles = math.ceil(n * p * q / pixels) * math.ceil(k / channels)
    waves, share = math.ceil(tiles / places), tiles / places
    # A step that the channels don't fill takes its time, but moves fewer bytes.
    steps, filled = r * s * math.ceil(c / step), r * s * c / step
    x_bytes, w_bytes = math.prod(problem.x_shape), math.prod(problem.w_shape)
    outputs = n * p * q * k
    out_bytes = outputs * {"int8": 1, "float32": 4}.get(problem.out_dtype, 2)
    residual = outputs if problem.residual else 0
    return [
        1.0,
        float(waves),
        float(waves * steps),
        waves * filled,
        share,
        share * steps,
        share * filled,
        share * pixels * channels / 2**14 if problem.residual else 0.0,
        (x_bytes + w_bytes + out_bytes + residual) / 1e6,
        x_bytes / 1e6,
        out_bytes / 1e6,
        n * p * q / 1e6,
    ]


@functools.cache
def _load(compute_capability: int) -> dict[str, Any] | None:
    file = resources.files("jax_qconv") / "plans" / f"model_sm{compute_capability}.json"
    if not file.is_file():
        return None
    model = json.loads(file.read_text())
    return model if model["format"] == FORMAT else None
