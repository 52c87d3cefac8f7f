"""Measure a bundle: latency, throughput, and both against its budget."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vggdeploy import budget
from vggdeploy.benchmarks import harness, statistics
from vggdeploy.benchmarks.harness import Effort
from vggdeploy.contracts import RunOptions, Silent
from vggdeploy.errors import ConfigError
from vggdeploy.machine import system

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from vggdeploy.bundle import Bundle
    from vggdeploy.contracts import Reporter, Target

SECONDS = 5.0
QUERIES = 30
LARGEST_BATCH = 1024
"""Images of 224x224 in FP32 that take 0.6 GB: more serves no measurement."""


@dataclass(frozen=True)
class BenchOptions:
    """How to measure.

    Attributes:
        batch: images a query.
        seconds: how long latency and throughput are measured, each.
        device: the backend's own name of the device.
    """

    batch: int = 1
    seconds: float = SECONDS
    device: str = "CPU"

    def check(self) -> None:
        """Make sure that something can be measured.

        Raises:
            ConfigError: for an impossible batch or time.
        """
        if not 1 <= self.batch <= LARGEST_BATCH:
            raise ConfigError(
                "the batch is out of range",
                got=self.batch,
                expected=f"1 to {LARGEST_BATCH}",
                fix="mend --batch",
            )
        if not 0 < self.seconds < math.inf:
            raise ConfigError(
                "the time is out of range",
                got=self.seconds,
                expected="above 0 and finite",
                fix="mend --seconds",
            )


def bench(
    opened: Bundle,
    target: Target,
    options: BenchOptions,
    reporter: Reporter | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Measure `opened` on `target`'s device.

    Returns:
        the result's JSON form: every latency sample in order, summaries, the judgement against
        the measured peak, and the machine.

    Raises:
        ConfigError: for an impossible batch or time.
        MissingError: when this machine cannot run it.
    """
    options.check()
    reporter = reporter or Silent()
    effort = Effort(options.seconds, QUERIES)
    batches = _batches(opened, options.batch)
    runs = {
        goal: RunOptions(options.device, options.batch, goal) for goal in ("latency", "throughput")
    }
    device = harness.peak(target.probes(runs["latency"]), reporter, clock)
    with target.open(opened, runs["latency"]) as runner:
        with reporter.step("measuring latency"):
            samples = harness.latency(runner, batches, effort, clock)
        details = runner.details
    with target.open(opened, runs["throughput"]) as runner:
        with reporter.step("measuring throughput"):
            images_per_s = harness.throughput(runner, batches, effort, clock)
        requests = runner.depth
    totals = opened.budget()["total"]
    summary = statistics.summarize(samples)
    judgement = budget.judge(
        options.batch * totals["macs"], totals["weight_bytes"], summary.p50, device
    )
    reasons = statistics.instability(samples)
    return {
        "kind": "bench",
        "bundle": str(opened.path),
        "target": opened.target,
        "digest": opened.manifest["digest"],
        "scenario": "latency",
        "batch": options.batch,
        "device": details,
        "latency_s": asdict(summary),
        "samples_s": samples,
        "throughput_ips": images_per_s,
        "throughput_requests": requests,
        "budget": asdict(judgement),
        "stable": not reasons,
        "unstable_because": reasons,
        "engine_bytes": opened.engine_bytes,
        "system": system(),
    }


def _batches(opened: Bundle, size: int) -> list[NDArray[np.float32]]:
    """The probes as batches of `size`, starting over where they run out."""
    images = opened.probes().images
    recipe = opened.preprocess
    count = max(1, min(8, len(images) // size))
    turns = np.arange(count * size) % len(images)
    return [recipe.arithmetic(images[turns[i * size : (i + 1) * size]]) for i in range(count)]
