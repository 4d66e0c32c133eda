"""Observers of calibration: the same states for every split, and ranges that plain numpy finds."""

import functools
import math

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_qconv import MSE, AbsMax, Entropy, MinMax, MovingAverage, Observer, Percentile
from jax_qconv._observers import OBSERVERS, as_observer
from jax_qconv._range import Range, scale_of

EXACT = [AbsMax(), MinMax(), Percentile(99.0), Entropy(), MSE()]
ALL = [*EXACT, MovingAverage()]
BIN = 1 / 256
RNG = np.random.default_rng(0)
GAUSSIAN = RNG.normal(size=100_000).astype(np.float32)
HEAVY = RNG.standard_t(3, size=100_000).astype(np.float32)


def name_of(observer):
    return type(observer).__name__


every = pytest.mark.parametrize("observer", ALL, ids=name_of)
exact = pytest.mark.parametrize("observer", EXACT, ids=name_of)
by_histogram = pytest.mark.parametrize("observer", EXACT[2:], ids=name_of)


@functools.cache
def jitted(observer):
    return jax.jit(observer.update), jax.jit(observer.merge), jax.jit(observer.finish)


def seen(observer, *batches, channels=None):
    update, _, _ = jitted(observer)
    return functools.reduce(update, batches, observer.init(channels))


def found(observer, *batches, channels=None):
    return jitted(observer)[2](seen(observer, *batches, channels=channels))


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
@hypothesis.settings(max_examples=20)
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
@hypothesis.settings(max_examples=10)
@hypothesis.given(st.integers(0, 2**32 - 1))
def test_each_channel_is_a_tensor_of_its_own(observer, seed):
    x = numbers(seed, (50, 3))
    together = found(observer, x, channels=3)
    for channel in range(3):
        alone = found(observer, x[:, channel])
        assert_same(jax.tree.map(lambda v, c=channel: v[c], together), alone)


@every
@pytest.mark.parametrize("channels", [None, 3])
def test_jit_changes_nothing(observer, channels):
    x = numbers(1, (50, 3))
    state = observer.update(observer.update(observer.init(channels), x), x * np.float32(0.3))
    assert_same(state, seen(observer, x, x * np.float32(0.3), channels=channels))
    assert_same(observer.finish(state), jitted(observer)[2](state))
    assert_same(observer.merge(state, state), jitted(observer)[1](state, state))


@every
def test_scan_carries_a_state(observer):
    x = RNG.normal(size=(4, 10, 3)).astype(np.float32)
    scanned, _ = jax.lax.scan(lambda s, v: (observer.update(s, v), None), observer.init(), x)
    assert_same(scanned, seen(observer, *x))


@every
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("channels", [None, 8])
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


@hypothesis.given(st.integers(0, 2**32 - 1), st.sampled_from([1, 50, 90, 99, 99.9, 99.99, 100]))
@hypothesis.settings(max_examples=60)
def test_percentiles_are_those_of_numpy_within_a_bin(seed, percent):
    rng = np.random.default_rng(seed)
    x = rng.normal(rng.normal(), 1, rng.integers(1, 2000)).astype(np.float32)
    # One shape compiles once; NaN is left out.
    padded = np.pad(x, (0, 2000 - len(x)), constant_values=np.nan)
    range_ = found(Percentile(percent), padded)

    def numpy_of(values, p):
        return float(np.percentile(values, p, method="inverted_cdf"))

    # The lowest bin, of what is next to nothing, is wide beside its numbers.
    near = {"rel": 1.01 * BIN, "abs": float(np.abs(x).max()) * 2.0**-14}
    assert float(range_.absmax) == pytest.approx(numpy_of(np.abs(x), percent), **near)
    half = 50 + percent / 2
    assert float(range_.upper) == pytest.approx(numpy_of(x, half), **near)
    assert float(range_.lower) == pytest.approx(-numpy_of(-x, half), **near)


def squared_error(x, scale, zero_point=0):
    q = np.clip(np.rint(x / scale) + zero_point, -128, 127)
    return np.mean((x - (q - zero_point) * scale) ** 2, dtype=np.float64)


DATA = {
    "gaussian": GAUSSIAN,
    "relu": np.maximum(GAUSSIAN, 0),
    "negative": np.minimum(GAUSSIAN, 0),
    "silu": GAUSSIAN / (1 + np.exp(-GAUSSIAN)),
    "heavy": HEAVY,
    "uniform": RNG.uniform(-1, 3, 100_000).astype(np.float32),
    "outlier": np.append(GAUSSIAN, np.float32(60)),
}


@pytest.mark.parametrize("name", DATA)
def test_the_least_squared_error_is_that_of_brute_force(name):
    x = DATA[name]
    range_ = found(MSE(), x)
    absmax = np.abs(x).max()
    least = min(squared_error(x, absmax * i / 200 / 127) for i in range(2, 201))
    assert squared_error(x, float(scale_of(range_)[0])) <= least * 1.02
    # Some of the numbers will do where two ends vary: brute force takes its time.
    x = x[-5000:]
    scale, zero_point = map(float, scale_of(found(MSE(), x), asymmetric=True))
    ends = [(f * min(x.min(), 0), g * max(x.max(), 0)) for f in GRID for g in GRID]
    scales = {((u - l) / 255, np.rint(-128 - l / ((u - l) / 255))) for l, u in ends}  # noqa: E741
    least = min(squared_error(x, *pair) for pair in scales)
    assert squared_error(x, scale, zero_point) <= least * 1.03


GRID = np.linspace(0.06, 1, 24)


def test_entropy_clips_tails_and_nothing_else():
    uniform = RNG.uniform(-1, 1, 100_000).astype(np.float32)
    assert float(found(Entropy(), uniform).absmax) > 0.97
    assert 3 < float(found(Entropy(), GAUSSIAN).absmax) <= np.abs(GAUSSIAN).max()
    heavy = found(Entropy(), HEAVY)
    assert 5 < float(heavy.absmax) < 0.6 * np.abs(HEAVY).max()
    assert heavy.lower == -heavy.absmax and heavy.upper <= heavy.absmax
    relu = found(Entropy(), np.maximum(GAUSSIAN, 0))
    assert relu.lower == 0 and 3 < float(relu.upper) <= GAUSSIAN.max()


def divergences(bins):
    """Of each threshold of a histogram: the definition, bin by bin."""
    found = {}
    for until in range(128, len(bins) + 1):
        p, q = bins[:until].astype(float), np.zeros(until)
        beyond = bins[until:].sum()
        p[-1] += beyond
        level = np.arange(until) * 128 // until
        for i in range(128):
            inside = (level == i) & (bins[:until] > 0)
            q[inside] = bins[:until][level == i].sum() / max(inside.sum(), 1)
        if bins[:until].sum() == 0:
            continue
        reference = np.where((q < 1) & (np.arange(until) == until - 1), 1, q)
        ps, q = p / p.sum(), reference / bins[:until].sum()
        found[until] = sum(a * math.log(a / b) for a, b in zip(ps, q, strict=True) if a > 0)
    return found


def test_entropy_is_its_definition():
    # On multiples of 1/2048 of the largest the bins are what numpy counts, up to their edges.
    steps = np.minimum(np.abs(HEAVY[:20_000]) * 40, 2047).astype(int)
    x = ((steps + 0.5) / 2048).astype(np.float32)
    x = np.append(x[steps > 0], np.float32(1))
    masses = np.zeros((2, 4096))
    with jax.enable_x64(True):
        from jax_qconv import _thresholds

        # Even bins in place of those of a histogram: resampling them changes nothing.
        edges = np.arange(4097) / 4096
        masses[0] = np.histogram(x, edges)[0]
        bins = masses[0].copy()
        bins[0] = 0
        bins = bins.reshape(2048, 2).sum(1)
        bins[0] = bins[1]
        threshold = float(_thresholds.least_divergence(jnp.asarray(masses), jnp.asarray(edges)))
    expected = divergences(bins)
    assert expected[round(threshold * 2048)] == pytest.approx(min(expected.values()), rel=1e-6)


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


@by_histogram
def test_an_outlier_costs_no_resolution(observer):
    del observer
    far = np.append(GAUSSIAN, np.float32(500))
    near, other = found(Percentile(99.9), GAUSSIAN), found(Percentile(99.9), far)
    assert float(other.absmax) == pytest.approx(float(near.absmax), rel=3 * BIN)


def test_moving_averages_start_at_the_first_batch():
    observer = MovingAverage(momentum=0.75)
    batches = [np.float32([-1, 2]), np.float32([np.nan]), np.float32([-5, 10])]
    range_ = found(observer, *batches)
    assert (range_.lower, range_.upper, range_.absmax) == (-2, 4, 4)
    assert int(range_.not_finite) == 1
    one, other = seen(observer, batches[0], batches[0], batches[0]), seen(observer, batches[2])
    merged = observer.finish(observer.merge(one, other))
    assert (merged.lower, merged.upper) == (-2, 4)


@hypothesis.given(
    st.floats(-(2.0**100), 2.0**100, width=32), st.floats(-(2.0**100), 2.0**100, width=32)
)
def test_scales_are_computed_in_float64_and_rounded_once(a, b):
    lower, upper = np.float32(min(a, b)), np.float32(max(a, b))
    absmax = np.maximum(np.abs(lower), np.abs(upper))
    range_ = Range(*map(jnp.asarray, (absmax, lower, upper, False, np.uint32(0))))

    def rounded(scale):
        return np.float32(scale if scale >= 2.0**-126 else 1 / 127)

    with jax.numpy_dtype_promotion("strict"):
        for call in (scale_of, jax.jit(scale_of, static_argnames="asymmetric")):
            scale, zero_point = call(range_)
            assert zero_point is None
            assert scale == rounded(np.float64(absmax) * (1 / 127)) and scale.dtype == jnp.float32
            scale, zero_point = call(range_, asymmetric=True)
            low, high = min(np.float64(lower), 0.0), max(np.float64(upper), 0.0)
            assert scale == rounded((high - low) * (1 / 255))
            want = np.clip(np.rint(-128 - low / np.float64(scale)), -128, 127)
            assert int(zero_point) == want and zero_point.dtype == jnp.int32


@pytest.mark.parametrize(
    ("lower", "upper", "zero_point"),
    [(0, 255, -128), (-255, 0, 127), (-128, 127, 0), (3, 255, -128)],
)
def test_zero_is_in_every_range(lower, upper, zero_point):
    scale, zero = scale_of(found(MinMax(), np.float32([lower, upper])), asymmetric=True)
    assert (scale, zero) == (1, zero_point)


def test_scales_of_channels():
    range_ = found(MinMax(), np.float32([[127, -127, 0], [-1, 0, 0]]), channels=3)
    assert scale_of(range_)[0].tolist() == [1, 1, np.float32(1 / 127)]


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
