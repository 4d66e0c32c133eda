"""qadd and qmul: two int8 tensors to one."""

import functools

import hypothesis
import jax
import numpy as np
import oracle_ops
import pytest
from effort import examples
from hypothesis import strategies as st
from op_cases import SCALES, WIDE_SCALES, ZEROS, check, check_vmap, mapped, plain, qtensors
from test_table import SCALE_FREE

from jax_qconv import QTensor, qadd, qmul

ORACLES = {qadd: oracle_ops.add, qmul: oracle_ops.multiply}
OPS = pytest.mark.parametrize("op", ORACLES, ids=lambda op: op.__name__)
PAIRS = [
    ((2, 3, 3, 5), (2, 3, 3, 5)),
    ((2, 3, 3, 5), (5,)),
    ((2, 1, 1, 5), (2, 3, 3, 5)),
    ((2, 3, 3, 5), (2, 3, 3, 1)),
    ((1,), (2, 3, 5)),
    ((1, 3, 1, 1), (2, 1, 3, 5)),
    ((1,), (1,)),
    ((0, 5), (1, 5)),
]


@OPS
@hypothesis.given(
    st.sampled_from(PAIRS).flatmap(lambda pair: st.tuples(*map(qtensors, pair))),
    SCALES, ZEROS, SCALE_FREE,
)  # fmt: skip
@examples(6)
def test_it_is_its_formula(op, pair, out_scale, out_zero, activation):
    want = ORACLES[op](*map(plain, pair), out_scale, out_zero, activation)
    call = functools.partial(op, activation=activation)
    given = {"out_scale": out_scale, "out_zero_point": out_zero}
    check(call, pair, want, out_scale, out_zero, **given)


@OPS
@hypothesis.given(
    WIDE_SCALES, WIDE_SCALES, WIDE_SCALES, ZEROS, ZEROS, ZEROS, SCALE_FREE, st.integers(0, 2**31)
)
@examples(6)
def test_any_scales(op, s_a, s_b, s_y, z_a, z_b, z_y, activation, seed):
    rng = np.random.default_rng(seed)
    a, b = (
        QTensor(
            np.append(np.int8([-128, 127, -1, 0]), rng.integers(-128, 128, 60, np.int8)),
            np.float32(s),
            None if z is None else np.int32(z),
        )
        for s, z in ((s_a, z_a), (s_b, z_b))
    )
    want = ORACLES[op](plain(a), plain(b), s_y, z_y, activation)
    call = functools.partial(op, activation=activation)
    check(call, (a, b), want, s_y, z_y, out_scale=s_y, out_zero_point=z_y)


@OPS
def test_all_pairs_of_integers(op):
    a = QTensor(np.arange(-128, 128, dtype=np.int8).reshape(256, 1), np.float32(0.37), np.int32(-9))
    b = QTensor(np.arange(-128, 128, dtype=np.int8), np.float32(0.011))
    want = ORACLES[op](plain(a), plain(b), 0.23, 4, oracle_ops.Activation())
    check(op, (a, b), want, 0.23, 4, out_scale=0.23, out_zero_point=4)


@OPS
def test_a_scalar_is_a_tensor_of_one_channel(op):
    x = QTensor(np.arange(-6, 6, dtype=np.int8).reshape(2, 6), np.float32(0.5), None, 5)
    scalar, one = (QTensor(np.full(s, 3, np.int8), np.float32(2)) for s in ((), (1,)))
    got, want = (op(x, v, out_scale=0.5) for v in (scalar, one))
    np.testing.assert_array_equal(got.values, want.values)
    assert got.shape == (2, 5)


@OPS
def test_the_wider_padding_is_kept(op):
    narrow = QTensor(np.ones((2, 3, 5), np.int8), np.float32(1))
    wide = QTensor(np.ones((2, 3, 8), np.int8), np.float32(1), None, 5)
    for pair in ((narrow, wide), (wide, narrow)):
        got = op(*pair, out_scale=1.0)
        assert got.values.shape == (2, 3, 8) and got.shape == (2, 3, 5)
    one = QTensor(np.ones((2, 3, 4), np.int8), np.float32(1), None, 1)
    assert op(one, wide, out_scale=1.0).values.shape == (2, 3, 8)
    assert op(one, narrow, out_scale=1.0).values.shape == (2, 3, 5)
    assert op(one, one, out_scale=1.0).values.shape == (2, 3, 4)


def test_squeeze_and_excite_gates_channels():
    x = QTensor(np.full((2, 3, 3, 4), 100, np.int8), np.float32(0.1))
    gate = QTensor(np.int8([-128, -64, 0, 127]).reshape(1, 1, 1, 4), np.float32(2**-8), -128)
    got = qmul(x, gate, out_scale=0.1)
    np.testing.assert_array_equal(got.values[0, 0, 0], [0, 25, 50, 100])


@OPS
def test_ties_go_to_even(op):
    quarter = np.float32(0.25)
    a = QTensor(np.int8([2, 6, -2, -6, 10]), quarter)
    b = QTensor(np.int8([0] * 5) if op is qadd else np.int8([4] * 5), quarter)
    for call in (op, jax.jit(op)):
        assert call(a, b, out_scale=np.float32(1)).values.tolist() == [0, 2, 0, -2, 2]


@OPS
def test_vmap(op):
    a, b = mapped(0, 4, 6, channels=5), mapped(1, 1, 5, zero=None)
    check_vmap(lambda a, b: op(a, b, out_scale=0.5, out_zero_point=1), a, b)
    unmapped = QTensor(np.arange(5, dtype=np.int8), np.float32(0.5))
    check_vmap(lambda a: op(a, unmapped, out_scale=0.5, activation="relu"), a)
