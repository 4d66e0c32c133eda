"""Other numbers of stored channels: which are tried, and where one is reported."""

import pytest

from jax_qconv import _cli, _paddings, _plans, _tune
from jax_qconv._networks import Layer
from jax_qconv._plan_store import Entry, Target
from jax_qconv._tune import layer_problem

LAYER = Layer(48, 8, 8, 20, 3, 3)
TARGET = Target("NVIDIA Test GPU", 90, "9.12.0")


def test_the_rule_comes_first_and_each_choice_once():
    found = list(_paddings.choices(LAYER))
    assert found[0] == (64, 24)
    assert len(set(found)) == len(found)
    assert set(found) == {(64, 24), (48, 24), (64, 20), (64, 32), (64, 64)}


def test_choices_that_come_to_the_same_are_one_problem():
    layers = [LAYER, Layer(64, 8, 8, 20, 3, 3)]
    found = _paddings.problems(layers, [1, 2])
    assert len(found) == len(set(found)) == 2 * 5
    assert {p.x_shape[-1] for p in found} == {48, 64}


@pytest.mark.parametrize(
    ("us", "reported"),
    [(9.0, [(48, 24)]), (9.9, []), (12.0, [])],
    ids=["faster", "as-fast", "slower"],
)
def test_only_what_is_clearly_faster_than_the_rule_is_reported(us, reported):
    times = {str(layer_problem(LAYER, 1)): 10.0}
    times[str(layer_problem(LAYER, 1, pad_to=(48, 24)))] = us
    found = list(_paddings.better([LAYER], [1, 8], times))
    assert [b.pad_to for b in found] == reported
    if found:
        assert str(found[0]) == (
            "48x8x8_3x3_to20 x1: pad_to=(48, 24) takes 9.00 us, (64, 24) by rule 10.00 us"
        )


def test_the_command_tunes_all_choices_and_tells_the_better_ones(monkeypatch, capsys, tmp_path):
    asked = []

    def tune_all(problems, **_):
        for problem in problems:
            asked.append(problem)
            us = 5.0 if problem.x_shape[-1] == 48 else 10.0
            ranking = [{"plan": "cudnn:4", "us": us, "rejected": None}]
            entry = Entry.of_ranking(str(problem), TARGET, ranking, tried="all")
            _cli._plan_store.save(entry)
        return []

    monkeypatch.setattr(_cli._plan_store, "root", lambda: tmp_path)
    monkeypatch.setattr(_tune, "tune_all", tune_all)
    monkeypatch.setattr(_plans, "local_target", lambda: TARGET)
    monkeypatch.setitem(_cli.NETWORKS, "small", (LAYER,))
    arguments = {"model": ["small"], "batch": [1], "candidates": None, "again": False}
    assert _cli.tune(_cli.argparse.Namespace(**arguments, workers=None, paddings=True)) is None
    assert asked == _paddings.problems([LAYER], [1])
    assert "pad_to=(48, 24) takes 5.00 us" in capsys.readouterr().out
