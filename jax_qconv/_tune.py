"""`tune`: find the fastest plans for all convolutions of a function beforehand."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, TextIO

import jax
import jax.numpy as jnp

from jax_qconv import _native, _plan_store, _plans, _tuning
from jax_qconv._collect import problems_of
from jax_qconv._conv import qconv
from jax_qconv._networks import Layer
from jax_qconv._pack import prepack
from jax_qconv._problem import Problem
from jax_qconv._quantize import QTensor
from jax_qconv._tuning import Tuned


def tune(
    fn: Callable[..., Any],
    *args: Any,
    candidates: int | str | None = None,
    again: bool = False,
    workers: int | None = None,
    progress: bool = True,
) -> list[Tuned]:
    """Find and store the fastest exact plan of each distinct convolution that ``fn`` makes.

    Later compilations, in this process and others, take the plans from the store. A function that
    was compiled before keeps its plans: tune first, or call ``jax.clear_caches()``.

    Each candidate is compared with the exact convolution in every element; one that differs, fails
    or crashes is recorded with the reason and never used. It all happens in processes of their own,
    whose GPU memory lies beside the pool that JAX allocates beforehand. Interrupted, it keeps what
    is finished; the next run goes on from there.

    Args:
        fn: a function of arrays; it is traced, not run.
        args: as it is called: arrays or `jax.ShapeDtypeStruct`.
        candidates: how many plans to try beside those that cuDNN suggests, the best ones by the
            model of the hardware, or ``"all"`` of its configurations; None means 24, or all
            for a GPU without a model.
        again: whether to tune what has been tuned on this GPU model with this cuDNN.
        workers: processes; None for half of the cores, 8 at most.
        progress: whether to show it on stderr.

    Returns:
        What was found for each problem that was tuned now, with its ranking.

    Raises:
        EngineUnavailableError: without a GPU that cuDNN can be used on.
        TuningError: if the tuning processes can't be kept alive.
    """
    return tune_all(
        problems_of(fn, *args),
        candidates=candidates,
        again=again,
        workers=workers,
        progress=sys.stderr if progress else None,
    )


def tune_all(
    problems: Iterable[Problem],
    *,
    candidates: int | str | None,
    again: bool,
    workers: int | None,
    progress: TextIO | None,
) -> list[Tuned]:
    """`tune`, of problems; ``progress`` is where to show it."""
    _tuning.check_arguments(candidates, workers)
    device = _plans.local_gpu()
    if device is None:
        raise _native.EngineUnavailableError(
            "tuning needs a CUDA device, and JAX has none here; see `python -m jax_qconv info`."
        )
    target = _plans.target_of(device)
    todo = [p for p in problems if again or not _is_known(p, target)]
    results: list[Tuned] = []
    start = time.monotonic()
    for result in _tuning.tune_problems(
        todo, device=device, target=target, candidates=candidates, workers=workers
    ):
        results.append(result)
        if progress is not None:
            _show(progress, results, len(todo), time.monotonic() - start)
    if progress is not None and results:
        print(file=progress)
    return results


def _is_known(problem: Problem, target: _plan_store.Target) -> bool:
    found = _plan_store.find(str(problem), target)
    return found is not None and found.exact


def _show(out: TextIO, results: list[Tuned], total: int, seconds: float) -> None:
    """One line, written over: how far, how long still, and the last result."""
    last, done = results[-1], len(results)
    left = seconds / done * (total - done)
    what = last.error or ""
    if last.entry is not None:
        what = f"{last.entry.us:.1f} us with {last.entry.plan}"
    shapes = " ".join(str(last.problem).split()[:2])
    bar = "#" * (20 * done // total)
    print(f"\r[{bar:20}] {done}/{total}, {left:.0f} s left: {shapes}: {what:.60}\033[K",
          end="" if out.isatty() else "\n", file=out, flush=True)  # fmt: skip


def layer_problem(
    layer: Layer,
    batch: int,
    *,
    pad_to: tuple[int, int] | None = None,
    merge_groups: int | None = None,
) -> Problem:
    """The problem of a layer as `prepack` and `qconv` make it, int8 to int8.

    Args:
        layer: of a network.
        batch: size.
        pad_to: channels to store, (C, K); None for those of the rule.
        merge_groups: how many groups to store as one; None for as many as by the rule.
    """

    def call(x: jax.Array, weight: jax.Array, residual: jax.Array | None) -> jax.Array:
        packed = prepack(
            weight,
            weight_scale=1.0,
            layout="OHWI",
            strides=layer.stride,
            padding=layer.padding,
            groups=layer.groups,
            pad_to=pad_to,
            merge_groups=merge_groups,
        )
        out = qconv(
            QTensor(x, 1.0),
            packed,
            residual=None if residual is None else QTensor(residual, 1.0),
            out_scale=1.0,
            activation="relu" if layer.relu else None,
        )
        assert isinstance(out, QTensor)
        return out.values

    x = jax.ShapeDtypeStruct((batch, layer.h, layer.w, layer.c), jnp.int8)
    weight = jax.ShapeDtypeStruct((layer.k, layer.r, layer.s, layer.c // layer.groups), jnp.int8)
    out = jax.eval_shape(call, x, weight, None)
    residual = jax.ShapeDtypeStruct((*out.shape[:3], layer.k), jnp.int8)
    (problem,) = problems_of(call, x, weight, residual if layer.residual else None)
    return problem
