"""What else the CPU did while something was measured: the share that other processes had.

Read from Linux's /proc/stat before and after; None where a machine does not tell.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vggdeploy.machine import cpu, files

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@dataclass(frozen=True)
class Look:
    """The CPU at one moment.

    Attributes:
        seconds: on the measurement's clock.
        busy_s: processor time that was used so far, by whom ever, of the CPUs that this process
            may use; time that a hypervisor gave to others is in it.
        own_s: processor time of this process so far.
        cpus: how many CPUs those are.
    """

    seconds: float
    busy_s: float | None
    own_s: float
    cpus: int


@dataclass(frozen=True)
class Window:
    """What happened between two looks.

    Attributes:
        others: the share of the CPUs' time that went to other processes, 0 to 1.
    """

    seconds: float
    others: float | None = None


def look(clock: Callable[[], float] = time.perf_counter, root: Path = files.ROOT) -> Look:
    """Look at the CPU now."""
    cpus = cpu.usable(root)
    return Look(clock(), _busy(root, cpus), time.process_time(), len(cpus))


def between(before: Look, after: Look) -> Window:
    """What happened from one look to the next."""
    seconds = after.seconds - before.seconds
    if before.busy_s is None or after.busy_s is None or seconds <= 0:
        return Window(seconds)
    used = (after.busy_s - before.busy_s) - (after.own_s - before.own_s)
    # The kernel counts in ticks of 10 ms, and ours apart from the whole.
    return Window(seconds, min(1.0, max(0.0, used / (seconds * before.cpus))))


def _busy(root: Path, cpus: frozenset[int]) -> float | None:
    """All but idle and iowait of /proc/stat; time of guests is in user's already (proc(5))."""
    ticks, seen = 0, False
    for line in (files.text(root / "proc/stat") or "").splitlines():
        name, *fields = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cpus:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
            ticks += user + nice + system + irq + softirq + steal
            seen = True
    return ticks / os.sysconf("SC_CLK_TCK") if seen else None
