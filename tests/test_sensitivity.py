"""Which layers do the most damage in int8, and networks that leave them real."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_qconv import (
    Rule,
    Sensitivity,
    _sensitivity,
    mixed_precision,
    quantize_model,
    report,
    sensitivity,
)

NAMES = ("a", "b[0]", "c")
"""One of them has what is special in a pattern."""

FAST = {"observer": "absmax", "progress": False}


def conv(x, w):
    return jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def chain(p, x):
    """Layers one after the other, a residual around the second."""
    y = jax.nn.relu(conv(x, p["a"]))
    y = jax.nn.relu(y + conv(y, p["b[0]"]))
    return y.mean((1, 2)) @ p["c"]


@pytest.fixture(scope="module")
def parts():
    """The weights of the second layer have an outlier, which costs the others their steps."""
    rng = np.random.default_rng(0)
    shapes = {"a": (3, 3, 3, 16), "b[0]": (3, 3, 16, 16), "c": (16, 5)}
    p = {name: rng.normal(size=shape).astype("f") / 8 for name, shape in shapes.items()}
    p["b[0]"][1, 1, 3, :] = 30.0
    # It multiplies what is always zero.
    p["a"][..., 3] = 0.0
    return p, [rng.normal(size=(2, 8, 8, 3)).astype("f") for _ in range(2)]


def quantized(parts, **options):
    return quantize_model(chain, *parts, **FAST, **options)


def left_real(model, parts):
    return tuple(layer.name for layer in model.network(parts[1][0]).skipped)


@pytest.fixture(scope="module")
def ranked(parts):
    return sensitivity(quantized(parts), *parts, progress=False)


def test_a_layer_that_is_bad_on_purpose_comes_first(ranked):
    first, second, _ = ranked.sqnr_db.values()
    assert next(iter(ranked.sqnr_db)) == "b[0]" and set(ranked.sqnr_db) == set(NAMES)
    assert first < second - 10


@pytest.mark.parametrize(
    ("alone", "asymmetric"), [("a", False), ("b[0]", False), ("c", False), ("b[0]", True)]
)
def test_it_is_what_a_network_of_that_one_int8_layer_has(parts, ranked, alone, asymmetric):
    if asymmetric:
        ranked = sensitivity(quantized(parts, asymmetric=True), *parts, progress=False)
    others = Sensitivity({name: 0.0 for name in NAMES if name != alone})
    model = quantized(parts, asymmetric=asymmetric, rules=others.worst(2))
    assert [layer.name for layer in model.network(parts[1][0]).layers] == [alone]
    wanted = report(model, *parts).output_sqnr_db
    assert ranked.sqnr_db[alone] == pytest.approx(wanted, abs=1e-3)


def test_of_a_single_layer_it_is_the_report_of_the_network(parts):
    p, batches = parts
    single = {"w": p["a"]}
    model = quantize_model(lambda p, x: conv(x, p["w"]), single, batches, **FAST)
    found = sensitivity(model, single, batches, progress=False)
    wanted = report(model, single, batches).output_sqnr_db
    assert found.sqnr_db == {"w": pytest.approx(wanted, abs=1e-3)}


def test_the_network_is_compiled_once_and_progress_is_shown(parts, monkeypatch, capfd):
    traced, outputs = [], _sensitivity._outputs

    def counting(*args):
        traced.append(args)
        return outputs(*args)

    model = quantized(parts)
    monkeypatch.setattr(_sensitivity, "_outputs", counting)
    sensitivity(model, *parts)
    assert len(traced) == 1
    assert capfd.readouterr().err.endswith("sensitivity: batch 2, 3 of 3 layers\n")


def test_calls_of_one_layer_are_one(parts):
    p, batches = parts

    def twice(p, x):
        y = jax.nn.relu(conv(x, p["a"]))
        y = jax.nn.relu(conv(y, p["b"]))
        return conv(y, p["b"])

    p = {"a": p["a"], "b": p["b[0]"]}
    model = quantize_model(twice, p, batches, **FAST)
    assert [layer.name for layer in model.network(batches[0]).layers] == ["a", "b", "b#2"]
    found = sensitivity(model, p, batches, progress=False)
    assert set(found.sqnr_db) == {"a", "b"}
    left = quantize_model(twice, p, batches, rules=[Rule("a", skip=True)], **FAST)
    wanted = report(left, p, batches).output_sqnr_db
    assert found.sqnr_db["b"] == pytest.approx(wanted, abs=1e-3)


def test_equalised_layers_and_slopes_pass(parts):
    _, batches = parts

    def pair(p, x):
        y = conv(x, p["a"])
        y = jnp.where(y > 0, y, y * p["s"].reshape(1, 1, 1, -1))
        return conv(y, p["b"])

    rng, spread = np.random.default_rng(1), np.geomspace(1, 20, 16, dtype="f")
    p = {
        "a": rng.normal(size=(3, 3, 3, 16)).astype("f") * spread,
        "b": rng.normal(size=(3, 3, 16, 8)).astype("f") / spread[:, None],
        "s": rng.uniform(0.1, 0.4, 16).astype("f"),
    }
    model = quantize_model(pair, p, batches, equalise=True, **FAST)
    assert len(model.calibration.factors) == 1
    found = sensitivity(model, p, batches, progress=False)
    told = report(model, p, batches)
    assert all(db > 25 for db in found.sqnr_db.values())
    assert all(layer.sqnr_db > 25 for layer in told.layers)
    # Their noise adds up to about that of the whole network.
    noise = sum(10 ** (-db / 10) for db in found.sqnr_db.values())
    assert told.output_sqnr_db == pytest.approx(-10 * np.log10(noise), abs=1.5)


def test_bfloat16_and_data_of_several_shapes_pass(parts):
    p, batches = jax.tree.map(lambda v: jnp.asarray(v, jnp.bfloat16), parts)
    batches = [*batches, batches[0][:1]]
    model = quantize_model(chain, p, batches, **FAST)
    found = sensitivity(model, p, batches, progress=False)
    assert next(iter(found.sqnr_db)) == "b[0]"


def test_rules_leave_the_worst_real(parts, ranked):
    assert ranked.worst(0) == []
    model = quantized(parts, rules=ranked.worst(1))
    assert left_real(model, parts) == ("b[0]",)
    for count in (-1, 4, 1.5, True):
        with pytest.raises(ValueError, match="from 0 to 3"):
            ranked.worst(count)


def test_it_is_a_table_and_json(ranked):
    assert str(ranked).splitlines()[1].split() == ["b[0]", f"{ranked.sqnr_db['b[0]']:.1f}"]
    assert Sensitivity(**json.loads(ranked.to_json())) == ranked


def test_no_data_and_a_single_batch_are_refused(parts):
    p, batches = parts
    model = quantized(parts)
    with pytest.raises(ValueError, match="at least one batch"):
        sensitivity(model, p, [], progress=False)
    with pytest.raises(TypeError, match="wrap a single batch in a list"):
        sensitivity(model, p, batches[0], progress=False)


def test_nothing_is_left_real_where_int8_is_accurate_enough(parts):
    model = mixed_precision(chain, *parts, least_sqnr_db=0, **FAST)
    assert left_real(model, parts) == ()


def test_the_worst_layers_are_left_real_until_it_is_accurate_enough(parts, ranked):
    least = ranked.sqnr_db["b[0]"] + 3
    model = mixed_precision(chain, *parts, least_sqnr_db=least, **FAST)
    assert left_real(model, parts) == ("b[0]",)
    assert report(model, *parts).output_sqnr_db >= least
    whole = mixed_precision(chain, *parts, least_sqnr_db=200, **FAST)
    assert set(left_real(whole, parts)) == set(NAMES)


def test_layers_that_rules_skip_stay_real_too(parts, ranked):
    least = ranked.sqnr_db["b[0]"] + 3
    rules = [Rule("c", skip=True)]
    model = mixed_precision(chain, *parts, least_sqnr_db=least, rules=rules, **FAST)
    assert set(left_real(model, parts)) == {"b[0]", "c"}


def test_what_cannot_be_reached_is_said(parts):
    with pytest.warns(UserWarning, match="with 1 layers left real, as many as most=1 allows"):
        model = mixed_precision(chain, *parts, least_sqnr_db=200, most=1, **FAST)
    assert left_real(model, parts) == ("b[0]",)


@pytest.mark.parametrize(
    ("error", "match", "options"),
    [
        (ValueError, "least_sqnr_db", {"least_sqnr_db": "30"}),
        (ValueError, "least_sqnr_db", {"least_sqnr_db": float("nan")}),
        (ValueError, "most must be", {"least_sqnr_db": 30, "most": -1}),
        (TypeError, "make a list", {"least_sqnr_db": 30, "batches": iter([1])}),
    ],
)
def test_bad_arguments_are_refused(parts, error, match, options):
    p, batches = parts
    with pytest.raises(error, match=match):
        mixed_precision(chain, p, **{"batches": batches} | options)
