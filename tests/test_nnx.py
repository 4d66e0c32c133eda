"""`jax_qconv.nnx.QConv` stands in for `flax.nnx.Conv`."""

import importlib
import inspect
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("flax")

from flax import nnx

from jax_qconv import QTensor, prepack, qconv, quantize, quantize_image
from jax_qconv.nnx import QConv, Quantized


def floats(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def float_conv(**kwargs) -> nnx.Conv:
    """A convolution as after training, with a bias that isn't zero."""
    kwargs = {"in_features": 5, "out_features": 6, "kernel_size": (3, 3)} | kwargs
    # Zeros need no random bits compiled for every shape.
    conv = nnx.Conv(**kwargs, kernel_init=nnx.initializers.zeros, rngs=nnx.Rngs(0))
    conv.kernel.set_value(floats(*conv.kernel_shape, seed=1))
    if conv.use_bias:
        conv.bias.set_value(floats(conv.out_features, seed=2))
    return conv


X = quantize(floats(2, 9, 8, 5), 0.03)
RESIDUAL = quantize(floats(2, 9, 8, 6, seed=3), 0.07)
SCALES = {"x_scale": 0.03, "out_scale": 0.1}


@pytest.fixture(scope="module")
def layer() -> QConv:
    return QConv.from_float(float_conv(), **SCALES, residual_scale=0.07, activation="relu")


def abstract_layer(**kwargs) -> QConv:
    kwargs = {"activation": "relu", "residual": True} | kwargs
    return nnx.eval_shape(lambda: QConv(5, 6, (3, 3), **kwargs))


def assert_same(a: QTensor, b: QTensor) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(
    "geometry",
    [
        {"strides": 2},
        {"strides": (1, 2), "padding": "VALID", "use_bias": False},
        {"kernel_dilation": (2, 1), "kernel_size": [2, 3]},
        {"padding": [(2, 0), (0, 1)], "strides": [2, 1]},
        {"padding": (1, 2), "strides": None, "kernel_dilation": None},
        {"feature_group_count": 5, "out_features": 10},
    ],
    ids=str,
)
def test_equals_the_float_conv_on_integers(geometry):
    """Integer weights with absmax 127 have scale 1: then both convolutions are exact."""
    rng = np.random.default_rng(0)
    conv = float_conv(**geometry)
    kernel = rng.integers(-127, 128, conv.kernel_shape).astype(np.float32)
    kernel[0, 0, 0] = 127
    conv.kernel.set_value(jnp.asarray(kernel))
    if conv.use_bias:
        conv.bias.set_value(jnp.arange(float(conv.out_features)))
    x = jnp.asarray(rng.integers(-128, 128, (2, 9, 8, 5)), jnp.int8)

    expected = conv(x.astype(jnp.float32))

    np.testing.assert_array_equal(QConv.from_float(conv, x_scale=1.0)(QTensor(x, 1.0)), expected)


def test_arguments_have_the_names_and_order_of_flax():
    ours, flax = (inspect.signature(cls.__init__).parameters for cls in (QConv, nnx.Conv))
    positional = [
        [p.name for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        for parameters in (ours, flax)
    ]
    assert positional[0] == positional[1]
    assert set(ours) - set(flax) == {"activation", "residual", "out_dtype", "implementation"}


@pytest.mark.parametrize(
    "kwargs",
    [
        {"padding": "CIRCULAR"},
        {"input_dilation": 2},
        {"padding": "CAUSAL", "kernel_size": 3},
        {"mask": np.ones((3, 3, 5, 6), np.float32)},
        {"conv_general_dilated": lambda *args, **kwargs: None},
    ],
    ids=lambda kwargs: next(iter(kwargs)),
)
def test_convs_that_cannot_be_honoured_are_refused_by_name(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        QConv.from_float(float_conv(**kwargs), **SCALES)


def test_only_a_conv_is_taken():
    zeros = nnx.initializers.zeros
    transposed = nnx.ConvTranspose(5, 6, (3, 3), kernel_init=zeros, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="got ConvTranspose"):
        QConv.from_float(transposed, **SCALES)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"out_dtype": "int8"}, "needs out_scale"),
        ({"out_dtype": "float32", "out_scale": 0.1}, "out_scale is for int8 outputs only"),
        ({"out_dtype": "int32"}, "bare accumulator"),
        ({"activation": nnx.gelu}, "activation"),
    ],
)
def test_scales_must_fit_the_output(kwargs, message):
    with pytest.raises(ValueError, match=message):
        QConv.from_float(float_conv(), x_scale=0.03, **kwargs)


def test_out_dtype_follows_from_out_scale():
    assert QConv.from_float(float_conv(), **SCALES).out_dtype == "int8"
    assert QConv.from_float(float_conv(), x_scale=0.03).out_dtype == "float32"


@pytest.mark.parametrize(
    ("name", "value"),
    [("strides", 2), ("padding", "VALID"), ("activation", None), ("residual", False)],
)
def test_an_attribute_changed_after_packing_is_refused(name, value):
    layer = QConv.from_float(float_conv(), **SCALES, residual_scale=0.07, activation="relu")
    setattr(layer, name, value)
    with pytest.raises(ValueError, match=name):
        layer(X, RESIDUAL)


def test_jit_and_split_and_merge_give_the_same_bytes(layer):
    expected = layer(X, RESIDUAL)
    assert_same(nnx.jit(lambda m, x, r: m(x, r))(layer, X, RESIDUAL), expected)

    graphdef, state = nnx.split(layer)
    merged = jax.jit(lambda state, x, r: nnx.merge(graphdef, state)(x, r))
    assert_same(merged(state, X, RESIDUAL), expected)


def test_lists_leave_the_graph_definition_hashable():
    listed = QConv(5, 6, [3, 3], [2, 2], padding=[[1, 1], [1, 1]], kernel_dilation=[1, 1])
    tupled = QConv(5, 6, (3, 3), (2, 2), padding=((1, 1), (1, 1)), kernel_dilation=(1, 1))
    assert hash(nnx.graphdef(listed)) == hash(nnx.graphdef(tupled))


def test_a_call_is_one_operation(layer):
    """Nothing is packed, folded, padded or copied per call."""
    graphdef, state = nnx.split(layer)
    call = lambda state, x, r: nnx.merge(graphdef, state)(x, r)  # noqa: E731
    jaxpr = jax.make_jaxpr(call)(state, X, RESIDUAL)
    assert [eqn.primitive.name for eqn in jaxpr.eqns] == ["jax_qconv"]


def test_weights_are_not_parameters(layer):
    _, params, quantized, rest = nnx.split(layer, nnx.Param, Quantized, ...)
    assert not params and not rest
    assert list(quantized) == ["packed"]


def test_abstract_module_takes_the_state_of_a_packed_one(layer):
    restored = abstract_layer()
    saved = nnx.to_pure_dict(nnx.state(layer))
    assert jax.eval_shape(lambda v: v, saved) == nnx.to_pure_dict(nnx.state(restored))

    nnx.update(restored, saved)

    assert_same(restored(X, RESIDUAL), layer(X, RESIDUAL))


def test_state_of_other_arguments_is_refused(layer):
    other = abstract_layer(strides=2)
    nnx.update(other, nnx.state(layer))
    with pytest.raises(ValueError, match=r"strides=\(2, 2\).* \(1, 1\)"):
        other(X, RESIDUAL)


def test_orbax_restores_the_same_bytes(layer, tmp_path):
    checkpoint = pytest.importorskip("orbax.checkpoint")
    graphdef, target = nnx.split(abstract_layer())
    with checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "layer", nnx.state(layer))
        checkpointer.wait_until_finished()
        state = checkpointer.restore(tmp_path / "layer", target)
    assert_same(nnx.merge(graphdef, state)(X, RESIDUAL), layer(X, RESIDUAL))


def test_constructed_module_has_zero_weights():
    out = QConv(5, 6, (3, 3), out_dtype="float32")(X.values)
    np.testing.assert_array_equal(out, np.zeros((2, 9, 8, 6), np.float32))


def test_any_bound_pack_can_be_put_in():
    """Packs with one scale per tensor or other padding are made with `prepack`."""
    kernel = floats(3, 3, 5, 6, seed=1)
    packed = prepack(kernel, per_channel=False, pad_to=(16, 32)).bind(**SCALES)
    layer = QConv(5, 6, (3, 3), use_bias=False)
    layer.packed.set_value(packed)
    assert_same(layer(X), qconv(X, packed))


def test_an_image_enters_a_module_with_zero_points():
    image = np.random.default_rng(0).integers(0, 256, (2, 9, 8, 5), np.uint8)
    x = quantize_image(image, 0.03)
    residual = quantize(floats(2, 9, 8, 6, seed=3), 0.07, zero_point=-3)
    slopes = np.linspace(0.1, 0.6, 6, dtype=np.float32)
    zeros = {"x_zero_point": -128, "out_zero_point": 5, "residual_zero_point": -3}
    given = {"activation": "prelu", "residual_scale": 0.07}
    conv = float_conv()
    layer = QConv.from_float(conv, **SCALES, **given, **zeros, slopes=slopes)
    expected = qconv(
        x, prepack(conv.kernel.get_value(), conv.bias.get_value()), residual=residual,
        out_scale=0.1, out_zero_point=5, activation="prelu", slopes=slopes,
    )  # fmt: skip
    assert_same(layer(x, residual), expected)

    blank = nnx.Conv(5, 6, (3, 3), kernel_init=nnx.initializers.zeros, rngs=nnx.Rngs(0))
    other = dict.fromkeys(zeros, 0)
    target = QConv.from_float(blank, **SCALES, **given, **other, slopes=np.zeros(6, np.float32))
    nnx.update(target, nnx.to_pure_dict(nnx.state(layer)))
    assert_same(target(x, residual), expected)
    graphdef, state = nnx.split(target)
    assert_same(nnx.merge(graphdef, state)(x, residual), expected)

    constructed = QConv(5, 6, (3, 3), activation="prelu", residual=True)
    constructed.packed.set_value(layer.packed.get_value())
    assert_same(constructed(x, residual), expected)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"out_features": 16.0}, TypeError, "^out_features must be an int, got 16.0"),
        ({"feature_group_count": 0}, ValueError, "^feature_group_count must be at least 1, got 0"),
        ({"feature_group_count": 3}, ValueError, "^feature_group_count=3 must divide the 5 input"),
        ({"residual": 1}, TypeError, "^residual must be True or False, got 1"),
        ({"use_bias": "no"}, TypeError, "^use_bias must be True or False, got 'no'"),
        ({"in_features": 5.0}, TypeError, "^in_features must be an int, got 5.0"),
    ],
)
def test_arguments_of_other_kinds_are_refused_by_name(arguments, error, message):
    with pytest.raises(error, match=message):
        QConv(**({"in_features": 5, "out_features": 6, "kernel_size": 3} | arguments))


def test_implementation_is_used_or_refused():
    layer = QConv.from_float(float_conv(), **SCALES, implementation="cublas")
    with pytest.raises(ValueError, match="implementation='cublas' is not known"):
        layer(X)


def test_missing_flax_names_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "flax", None)
    monkeypatch.delitem(sys.modules, "jax_qconv.nnx")
    with pytest.raises(ImportError, match=r"pip install 'jax_qconv\[flax\]'"):
        importlib.import_module("jax_qconv.nnx")
