"""Tables of plans: exported, imported, and those that the package comes with."""

import dataclasses
import json

import pytest
from plan_entries import RANKING, SIBLING, TARGET, empty_store, entry, plan_of, problem, stored

from jax_qconv import _native, _plan_store
from jax_qconv._problem import Problem

PLAN, BAD_PLAN = {"plan": "cudnn:1", "us": 1.0}, {"plan": "fast", "us": 1.0}


@pytest.fixture(autouse=True)
def store(monkeypatch, tmp_path):
    return empty_store(monkeypatch, tmp_path)


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
