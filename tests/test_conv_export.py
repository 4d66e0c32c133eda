"""Programs that outlive the process: `jax.export`."""

import functools
import importlib.util

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from jax_qconv import QTensor, _native, _plans, prepack, qconv

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


def test_one_program_for_cpus_and_tpus():
    packed = prepack(W)
    call = jax.jit(lambda x: qconv(x, packed, out_dtype="int32"))
    program = jax.export.export(call, platforms=["cpu", "tpu"])(X)
    np.testing.assert_array_equal(program.call(X), call(X))


@pytest.fixture
def cuda_extension(monkeypatch):
    """An extension that is there, and no GPU."""
    monkeypatch.setattr(_native, "extension", lambda: None)
    monkeypatch.setattr(_plans, "local_gpu", lambda: None)


def test_one_program_with_cudnn_for_gpus(cuda_extension):
    packed = prepack(W)
    call = jax.jit(lambda x: qconv(x, packed, out_dtype="int32"))
    # Its target is ours, and so is the promise that it stays.
    promised = [jax.export.DisabledSafetyCheck.custom_call(_native.TARGET)]
    export = jax.export.export(call, platforms=["cpu", "cuda"], disabled_checks=promised)
    program = export(X)
    assert _native.TARGET in program.mlir_module()
    np.testing.assert_array_equal(program.call(X), call(X))


# 1x1 kernels and few pixels are accumulated in another way than the rest.
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("platforms", [["cpu"], ["cpu", "tpu"]], ids="-".join)
def test_a_program_for_any_batch(platforms, kernel):
    packed = prepack(W[:kernel, :kernel], B)
    call = jax.jit(lambda x: qconv(x, packed.bind(x_scale=0.5, activation="relu")))
    shape = jax.export.symbolic_shape("batch, 5, 5, 3")
    export = jax.export.export(call, platforms=platforms)
    program = export(jax.ShapeDtypeStruct(shape, jnp.int8))
    for n in (1, 2, 7):
        x = RNG.integers(-128, 128, (n, 5, 5, 3), np.int8)
        np.testing.assert_array_equal(program.call(x), call(x))


def test_a_cuda_program_is_for_one_batch(cuda_extension):
    packed = prepack(W)
    shape = jax.export.symbolic_shape("batch, 5, 5, 3")
    x = jax.ShapeDtypeStruct(shape, jnp.int8)

    def export(implementation):
        call = functools.partial(qconv, packed=packed, out_dtype="int32")
        call = jax.jit(functools.partial(call, implementation=implementation))
        return jax.export.export(call, platforms=["cuda"])(x)

    with pytest.raises(ValueError, match=r"symbolic shape \(batch, 5, 5, 4\).* fixed batch"):
        export(None)
    assert _native.TARGET not in export("reference").mlir_module()
