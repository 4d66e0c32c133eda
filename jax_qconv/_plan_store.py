"""The memory of tuned plans: the user's own, on disk, and tables that come with the package.

The user's store has a JSON file for each problem, below the cache folder:
``plans/<gpu>/cudnn-<version>/<digest of the problem>.json``. Files are replaced as a whole, so
several processes may write, and one that is killed leaves no half a file. A table is one file
with the plans of many problems, without their rankings.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import hashlib
import json
import pathlib
import re
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from importlib import metadata, resources
from typing import Any

from jax_qconv import _native

FORMAT = 1
"""Of the files. Those of a newer format are left alone."""


@dataclasses.dataclass(frozen=True)
class Target:
    """What plans are tuned for.

    Attributes:
        gpu: name of the model, as the driver has it.
        compute_capability: 90 for sm_90.
        cudnn: version, such as ``"9.19.0"``.
    """

    gpu: str
    compute_capability: int
    cudnn: str


@dataclasses.dataclass(frozen=True)
class Entry:
    """What tuning found for a problem.

    Attributes:
        problem: its text form.
        target: where it was tuned.
        plan: the fastest exact one.
        us: its time, in microseconds.
        tried: ``"all"`` configurations, or ``"some"``.
        date: of the tuning, ISO.
        version: of this package.
        ranking: the plans that were tried, the fastest first: dicts of ``plan``, ``us`` and, where
            that is None, ``rejected``, the reason.
    """

    problem: str
    target: Target
    plan: str
    us: float
    tried: str
    date: str
    version: str
    ranking: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @classmethod
    def of_ranking(
        cls, problem: str, target: Target, ranking: list[dict[str, Any]], *, tried: str
    ) -> Entry | None:
        """The entry of a ranking made today; None if none of its plans is exact."""
        best = next((row for row in ranking if row["us"] is not None), None)
        if best is None:
            return None
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        version = metadata.version("jax_qconv")
        return cls(problem, target, best["plan"], best["us"], tried, today, version, ranking)

    @classmethod
    def from_json(cls, fields: Any) -> Entry:
        """Raises KeyError, TypeError or ValueError on what isn't an entry of this format."""
        values = {f.name: fields[f.name] for f in dataclasses.fields(cls) if f.name != "target"}
        target = Target(**{f.name: fields[f.name] for f in dataclasses.fields(Target)})
        values["plan"] = _native.extension().parse_plan(values["plan"])
        return cls(target=target, **values | {"us": float(values["us"])})

    def to_json(self) -> dict[str, Any]:
        """The opposite of `from_json`; what is short comes first."""
        fields = dataclasses.asdict(self)
        ranking = fields.pop("ranking")
        return {"format": FORMAT, **fields.pop("target"), **fields, "ranking": ranking}


@dataclasses.dataclass(frozen=True)
class Found:
    """A stored plan.

    Attributes:
        plan: its name.
        source: where it comes from, in words.
        exact: whether it was tuned on this model of GPU with this cuDNN; else it is a hint.
    """

    plan: str
    source: str
    exact: bool


def find(problem: str, target: Target) -> Found | None:
    """The plan for a problem, from the first of these that has one.

    The user's store, for this cuDNN and then for others; the table shipped for this model of GPU;
    those shipped for others of its architecture.
    """
    folder = root() / _slug(target.gpu)
    own = _path(problem, target)
    others = sorted(folder.glob(f"*/{own.name}"), reverse=True) if folder.is_dir() else []
    for path in [own, *(other for other in others if other != own)]:
        entry = read(path)
        if entry is not None and entry.problem == problem:
            exact = entry.target == target
            return Found(entry.plan, f"tuned here with cuDNN {entry.target.cudnn}", exact)
    tables = [t for t in shipped() if t.target.compute_capability == target.compute_capability]
    for table in sorted(tables, key=lambda table: table.target.gpu != target.gpu):
        if problem in table.plans:
            made_on = f"{table.target.gpu} with cuDNN {table.target.cudnn}"
            plan = table.plans[problem]["plan"]
            return Found(plan, f"shipped, tuned on {made_on}", table.target == target)
    return None


def save(entry: Entry) -> None:
    """Put an entry into the user's store. Where that fails, a warning says so."""
    _write(_path(entry.problem, entry.target), entry.to_json())


def entries() -> Iterator[Entry]:
    """All of the user's store."""
    for path in sorted(root().glob("*/cudnn-*/*.json")):
        entry = read(path)
        if entry is not None:
            yield entry


def remove(entry: Entry) -> None:
    """Take an entry out of the user's store."""
    _path(entry.problem, entry.target).unlink(missing_ok=True)


def read(path: pathlib.Path) -> Entry | None:
    """The entry of a file; None without one. What can't be read is set aside, with a warning."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    except OSError as error:
        _warn(f"{path} can't be read and is ignored ({error}).")
        return None
    try:
        fields = json.loads(text)
        if fields["format"] > FORMAT:
            _warn(f"{path} is of a newer version of jax_qconv and is ignored.")
            return None
        return Entry.from_json(fields)
    except (KeyError, TypeError, ValueError) as error:
        mark = hashlib.sha256(text.encode()).hexdigest()[:8]
        kept = path.with_name(f"{path.name}.corrupt-{mark}")
        _warn(f"{path} holds no plan ({error!r}) and is set aside as {kept.name}.")
        with contextlib.suppress(OSError):  # else it stays where it is, and is complained of again
            path.replace(kept)
        return None


@dataclasses.dataclass(frozen=True)
class Table:
    """The plans of many problems, tuned on one target.

    Attributes:
        target: where they were tuned.
        plans: by problem, dicts of `Entry`'s ``plan``, ``us``, ``tried``, ``date``, ``version``.
    """

    target: Target
    plans: dict[str, dict[str, Any]]


@functools.cache
def shipped() -> tuple[Table, ...]:
    """The tables that come with this package."""
    folder = resources.files("jax_qconv") / "plans"
    files = [file for file in folder.iterdir() if file.name.startswith("nvidia")]
    return tuple(_as_table(json.loads(file.read_text())) for file in files)


def export(path: pathlib.Path, chosen: Iterable[Entry]) -> int:
    """Write entries of one target as a table; returns how many.

    Raises:
        ValueError: if there are none, or of several targets.
    """
    chosen = list(chosen)
    targets = sorted({str(entry.target) for entry in chosen})
    if len(targets) != 1:
        what = f"these are of {', '.join(targets)}; name one" if targets else "there are none"
        raise ValueError(f"a table holds plans for one GPU model and cuDNN, but {what}.")
    kept = ("plan", "us", "tried", "date", "version")
    plans = {entry.problem: {name: getattr(entry, name) for name in kept} for entry in chosen}
    target = dataclasses.asdict(chosen[0].target)
    # A line for each problem, so that differences between tables can be read.
    lines = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(plans.items()))
    head = json.dumps({"format": FORMAT, **target})
    path.write_text(f'{head[:-1]}, "plans": {{\n{lines}\n}}}}\n')
    return len(plans)


def import_(path: pathlib.Path, *, replace: bool = False) -> tuple[int, int]:
    """Put the plans of a table into the user's store.

    Args:
        path: of a file made by `export`.
        replace: whether to replace plans that the store has for the same problem and target.

    Returns:
        How many were put there, and how many were there before and kept.

    Raises:
        ValueError: if it isn't a table of this version.
    """
    try:
        table = _as_table(json.loads(path.read_text()))
        found = [
            Entry.from_json({"ranking": [], **dataclasses.asdict(table.target), "problem": p, **v})
            for p, v in table.plans.items()
        ]
    except (KeyError, TypeError, ValueError) as error:
        what = f"{path} is no table of plans that this version reads ({error!r})."
        raise ValueError(what) from error
    new = [e for e in found if replace or not _path(e.problem, e.target).exists()]
    for entry in new:
        save(entry)
    return len(new), len(found) - len(new)


def root() -> pathlib.Path:
    """The folder of the user's store."""
    return _native.cache_dir() / "plans"


def _as_table(fields: Any) -> Table:
    if fields["format"] != FORMAT:
        raise ValueError(f"its format is {fields['format']}, not {FORMAT}")
    target = Target(**{f.name: fields[f.name] for f in dataclasses.fields(Target)})
    return Table(target, fields["plans"])


def _slug(gpu: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")


def _path(problem: str, target: Target) -> pathlib.Path:
    digest = hashlib.sha256(problem.encode()).hexdigest()[:24]
    return root() / _slug(target.gpu) / f"cudnn-{target.cudnn}" / f"{digest}.json"


def _write(path: pathlib.Path, fields: dict[str, Any]) -> None:
    """Atomically: a reader sees the old file or the new one. A full disk costs only time."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            temporary = pathlib.Path(file.name)
            json.dump(fields, file, indent=1)
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        _warn(f"{path} can't be written: the plan will be searched for again ({error}).")


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=3)
