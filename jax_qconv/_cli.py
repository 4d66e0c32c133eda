"""The commands of `python -m jax_qconv` that tune, and that look after tuned plans."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from jax_qconv import _plan_store, _tune
from jax_qconv._networks import NETWORKS
from jax_qconv._plan_store import Entry


def tune(args: argparse.Namespace) -> str | None:
    """Tune networks; a complaint if some problem has no plan."""
    problems = {
        problem: None
        for name in args.model
        for batch in args.batch
        for layer in NETWORKS[name]
        for problem in _tune.layer_problems(layer, batch)
    }
    results = _tune.tune_all(
        problems,
        candidates=args.candidates,
        again=args.again,
        workers=args.workers,
        progress=sys.stderr,
    )
    entries = [result.entry for result in results if result.entry is not None]
    print(f"{len(entries)} tuned now, {len(problems) - len(results)} known before.")
    failed = [f"{r.problem}: {r.error}" for r in results if r.entry is None]
    return "no plan for " + "\n".join(failed) if failed else None


def list_plans(args: argparse.Namespace) -> str | None:
    """A line for each plan."""
    for entry in _matching(args.match):
        where = f"{entry.target.gpu}, cuDNN {entry.target.cudnn}"
        print(f"{entry.us:10.2f} us  {entry.plan:24} {_short(entry.problem)}  [{where}]")
    for table in _plan_store.shipped():
        where = f"{table.target.gpu}, cuDNN {table.target.cudnn}"
        if args.match in where:
            print(f"{len(table.plans)} more are shipped with the package [{where}]")
    return None


def show(args: argparse.Namespace) -> str | None:
    """Every plan that was tried, with its time or why it was rejected."""
    entries = _matching(args.match)
    for entry in entries:
        print(entry.problem)
        print(f"  {entry.target.gpu}, cuDNN {entry.target.cudnn}, {entry.date}, "
              f"{entry.tried} configurations tried")  # fmt: skip
        for row in entry.ranking:
            time = "rejected" if row["us"] is None else f"{row['us']:.2f} us"
            print(f"  {time:>12}  {row['plan']:24} {row['rejected'] or ''}".rstrip())
    return None if entries else f"no plan matches {args.match!r}; see `plans list`"


def clear(args: argparse.Namespace) -> str | None:
    """Forget plans."""
    entries = _matching(args.match)
    for entry in entries:
        _plan_store.remove(entry)
    print(f"{len(entries)} forgotten.")
    return None


def export(args: argparse.Namespace) -> str | None:
    """Write plans to a file."""
    print(f"{_plan_store.export(args.file, _matching(args.match))} written to {args.file}.")
    return None


def import_(args: argparse.Namespace) -> str | None:
    """Take plans over from a file."""
    new, kept = _plan_store.import_(args.file, replace=args.replace)
    print(f"{new} taken over, {kept} were there and are kept (--replace replaces them).")
    return None


PLANS: dict[str, Callable[[argparse.Namespace], str | None]] = {
    "list": list_plans,
    "show": show,
    "clear": clear,
    "export": export,
    "import": import_,
}
"""The actions of `plans`."""


def _matching(text: str) -> list[Entry]:
    return [
        entry
        for entry in _plan_store.entries()
        if text in f"{entry.target.gpu} {entry.target.cudnn} {entry.problem}"
    ]


def _short(problem: str) -> str:
    """What differs between most problems."""
    return " ".join(problem.split()[:4])
