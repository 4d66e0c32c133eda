"""Programs that outlive the process: `jax.export`."""

import functools
import importlib.util

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from jax_qconv import QTensor, prepack, qconv

RNG = np.random.default_rng(0)
X = RNG.integers(-128, 128, (2, 5, 5, 3), np.int8)
W = RNG.normal(size=(3, 3, 3, 5)).astype(np.float32)
B = RNG.normal(size=5).astype(np.float32)


@pytest.fixture(scope="module")
def expected():
    return network(X, W, B, np.float32(0.5))


def network(x, weight, bias, scale):
    """Arrays in, arrays out: exported programs know no classes of this package."""
    packed = prepack(weight, bias, strides=2)
    x = qconv(QTensor(x, scale), packed, out_scale=2.0, activation="relu6")
    return x.unpadded(), qconv(x, prepack(weight.mean(2, keepdims=True).repeat(5, 2)))


def exported(**options):
    shapes = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in (X, W, B)]
    scale = jax.ShapeDtypeStruct((), jnp.float32)
    return jax.export.export(jax.jit(network), **options)(*shapes, scale)


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_an_exported_program_gives_the_same_bytes(expected):
    assert_same(exported(platforms=["cpu"]).call(X, W, B, 0.5), expected)
    # Scales are its arguments.
    found = exported(platforms=["cpu"]).call(X, W, B, 0.25)
    assert_same(found, network(X, W, B, np.float32(0.25)))
    assert (np.asarray(found[0]) != np.asarray(expected[0])).any()


@pytest.mark.skipif(
    importlib.util.find_spec("flatbuffers") is None, reason="jax.export serialises with flatbuffers"
)
def test_a_serialised_program_gives_the_same_bytes(expected):
    data = exported(platforms=["cpu"]).serialize()
    assert_same(jax.export.deserialize(data).call(X, W, B, 0.5), expected)


def test_the_cpu_program_holds_no_custom_call():
    # It runs wherever XLA does, without this package.
    assert "custom_call" not in exported(platforms=["cpu"]).mlir_module()


def test_one_program_for_cpus_and_gpus():
    call = jax.jit(functools.partial(qconv, out_dtype="int32", implementation="reference"))
    packed = prepack(W)
    program = jax.export.export(jax.jit(lambda x: call(x, packed)), platforms=["cpu", "cuda"])(X)
    np.testing.assert_array_equal(program.call(X), call(X, packed))


@pytest.mark.xfail(strict=True)
def test_one_program_for_cpus_and_tpus():
    packed = prepack(W)
    call = jax.jit(lambda x: qconv(x, packed, out_dtype="int32"))
    program = jax.export.export(call, platforms=["cpu", "tpu"])(X)
    np.testing.assert_array_equal(program.call(X), call(X))


@pytest.mark.xfail(strict=True)
def test_a_program_for_any_batch():
    packed = prepack(W)
    call = jax.jit(lambda x: qconv(x, packed, out_dtype="int32"))
    shape = jax.export.symbolic_shape("batch, 5, 5, 3")
    program = jax.export.export(call)(jax.ShapeDtypeStruct(shape, jnp.int8))
    for x in (X, X[:1]):
        np.testing.assert_array_equal(program.call(x), call(x))
