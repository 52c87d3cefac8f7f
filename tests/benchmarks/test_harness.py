"""The measuring loops, with a clock that tells exactly what was told to it.

All durations are sums of powers of two, so that every difference of times is exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vggdeploy.benchmarks import harness
from vggdeploy.benchmarks.harness import Effort
from vggdeploy.contracts import Probe, Silent


def batches(count: int, size: int = 1) -> list[Any]:
    return [np.full((size, 3, 4, 4), index, np.float32) for index in range(count)]


def test_latency_samples_are_each_querys_own_time(clock: Any, timed: Any) -> None:
    warm = [8.0, 4.0, 2.0]
    measured = [0.5, 0.25, 0.75, 1.0]
    with timed(clock, [*warm, *measured]) as runner:
        found = harness.latency(runner, batches(2), Effort(0.0, 4, warmup_seconds=0.0), clock)
    assert found == measured


def test_warm_up_lasts_as_long_as_asked_and_is_left_out(clock: Any, timed: Any) -> None:
    durations = [0.25] * 8 + [0.5]
    with timed(clock, durations) as runner:
        found = harness.latency(runner, batches(1), Effort(0.0, 2, warmup_seconds=2.0), clock)
    assert found == [0.5, 0.5]
    assert len(runner.seen) == 10


def test_at_least_three_queries_warm_up(clock: Any, timed: Any) -> None:
    with timed(clock, [100.0, 100.0, 100.0, 1.0]) as runner:
        assert harness.latency(runner, batches(1), Effort(0.0, 1, 0.5), clock) == [1.0]


@pytest.mark.parametrize(
    ("seconds", "queries", "count"), [(4.0, 2, 8), (4.0, 30, 30), (0.25, 1, 1)]
)
def test_goes_on_for_both_the_time_and_the_queries(
    clock: Any, timed: Any, seconds: float, queries: int, count: int
) -> None:
    with timed(clock, [0.5]) as runner:
        found = harness.latency(runner, batches(1), Effort(seconds, queries, 0.0), clock)
    assert found == [0.5] * count


def test_batches_take_turns(clock: Any, timed: Any) -> None:
    with timed(clock, [1.0]) as runner:
        harness.latency(runner, batches(3), Effort(0.0, 5, 0.0), clock)
    assert [int(batch.max()) for batch in runner.seen] == [0, 1, 2, 0, 1, 2, 0, 1]


@pytest.mark.parametrize(("size", "depth"), [(1, 1), (1, 4), (8, 2), (4, 5)])
def test_throughput_is_images_over_the_time_between_results(
    clock: Any, timed: Any, size: int, depth: int
) -> None:
    # Until the queue has turned over, results are slow; none of that counts, nor does draining.
    slow = [16.0] * max(harness.WARMUP_QUERIES, depth)
    with timed(clock, [*slow, 0.25], batch=size, depth=depth) as runner:
        found = harness.throughput(runner, batches(2, size), Effort(2.0, 10, 0.0), clock)
    assert found == size / 0.25


def test_throughput_counts_every_result_of_an_uneven_run(clock: Any, timed: Any) -> None:
    with timed(clock, [1.0, 1.0, 1.0, 0.5, 1.5, 1.0, 1.0]) as runner:
        found = harness.throughput(runner, batches(1), Effort(4.0, 4, 0.0), clock)
    assert found == 4 / 4.0


def test_throughput_stops_when_it_has_both(clock: Any, timed: Any) -> None:
    with timed(clock, [0.5], depth=2) as runner:
        harness.throughput(runner, batches(1), Effort(2.0, 9, 0.0), clock)
    assert len(runner.seen) == 3 + 9


def test_peak_is_the_best_query_of_the_best_probe(clock: Any, timed: Any) -> None:
    probes = [
        Probe("a", timed(clock, [1.0] * 5 + [0.25, 1.0]), macs=1000),
        Probe("b", timed(clock, [0.5]), macs=3000),
        Probe("c", timed(clock, [0.125, 0.125, 0.125, 0.5, 0.25, 0.5]), bytes=64),
    ]
    found = harness.peak(probes, Silent(), clock)
    # b: 3000 MACs in 0.5 s beats a: 1000 in 0.25 s. c's first three queries are its warm-up.
    assert found.macs_per_s == 6000
    assert found.bytes_per_s == 64 / 0.25
    assert all(probe.runner.stopped == 1 for probe in probes)


def test_runner_is_closed_when_a_query_fails(clock: Any, timed: Any) -> None:
    runner = timed(clock, [1.0])
    runner._infer = lambda batch: 1 / 0
    with pytest.raises(ZeroDivisionError), runner:
        harness.latency(runner, batches(1), Effort(0.0, 1, 0.0), clock)
    assert runner.stopped == 1
