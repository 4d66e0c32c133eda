"""The exact convolution in plain JAX, part by part, against the oracle."""

import fractions

import cases
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from effort import examples
from hypothesis import strategies as st

from jax_qconv import Activation, _reference, _spec
from jax_qconv._problem import Problem

NATIVE_CONV = pytest.mark.parametrize("native_conv", [True, False], ids=["conv", "dots"])


def make_problem(geometry, **changes):
    options = {"groups": 1, "out_dtype": "int32", "activation": "none"}
    return Problem.make(
        x_shape=geometry.x_shape,
        w_shape=geometry.w_shape,
        strides=geometry.strides,
        padding=_spec.as_padding(geometry.padding, rank=2),
        dilation=geometry.dilation,
        **options | changes,
    )


@NATIVE_CONV
@hypothesis.given(case=cases.cases(out_dtype=st.just("int32")))
@examples(10)
def test_sums_are_exact_both_ways(native_conv, case):
    problem = make_problem(case.geometry)
    x, w = case.arguments["x"], case.arguments["w"]
    got = jax.jit(_reference.convolve, static_argnums=0, static_argnames="native_conv")(
        problem, x, w, native_conv=native_conv
    )
    oracle.assert_same(got, case.expected())


def test_padding_of_one_side_on_a_single_pixel():
    """XLA:CPU 0.12 fails to compile this one where it may fold the padding into the convolution."""
    geometry = cases.Geometry(
        (1, 1, 1, 24), (4, 1, 2, 24), padding=((0, 1), (0, 2)), pads=((0, 1), (0, 2))
    )
    case = cases.Case(geometry, out_dtype="int32")
    x, w = case.arguments["x"], case.arguments["w"]
    got = jax.jit(_reference.convolve, static_argnums=0, static_argnames="native_conv")(
        make_problem(geometry), x, w, native_conv=True
    )
    oracle.assert_same(got, case.expected())


@NATIVE_CONV
def test_the_largest_sum_fits(native_conv):
    geometry = cases.Geometry((1, 1, 1, 131071), (2, 1, 1, 131071))
    x, w = (np.full(shape, -128, np.int8) for shape in (geometry.x_shape, geometry.w_shape))
    got = _reference.convolve(make_problem(geometry), x, w, native_conv=native_conv)
    np.testing.assert_array_equal(got, np.full((1, 1, 1, 2), 2**31 - 16384))


@pytest.mark.parametrize("out_dtype", ["int8", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    "activation",
    [Activation(), Activation("relu"), Activation.clip(-3, 99.5), Activation.leaky_relu(0.3)],
    ids=lambda activation: activation.kind,
)
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
def test_the_epilogue_of_sums_of_every_size(out_dtype, activation, residual):
    rng = np.random.default_rng(0)
    # Every magnitude of sums; powers of two among the factors make ties.
    shape = (2, 32, 32, 64)
    acc = rng.integers(-(2**31), 2**31, shape) >> rng.integers(0, 31, shape)
    m = (100 / 2.0 ** rng.uniform(6, 30, 64)).astype(np.float32)
    m[::2] = 2.0 ** -rng.integers(6, 30, 32)
    b = np.where(rng.integers(0, 2, 64), rng.integers(-99, 99, 64) / 2, rng.normal(0, 50, 64))
    constants = {"m": m, "b": b.astype(np.float32)}
    if residual:
        constants |= {"r": cases.int8(rng, acc.shape, "any"), "m_r": np.float32(0.37)}
    if activation.kind == "clip":
        constants |= {"lower": np.float32(-3), "upper": np.float32(99.5)}
    problem = make_problem(
        cases.Geometry((2, 32, 32, 4), (64, 1, 1, 4)),
        out_dtype=out_dtype,
        activation=activation.kind,
        slope=activation.slope,
        residual=residual,
    )
    got = jax.jit(_reference.epilogue, static_argnums=0)(
        problem, jnp.asarray(acc, jnp.int32), **constants
    )
    y = oracle.fma(acc.astype(np.float32), m, constants["b"])
    if residual:
        y = oracle.fma(constants["r"].astype(np.float32), constants["m_r"], y)
    y = oracle.activate(y, activation, None, constants.get("lower"), constants.get("upper"))
    oracle.assert_same(got, oracle.rounded(y, out_dtype))


def hard_products_and_sums(count):
    """float32 a, b, c ``[count]`` on which a * b + c rounded twice goes wrong, and others."""
    rng = np.random.default_rng(0)
    n = count // 4
    sign = rng.choice([-1.0, 1.0], (2, n))
    exponent = 2.0 ** rng.integers(-40, 40, n)
    # The product is half a unit in the last place of c: exactly, or off by 2**-23 to 2**-46.
    c_integer = rng.choice([-1, 1], n) * rng.integers(2**23, 2**24, n)
    near_one = 1 + rng.integers(-2, 3, (2, n)) * 2.0**-23
    ties = sign[0] * near_one[0] * exponent, sign[1] * near_one[1] * 0.5, c_integer * exponent
    # The sum cancels all but the low bits of the product.
    a, b = rng.uniform(-1, 1, (2, n)).astype(np.float32)
    cancelling = a, b, -(a * b)
    # Accumulators, scales and biases as they are met.
    sums = rng.integers(-(2**31), 2**31, n) >> rng.integers(0, 31, n)
    usual = sums, 2.0 ** rng.uniform(-20, 0, n), rng.normal(0, 100, n)
    # Anything, of every magnitude.
    wide = [m * 2.0**e for m, e in zip(
        rng.uniform(-2, 2, (3, n)), rng.integers(-30, 30, (3, n)), strict=True)]  # fmt: skip
    columns = zip(ties, cancelling, usual, wide, strict=True)
    return [np.concatenate(column).astype(np.float32) for column in columns]


def test_fma_rounds_a_million_hard_values_once():
    a, b, c = hard_products_and_sums(10**6)
    want = oracle.fma(a, b, c)
    rounded_twice = (a.astype(np.float64) * b + c).astype(np.float32)
    assert (rounded_twice != want).mean() > 0.01
    oracle.assert_same(_reference.fma(*map(jnp.asarray, (a, b, c))), want)
    oracle.assert_same(jax.jit(_reference.fma)(a, b, c), want)


def test_fma_of_infinities_and_nan():
    a = np.float32([np.inf, np.inf, 1, np.nan, 3e38, -3e38, 0])
    b = np.float32([1, 1, 1, 1, 10, 10, np.inf])
    c = np.float32([1, -np.inf, -np.inf, 1, 1, 1, 1])
    want = np.float32([np.inf, np.nan, -np.inf, np.nan, np.inf, -np.inf, np.nan])
    np.testing.assert_array_equal(oracle.fma(a, b, c), want)
    np.testing.assert_array_equal(jax.jit(_reference.fma)(a, b, c), want)


def exactly_rounded(exact):
    """The float32 nearest to a fraction, half to even."""
    near = np.float32(float(exact))
    around = [np.nextafter(near, np.float32(-np.inf)), near, np.nextafter(near, np.float32(np.inf))]
    return min(
        around, key=lambda v: (abs(fractions.Fraction(float(v)) - exact), v.view(np.int32) & 1)
    )


def test_the_oracle_rounds_like_rational_arithmetic():
    a, b, c = (column[::97] for column in hard_products_and_sums(10**6))
    exact = [
        fractions.Fraction(float(x)) * fractions.Fraction(float(y)) + fractions.Fraction(float(z))
        for x, y, z in zip(a, b, c, strict=True)
    ]
    oracle.assert_same(oracle.fma(a, b, c), np.array([exactly_rounded(v) for v in exact]))
