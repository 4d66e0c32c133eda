"""The ops between convolutions are ordinary JAX: sharded over the batch, and exported."""

import functools

import jax
import jax.export
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from test_ops_refused import OPS

from jax_qconv import QTensor, qadd

VALUES = np.random.default_rng(0).integers(-128, 128, (4, 6, 5, 8), np.int8)
X = QTensor(VALUES, np.float32(0.5), np.int32(3), 8)
# Those that take a second tensor of a fixed batch have their own tests below.
UNARY = [name for name in OPS if name not in ("qadd", "qmul", "qconcat")]


@pytest.mark.parametrize("op", UNARY)
def test_devices_work_on_their_share_of_the_batch(op):
    devices = jax.local_devices(backend="cpu")[:4]
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((4,), ("batch",), axis_types=auto, devices=devices)
    want = OPS[op](X)
    out = jax.eval_shape(OPS[op], X)
    sharded = jax.shard_map(
        OPS[op], mesh=mesh, in_specs=(X.specs(P("batch")),), out_specs=out.specs(P("batch"))
    )
    np.testing.assert_array_equal(jax.jit(sharded)(X).values, want.values)


@pytest.mark.parametrize("op", [*UNARY, "qadd"])
def test_the_batch_may_be_symbolic_in_an_export(op):
    call = OPS[op] if op != "qadd" else lambda x: qadd(x, x, out_scale=0.7)
    n = jax.export.symbolic_shape("n")[0]
    shapes = QTensor(jax.ShapeDtypeStruct((n, 6, 5, 8), np.int8), np.float32(0.5), None, 8)
    values = functools.partial(lambda v: call(QTensor(v, 0.5, 3, 8)).values)
    exported = jax.export.export(jax.jit(values))(shapes.values)
    np.testing.assert_array_equal(exported.call(VALUES), values(VALUES))
