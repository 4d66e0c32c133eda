"""Which plan a call is lowered with, and the memory of earlier choices, without a GPU."""

import concurrent.futures
import json
import os
import threading
import time
import warnings

import jax
import numpy as np
import pytest

from jax_qconv import EngineUnavailableError, QTensor, _native, _plans, prepack, qconv
from jax_qconv._spec import Activation, Problem

RANKING = [
    {"plan": "cudnn:1", "us": 7.0, "rejected": None},
    {"plan": "cudnn:2", "us": 5.0, "rejected": None},
    {"plan": "cudnn:3", "us": None, "rejected": "element 3 is 4, not 5"},
    {"plan": "cudnn:4", "us": 6.0, "rejected": None},
]


class FakeExtension:
    """Answers like the extension on a machine with a GPU, and remembers what it was asked."""

    def __init__(self):
        self.ranking = RANKING
        self.gpu = {"gpu": "Test GPU", "compute_capability": 90, "cudnn": "9.12.0"}
        self.searches = []

    def device(self, device):
        return self.gpu

    def parse_plan(self, plan):
        if plan.split(":")[0] != "cudnn":
            raise ValueError(f"plan={plan!r} is not known")
        return plan

    def search(self, problem, device):
        self.searches.append((problem, device))
        return self.ranking


@pytest.fixture
def ext(monkeypatch, tmp_path):
    fake = FakeExtension()
    monkeypatch.setattr(_native, "extension", lambda: fake)
    monkeypatch.setattr(_plans, "_local_gpu", lambda: 0)
    monkeypatch.setattr(_native, "cache_dir", lambda: tmp_path)
    forget()
    yield fake
    forget()


def forget():
    """What a new process knows: nothing but what is on disk."""
    _plans._choices.clear()


def problem(n=1):
    return Problem.make(
        x_shape=(n, 8, 8, 16),
        w_shape=(16, 3, 3, 16),
        strides=(1, 1),
        padding="SAME",
        dilation=(1, 1),
        groups=1,
        out_dtype="int8",
        activation=Activation(),
        residual=False,
    )


def stored_file(tmp_path):
    (path,) = (p for p in tmp_path.rglob("*") if p.is_file())
    return path


def test_the_fastest_plan_that_was_not_rejected_is_chosen(ext):
    assert _plans.plan_for(problem(), None) == "cudnn:2"


def test_each_problem_is_searched_once(ext):
    for _ in range(3):
        for n in (1, 2):
            _plans.plan_for(problem(n), None)
    assert ext.searches == [(str(problem(1)), 0), (str(problem(2)), 0)]


def test_the_choice_outlives_the_process(ext, tmp_path):
    _plans.plan_for(problem(), None)
    stored = json.loads(stored_file(tmp_path).read_text())
    expected = {"problem": str(problem()), **ext.gpu, "plan": "cudnn:2", "ranking": RANKING}
    assert stored == expected
    forget()
    ext.ranking = RANKING[:1]
    assert _plans.plan_for(problem(), None) == "cudnn:2"
    assert len(ext.searches) == 1


@pytest.mark.parametrize("name", ["gpu", "compute_capability", "cudnn"])
def test_another_gpu_or_cudnn_has_a_choice_of_its_own(ext, tmp_path, name):
    _plans.plan_for(problem(), None)
    forget()
    mine, ext.gpu = ext.gpu, {**ext.gpu, name: "another"}
    ext.ranking = RANKING[:1]
    assert _plans.plan_for(problem(), None) == "cudnn:1"
    forget()
    ext.gpu = mine
    assert _plans.plan_for(problem(), None) == "cudnn:2"
    assert len(ext.searches) == 2


@pytest.mark.parametrize("text", [b"", b'{"plan": "cud', b"\xff\xfe\x00"])
def test_an_unreadable_file_is_warned_about_and_replaced(ext, tmp_path, text):
    _plans.plan_for(problem(), None)
    path = stored_file(tmp_path)
    path.write_bytes(text)
    forget()
    with pytest.warns(UserWarning, match="can't be read and is ignored") as caught:
        assert _plans.plan_for(problem(), None) == "cudnn:2"
    assert str(path) in str(caught[0].message)
    assert json.loads(path.read_text())["plan"] == "cudnn:2"
    assert len(ext.searches) == 2


@pytest.mark.parametrize("change", [{"problem": "x=1"}, {"gpu": "other"}, {"plan": 4}])
def test_a_file_of_something_else_is_replaced(ext, tmp_path, change):
    _plans.plan_for(problem(), None)
    path = stored_file(tmp_path)
    right = path.read_text()
    path.write_text(json.dumps({**json.loads(right), "plan": "cudnn:9"} | change))
    forget()
    assert _plans.plan_for(problem(), None) == "cudnn:2"
    assert path.read_text() == right


def test_a_plan_of_another_version_is_warned_about_and_replaced(ext, tmp_path):
    _plans.plan_for(problem(), None)
    path = stored_file(tmp_path)
    right = path.read_text()
    path.write_text(json.dumps({**json.loads(right), "plan": "old"}))
    forget()
    with pytest.warns(UserWarning, match=r"no plan of this version .*plan='old' is not known"):
        assert _plans.plan_for(problem(), None) == "cudnn:2"
    assert path.read_text() == right
    assert len(ext.searches) == 2


@pytest.mark.parametrize("text", ["[]", "null", '"cudnn:9"', "{}"])
def test_a_file_of_another_form_is_replaced(ext, tmp_path, text):
    _plans.plan_for(problem(), None)
    path = stored_file(tmp_path)
    path.write_text(text)
    forget()
    assert _plans.plan_for(problem(), None) == "cudnn:2"
    assert json.loads(path.read_text())["plan"] == "cudnn:2"


def test_a_plan_named_by_the_caller_wins(ext, tmp_path):
    _plans.plan_for(problem(), None)
    assert _plans.plan_for(problem(), "cudnn:1") == "cudnn:1"
    with pytest.raises(ValueError, match="plan='fast' is not known"):
        _plans.plan_for(problem(), "fast")
    assert len(ext.searches) == 1


def test_without_a_gpu_the_choice_is_deferred(ext, tmp_path, monkeypatch):
    monkeypatch.setattr(_plans, "_local_gpu", lambda: None)
    assert _plans.plan_for(problem(), None) == _plans.DEFERRED
    assert ext.searches == []
    assert list(tmp_path.iterdir()) == []


def test_no_usable_plan_is_an_error_with_every_reason(ext, tmp_path):
    ext.ranking = [
        {"plan": "cudnn:3", "us": None, "rejected": "element 3 is 4, not 5"},
        {"plan": "cudnn:7", "us": None, "rejected": "needs 512 bytes"},
    ]
    with pytest.raises(EngineUnavailableError) as caught:
        _plans.plan_for(problem(), None)
    for part in (
        str(problem()),
        "cudnn:3: element 3 is 4, not 5",
        "cudnn:7: needs 512 bytes",
        "implementation='reference'",
    ):
        assert part in str(caught.value)
    # A refusal isn't remembered: the next try may find more.
    ext.ranking = RANKING
    assert _plans.plan_for(problem(), None) == "cudnn:2"


def test_an_empty_ranking_is_an_error_too(ext):
    ext.ranking = []
    with pytest.raises(EngineUnavailableError, match="none was offered"):
        _plans.plan_for(problem(), None)


def test_a_cache_that_cannot_be_written_costs_only_time(ext, tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setattr(_native, "cache_dir", lambda: file)
    for searches in (1, 2):
        forget()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert _plans.plan_for(problem(), None) == "cudnn:2"
        assert any("can't be written" in str(w.message) for w in caught)
        assert len(ext.searches) == searches


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_cache_is_read(ext, tmp_path):
    _plans.plan_for(problem(1), None)
    folder = stored_file(tmp_path).parent
    folder.chmod(0o500)
    try:
        forget()
        assert _plans.plan_for(problem(1), None) == "cudnn:2"
        with pytest.warns(UserWarning, match="can't be written"):
            assert _plans.plan_for(problem(2), None) == "cudnn:2"
    finally:
        folder.chmod(0o700)
    assert len(ext.searches) == 2


@pytest.mark.parametrize("step", [(os, "replace"), (json, "dump")], ids=lambda step: step[1])
def test_a_failed_write_leaves_nothing_behind(ext, tmp_path, monkeypatch, step):
    def refuse(*_, **__):
        raise PermissionError("no")

    monkeypatch.setattr(*step, refuse)
    with pytest.warns(UserWarning, match="can't be written"):
        _plans.plan_for(problem(), None)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def ask_from_threads(ext, search):
    """What eight threads get that ask together; ``search`` is in place of the extension's."""
    asked = threading.Barrier(8)
    ext.search = search

    def ask(_):
        asked.wait(timeout=30)
        return _plans.plan_for(problem(), None)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        return [pool.submit(ask, i) for i in range(8)]


def test_one_thread_searches_while_the_others_wait(ext, tmp_path):
    searches, search = [], ext.search

    def slow_search(problem, device):
        searches.append(threading.get_ident())
        # Long enough for the others to come by.
        time.sleep(0.5)
        return search(problem, device)

    answers = ask_from_threads(ext, slow_search)
    assert [answer.result() for answer in answers] == ["cudnn:2"] * 8
    assert len(searches) == 1
    assert json.loads(stored_file(tmp_path).read_text())["plan"] == "cudnn:2"


def test_problems_are_searched_independently(ext):
    together, search = threading.Barrier(2), ext.search

    def search_together(problem, device):
        # Breaks unless two searches run at the same time.
        together.wait(timeout=30)
        return search(problem, device)

    ext.search = search_together
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        plans = list(pool.map(lambda n: _plans.plan_for(problem(n), None), (1, 2)))
    assert plans == ["cudnn:2"] * 2


def test_those_who_wait_hear_of_a_failure_and_the_next_one_tries_again(ext):
    searches, search = [], ext.search

    def failing_search(problem, device):
        searches.append(threading.get_ident())
        time.sleep(0.5)
        raise MemoryError("no room")

    answers = ask_from_threads(ext, failing_search)
    assert {str(answer.exception()) for answer in answers} == {"no room"}
    assert len(searches) == 1
    ext.search = search
    assert _plans.plan_for(problem(), None) == "cudnn:2"


@pytest.mark.parametrize(
    ("gpu", "plan", "written", "pinned"),
    [
        (0, None, "cudnn:2", "false"),
        (None, None, "cudnn", "false"),
        (0, "cudnn:4", "cudnn:4", "true"),
        (None, "cudnn:4", "cudnn:4", "true"),
    ],
    ids=["chosen", "deferred", "named", "named-without-gpu"],
)
def test_the_plan_is_written_into_the_lowered_call(ext, monkeypatch, gpu, plan, written, pinned):
    monkeypatch.setattr(_plans, "_local_gpu", lambda: gpu)
    packed = prepack(np.ones((3, 3, 16, 16), np.float32)).bind(x_scale=1.0, out_scale=1.0)
    x = QTensor(np.zeros((1, 8, 8, 16), np.int8), 1.0)
    traced = jax.jit(lambda x: qconv(x, packed, plan=plan)).trace(x)
    (call,) = (
        line
        for line in traced.lower(lowering_platforms=("cuda",)).as_text().splitlines()
        if f"@{_native.TARGET}(" in line
    )
    assert f'plan = "{written}"' in call
    assert f"pinned = {pinned}" in call
    assert f'problem = "{problem()}"' in call
    assert ext.searches == ([(str(problem()), 0)] if gpu == 0 and plan is None else [])
