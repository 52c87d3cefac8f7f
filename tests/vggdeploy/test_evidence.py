"""Intervals of figures and of their ratios: by hand, and how often they hold the truth."""

import math

import numpy as np
import pytest

from vggdeploy import evidence, parity
from vggdeploy.benchmarks import statistics
from vggdeploy.policy import METRICS

DRAWS = 400
"""Of 95% intervals 93% hold the truth at least: two standard deviations of so many draws."""


def shares(right, images):
    return {"parity": {"n": images, "top1_agreement": right / images}}


def latencies(samples):
    return {
        "samples_s": list(samples),
        "measured_seconds": float(sum(samples)),
        "scenario": "latency",
        "batch": 1,
    }


def queue(rate, low, high, queries=300, **more):
    said = {"throughput_ci95": [low, high], "throughput_queries": queries, "batch": 2}
    return rate, {"scenario": "latency", **said, **more}


def of(name, value, result):
    return evidence.of(METRICS[name], result, value)


def ratio(name, now, then):
    return evidence.beside(METRICS[name], of(name, *now), of(name, *then))


def percentile(percent, samples):
    return statistics.percentile(sorted(samples), percent), latencies(samples)


def test_both_sides_of_a_one_sided_interval_count():
    """All agree, on both sides: below 1 there is room for the figure alone."""
    found = ratio("agreement", (1.0, shares(400, 400)), (1.0, shares(10_000, 10_000)))
    (low, _), (then_low, _) = parity.wilson(400, 400), parity.wilson(10_000, 10_000)
    assert found.value == 1.0
    assert found.interval == pytest.approx((then_low, 1 / low), rel=1e-9)
    assert found.interval[1] > 1.0096


@pytest.mark.parametrize("name", ["throughput", "p50"])
def test_distances_are_added_by_pythagoras_each_to_its_side(name):
    """Of a throughput the baseline's is over the line, of a latency the figure's own."""
    if name == "throughput":
        now, then = queue(20.0, 19.0, 20.4), queue(22.0, 21.5, 24.0)
    else:
        steps = [*np.linspace(0.9, 1.0, 40), *np.linspace(1.01, 1.8, 39)]
        turn = np.random.default_rng(0).permutation(79)
        now = percentile(50, np.asarray(steps)[turn])
        then = percentile(50, np.asarray(steps[::-1])[turn] ** 2)
    found = ratio(name, now, then)
    sides = (then, now) if name == "throughput" else (now, then)
    over, under = (of(name, *each) for each in sides)
    assert found.value == over.value / under.value
    (low, high), (bottom, top) = over.interval, under.interval
    more = math.hypot(math.log(high / over.value), math.log(under.value / bottom))
    less = math.hypot(math.log(over.value / low), math.log(top / under.value))
    assert found.interval == pytest.approx(
        (found.value * math.exp(-less), found.value * math.exp(more)), rel=1e-12
    )


def test_noise_is_compared_as_power():
    def said(decibels, low, high):
        return decibels, {"parity": {"n": 50, "sqnr_ci95": [low, high]}}

    found = ratio("sqnr", said(27.0, 26.0, 27.5), said(30.0, 29.6, 31.2))
    assert found.value == pytest.approx(10**0.3)
    # In decibels the difference is 3: up to hypot(1, 1.2) more, hypot(0.5, 0.4) less.
    ends = [10 * math.log10(end) for end in found.interval]
    assert ends == pytest.approx([3 - math.hypot(0.5, 0.4), 3 + math.hypot(1.0, 1.2)])


@pytest.mark.parametrize("side", [0, 1])
def test_a_ratio_lacks_what_either_side_lacks(side):
    pair = [queue(20.0, 19.9, 20.1), queue(20.0, 19.9, 20.1)]
    pair[side][1]["throughput_ci95"] = None
    found = ratio("throughput", *pair)
    assert (found.value, found.interval) == (1.0, None)
    assert "too few queries for an interval" in found.lacking
    assert found.lacking.startswith("the baseline: ") == (side == 1)


@pytest.mark.parametrize(("now", "then"), [(0, 20), (20, 0), (0, 0)])
def test_of_zero_there_is_no_ratio(now, then):
    found = ratio("agreement", (now / 40, shares(now, 40)), (then / 40, shares(then, 40)))
    assert math.isinf(found.value)


def test_exact_figures_have_an_exact_ratio():
    found = ratio("engine_bytes", (1010.0, {}), (1000.0, {}))
    assert (found.value, found.interval, found.lacking) == (1.01, None, "")


def test_more_of_both_narrows_a_ratio_and_the_baseline_keeps_what_it_has():
    now, then = queue(20.0, 19.0, 21.0, 100), queue(20.0, 19.5, 20.5, 400)
    found = ratio("throughput", now, then)
    assert found.amount == 100
    assert found.at(1.0) == found.interval
    # 400 of the figure are half as wide, 400 of the baseline are what it is.
    low, high = found.at(4.0)
    distances = math.log(20 / 19.5), math.log(20.5 / 20)
    assert high == pytest.approx(math.exp(math.hypot(*distances)))
    assert low == pytest.approx(math.exp(-math.hypot(*distances)))
    # From there on both.
    assert found.at(16.0)[1] == pytest.approx(math.exp(math.hypot(
        math.log(20 / 19.75), math.log(20.25 / 20)
    )))  # fmt: skip


def test_an_interval_holds_its_figure():
    """A rate over the whole run may lie beside that of its stretches."""
    assert of("throughput", *queue(20.0, 20.1, 20.2)).interval == (20.0, 20.2)


def test_as_many_images_as_are_named_decide_a_mean():
    """Student's t of a few images is wider than that of those that would decide."""
    few, spread, mean, bound = 16, 8.0, 56.0, 55.0

    def half(images):
        return parity.student95(images - 1) * spread / math.sqrt(images)

    said = {"parity": {"n": few, "sqnr_ci95": [mean - half(few), mean + half(few)]}}
    needed = of("sqnr", mean, said).needed(lambda ends: ends[0] >= bound)
    exact = next(images for images in range(few, 10_000) if mean - half(images) >= bound)
    assert exact <= needed <= exact + 2


def test_how_the_queue_is_lengthened():
    found = of("throughput", *queue(20.0, 19.0, 21.0, 300))
    assert (found.amount, found.seconds, found.flag) == (300, 30.0, "--seconds")
    found = of("throughput", *queue(20.0, 19.0, 21.0, 300, scenario="throughput"))
    assert found.flag == "--queries"
    # Of an older result, which does not say how many queries it is of.
    assert of("throughput", *queue(20.0, 19.0, 21.0, None)).lacking


def test_samples_that_hang_together_show_less():
    alone = np.random.default_rng(3).lognormal(0, 0.1, 400)
    together = np.repeat(alone[:100], 4)
    (low, high), (bottom, top) = (
        of("p50", *percentile(50, each)).interval for each in (alone, together)
    )
    assert top - bottom > 1.4 * (high - low)
    assert of("p99", *percentile(99, alone)).interval
    found = of("p99", *percentile(99, together))
    assert found.interval is None
    count = int(found.lacking.rpartition(" ")[2])
    assert count > 1000
    assert "400 samples, worth " in found.lacking
    assert f"that stand alone, do not show a 99th percentile: bench with --queries {count}" in (
        found.lacking
    )


def test_what_loadgen_measured_is_lengthened_by_its_own_flag():
    value, result = percentile(50, [0.1] * 400)
    result["mlperf"] = {"result": "VALID"}
    assert of("p50", value, result).flag == "--mlperf --full"
    result["samples_s"] = [0.1] * 5
    assert of("p50", value, result).lacking.endswith("bench with --mlperf --full")


def coverage(draw, truth, seed):
    """How many of the ratios that have an interval hold the truth."""
    rng = np.random.default_rng(seed)
    found = [draw(rng).interval for _ in range(DRAWS)]
    made = [each for each in found if each is not None]
    assert len(made) > DRAWS / 2
    return sum(low <= truth <= high for low, high in made) / len(made)


@pytest.mark.parametrize(("percent", "count"), [(50, 6), (50, 30), (99, 368), (99, 500)])
def test_coverage_of_a_ratio_of_percentiles(percent, count):
    """From the fewest samples on that have an interval: as many queries as a gate accepts."""

    def draw(rng):
        pair = rng.lognormal(0, 0.2, (2, count))
        return ratio(f"p{percent}", *(percentile(percent, each) for each in pair))

    assert coverage(draw, 1.0, count) >= 0.93


def test_coverage_of_a_ratio_of_percentiles_of_queries_that_wait():
    def waits(rng, count):
        walk = np.cumsum(1 - rng.exponential(1 / 0.7, 2 * count))
        return 1 + (walk - np.minimum(0, np.minimum.accumulate(walk)))[count:]

    def draw(rng):
        return ratio("p50", *(percentile(50, waits(rng, 300)) for _ in range(2)))

    assert coverage(draw, 1.0, 4) >= 0.93


@pytest.mark.parametrize(
    ("images", "others", "share"), [(400, 10_000, 0.995), (100, 100, 0.9), (30, 30, 0.98)]
)
def test_coverage_of_a_ratio_of_shares(images, others, share):
    def draw(rng):
        pair = [(rng.binomial(n, share), n) for n in (images, others)]
        return ratio("agreement", *((right / n, shares(right, n)) for right, n in pair))

    assert coverage(draw, 1.0, images) >= 0.93


@pytest.mark.parametrize("images", [2, 5, 30])
def test_coverage_of_a_ratio_of_noise(images):
    def draw(rng):
        pair = rng.normal([[30.0], [33.0]], 2.0, (2, images))
        said = [(each.mean(), parity.mean_interval(each)) for each in pair]
        return ratio(
            "sqnr", *((m, {"parity": {"n": images, "sqnr_ci95": ends}}) for m, ends in said)
        )

    assert coverage(draw, 10**0.3, images) >= 0.93
