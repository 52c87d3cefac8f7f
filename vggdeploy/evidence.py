"""What a result shows of a figure: its value, how sure that is, and how much more would decide.

A sample never shows a figure, only an interval that holds it. A bound is kept where the whole
interval keeps it, missed where all of it misses, and undecided between; then it is asked how many
times as much of the same would be enough. Intervals are of 95% confidence, so one verdict in forty
of a figure that lies on its bound is wrong to either side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vggdeploy import parity
from vggdeploy.benchmarks import bootstrap, statistics

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vggdeploy.policy import Metric

    Result = Mapping[str, Any]
    Interval = tuple[float, float]

MOST = 1e4
"""Times as much of a sample as is still worth to be named."""


@dataclass(frozen=True)
class Evidence:
    """A figure and what holds it.

    Attributes:
        value: the figure.
        interval: its 95% interval; None where it is counted or weighed, and so exact.
        amount: of what it was taken from, in `unit`.
        unit: ``images``, ``queries``; empty where it is exact.
        at: the interval that so many times as much of the same would have.
        lacking: why there is no interval where there should be one; empty otherwise.
    """

    value: float
    interval: Interval | None = None
    amount: float = 0.0
    unit: str = ""
    at: Callable[[float], Interval] | None = None
    lacking: str = ""

    def needed(self, decided: Callable[[Interval], bool]) -> int | None:
        """How many `unit` would decide, were they like those that were seen; None for more than
        `MOST` times as many."""
        if self.at is None:
            return None
        low, high = 1.0, 2.0
        while not decided(self.at(high)):
            low, high = high, 2 * high
            if high > MOST:
                return None
        while high - low > 1e-3 * high:
            middle = (low + high) / 2
            low, high = (low, middle) if decided(self.at(middle)) else (middle, high)
        return math.ceil(high * self.amount)


def of(metric: Metric, result: Result, value: float) -> Evidence:
    """What `result` shows of a figure.

    Args:
        metric: which.
        result: that has it, of the kind that the metric names.
        value: the figure itself, as it stands there.
    """
    if metric.name in ("agreement", "top1"):
        images = int(result["parity" if metric.name == "agreement" else "accuracy"]["n"])
        return Evidence(
            value, parity.wilson(value * images, images), images, "images",
            lambda times: parity.wilson(value * images * times, images * times),
        )  # fmt: skip
    if metric.name == "drop":
        said = result["accuracy"]
        gained, lost, images = (int(said[key]) for key in ("gained", "lost", "n"))
        return Evidence(
            value, parity.tango(gained, lost, images), images, "images",
            lambda times: parity.tango(gained * times, lost * times, images * times),
        )  # fmt: skip
    if metric.name == "sqnr":
        ends = result["parity"]["sqnr_ci95"]
        if ends is None:
            return Evidence(value, lacking="one image has no interval of its mean")
        return _narrowing(value, tuple(ends), int(result["parity"]["n"]), "images")
    if metric.name in ("p50", "p99"):
        return _percentile(value, int(metric.name[1:]), sorted(result["samples_s"]))
    if metric.name == "throughput":
        return _throughput(value, result)
    if metric.name == "utilisation":
        return _utilisation(value, result)
    return Evidence(value)


def beside(metric: Metric, now: Evidence, then: Evidence, pair: tuple[Result, Result]) -> Evidence:
    """How many times worse than the baseline a figure is.

    Args:
        metric: which.
        now: what the result shows.
        then: what the baseline's shows.
        pair: both results.

    Returns:
        the ratio, above 1 where it is worse. Latencies are drawn anew from both series of samples
        (`bootstrap.ratio`); of other figures each side's own interval goes into the ratio's, as if
        both were independent.
    """
    if metric.name in ("p50", "p99"):
        found = bootstrap.ratio(
            *(each["samples_s"] for each in pair),
            paired=False,
            statistic="median" if metric.name == "p50" else "p99",
        )
        if found.ci95 is None:
            return Evidence(found.value, lacking=_few(metric, pair))
        amount = min(len(each["samples_s"]) for each in pair)
        return _narrowing(found.value, found.ci95, amount, "queries")
    if metric.name == "sqnr":
        # Of the noise's power.
        value = 10 ** ((then.value - now.value) / 10)
        spread = math.hypot(*(math.log(10) / 10 * _half(each) for each in (now, then)))
    else:
        worse, better = (then, now) if metric.more_is_better else (now, then)
        if better.value <= 0 or worse.value <= 0:
            return Evidence(math.inf if better.value <= 0 else 0.0)
        value = worse.value / better.value
        spread = math.hypot(*(_half(each) / each.value for each in (now, then)))
    if now.interval is None and then.interval is None:
        return Evidence(value, lacking=now.lacking or then.lacking)
    ends = value * math.exp(-spread), value * math.exp(spread)
    return _narrowing(value, ends, now.amount, now.unit)


def _few(metric: Metric, pair: tuple[Result, Result]) -> str:
    fewest = bootstrap.FEWEST if metric.name == "p50" else statistics.needed(99)
    counts = " and ".join(f"{len(each['samples_s']):,}" for each in pair)
    return f"{counts} samples are too few: bench both with --queries {fewest}"


def _half(evidence: Evidence) -> float:
    if evidence.interval is None:
        return 0.0
    return (evidence.interval[1] - evidence.interval[0]) / 2


def _narrowing(value: float, ends: Interval, amount: float, unit: str) -> Evidence:
    """An interval that shrinks with the square root of the sample around its value."""
    low, high = ends

    def at(times: float) -> Interval:
        scale = math.sqrt(times)
        return value - (value - low) / scale, value + (high - value) / scale

    return Evidence(value, (low, high), amount, unit, at)


def _percentile(value: float, percent: int, ordered: list[float]) -> Evidence:
    ends = statistics.interval(ordered, percent)
    if ends is None:
        fewest = statistics.needed(percent)
        what = "median" if percent == 50 else f"{percent}th percentile"
        return Evidence(
            value,
            lacking=f"{len(ordered)} samples do not show a {what}: bench with --queries {fewest}",
        )
    return _narrowing(value, ends, len(ordered), "queries")


def _utilisation(value: float, result: Result) -> Evidence:
    """By the rate that it was computed from; the peak is taken for exact."""
    if result["scenario"] == "throughput":
        rate = _throughput(result["throughput_ips"], result)
        if rate.interval is None:
            return Evidence(value, lacking=rate.lacking)
        low, high = (value * end / rate.value for end in rate.interval)
        return _narrowing(value, (low, high), rate.amount, rate.unit)
    median = _percentile(result["latency_s"]["p50"], 50, sorted(result["samples_s"]))
    if median.interval is None:
        return Evidence(value, lacking=median.lacking)
    low, high = (value * median.value / end for end in reversed(median.interval))
    return _narrowing(value, (low, high), median.amount, median.unit)


def _throughput(value: float, result: Result) -> Evidence:
    """By successive stretches of the run."""
    ends = result.get("throughput_ci95")
    if ends is None:
        return Evidence(
            value,
            lacking=f"too few queries for an interval, or of scenario {result['scenario']}: bench "
            "with --scenario throughput",
        )
    return _narrowing(value, (ends[0], ends[1]), len(result["samples_s"]), "queries")
