"""The highest rate of arrivals that a runner serves within a bound on the 99th percentile."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vggdeploy.benchmarks import scenarios, statistics
from vggdeploy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vggdeploy.benchmarks.scenarios import Clock, Sleep
    from vggdeploy.contracts import Batch, Runner

PERCENT = 99
FEWEST = 100
"""Queries of a trial: with fewer, the 99th percentile is the slowest query and nothing more."""

RESOLUTION = 0.02
"""Rates this close, as a share of the higher one, are told apart no further."""

STEPS = 8

ALONE = 5
"""Queries without any other in flight that show whether the bound can be kept at all."""

LOWEST = 1 / 50
"""Of the capacity: the lowest rate that is tried. Arrivals as rare as that find the runner idle."""


@dataclass(frozen=True)
class Trial:
    """A rate that was tried.

    Attributes:
        rate: arrivals a second.
        p99: of latency, in seconds; None where the trial ended early, since too many were late.
        holds: whether `p99` is within the bound.
    """

    rate: float
    p99: float | None
    holds: bool


@dataclass(frozen=True)
class Search:
    """The highest rate that held, and all that were tried, in order."""

    rate: float
    tried: tuple[Trial, ...]


def highest(attempt: Callable[[float], Trial], capacity: float, bound_s: float) -> Search:
    """Bisect between nothing and `capacity` for the highest rate at which `attempt` holds.

    More arrivals than the runner has capacity for pile up without end, so nothing is tried above.

    Raises:
        ConfigError: when not even the lowest rate holds.
    """
    tried = [attempt(capacity)]
    low, high = (capacity, capacity) if tried[0].holds else (0.0, capacity)
    while len(tried) < STEPS and high - low > RESOLUTION * high and high > LOWEST * capacity:
        tried.append(attempt((low + high) / 2))
        low, high = (tried[-1].rate, high) if tried[-1].holds else (low, tried[-1].rate)
    if not low:
        raise _too_low(bound_s, f"more, at {high:.3g} queries a second")
    return Search(low, tuple(tried))


def possible(runner: Runner, batches: Sequence[Batch], bound_s: float, clock: Clock) -> None:
    """Make sure that a query which meets no other keeps the bound, before rates are tried.

    Raises:
        ConfigError: when none of a few does.
    """
    found = scenarios.latency(runner, batches, scenarios.Stop(0.0, ALONE), clock)
    if found.partial:
        raise KeyboardInterrupt
    if min(found.seconds) > bound_s:
        raise _too_low(bound_s, f"{min(found.seconds):.3g} s for a query that meets no other")


def _too_low(bound_s: float, got: str) -> ConfigError:
    return ConfigError(
        f"no rate keeps the 99th percentile within {bound_s:g} s",
        got=got,
        expected="a bound above the latency of a single query",
        fix="raise --p99-bound",
    )


def attempt(
    runner: Runner,
    batches: Sequence[Batch],
    rate: float,
    bound_s: float,
    seconds: float,
    seed: int,
    clock: Clock = time.perf_counter,
    sleep: Sleep = time.sleep,
) -> Trial:
    """Serve arrivals at `rate` for about `seconds`, at least `FEWEST` of them.

    Raises:
        KeyboardInterrupt: when interrupted; a trial's samples are not kept.
    """
    count = max(FEWEST, math.ceil(rate * seconds))
    allowed = count - -(-PERCENT * count // 100)
    seen = late = 0

    def hopeless(latencies: list[float]) -> bool:
        nonlocal seen, late
        fresh = latencies[seen:]
        seen += len(fresh)
        late += sum(value > bound_s for value in fresh)
        return late > allowed

    schedule = scenarios.arrivals(rate, count, seed)
    found = scenarios.server(runner, batches, schedule, clock, sleep, hopeless)
    if found.partial:
        raise KeyboardInterrupt
    if len(found.seconds) < count:
        return Trial(rate, None, False)
    p99 = statistics.percentile(sorted(found.seconds), PERCENT)
    return Trial(rate, p99, p99 <= bound_s)
