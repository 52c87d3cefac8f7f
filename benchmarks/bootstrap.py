"""Intervals of ratios by the bootstrap, for samples that depend on the ones before them.

Resampling single values as if each stood alone makes intervals too narrow where slow queries come
together. So blocks of successive samples are drawn, wrapped around the end (the circular block
bootstrap: D. N. Politis and J. P. Romano, "A circular block-resampling procedure for stationary
data", 1992), as long as the samples' own autocorrelation asks for (`dependence.block_length`).
Where there is none a block is one sample and this is Efron's bootstrap.

Intervals are expanded percentile intervals. A plain one is too narrow where samples are few, as if
a normal deviate were taken for Student's t and a variance divided by n in place of n - 1; so its
ends are taken as far out as makes good for both (T. C. Hesterberg, "What teachers should know about
the bootstrap", The American Statistician 69, 2015). The more accurate BCa would need a jackknife of
the statistic, which for a median is not consistent (B. Efron and R. J. Tibshirani, "An Introduction
to the Bootstrap", 1993, chapters 11.6 and 14.3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vggdeploy import parity
from vggdeploy.benchmarks.dependence import block_length

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    Statistic = Literal["median", "mean"]

RESAMPLES = 2000
"""The ends of an interval of many samples are then between the 40th and the 60th value from either
side; of the fewest, the fifth."""

FEWEST = 6
"""Of fewer samples not even the interval from the least to the largest holds the median with 95%
probability: 1 - 2 * 0.5**n."""

FEWEST_MEAN = 8
"""Of fewer pairs the interval of a ratio of means holds it in less than 93% of cases (simulated)."""

_CHUNK = 1 << 22
"""Values that are drawn at once: 32 MB of indices."""


@dataclass(frozen=True)
class Ratio:
    """A ratio of two statistics.

    Attributes:
        value: the first over the second.
        ci95: its 95% interval; None where there are too few samples for one.
    """

    value: float
    ci95: tuple[float, float] | None


def ratio(
    a: Sequence[float],
    b: Sequence[float],
    *,
    paired: bool,
    statistic: Statistic = "median",
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Ratio:
    """A statistic of `a` over that of `b`, with a bootstrap interval.

    Args:
        a, b: positive samples in the order of time.
        paired: whether ``a[i]`` and ``b[i]`` were measured side by side. They are drawn together
            then, so what slowed both down is in both or in neither.
        statistic: of each.
        seed: draws the blocks.
        resamples: how often.
    """
    if paired and len(a) != len(b):
        raise ValueError(f"pairs of {len(a)} and {len(b)} samples")
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    of = _OF[statistic]
    value = float(of(first) / of(second))
    if min(len(first), len(second)) < (FEWEST_MEAN if statistic == "mean" else FEWEST):
        return Ratio(value, None)
    rng = np.random.default_rng(seed)
    lengths = [block_length(_influence(series, statistic)) for series in (first, second)]
    if paired:
        lengths = [max(lengths)] * 2
    found = []
    for rows in _chunks(resamples, max(len(first), len(second))):
        draw = _draw(rng, len(first), lengths[0], rows)
        other = draw if paired else _draw(rng, len(second), lengths[1], rows)
        found.append(of(first[draw], axis=1) / of(second[other], axis=1))
    tail = _tail(min(len(first) / lengths[0], len(second) / lengths[1]))
    low, high = np.quantile(np.concatenate(found), (tail, 1 - tail))
    return Ratio(value, (float(low), float(high)))


def _tail(blocks: float) -> float:
    """The share of resamples beyond either end of a 95% interval.

    ``Phi(-sqrt(n / (n - 1)) * t)`` with Student's t of n - 1 degrees of freedom (Hesterberg): 0.24%
    for 6, 1.6% for 20, 2.5% for many. What was drawn together counts as one, and of two series the
    one that has fewer decides.
    """
    count = max(2, math.floor(blocks))
    deviate = math.sqrt(count / (count - 1)) * parity.student95(count - 1)
    return math.erfc(deviate / math.sqrt(2)) / 2


STRETCHES = 30
"""Into which a run is cut for the spread of its rate: more than `FEWEST_MEAN`."""


def stretches(started: Sequence[float], seconds: Sequence[float]) -> list[float]:
    """Seconds a query of successive stretches of a run, all of as many queries; empty where it does
    not say when its queries ended.

    Args:
        started: when each query began, in seconds.
        seconds: how long each took.
    """
    if len(started) != len(seconds) or len(seconds) < 2:
        return []
    ends = np.sort(np.add(started, seconds))
    each = max(1, (len(ends) - 1) // STRETCHES)
    return [float(took) / each for took in np.diff(ends[::each])]


def rate(started: Sequence[float], seconds: Sequence[float]) -> tuple[float, float] | None:
    """The 95% interval of the queries a second of a run; None where there are too few."""
    found = stretches(started, seconds)
    spread = ratio(found, [1.0] * len(found), paired=False, statistic="mean") if found else None
    if spread is None or spread.ci95 is None:
        return None
    low, high = spread.ci95
    return 1 / high, 1 / low


_OF: dict[Statistic, Any] = {"median": np.median, "mean": np.mean}


def _influence(series: NDArray[np.float64], statistic: Statistic) -> NDArray[np.float64]:
    """What a sample does to the statistic, but for a constant: a median sees no more of it than the
    side that it is on."""
    return series if statistic == "mean" else (series > np.median(series)).astype(np.float64)


def _chunks(resamples: int, width: int) -> Iterator[int]:
    rows = max(1, _CHUNK // width)
    for start in range(0, resamples, rows):
        yield min(rows, resamples - start)


def _draw(rng: np.random.Generator, count: int, block: int, rows: int) -> NDArray[np.int64]:
    """Indices ``[rows, count]`` of samples in blocks, wrapped around the end."""
    blocks = math.ceil(count / block)
    starts = rng.integers(0, count, (rows, blocks, 1))
    drawn: Any = (starts + np.arange(block)) % count
    return np.asarray(drawn.reshape(rows, blocks * block)[:, :count], np.int64)
