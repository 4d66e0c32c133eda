"""`qconv` against the oracle: every element, bit for bit, inside and outside jit."""

import math

import cases
import hypothesis
import jax
import layers
import numpy as np
import oracle
import pytest
from cases import Case, Geometry
from effort import examples
from hypothesis import strategies as st

from jax_qconv import Activation, QTensor, dequantize, prepack, qconv, quantize


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@hypothesis.given(case=cases.cases(), bound=st.booleans())
@examples(15)
def test_every_kind_of_call_is_exact(jit, case, bound):
    oracle.assert_same(case.run(jit=jit, bound=bound), case.expected())


GEOMETRIES = {
    "one of everything": Geometry((1, 1, 1, 1), (1, 1, 1, 1)),
    "1x1": Geometry((2, 5, 7, 8), (12, 1, 1, 8)),
    "1x1 with strides": Geometry((2, 5, 7, 8), (12, 1, 1, 8), strides=(2, 3)),
    "two channels": Geometry((1, 6, 5, 2), (3, 3, 3, 2)),
    "three channels to seven": Geometry((1, 6, 5, 3), (7, 3, 3, 3)),
    "33 channels to 65": Geometry((1, 4, 4, 33), (65, 2, 2, 33)),
    "kernel as large as the input": Geometry((2, 4, 5, 3), (5, 4, 5, 3)),
    "kernel as large as the padded input": Geometry(
        (2, 3, 3, 4), (4, 5, 7, 4), padding=(1, 2), pads=((1, 1), (2, 2))
    ),
    "dilated kernel as large as the padded input": Geometry(
        (1, 3, 4, 4), (4, 3, 3, 4), (1, 1), (2, 3), ((0, 2), (3, 0)), ((0, 2), (3, 0))
    ),
    "more padding than kernel": Geometry(
        (1, 2, 2, 4), (4, 2, 2, 4), padding=3, pads=((3, 3), (3, 3))
    ),
    "strides beyond the kernel": Geometry((1, 9, 9, 4), (4, 2, 2, 4), strides=(4, 5)),
    "SAME, odd padding": Geometry((1, 5, 6, 4), (4, 4, 2, 4), (2, 2), (1, 1), "SAME", "SAME"),
    "a row": Geometry((2, 1, 16, 6), (6, 1, 5, 6), (1, 2), (1, 1), "SAME", "SAME"),
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_unusual_geometries(name):
    case = Case(GEOMETRIES[name], residual=True, activation="relu")
    oracle.assert_same(case.run(jit=True), case.expected())


@pytest.mark.parametrize("layer", layers.RESNET50, ids=lambda layer: layer.name)
def test_resnet50(layer):
    case = Case.of_layer(layer)
    oracle.assert_same(case.run(jit=True, bound=True), case.expected())


def through_one_weight(values, *, bias=None, x_scale=1.0, out_scale=1.0, **options):
    """The outputs of a 1x1 convolution of ``values`` with a single weight of 1."""
    x = QTensor(np.asarray(values, np.int8).reshape(1, 1, -1, 1), np.float32(x_scale))

    def call(bias):
        packed = prepack(np.ones((1, 1, 1, 1), np.int8), bias, weight_scale=1.0)
        out = qconv(x, packed, out_scale=out_scale, **options)
        return out.unpadded() if isinstance(out, QTensor) else out

    # A bias of NaN is refused where it is seen; traced, it isn't.
    traced = bias is not None and not np.isfinite(bias).all()
    return np.asarray((jax.jit(call) if traced else call)(bias)).ravel().tolist()


def test_ties_go_to_even():
    values = [1, 3, 5, 7, -1, -3, -5, -7, 127, -127]
    halves = [0, 2, 2, 4, 0, -2, -2, -4, 64, -64]
    assert through_one_weight(values, x_scale=0.5) == halves
    assert through_one_weight(values, out_scale=2.0) == halves


def test_saturation_on_both_sides():
    assert through_one_weight([31, 32, 33, 127], x_scale=4.0) == [124, 127, 127, 127]
    assert through_one_weight([-31, -32, -33, -128], x_scale=4.0) == [-124, -128, -128, -128]
    # Ties at the ends.
    for bias, end in ((126.5, 126), (127.5, 127), (-127.5, -128), (-128.5, -128)):
        assert through_one_weight([0], bias=np.float32([bias])) == [end]


@pytest.mark.parametrize(("bias", "integer"), [(math.nan, 0), (math.inf, 127), (-math.inf, -128)])
def test_nan_becomes_zero_and_infinities_saturate(bias, integer):
    assert through_one_weight([-5, 0, 5], bias=np.float32([bias])) == [integer] * 3


@pytest.mark.parametrize("out_dtype", ["float32", "bfloat16", "float16"])
def test_float_outputs_keep_nan_and_overflow_to_infinity(out_dtype):
    options = {"out_scale": None, "out_dtype": out_dtype}
    assert np.isnan(through_one_weight([5], bias=np.float32([math.nan]), **options)).all()
    huge = np.float32([np.finfo(np.float32).max])
    assert through_one_weight([127], x_scale=2.0**126, bias=huge, **options) == [math.inf]
    assert through_one_weight([-127], x_scale=2.0**126, bias=-huge, **options) == [-math.inf]


def test_clip_turns_nan_into_its_lower_bound():
    options = {"bias": np.float32([math.nan]), "activation": Activation.clip(-3, 6)}
    assert through_one_weight([-5, 0, 5], **options) == [-3] * 3
    assert through_one_weight([5], out_scale=None, out_dtype="float32", **options) == [-3]


@pytest.mark.parametrize("out_dtype", ["int32", "float32", "int8"])
@pytest.mark.parametrize("seed", range(4))
def test_sums_past_the_integers_of_float32(seed, out_dtype):
    geometry = Geometry((1, 5, 5, 256), (6, 3, 3, 256))
    case = Case(geometry, seed, "large", out_dtype=out_dtype)
    sums = Case(geometry, seed, "large", out_dtype="int32").expected()
    assert (np.abs(sums) > 2**24).all() and (sums % 2).any()
    oracle.assert_same(case.run(jit=True), case.expected())


@pytest.mark.parametrize(("x", "w"), [(-128, -128), (-128, 127), (127, -128), (127, 127)])
def test_the_ends_of_int8(x, w):
    packed = prepack(np.full((3, 3, 5, 6), w, np.int8), weight_scale=1.0, padding="VALID")
    got = qconv(np.full((1, 4, 4, 5), x, np.int8), packed, out_dtype="int32")
    oracle.assert_same(got, np.full((1, 2, 2, 6), 45 * x * w, np.int32))


def random_qtensor(rng, shape, stored, scale):
    """Random int8 data, also in the padded channels."""
    return QTensor(
        cases.int8(rng, (*shape[:-1], stored), "any"), np.float32(scale), None, shape[-1]
    )


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("stored", [5, 8, 12])
def test_padded_channels_may_hold_anything(stored, jit):
    rng = np.random.default_rng(0)
    x = random_qtensor(rng, (2, 6, 6, 5), stored, 0.1)
    residual = random_qtensor(rng, (2, 6, 6, 6), stored + 3, 30.0)
    w1, w2 = (cases.int8(rng, shape, "any") for shape in [(6, 3, 3, 5), (7, 3, 3, 6)])
    first, second = (prepack(w, weight_scale=0.1, layout="OHWI", padding=1) for w in (w1, w2))

    def two_layers(x, residual):
        hidden = qconv(x, first, residual=residual, out_scale=60.0)
        return hidden, qconv(hidden, second, out_scale=1e4)

    hidden, out = (jax.jit(two_layers) if jit else two_layers)(x, residual)
    # The residual's padding came through: the second layer was fed with it.
    assert np.asarray(hidden.values)[..., 6:].any()
    scales = {"w_scale": 0.1, "padding": ((1, 1), (1, 1))}
    want_hidden = oracle.convolve(
        x.unpadded(), w1, x_scale=0.1, out_scale=60.0,
        residual=residual.unpadded(), residual_scale=30.0, **scales,
    )  # fmt: skip
    want = oracle.convolve(want_hidden, w2, x_scale=60.0, out_scale=1e4, **scales)
    oracle.assert_same(hidden.unpadded(), want_hidden)
    oracle.assert_same(out.unpadded(), want)
    assert (out.shape, float(out.scale)) == ((2, 6, 6, 7), 1e4)


@pytest.mark.parametrize("stored", [5, 8])
def test_a_bare_array_suffices_for_a_bound_pack(stored):
    rng = np.random.default_rng(0)
    x = random_qtensor(rng, (2, 6, 6, 5), stored, 0.1)
    packed = prepack(cases.int8(rng, (3, 3, 5, 6), "any"), weight_scale=0.1)
    want = qconv(x, packed, out_scale=60.0, activation="relu")
    got = qconv(x.values, packed.bind(x_scale=0.1, out_scale=60.0, activation="relu"))
    oracle.assert_same(got.unpadded(), np.asarray(want.unpadded()))


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize(
    ("out_dtype", "residual"),
    [("int8", True), ("int8", False), ("float32", True), ("bfloat16", False), ("int32", False)],
)
def test_an_empty_batch_gives_an_empty_output(out_dtype, residual, jit):
    packed = prepack(np.ones((3, 3, 5, 6), np.float32), strides=2)

    def call(x, r):
        return qconv(
            QTensor(x, 0.5),
            packed,
            residual=QTensor(r, 0.5) if residual else None,
            out_dtype=out_dtype,
            out_scale=0.5 if out_dtype == "int8" else None,
        )

    empty = np.zeros((0, 6, 6, 5), np.int8), np.zeros((0, 3, 3, 6), np.int8)
    out = (jax.jit(call) if jit else call)(*empty)
    assert out.shape == (0, 3, 3, 6)
    assert (out.values if isinstance(out, QTensor) else out).dtype == out_dtype


def float_conv(x, w):
    return jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
    )


@pytest.mark.parametrize("activation", ["none", "relu", "relu6", "leaky_relu"])
def test_the_result_means_the_float_convolution(activation):
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (2, 8, 8, 5)).astype(np.float32)
    w = rng.normal(0, 0.2, (3, 3, 5, 6)).astype(np.float32)
    bias = np.float32([-4, -1, 0, 1, 4, 6])
    x_scale, out_scale = np.abs(x).max() / 127, np.float32(0.1)
    y = np.asarray(float_conv(x, w)) + bias
    want = {
        "none": y,
        "relu": np.maximum(y, 0),
        "relu6": np.clip(y, 0, 6),
        "leaky_relu": np.where(y > 0, y, 0.01 * y),
    }[activation]
    assert y.max() > 6 and np.abs(y).max() < 127 * out_scale
    out = qconv(quantize(x, x_scale), prepack(w, bias), out_scale=out_scale, activation=activation)
    # Each x and each w is off by half a step at most, and so is the output.
    w_steps = np.broadcast_to(np.abs(w).max(axis=(0, 1, 2)) / 127, w.shape)
    bound = float_conv(np.abs(x), w_steps) / 2
    bound += float_conv(np.full_like(x, x_scale), np.abs(w) + w_steps) / 2
    assert (np.abs(dequantize(out) - want) <= bound + out_scale / 2 + np.float32(1e-5)).all()
