"""What the ops between convolutions refuse: wrong arguments, in words, and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_qconv as q
from jax_qconv import Activation, QTensor, dequantize, quantize

SCALE = np.float32(0.5)


def tensor(*shape, channels=-1, dtype=np.int8):
    return QTensor(np.ones(shape, dtype), SCALE, None, channels)


IMAGE = tensor(2, 6, 5, 4)

# Each op with arguments that fit, in one tensor.
OPS = {
    "requantize": lambda x, **given: q.requantize(x, **{"out_scale": 1.0, **given}),
    "qactivation": lambda x, **given: q.qactivation(x, "silu", **{"out_scale": 1.0, **given}),
    "qgelu": lambda x, **given: q.qgelu(x, **{"out_scale": 1.0, **given}),
    "qadd": lambda x, **given: q.qadd(x, IMAGE, **{"out_scale": 1.0, **given}),
    "qmul": lambda x, **given: q.qmul(IMAGE, x, **{"out_scale": 1.0, **given}),
    "qmax_pool": lambda x: q.qmax_pool(x, 2),
    "qavg_pool": lambda x, **given: q.qavg_pool(x, 2, **given),
    "qglobal_avg_pool": lambda x, **given: q.qglobal_avg_pool(x, **given),
    "qadaptive_avg_pool": lambda x, **given: q.qadaptive_avg_pool(x, 2, **given),
    "qconcat": lambda x, **given: q.qconcat([IMAGE, x], **given),
    "qresize": lambda x, **given: q.qresize(x, 3, method="bilinear", **given),
    "qpad": lambda x: q.qpad(x, 1),
    "qpixel_shuffle": lambda x: q.qpixel_shuffle(x, 2),
    "qpixel_unshuffle": lambda x: q.qpixel_unshuffle(x, 1),
    "qchannel_shuffle": lambda x: q.qchannel_shuffle(x, 2),
}
NAMES = {"qadd": "a", "qmul": "b", "qconcat": r"tensors\[1\]"}
SPATIAL = [n for n in OPS if "pool" in n or n in ("qresize", "qpad")] + [
    "qpixel_shuffle",
    "qpixel_unshuffle",
]
SCALED = [n for n in OPS if n not in ("qmax_pool", "qpad") and "shuffle" not in n]
every_op = pytest.mark.parametrize("op", OPS)


@every_op
def test_the_arguments_of_these_tests_fit(op):
    assert isinstance(OPS[op](IMAGE), QTensor)


@every_op
@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (np.ones((2, 6, 5, 4), np.int8), TypeError, " must be a QTensor, got ndarray; wrap int8"),
        (None, TypeError, " must be a QTensor, got NoneType"),
        (tensor(2, 6, 5, 4, dtype=np.uint8), TypeError, " must hold int8 values, got uint8"),
        (tensor(2, 6, 5, 4, dtype=np.float32), TypeError, " must hold int8 values, got float32"),
        (QTensor(None, SCALE, None, 4), TypeError, ".values must be an array, got NoneType"),
        (QTensor([[1, 2]], SCALE), TypeError, " must hold int8 values, got int32"),
        (tensor(2, 6, 5, 4, channels="8"), TypeError, ".channels must be an int, .*, got '8'"),
        (tensor(2, 6, 5, 4, channels=2.0), TypeError, ".channels must be an int, .*, got 2.0"),
        (tensor(2, 6, 5, 4, channels=-2), ValueError, " says it has -2 channels, but stores 4"),
        (tensor(2, 6, 5, 4, channels=5), ValueError, " says it has 5 channels, but stores 4"),
        (QTensor(IMAGE.values, 0.0), ValueError, ".scale must be positive and finite"),
        (QTensor(IMAGE.values, "1"), TypeError, ".scale must be an array"),
        (QTensor(IMAGE.values, np.ones(4)), ValueError, ".scale must be a scalar"),
        (QTensor(IMAGE.values, SCALE, 128), ValueError, r".zero_point must lie in \[-128, 127\]"),
        (QTensor(IMAGE.values, SCALE, 0.5), TypeError, ".zero_point must be an integer scalar"),
    ],
)  # fmt: skip
def test_operands_must_be_int8_tensors(op, bad, error, message):
    with pytest.raises(error, match=f"^{NAMES.get(op, 'x')}{message}"):
        OPS[op](bad)


@pytest.mark.parametrize("op", [n for n in OPS if n not in ("qadd", "qmul")])
def test_scalars_have_no_channels(op):
    with pytest.raises(ValueError, match=r"must have a channel axis .the last one., got a scalar"):
        OPS[op](tensor())


@pytest.mark.parametrize("op", SPATIAL)
@pytest.mark.parametrize("shape", [(2, 4), (1, 2, 3, 4, 5, 4)])
def test_images_have_one_to_three_spatial_axes(op, shape):
    with pytest.raises(ValueError, match=r"x must have 3, 4 or 5 axes .*, got shape \[") as error:
        OPS[op](tensor(*shape))
    assert str(list(shape)) in str(error.value)


@pytest.mark.parametrize("op", SCALED)
@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"out_scale": -1.0}, ValueError, "out_scale must be positive and finite"),
        ({"out_scale": "1"}, TypeError, "out_scale must be an array"),
        ({"out_scale": np.ones(2)}, ValueError, "out_scale must be a scalar"),
        ({"out_zero_point": 128}, ValueError, r"out_zero_point must lie in \[-128, 127\], got 128"),
        ({"out_zero_point": 0.5}, TypeError, "out_zero_point must be an integer scalar or None"),
    ],
)
def test_outputs_have_good_scales_and_zero_points(op, given, error, message):
    with pytest.raises(error, match=message):
        OPS[op](IMAGE, **given)


def refused(call, error, message):
    return pytest.param(call, error, message)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        # activations
        refused(lambda: q.qactivation(IMAGE, "swish", out_scale=1.0), ValueError,
                "activation='swish' is not known; use one of .*hard_swish.*silu"),
        refused(lambda: q.qactivation(IMAGE, 3, out_scale=1.0), ValueError,
                "activation=3 is not known"),
        refused(lambda: q.qadd(IMAGE, IMAGE, out_scale=1.0, activation="tan"), ValueError,
                "activation='tan' is not known"),
        refused(lambda: q.requantize(IMAGE, out_scale=None), TypeError,
                "out_scale must be an array, got NoneType"),
        refused(lambda: q.qgelu(IMAGE, out_scale=1.0, approximate="tanh"), TypeError,
                "approximate must be True or False, got 'tanh'"),
        refused(lambda: q.qactivation(IMAGE, "prelu", out_scale=1.0), ValueError,
                "^activation='prelu' needs slopes, which qconv takes: fuse it.*'leaky_relu'. here"),
        refused(lambda: q.qadd(IMAGE, IMAGE, out_scale=1.0, activation="prelu"), ValueError,
                "^activation='prelu' needs slopes"),
        # shapes of two operands
        refused(lambda: q.qadd(IMAGE, tensor(3), out_scale=1.0), ValueError,
                r"a has shape \[2, 6, 5, 4\] and b \[3\], which don't broadcast.*[Rr]eshape"),
        refused(lambda: q.qmul(tensor(2, 3, 4), IMAGE, out_scale=1.0), ValueError,
                r"a has shape \[2, 3, 4\] and b \[2, 6, 5, 4\], which don't broadcast"),
        refused(lambda: q.qadd(tensor(2, 8, channels=5), tensor(2, 8), out_scale=1.0), ValueError,
                r"a has shape \[2, 5\] and b \[2, 8\]"),
        # windows
        refused(lambda: q.qmax_pool(IMAGE, 0), ValueError, "window must be at least 1.*got 0"),
        refused(lambda: q.qmax_pool(IMAGE, (-1, 2)), ValueError, "window must be at least 1"),
        refused(lambda: q.qmax_pool(IMAGE, 2.0), TypeError,
                "window must be an int or a pair of ints .height, width., got 2.0"),
        refused(lambda: q.qmax_pool(IMAGE, (1, 2, 3)), TypeError, "window must be an int or a p"),
        refused(lambda: q.qmax_pool(IMAGE, True), TypeError, "window must be an int"),
        refused(lambda: q.qmax_pool(tensor(1, 3, 4), (2, 2)), TypeError,
                "window must be an int or a sequence of one int .width."),
        refused(lambda: q.qavg_pool(IMAGE, 2, strides=0), ValueError, "strides must be at least 1"),
        refused(lambda: q.qmax_pool(IMAGE, 2, dilation=0), ValueError, "dilation must be at least"),
        refused(lambda: q.qmax_pool(IMAGE, 7), ValueError,
                "window 7 with dilation 1 spans 7 elements of the height.*6 . 0 . 0; make the"),
        refused(lambda: q.qavg_pool(IMAGE, (2, 6)), ValueError, "spans 6 elements of the width"),
        refused(lambda: q.qmax_pool(IMAGE, 3, dilation=3), ValueError, "dilation 3 spans 7"),
        refused(lambda: q.qmax_pool(IMAGE, 2, padding=2), ValueError,
                "padding .2, 2. of the height gives windows that hold padding only.*smaller than"),
        refused(lambda: q.qavg_pool(IMAGE, 2, padding=((0, 0), (0, 3))), ValueError,
                "padding .0, 3. of the width gives windows"),
        refused(lambda: q.qmax_pool(IMAGE, 2, padding=-1), ValueError,
                "padding must be at least 0 on each side, got -1"),
        refused(lambda: q.qmax_pool(IMAGE, 2, padding=(1, (0, -1))), ValueError,
                "padding must be at least 0"),
        refused(lambda: q.qmax_pool(IMAGE, 2, padding="FULL"), ValueError,
                "padding='FULL' is not known; use 'SAME', 'VALID'"),
        refused(lambda: q.qmax_pool(IMAGE, 2, padding=1.5), TypeError,
                "padding must be 'SAME', 'VALID', an int, or 2 ints"),
        refused(lambda: q.qmax_pool(IMAGE, 2, padding=(1, 1, 1)), TypeError, "padding must be"),
        refused(lambda: q.qmax_pool(IMAGE, 2, padding=((1, 1), (1, 1, 1))), TypeError,
                "padding of an axis must be an int"),
        refused(lambda: q.qmax_pool(IMAGE, 2, ceil_mode=1), TypeError,
                "ceil_mode must be True or False, got 1"),
        refused(lambda: q.qavg_pool(IMAGE, 2, count_include_pad=None), TypeError,
                "count_include_pad must be True or False"),
        refused(lambda: q.qglobal_avg_pool(IMAGE, keepdims=0), TypeError,
                "keepdims must be True or False"),
        refused(lambda: q.qglobal_avg_pool(tensor(2, 0, 3, 4)), ValueError,
                r"x of shape \[2, 0, 3, 4\] has no pixels .height, width. to average"),
        refused(lambda: q.qadaptive_avg_pool(tensor(2, 0, 4), 1), ValueError, "has no pixels"),
        refused(lambda: q.qadaptive_avg_pool(IMAGE, 0), ValueError, "output_size must be at least"),
        refused(lambda: q.qadaptive_avg_pool(IMAGE, None), TypeError, "output_size must be an int"),
        refused(lambda: jax.eval_shape(q.qglobal_avg_pool, tensor(1, 3000, 3000, 1)), ValueError,
                r"x averages \[3000, 3000\] = 9000000 elements .*2\*\*31.*Average in two steps"),
        refused(lambda: jax.eval_shape(lambda x: q.qavg_pool(x, 3000), tensor(1, 3000, 3000, 1)),
                ValueError, "window averages"),
        # rearrangements
        refused(lambda: q.qconcat([]), ValueError, "tensors must hold at least one QTensor"),
        refused(lambda: q.qconcat(IMAGE), TypeError, "tensors must be a sequence of QTensor"),
        refused(lambda: q.qconcat([IMAGE], axis=4), ValueError,
                r"axis must be an int in \[-4, 3\], got 4"),
        refused(lambda: q.qconcat([IMAGE], axis=1.0), ValueError, "axis must be an int"),
        refused(lambda: q.qconcat([IMAGE, tensor(2, 6, 4)]), ValueError,
                r"tensors\[1\] has shape \[2, 6, 4\], and tensors\[0\] \[2, 6, 5, 4\]; they may"),
        refused(lambda: q.qconcat([IMAGE, tensor(2, 6, 4, 4)], axis=1), ValueError,
                "may differ along axis 1 only"),
        refused(lambda: q.qconcat([IMAGE, tensor(3, 6, 5, 8, channels=3)], axis=0), ValueError,
                r"tensors\[1\] has shape \[3, 6, 5, 3\]"),
        refused(lambda: q.qconcat([IMAGE, QTensor(IMAGE.values, 0.25)]), ValueError,
                r"tensors\[1\] isn't known to have the scale .*give the out_scale"),
        refused(lambda: q.qconcat([IMAGE, QTensor(IMAGE.values, SCALE, 1)]), ValueError,
                "isn't known to have the scale and zero point"),
        refused(lambda: jax.jit(lambda a, b: q.qconcat([a, b]))(IMAGE, IMAGE), ValueError,
                "give the out_scale"),
        refused(lambda: q.qpad(IMAGE, -1), ValueError, "padding must be at least 0"),
        refused(lambda: q.qpad(IMAGE, "SAME"), TypeError, "padding must be numbers.*got 'SAME'"),
        refused(lambda: q.qpad(IMAGE, None), TypeError,
                "^padding must be numbers of elements: an int, or 2 ints or .*, got None"),
        refused(lambda: q.qpad(IMAGE, (1, 1, 1)), TypeError, "padding must be numbers of elements"),
        refused(lambda: q.qpixel_shuffle(IMAGE, 3), ValueError,
                "factor=3 needs a multiple of 9 channels, but x has 4"),
        refused(lambda: q.qpixel_shuffle(IMAGE, 0), ValueError, "factor must be at least 1, got 0"),
        refused(lambda: q.qpixel_shuffle(IMAGE, 2.0), TypeError, "factor must be an int, got 2.0"),
        refused(lambda: q.qpixel_unshuffle(IMAGE, 2), ValueError,
                r"factor=2 must divide the spatial sizes of x, got shape \[2, 6, 5, 4\]; pad it"),
        refused(lambda: q.qpixel_unshuffle(IMAGE, -2), ValueError, "factor must be at least 1"),
        refused(lambda: q.qchannel_shuffle(IMAGE, 3), ValueError,
                "groups=3 needs a multiple of 3 channels, but x has 4"),
        refused(lambda: q.qchannel_shuffle(IMAGE, None), TypeError, "groups must be an int"),
        # resizing
        refused(lambda: q.qresize(IMAGE, 0), ValueError, "size must be at least 1.*got 0"),
        refused(lambda: q.qresize(IMAGE, (3, 0)), ValueError, "size must be at least 1"),
        refused(lambda: q.qresize(IMAGE, 1.5), TypeError, "size must be an int or a pair of ints"),
        refused(lambda: q.qresize(tensor(1, 0, 4), 3), ValueError, "has no pixels to resize"),
        refused(lambda: q.qresize(IMAGE, 3, method="cubic"), ValueError,
                "method='cubic' is not known; use 'nearest' or 'bilinear'"),
        refused(lambda: q.qresize(IMAGE, 3, align_corners=True), ValueError,
                "align_corners is for method='bilinear'"),
        refused(lambda: q.qresize(IMAGE, 3, align_corners="yes"), TypeError,
                "align_corners must be True or False"),
        refused(lambda: q.qresize(IMAGE, 3, half_pixel_centers=1), TypeError,
                "half_pixel_centers must be True or False"),
        refused(lambda: q.qresize(IMAGE, 3, out_scale=1.0), ValueError,
                "out_scale and out_zero_point are for method='bilinear'.*requantize the result"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused_in_words(call, error, message):
    with pytest.raises(error, match=message):
        call()


DERIVATIVES = {
    "grad": lambda f, x: jax.grad(lambda x: f(x).sum())(x),
    "jvp": lambda f, x: jax.jvp(f, (x,), (jnp.ones_like(x),)),
    "grad-of-jit": lambda f, x: jax.grad(jax.jit(lambda x: f(x).sum()))(x),
}
no_gradient = pytest.mark.parametrize("derivative", DERIVATIVES)


@every_op
@no_gradient
def test_the_scale_has_no_gradient(op, derivative):
    given = {"out_scale": 1.0} if op == "qconcat" else {}

    def call(scale):
        return dequantize(OPS[op](QTensor(IMAGE.values, scale), **given))

    with pytest.raises(TypeError, match=f"{op} works on integers and has no gradient"):
        DERIVATIVES[derivative](call, jnp.float32(0.5))


@pytest.mark.parametrize("op", SCALED)
@no_gradient
def test_the_scale_of_the_output_has_no_gradient(op, derivative):
    def call(scale):
        return dequantize(OPS[op](IMAGE, out_scale=scale))

    with pytest.raises(TypeError, match=f"{op} works on integers and has no gradient"):
        DERIVATIVES[derivative](call, jnp.float32(0.5))


@every_op
@no_gradient
def test_floats_that_were_quantised_before_have_no_gradient(op, derivative):
    given = {"out_scale": 1.0} if op == "qconcat" else {}

    def call(x):
        return dequantize(OPS[op](quantize(x, SCALE, pad=False), **given))

    with pytest.raises(TypeError, match="works on integers and has no gradient"):
        DERIVATIVES[derivative](call, jnp.ones((2, 6, 5, 4)))


def test_activations_that_need_real_units_are_for_one_tensor():
    kind = Activation()
    object.__setattr__(kind, "kind", "silu")
    with pytest.raises(ValueError, match=r"activation='silu' can't be applied.*qactivation on the"):
        q.qadd(IMAGE, IMAGE, out_scale=1.0, activation=kind)
