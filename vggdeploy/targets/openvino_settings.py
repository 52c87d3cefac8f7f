"""Which settings of OpenVINO are worth trying on a machine.

A CPU's threads are shared out among streams, each of which computes one query at a time. Few streams
with many threads each read the weights seldom, many streams with few threads each wait for each
other less; which is better depends on network, batch and caches, so it is measured.

Precision is tried only where that leaves a target's accuracy what it is. ov-fp16 leaves the device to
compute as it likes; what it has that is at least as fine as float16 is tried. ov-fp32 promises
float32, ov-bf16 asks for bfloat16 already, and the float parts of ov-int8 stay float32: bfloat16
there would be another accuracy than the one that was verified.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

from vggdeploy.contracts import Settings

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from vggdeploy.contracts import RunOptions
    from vggdeploy.machine.cores import Cores

_FINE = {"FP16": "f16", "FP32": "f32"}
"""Capabilities of a device that are at least as fine as float16, and their hints."""

_GPU_STREAMS = (1, 2, 4)


def candidates(
    precision: str, options: RunOptions, cores: Cores, capabilities: Collection[str]
) -> tuple[Settings, ...]:
    """The settings to try, the backend's own choice first.

    Args:
        precision: of the target.
        options: device and goal.
        cores: what the process may use.
        capabilities: the device's ``OPTIMIZATION_CAPABILITIES``.
    """
    device = options.device.split(".")[0]
    hints: list[str | None] = [None]
    if device in ("CPU", "GPU"):
        hints += [hint for name, hint in _hints(precision).items() if name in capabilities]
    if device == "CPU":
        shared = _cpu(options.goal, cores)
    elif device == "GPU" and options.goal == "throughput":
        shared = [Settings(streams=streams) for streams in _GPU_STREAMS]
    else:
        shared = []
    found = [Settings(), *shared]
    tried = [
        Settings(each.streams, each.threads, each.pinning, hint)
        for hint, each in itertools.product(hints, found)
    ]
    return tuple(dict.fromkeys(tried))


def tunable(precision: str, settings: Settings, cores: int) -> bool:
    """Whether these may be among the `candidates` for a precision on a machine of so many CPUs."""
    most = max(cores, *_GPU_STREAMS)
    counts = (settings.streams, settings.threads)
    return settings.precision in (None, *_hints(precision).values()) and all(
        count is None or 1 <= count <= most for count in counts
    )


def _hints(precision: str) -> Mapping[str, str]:
    """Capabilities whose hints leave a target's accuracy what it is."""
    return _FINE if precision == "fp16" else {}


def _cpu(goal: str, cores: Cores) -> list[Settings]:
    counts = thread_counts(goal, cores)
    found = []
    for threads in counts:
        for streams in (1,) if goal == "latency" else _streams(threads):
            found += [Settings(streams, threads, pinning) for pinning in (True, False)]
    return found


def thread_counts(goal: str, cores: Cores) -> list[int]:
    """Threads worth trying, the most likely first: one a core, one a hyperthread, as many as a
    container's share of time keeps busy, and for one small query half of the cores."""
    limit = math.inf if cores.quota is None else max(1.0, cores.quota)
    wanted = [cores.physical, cores.logical]
    if limit < cores.logical:
        # More threads than the quota pays for are all stopped for the rest of each period.
        wanted = [math.floor(limit), math.ceil(limit), *wanted]
    if goal == "latency":
        wanted.append(max(1, int(min(cores.physical, limit)) // 2))
    return list(dict.fromkeys(wanted))


def _streams(threads: int) -> list[int]:
    """Powers of two up to a stream for each thread, and that."""
    powers = [2**power for power in range(threads.bit_length()) if 2**power <= threads]
    return sorted({*powers, threads})
