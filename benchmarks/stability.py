"""Why a figure is not to be trusted, with what was found, and the commands that would help."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vggdeploy.benchmarks import statistics
from vggdeploy.machine.limits import HELD_UP

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vggdeploy.benchmarks.warmup import Warmup
    from vggdeploy.benchmarks.watch import Window

THIRDS = 3
DRIFT = 0.10
"""Medians of thirds of the run further apart than this mean that the machine changed under the
measurement."""

SPREAD = 1.25
"""A 90th percentile this many times the median means that something else was running."""

FEWEST = 30
"""Samples below which neither drift nor spread can be told."""

OTHERS = 0.05
"""The share of the CPUs' time that other processes may have: what a system's own services take on
two CPUs, and a fraction of what one busy process does."""

SHORTEST_S = 0.5
"""The kernel counts processor time in ticks of 10 ms: over less, shares are not judged."""

QUIET = "ps -eo pid,pcpu,comm --sort=-pcpu | head"
PERFORMANCE = "sudo cpupower frequency-set -g performance"


@dataclass(frozen=True)
class Diagnosis:
    """Reasons not to trust the figures, and commands to try; both empty where there are none."""

    reasons: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()

    def __add__(self, other: Diagnosis) -> Diagnosis:
        advice = (*self.advice, *(line for line in other.advice if line not in self.advice))
        return Diagnosis((*self.reasons, *other.reasons), advice)


def of_samples(samples: Sequence[float], *, waiting: bool = False) -> Diagnosis:
    """Of latencies in the order of time: too few, drift, spread.

    Args:
        samples: in seconds.
        waiting: whether queries wait by chance (an open loop), so that neither drift nor spread
            says anything of the machine.
    """
    found = Diagnosis()
    if len(samples) < FEWEST:
        found += Diagnosis(
            (f"{len(samples)} samples are few: measure longer",), (f"--queries {FEWEST}",)
        )
    if waiting or found.reasons:
        return found
    median = statistics.percentile(sorted(samples), 50)
    parts = [
        statistics.percentile(sorted(part), 50)
        for part in map(list, np.array_split(samples, THIRDS))
        if part
    ]
    if max(parts) > (1 + DRIFT) * min(parts):
        found += Diagnosis(
            (
                f"drift: a third of the run had a median of {max(parts):.6g} s and another "
                f"{min(parts):.6g} s",
            ),
            (PERFORMANCE, "--seconds 30"),
        )
    p90 = statistics.percentile(sorted(samples), 90)
    if p90 > SPREAD * median:
        found += Diagnosis(
            (f"variation: the 90th percentile is {p90 / median:.2f} times the median",), (QUIET,)
        )
    return found


def of_percentile(count: int, percent: int) -> Diagnosis:
    """Of a percentile that a scenario is about and `count` samples do not show."""
    needed = statistics.needed(percent)
    if count >= needed:
        return Diagnosis()
    return Diagnosis(
        (f"{count} samples are too few for the {percent}th percentile, which takes {needed}",),
        (f"--queries {needed}",),
    )


def of_precision(samples: Sequence[float], precision: float | None) -> Diagnosis:
    """Of a precision that was asked for and not reached in time."""
    if precision is None:
        return Diagnosis()
    reached = statistics.half_width(samples)
    if reached <= precision:
        return Diagnosis()
    known = "not known" if math.isinf(reached) else f"known to within {reached:.2%}"
    return Diagnosis(
        (f"the median is {known}, not the {precision:.2%} asked for",), ("--seconds 300",)
    )


def of_server(rate: float, capacity: float, p99: float, bound_s: float | None) -> Diagnosis:
    """Of arrivals that pile up, or that were late when they were measured."""
    found = Diagnosis()
    if rate > capacity:
        found += Diagnosis(
            (
                f"{rate:.4g} queries a second arrive and at most {capacity:.4g} can end: they "
                "wait the longer the longer it lasts",
            ),
            (f"--rate {0.8 * capacity:.3g}",),
        )
    if bound_s is not None and p99 > bound_s:
        found += Diagnosis(
            (f"the 99th percentile, {p99:.6g} s, is above the bound of {bound_s:g} s",),
            (f"--rate {0.9 * rate:.3g}",),
        )
    return found


def of_loadgen(said: Mapping[str, Any]) -> Diagnosis:
    """Of a run that LoadGen does not call valid.

    Args:
        said: a result's ``mlperf``.
    """
    if said["result"] == "VALID":
        return Diagnosis()
    unmet = ", ".join(f"{rule}: NO" for rule in said.get("because", ()))
    return Diagnosis(
        (f"LoadGen calls the run {said['result']}" + (f" ({unmet})" if unmet else ""),),
        () if said["full"] else ("--full",),
    )


def of_warmup(warmup: Warmup) -> Diagnosis:
    """Of queries that did not settle before they were measured."""
    if warmup.steady:
        return Diagnosis()
    return Diagnosis(
        (
            f"warm-up: {warmup.queries} queries in {warmup.seconds:.1f} s did not settle within "
            "10% of each other",
        ),
        (QUIET, PERFORMANCE),
    )


def of_machine(window: Window) -> Diagnosis:
    """Of other processes that were on the CPU meanwhile."""
    if window.others is None or window.seconds < SHORTEST_S or window.others <= OTHERS:
        return Diagnosis()
    return Diagnosis(
        (f"a busy CPU: other processes had {window.others:.0%} of its time",), (QUIET,)
    )


def of_throttling(throttled: Sequence[str]) -> Diagnosis:
    """Of what `machine.throttling` says held the machine back meanwhile."""
    found = Diagnosis()
    for line in throttled:
        if line.startswith(HELD_UP):
            found += Diagnosis((line,), ("docker update --cpus 0 CONTAINER",))
        else:
            found += Diagnosis((f"throttling: {line}",), (PERFORMANCE, "sensors"))
    return found
