"""Tuning: the fastest exact plan of each problem, found by worker processes.

Workers build plans side by side, which is what takes long, and have the GPU one at a time to
verify and time them. Their memory is their own: they take it beside the pool that JAX allocates
beforehand, so that what JAX holds stays as it is.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jax_qconv import _native, _plan_model, _plan_store
from jax_qconv._problem import Problem
from jax_qconv._spec import is_int

SILENCE_S = 120.0
"""A worker that says nothing for so long is taken for dead. No plan takes that long to build."""

WORKER = ("-m", "jax_qconv._tuning_worker")
"""What Python runs in a worker."""

MAX_WORKERS = 8
"""More don't build faster: they wait for the GPU."""

CANDIDATES = 24
"""The model's best so many are tried, beside cuDNN's suggestions, where there is a model."""


class TuningError(RuntimeError):
    """Tuning as a whole can't go on; the text says why, and what to do."""


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What came of tuning a problem.

    Attributes:
        problem: that was tuned.
        entry: what was stored for it; None if there is no exact plan, or tuning failed.
        error: why there is none.
    """

    problem: Problem
    entry: _plan_store.Entry | None
    error: str | None = None


def tune_problems(
    problems: Sequence[Problem],
    *,
    device: int,
    target: _plan_store.Target,
    candidates: int | str | None = None,
    only: Mapping[Problem, list[str]] | None = None,
    workers: int | None = None,
) -> Iterator[Tuned]:
    """Tune each problem and store what is found, as it is found.

    Args:
        problems: distinct ones.
        device: CUDA ordinal of the GPU.
        target: what it is.
        candidates: how many of the model's best to try beside cuDNN's suggestions, or ``"all"``
            configurations; None for `CANDIDATES` where there is a model, else all.
        only: the plans to try of some problems, without cuDNN's suggestions.
        workers: see `search`.
    """
    check_arguments(candidates, workers)
    by_text = {str(problem): problem for problem in problems}
    tasks = []
    for text, problem in by_text.items():
        few = _few(problem, target.compute_capability, candidates)
        named = (only or {}).get(problem)
        tasks.append(Task(text, few if named is None else named, suggestions=named is None))
    for task, result in search(tasks, device=device, workers=workers):
        problem = by_text[task.problem]
        if isinstance(result, str):
            yield Tuned(problem, None, result)
            continue
        tried = "all" if task.candidates is None else "some"
        entry = _plan_store.Entry.of_ranking(task.problem, target, result, tried=tried)
        if entry is None:
            reasons = "; ".join(f"{row['plan']}: {row['rejected']}" for row in result)
            yield Tuned(problem, None, reasons or "none was offered")
            continue
        _plan_store.save(entry)
        yield Tuned(problem, entry)


def _few(
    problem: Problem, compute_capability: int, candidates: int | str | None
) -> list[str] | None:
    """The model's best, then the own kernels that it doesn't know; None for all configurations."""
    names = list(_plan_model.rank(problem, compute_capability))
    if candidates == "all" or (candidates is None and not names):
        return None
    if not names:
        return []
    own = _native.extension().own_plans(str(problem), compute_capability)
    count = candidates if isinstance(candidates, int) else CANDIDATES
    return names[:count] + [plan for plan in own if plan not in names]


def check_arguments(candidates: Any, workers: Any) -> None:
    """Raise ValueError unless they are as `tune_problems` wants them."""
    if not (candidates in (None, "all") or (is_int(candidates) and candidates >= 0)):
        raise ValueError(f"candidates must be a count, 'all' or None, got {candidates!r}.")
    if not (workers is None or (is_int(workers) and workers > 0)):
        raise ValueError(f"workers must be a positive count or None, got {workers!r}.")


@dataclasses.dataclass
class Task:
    """A problem on its way through the workers.

    Attributes:
        problem: in its text form.
        candidates: plans to try; None for all configurations.
        suggestions: whether cuDNN's are tried beside them.
        skip: plans that took a worker down, and how.
        alone: whether plans are tried one by one, because a worker didn't survive them.
        doing: what the worker said last, and of which plans.
    """

    problem: str
    candidates: list[str] | None = None
    suggestions: bool = True
    skip: dict[str, str] = dataclasses.field(default_factory=dict)
    alone: bool = False
    doing: tuple[str, list[str]] | None = None

    def after_crash(self, how: str) -> Task:
        """What to try next, when the worker was lost."""
        doing, plans = self.doing or ("starting", [])
        self.doing = None
        if self.alone and len(plans) == 1:
            self.skip[plans[0]] = f"{doing} it, {how}"
        elif self.alone:
            raise TuningError(f"a tuning process was lost {doing} for '{self.problem}': {how}.")
        self.alone = True
        return self


Ranking = list[dict[str, Any]]


def search(
    tasks: Sequence[Task], *, device: int, workers: int | None = None
) -> Iterator[tuple[Task, Ranking | str]]:
    """Have tasks done; yields each with its ranking, or an error, as it comes.

    Args:
        tasks: what to tune.
        device: CUDA ordinal of the GPU, as this process counts them.
        workers: processes; None for half of the cores, at most `MAX_WORKERS`.

    Raises:
        TuningError: if workers can't be kept alive.
    """
    if workers is None:
        workers = max(1, min((os.cpu_count() or 2) // 2, MAX_WORKERS))
    count = min(workers, len(tasks))
    crew = _Crew(device)
    todo = collections.deque(tasks)
    try:
        for _ in range(count):
            crew.hire(todo.popleft())
        while crew.busy:
            for task, result in crew.step():
                if isinstance(result, _Lost):
                    todo.append(task.after_crash(result.how))
                else:
                    yield task, result
            while todo and len(crew.busy) < count:
                crew.hire(todo.popleft())
    finally:
        crew.dismiss()


@dataclasses.dataclass(frozen=True)
class _Lost:
    how: str


class _Worker:
    """A process, and the thread that hears it."""

    def __init__(self, hear: Callable[[_Worker, dict[str, Any] | None], None]) -> None:
        environment = os.environ | {
            "JAX_QCONV_CACHE_DIR": str(_native.cache_dir()),
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-P", *WORKER, json.dumps(loaded_libraries())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,  # Ctrl-C is the caller's, who then ends it
        )
        self.task: Task | None = None
        self.heard_s = time.monotonic()
        self.listener = threading.Thread(target=self._listen, args=(hear,), daemon=True)
        self.listener.start()

    def _listen(self, hear: Callable[[_Worker, dict[str, Any] | None], None]) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            hear(self, json.loads(line))
        hear(self, None)

    def tell(self, text: str) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # it is gone: the listener hears that too
            self.process.stdin.write(text + "\n")
            self.process.stdin.flush()

    def end(self) -> None:
        """End the process, whatever it is doing."""
        self.process.kill()
        self.process.wait()
        self.listener.join()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):  # what it didn't read any more
                    stream.close()


class _Crew:
    """The workers, and which of them has the GPU."""

    def __init__(self, device: int) -> None:
        self.device = device
        self.idle: list[_Worker] = []
        self.busy: list[_Worker] = []
        self.ready: collections.deque[_Worker] = collections.deque()
        self.on_gpu: _Worker | None = None
        self.heard: queue.Queue[tuple[_Worker, dict[str, Any] | None]] = queue.Queue()

    def hire(self, task: Task) -> None:
        """Give a task to an idle worker, or to a new one."""
        worker = self.idle.pop() if self.idle else _Worker(lambda *heard: self.heard.put(heard))
        worker.task, worker.heard_s = task, time.monotonic()
        self.busy.append(worker)
        fields = dataclasses.asdict(task) | {"device": self.device}
        worker.tell(json.dumps(fields))

    def step(self) -> Iterator[tuple[Task, Ranking | str | _Lost]]:
        """Wait for something to happen; yields the tasks that came to an end by it."""
        try:
            worker, message = self.heard.get(timeout=1.0)
        except queue.Empty:
            pass
        else:
            yield from self._on(worker, message)
        for worker in list(self.busy):
            waiting = worker in self.ready
            if not waiting and time.monotonic() - worker.heard_s > SILENCE_S:
                yield self._lose(worker, f"it didn't answer for {SILENCE_S:.0f} s")
        if self.on_gpu is None and self.ready:
            self.on_gpu = self.ready.popleft()
            self.on_gpu.heard_s = time.monotonic()
            self.on_gpu.tell("go")

    def _on(
        self, worker: _Worker, message: dict[str, Any] | None
    ) -> Iterator[tuple[Task, Ranking | str | _Lost]]:
        worker.heard_s = time.monotonic()
        if worker not in self.busy:
            return
        assert worker.task is not None
        if message is None:
            status = worker.process.wait()
            how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
            yield self._lose(worker, f"the process ended ({how})")
        elif "doing" in message:
            worker.task.doing = message["doing"], message["plans"]
        elif "ready" in message:
            self.ready.append(worker)
        elif "error" in message or "ranking" in message:
            task, worker.task = worker.task, None
            self.busy.remove(worker)
            self.idle.append(worker)
            self._leave_gpu(worker)
            yield task, message["ranking"] if "ranking" in message else str(message["error"])

    def _lose(self, worker: _Worker, how: str) -> tuple[Task, _Lost]:
        worker.end()
        self.busy.remove(worker)
        self._leave_gpu(worker)
        assert worker.task is not None
        return worker.task, _Lost(how)

    def _leave_gpu(self, worker: _Worker) -> None:
        if worker in self.ready:
            self.ready.remove(worker)
        if self.on_gpu is worker:
            self.on_gpu = None

    def dismiss(self) -> None:
        for worker in self.idle + self.busy:
            worker.end()


def loaded_libraries() -> list[str]:
    """Files of cuDNN, NVRTC and the CUDA runtime that this process has loaded."""
    names = ("libcudart.so", "libnvrtc.so", "libcudnn")
    try:
        with open("/proc/self/maps") as maps:
            files = dict.fromkeys(line.split(maxsplit=5)[5].strip() for line in maps if "/" in line)
    except OSError:
        return []
    return [file for file in files if os.path.basename(file).startswith(names)]
