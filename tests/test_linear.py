"""Linear layers on packed weights, against numpy."""

import cases
import jax
import numpy as np
import oracle
import pytest

import jax_qconv as q


def data(*outer, c=20, k=12):
    rng = np.random.default_rng(0)
    return cases.int8(rng, (*outer, c), "any"), cases.int8(rng, (c, k), "any")


@pytest.mark.parametrize("outer", [(), (5,), (2, 3, 4), (0, 3)], ids=str)
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_sums_are_those_of_a_matrix_product(outer, jit):
    x, w = data(*outer)
    packed = q.prepack_linear(w, weight_scale=1.0)

    def call(x, packed):
        return q.qlinear(x, packed, out_dtype="int32")

    got = (jax.jit(call) if jit else call)(x, packed)
    oracle.assert_same(got, x.astype(np.int32) @ w.astype(np.int32))


def test_the_epilogue_is_that_of_a_convolution():
    x, w = data(2, 7)
    r = cases.int8(np.random.default_rng(1), (2, 7, 12), "any")
    bias = np.arange(12, dtype=np.float32) * 100
    scales = {"out_scale": 150.0, "out_zero_point": 5, "activation": "hard_swish"}
    got = q.qlinear(
        q.QTensor(x, 0.5, 7),
        q.prepack_linear(w.T, bias, weight_scale=0.25, layout="OI"),
        residual=q.QTensor(r, 20.0, -3),
        **scales,
    )
    want = q.qconv(
        q.QTensor(x.reshape(14, 1, 1, 20), 0.5, 7),
        q.prepack(w[None, None], bias, weight_scale=0.25),
        residual=q.QTensor(r.reshape(14, 1, 1, 12), 20.0, -3),
        **scales,
    )
    assert got.shape == (2, 7, 12)
    oracle.assert_same(got.unpadded(), np.asarray(want.unpadded()).reshape(2, 7, 12))
    assert len(np.unique(np.asarray(got.unpadded()))) > 40


ONE = np.ones((1, 20, 12), np.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, w, p: q.prepack_linear(w, layout="HWIO"), "layout='HWIO' is not known"),
        (lambda x, w, p: q.prepack_linear(w[0]), r"must have 2 axes \(IO\), got shape \[12\]"),
        (lambda x, w, p: q.qlinear(x, q.prepack(np.ones((3, 3, 20, 4)))), "qlinear takes packs"),
        (lambda x, w, p: q.qlinear(np.int8(3), p), "x must have an axis of channels"),
        (
            lambda x, w, p: q.qlinear(q.QTensor(x, 1.0), p, residual=q.QTensor(w, 1.0)),
            r"residual has shape \[20, 12\], but the output has \[5, 12\]",
        ),
        (
            lambda x, w, p: q.qlinear(x, p, residual=q.QTensor(x, 1.0), out_scale=1.0),
            r"residual has shape \[5, 20\], but the output has \[5, 12\]",
        ),
        (
            lambda x, w, p: q.qlinear(x, q.prepack(ONE, strides=2)),
            r"packed has strides=\(2,\); qlinear takes packs from prepack_linear",
        ),
        (
            lambda x, w, p: q.qlinear(x, q.prepack(ONE, padding=1)),
            r"packed has padding=\(\(1, 1\),\); qlinear takes packs",
        ),
        (
            lambda x, w, p: q.qlinear(x, q.prepack(ONE, transpose=True)),
            "packed has a transposed convolution; qlinear takes packs",
        ),
        (
            lambda x, w, p: q.qlinear(q.QTensor(x, 1.0, None, 21), p),
            "^x says it has 21 channels, but stores 20",
        ),
        (lambda x, w, p: q.qlinear(x[:, :19], p), "x has 19 channels, but packed has .* for 20"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(call, message):
    x, w = data(5)
    with pytest.raises(ValueError, match=message):
        call(x, w, q.prepack_linear(w, weight_scale=1.0))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda x: q.QTensor(x, 1.0, None, "8"), r"channels must be an int, .*, got '8'"),
        (lambda x: q.QTensor(x.tolist(), 1.0), " must hold int8 values, got int32"),
        (lambda x: q.QTensor(np.float32(x), 1.0), " must hold int8 values, got float32"),
    ],
)
@pytest.mark.parametrize("name", ["x", "residual"])
def test_tensors_with_odd_fields_are_refused_by_name(name, bad, message):
    x, w = data(5)
    given = {"x": q.QTensor(x, 1.0), name: bad(x)}
    with pytest.raises(TypeError, match=f"^{name}.?{message}"):
        q.qlinear(given.pop("x"), q.prepack_linear(w, weight_scale=1.0), **given, out_scale=1.0)
