"""Classifiers of ImageNet photos in float32 and in int8: what the two examples have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from _folds import Fold, compare, folds, in_batches, print_bytes
from _photos import Photo

from jax_qconv import report

MIN_AGREEMENT = 0.9  # of the top-1 classes


def judge(
    function: Callable[..., Any],
    weights: Any,
    photos: list[Photo],
    preprocess: Callable[[np.ndarray], np.ndarray],
    **options: Any,
) -> int | str:
    """Compare both networks on all photos, each judged by one that was calibrated on others.

    Args:
        function: from ``weights`` and images ``[N, H, W, 3; float32]`` to logits.
        weights: a pytree of float arrays.
        photos: a multiple of four.
        preprocess: from pixels to what the function takes.
        options: of `quantize_model`.

    Returns:
        0, or what is wrong: the exit status of the program.
    """
    found = compare(function, weights, quarters(photos, preprocess), **options)
    print(report(found.model, weights, found.fold.judged), end="\n\n")
    print_bytes(weights, found.model)
    labels = np.array([photo.label for photo in photos])
    return print_comparison(labels, np.concatenate(found.in_float), np.concatenate(found.in_int8))


def quarters(photos: list[Photo], preprocess: Callable[[np.ndarray], np.ndarray]) -> list[Fold]:
    """Four folds: in each a quarter of the photos is judged, in one batch."""
    return folds(in_batches([preprocess(photo.image) for photo in photos], 4))


def signal_to_noise(exact: np.ndarray, approximate: np.ndarray) -> np.ndarray:
    """Decibels of each row."""
    noise = np.square(exact - approximate).sum(-1)
    return 10 * np.log10(np.square(exact).sum(-1) / noise)


def top(logits: np.ndarray, depth: int) -> np.ndarray:
    """The likeliest classes of each row, ``[photos, depth; int]``."""
    return np.argsort(-logits, axis=-1)[:, :depth]


def hits(labels: np.ndarray, logits: np.ndarray, depth: int) -> int:
    """How many labels are among the likeliest classes."""
    return int((top(logits, depth) == labels[:, None]).sum())


def figures(labels: np.ndarray, in_float: np.ndarray, in_int8: np.ndarray) -> dict[str, float]:
    """Of logits ``[photos, classes; float32]``, by name; ``labels`` are ``[photos; int]``."""
    decibels = signal_to_noise(in_float, in_int8)
    return {
        "float_top1": hits(labels, in_float, 1),
        "top1": hits(labels, in_int8, 1),
        "float_top5": hits(labels, in_float, 5),
        "top5": hits(labels, in_int8, 5),
        "same_top1": int((top(in_float, 1) == top(in_int8, 1)).sum()),
        "mean_logit_sqnr_db": float(decibels.mean()),
        "least_logit_sqnr_db": float(decibels.min()),
    }


def print_comparison(labels: np.ndarray, in_float: np.ndarray, in_int8: np.ndarray) -> int | str:
    """Print a row per photo and the totals.

    Args:
        labels: ``[photos; int]``.
        in_float, in_int8: logits ``[photos, classes; float32]``.

    Returns:
        0, or what is wrong: the exit status of the program.
    """
    row = "{:>5} {:>6} {:>9} {:>6} {:>6} {:>9}".format
    print(row("photo", "label", "float32", "int8", "agree", "SQNR dB"))
    decibels = signal_to_noise(in_float, in_int8)
    for i, (label, exact, quantised) in enumerate(
        zip(labels, top(in_float, 1)[:, 0], top(in_int8, 1)[:, 0], strict=True)
    ):
        agree = "yes" if exact == quantised else "no"
        print(row(i, label, exact, quantised, agree, f"{decibels[i]:.1f}"))

    found, total = figures(labels, in_float, in_int8), "{:14} {:>10} {:>10}".format
    print("\n" + total("", "float32", "int8"))
    for name in ("top1", "top5"):
        counts = (f"{found[key]}/{len(labels)}" for key in (f"float_{name}", name))
        print(total(f"top-{name[-1]}", *counts))
    print(f"top-1 classes agree on {found['same_top1']}/{len(labels)}")
    print(f"mean logit SQNR: {found['mean_logit_sqnr_db']:.1f} dB")
    if found["same_top1"] < MIN_AGREEMENT * len(labels):
        return f"int8 agrees with float32 on {found['same_top1']} of {len(labels)} photos only."
    return 0
