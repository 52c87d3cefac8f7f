"""Measuring several runners in turns: short slices of each, in an order that drift cannot use.

A machine grows warm, and its clock falls: what is measured later would look slower. So every runner
has a slice in every round, the order is drawn anew each time, and every second round is the one
before it backwards, in which a drift that is even over both cancels.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vggdeploy.benchmarks.scenarios import Clock
    from vggdeploy.contracts import Batch, Outputs, Runner


@dataclass(frozen=True)
class Slice:
    """What one turn of a runner came to.

    Attributes:
        latencies: seconds of each query, from when it was begun to its end.
        seconds: that all of them took together.
        images: in all queries together.
    """

    latencies: tuple[float, ...]
    seconds: float
    images: int

    @property
    def median(self) -> float:
        """Seconds of the median query."""
        return float(np.median(self.latencies))


def orders(count: int, seed: int) -> Iterator[list[int]]:
    """Orders of `count` runners, round after round without end; every second one is the one before
    it backwards."""
    rng = np.random.default_rng(seed)
    while True:
        drawn = [int(index) for index in rng.permutation(count)]
        yield drawn
        yield drawn[::-1]


def one_by_one(
    runner: Runner, batches: Sequence[Batch], seconds: float, least: int, clock: Clock
) -> Slice:
    """Queries of a runner, each begun when the one before has ended, until `seconds` have passed
    and `least` been made."""
    latencies: list[float] = []
    start = clock()
    for batch in itertools.cycle(batches):
        before = clock()
        runner.infer(batch)
        latencies.append(clock() - before)
        if len(latencies) >= least and clock() - start >= seconds:
            break
    return Slice(tuple(latencies), clock() - start, len(latencies) * len(batches[0]))


def queued(
    runner: Runner, batches: Sequence[Batch], seconds: float, least: int, clock: Clock
) -> Slice:
    """Queries of a runner with its queue kept full. As many as it keeps in flight come first and are
    not counted; then `least` times as many, or more of them until `seconds` have passed.

    What the counted ones took is from the mean end of the first ones to that of the last: the
    queue is then as full at the end as it is at the beginning, and no stream that ends a little
    before another looks idle, which would count against large batches, of which there are few.
    """
    depth, queries = runner.depth, list[_Query]()
    for batch in itertools.cycle(batches):
        count = len(queries)
        enough = count > least * depth and count % depth == 0
        if enough and clock() - queries[depth].began >= seconds:
            break
        query = _Query(clock)
        queries.append(query)
        runner.start(batch, query.done)
        query.began = clock()
    runner.drain()
    ends = sorted(query.ended for query in queries)
    total = float(np.mean(ends[-depth:]) - np.mean(ends[:depth]))
    counted = queries[depth:]
    return Slice(tuple(query.seconds for query in counted), total, len(counted) * len(batches[0]))


class _Query:
    """One query of a queue.

    It begins when `Runner.start` returns, which waits for a place in the queue first; where there
    is no queue it has ended by then, and began when it was asked for.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._asked = clock()
        self.ended = self._asked
        self.began = self._asked

    def done(self, outputs: Outputs) -> None:
        """Called when it has ended, from any thread."""
        self.ended = self._clock()

    @property
    def seconds(self) -> float:
        """From its beginning to its end; known when the queue is drained."""
        return self.ended - (self.began if self.ended > self.began else self._asked)
