"""The memory of tuned plans: the user's own, on disk, and tables that come with the package.

The user's store has a JSON file for each problem, below the cache folder:
``plans/<gpu>/cudnn-<version>/<digest of the problem>.json``. Files are replaced as a whole, so
several processes may write, and one that is killed leaves no half a file. A table is one file
with the plans of many problems, mostly without their rankings.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import json
import math
import pathlib
import re
import uuid
import warnings
from collections.abc import Iterable, Iterator
from importlib import metadata, resources
from typing import Any

from jax_qconv import _native
from jax_qconv._problem import Problem

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

    @classmethod
    def from_json(cls, fields: Any) -> Target:
        """Raises as `Entry.from_json` does. Names become folders: they must not lead elsewhere."""
        target = cls(**{field.name: fields[field.name] for field in dataclasses.fields(cls)})
        good = isinstance(target.compute_capability, int) and _slug(target.gpu)
        if not good or not re.fullmatch(r"[0-9]+(\.[0-9]+)*", target.cudnn):
            raise ValueError(f"{target} is no GPU with a version of cuDNN")
        return target


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
        values["plan"] = _native.extension().parse_plan(values["plan"])
        values["us"] = float(values["us"])
        texts = (values[name] for name in ("problem", "tried", "date", "version"))
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("a text is missing")
        if not (math.isfinite(values["us"]) and values["us"] > 0):
            raise ValueError(f"us is {values['us']}")
        if not all({"plan", "us", "rejected"} <= row.keys() for row in values["ranking"]):
            raise ValueError("the ranking is incomplete")
        return cls(target=Target.from_json(fields), **values)

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
        us: its time where it was tuned, in microseconds.
    """

    plan: str
    source: str
    exact: bool
    us: float


def find(problem: str, target: Target) -> Found | None:
    """The plan for a problem, from the first of these that has one.

    The user's store, for this cuDNN and then for others; the table shipped for this model of GPU;
    those shipped for others of its architecture.
    """
    for path in _paths(problem, target):
        entry = read(path)
        if entry is not None:
            exact = entry.target == target
            source = f"tuned here with cuDNN {entry.target.cudnn}"
            return Found(entry.plan, source, exact, entry.us)
    return find_shipped(problem, target)


def find_shipped(problem: str, target: Target) -> Found | None:
    """The plan for a problem from the package's tables only: the same in every process."""
    for table in _tables_for(target.compute_capability, target.gpu):
        if problem in table.plans:
            made_on = f"{table.target.gpu} with cuDNN {table.target.cudnn}"
            entry = table.plans[problem]
            exact = table.target == target
            return Found(entry["plan"], f"shipped, tuned on {made_on}", exact, entry["us"])
    return None


def similar_plans(problem: Problem, compute_capability: int, gpu: str = "") -> list[str]:
    """Shipped plans of convolutions that differ in their padding or what follows them only.

    Of tables of an architecture, that of the very model of GPU first.
    """
    tables = _tables_for(compute_capability, gpu)
    found = [(table, table.by_geometry.get(problem.geometry)) for table in tables]
    return [table.plans[similar]["plan"] for table, similar in found if similar is not None]


def _tables_for(compute_capability: int, gpu: str) -> list[Table]:
    """Those of an architecture, that of the very model first."""
    tables = [t for t in shipped() if t.target.compute_capability == compute_capability]
    return sorted(tables, key=lambda table: table.target.gpu != gpu)


def plans_by_problem(compute_capability: int) -> dict[str, list[str]]:
    """The plans that `find` may choose on the GPUs of an architecture."""
    tables = [entry for table in shipped() for entry in table.entries()]
    plans: dict[str, list[str]] = {}
    for entry in [*entries(), *tables]:
        if entry.target.compute_capability == compute_capability:
            plans.setdefault(entry.problem, []).append(entry.plan)
    return plans


def save(entry: Entry) -> bool:
    """Put an entry into the user's store; returns whether it is there, and warns if not.

    A file of a newer version of this package is left as it is.
    """
    path = _path(entry.problem, entry.target)
    if read(path) is None and path.exists():
        _warn(f"{path} is not replaced: the plan will be searched for again.")
        return False
    draft = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            draft.write_text(json.dumps(entry.to_json(), indent=1) + "\n")
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        _warn(f"{path} can't be written: the plan will be searched for again ({error}).")
        return False
    return True


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
        status = path.stat()
        return _parse(path, (status.st_ino, status.st_mtime_ns, status.st_size))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        _warn(f"{path} can't be read and is ignored ({error}).")
        return None


@functools.lru_cache(maxsize=1024)
def _parse(path: pathlib.Path, version: tuple[int, int, int]) -> Entry | None:
    """`read`, once for each version of a file."""
    del version
    content = path.read_bytes()
    try:
        fields = json.loads(content)
        if fields["format"] > FORMAT:
            _warn(f"{path} is of a newer version of jax_qconv and is ignored.")
            return None
        entry = Entry.from_json(fields)
        if _path(entry.problem, entry.target) != path:
            raise ValueError("it is of another problem or target")
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        kept = path.with_name(f"{path.name}.corrupt-{hashlib.sha256(content).hexdigest()[:8]}")
        try:
            path.replace(kept)
        except OSError:
            kept = path  # stays where it is
        _warn(f"{path} holds no plan ({error!r}); it is ignored and kept as {kept.name}.")
        return None
    return entry


@dataclasses.dataclass(frozen=True)
class Table:
    """The plans of many problems, tuned on one target.

    Attributes:
        target: where they were tuned.
        plans: by problem, dicts of `Entry`'s ``plan``, ``us``, ``tried``, ``date``, ``version``.
    """

    target: Target
    plans: dict[str, dict[str, Any]]

    @classmethod
    def from_json(cls, fields: Any) -> Table:
        """Raises as `Entry.from_json` does; the plans are left to `entries`."""
        if fields["format"] != FORMAT:
            raise ValueError(f"its format is {fields['format']}, not {FORMAT}")
        return cls(Target.from_json(fields), dict(fields["plans"]))

    @functools.cached_property
    def by_geometry(self) -> dict[tuple[Any, ...], str]:
        """A problem of each `Problem.geometry`."""
        return {Problem.parse(problem).geometry: problem for problem in self.plans}

    def entries(self) -> Iterator[Entry]:
        """The plans as entries. Raises as `Entry.from_json` does."""
        common = dataclasses.asdict(self.target)
        for problem, plan in self.plans.items():
            yield Entry.from_json({"ranking": [], **plan, **common, "problem": problem})


@functools.cache
def shipped() -> tuple[Table, ...]:
    """The tables that come with this package. Beside them are models of the hardware."""
    folder = resources.files("jax_qconv") / "plans"
    if not folder.is_dir():
        return ()
    files = sorted(folder.iterdir(), key=lambda file: file.name)
    tables = [f for f in files if f.name.endswith(".json") and not f.name.startswith("model_")]
    return tuple(Table.from_json(json.loads(file.read_text())) for file in tables)


def export(path: pathlib.Path, chosen: Iterable[Entry], *, rankings: bool = False) -> int:
    """Write entries of one target as a table; returns how many.

    Args:
        path: of the file.
        chosen: the entries.
        rankings: whether to write everything that was tried, not only the fastest plans.

    Raises:
        ValueError: if there are none, or of several targets.
    """
    chosen = list(chosen)
    targets = sorted({str(entry.target) for entry in chosen})
    if len(targets) != 1:
        what = f"these are of {', '.join(targets)}; name one" if targets else "there are none"
        raise ValueError(f"a table holds plans for one GPU model and cuDNN, but {what}.")
    kept = ["plan", "us", "tried", "date", "version"] + ["ranking"] * rankings
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
        found = list(Table.from_json(json.loads(path.read_bytes())).entries())
        for entry in found:
            if str(Problem.parse(entry.problem)) != entry.problem:
                raise ValueError(f"{entry.problem!r} is no problem")
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        what = f"{path} is no table of plans that this version reads ({error!r})."
        raise ValueError(what) from error
    known = [not replace and read(_path(e.problem, e.target)) is not None for e in found]
    saved = [save(entry) for entry, is_known in zip(found, known, strict=True) if not is_known]
    return sum(saved), sum(known)


def root() -> pathlib.Path:
    """The folder of the user's store."""
    return _native.cache_dir() / "plans"


def _slug(gpu: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")


def digest(problem: str) -> str:
    """What the file of a problem is called."""
    return hashlib.sha256(problem.encode()).hexdigest()[:24]


def _path(problem: str, target: Target) -> pathlib.Path:
    return root() / _slug(target.gpu) / f"cudnn-{target.cudnn}" / f"{digest(problem)}.json"


def _paths(problem: str, target: Target) -> Iterator[pathlib.Path]:
    """Where a plan may be: first of this cuDNN, then of others, the newest first."""
    own = _path(problem, target)
    yield own
    others = own.parent.parent.glob(f"cudnn-*/{own.name}")
    yield from sorted((path for path in others if path != own), key=_cudnn, reverse=True)


def _cudnn(path: pathlib.Path) -> list[int]:
    return [int(part) for part in re.findall(r"[0-9]+", path.parent.name)]


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=3)
