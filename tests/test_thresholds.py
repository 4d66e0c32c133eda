"""Where observers clip: the ranges that plain numpy finds."""

import math

import hypothesis
import jax
import numpy as np
import pytest
from effort import examples
from hypothesis import strategies as st
from observing import BIN, GAUSSIAN, HEAVY, UNIFORM, found

from jax_qconv import MSE, Entropy, Percentile, _thresholds
from jax_qconv._range import scale_of


@hypothesis.given(st.integers(0, 2**32 - 1), st.sampled_from([1, 50, 90, 99, 99.9, 99.99, 100]))
@examples(30)
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
    "uniform": UNIFORM,
    "outlier": np.append(GAUSSIAN, np.float32(60)),
}


GRID = np.linspace(0.06, 1, 24)


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


def test_entropy_clips_tails_and_nothing_else():
    assert float(found(Entropy(), UNIFORM - np.float32(1)).absmax) > 0.97 * 2
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
        # Even bins in place of those of a histogram: resampling them changes nothing.
        edges = np.arange(4097) / 4096
        masses[0] = np.histogram(x, edges)[0]
        bins = masses[0].copy()
        bins[0] = 0
        bins = bins.reshape(2048, 2).sum(1)
        bins[0] = bins[1]
        threshold = float(jax.jit(_thresholds.least_divergence)(masses, edges))
    expected = divergences(bins)
    assert expected[round(threshold * 2048)] == pytest.approx(min(expected.values()), rel=1e-6)


def test_an_outlier_costs_no_resolution():
    far = np.append(GAUSSIAN, np.float32(500))
    near, other = found(Percentile(99.9), GAUSSIAN), found(Percentile(99.9), far)
    assert float(other.absmax) == pytest.approx(float(near.absmax), rel=3 * BIN)
