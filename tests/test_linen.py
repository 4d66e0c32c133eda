"""`jax_qconv.linen.QConv` stands in for `flax.linen.Conv`."""

import importlib
import inspect
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from effort import examples
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("flax")

import flax.linen as nn
from flax import serialization

from jax_qconv import QTensor, dequantize, prepack, qconv, quantize, quantize_image
from jax_qconv.linen import QConv

KEY = jax.random.key(0)


def floats(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def conv_params(*shape: int, use_bias: bool = True) -> dict[str, jax.Array]:
    params = {"kernel": floats(*shape, seed=1), "bias": floats(shape[-1], seed=2)}
    return params if use_bias else {"kernel": params["kernel"]}


X = quantize(floats(2, 9, 8, 5), 0.03)
PARAMS = conv_params(3, 3, 5, 6)
SCALES = {"x_scale": 0.03, "out_scale": 0.1}


def pairs(low: int, high: int) -> st.SearchStrategy:
    return st.tuples(st.integers(low, high), st.integers(low, high))


geometries = st.fixed_dictionaries(
    {
        "kernel_size": pairs(1, 3),
        "strides": st.none() | st.integers(1, 3) | pairs(1, 3),
        "padding": st.sampled_from(["SAME", "VALID"])
        | st.integers(0, 2)
        | pairs(0, 2)
        | st.tuples(pairs(0, 2), pairs(0, 2)),
        "kernel_dilation": st.none() | st.integers(1, 2) | pairs(1, 2),
        "use_bias": st.booleans(),
    }
)


@pytest.mark.parametrize(
    ("fields", "x_shape"),
    [
        ({"kernel_size": 3}, (2, 9, 4)),
        ({"kernel_size": (3, 3, 2), "strides": 2}, (2, 5, 6, 4, 4)),
        ({"kernel_size": (3, 3), "feature_group_count": 2}, (2, 6, 5, 4)),
        ({"kernel_size": (3, 3), "feature_group_count": 4}, (2, 6, 5, 4)),
    ],
    ids=["1-D", "3-D", "groups", "depthwise"],
)
def test_other_kinds_equal_the_float_conv_on_integers(fields, x_shape):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(-128, 128, x_shape), jnp.int8)
    conv = nn.Conv(features=8, **fields)
    params = conv.init(KEY, x.astype(jnp.float32))["params"]
    kernel = rng.integers(-127, 128, params["kernel"].shape).astype(np.float32)
    kernel[(0,) * (kernel.ndim - 1)] = 127
    params = {"kernel": jnp.asarray(kernel), "bias": jnp.arange(8.0)}
    expected = conv.apply({"params": params}, x.astype(jnp.float32))
    layer = QConv(features=8, out_dtype="float32", **fields)
    packed = layer.from_float(params, x_scale=1.0)
    np.testing.assert_array_equal(layer.apply({"quantized": packed}, QTensor(x, 1.0)), expected)


@examples(8)
@given(geometries, pairs(5, 9), pairs(1, 5), st.integers(0, 2**31))
def test_equals_the_float_conv_on_integers(geometry, size, channels, seed):
    """Integer weights with absmax 127 have scale 1: then both convolutions are exact."""
    rng = np.random.default_rng(seed)
    c, k = channels
    kernel = rng.integers(-127, 128, (*geometry["kernel_size"], c, k)).astype(np.float32)
    kernel[0, 0, 0] = 127
    params = {"kernel": jnp.asarray(kernel)}
    if geometry["use_bias"]:
        params["bias"] = jnp.asarray(rng.integers(-999, 999, k), jnp.float32)
    x = jnp.asarray(rng.integers(-128, 128, (2, *size, c)), jnp.int8)

    expected = nn.Conv(k, **geometry).apply({"params": params}, x.astype(jnp.float32))
    layer = QConv(k, **geometry, out_dtype="float32")
    got = layer.apply({"quantized": layer.from_float(params, x_scale=1.0)}, QTensor(x, 1.0))

    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    "geometry",
    [
        {"strides": 2},
        {"kernel_dilation": 2},
        {"padding": "VALID", "strides": (2, 1)},
        {"padding": ((2, 0), (0, 1))},
    ],
    ids=str,
)
def test_random_floats_lose_only_the_rounding_to_8_bits(geometry):
    x, params = floats(2, 16, 15, 8), conv_params(3, 3, 8, 16)
    expected = nn.Conv(16, (3, 3), **geometry).apply({"params": params}, x)
    x_scale = jnp.abs(x).max() / 127
    layer = QConv(16, (3, 3), **geometry)
    packed = layer.from_float(params, x_scale=x_scale, out_scale=jnp.abs(expected).max() / 127)

    got = dequantize(layer.apply({"quantized": packed}, quantize(x, x_scale)))

    sqnr = 10 * np.log10(np.mean(expected**2) / np.mean((got - expected) ** 2))
    assert sqnr > 35


def test_fields_have_the_names_and_order_of_flax():
    ours = inspect.signature(QConv).parameters.values()
    positional = [p.name for p in ours if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == list(inspect.signature(nn.Conv).parameters)[: len(positional)]
    own = {p.name for p in ours} - set(inspect.signature(nn.Conv).parameters)
    assert own == {"activation", "residual", "out_dtype", "implementation"}


@pytest.mark.parametrize(
    "fields",
    [
        {"padding": "CIRCULAR"},
        {"padding": "REFLECT"},
        {"padding": "CAUSAL"},
        {"input_dilation": 2},
        {"kernel_size": (3, 3, 3, 3)},
        {"activation": nn.gelu},
        {"out_dtype": "int16"},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_fields_that_cannot_be_honoured_are_refused_by_name(fields):
    layer = QConv(**({"features": 6, "kernel_size": (3, 3)} | fields))
    (name,) = fields
    with pytest.raises(ValueError, match=name):
        layer.init(KEY, X)
    with pytest.raises(ValueError, match=name):
        layer.from_float(PARAMS, **SCALES)


@pytest.mark.parametrize(
    ("fields", "params", "scales", "message"),
    [
        ({"use_bias": False}, PARAMS, SCALES, r"use_bias=False, got \['bias', 'kernel'\]"),
        ({}, conv_params(3, 3, 5, 6, use_bias=False), SCALES, r"use_bias=True, got \['kernel'\]"),
        ({}, {"params": PARAMS}, SCALES, r"got \['params'\]"),
        ({"kernel_size": (3, 5)}, PARAMS, SCALES, r"kernel_size=\(3, 5\).* \(3, 3\)"),
        ({"features": 5}, PARAMS, SCALES, "features=5.* 6"),
        ({}, PARAMS, {"x_scale": 1.0}, "needs out_scale"),
        ({"out_dtype": "float32"}, PARAMS, SCALES, "out_scale is for int8 outputs only"),
        ({"out_dtype": "int32"}, PARAMS, {"x_scale": 1.0}, "bare accumulator"),
        ({"residual": True}, PARAMS, SCALES, "residual=True, but residual_scale=None"),
        ({}, PARAMS, SCALES | {"residual_scale": 0.1}, "residual=False, but residual_scale=0.1"),
    ],
)
def test_parameters_and_scales_must_fit_the_fields(fields, params, scales, message):
    layer = QConv(**({"features": 6, "kernel_size": (3, 3)} | fields))
    with pytest.raises(ValueError, match=message):
        layer.from_float(params, **scales)


@pytest.mark.parametrize(
    "fields",
    [
        {"strides": 2},
        {"padding": "VALID"},
        {"kernel_dilation": 2},
        {"activation": "relu"},
        {"out_dtype": "float32"},
        {"residual": True},
        {"use_bias": False},
    ],
    ids=str,
)
def test_a_pack_made_for_other_fields_is_refused(fields):
    packed = QConv(6, (3, 3)).from_float(PARAMS, **SCALES)
    (name,) = fields
    with pytest.raises(ValueError, match=name):
        QConv(6, (3, 3), **fields).apply({"quantized": packed}, X)


def test_an_unbound_pack_is_refused():
    packed = prepack(PARAMS["kernel"], PARAMS["bias"])
    with pytest.raises(ValueError, match="not bound"):
        QConv(6, (3, 3)).apply({"quantized": {"packed": packed}}, X)


def test_boxed_parameters_are_unboxed():
    boxed = jax.tree.map(lambda v: nn.Partitioned(v, names=(None,) * v.ndim), PARAMS)
    layer = QConv(6, (3, 3))
    packs = [layer.from_float(params, **SCALES) for params in (PARAMS, boxed)]
    jax.tree.map(np.testing.assert_array_equal, *packs)


RESIDUAL_LAYER = QConv(6, (3, 3), activation="relu6", residual=True)
RESIDUAL = quantize(floats(2, 9, 8, 6, seed=3), 0.07)
RESIDUAL_VARIABLES = {"quantized": RESIDUAL_LAYER.from_float(PARAMS, **SCALES, residual_scale=0.07)}


def test_init_has_the_structure_of_packed_weights():
    bare = QConv(4, (1, 1), use_bias=False, out_dtype="float16")
    bare_params = conv_params(1, 1, 5, 4, use_bias=False)
    for layer, variables, args in [
        (RESIDUAL_LAYER, RESIDUAL_VARIABLES, (X, RESIDUAL)),
        (bare, {"quantized": bare.from_float(bare_params, x_scale=1.0)}, (X,)),
    ]:
        assert jax.eval_shape(layer.init, KEY, *args) == jax.eval_shape(lambda v: v, variables)


def test_initialised_module_has_zero_weights():
    out, variables = RESIDUAL_LAYER.init_with_output(KEY, X, RESIDUAL)
    assert list(variables) == ["quantized"]
    again = RESIDUAL_LAYER.apply(variables, X, RESIDUAL)
    # With zero weights, and out_scale 1, only the residual is left.
    expected = jnp.clip(jnp.round(dequantize(RESIDUAL)), 0, 6)
    for q in (out, again):
        np.testing.assert_array_equal(q.unpadded(), expected)


def test_checkpoint_restores_the_same_bytes():
    target = RESIDUAL_LAYER.init(KEY, X, RESIDUAL)
    restored = serialization.from_bytes(target, serialization.to_bytes(RESIDUAL_VARIABLES))
    assert jax.tree.structure(restored) == jax.tree.structure(RESIDUAL_VARIABLES)
    jax.tree.map(np.testing.assert_array_equal, restored, RESIDUAL_VARIABLES)


def test_checkpoint_is_nested_dicts_of_arrays():
    state = serialization.to_state_dict(RESIDUAL_VARIABLES)["quantized"]["packed"]
    assert set(state) == {"weight", "weight_scale", "bias", "binding"}
    assert set(state["binding"]["constants"]) == {"m", "b", "m_r", "lower", "upper"}
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"use_bias": False}, "bias"),
        ({"residual": False}, "residual_scale"),
        ({"features": 7}, "weight_scale .* has shape"),
    ],
)
def test_checkpoint_of_other_fields_is_refused(fields, message):
    layer = RESIDUAL_LAYER.clone(**fields)
    residual = RESIDUAL if layer.residual else None
    if layer.features != 6:
        residual = quantize(floats(2, 9, 8, layer.features), 0.07)
    target = layer.init(KEY, X, residual)
    with pytest.raises(ValueError, match=message):
        serialization.from_bytes(target, serialization.to_bytes(RESIDUAL_VARIABLES))


ZEROS = {"x_zero_point": -128, "out_zero_point": 5, "residual_zero_point": -3}


def test_an_image_enters_a_module_with_zero_points():
    image = np.random.default_rng(0).integers(0, 256, (2, 9, 8, 5), np.uint8)
    x = quantize_image(image, 0.03)
    residual = quantize(floats(2, 9, 8, 6, seed=3), 0.07, zero_point=-3)
    slopes = np.linspace(0.1, 0.6, 6, dtype=np.float32)
    layer = QConv(6, (3, 3), activation="prelu", residual=True)
    scales = {**SCALES, "residual_scale": 0.07, **ZEROS, "slopes": slopes}
    variables = {"quantized": layer.from_float(PARAMS, **scales)}
    expected = qconv(
        x, prepack(PARAMS["kernel"], PARAMS["bias"]), residual=residual, out_scale=0.1,
        out_zero_point=5, activation="prelu", slopes=slopes,
    )  # fmt: skip

    got = layer.apply(variables, x, residual)
    jax.tree.map(np.testing.assert_array_equal, got, expected)

    # What init makes lacks the output's zero point only; from_float of zeros lacks nothing.
    initial = layer.init(KEY, x, residual)["quantized"]["packed"].binding
    packed = variables["quantized"]["packed"].binding
    assert initial.x_zero_point == -128 and initial.residual_zero_point == -3
    assert initial.constants.slopes.shape == packed.constants.slopes.shape
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    given = {"x_scale": 1.0, "out_scale": 1.0, "residual_scale": 1.0, "slopes": np.zeros(6, "f4")}
    target = {"quantized": layer.from_float(zeros, **given, **dict.fromkeys(ZEROS, 0))}
    state = serialization.to_state_dict(variables)
    assert {*ZEROS} <= set(state["quantized"]["packed"]["binding"])
    for restored in (
        serialization.from_state_dict(target, state),
        serialization.from_bytes(target, serialization.to_bytes(variables)),
    ):
        got = layer.apply(restored, x, residual)
        jax.tree.map(np.testing.assert_array_equal, got, expected)
    with pytest.raises(ValueError, match=r"binding has .*'out_zero_point'"):
        serialization.from_state_dict(
            {"quantized": layer.init(KEY, x, residual)["quantized"]}, state
        )


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"features": 16.0}, TypeError, "^features must be an int, got 16.0"),
        ({"features": 0}, ValueError, "^features must be at least 1, got 0"),
        ({"feature_group_count": 0}, ValueError, "^feature_group_count must be at least 1, got 0"),
        ({"feature_group_count": "2"}, TypeError, "^feature_group_count must be an int, got '2'"),
        ({"feature_group_count": 4}, ValueError,
         "^feature_group_count=4 must divide the 6 output channels"),
        ({"residual": 1}, TypeError, "^residual must be True or False, got 1"),
        ({"use_bias": "no"}, TypeError, "^use_bias must be True or False, got 'no'"),
    ],
)  # fmt: skip
def test_fields_of_other_kinds_are_refused_by_name(fields, error, message):
    layer = QConv(**({"features": 6, "kernel_size": (3, 3)} | fields))
    with pytest.raises(error, match=message):
        layer.init(KEY, X)
    with pytest.raises(error, match=message):
        layer.from_float(PARAMS, **SCALES)


def test_groups_that_do_not_divide_the_input_are_refused_by_name():
    message = "^feature_group_count=3 must divide the 5 input channels"
    with pytest.raises(ValueError, match=message):
        QConv(6, (3, 3), feature_group_count=3).init(KEY, X)


def test_apply_is_one_operation():
    """Nothing is packed, folded, padded or copied per call."""
    jaxpr = jax.make_jaxpr(RESIDUAL_LAYER.apply)(RESIDUAL_VARIABLES, X, RESIDUAL)
    assert [eqn.primitive.name for eqn in jaxpr.eqns] == ["jax_qconv"]


def test_jit_gives_the_same_bytes():
    eager = RESIDUAL_LAYER.apply(RESIDUAL_VARIABLES, X, RESIDUAL)
    jitted = jax.jit(RESIDUAL_LAYER.apply)(RESIDUAL_VARIABLES, X, RESIDUAL)
    jax.tree.map(np.testing.assert_array_equal, eager, jitted)


def test_implementation_is_used_or_refused():
    layer = QConv(6, (3, 3), implementation="cublas")
    with pytest.raises(ValueError, match="implementation='cublas' is not known"):
        layer.apply({"quantized": layer.from_float(PARAMS, **SCALES)}, X)


def test_scan_over_layers():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return QConv(5, (3, 3), activation="relu", name="conv")(x), None

    layer = QConv(5, (3, 3), activation="relu")
    scales = {"x_scale": 0.03, "out_scale": 0.03}
    packs = [
        layer.from_float({"kernel": floats(3, 3, 5, 5, seed=s), "bias": floats(5)}, **scales)
        for s in range(3)
    ]
    expected = X
    for packed in packs:
        expected = qconv(expected, packed["packed"])

    blocks = nn.scan(Block, variable_axes={"quantized": 0}, split_rngs={}, length=3)()
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *packs)
    out, _ = blocks.apply({"quantized": {"conv": stacked}}, X, None)

    np.testing.assert_array_equal(out.values, expected.values)


def test_missing_flax_names_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "flax", None)
    monkeypatch.delitem(sys.modules, "jax_qconv.linen")
    with pytest.raises(ImportError, match=r"pip install 'jax_qconv\[flax\]'"):
        importlib.import_module("jax_qconv.linen")


def test_importing_jax_qconv_does_not_import_flax():
    code = "import sys, jax_qconv; sys.exit('flax' in sys.modules)"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
