"""The report of a network: every layer, and how near it is to the float one."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from jax_qconv import Rule, quantize_model, report


def net(p, x):
    y = jax.nn.relu(jax.lax.conv_general_dilated(
        x, p["a"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")))  # fmt: skip
    y = jax.lax.conv_general_dilated(
        y, p["b"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y.mean((1, 2)) @ p["c"]


@pytest.fixture(scope="module")
def parts():
    rng = np.random.default_rng(0)
    shapes = {"a": (3, 3, 3, 16), "b": (3, 3, 16, 8), "c": (8, 5)}
    p = {name: rng.normal(size=shape).astype("f") / 8 for name, shape in shapes.items()}
    batches = [rng.normal(size=(2, 12, 12, 3)).astype("f") for _ in range(3)]
    return p, batches


def made(parts, **options):
    p, batches = parts
    options = {"observer": "absmax", "progress": False} | options
    model = quantize_model(net, p, batches, **options)
    return model, report(model, p, batches)


def test_every_layer_is_told_with_its_error(parts):
    _model, found = made(parts)
    a, b, mean, c = found.layers
    assert [layer.kind for layer in found.layers] == ["conv", "conv", "global average", "linear"]
    assert (a.name, b.name, c.name) == ("a", "b", "c")
    assert (a.out, mean.out, c.out) == ("int8", "int8", "float32")
    assert a.macs == 2 * 12 * 12 * 27 * 16 and b.macs == 2 * 6 * 6 * 9 * 16 * 8
    assert a.clipped == 0 and a.zero_point is None and a.scale > 0
    assert all(20 < layer.sqnr_db < 70 for layer in found.layers)
    assert 0 < a.mean_error < a.worst_error < 2 * a.scale


def test_the_outputs_are_compared_over_all_batches(parts):
    p, batches = parts
    model, found = made(parts)
    wanted = np.concatenate([net(p, x) for x in batches])
    got = np.concatenate([model(model.params, x) for x in batches])
    sqnr = 10 * np.log10((wanted**2).sum() / ((wanted - got) ** 2).sum())
    assert found.output_sqnr_db == pytest.approx(sqnr, abs=1e-3)


def test_numbers_beyond_the_range_are_counted(parts):
    p, batches = parts
    model = quantize_model(net, p, [x / 4 for x in batches], observer="absmax", progress=False)
    first = report(model, p, batches).layers[0]
    assert 0.001 < first.clipped < 0.5


def test_what_stays_real_is_told_with_its_reason(parts):
    _, found = made(parts, rules=[Rule("c", skip=True)])
    last = found.layers[-1]
    assert (last.kind, last.out, last.why) == ("dot_general", "float32", "a rule skips it")


def test_it_is_a_table_and_json(parts):
    _, found = made(parts)
    lines = str(found).splitlines()
    assert lines[0].split()[:3] == ["layer", "kind", "out"] and len(lines) == 6
    assert lines[-1] == f"outputs: {found.output_sqnr_db:.1f} dB"
    fields = json.loads(found.to_json())
    assert next(layer["name"] for layer in fields["layers"]) == "a"


def test_no_data_is_refused(parts):
    model, _ = made(parts)
    with pytest.raises(ValueError, match="at least one batch"):
        report(model, parts[0], [])
