"""Concatenation, shuffles, padding and resizing of int8 tensors."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import oracle_ops
import pytest
from effort import examples
from hypothesis import strategies as st
from op_cases import SCALES, ZEROS, check, check_vmap, mapped, plain, qtensors
from oracle import assert_same

from jax_qconv import (
    QTensor,
    qactivation,
    qadd,
    qavg_pool,
    qchannel_shuffle,
    qconcat,
    qmax_pool,
    qpad,
    qpixel_shuffle,
    qpixel_unshuffle,
    qresize,
    quantize,
    quantize_image,
    requantize,
)
from jax_qconv._spec import padded_channels

SHAPES = st.sampled_from([(2, 5, 3), (1, 4, 3, 4), (2, 3, 5, 2), (1, 2, 3, 2, 5), (0, 2, 2, 3)])


def values(shape, seed=0):
    return np.random.default_rng(seed).integers(-128, 128, shape, np.int8)


@st.composite
def parts(draw):
    """Tensors that fit together, and the axis."""
    shape = draw(SHAPES)
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    shapes = [list(shape) for _ in sizes]
    for each, size in zip(shapes, sizes, strict=True):
        each[axis] = size
    return [draw(qtensors(tuple(each))) for each in shapes], axis


@hypothesis.given(parts(), SCALES, ZEROS)
@examples(5)
def test_parts_are_brought_to_the_common_scale(drawn, out_scale, out_zero):
    tensors, axis = drawn
    each = [oracle_ops.requantize(*plain(x), out_scale, out_zero) for x in tensors]
    want = np.concatenate(each, axis=axis)
    check(
        lambda *tensors, **given: qconcat(tensors, axis=axis, **given),
        tensors, want, out_scale, out_zero, out_scale=out_scale, out_zero_point=out_zero,
    )  # fmt: skip


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1, -2])
@pytest.mark.parametrize("zero", [None, 7])
def test_parts_of_one_scale_are_only_moved(axis, zero):
    scale = jnp.float32(0.3)
    arrays = [values((2, 3, 4, 6), seed) for seed in range(3)]
    tensors = [QTensor(v, scale, zero, 5) for v in arrays]
    got = qconcat(tensors, axis=axis)
    assert_same(got.unpadded(), np.concatenate([v[..., :5] for v in arrays], axis=axis))
    assert float(got.scale) == float(scale) and got.zero_point == zero
    along_channels = axis in (3, -1)
    assert got.values.shape[3] == (padded_channels(15) if along_channels else 6)

    # A traced scale that all share is the same as well; nothing is computed.
    def shared(scale):
        tensors = [QTensor(v, scale, zero, 5) for v in arrays]
        return qconcat(tensors, axis=axis)

    lowered = jax.jit(shared).lower(scale).as_text()
    assert "f64" not in lowered and "multiply" not in lowered
    assert_same(jax.jit(shared)(scale).unpadded(), np.asarray(got.unpadded()))


def test_a_single_part_is_padded_by_the_rule():
    x = QTensor(values((2, 3, 3)), np.float32(1))
    assert qconcat([x]).values.shape == (2, 3, 4)
    assert qconcat([x], axis=0).values.shape == (2, 3, 3)


def test_parts_of_unequal_padding():
    wide, narrow = QTensor(values((2, 3, 8)), 0.5, None, 5), QTensor(values((2, 3, 5), 1), 0.5)
    got = qconcat([narrow, wide], axis=0)
    want = np.concatenate([narrow.values, wide.values[..., :5]])
    assert got.values.shape == (4, 3, 8)
    assert_same(got.unpadded(), want)


@hypothesis.given(qtensors(SHAPES), st.data())
@examples(5)
def test_padding_is_the_zero_point(x, data):
    side = st.tuples(st.integers(0, 2), st.integers(0, 2)) | st.integers(0, 2)
    rank = len(x.shape) - 2
    padding = data.draw(st.integers(0, 2) | st.tuples(*[side] * rank))
    sides = [padding] * rank if isinstance(padding, int) else padding
    pads = [(v, v) if isinstance(v, int) else v for v in sides]
    q, scale, zero = plain(x)
    want = np.pad(q, [(0, 0), *pads, (0, 0)], constant_values=zero or 0)
    check(functools.partial(qpad, padding=padding), [x], want, scale, zero)


def test_padding_may_be_a_traced_zero_point():
    got = jax.jit(lambda z: qpad(QTensor(values((1, 2, 4)), 0.5, z), 1))(jnp.int32(-128))
    assert got.values[0, 0].tolist() == got.values[0, 3].tolist() == [-128] * 4


@pytest.mark.parametrize("shape", [(2, 3, 6), (2, 3, 2, 8), (1, 2, 3, 2, 16)])
@pytest.mark.parametrize("zero", [None, 5])
def test_pixel_shuffle_is_its_formula(shape, zero):
    rank, f = len(shape) - 2, 2
    channels = shape[-1] // f**rank
    x = QTensor(values((*shape[:-1], shape[-1] + 3)), np.float32(0.5), zero, shape[-1])
    want = np.zeros((shape[0], *(f * v for v in shape[1:-1]), channels), np.int8)
    for n, *pixel, c in np.ndindex(*want.shape):
        source = c
        for v in pixel:
            source = source * f + v % f
        want[(n, *pixel, c)] = x.values[(n, *(v // f for v in pixel), source)]
    check(functools.partial(qpixel_shuffle, factor=f), [x], want, 0.5, zero)
    q = np.asarray(x.unpadded())
    junk = QTensor(np.concatenate([want, want[..., :1]], -1), np.float32(0.5), zero, channels)
    check(functools.partial(qpixel_unshuffle, factor=f), [junk], q, 0.5, zero)
    assert qpixel_shuffle(x, f).values.shape[-1] == padded_channels(channels)
    assert qpixel_unshuffle(junk, f).values.shape[-1] == padded_channels(shape[-1])


def test_a_factor_of_one_changes_nothing():
    x = QTensor(values((2, 3, 3, 4)), np.float32(0.5))
    assert_same(qpixel_shuffle(x, 1).values, x.values)
    assert_same(qpixel_unshuffle(x, 1).values, x.values)


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_channels_are_shuffled_as_in_shufflenet(groups):
    x = QTensor(values((2, 3, 8)), np.float32(0.5), 3, 6)
    # torch: x.view(n, groups, c // groups, ...).transpose(1, 2)
    order = np.arange(6).reshape(groups, 6 // groups).T.ravel()
    want = x.values[..., order]
    check(functools.partial(qchannel_shuffle, groups=groups), [x], want, 0.5, 3)
    assert qchannel_shuffle(x, groups).values.shape == (2, 3, 8)


SIZES = st.integers(1, 9)


@hypothesis.given(qtensors(SHAPES), st.booleans(), st.data())
@examples(5)
def test_nearest_takes_the_pixel_of_the_exact_position(x, half_pixel_centers, data):
    size = data.draw(st.tuples(*[SIZES] * (len(x.shape) - 2)))
    q, scale, zero = plain(x)
    want = q
    for axis, (have, count) in enumerate(zip(x.shape[1:-1], size, strict=True), start=1):
        want = want.take(oracle_ops.nearest(have, count, half_pixel_centers), axis=axis)
    call = functools.partial(qresize, size=size, half_pixel_centers=half_pixel_centers)
    check(call, [x], want, scale, zero)


@hypothesis.given(
    qtensors(SHAPES), st.sampled_from([(False, True), (False, False), (True, True)]),
    st.none() | SCALES, ZEROS, st.data(),
)  # fmt: skip
@examples(5)
def test_bilinear_rounds_the_exact_value(x, options, out_scale, out_zero, data):
    align_corners, half_pixel_centers = options
    size = data.draw(st.tuples(*[SIZES] * (len(x.shape) - 2)))
    q, scale, zero = plain(x)
    pairs = list(zip(x.shape[1:-1], size, strict=True))
    weights = [oracle_ops.linear(*pair, *options) for pair in pairs]
    exact = oracle_ops.interpolate(q, zero, weights)
    expected_scale, expected_zero = out_scale, out_zero
    if out_scale is None:
        expected_scale, expected_zero = scale, zero if out_zero is None else out_zero
    # The least common denominator of all positions.
    n = np.prod([np.lcm.reduce([v.denominator for v in w.flat]) for w in weights])

    def rounded(value):
        scales = None if out_scale is None else (scale, out_scale)
        total = value * int(n)
        assert total.denominator == 1
        return oracle_ops.mean(int(total), int(n), scales, expected_zero)

    want = np.array([rounded(v) for v in exact.flat], np.int8).reshape(exact.shape)
    call = functools.partial(
        qresize, size=size, method="bilinear",
        align_corners=align_corners, half_pixel_centers=half_pixel_centers,
    )  # fmt: skip
    given = {"out_scale": out_scale, "out_zero_point": out_zero}
    check(call, [x], want, expected_scale, expected_zero, **given)


@pytest.mark.parametrize("size", [(8, 6), (3, 9), (1, 1), (5, 4)])
def test_resize_is_that_of_jax_image(size):
    x = QTensor(values((2, 5, 4, 3)), np.float32(1))
    shape = (2, *size, 3)
    want = jax.image.resize(x.values, shape, "nearest")
    assert_same(qresize(x, size).values, np.asarray(want))
    real = x.values.astype(np.float32)
    want = np.asarray(jax.image.resize(real, shape, "bilinear", antialias=False))
    got = np.asarray(qresize(x, size, method="bilinear").values, np.float32)
    assert np.abs(got - want).max() < 0.501


def test_resize_as_pytorch_documents_it():
    # torch.nn.functional.interpolate(torch.arange(1, 5).view(1, 1, 2, 2), scale_factor=2), the
    # examples of torch.nn.Upsample, in quarters.
    x = QTensor(np.int8([[4, 8], [12, 16]]).reshape(1, 2, 2, 1), np.float32(0.25))
    for half in (True, False):
        got = qresize(x, 4, half_pixel_centers=half).values.squeeze()
        assert got.tolist() == [[4, 4, 8, 8]] * 2 + [[12, 12, 16, 16]] * 2
    got = qresize(x, 4, method="bilinear").values.squeeze()
    assert got.tolist() == [[4, 5, 7, 8], [6, 7, 9, 10], [10, 11, 13, 14], [12, 13, 15, 16]]
    x = QTensor(np.int8([[3, 6], [9, 12]]).reshape(1, 2, 2, 1), np.float32(1 / 3))
    got = qresize(x, 4, method="bilinear", align_corners=True).values.squeeze()
    assert got.tolist() == [[3, 4, 5, 6], [5, 6, 7, 8], [7, 8, 9, 10], [9, 10, 11, 12]]


def test_sums_that_need_64_bits():
    x = QTensor(np.full((1, 2, 2, 2, 1), -128, np.int8), np.float32(0.5), np.int32(127))
    size = (101, 103, 107)
    for out in ({}, {"out_scale": np.float32(0.5), "out_zero_point": 127}):
        got = jax.jit(functools.partial(qresize, size=size, method="bilinear"))(x, **out)
        assert (np.asarray(got.values) == -128).all()


def test_vmap():
    x = mapped(0, 2, 4, 4, 9, channels=8)
    check_vmap(lambda x: qpad(x, 1), x)
    check_vmap(lambda x: qresize(x, (3, 7)), x)
    check_vmap(lambda x: qresize(x, (3, 7), method="bilinear", out_scale=0.2), x)
    check_vmap(lambda x: qpixel_shuffle(x, 2), x)
    check_vmap(lambda x: qpixel_unshuffle(x, 2), x)
    check_vmap(lambda x: qchannel_shuffle(x, 4), x)
    other = mapped(1, 2, 4, 4, 5, zero=None)
    check_vmap(lambda x, y: qconcat([x, y], out_scale=0.2), x, other)


TRACED = {
    "qmax_pool": lambda q: qmax_pool(q, 3, strides=1, padding=1),
    "qchannel_shuffle": lambda q: qchannel_shuffle(q, 2),
    "qpad": lambda q: qpad(q, 0),
    "qresize": lambda q: qresize(q, (3, 4)),
    "qavg_pool": lambda q: qavg_pool(q, 3, strides=1, padding=1),
    "qpixel_shuffle": lambda q: qpixel_shuffle(q, 1),
    "qconcat": lambda q: qconcat([q]),
}


@pytest.mark.parametrize("op", TRACED)
@pytest.mark.parametrize("zero", [None, np.int32(3)])
def test_ops_that_keep_a_traced_scale_keep_its_identity(op, zero):
    def call(q):
        return qconcat([q, TRACED[op](q)])

    x = QTensor(values((2, 3, 4, 8)), np.float32(0.3), zero)
    got, want = jax.jit(call)(x), call(x)
    assert_same(got.values, np.asarray(want.values))
    assert got.scale == want.scale and got.zero_point == want.zero_point


@pytest.mark.parametrize("zero", [None, np.int32(3)])
def test_one_traced_out_scale_is_the_same_in_several_results(zero):
    def call(a, b, scale, zero):
        given = {"out_scale": scale, "out_zero_point": zero}
        parts = [
            qactivation(a, "relu", **given),
            requantize(b, **given),
            qadd(a, b, **given),
            qavg_pool(b, 1, **given),
            qconcat([a], **given),
            QTensor(values((2, 3, 4, 8), 3), scale, zero),
        ]
        return qconcat(parts)

    a, b = (QTensor(values((2, 3, 4, 8), i), np.float32(s)) for i, s in enumerate((0.3, 0.2)))
    got, want = (f(a, b, np.float32(0.4), zero) for f in (jax.jit(call), call))
    assert_same(got.values, np.asarray(want.values))


def test_tensors_quantised_with_one_traced_scale_are_known_to_share_it():
    def call(x, scale, zero):
        given = {"scale": scale, "zero_point": zero}
        parts = [quantize(x, **given), quantize(-x, **given)]
        return qconcat([*parts, quantize_image(abs(x).astype(np.uint8), **given)])

    x = jnp.asarray(values((2, 3, 4, 8)), jnp.float32)
    got, want = (f(x, np.float32(2), np.int32(1)) for f in (jax.jit(call), call))
    assert_same(got.values, np.asarray(want.values))
