"""Convolutions on several devices: the same bytes, and no data between them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_qconv import QTensor, prepack, qconv, quantize

RNG = np.random.default_rng(0)
X = RNG.integers(-128, 128, (8, 8, 5, 8), np.int8)
W = RNG.normal(size=(3, 3, 8, 8)).astype(np.float32)
B = RNG.normal(size=8).astype(np.float32)
COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
BATCH, CHANNELS = P("devices"), P(None, None, None, "devices")


@pytest.fixture(scope="module", params=[AxisType.Auto, AxisType.Explicit], ids=str)
def mesh(request):
    devices = jax.devices("cpu")
    assert len(devices) >= 4, "conftest asks for four"
    return jax.make_mesh((4,), ("devices",), axis_types=(request.param,), devices=devices[:4])


@pytest.fixture(scope="module")
def packed():
    return prepack(W, B)


@pytest.fixture(scope="module")
def x():
    return QTensor(jnp.asarray(X), jnp.float32(0.5))


def put(mesh, tree, specs):
    """The arrays on the devices of the mesh; ``specs`` is one for all, or a tree of them."""
    is_spec = {"is_leaf": lambda v: isinstance(v, P)}
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, **is_spec)
    return jax.device_put(tree, shardings)


def net(packed, x):
    """Outputs of all kinds, a bound and an unbound pack, a residual and an activation."""
    y = qconv(x, packed, out_scale=2.0, activation="relu6")
    bound = packed.bind(x_scale=y.scale, out_scale=1.0, residual_scale=x.scale)
    z = qconv(y, bound, residual=x)
    return z, qconv(z, packed), qconv(z, prepack(W), out_dtype="int32")


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def collectives_of(jitted, *args):
    text = jitted.lower(*args).compile().as_text()
    return [name for name in COLLECTIVES if name in text]


@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map_over_the_batch(mesh, packed, x, check_vma):
    specs = x.specs(BATCH)
    jitted = jax.jit(
        jax.shard_map(
            net,
            mesh=mesh,
            in_specs=(P(), specs),
            out_specs=(specs, BATCH, BATCH),
            check_vma=check_vma,
        )
    )
    args = put(mesh, packed, P()), put(mesh, x, specs)
    found = jitted(*args)
    assert_same(found, net(packed, x))
    for out in (found[0].values, *found[1:]):
        assert [shard.data.shape[0] for shard in out.addressable_shards] == [2] * 4
    assert collectives_of(jitted, *args) == []


def test_shard_map_of_floats(mesh, packed):
    def call(x):
        return qconv(quantize(x, 0.01), packed)

    x = RNG.normal(size=X.shape).astype(np.float32)
    sharded = jax.shard_map(call, mesh=mesh, in_specs=BATCH, out_specs=BATCH)
    assert_same(jax.jit(sharded)(put(mesh, x, BATCH)), call(x))


def test_shard_map_outside_of_jit(mesh, packed, x):
    sharded = jax.shard_map(
        functools.partial(qconv, packed=packed),
        mesh=mesh,
        in_specs=(x.specs(BATCH),),
        out_specs=BATCH,
    )
    assert_same(sharded(put(mesh, x, x.specs(BATCH))), qconv(x, packed))


def test_vmap_inside_shard_map(mesh, packed, x):
    def call(x):
        return jax.vmap(lambda v: qconv(QTensor(v[None], x.scale), packed)[0])(x.values)

    specs = x.specs(BATCH)
    sharded = jax.shard_map(call, mesh=mesh, in_specs=(specs,), out_specs=BATCH)
    assert_same(jax.jit(sharded)(put(mesh, x, specs)), qconv(x, packed))


def test_shard_map_over_output_channels(mesh, packed, x):
    def shard(k):
        return prepack(W[..., k : k + 2], B[k : k + 2])

    def call(shards, x):
        return qconv(x, jax.tree.map(lambda v: v[0], shards))

    sharded = jax.shard_map(call, mesh=mesh, in_specs=(BATCH, P()), out_specs=CHANNELS)
    shards = jax.tree.map(lambda *v: jnp.stack(v), *map(shard, range(0, 8, 2)))
    args = put(mesh, shards, BATCH), put(mesh, x, P())
    assert_same(jax.jit(sharded)(*args), qconv(x, packed))
    assert collectives_of(jax.jit(sharded), *args) == []


@pytest.mark.parametrize("name", ["residual", "x_scale"])
def test_what_varies_between_devices_is_not_taken_for_replicated(mesh, packed, x, name):
    def call(x, varying):
        if name == "residual":
            return qconv(x, packed, residual=QTensor(varying, x.scale))
        return qconv(QTensor(x.values, varying[0, 0, 0, 0].astype(jnp.float32)), packed)

    x = QTensor(x.values[:1], x.scale)
    varying = put(mesh, np.abs(X[:4]), BATCH)
    sharded = jax.shard_map(call, mesh=mesh, in_specs=(P(), BATCH), out_specs=P())
    with pytest.raises(ValueError, match="out_specs"):
        jax.jit(sharded)(put(mesh, x, P()), varying)


@pytest.mark.parametrize("spec", [BATCH, P()], ids=["batch", "replicated"])
def test_plain_jit_of_a_sharded_batch(mesh, packed, x, spec):
    args = put(mesh, packed, P()), put(mesh, x, x.specs(spec))
    found = jax.jit(net)(*args)
    assert_same(found, net(packed, x))
    shard = found[0].values.addressable_shards[0].data
    assert shard.shape[0] == (2 if spec == BATCH else 8)
    assert collectives_of(jax.jit(net), *args) == []


def test_plain_jit_of_sharded_rows(mesh, packed, x):
    # Halos are XLA's job: right, if not free.
    specs = x.specs(P(None, "devices"))
    args = put(mesh, packed, P()), put(mesh, x, specs)
    assert_same(jax.jit(net)(*args), net(packed, x))


@pytest.mark.parametrize("mesh", [AxisType.Auto], indirect=True, ids=str)
def test_plain_jit_of_sharded_channels(mesh, packed, x):
    args = put(mesh, packed, BATCH), put(mesh, x, x.specs(CHANNELS))
    assert_same(jax.jit(net)(*args), net(packed, x))


@pytest.mark.parametrize("mesh", [AxisType.Explicit], indirect=True, ids=str)
@pytest.mark.parametrize("name", ["x", "packed"])
def test_explicitly_sharded_channels_are_refused(mesh, packed, x, name):
    if name == "x":
        x = put(mesh, x, x.specs(CHANNELS))
    else:
        packed = put(mesh, packed, BATCH)
    for call in (qconv, jax.jit(qconv)):
        with pytest.raises(ValueError, match=f"^{name} is sharded as .* only N.* of x may be"):
            call(x, packed)


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "pack"),
    [
        ((8, 16, 16, 3), (7, 7, 3, 8), {"strides": 2}),
        ((8, 5, 6, 8), (3, 3, 8, 8), {"strides": 2, "transpose": True}),
        ((8, 20, 8), (3, 8, 8), {}),
        ((8, 4, 5, 4, 8), (3, 3, 3, 8, 8), {}),
        ((8, 6, 6, 8), (3, 3, 1, 8), {"groups": 8}),
    ],
    ids=["stem", "transposed", "1-D", "3-D", "depthwise"],
)
def test_other_kinds_of_convolution_over_the_batch(mesh, x_shape, w_shape, pack):
    rng = np.random.default_rng(0)
    packed = prepack(rng.normal(size=w_shape).astype(np.float32), **pack)
    x = QTensor(jnp.asarray(rng.integers(-128, 128, x_shape, np.int8)), jnp.float32(0.5))
    out = qconv(x, packed, out_scale=2.0)

    def call(x, residual, packed):
        return qconv(x, packed, residual=residual, out_scale=2.0)

    residual = QTensor(out.values, jnp.float32(0.25), None, out.channels)
    args = [put(mesh, q, q.specs(BATCH)) for q in (x, residual)]
    assert_same(jax.jit(call)(*args, put(mesh, packed, P())), call(x, residual, packed))


@pytest.mark.parametrize("mesh", [AxisType.Explicit], indirect=True, ids=str)
def test_explicitly_sharded_pixels_of_a_recast_convolution_are_refused(mesh):
    packed = prepack(np.ones((7, 7, 3, 8), np.float32), strides=2, space_to_depth=True)
    x = QTensor(jnp.zeros((2, 16, 16, 3), jnp.int8), jnp.float32(0.5))
    x = put(mesh, x, x.specs(P(None, "devices")))
    with pytest.raises(ValueError, match=r"x is sharded as .* only N of x may be.*shard_map"):
        qconv(x, packed)


def test_replicated_scales_are_concrete(mesh, packed, x):
    bound = put(mesh, packed.bind(x_scale=x.scale), P())
    replicated = put(mesh, x, P())
    assert_same(qconv(replicated, bound), qconv(x, packed))
    with pytest.raises(ValueError, match="bound to another x's scale"):
        qconv(QTensor(replicated.values, replicated.scale * 2), bound)
