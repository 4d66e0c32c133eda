"""Tests on a real GPU: skipped without one, or failed where JAX_QCONV_REQUIRE_GPU=1 forbids that.

With JAX_QCONV_GPU_REPORT=FILE they leave a JSON account of what passed and how much was compared.
"""

from __future__ import annotations

import collections
import concurrent.futures
import datetime
import json
import os
import pathlib
import threading
from typing import Any

import jax
import oracle
import pytest
from bench import record

import jax_qconv

HERE = pathlib.Path(__file__).parent


def _gpus() -> list[jax.Device]:
    try:
        return jax.local_devices(backend="cuda")
    except RuntimeError:
        return []


def pytest_collection_modifyitems(items):
    """Mark everything here; skip it without a GPU, unless that is forbidden."""
    ours = [item for item in items if HERE in pathlib.Path(item.fspath).parents]
    for item in ours:
        item.add_marker(pytest.mark.gpu)
    if not ours or _gpus():
        return
    if os.environ.get("JAX_QCONV_REQUIRE_GPU") == "1":
        pytest.exit("JAX_QCONV_REQUIRE_GPU=1, but JAX has no CUDA device", returncode=3)
    for item in ours:
        item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU"))


@pytest.fixture(autouse=True)
def default_device():
    """Run on the first GPU."""
    with jax.default_device(_gpus()[0]):
        yield


@pytest.fixture(scope="session")
def gpus() -> list[jax.Device]:
    """All GPUs."""
    return _gpus()


@pytest.fixture
def threads():
    """This process's share of the cores."""
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    share = max(2, (os.cpu_count() or 1) // processes)
    with concurrent.futures.ThreadPoolExecutor(min(16, share)) as pool:
        yield pool


class Account:
    """What was compared in the whole run; several threads may add to it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.elements = 0
        self.seeds: list[int] = []
        self.plans: collections.Counter[str] = collections.Counter()
        self.refused: collections.Counter[str] = collections.Counter()

    def same(self, got, want) -> None:
        """Assert that two arrays are equal bit for bit, and count their elements."""
        oracle.assert_same(got, want)
        with self.lock:
            self.elements += want.size

    def as_json(self) -> dict[str, Any]:
        """What another process can `add`."""
        return {
            "elements": self.elements,
            "seeds": self.seeds,
            "plans": dict(self.plans),
            "refused": dict(self.refused),
        }

    def add(self, other: dict[str, Any]) -> None:
        """Add the account of another process."""
        self.elements += other["elements"]
        self.seeds += other["seeds"]
        self.plans.update(other["plans"])
        self.refused.update(other["refused"])


@pytest.fixture(scope="session")
def account(request) -> Account:
    """The account of this run."""
    return request.config.stash.setdefault(_ACCOUNT, Account())


_ACCOUNT = pytest.StashKey[Account]()


def pytest_sessionfinish(session):
    """A process of pytest-xdist hands in its account."""
    if hasattr(session.config, "workeroutput") and _ACCOUNT in session.config.stash:
        session.config.workeroutput["account"] = session.config.stash[_ACCOUNT].as_json()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """The process that started it adds it to its own."""
    if "account" in (getattr(node, "workeroutput", None) or {}):
        account = node.config.stash.setdefault(_ACCOUNT, Account())
        account.add(node.workeroutput["account"])


def pytest_terminal_summary(terminalreporter, config):
    """Write the report."""
    path = os.environ.get("JAX_QCONV_GPU_REPORT")
    if not path or not _gpus():
        return
    account = config.stash.setdefault(_ACCOUNT, Account())
    info = jax_qconv.info()
    counts = {
        name: len([r for r in terminalreporter.stats.get(name, []) if "gpu" in r.keywords])
        for name in ("passed", "failed", "error", "skipped")
    }
    report = counts | {
        "elements_compared": account.elements,
        "random_problems": len(account.seeds),
        "seeds": sorted(account.seeds),
        "plans_of_random_problems": dict(account.plans.most_common()),
        "plans_refused": dict(account.refused.most_common()),
        "device": _gpus()[0].device_kind,
        "devices": len(_gpus()),
        "jax": info.jax,
        "cudnn": info.cudnn,
        "driver": info.driver,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": record.commit(),
    }
    pathlib.Path(path).write_text(json.dumps(report, indent=1) + "\n")
