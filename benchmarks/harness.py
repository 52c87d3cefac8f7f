"""The measuring loops: closed-loop latency, queued throughput, attainable peak.

The clock is an argument, so that tests can measure exactly.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vggdeploy.budget import Device

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from vggdeploy.contracts import Probe, Reporter, Runner

    Clock = Callable[[], float]
    Batch = NDArray[np.float32]

WARMUP_QUERIES = 3
"""At least so many queries are run before any is measured: the first ones allocate."""

PROBE_SECONDS = 0.6
"""Time given to each probe of the peak."""


@dataclass(frozen=True)
class Effort:
    """How long to measure: until `seconds` have passed and `queries` been made."""

    seconds: float
    queries: int
    warmup_seconds: float = 0.5


def latency(
    runner: Runner, batches: Sequence[Batch], effort: Effort, clock: Clock = time.perf_counter
) -> list[float]:
    """Seconds of each query, one at a time, each begun when the one before has ended.

    The batches are used in turn. Warm-up is not among the samples.
    """
    start, turn = clock(), 0
    while turn < WARMUP_QUERIES or clock() - start < effort.warmup_seconds:
        runner.infer(batches[turn % len(batches)])
        turn += 1
    samples: list[float] = []
    begin = clock()
    while len(samples) < effort.queries or clock() - begin < effort.seconds:
        batch = batches[len(samples) % len(batches)]
        before = clock()
        runner.infer(batch)
        samples.append(clock() - before)
    return samples


def throughput(
    runner: Runner, batches: Sequence[Batch], effort: Effort, clock: Clock = time.perf_counter
) -> float:
    """Images a second with the runner's queue kept full.

    Counted between results: from when the queue has turned over once to the last result taken
    while it was still full, so that neither filling nor draining is in it.
    """
    warm = max(WARMUP_QUERIES, runner.depth)
    begin = now = clock()
    counted = 0
    # Closing waits for what is still in flight.
    with contextlib.closing(runner.infer_many(itertools.cycle(batches))) as results:
        for finished, _ in enumerate(results, start=1):
            now = clock()
            if finished == warm:
                begin = now
            counted = finished - warm
            if counted >= effort.queries and now - begin >= effort.seconds:
                break
    return counted * len(batches[0]) / (now - begin)


def peak(probes: Sequence[Probe], reporter: Reporter, clock: Clock = time.perf_counter) -> Device:
    """The device's attainable MAC rate and bandwidth: each probe's shortest query, best probe.

    The shortest and not the median, since a peak is what the device can do when nothing is in
    its way.
    """
    macs, size = 0.0, 0.0
    for probe in reporter.track(probes, len(probes), "measuring the attainable peak"):
        rng = np.random.default_rng(0)
        with probe.runner as runner:
            shape = [side or 1 for side in runner.input.shape]
            batch = rng.random(shape, np.float32)
            best = min(latency(runner, [batch], Effort(PROBE_SECONDS, 5, 0.1), clock))
        macs, size = max(macs, probe.macs / best), max(size, probe.bytes / best)
    return Device(macs, size)
