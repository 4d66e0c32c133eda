"""`qconv` under the transformations that don't change values: jit, scan, cond, remat, AOT."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_qconv import Activation, EngineUnavailableError, QTensor, prepack, qconv, quantize

RNG = np.random.default_rng(0)
X = RNG.integers(-128, 128, (2, 5, 5, 8), np.int8)
R = RNG.integers(-128, 128, (2, 5, 5, 8), np.int8)
W = RNG.normal(size=(3, 3, 8, 8)).astype(np.float32)
B = RNG.normal(size=8).astype(np.float32)
SCALE = 0.5


@pytest.fixture(scope="module")
def packed():
    return prepack(W, B)


@pytest.fixture(scope="module")
def bound(packed):
    return packed.bind(x_scale=SCALE, out_scale=2.0, activation="relu")


@pytest.fixture(scope="module")
def expected(bound):
    """What the bound pack gives outside of any transformation."""
    return qconv(QTensor(X, SCALE), bound)


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def counted(function):
    """The function jitted, and the list that grows by one at each trace."""
    traces = []

    @jax.jit
    @functools.wraps(function)
    def traced(*args):
        traces.append(None)
        return function(*args)

    return traced, traces


@pytest.mark.parametrize(
    "activation", ["none", "relu", "relu6", "leaky_relu", Activation.clip(-2, 3)], ids=str
)
def test_new_scales_and_biases_recompile_nothing(activation):
    def call(x_scale, out_scale, residual_scale, weight_scale, bias):
        pack = prepack(W.astype(np.int8), bias, weight_scale=weight_scale)
        residual = QTensor(R, residual_scale)
        x = QTensor(X, x_scale)
        return qconv(x, pack, residual=residual, out_scale=out_scale, activation=activation)

    jitted, traces = counted(call)
    first = (0.5, 0.25, 0.5, np.full(8, 0.5, np.float32), B)
    outputs = [np.asarray(jitted(*first).values)]
    for changed in range(5):
        args = [a * 1.5 if i == changed else a for i, a in enumerate(first)]
        out = jitted(*args)
        assert_same(out, call(*args))
        outputs.append(np.asarray(out.values))
    assert len(traces) == 1
    assert jitted._cache_size() == 1
    # Each change changed the result: nothing was frozen into the program.
    assert all((outputs[0] != other).any() for other in outputs[1:])


def test_new_scales_of_a_bound_pack_recompile_nothing(packed):
    jitted, traces = counted(qconv)
    outputs = set()
    for x_scale, out_scale in [(0.5, 2.0), (0.25, 2.0), (0.25, 0.5)]:
        pack = packed.bind(x_scale=x_scale, out_scale=out_scale, activation="relu6")
        out = jitted(QTensor(X, x_scale), pack)
        assert_same(out, qconv(QTensor(X, x_scale), pack))
        outputs.add(np.asarray(out.values).tobytes())
    assert len(outputs) == 3
    assert len(traces) == jitted._cache_size() == 1


def test_eager_calls_of_the_same_problem_compile_once(packed):
    from jax_qconv._primitive import _jitted

    qconv(QTensor(X, 0.5), packed, out_scale=2.0)
    before = _jitted._cache_size()
    qconv(QTensor(R, 0.25), prepack(W[::-1], -B), out_scale=3.0)
    assert _jitted._cache_size() == before
    qconv(QTensor(X[:1], 0.5), packed, out_scale=2.0)
    assert _jitted._cache_size() == before + 1


def test_packs_are_arguments_and_results(expected):
    @jax.jit
    def load(weight, bias, x_scale):
        return prepack(weight, bias).bind(x_scale=x_scale, out_scale=2.0, activation="relu")

    pack = load(W, B, SCALE)
    assert_same(jax.jit(qconv)(QTensor(X, SCALE), pack), expected)
    assert_same(jax.jit(lambda p: p)(pack), pack)


def test_from_floats_to_floats_in_one_program(packed):
    def call(x, weight, bias):
        return qconv(quantize(x, SCALE), prepack(weight, bias))

    x = RNG.normal(size=X.shape).astype(np.float32)
    assert_same(jax.jit(call)(x, W, B), qconv(quantize(x, SCALE), packed))


def test_a_bound_pack_may_be_a_constant_of_the_program(bound, expected):
    assert_same(jax.jit(lambda x: qconv(QTensor(x, SCALE), bound))(X), expected)


def test_scan_over_stacked_packs():
    weights = RNG.normal(size=(3, 3, 3, 8, 8)).astype(np.float32)

    def bind(weight):
        return prepack(weight).bind(x_scale=1.0, out_scale=1.0, activation="relu")

    def layer(x, pack):
        return qconv(x, pack), None

    x = QTensor(X, jnp.float32(1))
    scanned, _ = jax.jit(lambda x, packs: jax.lax.scan(layer, x, packs))(x, jax.vmap(bind)(weights))
    for weight in weights:
        x = qconv(x, bind(weight))
    assert np.asarray(x.values).any()
    assert_same(scanned, x)


def test_fori_loop_carries_a_qtensor(bound):
    pack = bound.bind(x_scale=1.0, out_scale=1.0)
    x = QTensor(X, jnp.float32(1))
    looped = jax.lax.fori_loop(0, 2, lambda _, q: qconv(q, pack), x)
    assert_same(looped, qconv(qconv(x, pack), pack))


@pytest.mark.parametrize("choice", [False, True])
def test_cond(bound, expected, choice):
    x = QTensor(X, jnp.float32(SCALE))

    @jax.jit
    def call(choice):
        return jax.lax.cond(
            choice,
            lambda: qconv(x, bound),
            lambda: QTensor(jnp.zeros_like(expected.values), expected.scale, None, 8),
        )

    zeros = QTensor(np.zeros_like(expected.values), expected.scale, None, 8)
    assert_same(call(choice), expected if choice else zeros)


def test_remat(bound, expected):
    assert_same(jax.jit(jax.checkpoint(qconv))(QTensor(X, jnp.float32(SCALE)), bound), expected)


def test_the_residual_can_be_donated(packed):
    @functools.partial(jax.jit, donate_argnames="residual")
    def call(x, residual):
        return qconv(QTensor(x, SCALE), packed, residual=QTensor(residual, 0.25), out_scale=2.0)

    # Copied: donation may not write into an array that the test still needs.
    residual = jnp.array(R)
    out = call(X, residual)
    assert residual.is_deleted()
    assert_same(out, qconv(QTensor(X, SCALE), packed, residual=QTensor(R, 0.25), out_scale=2.0))


def test_without_jit(bound, expected):
    with jax.disable_jit():
        found = jax.jit(qconv)(QTensor(X, SCALE), bound)
        mapped = jax.vmap(lambda x: qconv(QTensor(x[None], SCALE), bound).values)(X)
    assert_same(found, expected)
    np.testing.assert_array_equal(mapped[:, 0], expected.values)


def test_ahead_of_time(bound, expected):
    q = QTensor(X, jnp.float32(SCALE))
    shapes = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), (q, bound))
    compiled = jax.jit(qconv).lower(*shapes).compile()
    assert_same(compiled(q, bound), expected)


def test_no_tracer_leaks(bound, expected):
    with jax.checking_leaks():
        found = jax.jit(qconv)(QTensor(X, SCALE), bound)
    assert_same(found, expected)


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_the_reference_can_be_named(bound, expected, jit):
    call = functools.partial(qconv, implementation="reference")
    assert_same((jax.jit(call) if jit else call)(QTensor(X, SCALE), bound), expected)


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize(
    ("engine", "named"),
    [
        ({"implementation": "cudnn"}, "implementation='cudnn'"),
        ({"plan": "cudnn:4:cfg=26"}, "plan='cudnn:4:cfg=26'"),
        ({"plan": "cudnn:4:cfg=26", "implementation": "cudnn"}, "plan='cudnn:4:cfg=26'"),
    ],
    ids=["implementation", "plan", "both"],
)
def test_what_is_named_is_used_or_refused(bound, expected, engine, named, jit):
    call = functools.partial(qconv, **engine)
    with pytest.raises(EngineUnavailableError, match="lowered for cpu") as caught:
        (jax.jit(call) if jit else call)(QTensor(X, SCALE), bound)
    assert named in str(caught.value)
    assert "implementation=None" in str(caught.value)
    assert_same(qconv(QTensor(X, SCALE), bound), expected)


def test_what_is_named_is_not_refused_before_lowering(bound):
    # Tracing knows no platform: the same function may be lowered for a GPU.
    call = functools.partial(qconv, implementation="cudnn", plan="cudnn:4:cfg=26")
    out = jax.eval_shape(call, QTensor(X, SCALE), bound)
    assert (out.shape, out.values.dtype) == (X.shape, jnp.int8)
