"""Bootstrap intervals: their coverage, simulated, with and without autocorrelation."""

from __future__ import annotations

import numpy as np
import pytest

from vggdeploy.benchmarks import bootstrap


def coverage(draw, *, paired=False, statistic="median", truth=1.0, runs=300, resamples=300):
    held = 0
    for seed in range(runs):
        a, b = draw(np.random.default_rng(seed))
        found = bootstrap.ratio(
            a, b, paired=paired, statistic=statistic, seed=seed, resamples=resamples
        ).ci95
        held += found[0] <= truth <= found[1]
    return held / runs


@pytest.mark.parametrize("statistic", ["median", "mean"])
def test_coverage_of_independent_samples(statistic):
    def draw(rng):
        return np.exp(0.1 * rng.standard_normal((2, 60)))

    # Of 300 runs at 95%, 0.913 to 0.98 in 99.8% of cases; a median's interval of few samples is
    # somewhat too wide.
    assert 0.91 <= coverage(draw, statistic=statistic) <= 0.99


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize(
    ("statistic", "count"), [("median", bootstrap.FEWEST), ("mean", bootstrap.FEWEST_MEAN)]
)
def test_coverage_of_the_fewest_samples(statistic, count, paired):
    """At 93% or more of 400 runs, two standard deviations below 95%. Of plain percentile intervals
    of pairs 91% and 88% hold the truth."""

    def draw(rng):
        return np.exp(0.1 * rng.standard_normal((2, count)))

    assert coverage(draw, paired=paired, statistic=statistic, runs=400, resamples=2000) >= 0.93
    one = [1.0] * (count - 1)
    assert bootstrap.ratio(one, one, paired=paired, statistic=statistic).ci95 is None


def test_few_samples_have_their_ends_further_out():
    """By hand: t of 5 degrees of freedom is 2.571, times the root of 6 / 5 it is 2.816, and beyond
    that lie 0.243% of a normal distribution."""
    assert bootstrap._tail(6) == bootstrap._tail(6.9) == pytest.approx(0.00243, rel=0.01)
    assert bootstrap._tail(20) == pytest.approx(0.0159, rel=0.01)
    assert bootstrap._tail(10**6) == pytest.approx(0.025, rel=1e-4)
    assert 0 <= bootstrap._tail(1.5) < 1e-60


def test_coverage_where_slow_queries_come_together(monkeypatch, autoregressive):
    def draw(rng):
        return [np.exp(0.1 * autoregressive(rng, 400, 0.8)) for _ in range(2)]

    assert coverage(draw, runs=200) >= 0.87
    # As if each stood alone: the variance of a mean is (1 + 0.8) / (1 - 0.8) = 9 times as large,
    # so an interval a third as wide as it should be.
    monkeypatch.setattr(bootstrap, "block_length", lambda series: 1)
    assert coverage(draw, runs=200) <= 0.70


def test_what_slows_both_cancels_in_pairs_alone():
    def draw(rng):
        shared = np.exp(0.3 * rng.standard_normal(80))
        own = np.exp(0.01 * rng.standard_normal((2, 80)))
        return 1.03 * shared * own[0], shared * own[1]

    assert coverage(draw, paired=True, truth=1.03, runs=200) >= 0.9
    a, b = draw(np.random.default_rng(5))
    together = bootstrap.ratio(a, b, paired=True).ci95
    apart = bootstrap.ratio(a, b, paired=False).ci95
    assert 1 < together[0] < 1.03 < together[1]
    assert apart[0] < 1 < apart[1]
    assert apart[1] - apart[0] > 3 * (together[1] - together[0])


def test_coverage_of_pairs_whose_difference_lasts(autoregressive):
    def draw(rng):
        return [np.exp(0.1 * autoregressive(rng, 400, 0.8)) for _ in range(2)]

    assert coverage(draw, paired=True, runs=200) >= 0.87


def test_the_ratio_is_that_of_the_statistics():
    a, b = [2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 100.0], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    assert bootstrap.ratio(a, b, paired=True).value == 2.0
    assert bootstrap.ratio(a, b, paired=False, statistic="mean").value == sum(a) / sum(b)
    assert bootstrap.ratio([3.0] * 10, [2.0] * 8, paired=False) == bootstrap.Ratio(1.5, (1.5, 1.5))


def test_the_same_seed_gives_the_same_interval():
    a, b = np.random.default_rng(2).uniform(1, 2, (2, 50))
    first = bootstrap.ratio(a, b, paired=False, seed=4)
    assert first == bootstrap.ratio(a, b, paired=False, seed=4)
    assert first != bootstrap.ratio(a, b, paired=False, seed=5)


def test_too_few_samples_have_no_interval():
    assert bootstrap.ratio([1.0] * 5, [2.0] * 5, paired=True) == bootstrap.Ratio(0.5, None)
    assert bootstrap.ratio([1.0] * 6, [2.0] * 6, paired=True).ci95 == (0.5, 0.5)
    with pytest.raises(ValueError, match="pairs of 6 and 7"):
        bootstrap.ratio([1.0] * 6, [2.0] * 7, paired=True)


def test_draws_are_blocks_wrapped_around_the_end():
    drawn = bootstrap._draw(np.random.default_rng(0), 10, 4, 200)
    assert drawn.shape == (200, 10)
    steps = np.diff(drawn, axis=1) % 10
    inside = [step for step in range(9) if (step + 1) % 4]
    assert (steps[:, inside] == 1).all()
    assert set(drawn.ravel()) == set(range(10))
    assert (drawn[:, :-1] > drawn[:, 1:]).any()


def test_many_samples_are_drawn_in_pieces(monkeypatch):
    a, b = np.random.default_rng(3).uniform(1, 2, (2, 64))
    monkeypatch.setattr(bootstrap, "_CHUNK", 640)
    low, high = bootstrap.ratio(a, b, paired=False, resamples=105).ci95
    assert 0.7 < low < high < 1.4
    assert [*bootstrap._chunks(105, 64)] == [10] * 10 + [5]


def test_a_steady_run_has_its_rate_in_a_narrow_interval() -> None:
    rng = np.random.default_rng(0)
    ends = np.cumsum(rng.uniform(0.03, 0.05, 420))
    low, high = bootstrap.rate(list(ends - 0.07), [0.07] * 420) or (0, 0)
    assert low < 419 / (ends[-1] - ends[0]) < high
    assert 0.1 < high - low < 1.5
    assert bootstrap.rate([0.0], [0.1]) is None
    assert bootstrap.rate([], [0.1, 0.1]) is None
