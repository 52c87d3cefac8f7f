"""Warm-up ends when three windows agree, or at a bound, and says which."""

from __future__ import annotations

from typing import Any

import pytest

from vggdeploy.benchmarks import warmup
from vggdeploy.benchmarks.warmup import Warmup


def warmed(clock: Any, durations: list[float], **bounds: Any) -> Warmup:
    left = iter(durations)

    def query() -> None:
        clock.now += next(left)

    return warmup.warm(query, clock, **bounds)


def test_three_equal_windows_are_enough(clock: Any) -> None:
    # Windows of three queries, since three take more than a tenth of a second.
    assert warmed(clock, [0.25] * 20) == Warmup(9, 2.25, steady=True)


def test_windows_of_short_queries_last_a_tenth_of_a_second(clock: Any) -> None:
    step = 2.0**-6
    # Seven make 0.109 s.
    assert warmed(clock, [step] * 100) == Warmup(21, 21 * step, steady=True)


def test_it_waits_for_the_last_three_windows(clock: Any) -> None:
    slow = [4.0, 4.0, 4.0, 2.0, 2.0, 2.0]
    assert warmed(clock, slow + [1.0] * 20) == Warmup(15, 18 + 9, steady=True)


def test_a_single_slow_query_does_not_count_in_a_windows_median(clock: Any) -> None:
    assert warmed(clock, [8.0, *[1.0] * 20]).queries == 9


@pytest.mark.parametrize(("last", "steady"), [(1.09, True), (1.11, False)])
def test_within_a_tenth(clock: Any, last: float, steady: bool) -> None:
    found = warmed(clock, [1.0] * 6 + [last] * 3, most_queries=9)
    assert found.steady is steady


def test_it_is_bounded_in_time_and_in_queries(clock: Any) -> None:
    growing = [2.0**k for k in range(20)]
    found = warmed(clock, growing)
    assert found == Warmup(5, 31.0, steady=False)  # 30 s had passed
    found = warmed(clock, growing, most_seconds=1e9, most_queries=7)
    assert found == Warmup(7, 127.0, steady=False)
