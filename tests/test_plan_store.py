"""The store of tuned plans loses nothing, trusts nothing, and is looked up in a fixed order."""

import dataclasses
import json
import os
import stat
import subprocess
import sys
import warnings

import pytest

from jax_qconv import _native, _plan_store
from jax_qconv._plan_store import Entry, Found, Target
from jax_qconv._problem import Problem

TARGET = Target("NVIDIA Test GPU", 90, "9.12.0")
OTHER_CUDNN = dataclasses.replace(TARGET, cudnn="9.9.0")
NEWER_CUDNN = dataclasses.replace(TARGET, cudnn="9.19.0")
SIBLING = dataclasses.replace(TARGET, gpu="NVIDIA Sibling")
STRANGER = Target("NVIDIA Stranger", 80, "9.12.0")
RANKING = [
    {"plan": "cudnn:4:cfg=26", "us": 5.0, "rejected": None},
    {"plan": "cudnn:4:cfg=2", "us": 7.0, "rejected": None},
    {"plan": "cudnn:7:cfg=3", "us": None, "rejected": "element 3 is 4, not 5"},
]

PLAN, BAD_PLAN = {"plan": "cudnn:1", "us": 1.0}, {"plan": "fast", "us": 1.0}


def problem(n=1):
    return (
        f"x={n},8,8,16 w=16,3,3,16 strides=1,1 padding=1,1,1,1 dilation=1,1 groups=1 "
        "out=int8 activation=none slope=0.0 residual=0"
    )


def entry(n=1, target=TARGET, plan="cudnn:4:cfg=26", us=5.0, ranking=RANKING):
    return Entry(problem(n), target, plan, us, "all", "2026-01-31", "0.1.0", ranking)


@pytest.fixture(autouse=True)
def store(monkeypatch, tmp_path):
    """An empty store, and no shipped tables."""
    monkeypatch.setattr(_native, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(_plan_store, "shipped", lambda: ())
    return tmp_path / "cache" / "plans"


@pytest.fixture
def ship(monkeypatch):
    """Pretend that the package comes with tables of these entries."""

    def pretend(*found):
        fields = ("plan", "us", "tried", "date", "version")
        tables = [
            _plan_store.Table(e.target, {e.problem: {name: getattr(e, name) for name in fields}})
            for e in found
        ]
        monkeypatch.setattr(_plan_store, "shipped", lambda: tuple(tables))

    return pretend


def plan_of(n=1, target=TARGET):
    found = _plan_store.find(problem(n), target)
    return found and found.plan


def stored(store, suffix=".json"):
    (path,) = (path for path in store.rglob("*") if path.is_file() and suffix in path.name)
    return path


def test_what_was_saved_is_found():
    assert _plan_store.find(problem(), TARGET) is None
    assert _plan_store.save(entry())
    assert _plan_store.find(problem(), TARGET) == Found(
        "cudnn:4:cfg=26", "tuned here with cuDNN 9.12.0", exact=True, us=RANKING[0]["us"]
    )
    assert _plan_store.find(problem(2), TARGET) is None
    assert list(_plan_store.entries()) == [entry()]


def test_a_file_can_be_read_by_people_and_says_where_it_belongs(store):
    _plan_store.save(entry())
    path = stored(store)
    assert path.parent == store / "nvidia-test-gpu" / "cudnn-9.12.0"
    assert len(path.read_text().splitlines()) > 10
    fields = json.loads(path.read_text())
    assert list(fields)[:6] == ["format", "gpu", "compute_capability", "cudnn", "problem", "plan"]
    assert (fields["format"], fields["ranking"]) == (1, RANKING)


def test_files_have_the_usual_permissions(store):
    mask = os.umask(0o027)
    try:
        _plan_store.save(entry())
    finally:
        os.umask(mask)
    assert stat.S_IMODE(stored(store).stat().st_mode) == 0o640


def test_the_ranking_of_a_search_makes_the_entry():
    made = Entry.of_ranking(problem(), TARGET, RANKING, tried="some")
    assert (made.plan, made.us, made.tried, made.ranking) == (
        "cudnn:4:cfg=26",
        5.0,
        "some",
        RANKING,
    )
    assert Entry.of_ranking(problem(), TARGET, RANKING[2:], tried="all") is None


def test_the_lookup_goes_from_the_nearest_to_the_farthest(ship):
    order = [
        (lambda e: ship(entry(target=STRANGER)), None, None),
        (lambda e: ship(e, entry(target=STRANGER)), SIBLING, False),
        (lambda e: ship(entry(target=SIBLING, plan="cudnn:1"), e), OTHER_CUDNN, False),
        (lambda e: ship(entry(target=SIBLING, plan="cudnn:1"), e), TARGET, True),
        (_plan_store.save, OTHER_CUDNN, False),
        (_plan_store.save, NEWER_CUDNN, False),
        (_plan_store.save, TARGET, True),
    ]
    for step, (put, target, exact) in enumerate(order, start=2):
        put(entry(target=target, plan=f"cudnn:{step}"))
        found = _plan_store.find(problem(), TARGET)
        if exact is None:
            assert found is None
        else:
            assert (found.plan, found.exact) == (f"cudnn:{step}", exact)
            assert target.cudnn in found.source


def test_a_gpu_has_only_plans_of_its_architecture(ship):
    ship(entry())
    _plan_store.save(entry())
    assert plan_of(target=TARGET) == "cudnn:4:cfg=26"
    assert plan_of(target=STRANGER) is None


def test_a_repeated_lookup_reads_nothing(monkeypatch):
    _plan_store.save(entry())
    assert plan_of() == "cudnn:4:cfg=26"
    monkeypatch.setattr(_native, "extension", lambda: pytest.fail("it is parsed again"))
    monkeypatch.setattr(json, "loads", lambda *_: pytest.fail("it is read again"))
    assert plan_of() == "cudnn:4:cfg=26"


def test_what_another_process_stores_is_seen_at_once(store):
    _plan_store.save(entry())
    assert plan_of() == "cudnn:4:cfg=26"
    path = stored(store)
    fields = json.loads(path.read_text()) | {"plan": "cudnn:4:cfg=27"}
    draft = path.with_name("draft")
    draft.write_text(json.dumps(fields))
    draft.replace(path)
    assert plan_of() == "cudnn:4:cfg=27"
    path.unlink()
    assert plan_of() is None


CORRUPT = {
    "empty": b"",
    "cut": b'{"format": 1, "plan": "cud',
    "binary": b"\xff\xfe\x00",
    "deep": b"[" * 200_000,
    "list": b"[]",
    "null": b"null",
    "nothing": b"{}",
}
ALIEN = {
    "format": "one",
    "gpu": "NVIDIA Another",
    "compute_capability": "90",
    "cudnn": "9.12/../..",
    "problem": problem(2),
    "plan": "fast",
    "us": -1,
    "tried": None,
    "ranking": [{"plan": "cudnn:1"}],
}


@pytest.mark.parametrize("content", CORRUPT.values(), ids=CORRUPT)
def test_a_corrupt_file_is_set_aside_with_a_warning(store, content):
    _plan_store.save(entry())
    path = stored(store)
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="holds no plan") as caught:
        assert plan_of() is None
    kept = stored(store, suffix=".corrupt-")
    assert str(path) in str(caught[0].message) and kept.name in str(caught[0].message)
    assert not path.exists() and kept.read_bytes() == content
    # Its place is free again, and what was set aside stays.
    assert _plan_store.save(entry())
    assert plan_of() == "cudnn:4:cfg=26"
    assert kept.read_bytes() == content


@pytest.mark.parametrize("name", ALIEN)
def test_a_file_of_something_else_is_set_aside(store, name):
    _plan_store.save(entry())
    path = stored(store)
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: ALIEN[name]}))
    with pytest.warns(UserWarning, match="holds no plan"):
        assert plan_of() is None
    assert json.loads(stored(store, suffix=".corrupt-").read_text())[name] == ALIEN[name]


@pytest.mark.parametrize("us", ["NaN", "Infinity", "0"])
def test_a_time_is_a_positive_number(store, us):
    _plan_store.save(entry())
    path = stored(store)
    path.write_text(path.read_text().replace('"us": 5.0', f'"us": {us}', 1))
    with pytest.warns(UserWarning, match="holds no plan"):
        assert plan_of() is None


def test_corrupt_files_of_one_name_are_all_kept(store):
    _plan_store.save(entry())
    path = stored(store)
    for content in (b"first", b"second"):
        path.write_bytes(content)
        with pytest.warns(UserWarning, match="holds no plan"):
            assert plan_of() is None
    kept = {p.read_bytes() for p in store.rglob("*.corrupt-*")}
    assert kept == {b"first", b"second"}


def test_a_store_that_is_broken_in_one_place_serves_the_others(store):
    for n in (1, 2):
        _plan_store.save(entry(n))
    stored(store, suffix=_plan_store.digest(problem(1))).write_text("?")
    with pytest.warns(UserWarning, match="holds no plan"):
        assert list(_plan_store.entries()) == [entry(2)]


def test_a_file_of_a_newer_version_is_ignored_and_never_replaced(store):
    _plan_store.save(entry())
    path = stored(store)
    content = json.dumps({"format": 2, "plan": {"of": "the future"}})
    path.write_text(content)
    with pytest.warns(UserWarning, match="newer version"):
        assert plan_of() is None
    with pytest.warns(UserWarning, match="not replaced"):
        assert not _plan_store.save(entry())
    assert [p.read_text() for p in store.rglob("*") if p.is_file()] == [content]


def test_an_extension_that_is_missing_condemns_no_file(store, monkeypatch):
    _plan_store.save(entry())

    def missing():
        raise _native.EngineUnavailableError("no extension")

    monkeypatch.setattr(_native, "extension", missing)
    with pytest.raises(_native.EngineUnavailableError):
        plan_of()
    assert stored(store).exists()


def test_a_store_that_cannot_be_written_costs_only_time(store):
    store.parent.parent.joinpath("cache").touch()  # a file where the folder should be
    assert plan_of() is None
    with pytest.warns(UserWarning, match="can't be written"):
        assert not _plan_store.save(entry())
    assert plan_of() is None
    assert list(_plan_store.entries()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads and writes everywhere")
def test_a_read_only_store_is_read_and_an_unreadable_file_ignored(store):
    _plan_store.save(entry())
    path = stored(store)
    path.parent.chmod(0o500)
    try:
        assert plan_of() == "cudnn:4:cfg=26"
        with pytest.warns(UserWarning, match="can't be written"):
            assert not _plan_store.save(entry(2))
    finally:
        path.parent.chmod(0o700)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_breaks_off_leaves_the_old_plan_and_no_litter(store, monkeypatch, error):
    _plan_store.save(entry())

    def refuse(*_):
        raise error

    monkeypatch.setattr(os, "replace", refuse)
    monkeypatch.setattr(type(store), "replace", refuse)
    if isinstance(error, OSError):
        with pytest.warns(UserWarning, match="No space left"):
            assert not _plan_store.save(entry(plan="cudnn:9"))
    else:
        with pytest.raises(KeyboardInterrupt):
            _plan_store.save(entry(plan="cudnn:9"))
    assert stored(store, suffix="").name.endswith(".json")
    assert plan_of() == "cudnn:4:cfg=26"


def write_much(folder, worker):
    """In a process of its own: replace the same entries again and again, and read them."""
    _native.cache_dir = lambda: folder
    _plan_store.shipped = lambda: ()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(60):
            n = 1 + step % 3
            assert _plan_store.save(entry(n, plan=f"cudnn:{worker}", us=1.0 + step))
            assert plan_of(n) in {"cudnn:0", "cudnn:1", "cudnn:2"}


WRITE_MUCH = """
import pathlib, runpy, sys
file, folder, worker = sys.argv[1:]
runpy.run_path(file)["write_much"](pathlib.Path(folder), int(worker))
"""


def test_processes_that_write_at_once_leave_whole_files(store):
    command = [sys.executable, "-P", "-c", WRITE_MUCH, __file__, str(store.parent)]
    writers = [
        subprocess.Popen([*command, str(worker)], stderr=subprocess.PIPE, text=True)
        for worker in range(3)
    ]
    for writer in writers:
        _, errors = writer.communicate(timeout=120)
        assert writer.returncode == 0, errors
    assert {e.problem for e in _plan_store.entries()} == {problem(n) for n in (1, 2, 3)}
    assert len([p for p in store.rglob("*") if p.is_file()]) == 3


def test_an_entry_is_removed():
    for n in (1, 2):
        _plan_store.save(entry(n))
    assert plan_of(1) is not None
    _plan_store.remove(entry(1))
    _plan_store.remove(entry(1))
    assert (plan_of(1), plan_of(2)) == (None, "cudnn:4:cfg=26")


@pytest.mark.parametrize("rankings", [False, True])
def test_an_exported_table_brings_the_same_plans_elsewhere(tmp_path, monkeypatch, rankings):
    mine = [entry(n, us=float(n)) for n in (1, 2, 3)]
    table = tmp_path / "table.json"
    assert _plan_store.export(table, mine, rankings=rankings) == 3
    monkeypatch.setattr(_native, "cache_dir", lambda: tmp_path / "elsewhere")
    assert _plan_store.import_(table) == (3, 0)
    ranking = RANKING if rankings else []
    expected = {e.problem: dataclasses.replace(e, ranking=ranking) for e in mine}
    assert {e.problem: e for e in _plan_store.entries()} == expected


def test_a_table_has_a_line_for_each_problem(tmp_path):
    table = tmp_path / "table.json"
    _plan_store.export(table, [entry(n) for n in (2, 1)])
    lines = table.read_text().splitlines()
    assert [line.strip()[1 : len(problem()) + 1] for line in lines[1:3]] == [problem(1), problem(2)]
    assert json.loads(lines[0] + "}}").keys() == {
        "format", "gpu", "compute_capability", "cudnn", "plans",
    }  # fmt: skip


def test_a_table_is_of_one_target(tmp_path):
    table = tmp_path / "table.json"
    with pytest.raises(ValueError, match="there are none"):
        _plan_store.export(table, [])
    with pytest.raises(ValueError, match=r"several|name one"):
        _plan_store.export(table, [entry(), entry(target=SIBLING)])
    assert not table.exists()


def test_an_import_keeps_what_is_there_unless_told_otherwise(tmp_path):
    table = tmp_path / "table.json"
    _plan_store.export(table, [entry(1, plan="cudnn:1", us=1.0), entry(2)])
    _plan_store.save(entry(1))
    assert _plan_store.import_(table) == (1, 1)
    assert plan_of(1) == "cudnn:4:cfg=26"
    assert _plan_store.import_(table, replace=True) == (2, 0)
    assert plan_of(1) == "cudnn:1"


def test_an_import_takes_the_place_of_a_corrupt_file(tmp_path, store):
    table = tmp_path / "table.json"
    _plan_store.export(table, [entry()])
    _plan_store.save(entry())
    stored(store).write_text("?")
    with pytest.warns(UserWarning, match="holds no plan"):
        assert _plan_store.import_(table) == (1, 0)
    assert plan_of() == "cudnn:4:cfg=26"


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"format": None},
        {"cudnn": "1/../../../../escaped"},
        {"gpu": "//"},
        {"plans": [1]},
        {"plans": {problem(): "cudnn:1"}},
        {"plans": {problem(): dict.fromkeys(("tried", "date", "version"), "") | BAD_PLAN}},
        {"plans": {"x=1": dict.fromkeys(("tried", "date", "version"), "") | PLAN}},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_table_is_refused_whole(tmp_path, store, change):
    table = tmp_path / "table.json"
    _plan_store.export(table, [entry(2)])
    table.write_text(json.dumps(json.loads(table.read_text()) | change))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"table\.json is no table"):
        _plan_store.import_(table)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_that_is_no_json_is_no_table(tmp_path):
    table = tmp_path / "table.json"
    table.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="no table"):
        _plan_store.import_(table)
    with pytest.raises(FileNotFoundError):
        _plan_store.import_(tmp_path / "missing.json")


@pytest.fixture
def package(monkeypatch, tmp_path):
    """An installation of the package with a folder of tables of its own."""
    monkeypatch.undo()
    monkeypatch.setattr(_native, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(_plan_store.resources, "files", lambda name: tmp_path)
    _plan_store.shipped.cache_clear()
    yield tmp_path
    monkeypatch.undo()
    _plan_store.shipped.cache_clear()


def test_a_package_without_tables_finds_nothing(package):
    assert _plan_store.shipped() == ()
    assert plan_of() is None


def test_an_exported_table_can_be_shipped(package):
    (package / "plans").mkdir()
    (package / "plans" / "model_sm90.json").write_text('{"format": 1}')
    _plan_store.export(package / "plans" / "nvidia-test-gpu.json", [entry()])
    found = _plan_store.find(problem(), TARGET)
    assert (found.plan, found.exact) == ("cudnn:4:cfg=26", True)
    assert "shipped" in found.source
    assert len(_plan_store.shipped()) == 1


def test_every_shipped_table_is_sound(monkeypatch):
    monkeypatch.undo()
    targets = [table.target for table in _plan_store.shipped()]
    assert len(set(targets)) == len(targets)
    for table in _plan_store.shipped():
        for shipped in table.entries():
            parsed = Problem.parse(shipped.problem)
            parsed.check()
            assert str(parsed) == shipped.problem
            assert shipped.plan == table.plans[shipped.problem]["plan"]
