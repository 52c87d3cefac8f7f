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
from vggdeploy.benchmarks import statistics

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vggdeploy.policy import Metric

    Result = Mapping[str, Any]
    Interval = tuple[float, float]
    _Ends = tuple[float, float, float]

MOST = 1e4
"""Times as much of a sample as is still worth to be named."""

QUERIES, SECONDS, FULL = "--queries", "--seconds", "--mlperf --full"
"""Flags by which ``bench`` takes more samples. LoadGen decides by itself how many it takes, and the
queue beside latency is as long as is asked for in time."""


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
        seconds: that `amount` queries took.
        flag: by which ``bench`` takes more.
    """

    value: float
    interval: Interval | None = None
    amount: float = 0.0
    unit: str = ""
    at: Callable[[float], Interval] | None = None
    lacking: str = ""
    seconds: float = 0.0
    flag: str = ""

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
        images = int(result["parity"]["n"])
        return _narrowing(value, tuple(ends), images, "images", factor=_student(images))
    if metric.name in ("p50", "p99"):
        return _percentile(value, int(metric.name[1:]), result)
    if metric.name == "throughput":
        return _throughput(value, result)
    if metric.name == "utilisation":
        return _utilisation(value, result)
    return Evidence(value)


def beside(metric: Metric, now: Evidence, then: Evidence) -> Evidence:
    """How many times worse than the baseline a figure is.

    Args:
        metric: which.
        now: what the result shows.
        then: what the baseline's shows.

    Returns:
        the ratio, above 1 where it is worse, of ``sqnr`` that of the noise's power; infinite where
        either figure is not above zero. `at` is of both with the same amount, the baseline with no
        less than it has.
    """

    def at(times: float) -> _Ends:
        others = times * now.amount / then.amount if then.amount else 1.0
        return _ratio(metric, _ends(now, times), _ends(then, max(1.0, others)))

    if metric.name != "sqnr" and min(now.value, then.value) <= 0:
        return Evidence(math.inf)
    low, value, high = at(1.0)
    if lacking := now.lacking or (then.lacking and f"the baseline: {then.lacking}"):
        return Evidence(value, lacking=lacking)
    if now.at is None and then.at is None:
        return Evidence(value)
    return Evidence(
        value, (low, high), now.amount, now.unit, lambda times: at(times)[::2],
        seconds=now.seconds, flag=now.flag,
    )  # fmt: skip


def _ratio(metric: Metric, now: _Ends, then: _Ends) -> _Ends:
    """The ratio of two independent figures with its interval.

    MOVER, in logarithms: above the ratio lie the upper distance of the figure over the line and the
    lower one of that under it, and the other way round below it, each pair by Pythagoras (G. Y. Zou
    and A. Donner, "Construction of confidence limits about effect measures: a general approach",
    Statistics in Medicine 27, 2008; R. G. Newcombe, "MOVER-R confidence intervals for ratios and
    products of two independently estimated quantities", Statistical Methods in Medical Research 25,
    2016).
    """
    if metric.name == "sqnr":
        over, under = _noise(now), _noise(then)
    else:
        over, under = (then, now) if metric.more_is_better else (now, then)
    value = over[1] / under[1]
    less = math.hypot(math.log(over[1] / over[0]), math.log(under[2] / under[1]))
    more = math.hypot(math.log(over[2] / over[1]), math.log(under[1] / under[0]))
    return value * math.exp(-less), value, value * math.exp(more)


def _ends(evidence: Evidence, times: float) -> _Ends:
    """A figure between the ends that it would have of so many times as much."""
    low, high = evidence.at(times) if evidence.at else (evidence.value, evidence.value)
    return low, evidence.value, high


def _noise(ends: _Ends) -> _Ends:
    """The noise's power over the signal's, of decibels the other way round."""
    low, value, high = (10 ** (-each / 10) for each in reversed(ends))
    return low, value, high


def _student(images: int) -> Callable[[float], float]:
    """Times smaller that a mean's interval gets because its spread is better known."""
    now = parity.student95(max(1, images - 1))
    return lambda times: now / parity.student95(max(1, round(images * times) - 1))


def _narrowing(
    value: float,
    ends: Interval,
    amount: float,
    unit: str,
    seconds: float = 0.0,
    flag: str = "",
    factor: Callable[[float], float] = lambda times: 1.0,
) -> Evidence:
    """An interval that shrinks with the square root of the sample around its value, and by
    `factor` besides."""
    low, high = min(ends[0], value), max(ends[1], value)

    def at(times: float) -> Interval:
        scale = math.sqrt(times) * factor(times)
        return value - (value - low) / scale, value + (high - value) / scale

    return Evidence(value, (low, high), amount, unit, at, seconds=seconds, flag=flag)


def _percentile(value: float, percent: int, result: Result) -> Evidence:
    samples = result["samples_s"]
    count, worth = len(samples), statistics.independent(samples, percent)
    ends = statistics.interval(sorted(samples), percent, worth=worth)
    if ends is None:
        fewest = math.ceil(statistics.needed(percent) * max(1.0, count / max(worth, 1.0)))
        what = "median" if percent == 50 else f"{percent}th percentile"
        together = f", worth {int(worth)} that stand alone," if worth < count else ""
        flag = FULL if result.get("mlperf") else f"--queries {fewest}"
        return Evidence(
            value, lacking=f"{count} samples{together} do not show a {what}: bench with {flag}"
        )
    flag = FULL if result.get("mlperf") else QUERIES
    return _narrowing(value, ends, count, "queries", float(result["measured_seconds"]), flag)


def _utilisation(value: float, result: Result) -> Evidence:
    """By the rate that it was computed from; the peak is taken for exact."""
    if result["scenario"] == "throughput":
        rate = _throughput(result["throughput_ips"], result)
        ends = rate.interval and tuple(value * end / rate.value for end in rate.interval)
    else:
        rate = _percentile(result["latency_s"]["p50"], 50, result)
        ends = rate.interval and tuple(value * rate.value / end for end in rate.interval[::-1])
    if not ends:
        return Evidence(value, lacking=rate.lacking)
    return _narrowing(value, (ends[0], ends[1]), rate.amount, rate.unit, rate.seconds, rate.flag)


def _throughput(value: float, result: Result) -> Evidence:
    """By successive stretches of the queue, which beside latency is a loop of its own that only
    time makes longer."""
    ends, queries = result.get("throughput_ci95"), result.get("throughput_queries")
    if ends is None or not queries:
        return Evidence(
            value,
            lacking=f"too few queries for an interval, or of scenario {result['scenario']}: bench "
            "with --scenario throughput",
        )
    flag = QUERIES if result["scenario"] == "throughput" else SECONDS
    seconds = queries * int(result["batch"]) / value
    return _narrowing(value, (ends[0], ends[1]), int(queries), "queries", seconds, flag)
