"""`qconv` under `jax.vmap`: batches fold into N, weights and scales get a call each."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from jax_qconv import QTensor, dequantize, prepack, qconv, quantize

RNG = np.random.default_rng(0)
X = RNG.integers(-128, 128, (3, 2, 5, 4, 6), np.int8)
R = RNG.integers(-128, 128, (3, 2, 5, 4, 7), np.int8)
W = RNG.normal(size=(3, 3, 6, 7)).astype(np.float32)
B = RNG.normal(size=7).astype(np.float32)
X_SCALE, OUT_SCALE, R_SCALE = np.float32(0.5), np.float32(20), np.float32(0.25)


@pytest.fixture(scope="module")
def packed():
    return prepack(W, B)


def convolve(packed, x, r=None):
    """The logical int8 output of one call."""
    residual = None if r is None else QTensor(r, R_SCALE)
    x = QTensor(x, X_SCALE)
    out = qconv(x, packed, residual=residual, out_scale=OUT_SCALE, activation="relu6")
    return out.unpadded()


def calls_in(jaxpr):
    """Every equation of the primitive, at any depth."""
    return [e for e in every_equation(jaxpr.jaxpr) if e.primitive.name == "jax_qconv"]


def every_equation(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from every_equation(inner)


@pytest.mark.parametrize("in_axis", [0, 1, 2, 4, -1])
@pytest.mark.parametrize("out_axis", [0, 3])
def test_activations_fold_into_one_call(packed, in_axis, out_axis):
    x = np.moveaxis(X, 0, in_axis)

    def call(x):
        return jax.vmap(lambda x: convolve(packed, x), in_axes=in_axis, out_axes=out_axis)(x)

    (equation,) = calls_in(jax.make_jaxpr(call)(x))
    assert equation.params["problem"].x_shape == (6, 5, 4, 8)
    looped = np.stack([convolve(packed, item) for item in X], axis=out_axis)
    np.testing.assert_array_equal(call(x), looped)
    np.testing.assert_array_equal(jax.jit(call)(x), looped)


@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0)], ids=str)
def test_a_residual_is_mapped_or_shared(packed, axes):
    x, r = (v if axis == 0 else v[1] for v, axis in zip((X, R), axes, strict=True))
    call = jax.vmap(lambda x, r: convolve(packed, x, r), in_axes=axes)
    (equation,) = calls_in(jax.make_jaxpr(call)(x, r))
    assert equation.params["problem"].x_shape[0] == 6
    found = call(x, r)
    for i in range(3):
        expected = convolve(packed, x[i] if axes[0] == 0 else x, r[i] if axes[1] == 0 else r)
        np.testing.assert_array_equal(found[i], expected)


def test_nested_maps_fold_into_one_call(packed):
    call = jax.vmap(jax.vmap(lambda x: convolve(packed, x[None])[0]), in_axes=1, out_axes=1)
    (equation,) = calls_in(jax.make_jaxpr(call)(X))
    assert equation.params["problem"].x_shape == (6, 5, 4, 8)
    looped = np.stack([convolve(packed, item) for item in X])
    np.testing.assert_array_equal(call(X), looped)


@pytest.mark.parametrize("out_dtype", ["int32", "float32", "bfloat16", "float16"])
def test_every_output_dtype_folds(out_dtype):
    packed = prepack(W)

    def call(x):
        return qconv(QTensor(x, X_SCALE), packed, out_dtype=out_dtype)

    looped = np.stack([call(item) for item in X])
    found = jax.vmap(call)(X)
    assert found.dtype == out_dtype
    np.testing.assert_array_equal(found, looped)


def test_weights_get_a_call_each_with_the_right_result():
    weights = RNG.integers(-127, 128, (4, 7, 3, 3, 6), np.int8)
    biases = RNG.normal(size=(4, 7)).astype(np.float32)
    scales = RNG.uniform(0.1, 1, (4, 7)).astype(np.float32)

    def call(weight, bias, scale):
        packed = prepack(weight, bias, weight_scale=scale, layout="OHWI")
        return qconv(QTensor(X[0], X_SCALE), packed, out_scale=OUT_SCALE).unpadded()

    equations = calls_in(jax.make_jaxpr(jax.vmap(call))(weights, biases, scales))
    assert [e.params["problem"].x_shape for e in equations] == [(2, 5, 4, 8)] * 4
    found = jax.vmap(call)(weights, biases, scales)
    for weight, bias, scale, out in zip(weights, biases, scales, found, strict=True):
        expected = oracle.convolve(
            X[0],
            weight,
            padding="SAME",
            x_scale=X_SCALE,
            w_scale=scale,
            bias=bias,
            out_scale=OUT_SCALE,
        )
        np.testing.assert_array_equal(out, expected)


def test_weights_and_activations_mapped_together():
    weights = RNG.normal(size=(3, *W.shape)).astype(np.float32)
    packs = jax.vmap(prepack)(weights)
    found = jax.vmap(convolve)(packs, X, R)
    for i, weight in enumerate(weights):
        np.testing.assert_array_equal(found[i], convolve(prepack(weight), X[i], R[i]))


@pytest.mark.parametrize("name", ["x_scale", "out_scale", "residual_scale"])
def test_mapped_scales_give_what_a_loop_gives(packed, name):
    given = {"x_scale": X_SCALE, "out_scale": OUT_SCALE, "residual_scale": R_SCALE}

    def call(scale):
        scales = given | {name: scale}
        bound = packed.bind(**scales, activation="relu")
        residual = QTensor(R[0], scales["residual_scale"])
        return qconv(QTensor(X[0], scales["x_scale"]), bound, residual=residual).values

    scales = given[name] * np.array([1, 0.7, 1.4], np.float32)
    np.testing.assert_array_equal(jax.vmap(call)(scales), [call(scale) for scale in scales])


def test_a_qtensor_says_how_to_map_it(packed):
    q = QTensor(X, jnp.float32(X_SCALE))
    out = QTensor(0, None, None, 7)
    call = jax.vmap(
        lambda q: qconv(q, packed, out_scale=OUT_SCALE), in_axes=(q.in_axes(),), out_axes=out
    )
    found = call(q)
    assert found.shape == (3, 2, 5, 4, 7)
    assert found.scale.shape == ()
    for i, x in enumerate(X):
        expected = qconv(QTensor(x, X_SCALE), packed, out_scale=OUT_SCALE)
        np.testing.assert_array_equal(found.values[i], expected.values)
    # What comes out goes into the next map.
    np.testing.assert_array_equal(
        jax.vmap(dequantize, in_axes=(found.in_axes(),))(found), dequantize(found)
    )


def test_quantize_maps_like_a_loop():
    x = RNG.normal(size=(3, 4, 6)).astype(np.float32)
    scales = np.array([0.1, 0.2, 0.3], np.float32)
    found = jax.vmap(quantize)(x, scales)
    for i, scale in enumerate(scales):
        np.testing.assert_array_equal(found.values[i], quantize(x[i], scale).values)


def test_a_map_over_an_empty_batch_is_empty(packed):
    assert jax.vmap(lambda x: convolve(packed, x))(X[:, :0]).shape == (3, 0, 5, 4, 7)


def test_an_empty_map_is_empty(packed):
    assert jax.vmap(lambda x: convolve(packed, x))(X[:0]).shape == (0, 2, 5, 4, 7)
    weights = np.ones((0, *W.shape), np.float32)
    found = jax.vmap(lambda w: qconv(QTensor(X[0], X_SCALE), prepack(w)))(weights)
    assert (found.shape, found.dtype) == ((0, 2, 5, 4, 7), np.float32)


def test_the_folded_batch_is_checked(packed):
    one = jax.ShapeDtypeStruct((2**8, 32, 32, 6), np.int8)
    all_of_them = jax.ShapeDtypeStruct((2**10, *one.shape), np.int8)

    def call(x):
        return qconv(QTensor(x, X_SCALE), packed)

    assert jax.eval_shape(call, one).shape == (2**8, 32, 32, 7)
    with pytest.raises(ValueError, match=r"x of shape \(262144, 32, 32, 8\) .* 2\*\*31 - 1"):
        jax.eval_shape(jax.vmap(call), all_of_them)
