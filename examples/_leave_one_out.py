"""A network in float32 and in int8 on the same photos, each with scales calibrated on the others.

Scales are data: the same compiled program takes those of every photo.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

PERCENTILE = 99.99  # of a photo's absolute activations; what is larger saturates

Scales = dict[str, float]


class Comparison(NamedTuple):
    """What both made of the photos.

    Attributes:
        in_float, in_int8: logits ``[photos, 1000; float32]``.
        float_seconds, int8_seconds: of each photo; the first includes the compilation.
        plans: the plans of the int8 program, and how often each occurs.
    """

    in_float: np.ndarray
    in_int8: np.ndarray
    float_seconds: np.ndarray
    int8_seconds: np.ndarray
    plans: Counter[str]


def leave_one_out(
    images: list[np.ndarray],
    run_float: Callable[..., tuple[jax.Array, dict[str, list[jax.Array]]]],
    weights: Any,
    run_int8: Any,
    packs: Any,
) -> Comparison:
    """Run both on every image.

    Args:
        images: what the network takes, one for each photo.
        run_float: from ``weights`` and an image to logits, and to the activations that need a
            scale: lists of those that share one, under its name.
        weights: as ``run_float`` takes them.
        run_int8: from ``packs``, scales by name and an image to logits; jitted.
        packs: as ``run_int8`` takes them.
    """
    in_float, in_int8, float_seconds, int8_seconds, ranges = [], [], [], [], []
    for image in tqdm(images, desc="float32, calibration", unit="photo"):
        (logits, activations), seconds = timed(run_float, weights, image)
        in_float.append(logits)
        float_seconds.append(seconds)
        ranges.append({name: clip_range(tensors) for name, tensors in activations.items()})
    for i, image in enumerate(tqdm(images, desc="int8", unit="photo")):
        logits, seconds = timed(run_int8, packs, scales_without(ranges, i), image)
        in_int8.append(logits)
        int8_seconds.append(seconds)
    program = run_int8.lower(packs, scales_without(ranges, 0), images[0]).as_text()
    results = map(np.stack, (in_float, in_int8, float_seconds, int8_seconds))
    return Comparison(*results, plans(program))


def timed(function: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    """The result, on the host, and the seconds that it took to compute."""
    start = time.perf_counter()
    result = jax.block_until_ready(function(*args))
    return jax.device_get(result), time.perf_counter() - start


def clip_range(tensors: list[np.ndarray]) -> float:
    """Where to clip tensors that share a scale: the largest of their percentiles."""
    return max(float(np.percentile(np.abs(t), PERCENTILE)) for t in tensors)


def scales_without(ranges: list[dict[str, float]], photo: int) -> Scales:
    """Scales that cover the ranges of all photos but one, which isn't looked at."""
    others = ranges[:photo] + ranges[photo + 1 :]
    return {name: max(r[name] for r in others) / 127 for name in others[0]}


def plans(program: str) -> Counter[str]:
    """The plans that a lowered program names, and how often; none where the reference runs."""
    return Counter(re.findall(r'\bplan = "(.*?)"', program))
