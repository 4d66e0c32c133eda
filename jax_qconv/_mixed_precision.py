"""`mixed_precision`: as many layers in int8 as a wanted accuracy allows."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from jax_qconv._noise import Sums, over
from jax_qconv._quantize_model import QuantizedModel, quantize_model
from jax_qconv._rules import Rule
from jax_qconv._sensitivity import sensitivity
from jax_qconv._spec import is_int


def mixed_precision(
    function: Callable[..., Any],
    parameters: Any,
    batches: Iterable[Any],
    *,
    least_sqnr_db: float,
    most: int | None = None,
    rules: Sequence[Rule] = (),
    progress: bool = True,
    **options: Any,
) -> QuantizedModel:
    """Make an int8 network of a float one, and leave layers real until it is accurate enough.

    Layers are left real in the order of `sensitivity`, the worst first. How many it takes is found
    by halving, taking it that more real layers are nearer to the float network: the network is
    quantised about log2(number of layers) times.

    Args:
        function: as for `quantize_model`.
        parameters: as for `quantize_model`.
        batches: as for `quantize_model`, but a list or another thing that can be read again.
        least_sqnr_db: signal over the noise of quantisation that the network's outputs must have,
            on ``batches``, in dB.
        most: how many layers to leave real at most; None for any number.
        rules: as for `quantize_model`; layers that they skip are left real beside the others.
        progress: whether to show it on stderr.
        options: further ones of `quantize_model`.

    Returns:
        A `QuantizedModel`; ``model.rules`` has a rule for each layer that was left real. If
        ``most`` layers aren't enough, it comes with a warning.

    Raises:
        TypeError: if batches can be read only once.
        ValueError: if ``least_sqnr_db`` or ``most`` isn't such a number.
    """
    if iter(batches) is batches:
        raise TypeError(
            f"batches must be read several times, got {type(batches).__name__}; make a list of it."
        )
    if not isinstance(least_sqnr_db, int | float) or least_sqnr_db != least_sqnr_db:
        raise ValueError(f"least_sqnr_db must be a number of dB, got {least_sqnr_db!r}.")
    if most is not None and (not is_int(most) or most < 0):
        raise ValueError(f"most must be a number of layers or None, got {most!r}.")

    def made(rules: Sequence[Rule]) -> tuple[QuantizedModel, float]:
        model = quantize_model(
            function, parameters, batches, rules=rules, progress=progress, **options
        )
        return model, _output_sqnr(model, parameters, batches)

    model, sqnr_db = made(rules)
    if sqnr_db >= least_sqnr_db:
        return model
    ranking = sensitivity(model, parameters, batches, progress=progress)

    def leaving(count: int) -> tuple[QuantizedModel, float]:
        model, sqnr_db = made([*rules, *ranking.worst(count)])
        if progress:
            told = f"{count} of {len(ranking.sqnr_db)} layers real: outputs {sqnr_db:.1f} dB"
            print(f"mixed precision: {told}", file=sys.stderr)
        return model, sqnr_db

    # As many as `enough` reach it, `few` don't.
    few, enough = 0, len(ranking.sqnr_db) if most is None else min(most, len(ranking.sqnr_db))
    model, sqnr_db = leaving(enough)
    if sqnr_db < least_sqnr_db:
        warnings.warn(
            f"with {enough} layers left real, as many as most={most} allows, the outputs have "
            f"{sqnr_db:.1f} dB of SQNR, not {least_sqnr_db:g}; allow more.",
            stacklevel=2,
        )
        return model
    while enough - few > 1:
        middle = (few + enough) // 2
        found, sqnr_db = leaving(middle)
        if sqnr_db >= least_sqnr_db:
            model, enough = found, middle
        else:
            few = middle
    return model


def _output_sqnr(model: QuantizedModel, parameters: Any, batches: Iterable[Any]) -> float:
    """Signal over noise of a network's outputs, in dB."""

    @jax.jit
    def compare(parameters: Any, packed: Any, data: tuple[Any, ...]) -> Sums:
        wanted, got = model.function(parameters, *data), model(packed, *data)
        return Sums.of_all(jax.tree.leaves(wanted), jax.tree.leaves(got))

    return over(batches, lambda data: compare(parameters, model.params, data)).sqnr_db
