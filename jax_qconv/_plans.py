"""Which plan a call gets when it is lowered."""

from __future__ import annotations

import functools

import jax

from jax_qconv import _native, _plan_model, _plan_store, _tuning
from jax_qconv._problem import Problem

AUTOTUNE = ("cached", "on", "off")
"""What may be looked up and tuned when a call is lowered; see `plan_for`."""

DEFERRED = "cudnn"
"""Plan name of a call that is lowered without a choice: each device makes its own."""


def plan_for(problem: Problem, plan: str | None, autotune: str) -> str:
    """The name of the plan to write into the call.

    In order: the plan named by the caller; unless ``autotune`` is ``"off"``, a stored one (the
    user's, or the package's table); with ``"on"``, the best of a search made now; what the model
    of the hardware picks; `DEFERRED`, cuDNN's own suggestions tried where the call first runs.
    All but the caller's are verified before they run, and replaced if they aren't exact.
    """
    if plan is not None:
        return _native.extension().parse_plan(plan)
    device = local_gpu()
    if device is None or jax.process_count() > 1:
        # All processes must lower the same program; stores and timings would make them differ.
        return DEFERRED
    target = target_of(device)
    found = None if autotune == "off" else _plan_store.find(str(problem), target)
    if autotune == "on" and (found is None or not found.exact):
        return _tune(problem, device)
    if found is not None:
        return found.plan
    return next(iter(_plan_model.rank(problem, target.compute_capability)), DEFERRED)


def local_gpu() -> int | None:
    """Ordinal of the GPU that plans are chosen on, or None without one."""
    try:
        return jax.local_devices(backend="cuda")[0].local_hardware_id
    except RuntimeError:
        return None


@functools.cache
def target_of(device: int) -> _plan_store.Target:
    """What plans for a GPU are tuned for. The backend that uses it must have been started."""
    return _plan_store.Target(**_native.extension().device(device))


def _tune(problem: Problem, device: int) -> str:
    (result,) = _tuning.tune_problems([problem], device=device, target=target_of(device))
    if result.entry is None:
        raise _native.EngineUnavailableError(
            f"cuDNN has no plan that can run {problem} exactly ({result.error}). "
            "Use implementation='reference', or another padding of the channels (pad_to=)."
        )
    return result.entry.plan
