"""Percentiles, intervals and MLPerf's estimate, against sums of exact binomials."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vggdeploy.benchmarks import statistics
from vggdeploy.benchmarks.statistics import early_stopping, interval, interval_in_time, summarize

samples = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=300)


def exactly(count: int, share: Fraction) -> list[Fraction]:
    """P(B <= k) for every k, B ~ Bin(count, share), without rounding."""
    found, total = [], Fraction(0)
    for k in range(count + 1):
        total += math.comb(count, k) * share**k * (1 - share) ** (count - k)
        found.append(total)
    return found


@given(samples)
def test_percentiles_are_the_smallest_samples_that_so_many_do_not_exceed(
    values: list[float],
) -> None:
    found = summarize(values)
    for percent, value in ((50, found.p50), (90, found.p90), (99, found.p99)):
        assert value in values
        assert 100 * sum(v <= value for v in values) >= percent * len(values)
        assert 100 * sum(v < value for v in values) < percent * len(values)
    assert (found.min, found.max) == (min(values), max(values))
    # Summed without rounding but for the last: half a unit of 53 bits, and the division's.
    assert found.mean == pytest.approx(float(sum(map(Fraction, values)) / len(values)), rel=1e-15)


def test_known_figures() -> None:
    found = summarize([float(v) for v in range(100, 0, -1)])
    assert (found.p50, found.p90, found.p99) == (50, 90, 99)
    assert (found.mean, found.min, found.max) == (50.5, 1, 100)
    assert summarize([0.25]) == statistics.Latency(*[0.25] * 6)


@pytest.mark.parametrize(("count", "percent"), [(1, 50), (7, 50), (60, 90), (400, 99), (999, 1)])
def test_binomial_sums(count: int, percent: int) -> None:
    found = statistics.binomial_cdf(count, percent / 100)
    expected = [float(v) for v in exactly(count, Fraction(percent, 100))]
    # A thousand steps in logarithms of about 1000, each rounded at 1e-13 of a unit.
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-300)


@pytest.mark.parametrize("percent", [50, 90, 99])
@pytest.mark.parametrize("count", [1, 5, 6, 30, 100, 367, 368, 500])
def test_an_interval_is_the_narrowest_whose_tails_are_within_half_of_the_rest(
    percent: int, count: int
) -> None:
    at_most = exactly(count, Fraction(percent, 100))
    tail = Fraction(25, 1000)
    # By ranks: the true percentile is below the l-th with P(B < l), at the u-th or above with
    # P(B >= u).
    lows = [rank for rank in range(1, count + 1) if at_most[rank - 1] <= tail]
    highs = [rank for rank in range(1, count + 1) if 1 - at_most[rank - 1] <= tail]
    values = [float(v) for v in range(1, count + 1)]
    expected = (float(max(lows)), float(min(highs))) if lows and highs else None
    assert interval(values, percent) == expected
    assert (expected is None) == (count < statistics.needed(percent))


@pytest.mark.parametrize(("percent", "count"), [(50, 6), (90, 36), (99, 368)])
def test_the_samples_a_percentile_needs(percent: int, count: int) -> None:
    """0.975 ** (1 / n) by hand: 2 ** -6, 0.9 ** 36 and 0.99 ** 368 are the first below 0.025."""
    assert statistics.needed(percent) == count
    assert interval([1.0] * count, percent) == (1, 1)
    assert interval([1.0] * (count - 1), percent) is None


@pytest.mark.parametrize(("percent", "count"), [(50, 40), (90, 100), (99, 400)])
def test_intervals_cover_as_often_as_they_say(percent: int, count: int) -> None:
    rng = np.random.default_rng(5)
    truth = -math.log(1 - percent / 100)  # of the exponential distribution
    runs = 2000
    covered = 0
    for _ in range(runs):
        found = interval(np.sort(rng.exponential(size=count)).tolist(), percent)
        assert found is not None
        covered += found[0] <= truth <= found[1]
    # At least 95%, less three standard deviations of 2,000 runs: 0.5% each. Ranks are whole, so it
    # is more than 95%, but never all.
    assert 0.935 <= covered / runs <= 0.99


@pytest.mark.parametrize(("percent", "fewest"), [(90, 64), (99, 662)])
def test_early_stopping_begins_where_mlperf_says(percent: int, fewest: int) -> None:
    """64 and 662 are LoadGen's own: "need to process at least 64 queries for early stopping"."""
    assert early_stopping([1.0] * (fewest - 1), percent) is None
    assert early_stopping([float(v) for v in range(fewest)], percent) == fewest - 1


@pytest.mark.parametrize(("percent", "count"), [(90, 64), (90, 476), (99, 662), (99, 1500)])
def test_early_stopping_discards_as_many_as_loadgen_does(percent: int, count: int) -> None:
    """LoadGen's own way: for each t the least h with odds(h, t) < 1 - c, by brute force; the
    largest t with h + t <= n; the estimate is the t-th from the top. (It says that it "would
    discard" t - 1.)"""
    over = Fraction(100 - percent, 100)

    def enough(t: int) -> bool:
        n = count  # P(B <= t) falls with n, so h(t) + t <= n is the same as this
        odds = sum(math.comb(n, k) * over**k * (1 - over) ** (n - k) for k in range(t + 1))
        return odds < Fraction(1, 100)

    t = 1
    while enough(t + 1):
        t += 1
    values = [float(v) for v in range(count)]
    assert early_stopping(values, percent) == values[count - t]
    if count == 476:
        assert t - 1 == 31  # what LoadGen 6.0 printed of a run of 476 queries


def test_early_stopping_is_rarely_below_the_percentile() -> None:
    rng = np.random.default_rng(6)
    truth, runs = -math.log(0.1), 3000
    below = sum(
        (early_stopping(np.sort(rng.exponential(size=200)).tolist(), 90) or math.inf) < truth
        for _ in range(runs)
    )
    # Below 1%, with three standard deviations of 3,000 runs.
    assert 0 < below / runs < 0.0155


def test_half_width_of_the_medians_interval() -> None:
    values = [float(v) for v in range(1, 101)]
    low, high = interval(values, 50)  # type: ignore[misc]
    assert (low, high) == (40, 61)
    mixed = np.random.default_rng(0).permutation(values).tolist()
    assert statistics.half_width(mixed) == 10.5 / 50
    assert statistics.half_width([1.0] * 5) == math.inf


@pytest.mark.parametrize(
    ("latencies", "above"),
    [
        ([0.1] * 99 + [9.0], False),
        ([0.1] * 98 + [9.0] * 2, True),
        ([0.1] * 500 + [9.0] * 5, False),
        ([0.1] * 500 + [9.0] * 6, True),
        # One of ten is no news where one of a hundred may be late: 1 - 0.99**10 is 0.096.
        ([0.1] * 9 + [9.0], False),
        ([0.1] * 8 + [9.0] * 2, True),
        ([9.0], True),
        ([0.1], False),
        ([], False),
    ],
)
def test_when_a_bound_is_exceeded(latencies: list[float], above: bool) -> None:
    assert statistics.exceeds(latencies, 1.0) is above


def test_samples_that_are_worth_fewer_have_the_ranks_of_so_many() -> None:
    values = [float(v) for v in range(1, 1001)]
    assert interval(values, 50, worth=100.9) == (391, 610)  # 40 and 61 of 100
    low, _ = interval(values[:368], 99)  # type: ignore[misc]
    assert interval(values, 99, worth=368) == ((low - 1) * 1000 // 368 + 1, 1000)
    assert interval(values, 99, worth=367) is None


def waits(rng: np.random.Generator, runs: int, count: int, load: float) -> Any:
    """Latencies ``[runs, count]`` of queries that take 1 and arrive at random (Lindley's recursion:
    each waits for what the one before left), after as many that are not counted."""
    steps = 1 - rng.exponential(1 / load, (runs, 2 * count))
    walk = np.cumsum(steps, axis=1)
    waited = walk - np.minimum(0.0, np.minimum.accumulate(walk, axis=1))
    return 1 + waited[:, count:]


@pytest.mark.parametrize(("percent", "count"), [(50, 200), (99, 8000)])
def test_intervals_cover_where_queries_wait_for_each_other(percent: int, count: int) -> None:
    rng = np.random.default_rng(7)
    truth = float(np.quantile(waits(rng, 100, 20_000, 0.7), percent / 100))
    found = [
        (interval_in_time(row, percent), interval(sorted(row), percent))
        for row in waits(rng, 400, count, 0.7).tolist()
    ]
    made = [each for each, _ in found if each is not None]
    assert len(made) > 200
    assert sum(low <= truth <= high for low, high in made) / len(made) >= 0.93
    # As if each stood alone they are too narrow.
    alone = [each for _, each in found if each is not None]
    assert sum(low <= truth <= high for low, high in alone) / len(alone) < 0.85


@pytest.mark.parametrize(("percent", "count"), [(50, 6), (99, 368)])
def test_independent_samples_are_worth_nearly_what_they_are(percent: int, count: int) -> None:
    rng = np.random.default_rng(8)
    draws = rng.exponential(size=(400, count)).tolist()
    worth = [statistics.independent(each, percent) for each in draws]
    assert np.median(worth) == count
    assert statistics.independent([], percent) == 0
    assert statistics.independent([1.0] * count, percent) == count


def test_drift_leaves_the_range_of_the_samples() -> None:
    """All that is seen holds the median, however slowly it moves; a 99th percentile it does not."""
    drift = [1 + 0.001 * k for k in range(1000)]
    short = drift[:100]
    assert statistics.independent(short, 50) == 6
    assert interval_in_time(short, 50) == (short[0], short[-1])
    assert statistics.independent(drift, 50) < 15
    assert interval_in_time(drift, 99) is None
