"""Observers of calibration: the same states for every split, jitted or not, sharded or not."""

import functools
import math

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from effort import examples
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from observing import BIN, GAUSSIAN, found, jitted, seen

from jax_qconv import MSE, AbsMax, Entropy, MinMax, MovingAverage, Observer, Percentile
from jax_qconv._observers import OBSERVERS, as_observer
from jax_qconv._range import scale_of

EXACT = [AbsMax(), MinMax(), Percentile(99.0), Entropy(), MSE()]
ALL = [*EXACT, MovingAverage()]


def name_of(observer):
    return type(observer).__name__


every = pytest.mark.parametrize("observer", ALL, ids=name_of)
exact = pytest.mark.parametrize("observer", EXACT, ids=name_of)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def numbers(seed, size):
    """Of all magnitudes, with zeros, denormals, NaN and infinities among them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=size) * 2.0 ** rng.integers(-40, 40, size)
    special = [0, -0.0, 1e-40, -1e-44, np.nan, np.inf, -np.inf, 3e38]
    return np.where(rng.random(size) < 0.2, rng.choice(special, size), x).astype(np.float32)


@exact
@pytest.mark.parametrize("channels", [None, 4])
@examples(8)
@hypothesis.given(st.integers(0, 2**32 - 1))
def test_every_split_and_order_gives_the_same_state(observer, channels, seed):
    update, merge, _ = jitted(observer)
    rows = numbers(seed, (6, 2, 4))
    whole = update(observer.init(channels), rows.reshape(12, 4))
    order = np.random.default_rng(seed).permutation(6)
    assert_same(whole, seen(observer, *rows[order], channels=channels))
    halves = (seen(observer, *rows[order[i::2]], channels=channels) for i in range(2))
    assert_same(whole, merge(*halves))
    assert_same(whole, merge(observer.init(channels), whole))


@every
@examples(5)
@hypothesis.given(st.integers(0, 2**32 - 1))
def test_each_channel_is_a_tensor_of_its_own(observer, seed):
    x = numbers(seed, (50, 3))
    together = found(observer, x, channels=3)
    for channel in range(3):
        alone = found(observer, x[:, channel])
        assert_same(jax.tree.map(lambda v, c=channel: v[c], together), alone)


@every
def test_jit_changes_nothing(observer):
    x = numbers(1, (50, 3))
    state = observer.update(observer.update(observer.init(3), x), x * np.float32(0.3))
    assert_same(state, seen(observer, x, x * np.float32(0.3), channels=3))
    assert_same(observer.finish(state), jitted(observer)[2](state))
    assert_same(observer.merge(state, state), jitted(observer)[1](state, state))


@every
def test_scan_carries_a_state(observer):
    x = GAUSSIAN[:120].reshape(4, 10, 3)
    scanned, _ = jax.lax.scan(lambda s, v: (observer.update(s, v), None), observer.init(), x)
    assert_same(scanned, seen(observer, *x))


@every
@pytest.mark.parametrize(
    ("axis_type", "channels"), [(AxisType.Auto, None), (AxisType.Auto, 8), (AxisType.Explicit, 8)]
)
def test_a_sharded_batch_gives_the_state_of_one_device(observer, axis_type, channels):
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(axis_type,), devices=jax.devices("cpu")[:4])
    batches = numbers(2, (2, 8, 5, 8))
    sharded = [jax.device_put(x, NamedSharding(mesh, P("batch"))) for x in batches]
    state = seen(observer, *sharded, channels=channels)
    assert_same(state, seen(observer, *batches, channels=channels))
    assert_same(observer.finish(state), found(observer, *batches, channels=channels))
    text = jitted(observer)[0].lower(observer.init(channels), sharded[0]).compile().as_text()
    assert "all-gather" not in text


@exact
def test_states_of_devices_merge_to_that_of_one(observer):
    mesh = jax.make_mesh(
        (4,), ("batch",), axis_types=(AxisType.Auto,), devices=jax.devices("cpu")[:4]
    )
    x = numbers(3, (8, 5, 4))

    def each(x):
        return jax.tree.map(lambda v: v[None], observer.update(observer.init(), x))

    states = jax.jit(jax.shard_map(each, mesh=mesh, in_specs=P("batch"), out_specs=P("batch")))(x)
    parts = [jax.tree.map(lambda v, i=i: np.asarray(v)[i], states) for i in range(4)]
    assert_same(functools.reduce(observer.merge, parts), seen(observer, x))


@every
def test_what_is_not_finite_is_counted_and_left_out(observer):
    x = GAUSSIAN[:999].copy()
    bad = x.copy()
    bad[[3, 48, 700]] = np.nan, np.inf, -np.inf
    clean, dirty = found(observer, np.delete(x, [3, 48, 700])), found(observer, bad)
    assert (int(clean.not_finite), int(dirty.not_finite)) == (0, 3)
    assert_same([clean.absmax, clean.lower, clean.upper], [dirty.absmax, dirty.lower, dirty.upper])
    per_channel = found(observer, bad.reshape(-1, 3), channels=3)
    assert per_channel.not_finite.tolist() == [2, 1, 0]


@every
def test_nothing_and_nothing_finite_are_empty(observer):
    nan = np.full(5, np.nan, np.float32)
    for range_ in (found(observer), found(observer, np.zeros((0, 3), np.float32)),
                   found(observer, nan, nan)):  # fmt: skip
        assert bool(range_.empty)
        assert (range_.absmax, range_.lower, range_.upper) == (0, 0, 0)
        assert scale_of(range_)[0] == np.float32(1 / 127)
    assert not found(observer, nan, np.ones(1, np.float32), nan).empty


@every
@pytest.mark.parametrize("value", [5.0, -5.0, 1e-30, 3.4e38])
def test_a_constant_is_its_own_range(observer, value):
    range_ = found(observer, np.full((3, 4), value, np.float32))
    assert not range_.empty
    # Entropy takes numbers to be spread over their bin.
    rel = BIN if isinstance(observer, Entropy) else 0
    assert float(range_.absmax) == pytest.approx(float(np.float32(abs(value))), rel=rel, abs=0)
    if not isinstance(observer, AbsMax):
        for end in (range_.lower, range_.upper):
            assert float(end) == pytest.approx(float(np.float32(value)), rel=rel, abs=0)


@every
def test_zeros_have_a_positive_scale(observer):
    range_ = found(observer, np.array([0, -0.0, 1e-40, -1e-40], np.float32))
    assert not range_.empty
    for asymmetric in (False, True):
        assert scale_of(range_, asymmetric=asymmetric)[0] == np.float32(1 / 127)


@every
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_short_floats_are_what_they_are_in_float32(observer, dtype):
    x = jnp.asarray(GAUSSIAN[:300]).astype(dtype)
    assert_same(seen(observer, x), seen(observer, x.astype(jnp.float32)))


def test_counts_go_beyond_a_word():
    observer = Percentile(50)
    state = seen(observer, np.repeat(np.float32([1, 4]), [3, 1]))
    for _ in range(40):
        state = observer.merge(state, state)
    both = np.asarray(state.low, np.uint64) + (np.asarray(state.high, np.uint64) << np.uint64(32))
    assert sorted(both[both > 0]) == [2**40, 3 * 2**40]
    assert 1 <= float(observer.finish(state).absmax) <= 1 + BIN


def test_the_count_of_what_is_not_finite_stops():
    state = seen(AbsMax(), np.float32([np.nan, np.inf]))
    for _ in range(40):
        state = AbsMax().merge(state, state)
    assert int(state.not_finite) == 2**32 - 1


def test_moving_averages_start_at_the_first_batch():
    observer = MovingAverage(momentum=0.75)
    batches = [np.float32([-1, 2]), np.float32([np.nan]), np.float32([-5, 10])]
    range_ = found(observer, *batches)
    assert (range_.lower, range_.upper, range_.absmax) == (-2, 4, 4)
    assert int(range_.not_finite) == 1
    one, other = seen(observer, batches[0], batches[0], batches[0]), seen(observer, batches[2])
    merged = observer.finish(observer.merge(one, other))
    assert (merged.lower, merged.upper) == (-2, 4)


@pytest.mark.parametrize("name", OBSERVERS)
def test_observers_have_names(name):
    observer = as_observer(name)
    assert isinstance(observer, Observer) and as_observer(observer) is observer
    assert observer == OBSERVERS[name]()


def test_a_percentile_may_be_in_the_name():
    assert as_observer("percentile:99.9") == Percentile(99.9)


def test_an_observer_may_be_anyones():
    class Fixed:
        def init(self, channels=None):
            return ()

        def update(self, state, x):
            return ()

        def merge(self, a, b):
            return ()

        def finish(self, state):
            return found(MinMax(), np.float32([-1, 1]))

    observer = Fixed()
    assert as_observer(observer) is observer


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: as_observer("max"), ValueError, "observer='max' is not known; use one of .'abs"),
        (lambda: as_observer("mse:3"), ValueError, "observer='mse:3' is not known"),
        (lambda: as_observer("percentile:x"), ValueError, "observer='percentile:x': a percentile"),
        (lambda: as_observer("percentile:101"), ValueError, "a percentile is a number in .0, 100."),
        (lambda: as_observer(None), TypeError, "observer must be a name or an Observer, got None"),
        (lambda: as_observer(MSE), TypeError, "observer must be a name or an Observer, got <class"),
        (lambda: Percentile(0), ValueError, "percent must be in .0, 100., got 0"),
        (lambda: Percentile(math.nan), ValueError, "percent must be in .0, 100., got nan"),
        (lambda: Percentile("99"), TypeError, "percent must be a Python number, got '99'"),
        (lambda: MovingAverage(1.0), ValueError, "momentum must be in .0, 1., got 1.0"),
        (lambda: MovingAverage(True), TypeError, "momentum must be a Python number, got True"),
        (lambda: MSE().init(0), ValueError, "channels must be at least 1, got 0; None is per"),
        (lambda: MSE().init(2.0), TypeError, "channels must be an int, or None for per tensor"),
        (lambda: seen(MSE(), np.ones(3, np.int8)), TypeError, "x must be float32.*got int8"),
        (lambda: seen(MinMax(), None), TypeError, "x must be an array, got NoneType"),
        (lambda: seen(MSE(), np.ones(3, np.float32), channels=4), ValueError,
         "x must have the 4 channels of the state in its last axis, got shape .3.; init"),
        (lambda: seen(MSE(), np.float32(1), channels=4), ValueError, "x must have the 4 channels"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
