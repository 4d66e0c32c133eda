"""A quantised network and its parameters are used as any function and pytree of JAX."""

from __future__ import annotations

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from float_nets import conv, images, quantized, sqnr, weights
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jax_qconv
from jax_qconv import quantize_model


def function(p, x):
    y = jax.nn.relu(conv(x, p["stem"]["kernel"]))
    y = jax.nn.relu(conv(y, p["body"]["kernel"]) + y)
    return y.mean((1, 2)) @ p["head"]["kernel"]


PARAMS = {
    "stem": {"kernel": weights(3, 3, 3, 16)},
    "body": {"kernel": weights(3, 3, 16, 16)},
    "head": {"kernel": weights(16, 10)},
}
X = images(n=8)


@pytest.fixture(scope="module")
def model():
    return quantized(function, PARAMS, X)


@pytest.fixture(scope="module")
def wanted(model):
    return np.asarray(jax.jit(model)(model.params, X))


@pytest.fixture
def mesh():
    return jax.make_mesh((4,), ("batch",), devices=jax.local_devices(backend="cpu"))


def replicated(mesh, tree):
    return jax.device_put(tree, NamedSharding(mesh, P()))


@pytest.mark.slow
def test_calibration_on_several_devices_gives_the_same_scales(mesh):
    x = jax.device_put(X, NamedSharding(mesh, P("batch")))
    for observer in ("absmax", "mse", "entropy"):
        options = {"observer": observer, "asymmetric": True, "progress": False}
        alone = quantize_model(function, PARAMS, [X], **options).calibration.quantisation
        spread = quantize_model(function, replicated(mesh, PARAMS), [x], **options)
        found = spread.calibration.quantisation
        assert found.keys() == alone.keys()
        for group, (scale, zero_point) in alone.items():
            np.testing.assert_array_equal(found[group][0], scale)
            np.testing.assert_array_equal(found[group][1], zero_point)


def test_a_batch_in_parts_gives_the_same_scales():
    whole = quantized(function, PARAMS, X, observer="mse").calibration.quantisation
    options = {"observer": "mse", "progress": False}
    parts = quantize_model(function, PARAMS, [X[4:], X[:4]], **options).calibration.quantisation
    for group, (scale, _) in whole.items():
        np.testing.assert_array_equal(parts[group][0], scale)


def test_batches_may_be_read_only_once():
    parts = (part for part in np.split(X, 4))
    made = quantize_model(function, PARAMS, parts, progress=False, bias_correction=True)
    assert sqnr(function(PARAMS, X), made(made.params, X)) > 25


def test_a_batch_over_several_devices_gives_the_same_bytes(model, wanted, mesh):
    run = jax.shard_map(
        model, mesh=mesh, in_specs=(P(), P("batch")), out_specs=P("batch"), check_vma=False
    )
    x = jax.device_put(X, NamedSharding(mesh, P("batch")))
    np.testing.assert_array_equal(jax.jit(run)(replicated(mesh, model.params), x), wanted)


def test_parameters_can_be_donated(model, wanted):
    step = jax.jit(lambda p, x: (p, model(p, x)), donate_argnums=0)
    params, got = step(jax.tree.map(jnp.copy, model.params), X)
    np.testing.assert_array_equal(got, wanted)
    np.testing.assert_array_equal(model(params, X), wanted)


def test_a_network_can_be_exported(model, wanted):
    pytest.importorskip("flatbuffers")
    run = jax.jit(lambda x: model(model.params, x))
    data = jax.export.export(run, platforms=["cpu"])(X).serialize()
    np.testing.assert_array_equal(jax.export.deserialize(data).call(X), wanted)


def test_parameters_can_be_saved_and_loaded(model, wanted, tmp_path):
    pytest.importorskip("safetensors")
    jax_qconv.save(tmp_path / "net", model.params, note="rules: none")
    params = jax_qconv.load(tmp_path / "net", like=model.params)
    np.testing.assert_array_equal(jax.jit(model)(params, X), wanted)


def test_parameters_can_be_packed_where_they_are_used(model, wanted):
    got = jax.jit(lambda p, x: model(model.pack(p), x))(PARAMS, X)
    np.testing.assert_array_equal(got, wanted)


def test_modules_of_equinox_are_quantised_as_they_are():
    eqx = pytest.importorskip("equinox")
    keys = jax.random.split(jax.random.key(0), 2)
    with jax.numpy_rank_promotion("allow"):
        net = eqx.nn.Sequential(
            [
                eqx.nn.Conv2d(3, 16, 3, padding=1, key=keys[0]),
                eqx.nn.Lambda(jax.nn.relu),
                eqx.nn.Conv2d(16, 8, 3, key=keys[1]),
            ]
        )
        arrays, static = eqx.partition(net, eqx.is_array)

        def run(arrays, x):
            return jax.vmap(eqx.combine(arrays, static))(x)

        x = images().transpose(0, 3, 1, 2)
        made = quantized(run, arrays, x)
        assert len(made.params["layers"]) == 2
        assert sqnr(jax.jit(run)(arrays, x), jax.jit(made)(made.params, x)) > 30


class TestWhatDoesNotFit:
    def test_parameters_that_lack_a_layer(self, model):
        params = model.params | {"layers": dict(model.params["layers"])}
        del params["layers"]["body"]
        with pytest.raises(
            ValueError, match=r"params\['layers'\]\['body'\].* is missing; take mod"
        ):
            model(params, X)

    def test_float_parameters_in_place_of_packed_ones(self, model):
        with pytest.raises(ValueError, match=r"is missing; take model.params"):
            model(PARAMS, X)

    def test_parameters_of_another_size(self, model):
        larger = PARAMS | {"head": {"kernel": weights(16, 12)}}
        made = quantized(function, larger, X)
        with pytest.raises(ValueError, match=r"params\['layers'\]\['head'\]"):
            model(made.params, X)
        with pytest.raises(
            ValueError,
            match=r"parameters\['head'\]\['kernel'\] is float32\[16, 12\], but should be "
            r"float32\[16, 10\]",
        ):
            model.pack(larger)

    def test_weights_that_are_not_finite_name_their_layer(self, model):
        broken = PARAMS | {"body": {"kernel": np.full((3, 3, 16, 16), np.nan, np.float32)}}
        with pytest.raises(ValueError, match="body has weights that are NaN or infinite"):
            model.pack(broken)

    def test_a_function_that_cannot_be_traced(self):
        def branching(p, x):
            return conv(x, p) if x.sum() > 0 else x

        with pytest.raises(jax.errors.TracerBoolConversionError):
            quantized(branching, weights(3, 3, 3, 8), X)

    def test_calibration_data_of_another_rank(self):
        with pytest.raises((TypeError, ValueError)):
            quantize_model(function, PARAMS, [X, X[0]], progress=False)

    def test_values_that_never_change_get_a_scale(self):
        x = np.full((2, 8, 8, 3), 0.5, np.float32)
        for asymmetric in (False, True):
            made = quantized(function, PARAMS, x, asymmetric=asymmetric)
            assert np.isfinite(made(made.params, x)).all()
