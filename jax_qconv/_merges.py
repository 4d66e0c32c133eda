"""Whether other numbers of merged groups than the rule's would be faster: `tune_merges`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

import jax

from jax_qconv import _choices, _groups, _plans, _tune
from jax_qconv._choices import Case, Times
from jax_qconv._collect import problems_of
from jax_qconv._networks import Layer
from jax_qconv._pack import prepack, unpack
from jax_qconv._packed_conv import PackedConv, check_format

MAX_WASTE = 64
"""Merged groups have at most so many times the products and the bytes of weights.

A depthwise 3x3 has 9 operations for each byte that it reads or writes, and an H100 does 590 in the
time that a byte takes: up to 64 times as many are hidden behind the memory. Groups that are wider,
or larger kernels, have more to do from the beginning.
"""

MAX_CHANNELS = 512
"""A merged group has at most so many channels.

On an H100, one dense group of 128 channels took 0.7 of the time that two groups of 64 took, with
twice the products: cuDNN's dense kernels do 3 times as much as its grouped ones. At 512 channels
the products are 8 times those of groups of 64: a margin beyond which there is nothing to gain.
"""


def choices(channels: int, out_channels: int, groups: int) -> list[int]:
    """How many groups to merge, the rule's first, then all that waste no more than is allowed."""
    by_rule = _groups.merge_by_rule(channels, out_channels, groups)
    width = max(channels, out_channels) // groups
    most = min(MAX_WASTE, MAX_CHANNELS // width)
    allowed = _groups.allowed_merges(channels, out_channels, groups)
    # None at all may be wider than that already.
    return list(dict.fromkeys([by_rule, *(n for n in allowed if n <= max(most, 1))]))


def cases(layers: Iterable[Layer], batches: Iterable[int]) -> list[Case]:
    """All choices for all layers that have groups."""
    grouped = [layer for layer in layers if layer.groups > 1]
    return _choices.of_layers(
        "merge_groups", lambda layer: choices(layer.c, layer.k, layer.groups), grouped, batches
    )


def line(times: Times) -> str:
    """The time of each choice, and whether one pays, in words."""
    case = times.case
    notes = {case.by_rule: " (by rule)"}
    found = [f"{n}{notes.get(n, '')} {us:.2f} us" for n, us in times.us.items()]
    found += [f"{n}{notes.get(n, '')} no plan" for n in case.problems if n not in times.us]
    verdict = "the rule's will do"
    if times.pays:
        best = next(iter(times.us))
        verdict = f"{case.argument}={best} is {times.gain:.2f} times as fast as the rule's"
    elif case.by_rule not in times.us:
        verdict = "the rule's has no plan to compare with"
    return f"{case.name}: {case.argument}={', '.join(found)}; {verdict}"


def tune_merges(
    fn: Callable[..., Any],
    packed: PackedConv,
    *args: Any,
    candidates: int | str | None = None,
    again: bool = False,
    workers: int | None = None,
    progress: bool = True,
) -> dict[int, float]:
    """Find how many groups of a convolution `prepack` should merge: the times of all that may pay.

    Each number is tuned as by `tune`. None changes the results, and none is remembered: packs must
    be equal on all machines. Pass the one that you choose to `prepack` as ``merge_groups=``.

    A number that merges groups to more than 512 channels, or has more than 64 times the products,
    is left out, but for the rule's own. Where another number of channels would be stored than
    neighbours have (`PackedConv.stored_channels`), what it takes to pad or cut them isn't counted.

    Args:
        fn: a function of a pack and arrays that convolves; it is traced, not run. For example
            ``lambda packed, x: qconv(x, packed, out_scale=0.1, activation="relu")``.
        packed: unbound, from `prepack`; of arrays or `jax.ShapeDtypeStruct`.
        args: what ``fn`` is called with beside packs: arrays or `jax.ShapeDtypeStruct`.
        candidates, again, workers, progress: see `tune`.

    Returns:
        Microseconds by number of merged groups, the fastest first. Numbers without an exact plan
        are missing; differences of less than 3 % are noise.

    Raises:
        TypeError, ValueError: if ``packed`` isn't an unbound pack with groups to merge.
        EngineUnavailableError: without a GPU that cuDNN can be used on.
        TuningError: if the tuning processes can't be kept alive.
    """
    check_format(packed)
    if packed.groups == 1 or packed.transpose:
        raise ValueError(f"packed has no groups that could be merged in several ways: {packed!r}.")
    if packed.binding is not None:
        raise ValueError(
            "packed is bound, to constants that other numbers of merged groups would have in other "
            "places; take one that isn't, and give the scales to qconv."
        )
    by_rule, *others = choices(packed.in_channels, packed.out_channels, packed.groups)
    problems = {
        merge: problems_of(fn, _shapes(packed, merge), *args) for merge in (by_rule, *others)
    }
    case = Case("packed", "merge_groups", by_rule, problems)
    results = _tune.tune_all(
        list(dict.fromkeys(_choices.problems([case]))),
        candidates=candidates,
        again=again,
        workers=workers,
        progress=sys.stderr if progress else None,
    )
    target = _plans.local_target()
    assert target is not None  # else there was nothing to tune on
    return dict(Times.of(case, _choices.known_us(target, results)).us)


def _shapes(packed: PackedConv, merge: int) -> PackedConv:
    """The pack with so many groups merged, as shapes."""

    def again(packed: PackedConv) -> PackedConv:
        weight, weight_scale, bias = unpack(packed)
        return prepack(
            weight,
            bias,
            weight_scale=weight_scale,
            strides=packed.strides,
            padding=packed.padding,
            dilation=packed.dilation,
            groups=packed.groups,
            merge_groups=merge,
        )

    return jax.eval_shape(again, packed)
