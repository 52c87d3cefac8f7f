"""Statistics of samples, in seconds; derived from the samples that a result keeps.

Most of it takes samples in ascending order, so that they are sorted once; what depends on how they
hang together takes them in the order of time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from vggdeploy.benchmarks import dependence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

PERCENTILES = (50, 90, 99)
"""Those of every result."""

EARLY = (90, 99)
"""Those that MLPerf's early stopping estimates: of SingleStream, and of the other scenarios."""

CONFIDENCE = 0.95
"""Of an interval."""

SEEN = 20
"""Samples above a rank from which it can be told whether they come together."""

EARLY_CONFIDENCE = 0.99
"""Of MLPerf's early stopping, whose tolerance is 0."""


@dataclass(frozen=True)
class Latency:
    """A summary of latencies, in seconds."""

    p50: float
    p90: float
    p99: float
    mean: float
    min: float
    max: float


def summarize(samples: Sequence[float]) -> Latency:
    """Percentiles by nearest rank, mean and range of samples in any order."""
    ordered = sorted(samples)
    p50, p90, p99 = (percentile(ordered, percent) for percent in PERCENTILES)
    return Latency(p50, p90, p99, math.fsum(ordered) / len(ordered), ordered[0], ordered[-1])


def percentile(ordered: Sequence[float], percent: int) -> float:
    """The smallest sample that at least `percent` of all do not exceed: the nearest rank, so a
    value that was measured."""
    return float(ordered[rank(len(ordered), percent)])


def rank(count: int, percent: int) -> int:
    """Where a percentile stands among `count` samples in order, from 0: the nearest rank."""
    return -(-percent * count // 100) - 1


def interval(
    ordered: Sequence[float],
    percent: int,
    confidence: float = CONFIDENCE,
    worth: float | None = None,
) -> tuple[float, float] | None:
    """A confidence interval of a percentile, from order statistics.

    Whatever samples are distributed like, the number of them below the true percentile is
    binomial. So the interval from the l-th to the u-th smallest covers it with probability
    ``P(l <= B < u)``, B ~ Bin(n, percent / 100), where both tails have at most half of the rest
    (David and Nagaraja, "Order Statistics", 3rd ed., section 7.1).

    Args:
        ordered: independent samples in ascending order.
        percent: which percentile.
        confidence: that it is within.
        worth: how many independent samples these are worth, where they are not (`independent`);
            the ranks are then those of so many, at the same shares of all (R. S. Woodruff,
            "Confidence intervals for medians and other position measures", JASA 47, 1952).

    Returns:
        None where there are too few samples for it: fewer than `needed`.
    """
    count = len(ordered)
    ranks = _interval_ranks(count, percent, confidence, count if worth is None else int(worth))
    return ranks and (float(ordered[ranks[0] - 1]), float(ordered[ranks[1] - 1]))


@lru_cache(maxsize=64)
def _interval_ranks(
    count: int, percent: int, confidence: float, worth: int
) -> tuple[int, int] | None:
    """Ranks l and u of `interval`, counted from 1."""
    below = binomial_cdf(worth, percent / 100)
    tail = (1 - confidence) / 2
    # The largest l with P(B < l) <= tail; the smallest u with P(B >= u) <= tail.
    low = int(np.searchsorted(below, tail, side="right"))
    high = int(np.searchsorted(below, 1 - tail, side="left")) + 1
    if low < 1 or high > worth:
        return None
    # Of each of so many, all that it stands for.
    return (low - 1) * count // worth + 1, -(-high * count // worth)


def independent(samples: Sequence[float], percent: int) -> float:
    """How many independent samples these are worth for a percentile.

    What counts is how those above the percentile come together: ``n / D`` with the inflation D of
    the series that is 1 above it and 0 below (P. Heidelberger and P. A. W. Lewis, "Quantile
    estimation in dependent sequences", Operations Research 32, 1984). Of few above it that is told
    badly, so the most counts of this and of the same at the median, at the upper quartile (where
    waits begin) and at a rank with `SEEN` above.

    Args:
        samples: in the order of time.
        percent: which percentile.

    Returns:
        as many as the fewest that show a median, at least: what hangs together for longer than a
        sixth of a run is drift, which `stability` tells.
    """
    series = np.asarray(samples, np.float64)
    count, ordered = len(series), np.sort(series)
    if not count:
        return 0.0
    own, median, quartile = (-(-share * count // 100) for share in (percent, 50, 75))
    levels = {ordered[rank - 1] for rank in (own, median, quartile, max(median, count - SEEN))}
    inflated = max(dependence.inflation((series > each).astype(np.float64)) for each in levels)
    return max(count / inflated, float(min(count, needed(50))))


def interval_in_time(samples: Sequence[float], percent: int) -> tuple[float, float] | None:
    """The 95% `interval` of a percentile of samples in the order of time, which may depend on each
    other (`independent`)."""
    return interval(sorted(samples), percent, worth=independent(samples, percent))


@lru_cache(maxsize=16)
def needed(percent: int, confidence: float = CONFIDENCE) -> int:
    """The fewest samples from which a percentile has an `interval`."""
    share = max(percent, 100 - percent) / 100
    return math.ceil(math.log((1 - confidence) / 2) / math.log(share))


def half_width(samples: Sequence[float]) -> float:
    """Half the width of the median's interval (`interval_in_time`), as a share of the median;
    infinite where there are too few samples for one."""
    found = interval_in_time(samples, 50)
    if found is None:
        return math.inf
    return (found[1] - found[0]) / 2 / percentile(sorted(samples), 50)


def exceeds(ordered: Sequence[float], bound: float) -> bool:
    """Whether these samples show that their 99th percentile is above `bound`.

    With a hundred or more, that percentile itself decides. With fewer it is the largest of them,
    which one hiccup spoils; then so many above the bound must be there as would be by chance in one
    case of twenty at most, were one in a hundred above it (a binomial test).
    """
    above = sum(value > bound for value in ordered)
    if not above:
        return False
    if len(ordered) >= 100:
        return percentile(ordered, 99) > bound
    return bool(1 - binomial_cdf(len(ordered), 0.01)[above - 1] < 1 - CONFIDENCE)


def early_stopping(ordered: Sequence[float], percent: int) -> float | None:
    """MLPerf's early-stopping estimate of a percentile: what it is below with 99% confidence.

    The t-th largest sample, with the largest t for which as few as t of n samples above the true
    percentile would be seen with a probability below 1%: ``P(B <= t) < 0.01``,
    B ~ Bin(n, 1 - percent / 100). With less than one such, there is no estimate.

    Source: MLCommons, "MLPerf Inference Rules", appendix on early stopping; LoadGen's
    ``early_stopping.cc``, whose ``odds`` is this sum as a regularized incomplete beta function,
    and ``PerformanceSummary::EarlyStopping`` in its ``results.cc``.
    """
    discarded = _early_rank(len(ordered), percent)
    return None if discarded is None else float(ordered[len(ordered) - discarded])


@lru_cache(maxsize=64)
def _early_rank(count: int, percent: int) -> int | None:
    at_most = binomial_cdf(count, (100 - percent) / 100)
    rank = int(np.searchsorted(at_most, 1 - EARLY_CONFIDENCE, side="left")) - 1
    return rank if rank >= 1 else None


def binomial_cdf(count: int, share: float) -> NDArray[np.float64]:
    """``P(B <= k)`` for k of 0 to `count`, B ~ Bin(count, share)."""
    # In logarithms, since the first terms underflow; each term is the one before times
    # (n - k) / (k + 1) * p / (1 - p).
    k = np.arange(count)
    steps = np.log((count - k) / (k + 1)) + math.log(share / (1 - share))
    logs = count * math.log1p(-share) + np.concatenate(([0.0], np.cumsum(steps)))
    return np.cumsum(np.exp(logs))
