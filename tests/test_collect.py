"""Every convolution of a function is found, wherever JAX's transformations put it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_qconv import QTensor, prepack, qconv
from jax_qconv._collect import calls_of, problems_of

PACKED = prepack(np.ones((3, 3, 16, 16), np.float32)).bind(x_scale=1.0, out_scale=1.0)
X = jax.ShapeDtypeStruct((4, 8, 8, 16), jnp.int8)


def conv(x, **options):
    return qconv(QTensor(x, 1.0), PACKED, **options).values


def found(fn, *args, **kwargs):
    """Batch and count of each problem."""
    return {p.x_shape[0]: n for p, n in problems_of(fn, *args, **kwargs).items()}


def on_two_devices(x):
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("batch")
    return jax.shard_map(conv, mesh=mesh, in_specs=spec, out_specs=spec)(x)


@jax.custom_jvp
def with_jvp(x):
    return conv(x)


@jax.custom_vjp
def with_vjp(x):
    return conv(x)


with_jvp.defjvp(lambda primals, tangents: (with_jvp(*primals), tangents[0]))
with_vjp.defvjp(lambda x: (with_vjp(x), None), lambda _, g: (g,))


def branches(x):
    return jax.lax.cond(x.sum() > 0, conv, lambda x: conv(conv(x)), x)


def switch(x):
    return jax.lax.switch(x[0, 0, 0, 0].astype(int), [conv, lambda x: x, conv], x)


def loop(x):
    return jax.lax.while_loop(lambda x: conv(x).sum() > 0, conv, x)


def scan(x):
    return jax.lax.scan(lambda x, _: (conv(x), None), x, length=3)[0]


def fori(x):
    return jax.lax.fori_loop(0, 3, lambda _, x: conv(x), x)


def nested(x):
    return jax.jit(lambda x: jax.checkpoint(scan)(branches(x)))(x)


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (conv, {4: 1}),
        (jax.jit(conv), {4: 1}),
        (jax.jit(jax.jit(conv)), {4: 1}),
        (lambda x: conv(conv(x)), {4: 2}),
        (lambda x: conv(conv(x)[:1]), {4: 1, 1: 1}),
        (scan, {4: 1}),
        (fori, {4: 1}),
        (loop, {4: 2}),
        (branches, {4: 3}),
        (switch, {4: 2}),
        (jax.checkpoint(conv), {4: 1}),
        (with_jvp, {4: 1}),
        (with_vjp, {4: 1}),
        (on_two_devices, {2: 1}),
        (nested, {4: 4}),
        (lambda x: x, {}),
    ],
    ids=[
        "plain", "jit", "jit-jit", "twice", "two-batches", "scan", "fori", "while", "cond",
        "switch", "remat", "custom-jvp", "custom-vjp", "shard-map", "nested", "none",
    ],
)  # fmt: skip
def test_convolutions_are_found_inside(fn, expected):
    assert found(fn, X) == expected


def test_vmap_is_one_larger_convolution():
    x = jax.ShapeDtypeStruct((4, 5, 8, 8, 16), jnp.int8)
    assert found(jax.vmap(conv, in_axes=1, out_axes=1), x) == {20: 1}


def test_distinct_problems_come_once_in_the_order_of_the_program():
    def fn(x):
        return conv(conv(conv(x[:2])[:1])), conv(x[:2])

    assert list(found(fn, X).items()) == [(2, 2), (1, 2)]


def test_a_call_that_has_nothing_to_choose_is_passed_over():
    x = jnp.zeros(X.shape, X.dtype)
    assert found(functools.partial(conv, plan="cudnn:1"), x) == {}
    assert found(functools.partial(conv, implementation="reference"), x) == {}
    assert found(conv, x[:0]) == {}
    assert found(functools.partial(conv, implementation="cudnn"), x) == {4: 1}


def test_calls_are_told_apart_by_the_plan_that_they_name():
    def fn(x):
        return conv(x), conv(x, plan="cudnn:1"), conv(x, implementation="reference"), conv(x)

    assert {plan: n for (_, plan), n in calls_of(fn, X).items()} == {None: 2, "cudnn:1": 1}
    assert found(fn, X) == {4: 2}


def test_arguments_are_passed_as_they_are_written():
    def fn(x, *, packed, residual=None):
        return qconv(x, packed, residual=residual).values

    x = QTensor(X, jax.ShapeDtypeStruct((), jnp.float32))
    unbound = prepack(np.ones((3, 3, 16, 16), np.float32)).bind(
        x_scale=1.0, out_scale=1.0, residual_scale=1.0
    )
    (problem,) = problems_of(fn, x, packed=unbound, residual=x)
    assert problem.residual and problem.x_shape == X.shape


def test_nothing_runs_and_nothing_is_compiled():
    def fn(x):
        assert isinstance(x, jax.core.Tracer)
        return conv(x)

    huge = jax.ShapeDtypeStruct((2**17, 32, 32, 16), jnp.int8)  # 2 GiB if it were real
    with pytest.raises(ValueError, match=r"2\*\*31 - 1"):
        found(fn, huge)
    almost = jax.ShapeDtypeStruct((2**17 - 1, 32, 32, 16), jnp.int8)
    assert found(fn, almost) == {2**17 - 1: 1}
