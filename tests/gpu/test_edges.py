"""Rounding, saturation, special floats and padded channels, each shown by itself."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import Case, Geometry

import jax_qconv as q

OUT_DTYPES = ["int8", "float32", "bfloat16", "float16"]


def through_one_weight(values, *, m=1.0, b=0.0, out_dtype="int8", activation="none"):
    """y of each value on cuDNN, with given constants: a 1x1 convolution with one weight of 1."""
    values = np.asarray(values, np.int8)
    x = q.QTensor(np.zeros((1, 1, len(values), 64), np.int8), np.float32(1))
    x.values[0, 0, :, 0] = values
    weight = np.zeros((1, 1, 64, 64), np.int8)
    weight[0, 0, 0, :] = 1
    packed = q.prepack(weight, weight_scale=1.0).bind(
        x_scale=1.0,
        out_scale=1.0 if out_dtype == "int8" else None,
        out_dtype=out_dtype,
        activation=activation,
    )
    spread = lambda v: jnp.broadcast_to(jnp.asarray(v, jnp.float32), (64,))  # noqa: E731
    constants = dataclasses.replace(packed.binding.constants, m=spread(m), b=spread(b))
    binding = dataclasses.replace(packed.binding, constants=constants)
    packed = dataclasses.replace(packed, binding=binding)
    out = [q.qconv(x, packed, implementation=name) for name in ("cudnn", "reference")]
    cudnn, reference = (np.asarray(o.values if out_dtype == "int8" else o)[0, 0] for o in out)
    return cudnn, reference


def test_ties_go_to_even(account):
    values = np.arange(-127, 128, 2)
    got, reference = through_one_weight(values, m=0.5)
    expected = np.repeat(np.rint(values / 2).astype(np.int8)[:, None], 64, 1)
    assert expected[63, 0] == 0 and expected[64, 0] == 0 and expected[65, 0] == 2  # -0.5 0.5 1.5
    account.same(got, expected)
    account.same(reference, expected)


def test_results_saturate_on_both_sides(account):
    got, reference = through_one_weight([-128, -100, -64, 64, 100, 127], m=2.0)
    expected = np.array([-128, -128, -128, 127, 127, 127], np.int8)[:, None].repeat(64, 1)
    account.same(got, expected)
    account.same(reference, expected)


def test_sums_past_2_to_the_24_are_exact(account):
    geometry = Geometry((2, 8, 8, 512), (64, 3, 3, 512), padding="SAME", pads="SAME")
    case = Case(geometry, values="large", out_dtype="float32")
    assert np.abs(oracle.accumulate(case.arguments["x"], case.arguments["w"])).max() > 2**24
    account.same(case.run(jit=True, implementation="cudnn"), case.expected())


@pytest.mark.parametrize("activation", ["none", "relu", "relu6", "leaky_relu"])
@pytest.mark.parametrize("out_dtype", OUT_DTYPES)
def test_infinities_and_nan_are_as_documented(out_dtype, activation, account):
    b = np.zeros(64, np.float32)
    b[:6] = np.nan, np.inf, -np.inf, 3e38, -3e38, 70000
    got, reference = through_one_weight(
        [1, -1, 100], b=b, out_dtype=out_dtype, activation=activation
    )
    nan = np.isnan(reference.astype(np.float32))
    # The payload of a NaN is nobody's business.
    assert (np.isnan(got.astype(np.float32)) == nan).all()
    account.same(np.where(nan, 0, got), np.where(nan, 0, reference))


@pytest.mark.parametrize("out_dtype", OUT_DTYPES)
def test_smallest_normal_constants_are_exact(out_dtype, account):
    tiny = np.float32(2.0**-126)
    got, reference = through_one_weight([1, 2, 127, -128], m=tiny, out_dtype=out_dtype)
    account.same(got, reference)


def test_what_padded_channels_hold_is_killed_by_zero_weights(account):
    geometry = Geometry((2, 9, 9, 35), (70, 3, 3, 35), padding="SAME", pads="SAME")
    case = Case(geometry)
    data = case.arguments
    x = q.quantize(jnp.zeros(geometry.x_shape), 1.0).values
    poisoned = np.random.default_rng(0).integers(-128, 128, x.shape, np.int8)
    poisoned[..., :35] = data["x"]
    packed = q.prepack(
        data["w"], data["bias"], weight_scale=data["w_scale"], layout="OHWI", padding="SAME"
    ).bind(x_scale=data["x_scale"], out_scale=data["out_scale"])
    out = q.qconv(q.QTensor(jnp.asarray(poisoned), data["x_scale"], None, 35), packed)
    account.same(out.unpadded(), case.expected())


def test_an_empty_batch_is_empty():
    packed = q.prepack(jnp.ones((3, 3, 64, 64)))
    x = q.QTensor(jnp.zeros((0, 8, 8, 64), jnp.int8), jnp.float32(1))
    assert q.qconv(x, packed).shape == (0, 8, 8, 64)


@pytest.mark.parametrize("implementation", ["cudnn", "reference"])
def test_prepack_and_bind_give_the_same_bytes_inside_and_outside_jit(implementation, account):
    rng = np.random.default_rng(0)
    weight = jnp.asarray(rng.normal(size=(3, 3, 64, 96)), jnp.float32)
    bias = jnp.asarray(rng.normal(size=96), jnp.float32)
    x = jnp.asarray(rng.normal(size=(2, 9, 9, 64)), jnp.float32)

    def run(x, weight, bias, x_scale, out_scale):
        packed = q.prepack(weight, bias)
        out = q.qconv(
            q.quantize(x, x_scale), packed, out_scale=out_scale, implementation=implementation
        )
        return out.unpadded()

    scales = jnp.float32(0.031), jnp.float32(0.77)
    eager = run(x, weight, bias, *scales)
    account.same(jax.jit(run)(x, weight, bias, *scales), np.asarray(eager))
    cpu = jax.devices("cpu")[0]
    if implementation == "reference":
        with jax.default_device(cpu):
            account.same(eager, np.asarray(run(*jax.device_put((x, weight, bias, *scales), cpu))))
