"""Wrong arguments are refused while tracing, in words; what is right in another form is not."""

import dataclasses

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from good_arguments import good_arguments
from hypothesis import strategies as st

from jax_qconv import Activation, QTensor, dequantize, prepack, qconv, quantize, unpack


@pytest.fixture(scope="module")
def good():
    return good_arguments()


def refused(name, call, error, *fragments):
    return pytest.param(call, error, fragments, id=name)


def shaped(*shape, dtype=np.int8):
    return jax.ShapeDtypeStruct(shape, dtype)


def repack(g, **geometry):
    return prepack(g.w, **geometry)


def depthwise(g, **geometry):
    return prepack(g.w[:, :, :1, :6], groups=6, **geometry)


# What is found, what is allowed and the way out must be in the message.
X = [
    refused("2-axes", lambda g: qconv(g.x[0, 0], g.int8), ValueError,
            "x must have 4 axes (N, H, W, C), or all but N", "[5, 6]"),
    refused("5-axes", lambda g: qconv(QTensor(g.x[None], 0.5), g.packed), ValueError,
            "x must have 4 axes (N, H, W, C)", "[1, 2, 5, 5, 6]"),
    refused("float", lambda g: qconv(g.x.astype(np.float32), g.packed), TypeError,
            "x must be int8", "float32", "quantize(x, scale)", "x_scale="),
    refused("scale-twice", lambda g: qconv(g.q, g.packed, x_scale=1.0), ValueError,
            "x_scale and x_zero_point are for bare arrays"),
    refused("uint8", lambda g: qconv(g.x.astype(np.uint8), g.int8), TypeError,
            "x must be int8", "uint8"),
    refused("list", lambda g: qconv(g.x.tolist(), g.int8), TypeError, "x must be int8", "int32"),
    refused("none", lambda g: qconv(None, g.int8), TypeError, "x must be an array", "None"),
    refused("scalar", lambda g: qconv(QTensor(np.int8(1), 0.5), g.packed), ValueError,
            "x must have a channel axis", "got a scalar"),
    refused("count-of-channels",
            lambda g: qconv(QTensor(g.x, 0.5, None, "8"), g.packed), TypeError,
            "x.channels must be an int", "'8'"),
    refused("channels", lambda g: qconv(QTensor(g.x[..., :5], 0.5), g.packed), ValueError,
            "x has 5 channels", "weights for 6"),
    refused("channels-bare", lambda g: qconv(g.x[..., :5], g.int8), ValueError,
            "x has 5 channels", "weights for 6"),
    refused("lies", lambda g: qconv(QTensor(g.x[..., :4], 0.5, None, 6), g.packed), ValueError,
            "x says it has 6 channels, but stores 4"),
    refused("zero-point-range", lambda g: qconv(QTensor(g.x, 0.5, -129), g.packed), ValueError,
            "x.zero_point must lie in [-128, 127]", "-129"),
    refused("zero-point-float", lambda g: qconv(QTensor(g.x, 0.5, 1.5), g.packed), TypeError,
            "x.zero_point must be an integer scalar"),
    refused("zero-point-unbound", lambda g: qconv(QTensor(g.x, 0.5, 3), g.int8), ValueError,
            "bound without a zero point of x", "Bind it again"),
    refused("zero-point-bound",
            lambda g: qconv(g.q, g.packed.bind(x_scale=0.5, x_zero_point=3)), ValueError,
            "bound with a zero point of x", "x has none"),
    refused("zero-point-other",
            lambda g: qconv(QTensor(g.x, 0.5, 4), g.zero), ValueError,
            "packed was bound to another x's zero point: 3, but got 4"),
    refused("zero-point-of-another-size",
            lambda g: qconv(QTensor(g.x, 0.5, 3),
                            depthwise(g).bind(x_scale=0.5, x_zero_point=3, input_size=(6, 5))),
            ValueError, "packed was bound for input_size=(6, 5), but x is of size (5, 5)",
            "input_size=None"),
    refused("zero-point-of-another-size-with-the-same-output",
            lambda g: qconv(QTensor(g.x, 0.5, 3),
                            depthwise(g, strides=2).bind(
                                x_scale=0.5, x_zero_point=3, input_size=6)),
            ValueError, "packed was bound for input_size=(6, 6), but x is of size (5, 5)"),
    refused("zero-point-of-a-bare-array-unbound",
            lambda g: qconv(g.x, g.int8, x_zero_point=3), ValueError,
            "bound without a zero point of x"),
    refused("zero-point-of-a-bare-array-other", lambda g: qconv(g.x, g.zero, x_zero_point=4),
            ValueError, "packed was bound to another x's zero point: 3, but got 4"),
    refused("scale-of-a-bare-array-other", lambda g: qconv(g.x, g.int8, x_scale=0.25),
            ValueError, "packed was bound to another x's scale: 0.5, but got 0.25"),
    refused("out-size-axes", lambda g: g.packed.out_size((5, 5, 5)), TypeError,
            "size must be an int or a pair of ints (height, width)"),
    refused("out-size-int", lambda g: g.packed.out_size("5"), TypeError, "size must be an int"),
    refused("scale-unknown", lambda g: qconv(g.x, g.packed), TypeError,
            "x is a bare int8 array", "float32", "QTensor(x, scale)", "packed.bind"),
    refused("empty-height", lambda g: qconv(QTensor(g.x[:, :0], 0.5), g.packed), ValueError,
            "kernel height 3", "0 + 1 + 1"),
    refused("elements",
            lambda g: jax.eval_shape(qconv, QTensor(shaped(2**20, 16, 16, 8), 0.5, None, 6),
                                     g.packed), ValueError,
            "x of shape (1048576, 16, 16, 8)", "2**31 - 1", "split the batch"),
    refused("elements-of-output",
            lambda g: jax.eval_shape(qconv, QTensor(shaped(2**20, 20, 20, 4), 0.5),
                                     prepack(np.ones((1, 1, 4, 64), np.float32))),
            ValueError, "output of shape (1048576, 20, 20, 64)", "2**31 - 1"),
]  # fmt: skip

GEOMETRY = [
    refused("kernel-height", lambda g: qconv(QTensor(g.x[:, :2], 0.5), repack(g, padding="VALID")),
            ValueError, "kernel height 3", "spans 3", "2 + 0 + 0", "enlarge padding"),
    refused("kernel-width", lambda g: qconv(g.q, repack(g, padding=((1, 1), (0, 1)), dilation=3)),
            ValueError, "kernel width 3", "dilation 3", "spans 7", "5 + 0 + 1"),
    refused("stride-zero", lambda g: repack(g, strides=(1, 0)), ValueError,
            "strides must be at least 1", "(1, 0)"),
    refused("stride-negative", lambda g: repack(g, strides=-2), ValueError,
            "strides must be at least 1", "-2"),
    refused("stride-bool", lambda g: repack(g, strides=True), TypeError, "strides", "True"),
    refused("stride-float", lambda g: repack(g, strides=(1.0, 1.0)), TypeError, "strides", "1.0"),
    refused("stride-traced", lambda g: jax.jit(lambda s: repack(g, strides=s))(1), TypeError,
            "strides must be an int"),
    refused("dilation-zero", lambda g: repack(g, dilation=0), ValueError,
            "dilation must be at least 1", "0"),
    refused("padding-negative", lambda g: repack(g, padding=((0, -1), (0, 0))), ValueError,
            "padding must be at least 0", "(0, -1)"),
    refused("padding-name", lambda g: repack(g, padding="full"), ValueError,
            "padding='full'", "'SAME', 'VALID'"),
    refused("padding-4-axes", lambda g: repack(g, padding=[(0, 0), (1, 1), (1, 1), (0, 0)]),
            TypeError, "padding must be", "(before, after)"),
    refused("groups", lambda g: repack(g, groups=2), ValueError,
            "groups=2 must divide the 7 output channels"),
    refused("groups-zero", lambda g: repack(g, groups=0), ValueError,
            "groups must be a positive int", "0"),
    refused("merge", lambda g: prepack(g.w[..., :6], groups=2, merge_groups=3), ValueError,
            "merge_groups=3 doesn't suit 12 -> 6 channels in 2 groups", "doesn't divide"),
    refused("merge-zero", lambda g: prepack(g.w, merge_groups=0), ValueError,
            "merge_groups must be a positive int or None", "0"),
    refused("merge-transposed",
            lambda g: prepack(g.w[..., :6], groups=2, merge_groups=1, transpose=True), ValueError,
            "merge_groups=1", "needs all of them merged"),
    refused("output-padding", lambda g: repack(g, output_padding=1), ValueError,
            "output_padding=1 is for transposed convolutions"),
    refused("output-padding-large",
            lambda g: repack(g, transpose=True, strides=2, padding=0, output_padding=2),
            ValueError, "output_padding must be less than strides=(2, 2)", "2"),
    refused("output-padding-same",
            lambda g: repack(g, transpose=True, strides=2, output_padding=1), ValueError,
            "output_padding=1 goes with padding in numbers", "'SAME'"),
    refused("transpose", lambda g: repack(g, transpose=1), TypeError,
            "transpose must be True or False", "1"),
    refused("transposed-to-nothing",
            lambda g: qconv(QTensor(g.x[:, :1, :1], 0.5),
                            repack(g, transpose=True, padding=2)), ValueError,
            "transposed convolution of size (1, 1)", "no output left", "lessen padding"),
    refused("space-to-depth-transposed",
            lambda g: repack(g, transpose=True, space_to_depth=True), ValueError,
            "space_to_depth=True doesn't suit", "it is transposed"),
    refused("layout", lambda g: repack(g, layout="NCHW"), ValueError,
            "layout='NCHW'", "'HWIO', 'OIHW', 'OHWI'"),
    refused("layout-of-unpack", lambda g: unpack(g.packed, layout="hwio"), ValueError,
            "layout='hwio'", "'HWIO', 'OIHW', 'OHWI'"),
    refused("pad-to", lambda g: repack(g, pad_to=(4, None)), ValueError,
            "pad_to stores 4", "C=6", "multiple of 4", "at least 6"),
]  # fmt: skip

WEIGHT = [
    refused("weight-rank", lambda g: prepack(g.w[0], layout="HWIO"), ValueError,
            "weight must have 4 axes (HWIO)", "[3, 6, 7]"),
    refused("weight-2-axes", lambda g: prepack(g.w[0, 0]), ValueError,
            "weight must have 3, 4 or 5 axes", "[6, 7]"),
    refused("weight-groups-of-io",
            lambda g: prepack(g.w, groups=2, layout="IOHW", transpose=True), ValueError,
            "groups=2 must divide the 3 input channels"),
    refused("weight-dtype", lambda g: prepack(g.w.astype(np.int32)), TypeError,
            "weight must be of a float dtype or int8", "int32"),
    refused("weight-empty", lambda g: prepack(g.w[..., :0]), ValueError,
            "weight must not be empty", "[3, 3, 6, 0]"),
    refused("int8-without-scale", lambda g: prepack(g.w.astype(np.int8)), ValueError,
            "int8 weight needs weight_scale"),
    refused("float-with-scale", lambda g: prepack(g.w, weight_scale=1.0), ValueError,
            "weight_scale goes with int8 weights"),
    refused("scales-per-input", lambda g: prepack(g.w.astype(np.int8), weight_scale=np.ones(6)),
            ValueError, "weight_scale must be a scalar or of shape [7]", "[6]"),
    refused("overflow", lambda g: jax.eval_shape(prepack, shaped(1, 1, 2**17, 1, dtype=np.float32)),
            ValueError, "131072 products", "2**31", "int32 accumulator could overflow",
            "Split the input channels"),
    refused("bias-shape", lambda g: prepack(g.w, g.b[:6]), ValueError,
            "bias must be of shape [7]", "[6]"),
    refused("bias-integer", lambda g: prepack(g.w, [1] * 7), TypeError,
            "bias must be of a float dtype", "int64", "real units"),
    refused("bias-nan", lambda g: prepack(g.w, g.b * np.nan), ValueError, "bias holds", "NaN"),
    refused("bias-infinite", lambda g: prepack(g.w, g.b * np.inf), ValueError,
            "bias holds", "infinite"),
]  # fmt: skip

PACK = [
    refused("array", lambda g: qconv(g.q, g.w), TypeError,
            "packed must be a PackedConv from prepack", "ndarray"),
    refused("swapped", lambda g: qconv(g.packed, g.q), TypeError,
            "packed must be a PackedConv from prepack", "QTensor"),
    refused("newer", lambda g: qconv(g.q, g.newer), ValueError,
            "format version 2", "up to 1", "prepack the weights again"),
    refused("newer-bind", lambda g: g.newer.bind(x_scale=0.5), ValueError, "format version 2"),
    refused("newer-unpack", lambda g: unpack(g.newer), ValueError, "format version 2"),
    refused("other-x-scale", lambda g: qconv(QTensor(g.x, 0.25), g.float), ValueError,
            "bound to another x's scale", "0.5", "0.25"),
    refused("other-out-scale", lambda g: qconv(g.q, g.int8, out_scale=4.0), ValueError,
            "bound to another out_scale", "2.0", "4.0"),
    refused("other-residual-scale",
            lambda g: qconv(g.q, g.with_residual, residual=QTensor(g.r, 0.5)), ValueError,
            "bound to another residual's scale", "0.25", "0.5"),
    refused("out-scale-of-float", lambda g: qconv(g.q, g.float, out_scale=2.0), ValueError,
            "bound to float32 outputs", "without an out_scale"),
    refused("scale-text", lambda g: qconv(QTensor(g.x, "big"), g.float), TypeError,
            "x's scale must be an array", "str"),
    refused("scale-none", lambda g: g.packed.bind(x_scale=None), TypeError,
            "x_scale must be an array", "None"),
    refused("other-activation", lambda g: qconv(g.q, g.relu, activation="relu6"), ValueError,
            "bound to activation", "'relu'", "'clip'"),
    refused("no-activation", lambda g: qconv(g.q, g.relu, activation="none"), ValueError,
            "bound to activation", "'relu'", "'none'"),
    refused("other-dtype", lambda g: qconv(g.q, g.int8, out_dtype="bfloat16"), ValueError,
            "bound to out_dtype=int8", "out_dtype=bfloat16"),
    refused("residual-not-bound", lambda g: qconv(g.q, g.int8, residual=g.residual), ValueError,
            "without a residual_scale", "residual was given", "Bind it again"),
    refused("residual-missing", lambda g: qconv(g.q, g.with_residual), ValueError,
            "with a residual_scale", "no residual was given", "Bind it again"),
    refused("cast",
            lambda g: qconv(g.q, jax.tree.map(lambda v: v.astype(jnp.bfloat16), g.packed)),
            TypeError, "packed.weight must be int8", "bfloat16", "must not be cast"),
    refused("stacked", lambda g: qconv(g.q, jax.tree.map(lambda v: jnp.stack([v, v]), g.packed)),
            ValueError, "packed.weight must be of shape [K, R, S, C / groups]", "[2, 8, 3, 3, 8]",
            "jax.lax.scan and jax.vmap"),
    refused("less-channels",
            lambda g: qconv(g.q, dataclasses.replace(g.packed, weight=g.packed.weight[:4])),
            ValueError, "packed.weight", "K >= 7", "[4, 3, 3, 8]"),
    refused("bind-int32", lambda g: g.packed.bind(x_scale=0.5, out_dtype="int32"), ValueError,
            "out_dtype='int32'", "nothing to bind", "unbound pack"),
]  # fmt: skip

EPILOGUE = [
    refused("residual-bare", lambda g: qconv(g.q, g.packed, residual=g.r), TypeError,
            "residual must be a QTensor", "ndarray"),
    refused("residual-float", lambda g: qconv(g.q, g.packed, residual=QTensor(g.b, 0.5)), TypeError,
            "residual must hold int8", "float32"),
    refused("residual-batch",
            lambda g: qconv(g.q, g.packed, residual=QTensor(g.r[:1], 0.5)), ValueError,
            "residual has shape [1, 5, 5, 7]", "[2, 5, 5, 7]"),
    refused("residual-channels",
            lambda g: qconv(g.q, g.packed, residual=QTensor(g.x, 0.5)), ValueError,
            "residual has shape [2, 5, 5, 6]", "[2, 5, 5, 7]"),
    refused("residual-zero-point",
            lambda g: qconv(g.q, g.with_residual, residual=QTensor(g.r, 0.25, 3)), ValueError,
            "bound without a zero point of residual", "Bind it again"),
    refused("residual-mode", lambda g: qconv(g.q, g.packed, residual=g.residual,
                                             residual_mode="multiply"), ValueError,
            "residual_mode='multiply' is not known", "'add_after_activation'"),
    refused("residual-mode-alone", lambda g: qconv(g.q, g.packed, residual_mode="average"),
            ValueError, "residual_mode='average' was given without a residual"),
    refused("residual-mode-empty", lambda g: qconv(g.q, g.packed, residual=g.residual,
                                                   residual_mode=""), ValueError,
            "residual_mode='' is not known"),
    refused("residual-mode-of-int32",
            lambda g: qconv(g.q, g.packed, out_dtype="int32", residual_mode="add"), ValueError,
            "residual_mode was given", "out_dtype='float32'"),
    refused("slopes-of-int32",
            lambda g: qconv(g.q, g.packed, out_dtype="int32", slopes=np.ones(7)), ValueError,
            "slopes were given"),
    refused("slopes-nan",
            lambda g: qconv(g.q, g.packed, activation="prelu", slopes=np.full(7, np.nan)),
            ValueError, "slopes hold NaN"),
    refused("weight-scale-lost",
            lambda g: qconv(g.q, dataclasses.replace(g.packed, weight_scale=None)), TypeError,
            "packed.weight_scale is missing"),
    refused("weight-scale-python",
            lambda g: qconv(g.q, dataclasses.replace(g.packed, weight_scale=1.0)), TypeError,
            "packed.weight_scale must be float32[7]", "float"),
    refused("residual-mode-bound",
            lambda g: qconv(g.q, g.with_residual, residual=g.residual, residual_mode="average"),
            ValueError, "bound to residual_mode=add", "residual_mode=average"),
    refused("residual-axes", lambda g: qconv(g.q, g.packed, residual=QTensor(g.r[0], 0.5)),
            ValueError, "residual must have 4 axes", "[5, 5, 7]"),
    refused("out-zero-point-of-float",
            lambda g: qconv(g.q, g.packed, out_zero_point=3), ValueError,
            "out_zero_point was given without out_scale"),
    refused("slopes-missing", lambda g: qconv(g.q, g.packed, activation="prelu"), ValueError,
            "activation='prelu' needs slopes"),
    refused("slopes-without-prelu", lambda g: qconv(g.q, g.packed, slopes=np.ones(7)), ValueError,
            "slopes are for activation='prelu'", "'none'"),
    refused("slopes-length",
            lambda g: qconv(g.q, g.packed, activation="prelu", slopes=np.ones(6)), ValueError,
            "slopes must be floats of shape [7]", "[6]"),
    refused("residual-lies",
            lambda g: qconv(g.q, g.packed, residual=QTensor(g.r[..., :4], 0.5, None, 7)),
            ValueError, "residual says it has 7 channels, but stores 4"),
    refused("residual-without-scale", lambda g: qconv(g.q, g.packed, residual=QTensor(g.r, None)),
            TypeError, "residual_scale must be an array", "None"),
    refused("int32-bias", lambda g: qconv(g.q, g.biased, out_dtype="int32"), ValueError,
            "out_dtype='int32'", "packed has a bias", "out_dtype='float32'"),
    refused("int32-residual-and-activation",
            lambda g: qconv(g.q, g.packed, out_dtype="int32", residual=g.residual,
                            activation="relu"), ValueError,
            "a residual was given and activation is 'relu'", "out_dtype='float32'"),
    refused("int32-scale", lambda g: qconv(g.q, g.packed, out_dtype="int32", out_scale=1.0),
            ValueError, "out_scale is for int8 outputs only", "int32"),
    refused("int8-without-scale", lambda g: qconv(g.q, g.packed, out_dtype="int8"), ValueError,
            "out_dtype='int8' needs out_scale"),
    refused("out-dtype", lambda g: qconv(g.q, g.packed, out_dtype="int16"), ValueError,
            "out_dtype='int16'", "'int8', 'int32', 'float32', 'bfloat16', 'float16'"),
    refused("activation", lambda g: qconv(g.q, g.packed, activation="swoosh"), ValueError,
            "activation='swoosh'", "'leaky_relu', 'none', 'prelu', 'relu'", "Activation.clip"),
    refused("activation-kind", lambda g: Activation("swoosh"), ValueError,
            "activation kind 'swoosh'", "'none', 'relu', 'clip', 'leaky_relu'"),
    refused("clip-upside-down", lambda g: Activation("clip", lower=3, upper=1), ValueError,
            "lower < upper", "3.0 and 1.0"),
    refused("clip-traced", lambda g: jax.jit(lambda b: Activation.clip(0, b).upper)(6.0),
            TypeError, "upper of an activation must be a Python number", "compiled in"),
    refused("slope-nan", lambda g: Activation("leaky_relu", slope=np.nan), ValueError,
            "slope must be positive and finite", "nan"),
    refused("slope-too-large", lambda g: Activation.leaky_relu(1e60), ValueError,
            "slope must be positive and finite", "1e+60"),
    refused("implementation", lambda g: qconv(g.q, g.packed, implementation="xla"), ValueError,
            "implementation='xla'", "'cudnn', 'reference'"),
    refused("plan-of-reference",
            lambda g: qconv(g.q, g.packed, plan="cudnn:4", implementation="reference"), ValueError,
            "plan='cudnn:4'", "implementation='reference'"),
]  # fmt: skip

QUANTIZE = [
    refused("integers", lambda g: quantize(g.x, 0.5), TypeError,
            "x must be float32, bfloat16 or float16", "int8", "QTensor(values, scale)"),
    refused("scalar", lambda g: quantize(1.0, 0.5), ValueError, "x must have a channel axis"),
    refused("zero-point-range", lambda g: quantize(g.w, 0.5, zero_point=128), ValueError,
            "zero_point must lie in [-128, 127]", "128"),
    refused("zero-point-float", lambda g: quantize(g.w, 0.5, zero_point=1.0), TypeError,
            "zero_point must be an integer scalar", "float64"),
    refused("pad", lambda g: quantize(g.w, 0.5, pad=4), ValueError, "pad=4", "7 of x"),
    refused("pad-float", lambda g: quantize(g.w, 0.5, pad=8.0), TypeError, "pad must be", "8.0"),
    refused("twice", lambda g: quantize(g.q, 0.5), TypeError, "x must be an array", "QTensor"),
    refused("dequantize-array", lambda g: dequantize(g.x), TypeError,
            "q must be a QTensor", "ndarray"),
    refused("dequantize-nothing", lambda g: dequantize(QTensor(None, 0.5)), TypeError,
            "q.values must be an array", "None"),
    refused("dequantize-floats", lambda g: dequantize(QTensor(g.w, 0.5)), TypeError,
            "int8 values", "got float32"),
    refused("dequantize-to-integers", lambda g: dequantize(g.q, jnp.int8), TypeError,
            "dtype must be a float one", "int8"),
    refused("dequantize-without-scale", lambda g: dequantize(QTensor(g.x, None)), TypeError,
            "q.scale must be an array", "None"),
    refused("dequantize-zero-point", lambda g: dequantize(QTensor(g.x, 0.5, 1.5)), TypeError,
            "zero_point must be an integer scalar", "float64"),
]  # fmt: skip

REFUSED = [*X, *GEOMETRY, *WEIGHT, *PACK, *EPILOGUE, *QUANTIZE]
WHERE = {"eager": lambda call: call(), "tracing": jax.eval_shape}


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize(("call", "error", "fragments"), REFUSED)
def test_what_does_not_fit_is_refused_in_words(good, call, error, fragments, where):
    with pytest.raises(error) as caught:
        WHERE[where](lambda: call(good))
    assert [f for f in fragments if f not in str(caught.value)] == [], str(caught.value)
    # A failed call leaves nothing behind.
    np.testing.assert_array_equal(qconv(good.q, good.float), good.out)


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.floats(),
    st.complex_numbers(),
    st.integers(max_value=-1),
    st.text().filter(lambda s: s.upper() not in ("SAME", "VALID")),
    st.dictionaries(st.integers(), st.integers()),
    st.lists(st.integers(), max_size=5).filter(lambda v: len(v) != 2 or min(v) < 0),
    st.tuples(st.integers(1, 3), st.one_of(st.none(), st.floats(), st.integers(max_value=-1))),
)


@hypothesis.given(st.sampled_from(["strides", "padding", "dilation"]), JUNK)
@hypothesis.settings(max_examples=200)
def test_junk_for_geometry_is_refused_by_name(good, name, junk):
    with pytest.raises((TypeError, ValueError), match=name):
        prepack(good.w, **{name: junk})


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300], ids=["nan", "infinite", "float64"])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.filterwarnings("ignore:overflow")
def test_weights_that_are_no_numbers_are_refused(good, bad, per_channel):
    weight = good.w.astype(np.float64)
    weight[1, 2, 3, 4] = bad
    with pytest.raises(ValueError, match="weight holds NaN or infinite values"):
        prepack(weight, per_channel=per_channel)
