"""Intervals of ratios by the bootstrap, for samples that depend on the ones before them.

Resampling single values as if each stood alone makes intervals too narrow where slow queries come
together: a machine that is warm stays warm. So blocks of successive samples are drawn, wrapped
around the end (the circular block bootstrap: D. N. Politis and J. P. Romano, "A circular
block-resampling procedure for stationary data", 1992), as long as the samples' own autocorrelation
asks for (D. N. Politis and H. White, "Automatic block-length selection for the dependent bootstrap",
Econometric Reviews 23, 2004, with the correction of 2009). Where there is none a block is one sample
and this is Efron's bootstrap.

Intervals are percentile intervals. The more accurate BCa would need a jackknife of the statistic,
which for a median is not consistent (B. Efron and R. J. Tibshirani, "An Introduction to the
Bootstrap", 1993, chapters 11.6 and 14.3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    Statistic = Literal["median", "mean", "p99"]

RESAMPLES = 2000
"""The ends of a 95% interval are then between the 40th and the 60th value from either side."""

LEVEL = 0.95

FEWEST = 6
"""Of fewer samples not even the interval from the least to the largest holds the median with 95%
probability: 1 - 2 * 0.5**n."""

FEWEST_P99 = 368
"""Of fewer samples the largest is below the 99th percentile too often: 0.99**n > 0.025."""

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
    if min(len(first), len(second)) < (FEWEST_P99 if statistic == "p99" else FEWEST):
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
    low, high = np.quantile(np.concatenate(found), ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Ratio(value, (float(low), float(high)))


STRETCHES = 30
"""Into which a run is cut for the spread of its rate: more than `FEWEST`."""


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
    spread = ratio(found, [1.0] * FEWEST, paired=False, statistic="mean") if found else None
    if spread is None or spread.ci95 is None:
        return None
    low, high = spread.ci95
    return 1 / high, 1 / low


def _p99(series: NDArray[np.float64], axis: int | None = None) -> Any:
    """The nearest rank, as in `statistics.percentile`."""
    return np.quantile(series, 0.99, axis=axis, method="inverted_cdf")


_OF: dict[Statistic, Any] = {"median": np.median, "mean": np.mean, "p99": _p99}


def _influence(series: NDArray[np.float64], statistic: Statistic) -> NDArray[np.float64]:
    """What a sample does to the statistic, but for a constant: a percentile sees no more of it
    than the side that it is on."""
    return series if statistic == "mean" else (series > _OF[statistic](series)).astype(np.float64)


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


def block_length(series: NDArray[np.float64]) -> int:
    """The block length that serves the bootstrap of this series' mean best; 1 where successive
    values are not correlated.

    Politis and White (2004, 2009): autocorrelations count up to the lag `m` after which a run of
    them is within what chance gives, the spectrum at 0 and its curvature come from a flat-top
    window of width ``2 m``, and ``b = (2 g**2 / d * n) ** (1/3)`` with ``d = 4/3 s**2``.
    """
    count = len(series)
    centred = series - series.mean()
    variance = float(centred @ centred) / count
    if count < 2 * FEWEST or not variance:
        return 1
    run = max(5, math.ceil(math.log10(count)))
    most = min(count - 1, math.ceil(math.sqrt(count)) + run)
    covariance = np.array(
        [float(centred[: count - lag] @ centred[lag:]) / count for lag in range(most + 1)]
    )
    chance = 2 * math.sqrt(math.log10(count) / count)
    large = np.abs(covariance[1:] / variance) > chance
    last = next((lag for lag in range(len(large)) if not large[lag : lag + run].any()), len(large))
    if not last:
        return 1
    lags = np.arange(1, min(2 * last, most) + 1)
    window = np.minimum(1.0, 2 * (1 - lags / (2 * last)))
    spectrum = covariance[0] + 2 * float(window @ covariance[lags])
    curvature = 2 * float(window @ (lags * covariance[lags]))
    if spectrum <= 0:
        return 1
    length: float = math.pow(1.5 * curvature**2 / spectrum**2 * count, 1 / 3)
    limit = math.ceil(min(3 * math.sqrt(count), count / 3))
    return max(1, min(limit, math.ceil(length)))
