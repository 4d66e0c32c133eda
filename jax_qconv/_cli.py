"""The commands of `python -m jax_qconv` that tune, and look after tuned plans and kernels."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from jax_qconv import _choices, _kernels, _merges, _paddings, _plan_store, _plans, _tune
from jax_qconv._choices import Case, Times
from jax_qconv._columns import columns
from jax_qconv._networks import NETWORKS, Layer
from jax_qconv._plan_store import Entry
from jax_qconv._problem import Problem
from jax_qconv._tuning import Tuned


def tune(args: argparse.Namespace) -> str | None:
    """Tune networks; a complaint if some problem has no plan."""
    layers = _layers(args.model)
    paddings = _paddings.cases(layers, args.batch) if args.paddings else []
    merges = _merges.cases(layers, args.batch) if args.merges else []
    by_rule = _problems(layers, args.batch)
    problems = list(dict.fromkeys([*by_rule, *_choices.problems([*paddings, *merges])]))
    results = _tune.tune_all(
        problems,
        candidates=args.candidates,
        again=args.again,
        workers=args.workers,
        progress=sys.stderr,
    )
    entries = [result.entry for result in results if result.entry is not None]
    print(f"{len(entries)} tuned now, {len(problems) - len(results)} known before.")
    if args.paddings:
        lines = [_paddings.line(times) for times in _times(paddings, results) if times.pays]
        print("\n".join(lines) or "No padding is faster than the rule's.")
    if args.merges:
        lines = [_merges.line(times) for times in _times(merges, results)]
        print("\n".join(lines) or "No layer has groups to merge.")
    failed = [f"{r.problem}: {r.error}" for r in results if r.entry is None]
    return "no plan for " + "\n".join(failed) if failed else None


def _times(cases: list[Case], results: list[Tuned]) -> list[Times]:
    """What is known here after tuning."""
    target = _plans.local_target()
    assert target is not None  # else there was nothing to tune on
    us = _choices.known_us(target, results)
    return [Times.of(case, us) for case in cases]


def _layers(models: list[str]) -> list[Layer]:
    return list(dict.fromkeys(layer for name in models for layer in NETWORKS[name]))


def _problems(layers: list[Layer], batches: list[int]) -> list[Problem]:
    return list(dict.fromkeys(_tune.layer_problem(layer, n) for layer in layers for n in batches))


def list_plans(args: argparse.Namespace) -> str | None:
    """A line for each plan."""
    rows = [_row(entry, "store") for entry in _matching(args.match)]
    shipped = _matching(args.match, shipped=True)
    if args.shipped:
        rows += [_row(entry, "package") for entry in shipped]
    if rows:
        print(columns(COLUMNS, rows, numbers=("us",)))
    else:
        print(f"No plans in {_plan_store.root()}.")
    if shipped and not args.shipped:
        print(f"{len(shipped)} more come with the package (--shipped).")
    return None


def show(args: argparse.Namespace) -> str | None:
    """Every plan that was tried, with its time or why it was rejected."""
    entries = _matching(args.match) + _matching(args.match, shipped=True)
    for entry in entries:
        tried = f"{len(entry.ranking)} plans tried ({entry.tried} configurations)"
        print(entry.problem)
        print(f"  {_plan_store.digest(entry.problem)}, {entry.target.gpu}, "
              f"cuDNN {entry.target.cudnn}, {entry.date}, jax_qconv {entry.version}, "
              f"{tried if entry.ranking else 'without its ranking'}")  # fmt: skip
        for row in entry.ranking or [{"us": entry.us, "plan": entry.plan, "rejected": None}]:
            time = "rejected" if row["us"] is None else f"{row['us']:.2f} us"
            print(f"  {time:>12}  {row['plan']:24} {row['rejected'] or ''}".rstrip())
    return None if entries else _no_match(args.match)


def clear(args: argparse.Namespace) -> str | None:
    """Forget plans."""
    if not args.all and not args.match.strip():
        return "an empty --match would forget every plan; use --all for that"
    entries = _matching("" if args.all else args.match)
    for entry in entries:
        _plan_store.remove(entry)
    print(f"{len(entries)} forgotten.")
    return None if entries or args.all else _no_match(args.match)


def export(args: argparse.Namespace) -> str | None:
    """Write plans to a file."""
    entries = _matching(args.match)
    count = _plan_store.export(args.file, entries, rankings=args.rankings)
    print(f"{count} written to {args.file}.")
    return None


def import_(args: argparse.Namespace) -> str | None:
    """Take plans over from a file."""
    new, kept = _plan_store.import_(args.file, replace=args.replace)
    print(f"{new} taken over, {kept} were there and are kept (--replace replaces them).")
    return None


def export_kernels(args: argparse.Namespace) -> str | None:
    """Write the own kernels that networks may need to a file."""
    calls = [(problem, None) for problem in _problems(_layers(args.model), args.batch)]
    count = _kernels.export(args.file, calls, args.compute_capability)
    print(f"{count} written to {args.file}.")
    return None


def load_kernels(args: argparse.Namespace) -> str | None:
    """Take kernels over from a file."""
    print(f"{_kernels.load_kernels(args.file)} taken over.")
    return None


PLANS: dict[str, Callable[[argparse.Namespace], str | None]] = {
    "list": list_plans,
    "show": show,
    "clear": clear,
    "export": export,
    "import": import_,
}
"""The actions of `plans`."""

KERNELS = {"export": export_kernels, "load": load_kernels}
"""The actions of `kernels`."""


COLUMNS = ("digest", "us", "plan", "tried", "problem", "GPU", "cuDNN", "from")
DEFAULTS = {
    "strides=1,1", "padding=0,0,0,0", "dilation=1,1", "groups=1", "out=int8", "activation=none",
    "slope=0.0", "residual=0",
}  # fmt: skip
"""Words of a problem that a table needs no room for."""
DIGEST = 8
"""Characters of a digest that are shown, and the fewest that name one."""


def _matching(text: str, *, shipped: bool = False) -> list[Entry]:
    """The entries, of the user or of the package, that have every word of a text."""
    tables = _plan_store.shipped() if shipped else []
    entries = [e for t in tables for e in t.entries()] if shipped else _plan_store.entries()
    return [entry for entry in entries if all(_has(entry, word) for word in text.split())]


def _has(entry: Entry, word: str) -> bool:
    if "=" in word:  # whole numbers: x=1 is not x=128
        return any(f"{field},".startswith(f"{word},") for field in entry.problem.split())
    if len(word) >= DIGEST and _plan_store.digest(entry.problem).startswith(word):
        return True
    where = f"{entry.target.gpu} {entry.target.cudnn} {entry.plan} {entry.problem}"
    return word.lower() in where.lower()


def _no_match(text: str) -> str:
    return f"no plan matches {text!r}; see `python -m jax_qconv plans list`"


def _row(entry: Entry, source: str) -> tuple[str, ...]:
    tried = f"{len(entry.ranking)} ({entry.tried})" if entry.ranking else entry.tried
    problem = " ".join(word for word in entry.problem.split() if word not in DEFAULTS)
    name = _plan_store.digest(entry.problem)[:DIGEST]
    target = entry.target
    return (name, f"{entry.us:.2f}", entry.plan, tried, problem, target.gpu, target.cudnn, source)
