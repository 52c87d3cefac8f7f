"""The CPU's last-level cache: what need not come from memory, and what a bandwidth probe must
outgrow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vggdeploy.machine import cpu, files

if TYPE_CHECKING:
    from pathlib import Path

_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def last_level_bytes(root: Path = files.ROOT) -> int | None:
    """Bytes of the last-level caches of the CPUs that this process may use; None where the system
    does not tell.

    A cache that several CPUs share counts once. Source: Linux,
    Documentation/ABI/testing/sysfs-devices-system-cpu (``cacheinfo``).
    """
    found: dict[tuple[int, str], int] = {}
    for folder in cpu.folders_of(root, cpu.usable(root) or None):
        for index in files.numbered(folder / "cache", "index*"):
            kind, level, size, shared = (
                files.text(index / name) or ""
                for name in ("type", "level", "size", "shared_cpu_list")
            )
            try:
                if kind != "Instruction":
                    found[int(level), shared] = _bytes(size)
            except ValueError:
                continue
    if not found:
        return None
    last = max(level for level, _ in found)
    return sum(size for (level, _), size in found.items() if level == last) or None


def _bytes(said: str) -> int:
    """``"32768K"`` in bytes."""
    unit = _UNITS.get(said[-1:])
    return int(said[:-1]) * unit if unit else int(said)
