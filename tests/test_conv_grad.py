"""Integers have no gradient: an error in words, never a plausible zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_qconv import QTensor, dequantize, prepack, qconv, quantize, unpack

RNG = np.random.default_rng(0)
X = RNG.integers(-128, 128, (2, 5, 5, 4), np.int8)
W = RNG.normal(size=(3, 3, 4, 4)).astype(np.float32)
ONES = np.ones((3, 3, 4, 4), np.int8)
B = RNG.normal(size=4).astype(np.float32)
F = RNG.normal(size=X.shape).astype(np.float32)
HALF = np.float32(0.5)


@pytest.fixture(scope="module")
def packed():
    return prepack(W, B)


# Each maps one float argument to an array: through quantize, or through qconv by way of ...
FUNCTIONS = {
    "quantize": lambda p, x: dequantize(quantize(x, HALF)),
    "quantize-scale": lambda p, s: dequantize(quantize(F, s)),
    "quantize-zero-point": lambda p, x: dequantize(quantize(x, HALF, zero_point=3)),
    "x": lambda p, x: qconv(quantize(x, HALF), p),
    "x-int8": lambda p, x: dequantize(qconv(quantize(x, HALF), p, out_scale=HALF)),
    "x-int32": lambda p, x: qconv(quantize(x, HALF), prepack(W), out_dtype="int32").astype(x.dtype),
    "x_scale": lambda p, s: qconv(QTensor(X, s), p),
    "x_scale-bound": lambda p, s: qconv(X, p.bind(x_scale=s)),
    "x_scale-int8": lambda p, s: dequantize(qconv(QTensor(X, s), p, out_scale=HALF)),
    "out_scale": lambda p, s: dequantize(qconv(QTensor(X, HALF), p, out_scale=s)),
    "residual_scale": lambda p, s: qconv(QTensor(X, HALF), p, residual=QTensor(X, s)),
    "residual": lambda p, x: qconv(QTensor(X, HALF), p, residual=quantize(x, HALF)),
    "weight": lambda p, w: qconv(QTensor(X, HALF), prepack(w)),
    "weight-bfloat16": lambda p, w: qconv(QTensor(X, HALF), prepack(w), out_dtype="bfloat16"),
    "weight_scale": lambda p, s: qconv(QTensor(X, HALF), prepack(ONES, weight_scale=s)),
    "bias": lambda p, b: qconv(QTensor(X, HALF), prepack(W, b)),
    "bias-clip": lambda p, b: qconv(QTensor(X, HALF), prepack(W, b), activation="relu6"),
}
ARGUMENTS = {"weight": W, "bias": B, "x": F, "residual": F, "quantize": F}


def argument(name):
    of = name.split("-")[0]
    return jnp.asarray(HALF if "scale" in name else ARGUMENTS[of])


DERIVATIVES = {
    "grad": lambda f, x: jax.grad(lambda x: f(x).astype(jnp.float32).sum())(x),
    "value_and_grad": lambda f, x: jax.value_and_grad(lambda x: f(x).astype(jnp.float32).sum())(x),
    "vjp": lambda f, x: jax.vjp(f, x),
    "jacrev": lambda f, x: jax.jacrev(f)(x),
    "jacfwd": lambda f, x: jax.jacfwd(f)(x),
    "jvp": lambda f, x: jax.jvp(f, (x,), (jnp.ones_like(x),)),
    "linearize": lambda f, x: jax.linearize(f, x),
    "hessian": lambda f, x: jax.hessian(lambda x: f(x).astype(jnp.float32).sum())(x),
}
WRAPPERS = {
    "plain": lambda f: f,
    "jit": jax.jit,
    "remat": jax.checkpoint,
    "vmap": lambda f: lambda x: jax.vmap(f)(x[None])[0],
    "scan": lambda f: lambda x: jax.lax.scan(lambda c, _: (c, f(c)), x, None, length=1)[1][0],
    "cond": lambda f: lambda x: jax.lax.cond(x.sum() < 1e9, f, lambda x: f(x) * 2, x),
}


def assert_refused(derivative, f, x):
    with pytest.raises(TypeError, match=r"^(quantize|prepack|qconv) works on integers and has no"):
        derivative(f, x)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_every_way_into_a_convolution_is_refused(packed, name, jit):
    def f(x):
        return FUNCTIONS[name](packed, x)

    assert_refused(DERIVATIVES["grad"], jax.jit(f) if jit else f, argument(name))


@pytest.mark.parametrize("derivative", DERIVATIVES)
@pytest.mark.parametrize("name", ["quantize", "x_scale", "bias"])
def test_every_derivative_is_refused(packed, name, derivative):
    x = argument(name)
    assert_refused(DERIVATIVES[derivative], lambda x: FUNCTIONS[name](packed, x), x)
    with pytest.raises(TypeError, match="has no gradient"):
        jax.jit(lambda x: DERIVATIVES[derivative](lambda x: FUNCTIONS[name](packed, x), x))(x)


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", ["quantize", "x", "x_scale"])
def test_no_transformation_hides_the_refusal(packed, name, wrapper):
    f = WRAPPERS[wrapper](lambda x: FUNCTIONS[name](packed, x))
    assert_refused(DERIVATIVES["grad"], f, argument(name))


def test_a_pack_is_not_differentiated(packed):
    with pytest.raises(TypeError, match="qconv works on integers"):
        jax.grad(lambda p: qconv(QTensor(X, HALF), p).sum(), allow_int=True)(packed)


def test_the_message_says_what_to_do(packed):
    with pytest.raises(TypeError, match=r"Train the float model .* jax\.lax\.stop_gradient"):
        jax.grad(lambda s: qconv(QTensor(X, s), packed).sum())(HALF)


@pytest.mark.parametrize(
    ("name", "wrapper"),
    [*((name, "plain") for name in FUNCTIONS), *(("x", wrapper) for wrapper in WRAPPERS)],
)
def test_stop_gradient_around_the_inputs_lets_the_rest_be_differentiated(packed, name, wrapper):
    def f(x):
        integer = FUNCTIONS[name](packed, jax.lax.stop_gradient(x))
        return x.astype(jnp.float32).sum() * jnp.abs(integer.astype(jnp.float32))

    x = argument(name)
    found = jax.grad(lambda x: WRAPPERS[wrapper](f)(x).sum())(x)
    # d(sum(x) * c) / dx = c, and c is what the convolution gives.
    total = np.abs(np.asarray(FUNCTIONS[name](packed, x), np.float32)).sum()
    assert total > 0
    np.testing.assert_allclose(found, np.full(x.shape, total), rtol=1e-5)


def test_a_float_branch_beside_a_convolution_has_its_own_gradient(packed):
    def branches(w, x):
        beside = qconv(QTensor(X, HALF), packed)
        return (jnp.einsum("nhwc,ck->nhwk", x, w) * beside).sum()

    w = jnp.asarray(W[0, 0])
    found = jax.jit(jax.grad(branches))(w, F)
    expected = jnp.einsum("nhwc,nhwk->ck", F, qconv(QTensor(X, HALF), packed))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_scale_of_dequantize_has_its_true_gradient():
    found = jax.grad(lambda s: dequantize(QTensor(X, s)).sum())(HALF)
    assert found == X.astype(np.float32).sum()


def test_weights_of_an_int32_output_are_refused():
    def f(w):
        return qconv(QTensor(X, HALF), prepack(w), out_dtype="int32").astype(jnp.float32).sum()

    with pytest.raises(TypeError, match="prepack works on integers and has no gradient"):
        jax.grad(f)(W)


def test_packing_is_refused():
    def f(w):
        unpacked = unpack(prepack(w))
        return (unpacked.weight.astype(jnp.float32) * unpacked.weight_scale).sum()

    with pytest.raises(TypeError, match="prepack works on integers and has no gradient"):
        jax.grad(f)(W)
