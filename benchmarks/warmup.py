"""Warm-up: queries before those that count, until their times have settled.

The first queries allocate, page weights in and let the clock rise. How many that takes differs from
a laptop to a board, so it is watched and not guessed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

WINDOWS = 3
WITHIN = 0.10
"""How far the medians of so many successive windows may lie apart."""

WINDOW_QUERIES = 3
WINDOW_SECONDS = 0.1
"""What a window takes at least: of short queries, many."""

MOST_SECONDS = 30.0
MOST_QUERIES = 20_000


@dataclass(frozen=True)
class Warmup:
    """What a warm-up took, and whether it settled before its bounds."""

    queries: int
    seconds: float
    steady: bool


class Windows:
    """The medians of successive windows of durations, and whether the last three agree."""

    def __init__(self) -> None:
        self.steady = False
        self._open: list[float] = []
        self._medians: list[float] = []

    def add(self, seconds: float) -> None:
        """Take a query's duration."""
        self._open.append(seconds)
        if len(self._open) < WINDOW_QUERIES or sum(self._open) < WINDOW_SECONDS:
            return
        self._medians = [*self._medians, median(self._open)][-WINDOWS:]
        self._open = []
        least = min(self._medians)
        self.steady = len(self._medians) == WINDOWS and max(self._medians) - least <= WITHIN * least


def warm(
    query: Callable[[], object],
    clock: Callable[[], float] = time.perf_counter,
    *,
    most_seconds: float = MOST_SECONDS,
    most_queries: int = MOST_QUERIES,
) -> Warmup:
    """Run `query` until three windows' medians are within 10%, or a bound is reached."""
    windows, queries, begin = Windows(), 0, clock()
    before = now = begin
    while not windows.steady and queries < most_queries and now - begin < most_seconds:
        query()
        queries, now = queries + 1, clock()
        windows.add(now - before)
        before = now
    return Warmup(queries, now - begin, windows.steady)
