"""The ops between convolutions are ordinary JAX: sharded over the batch, and exported."""

import dataclasses
import functools

import jax
import jax.export
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from test_ops_refused import OPS

from jax_qconv import (
    QTensor,
    qadaptive_avg_pool,
    qadd,
    qconcat,
    qmul,
    qpad,
    qpixel_unshuffle,
    qresize,
)

VALUES = np.random.default_rng(0).integers(-128, 128, (4, 6, 5, 8), np.int8)
X = QTensor(VALUES, np.float32(0.5), np.int32(3), 8)
# Those that take a second tensor of a fixed batch have their own tests below.
UNARY = [name for name in OPS if name not in ("qadd", "qmul", "qconcat")]


def make_mesh(axis_type, shape=(4,), names=("batch",)):
    devices = jax.local_devices(backend="cpu")[:4]
    return jax.make_mesh(shape, names, axis_types=(axis_type,) * len(names), devices=devices)


def on(mesh, q, spec):
    values = jax.device_put(q.values, jax.NamedSharding(mesh, spec))
    return dataclasses.replace(q, values=values)


@pytest.mark.parametrize("op", UNARY)
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_devices_work_on_their_share_of_the_batch(op, axis_type):
    mesh = make_mesh(axis_type)
    want = OPS[op](X)
    out = jax.eval_shape(OPS[op], X)
    sharded = jax.shard_map(
        OPS[op], mesh=mesh, in_specs=(X.specs(P("batch")),), out_specs=out.specs(P("batch"))
    )
    np.testing.assert_array_equal(jax.jit(sharded)(on(mesh, X, P("batch"))).values, want.values)


PAIRS = {
    "qconcat": lambda x: qconcat([x, x]),
    "qconcat-scale": lambda x: qconcat([x, x], out_scale=0.7),
    "qconcat-batch": lambda x: qconcat([x, x], axis=1, out_scale=0.7),
    "qadd": lambda x: qadd(x, x, out_scale=0.7),
    "qmul": lambda x: qmul(x, x, out_scale=0.7),
    "qresize-nearest": lambda x: qresize(x, (7, 9)),
    "qadaptive_avg_pool-unequal": lambda x: qadaptive_avg_pool(x, (4, 3)),
    "qpixel_unshuffle-2": lambda x: qpixel_unshuffle(qpad(x, ((0, 0), (0, 1))), 2),
}


@pytest.mark.parametrize("op", [*UNARY, *PAIRS])
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("traced", [False, True], ids=["constant", "traced"])
def test_a_batch_that_is_sharded_stays_so(op, axis_type, traced):
    call = {**OPS, **PAIRS}[op]
    want = call(X)
    mesh = make_mesh(axis_type)
    x = on(mesh, X, P("batch"))
    with jax.set_mesh(mesh):
        if traced:
            got = jax.jit(call)(x).values
        else:
            got = jax.jit(lambda v: call(dataclasses.replace(X, values=v)).values)(x.values)
    np.testing.assert_array_equal(got, want.values)
    assert got.sharding.spec[0] == "batch"


@pytest.mark.parametrize("op", [*UNARY, *PAIRS])
def test_a_sharded_batch_needs_no_jit(op):
    mesh = make_mesh(AxisType.Explicit)
    call = {**OPS, **PAIRS}[op]
    got = call(on(mesh, X, P("batch"))).values
    np.testing.assert_array_equal(got, call(X).values)
    assert got.sharding.spec[0] == "batch"


@pytest.mark.parametrize("op", ["qpixel_shuffle", "qpixel_unshuffle", "qchannel_shuffle"])
@pytest.mark.parametrize("spec", [P(None, "batch"), P(None, None, None, "batch")], ids=str)
def test_explicit_shardings_of_axes_that_are_taken_apart_are_refused(op, spec):
    x = on(make_mesh(AxisType.Explicit), QTensor(VALUES[:, :4], np.float32(0.5)), spec)
    if op == "qchannel_shuffle" and len(spec) == 2:
        assert OPS[op](x).values.sharding.spec[1] == "batch"
        return
    with pytest.raises(ValueError, match=r"x is sharded as .*, but .* jax.shard_map"):
        OPS[op](x)


@pytest.mark.parametrize("op", [*UNARY, "qadd"])
def test_the_batch_may_be_symbolic_in_an_export(op):
    call = OPS[op] if op != "qadd" else lambda x: qadd(x, x, out_scale=0.7)
    n = jax.export.symbolic_shape("n")[0]
    shapes = QTensor(jax.ShapeDtypeStruct((n, 6, 5, 8), np.int8), np.float32(0.5), None, 8)
    values = functools.partial(lambda v: call(QTensor(v, 0.5, 3, 8)).values)
    exported = jax.export.export(jax.jit(values))(shapes.values)
    np.testing.assert_array_equal(exported.call(VALUES), values(VALUES))
