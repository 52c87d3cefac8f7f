"""What this process may take of its machine: the limits of its control group and its container.

Sources: the kernel's admin-guide/cgroup-v2.rst (cpu.max, memory.max, cpuset.cpus.effective) and
admin-guide/cgroup-v1 (cpu.cfs_quota_us, memory.limit_in_bytes, cpuset.effective_cpus).
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from vggdeploy.machine import files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_UNLIMITED = 1 << 60
"""Version 1 writes the largest whole number of pages for no limit: nobody has an exbibyte."""

_ENGINES = ("kubepods", "docker", "containerd", "crio", "libpod", "lxc")
"""Parts of the names that container engines give their control groups."""


def facts(root: Path = files.ROOT) -> dict[str, Any]:
    """The narrowest limits of this process's control groups.

    Returns:
        ``cgroup`` (1 or 2; None where there are none), ``cpus`` (of the quota, such as 1.5),
        ``memory_bytes``, ``cpuset`` (a list such as ``0-3``) and ``container`` (whose). With a
        ``cgroup``, None is no limit.
    """
    groups = list(_groups(root))
    # Control groups of version 1 may stand beside an empty tree of version 2.
    version = None if not groups else 1 if any(names for names, _ in groups) else 2
    return {
        "cgroup": version,
        "cpus": _least(_folders(root, groups, "cpu"), _cpus),
        "memory_bytes": _least(_folders(root, groups, "memory"), _memory),
        "cpuset": _cpuset(_folders(root, groups, "cpuset")),
        "container": _container(root),
    }


HELD_UP = "the container's CPU quota held it up"


def held_up(root: Path = files.ROOT) -> int | None:
    """How often a CPU quota has held this process's control group up so far (``nr_throttled``);
    None without one."""
    groups = list(_groups(root))
    found = [
        int(value)
        for folder in _folders(root, groups, "cpu")
        for line in (files.text(folder / "cpu.stat") or "").splitlines()
        for name, _, value in [line.partition(" ")]
        if name == "nr_throttled" and value.isdecimal()
    ]
    return max(found, default=None)


def load(root: Path = files.ROOT) -> list[float] | None:
    """Load averages over 1, 5 and 15 minutes."""
    words = (files.text(root / "proc/loadavg") or "").split()
    try:
        found = [float(word) for word in words[:3]]
    except ValueError:
        return None
    return found if len(found) == 3 else None


def memory(root: Path = files.ROOT) -> int | None:
    """Bytes of the machine's memory."""
    return _meminfo(root, "MemTotal")


def available_memory(root: Path = files.ROOT) -> int | None:
    """Bytes of memory that can be had without swapping: what Linux says of the machine, and less
    where a control group of this process leaves less; None where neither tells."""
    left = _least(_folders(root, list(_groups(root)), "memory"), _left)
    found = [each for each in (_meminfo(root, "MemAvailable"), left) if each is not None]
    return int(min(found)) if found else None


def _meminfo(root: Path, key: str) -> int | None:
    for line in (files.text(root / "proc/meminfo") or "").splitlines():
        name, _, value = line.partition(":")
        number = value.split()[0] if value.split() else ""
        if name == key and number.isdecimal():
            return 1024 * int(number)
    return None


def _groups(root: Path) -> Iterator[tuple[str, str]]:
    """The controllers and the path of each group of this process; version 2 names no controllers."""
    for line in (files.text(root / "proc/self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        # Hierarchies like name=systemd limit nothing.
        if number.isdecimal() and path.startswith("/") and "=" not in names:
            yield names, path


def _folders(root: Path, groups: list[tuple[str, str]], controller: str) -> list[Path]:
    """Folders whose limits hold for this process, its own first and those around it after.

    In a container the path may be the host's, which is not seen there: the container's own group
    is then where the tree begins.
    """
    base = root / "sys/fs/cgroup"
    owner = next((group for group in groups if controller in group[0].split(",")), None)
    if owner is not None:
        trees = [base / owner[0], base / controller]
    else:
        owner = next((group for group in groups if not group[0]), None)
        trees = [base]
    if owner is None:
        return []
    path = PurePosixPath(owner[1].lstrip("/"))
    if ".." in path.parts:  # a group outside of what is seen here
        path = PurePosixPath()
    inside = [path, *path.parents]
    return [tree / part for tree in trees for part in inside if (tree / part).is_dir()]


def _least(folders: list[Path], limit: Callable[[Path], float | None]) -> float | None:
    return min((found for folder in folders if (found := limit(folder)) is not None), default=None)


def _cpus(folder: Path) -> float | None:
    if said := files.text(folder / "cpu.max"):
        quota, _, period = said.partition(" ")
        if quota.isdecimal() and period.isdecimal() and int(period):
            return int(quota) / int(period)
    limit = files.number(folder / "cpu.cfs_quota_us")
    every = files.number(folder / "cpu.cfs_period_us")
    return limit / every if limit is not None and every and limit > 0 else None


def _memory(folder: Path) -> int | None:
    for name in ("memory.max", "memory.limit_in_bytes"):
        found = files.number(folder / name)
        if found is not None and found < _UNLIMITED:
            return found
    return None


def _left(folder: Path) -> int | None:
    """What a group's limit leaves of memory (memory.current; memory.usage_in_bytes)."""
    names = ("memory.current", "memory.usage_in_bytes")
    limit, used = _memory(folder), files.numbers(folder / name for name in names)
    return max(0, limit - used[0]) if limit is not None and used else None


def _cpuset(folders: list[Path]) -> str | None:
    names = ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus")
    return next(
        (found for folder in folders for name in names if (found := files.text(folder / name))),
        None,
    )


def _container(root: Path) -> str | None:
    """Whose container this is, by the marks that engines leave."""
    if (root / "run/.containerenv").exists():
        return "podman"
    if found := files.text(root / "run/systemd/container"):
        return found
    groups = [path for _, path in _groups(root)]
    for name in _ENGINES:
        if any(name in path for path in groups):
            return {"kubepods": "kubernetes", "libpod": "podman"}.get(name, name)
    return "docker" if (root / ".dockerenv").exists() else None
