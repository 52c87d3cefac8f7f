"""The measuring loops, with a clock that tells exactly what was told to it.

Durations are sums of powers of two, so that every difference of times is exact, but where arrivals
are random.
"""

from __future__ import annotations

import heapq
import itertools
import math
from typing import Any

import numpy as np
import pytest

from vggdeploy.benchmarks import rates, scenarios, statistics, warmup
from vggdeploy.benchmarks.rates import Trial
from vggdeploy.benchmarks.scenarios import Stop
from vggdeploy.contracts import Runner, TensorSpec
from vggdeploy.errors import ConfigError


def batches(count: int, size: int = 1) -> list[Any]:
    return [np.full((size, 3, 4, 4), index, np.float32) for index in range(count)]


class Servers(Runner):
    """`depth` servers that take `service` seconds a query each; ends are told when they are due,
    as if from another thread."""

    def __init__(self, clock: Any, service: float, depth: int = 1) -> None:
        super().__init__()
        self.name = "servers"
        self.input = TensorSpec("image", (1, 3, 4, 4))
        self.outputs = ()
        self.depth = depth
        self.begun: list[float] = []
        self._clock, self._service = clock, service
        self._busy: list[Any] = []

    def _start(self) -> None: ...

    def _stop(self) -> None: ...

    def _infer(self, batch: Any) -> Any:
        self._clock.now += self._service
        return {}

    def _begin(self, batch: Any, done: Any) -> None:
        self._tell(self._clock.now)
        if len(self._busy) == self.depth:
            self._clock.now = self._busy[0][0]
            self._tell(self._clock.now)
        self.begun.append(self._clock.now)
        heapq.heappush(self._busy, (self._clock.now + self._service, len(self.begun), done))

    def _drain(self) -> None:
        while self._busy:
            self._clock.now = max(self._clock.now, self._busy[0][0])
            self._tell(self._clock.now)

    def _tell(self, until: float) -> None:
        now = self._clock.now
        while self._busy and self._busy[0][0] <= until:
            self._clock.now, _, done = heapq.heappop(self._busy)
            done({})
        self._clock.now = now


@pytest.fixture
def sleep(clock: Any) -> Any:
    def asleep(seconds: float) -> None:
        assert seconds > 0
        clock.now += seconds

    return asleep


def test_latency_samples_are_each_querys_own_time(clock: Any, timed: Any) -> None:
    with timed(clock, [0.5, 0.25, 0.75, 1.0]) as runner:
        found = scenarios.latency(runner, batches(2), Stop(0.0, 4), clock)
    assert found.seconds == [0.5, 0.25, 0.75, 1.0]
    assert found.offsets == [0.0, 0.5, 0.75, 1.5]
    assert (found.begin, found.measured_seconds, found.partial) == (1000.0, 2.5, False)
    assert found.queries_per_s == 4 / 2.5
    assert [int(batch.max()) for batch in runner.seen] == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("seconds", "queries", "count"), [(4.0, 2, 8), (4.0, 30, 30), (0.25, 1, 1)]
)
def test_goes_on_for_both_the_time_and_the_queries(
    clock: Any, timed: Any, seconds: float, queries: int, count: int
) -> None:
    with timed(clock, [0.5]) as runner:
        found = scenarios.latency(runner, batches(1), Stop(seconds, queries), clock)
    assert found.seconds == [0.5] * count


def test_stops_as_soon_as_it_is_precise(clock: Any, timed: Any) -> None:
    """Half of 1 and half of 2 seconds settle nothing; then all are alike."""
    with timed(clock, [1.0, 2.0] * 6 + [1.5]) as runner:
        found = scenarios.latency(runner, batches(1), Stop(1e6, 10, 0.01), clock)
    assert statistics.half_width(found.seconds) <= 0.01
    # It looks at every tenth more: not at the first count that was enough, but soon after.
    first = next(n for n in itertools.count(10) if statistics.half_width(found.seconds[:n]) <= 0.01)
    assert first <= len(found.seconds) <= math.ceil(1.1 * first)
    assert first > 12


def test_precision_ends_at_the_time_limit(clock: Any, timed: Any) -> None:
    with timed(clock, [1.0, 2.0] * 100) as runner:
        found = scenarios.latency(runner, batches(1), Stop(45.0, 10, 0.01), clock)
    assert found.measured_seconds == 45.0
    assert statistics.half_width(found.seconds) > 0.01


@pytest.mark.parametrize(("size", "depth"), [(1, 1), (1, 4), (8, 2), (4, 5)])
def test_throughput_is_results_over_their_time(
    clock: Any, timed: Any, size: int, depth: int
) -> None:
    # Slow until the queue has turned over; draining is slow, too (100 s).
    with timed(clock, [2.0] * depth + [0.25], batch=size, depth=depth) as runner:
        found, warmed = scenarios.throughput(runner, batches(2, size), Stop(2.0, 10), clock)
    assert found.queries_per_s == 4.0
    assert found.seconds == [0.25 * depth] * 10
    assert found.offsets == [0.25 * k for k in range(10)]
    assert warmed.steady
    assert (found.measured_seconds, found.partial) == (2.5, False)


def test_throughput_whose_times_do_not_settle_is_bounded_and_says_so(
    clock: Any, timed: Any
) -> None:
    durations = [2.0 ** (k / 3) for k in range(30)]
    with timed(clock, [*durations, 1.0]) as runner:
        found, warmed = scenarios.throughput(runner, batches(1), Stop(1.0, 30), clock)
    assert not warmed.steady
    assert warmed.seconds >= warmup.MOST_SECONDS
    assert len(found.seconds) == 30


@pytest.mark.parametrize("at", [1, 5])
def test_ctrl_c_keeps_what_there_is(clock: Any, timed: Any, at: int) -> None:
    class Interrupted(timed):  # type: ignore[misc]
        def _infer(self, batch: Any) -> Any:
            if len(self.seen) == at:
                raise KeyboardInterrupt
            return super()._infer(batch)

    with Interrupted(clock, [0.5]) as runner:
        found = scenarios.latency(runner, batches(1), Stop(9.0, 30), clock)
    assert (found.seconds, found.partial) == ([0.5] * at, True)
    with Interrupted(clock, [0.5]) as runner:
        served = scenarios.server(runner, batches(1), [0.0] * 9, clock, lambda _: None)
    assert (len(served.seconds), served.partial) == (at, True)


def test_ctrl_c_in_throughput(clock: Any, timed: Any) -> None:
    class Interrupted(timed):  # type: ignore[misc]
        def _infer(self, batch: Any) -> Any:
            if len(self.seen) == 20:
                raise KeyboardInterrupt
            return super()._infer(batch)

    with Interrupted(clock, [0.5]) as runner:
        found, warmed = scenarios.throughput(runner, batches(1), Stop(99.0, 30), clock)
    assert found.partial
    assert len(found.seconds) == 20 - warmed.queries
    with Interrupted(clock, [2.0 ** (k / 3) for k in range(20)]) as runner:
        found, warmed = scenarios.throughput(runner, batches(1), Stop(99.0, 30), clock)
    assert found.partial
    assert (found.seconds == []) == (not warmed.steady and warmed.seconds < warmup.MOST_SECONDS)


def test_arrivals_are_poisson_and_scale_with_the_rate() -> None:
    slow, fast = scenarios.arrivals(2.0, 20_000, 3), scenarios.arrivals(8.0, 20_000, 3)
    np.testing.assert_allclose(slow, 4 * np.array(fast), rtol=1e-12)
    gaps = np.diff(slow)
    # Of an exponential distribution mean and deviation are equal; 20,000 give each within 0.7%,
    # one deviation.
    assert np.mean(gaps) == pytest.approx(0.5, rel=0.03)
    assert np.std(gaps) == pytest.approx(0.5, rel=0.04)
    assert scenarios.arrivals(2.0, 50, 3) == slow[:50]
    assert scenarios.arrivals(2.0, 50, 4) != slow[:50]


def lindley(schedule: list[float], service: float, servers: int) -> list[float]:
    """Latency of each arrival at first come, first served, by the recursion of free times."""
    free = [0.0] * servers
    found = []
    for at in schedule:
        end = max(at, free[0]) + service
        heapq.heapreplace(free, end)
        found.append(end - at)
    return found


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("load", [0.3, 0.9, 1.5])
def test_server_latency_counts_from_the_scheduled_arrival(
    clock: Any, sleep: Any, depth: int, load: float
) -> None:
    service = 0.25
    schedule = scenarios.arrivals(load * depth / service, 300, 7)
    with Servers(clock, service, depth) as runner:
        found = scenarios.server(runner, batches(2), schedule, clock, sleep)
    np.testing.assert_allclose(found.seconds, lindley(schedule, service, depth), atol=1e-9)
    np.testing.assert_allclose(found.started, 1000 + np.array(schedule), atol=1e-9)
    # Nothing begins before it arrives.
    assert all(b >= s - 1e-9 for b, s in zip(runner.begun, found.started, strict=True))
    assert found.measured_seconds == pytest.approx(
        max(s + t for s, t in zip(schedule, found.seconds, strict=True))
    )


def test_a_stall_shows_in_every_query_that_had_to_wait(clock: Any, timed: Any, sleep: Any) -> None:
    """No coordinated omission: ten seconds of standstill are seen by all that arrive meanwhile."""
    with timed(clock, [0.5, 10.0, 0.5]) as runner:
        found = scenarios.server(runner, batches(1), [0, 1, 2, 3, 4, 20], clock, sleep)
    assert found.seconds == [0.5, 10.0, 9.5, 9.0, 8.5, 0.5]


def test_a_server_gives_up_when_told(clock: Any, sleep: Any) -> None:
    told: list[float] = []

    def enough(late: list[float]) -> bool:
        told[:] = late
        return len(late) >= 5

    with Servers(clock, 1.0) as runner:
        found = scenarios.server(runner, batches(1), [0.0] * 50, clock, sleep, enough)
    assert len(found.seconds) == 6  # five had ended, one was running
    assert told == [1.0, 2.0, 3.0, 4.0, 5.0]  # waits included
    assert not found.partial


@pytest.mark.parametrize("bound", [0.45, 0.5, 1.0, 4.0])
def test_the_rate_that_is_found_is_the_highest_that_holds(
    clock: Any, sleep: Any, bound: float
) -> None:
    service, seconds, seed = 0.25, 60.0, 11

    def p99(rate: float) -> float:
        count = max(rates.FEWEST, math.ceil(rate * seconds))
        found = sorted(lindley(scenarios.arrivals(rate, count, seed), service, 1))
        return found[math.ceil(0.99 * count) - 1]

    with Servers(clock, service) as runner:
        found = rates.highest(
            lambda rate: rates.attempt(
                runner, batches(1), rate, bound, seconds, seed, clock, sleep
            ),
            1 / service,
            bound,
        )
    assert p99(found.rate) <= bound
    beyond = min((trial.rate for trial in found.tried if not trial.holds), default=4.0)
    assert p99(beyond) > bound or found.rate == 4.0
    assert beyond - found.rate <= max(rates.RESOLUTION * beyond, 4.0 / 2 ** (rates.STEPS - 1))
    for trial in found.tried:
        assert trial.holds == (p99(trial.rate) <= bound)
        assert trial.p99 is None or trial.p99 == pytest.approx(p99(trial.rate), abs=1e-9)
    assert len(found.tried) <= rates.STEPS


def test_a_hopeless_rate_is_given_up_early(clock: Any, sleep: Any) -> None:
    with Servers(clock, 1.0) as runner:
        trial = rates.attempt(runner, batches(1), 100.0, 1.5, 100.0, 0, clock, sleep)
    assert trial == Trial(100.0, None, False)
    assert len(runner.begun) < 200  # of 10,000: a hundred may be late


@pytest.mark.parametrize(("late", "holds"), [(1, True), (2, False)])
def test_of_a_hundred_one_may_be_late(
    clock: Any, timed: Any, sleep: Any, late: int, holds: bool
) -> None:
    with timed(clock, [0.25] * (100 - late) + [0.75]) as runner:
        trial = rates.attempt(runner, batches(1), 0.001, 0.5, 1.0, 0, clock, sleep)
    assert trial.holds is holds
    assert trial.p99 == pytest.approx(0.25 if holds else 0.75)


def test_bisection_halves_what_is_left() -> None:
    found = rates.highest(lambda rate: Trial(rate, 0.0, rate <= 20), 64.0, 1.0)
    assert [trial.rate for trial in found.tried] == [64, 32, 16, 24, 20, 22, 21, 20.5]
    assert found.rate == 20
    assert rates.highest(lambda rate: Trial(rate, 0.0, True), 64.0, 1.0).rate == 64


def test_a_bound_that_nothing_keeps(clock: Any) -> None:
    with pytest.raises(ConfigError, match=r"no rate keeps the 99th percentile within 0\.2 s"):
        rates.highest(lambda rate: Trial(rate, None, False), 64.0, 0.2)
    with Servers(clock, 0.25) as runner:
        rates.possible(runner, batches(1), 0.25, clock)
        with pytest.raises(ConfigError, match=r"got 0\.25 s for a query that meets no other"):
            rates.possible(runner, batches(1), 0.2, clock)


def test_an_interrupted_trial_is_no_trial(clock: Any, sleep: Any) -> None:
    class Interrupted(Servers):
        def _begin(self, batch: Any, done: Any) -> None:
            raise KeyboardInterrupt

    with Interrupted(clock, 0.25) as runner, pytest.raises(KeyboardInterrupt):
        rates.attempt(runner, batches(1), 1.0, 1.0, 1.0, 0, clock, sleep)
