"""The cores that this process may use: by affinity, without hyperthreads, and within a container."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vggdeploy.machine import cpu, files, limits

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Cores:
    """What a process may compute on.

    Attributes:
        logical: CPUs that it may be scheduled on.
        physical: cores among them, hyperthreads of one counted once.
        quota: CPUs' worth of time that a container gives it; None without a limit.
    """

    logical: int
    physical: int
    quota: float | None = None


def usable(root: Path = files.ROOT) -> Cores:
    """The cores of this process; CPUs that do not tell their core are cores of their own."""
    own = cpu.usable(root)
    told = [cpu.core(folder) for folder in cpu.folders_of(root, own)]
    silent = len(own) - len(told) + told.count(None)
    return Cores(len(own), len(set(told) - {None}) + silent, limits.facts(root)["cpus"])
