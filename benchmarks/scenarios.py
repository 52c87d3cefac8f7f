"""The measuring loops over one `Runner`, each a way in which queries arrive.

``latency``
    closed loop: a query begins when the one before has ended.
``multistream``
    the same with queries of 8 samples, as MLPerf's MultiStream.
``throughput``
    the runner's queue is kept full.
``server``
    open loop: queries arrive at random (Poisson), whether or not earlier ones have ended, and
    latency counts from when a query was to arrive. So one that had to wait for its turn shows the
    wait, and a slow query cannot thin out those behind it (no coordinated omission).

Clock and sleep are arguments, so that tests measure exactly. Ctrl-C ends a loop and keeps what it
has.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from vggdeploy.benchmarks import statistics, warmup
from vggdeploy.benchmarks.warmup import Warmup, Windows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vggdeploy.contracts import Batch, Outputs, Runner

    Clock = Callable[[], float]
    Sleep = Callable[[float], None]

Name = Literal["latency", "throughput", "server", "multistream"]
NAMES: tuple[Name, ...] = ("latency", "throughput", "server", "multistream")

MULTISTREAM_SAMPLES = 8
"""Samples of a query of MultiStream (MLCommons, "MLPerf Inference Rules", section 3)."""

_MORE = 1.1
"""A precision is looked at each time there are this many times more samples, so that sorting them
stays out of the way."""


@dataclass(frozen=True)
class Stop:
    """When a loop ends: after `seconds` and `queries`, or as soon as `precision` is reached.

    Attributes:
        seconds: at least so long; with a precision, at most.
        queries: at least so many.
        precision: half the width of the median's interval, as a share of the median.
    """

    seconds: float
    queries: int = 1
    precision: float | None = None

    def checker(self) -> Callable[[Sequence[float], float], bool]:
        """Whether to end, given the samples and the time passed so far."""
        look = self.queries

        def over(samples: Sequence[float], passed: float) -> bool:
            nonlocal look
            count = len(samples)
            if count < self.queries:
                return False
            if passed >= self.seconds:
                return True
            if self.precision is None or count < look:
                return False
            look = max(count + 1, int(count * _MORE))
            return statistics.half_width(samples) <= self.precision

        return over


@dataclass
class Samples:
    """What a loop measured, in the order in which queries began.

    Attributes:
        seconds: of each query.
        started: when each began, by the clock; in an open loop, when it was to.
        begin: when the measurement began.
        end: when it ended.
        partial: whether it was interrupted.
    """

    seconds: list[float] = field(default_factory=list)
    started: list[float] = field(default_factory=list)
    begin: float = 0.0
    end: float = 0.0
    partial: bool = False

    def add(self, started: float, ended: float) -> None:
        """Take a query that has ended."""
        self.started.append(started)
        self.seconds.append(ended - started)

    @property
    def measured_seconds(self) -> float:
        """From the beginning to the last result."""
        return self.end - self.begin

    @property
    def offsets(self) -> list[float]:
        """When each query began, from the first."""
        return [at - self.started[0] for at in self.started]

    @property
    def queries_per_s(self) -> float | None:
        """Results over the time they took; None where there are none."""
        return len(self.seconds) / self.measured_seconds if self.measured_seconds > 0 else None


def warm_up(runner: Runner, batches: Sequence[Batch], clock: Clock = time.perf_counter) -> Warmup:
    """Queries one at a time until they have settled."""
    turns = itertools.cycle(batches)
    return warmup.warm(
        lambda: runner.infer(next(turns)),
        clock,
        most_seconds=warmup.MOST_SECONDS,
        most_queries=warmup.MOST_QUERIES,
    )


def latency(
    runner: Runner, batches: Sequence[Batch], stop: Stop, clock: Clock = time.perf_counter
) -> Samples:
    """One query at a time, the batches in turn: ``latency`` and ``multistream``."""
    found, over = Samples(), stop.checker()
    turns = itertools.cycle(batches)
    found.begin = found.end = clock()
    with _interruptible(found):
        while not over(found.seconds, found.end - found.begin):
            batch = next(turns)
            before = clock()
            runner.infer(batch)
            found.end = clock()
            found.add(before, found.end)
    return found


def throughput(
    runner: Runner, batches: Sequence[Batch], stop: Stop, clock: Clock = time.perf_counter
) -> tuple[Samples, Warmup]:
    """With the runner's queue kept full: a sample is a query's time in the queue.

    Counted are the results from when the queue has turned over and its times have settled to the
    last one taken while it was still full, so that neither filling nor draining is in it. Warm-up
    is in the same stream, since a queue that runs dry is not warm.
    """
    found, over, windows = Samples(), stop.checker(), Windows()
    entered: list[float] = []
    warmed: Warmup | None = None

    def feed() -> Iterator[Batch]:
        for batch in itertools.cycle(batches):
            entered.append(clock())
            yield batch

    first = last = clock()
    # Closing waits for what is still in flight.
    with _interruptible(found), contextlib.closing(runner.infer_many(feed())) as results:
        for finished, _ in enumerate(results):
            now = clock()
            if warmed is None:
                if finished >= runner.depth:
                    windows.add(now - entered[finished])
                bounded = now - first >= warmup.MOST_SECONDS or finished + 1 >= warmup.MOST_QUERIES
                if windows.steady or bounded:
                    warmed = Warmup(finished + 1, now - first, windows.steady)
                    found.begin = found.end = now
                last = now
                continue
            found.end = now
            found.add(entered[finished], now)
            if over(found.seconds, now - found.begin):
                break
    return found, warmed or Warmup(len(entered), last - first, steady=False)


def arrivals(rate: float, count: int, seed: int) -> list[float]:
    """When `count` queries arrive after the beginning, at `rate` a second (Poisson).

    The gaps of one seed are the same at every rate but for their scale, so that of two rates the
    higher one is never the easier by chance.
    """
    gaps = np.random.default_rng(seed).standard_exponential(count)
    return [float(at) for at in np.cumsum(gaps) / rate]


def server(
    runner: Runner,
    batches: Sequence[Batch],
    schedule: Sequence[float],
    clock: Clock = time.perf_counter,
    sleep: Sleep = time.sleep,
    give_up: Callable[[list[float]], bool] | None = None,
) -> Samples:
    """Queries that arrive by `schedule` (seconds from the beginning), whatever became of those
    before.

    Args:
        runner: with a queue, as many are in flight as it has room for; more wait for it.
        batches: taken in turn.
        schedule: ascending.
        clock: tells the time.
        sleep: waits for the next arrival.
        give_up: told the latencies of ended queries, in the order of their ends, before each
            arrival; true ends the run early.
    """
    found = Samples()
    ended: dict[int, float] = {}
    late: list[float] = []
    turns = itertools.cycle(batches)
    found.begin = found.end = clock()

    def done(index: int, due: float) -> Callable[[Outputs], None]:
        # May be called from the backend's own thread.
        def note(outputs: Outputs) -> None:
            ended[index] = now = clock()
            late.append(now - due)

        return note

    due = [found.begin + after for after in schedule]
    with _interruptible(found):
        for index, at in enumerate(due):
            if give_up is not None and give_up(late):
                break
            wait = at - clock()
            if wait > 0:
                sleep(wait)
            runner.start(next(turns), done(index, at))
        runner.drain()
    if found.partial:
        with contextlib.suppress(KeyboardInterrupt):
            runner.drain()
    for index in sorted(ended):
        found.add(due[index], ended[index])
    found.end = max(ended.values(), default=found.begin)
    return found


@contextlib.contextmanager
def _interruptible(found: Samples) -> Iterator[None]:
    """Keep what was measured when Ctrl-C comes."""
    try:
        yield
    except KeyboardInterrupt:
        found.partial = True
