"""A float network and what `quantize_model` makes of it, on data it wasn't calibrated on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jax_qconv import QuantizedModel, quantize_model


class Fold(NamedTuple):
    """What a network is calibrated on, and what is judged by it.

    Attributes:
        shown: batches for `quantize_model`.
        judged: other batches.
    """

    shown: list[Any]
    judged: list[Any]


class Comparison(NamedTuple):
    """What both networks made of the judged batches.

    Attributes:
        in_float, in_int8: an output for each batch.
        model: the int8 network of the last fold.
        fold: the last one.
    """

    in_float: list[np.ndarray]
    in_int8: list[np.ndarray]
    model: QuantizedModel
    fold: Fold


def folds(batches: Sequence[Any]) -> list[Fold]:
    """One for each batch, which is judged; the others are shown."""
    return [Fold([*batches[:i], *batches[i + 1 :]], [batch]) for i, batch in enumerate(batches)]


def in_batches(images: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
    """Images ``[1, H, W, C]`` in so many batches of equal size."""
    return np.split(np.concatenate(images), count)


def compare(
    function: Callable[..., Any], weights: Any, folds: Sequence[Fold], **options: Any
) -> Comparison:
    """Quantise a network for each fold, and run it beside the float one.

    Args:
        function: from ``weights`` and a batch to an array.
        weights: a pytree of float arrays.
        folds: data; all of their networks must do the same.
        options: of `quantize_model`.
    """
    # A GPU would else take its convolutions to be good enough in TF32.
    run_float = jax.jit(jax.default_matmul_precision("highest")(function))
    in_float, in_int8, run_int8 = [], [], None
    for fold in folds:
        model = quantize_model(function, weights, fold.shown, **options)
        # Scales are data: the program of the first fold takes those of every other.
        run_int8 = run_int8 or jax.jit(model)
        for batch in fold.judged:
            in_float.append(np.asarray(run_float(weights, batch)))
            in_int8.append(np.asarray(run_int8(model.params, batch)))
    return Comparison(in_float, in_int8, model, fold)


def print_bytes(weights: Any, model: QuantizedModel) -> None:
    """The size of all weights, before and after."""
    sizes = (sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) for tree in (weights, model.params))
    print("weights: {:,} bytes in float32, {:,} in int8".format(*sizes))
