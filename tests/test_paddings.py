"""Other numbers of stored channels: which are tried, and where one is reported."""

import pytest

from jax_qconv import _choices, _cli, _paddings
from jax_qconv._choices import Times
from jax_qconv._networks import Layer
from jax_qconv._tune import layer_problem

LAYER = Layer(48, 8, 8, 20, 3, 3)


def problems(layers, batches):
    return list(dict.fromkeys(_choices.problems(_paddings.cases(layers, batches))))


def test_the_rule_comes_first_and_each_choice_once():
    found = list(_paddings.choices(LAYER))
    assert found[0] == (64, 24)
    assert len(set(found)) == len(found)
    assert set(found) == {(64, 24), (48, 24), (64, 20), (64, 32), (64, 64)}


def test_grouped_layers_are_stored_by_the_rule():
    assert list(_paddings.choices(Layer(48, 8, 8, 48, 3, 3, groups=4))) == [(64, 64)]
    # Half a group wouldn't do.
    assert list(_paddings.choices(Layer(264, 8, 8, 264, 3, 3, groups=11))) == [(264, 264)]
    assert len(problems([Layer(264, 8, 8, 264, 3, 3, groups=11)], [1])) == 1


def test_choices_that_come_to_the_same_are_one_problem():
    layers = [LAYER, Layer(64, 8, 8, 20, 3, 3)]
    found = problems(layers, [1, 2])
    assert len(found) == 2 * 5
    assert {p.x_shape[-1] for p in found} == {48, 64}


@pytest.mark.parametrize(
    ("us", "pays"),
    [(9.0, True), (9.9, False), (12.0, False)],
    ids=["faster", "as-fast", "slower"],
)
def test_only_what_is_clearly_faster_than_the_rule_is_reported(us, pays):
    times = {str(layer_problem(LAYER, 1)): 10.0}
    times[str(layer_problem(LAYER, 1, pad_to=(48, 24)))] = us
    known, unknown = (Times.of(case, times) for case in _paddings.cases([LAYER], [1, 8]))
    assert (known.pays, unknown.pays) == (pays, False)
    if pays:
        assert _paddings.line(known) == (
            "48x8x8_3x3_to20 x1: pad_to=(48, 24) takes 9.00 us, (64, 24) by rule 10.00 us"
        )


def test_the_command_tunes_all_choices_and_tells_the_better_ones(monkeypatch, capsys, tuned_to):
    asked = tuned_to(lambda problem: 5.0 if problem.x_shape[-1] == 48 else 10.0)
    monkeypatch.setitem(_cli.NETWORKS, "small", (LAYER,))
    arguments = {"model": ["small"], "batch": [1], "candidates": None, "again": False}
    arguments |= {"workers": None, "paddings": True, "merges": False}
    assert _cli.tune(_cli.argparse.Namespace(**arguments)) is None
    assert asked == problems([LAYER], [1])
    assert "pad_to=(48, 24) takes 5.00 us" in capsys.readouterr().out
