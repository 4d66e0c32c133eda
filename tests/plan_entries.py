"""What tests of the store of plans share: made-up entries, and an empty store."""

import dataclasses

from jax_qconv import _native, _plan_store
from jax_qconv._plan_store import Entry, Target

TARGET = Target("NVIDIA Test GPU", 90, "9.12.0")
SIBLING = dataclasses.replace(TARGET, gpu="NVIDIA Sibling")
RANKING = [
    {"plan": "cudnn:4:cfg=26", "us": 5.0, "rejected": None},
    {"plan": "cudnn:4:cfg=2", "us": 7.0, "rejected": None},
    {"plan": "cudnn:7:cfg=3", "us": None, "rejected": "element 3 is 4, not 5"},
]


def problem(n=1):
    return (
        f"x={n},8,8,16 w=16,3,3,16 strides=1,1 padding=1,1,1,1 dilation=1,1 groups=1 "
        "out=int8 activation=none slope=0.0 residual=0"
    )


def entry(n=1, target=TARGET, plan="cudnn:4:cfg=26", us=5.0, ranking=RANKING):
    return Entry(problem(n), target, plan, us, "all", "2026-01-31", "0.1.0", ranking)


def empty_store(monkeypatch, tmp_path):
    """The folder of a store that is empty, with no shipped tables beside it."""
    monkeypatch.setattr(_native, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(_plan_store, "shipped", lambda: ())
    return tmp_path / "cache" / "plans"


def plan_of(n=1, target=TARGET):
    found = _plan_store.find(problem(n), target)
    return found and found.plan


def stored(store, suffix=".json"):
    """The only such file of a store."""
    (path,) = (path for path in store.rglob("*") if path.is_file() and suffix in path.name)
    return path
