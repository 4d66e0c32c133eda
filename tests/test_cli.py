"""`python -m jax_qconv plans`: the store of tuned plans, looked after by hand, without a GPU."""

import json
import os
import subprocess
import sys

import pytest

from jax_qconv import __main__, _native, _plan_store
from jax_qconv._plan_store import Entry, Target

TARGET = Target("NVIDIA Test GPU", 90, "9.12.0")
OTHER = Target("NVIDIA Other", 80, "9.19.0")
RANKING = [
    {"plan": "cudnn:4:cfg=26", "us": 5.0, "rejected": None},
    {"plan": "cudnn:4:cfg=2", "us": 7.25, "rejected": None},
    {"plan": "cudnn:7:cfg=3", "us": None, "rejected": "element 3 is 4, not 5"},
]


def problem(n=1, activation="relu", residual=0):
    return (
        f"x={n},8,8,16 w=16,3,3,16 strides=1,1 padding=1,1,1,1 dilation=1,1 groups=1 out=int8 "
        f"activation={activation} slope=0.0 residual={residual}"
    )


def save(*problems, target=TARGET):
    for text in problems:
        _plan_store.save(Entry.of_ranking(text, target, RANKING, tried="all"))


@pytest.fixture(autouse=True)
def store(monkeypatch, tmp_path):
    """An empty store, and a package with one table."""
    monkeypatch.setattr(_native, "cache_dir", lambda: tmp_path / "cache")
    shipped = {"plan": "cudnn:9", "us": 9.0, "tried": "some", "date": "2026-01-31", "version": "1"}
    table = _plan_store.Table(OTHER, {problem(64): shipped})
    monkeypatch.setattr(_plan_store, "shipped", lambda: (table,))


@pytest.fixture
def plans(capsys):
    """Runs `plans` with arguments; what it printed, and what it complained of."""

    def run(*arguments):
        complaint = __main__.main(["plans", *map(str, arguments)])
        return capsys.readouterr().out, complaint

    return run


def batches():
    return sorted(int(e.problem[2:].partition(",")[0]) for e in _plan_store.entries())


def test_an_empty_store_is_listed_as_such(plans, tmp_path):
    out, complaint = plans("list")
    assert complaint is None
    assert f"No plans in {tmp_path / 'cache' / 'plans'}" in out
    assert "1 more come with the package (--shipped)" in out


def test_list_has_a_row_for_each_plan_with_all_that_tells_them_apart(plans):
    texts = [problem(1), problem(8), problem(8, residual=1), problem(8, activation="none")]
    save(*texts)
    save(problem(1), target=OTHER)
    out, _ = plans("list")
    head, *rows, more = out.splitlines()
    assert " ".join(head.split()) == "digest us plan tried problem GPU cuDNN from"
    assert more.startswith("1 more come with the package")
    assert len({row.split(None, 1)[1] for row in rows}) == len(rows) == 5
    (row,) = (row for row in rows if "NVIDIA Other" in row)
    cells = "5.00 cudnn:4:cfg=26 3 (all) x=1,8,8,16 w=16,3,3,16 padding=1,1,1,1 activation=relu"
    assert " ".join(row.split()) == (
        f"{_plan_store.digest(problem(1))[:8]} {cells} NVIDIA Other 9.19.0 store"
    )


def test_list_shows_the_packages_plans_when_asked(plans):
    save(problem(1))
    out, _ = plans("list", "--shipped")
    *_, last = out.splitlines()
    assert last.endswith("package") and "cudnn:9" in last and " some " in last
    assert "--shipped" not in out


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("", [1, 8, 12]),
        ("x=1", [1]),  # not 12
        ("x=1,8 w=16", [1]),
        ("residual=1", [12]),
        ("test 9.12", [1, 8]),
        ("OTHER", [12]),
        ("cfg=26", []),  # no field of a problem
        ("x=1 x=8", []),
        (_plan_store.digest(problem(8)), [8]),
        (_plan_store.digest(problem(8))[:8], [8]),
        (_plan_store.digest(problem(8))[:7], []),
    ],
)
def test_every_word_must_match(plans, text, chosen):
    save(problem(1), problem(8))
    save(problem(12, residual=1), target=OTHER)
    out, _ = plans("list", "--match", text)
    assert [n for n in (1, 8, 12) if f"x={n},8,8,16" in out] == chosen


def test_a_row_of_the_list_can_be_pasted(plans):
    save(problem(1), problem(8), problem(8, residual=1))
    out, complaint = plans("show", "x=8,8,8,16 w=16,3,3,16 padding=1,1,1,1 residual=1")
    assert complaint is None
    assert out.splitlines()[0] == problem(8, residual=1)
    assert out.count("GPU") == 1


def test_show_has_every_plan_with_its_time_or_its_reason(plans):
    save(problem(1))
    out, _ = plans("show", _plan_store.digest(problem(1))[:8])
    first, where, *rows = out.splitlines()
    assert first == problem(1)
    for part in (_plan_store.digest(problem(1)), "NVIDIA Test GPU", "cuDNN 9.12.0", "3 plans"):
        assert part in where
    assert [" ".join(row.split()) for row in rows] == [
        "5.00 us cudnn:4:cfg=26",
        "7.25 us cudnn:4:cfg=2",
        "rejected cudnn:7:cfg=3 element 3 is 4, not 5",
    ]


def test_show_knows_the_packages_plans_too(plans):
    out, complaint = plans("show", "x=64")
    assert complaint is None
    assert "without its ranking" in out and "9.00 us  cudnn:9" in out


def test_show_of_nothing_says_where_to_look(plans):
    out, complaint = plans("show", "x=7")
    assert out == "" and "'x=7'" in complaint and "plans list" in complaint


def test_clear_forgets_what_matches_and_no_more(plans):
    save(problem(1), problem(12))
    save(problem(1), target=OTHER)
    assert plans("clear", "--match", "x=1 other") == ("1 forgotten.\n", None)
    assert batches() == [1, 12]
    assert plans("clear", "--all") == ("2 forgotten.\n", None)
    assert plans("clear", "--all") == ("0 forgotten.\n", None)
    _, complaint = plans("clear", "--match", "x=1")
    assert "no plan matches" in complaint


def test_clear_without_a_choice_forgets_nothing(plans, capsys):
    save(problem(1))
    for arguments in ([], ["--all", "--match", "x=1"]):
        with pytest.raises(SystemExit) as caught:
            plans("clear", *arguments)
        assert caught.value.code == 2
    # As from a shell variable that isn't set.
    assert "--all" in plans("clear", "--match", " ")[1]
    assert batches() == [1]


@pytest.mark.parametrize("options", [[], ["--rankings"]], ids=str)
def test_plans_travel_in_a_file(plans, tmp_path, options):
    file = tmp_path / "table.json"
    save(problem(1), problem(8))
    save(problem(1), target=OTHER)
    assert plans("export", file, "--match", "9.12.0", *options) == (f"2 written to {file}.\n", None)
    assert ("not 5" in file.read_text()) == bool(options)
    plans("clear", "--match", "x=1")
    out, complaint = plans("import", file)
    assert complaint is None and out.startswith("1 taken over, 1 were there")
    out, _ = plans("import", file, "--replace")
    assert out.startswith("2 taken over, 0 were there")
    assert batches() == [1, 8]


def test_export_of_several_targets_is_refused_with_their_names(plans, tmp_path):
    save(problem(1))
    save(problem(1), target=OTHER)
    _, complaint = plans("export", tmp_path / "table.json")
    assert complaint.startswith("jax_qconv plans export: ")
    assert TARGET.gpu in complaint and OTHER.gpu in complaint


@pytest.mark.parametrize("content", [None, "?", json.dumps({"format": 2})], ids=str)
def test_import_of_something_else_says_which_file(plans, tmp_path, content):
    file = tmp_path / "table.json"
    if content is not None:
        file.write_text(content)
    _, complaint = plans("import", file)
    assert complaint.startswith("jax_qconv plans import: ") and str(file) in complaint


@pytest.mark.parametrize("arguments", [[], ["show"], ["forget"], ["import"]], ids=str)
def test_the_command_line_is_checked(plans, capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        plans(*arguments)
    assert caught.value.code == 2
    assert "usage: python -m jax_qconv plans" in capsys.readouterr().err


def run(*arguments, **options):
    command = [sys.executable, "-P", "-m", "jax_qconv", "plans", *arguments]
    return subprocess.run(command, capture_output=True, text=True, **options)


def test_the_command_works_without_a_gpu_and_its_status_tells_success(tmp_path):
    environment = os.environ | {"JAX_QCONV_CACHE_DIR": str(tmp_path)}
    done = run("list", env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert str(tmp_path / "plans") in done.stdout
    done = run("show", "x=0", env=environment)
    assert done.returncode == 1 and "no plan matches" in done.stderr
