"""Which plan a call gets when it is lowered, and the memory of earlier choices."""

from __future__ import annotations

import hashlib
import json
import pathlib
import tempfile
import threading
import warnings
from concurrent.futures import Future
from typing import Any

import jax

from jax_qconv import _native
from jax_qconv._spec import Problem

DEFERRED = "cudnn"
"""Plan name of a call that is lowered without a choice: each device makes its own."""


def plan_for(problem: Problem, plan: str | None) -> str:
    """The name of the plan to write into the call.

    In order: the plan named by the caller; this process's and this user's earlier choice for
    the same problem, GPU model and cuDNN; the fastest of cuDNN's heuristic plans that needs
    no workspace and passes verification on the local GPU; where there is no GPU, or there are
    several processes, `DEFERRED`.
    """
    if plan is not None:
        return _native.extension().parse_plan(plan)
    if jax.process_count() > 1:
        # All processes must lower the same program; timings would make them differ.
        return DEFERRED
    device = _local_gpu()
    return DEFERRED if device is None else _choose_once(problem, device)


def _local_gpu() -> int | None:
    """Ordinal of the GPU that plans are chosen on, or None without one."""
    try:
        return jax.local_devices(backend="cuda")[0].local_hardware_id
    except RuntimeError:
        return None


_choices: dict[tuple[Problem, int], Future[str]] = {}
_choices_lock = threading.Lock()


def _choose_once(problem: Problem, device: int) -> str:
    """`_choose`, remembered. One thread chooses, others that ask for the same wait for it."""
    choice: Future[str] = Future()
    with _choices_lock:
        known = _choices.setdefault((problem, device), choice)
    if known is not choice:
        return known.result()
    try:
        choice.set_result(_choose(problem, device))
    except BaseException as error:
        # It may pass (out of memory, say): those who wait hear of it, the next one tries again.
        with _choices_lock:
            del _choices[problem, device]
        choice.set_exception(error)
    return choice.result()


def _choose(problem: Problem, device: int) -> str:
    ext = _native.extension()
    key = {"problem": str(problem), **ext.device(device)}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    path = _native.cache_dir() / "plans" / f"{digest}.json"
    stored = _read(path)
    if stored is not None and all(stored.get(name) == value for name, value in key.items()):
        try:
            return ext.parse_plan(stored["plan"])
        except ValueError as error:
            _warn(f"{path} holds no plan of this version and is replaced ({error}).")
    ranking = ext.search(str(problem), device)
    best = min((c for c in ranking if c["us"] is not None), key=lambda c: c["us"], default=None)
    if best is None:
        rejected = "; ".join(f"{c['plan']}: {c['rejected']}" for c in ranking) or "none was offered"
        raise _native.EngineUnavailableError(
            f"cuDNN has no plan that can run {problem} exactly ({rejected}). "
            "Use implementation='reference', or another padding of the channels (pad_to=)."
        )
    _write(path, {**key, "plan": best["plan"], "ranking": ranking})
    return best["plan"]


def _read(path: Any) -> dict[str, Any] | None:
    try:
        stored = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _warn(f"{path} can't be read and is ignored ({error}).")
        return None
    return stored if isinstance(stored, dict) and isinstance(stored.get("plan"), str) else None


def _write(path: Any, stored: dict[str, Any]) -> None:
    """Atomically: a reader sees the old file or the new one. A full disk costs only time."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            temporary = pathlib.Path(file.name)
            json.dump(stored, file, indent=1)
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        _warn(f"{path} can't be written: the search will be repeated ({error}).")


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=2)
