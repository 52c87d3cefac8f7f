"""Statistics of samples, in seconds; derived from the samples that a result keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

WINDOWS = 3
DRIFT = 0.10
"""Window medians further than this from the overall median mean that the machine changed under
the measurement."""

SPREAD = 1.25
"""A 90th percentile this many times the median means that something else was running."""


@dataclass(frozen=True)
class Latency:
    """A summary of latencies, in seconds."""

    p50: float
    p90: float
    p99: float
    mean: float
    min: float
    max: float


def summarize(samples: Sequence[float]) -> Latency:
    """Percentiles by the nearest rank above (no value that was not measured), mean and range."""
    p50, p90, p99 = np.percentile(samples, (50, 90, 99), method="higher")
    return Latency(
        float(p50), float(p90), float(p99), float(np.mean(samples)), min(samples), max(samples)
    )


def instability(samples: Sequence[float]) -> list[str]:
    """Why the samples, in order of time, are not to be trusted; empty when they are."""
    reasons = []
    median = float(np.median(samples))
    if len(samples) < 10 * WINDOWS:
        reasons.append(f"{len(samples)} samples are few: measure longer with --seconds")
    windows = [float(np.median(part)) for part in np.array_split(samples, WINDOWS) if len(part)]
    worst = max(windows, key=lambda window: abs(window - median))
    if abs(worst - median) > DRIFT * median:
        reasons.append(
            f"a third of the run had a median of {worst:.6g} s and the whole {median:.6g} s: "
            "let the machine cool, or fix its clock"
        )
    p90 = float(np.percentile(samples, 90, method="higher"))
    if p90 > SPREAD * median:
        reasons.append(
            f"the 90th percentile is {p90 / median:.2f} times the median: "
            "stop other programs on the machine"
        )
    return reasons
