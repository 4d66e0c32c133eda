"""Pools of int8 tensors."""

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

from jax_qconv import QTensor, qadaptive_avg_pool, qavg_pool, qglobal_avg_pool, qmax_pool
from jax_qconv._window import Windows

SHAPES = st.sampled_from([(2, 7, 3), (1, 6, 5, 3), (2, 4, 7, 2), (1, 4, 3, 5, 2), (0, 5, 5, 3)])


@st.composite
def pools(draw, dilated):
    """A tensor, the arguments of a pool, and what its windows see along each axis."""
    x = draw(qtensors(SHAPES))
    sizes = x.shape[1:-1]
    ints = [st.tuples(*[st.integers(1, n)] * len(sizes)) for n in (3, 3, 2)]
    window, strides, dilation = (draw(v) for v in ints)
    dilation = dilation if dilated else (1,) * len(sizes)
    pad = st.tuples(st.integers(0, 2), st.integers(0, 2))
    padding = draw(st.sampled_from(["SAME", "VALID"]) | st.tuples(*[pad] * len(sizes)))
    arguments = {
        "window": window,
        "strides": draw(st.just(strides) | st.none()),
        "padding": padding,
        "ceil_mode": draw(st.booleans()),
    }
    if dilated:
        arguments["dilation"] = dilation
    strides = arguments["strides"] or window
    pads = oracle_ops.explicit(padding, sizes, window, strides, dilation)
    columns = zip(sizes, window, strides, pads, dilation, strict=True)
    seen = [oracle_ops.taps(*column, arguments["ceil_mode"]) for column in columns]
    # Others are refused.
    hypothesis.assume(all(seen))
    for positions, size in zip(seen, sizes, strict=True):
        hypothesis.assume(all(any(0 <= p < size for p in window) for window in positions))
    return x, arguments, seen, pads


@hypothesis.given(pools(dilated=True))
@examples(5)
def test_the_largest_wins_and_padding_never(pool):
    x, arguments, seen, _ = pool
    q, scale, zero = plain(x)
    want = oracle_ops.pool(q, seen, lambda elements, _: elements.max())
    check(functools.partial(qmax_pool, **arguments), [x], want, scale, zero)


@st.composite
def outputs(draw):
    """The arguments out_scale and out_zero_point of a pool."""
    return {
        "out_scale": draw(st.none() | SCALES),
        "out_zero_point": draw(ZEROS),
    }


def meaning(x, output):
    """Scale and zero point of the output, and what `oracle_ops.mean` needs of the scales."""
    _, scale, zero = plain(x)
    out_scale, out_zero = output["out_scale"], output["out_zero_point"]
    if out_scale is None:
        return scale, zero if out_zero is None else out_zero, None
    return out_scale, out_zero, (scale, out_scale)


@hypothesis.given(pools(dilated=False), outputs(), st.booleans())
@examples(5)
def test_means_are_rounded_from_the_exact_value(pool, output, count_include_pad):
    x, arguments, seen, pads = pool
    q, _, zero = plain(x)
    out_scale, out_zero, scales = meaning(x, output)
    limits = [
        (-before, size + after) for size, (before, after) in zip(x.shape[1:-1], pads, strict=True)
    ]

    def mean(elements, positions):
        counted = [
            p
            for p in positions
            if all(low <= v < high for v, (low, high) in zip(p, limits, strict=True))
        ]
        count = len(counted) if count_include_pad else len(elements)
        total = int((elements - (zero or 0)).sum())
        return oracle_ops.mean(total, count, scales, out_zero)

    want = oracle_ops.pool(q, seen, mean)
    call = functools.partial(qavg_pool, **arguments, count_include_pad=count_include_pad)
    check(call, [x], want, out_scale, out_zero, **output)


@hypothesis.given(qtensors(SHAPES), outputs(), st.booleans())
@examples(5)
def test_global_means(x, output, keepdims):
    q, _, zero = plain(x)
    out_scale, out_zero, scales = meaning(x, output)
    seen = [[list(range(size))] for size in x.shape[1:-1]]
    want = oracle_ops.pool(
        q,
        seen,
        lambda e, _: oracle_ops.mean(int((e - (zero or 0)).sum()), len(e), scales, out_zero),
    )
    want = want if keepdims else want.reshape(len(q), -1 if len(q) else q.shape[-1])
    call = functools.partial(qglobal_avg_pool, keepdims=keepdims)
    check(call, [x], want, out_scale, out_zero, **output)


@hypothesis.given(qtensors(SHAPES), outputs(), st.data())
@examples(5)
def test_adaptive_bins(x, output, data):
    q, _, zero = plain(x)
    out_scale, out_zero, scales = meaning(x, output)
    sizes = x.shape[1:-1]
    output_size = data.draw(st.tuples(*(st.integers(1, size + 2) for size in sizes)))
    # As torch.nn.AdaptiveAvgPool2d has them.
    seen = [
        [list(range(i * size // p, -(-(i + 1) * size // p))) for i in range(p)]
        for size, p in zip(sizes, output_size, strict=True)
    ]
    want = oracle_ops.pool(
        q,
        seen,
        lambda e, _: oracle_ops.mean(int((e - (zero or 0)).sum()), len(e), scales, out_zero),
    )
    call = functools.partial(qadaptive_avg_pool, output_size=output_size)
    check(call, [x], want, out_scale, out_zero, **output)


# What torch.nn.MaxPool1d gives: size, window, stride, padding, dilation, ceil_mode, outputs.
@pytest.mark.parametrize(
    ("size", "window", "stride", "pad", "dilation", "ceil_mode", "count"),
    [
        (112, 3, 2, 1, 1, False, 56), (112, 3, 2, 0, 1, False, 55), (112, 3, 2, 0, 1, True, 56),
        (55, 3, 2, 0, 1, True, 27), (54, 3, 2, 0, 1, True, 27), (54, 3, 2, 0, 1, False, 26),
        (6, 2, 2, 0, 1, True, 3), (7, 2, 2, 0, 1, True, 4), (7, 2, 2, 1, 1, True, 4),
        (5, 2, 3, 1, 1, True, 2), (1, 1, 2, 0, 1, True, 1), (4, 2, 2, 1, 1, True, 3),
        (3, 2, 2, 1, 1, True, 2), (10, 3, 3, 1, 2, True, 4), (10, 3, 3, 1, 2, False, 3),
    ],
)  # fmt: skip
def test_there_are_as_many_windows_as_pytorch_has(
    size, window, stride, pad, dilation, ceil_mode, count
):
    placed = {"strides": stride, "padding": pad, "dilation": dilation, "ceil_mode": ceil_mode}
    (windows,) = Windows.make((size,), window=window, **placed)
    assert windows.count == count
    assert len(oracle_ops.taps(size, window, stride, (pad, pad), dilation, ceil_mode)) == count
    x = QTensor(np.zeros((1, size, 4), np.int8), np.float32(1))
    assert qmax_pool(x, window, **placed).shape == (1, count, 4)


@hypothesis.given(
    st.integers(1, 12), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3),
    st.tuples(st.integers(0, 3), st.integers(0, 3)), st.booleans(),
)  # fmt: skip
@examples(300)
def test_windows_lie_where_the_oracle_has_them(size, window, stride, dilation, pads, ceil_mode):
    seen = oracle_ops.taps(size, window, stride, pads, dilation, ceil_mode)
    real = [sum(0 <= p < size for p in positions) for positions in seen]
    geometry = {"window": window, "strides": stride, "padding": [pads], "dilation": dilation}
    if not seen or 0 in real:
        with pytest.raises(ValueError, match=r"larger|more than|padding only"):
            Windows.make((size,), ceil_mode=ceil_mode, **geometry)
        return
    (windows,) = Windows.make((size,), ceil_mode=ceil_mode, **geometry)
    assert windows.inside.tolist() == real
    before, after = pads
    assert windows.inside_or_padding.tolist() == [
        sum(-before <= p < size + after for p in positions) for positions in seen
    ]


@pytest.mark.parametrize("padding", ["SAME", "VALID", "same"])
def test_max_pool_is_reduce_window(padding):
    x = QTensor(np.random.default_rng(0).integers(-128, 128, (2, 9, 8, 4), np.int8), np.float32(1))
    want = jax.lax.reduce_window(
        x.values, np.int8(-128), jax.lax.max, (1, 3, 2, 1), (1, 2, 1, 1), padding.upper()
    )
    got = qmax_pool(x, (3, 2), strides=(2, 1), padding=padding)
    np.testing.assert_array_equal(got.values, want)


def test_the_tie_of_a_mean_is_a_tie():
    # 9 / 6 is a tie; with a float32 1/6 it is not.
    x = QTensor(np.int8([9, 0, 0, 0, 0, 0]).reshape(1, 6, 1), np.float32(0.1))
    y = QTensor(np.int8([15, 0, 0, 0, 0, 0]).reshape(1, 6, 1), np.float32(0.1))
    for pool in (lambda q: qavg_pool(q, 6), qglobal_avg_pool, lambda q: qadaptive_avg_pool(q, 1)):
        for call in (pool, jax.jit(pool)):
            assert int(call(x).values.squeeze()) == 2
            assert int(call(y).values.squeeze()) == 2  # 2.5


def test_sums_of_many_pixels_are_exact():
    x = QTensor(np.full((1, 300, 301, 2), -128, np.int8), np.float32(0.1), np.int32(127))
    for pool in (qglobal_avg_pool, lambda q: qavg_pool(q, (300, 301))):
        assert (np.asarray(jax.jit(pool)(x).values) == -128).all()


def test_products_of_more_than_53_bits_are_exact():
    q = np.random.default_rng(0).choice(np.int8([127, 127, 126, 0]), (1, 1500, 1500, 1))
    x = QTensor(q, np.float32(0.3), np.int32(-128))
    for out_scale in np.float32([0.7, 0.4131]):
        total = int((q.astype(np.int64) + 128).sum())
        want = oracle_ops.mean(total, 1500**2, (0.3, out_scale), -100)
        got = qglobal_avg_pool(x, out_scale=out_scale, out_zero_point=-100)
        assert int(got.values.squeeze()) == want


def test_vmap():
    x = mapped(0, 2, 5, 5, 6, channels=5)
    check_vmap(lambda q: qmax_pool(q, 3, strides=2, padding=1), x)
    check_vmap(lambda q: qavg_pool(q, 3, strides=2, padding=1, out_scale=0.5), x)
    check_vmap(lambda q: qglobal_avg_pool(q, out_zero_point=7), x)
    check_vmap(lambda q: qadaptive_avg_pool(q, 3), x)


def test_given_scales_may_be_traced():
    x = mapped(0, 5, 5, 6)
    want = qavg_pool(x, 2, out_scale=0.7, out_zero_point=2)
    got = jax.jit(lambda s, z: qavg_pool(x, 2, out_scale=s, out_zero_point=z))(0.7, jnp.int32(2))
    np.testing.assert_array_equal(got.values, want.values)
