"""Which plan a call gets when it is lowered."""

from __future__ import annotations

import contextlib
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp

from jax_qconv import _native, _plan_model, _plan_store, _tuning
from jax_qconv._problem import Problem
from jax_qconv._spec import is_int

AUTOTUNE = ("cached", "on", "off")
"""What may be looked up and tuned when a call is lowered; see `plan_for`."""

DEFERRED = "auto"
"""Plan name of a call that is lowered without a choice: each device makes its own."""

CUDNN = "cudnn"
"""The same, among cuDNN's plans only."""


# JAX's caches of traced and compiled functions tell its values apart.
_target: Any = jax.make_user_context(None)


def target(
    gpu: str, *, compute_capability: int, cudnn: str
) -> contextlib.AbstractContextManager[None]:
    """Choose plans for a GPU that isn't here, in functions that are lowered in this context.

    For programs that are compiled ahead of time, or that all processes of a job must lower alike.
    Functions that were compiled outside of it are compiled again.

    Args:
        gpu: name of the model as the driver has it, such as ``"NVIDIA H100 80GB HBM3"``.
        compute_capability: of the GPU, such as 90 for sm_90.
        cudnn: version that will run, such as ``"9.19.0"``.

    Returns:
        A context manager. Plans come from the user's store, the package's tables and the model
        of the hardware, as for a local GPU; nothing is tuned.

    Raises:
        ValueError: if one of them can't be what it should be.
    """
    check_compute_capability(compute_capability)
    for name, text, form in (("gpu", gpu, r".*\w.*"), ("cudnn", cudnn, r"\d+(\.\d+)+")):
        if not isinstance(text, str) or not re.fullmatch(form, text):
            raise ValueError(
                f"{name} must be the {'name of a GPU' if name == 'gpu' else 'version of cuDNN'}, "
                f"such as {'NVIDIA H100 80GB HBM3' if name == 'gpu' else '9.19.0'}, got {text!r}."
            )
    return _target(_plan_store.Target(gpu, int(compute_capability), cudnn))


def check_compute_capability(value: Any) -> None:
    """Raises ValueError if it can't be one."""
    if not is_int(value) or value < 50:
        raise ValueError(
            f"compute_capability must be a number such as 90 for sm_90, got {value!r}."
        )


def plan_for(problem: Problem, plan: str | None, autotune: str, *, cudnn_only: bool = False) -> str:
    """The name of the plan to write into the call; with ``cudnn_only`` one of cuDNN's.

    In order: the plan named by the caller; for the GPU of `target` or else the local one, unless
    ``autotune`` is ``"off"``, a stored plan (the user's, or the package's table); with ``"on"``,
    the best of a search made now, on a local GPU; the package's plan for the same convolution with
    another epilogue; what the model of the hardware picks; `DEFERRED`, what engines suggest, tried
    where the call first runs. All but the caller's are verified before they run, and replaced if
    they aren't exact.
    """
    if plan is not None:
        return _native.extension().parse_plan(plan)
    deferred = CUDNN if cudnn_only else DEFERRED
    device, on = None, _target.value
    if on is None:
        device = local_gpu()
        if device is None:
            return deferred
        on = target_of(device)
    # All processes must lower the same program: stores and timings would make them differ.
    alone = jax.process_count() == 1
    found = None
    if autotune != "off":
        find = _plan_store.find if alone else _plan_store.find_shipped
        found = find(str(problem), on)
    best = None if found is None else found.plan
    if autotune == "on" and alone and device is not None and not (found and found.exact):
        best = _tune(problem, device, cudnn_only)
    if best is None and autotune != "off":
        similar = _plan_store.similar_plans(problem, on.compute_capability, on.gpu)[:1]
        best = next((plan for plan in similar if _can_run(plan, problem)), None)
    if best is not None and (best.startswith(CUDNN) or not cudnn_only):
        return best
    ranked = _plan_model.rank(problem, on.compute_capability)
    return next((plan for plan in ranked if plan.startswith(CUDNN) or not cudnn_only), deferred)


def _can_run(plan: str, problem: Problem) -> bool:
    """Whether a plan's engine takes a problem: this package's kernels don't take all."""
    engines = {own.partition(":")[0] for own in _native.extension().own_plans(str(problem))}
    return plan.startswith(CUDNN) or plan.partition(":")[0] in engines


def current_target() -> _plan_store.Target | None:
    """What plans are chosen for: the GPU of `target`, or the one that computes here, or None."""
    if _target.value is not None:
        return _target.value
    (device,) = jnp.zeros(()).devices()
    return local_target() if device.platform == "gpu" else None


def local_gpu() -> int | None:
    """Ordinal of the GPU that plans are chosen on, or None without one."""
    try:
        return jax.local_devices(backend="cuda")[0].local_hardware_id
    except RuntimeError:
        return None


def local_target() -> _plan_store.Target | None:
    """What plans for the local GPU are tuned for, or None without one."""
    device = local_gpu()
    return None if device is None else target_of(device)


@functools.cache
def target_of(device: int) -> _plan_store.Target:
    """What plans for a GPU are tuned for. The backend that uses it must have been started."""
    return _plan_store.Target(**_native.extension().device(device))


def _tune(problem: Problem, device: int, cudnn_only: bool) -> str:
    (result,) = _tuning.tune_problems([problem], device=device, target=target_of(device))
    if result.entry is None:
        raise _native.EngineUnavailableError(
            f"cuDNN has no plan that can run {problem} exactly ({result.error}). "
            "Use implementation='reference', or another padding of the channels (pad_to=)."
        )
    if not cudnn_only:
        return result.entry.plan
    exact = (row["plan"] for row in result.entry.ranking if row["us"] is not None)
    return next((plan for plan in exact if plan.startswith(CUDNN)), CUDNN)
