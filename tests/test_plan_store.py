"""The store of tuned plans loses nothing, trusts nothing, and is looked up in a fixed order."""

import dataclasses
import json
import os
import stat
import subprocess
import sys
import warnings

import pytest
from plan_entries import RANKING, SIBLING, TARGET, empty_store, entry, plan_of, problem, stored

from jax_qconv import _native, _plan_store
from jax_qconv._plan_store import Entry, Found, Target

OTHER_CUDNN = dataclasses.replace(TARGET, cudnn="9.9.0")
NEWER_CUDNN = dataclasses.replace(TARGET, cudnn="9.19.0")
STRANGER = Target("NVIDIA Stranger", 80, "9.12.0")


@pytest.fixture(autouse=True)
def store(monkeypatch, tmp_path):
    return empty_store(monkeypatch, tmp_path)


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
sys.path.insert(0, str(pathlib.Path(file).parent))
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
