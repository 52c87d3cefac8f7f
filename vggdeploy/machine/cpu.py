"""The CPU: its name, instruction sets, cores, clock, and who governs it.

Sources: proc_cpuinfo(5); the kernel's ABI/testing/sysfs-devices-system-cpu (topology, SMT, cpufreq)
and admin-guide/pm/{cpufreq,intel_pstate,amd-pstate}.rst (governors, turbo).
"""

from __future__ import annotations

import os
import platform
from typing import TYPE_CHECKING, Any

from vggdeploy.machine import files

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

_ISA = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
    "sve",
    "bf16",
)
"""CPU flags that decide how fast 8-bit and 16-bit arithmetic is."""

# MIDR_EL1's implementer and part number, from the kernel's arch/arm64/include/asm/cputype.h: Arm's
# CPUs do not tell their names.
_ARM = {
    (0x41, 0xD03): "Cortex-A53",
    (0x41, 0xD04): "Cortex-A35",
    (0x41, 0xD05): "Cortex-A55",
    (0x41, 0xD07): "Cortex-A57",
    (0x41, 0xD08): "Cortex-A72",
    (0x41, 0xD09): "Cortex-A73",
    (0x41, 0xD0A): "Cortex-A75",
    (0x41, 0xD0B): "Cortex-A76",
    (0x41, 0xD0C): "Neoverse-N1",
    (0x41, 0xD0D): "Cortex-A77",
    (0x41, 0xD40): "Neoverse-V1",
    (0x41, 0xD41): "Cortex-A78",
    (0x41, 0xD42): "Cortex-A78AE",
    (0x41, 0xD44): "Cortex-X1",
    (0x41, 0xD49): "Neoverse-N2",
    (0x41, 0xD4B): "Cortex-A78C",
    (0x41, 0xD4F): "Neoverse-V2",
    (0x41, 0xD83): "Neoverse-V3AE",
    (0x41, 0xD84): "Neoverse-V3",
    (0x4E, 0x003): "NVIDIA Denver 2",
    (0x4E, 0x004): "NVIDIA Carmel",
}


class Info:
    """/proc/cpuinfo: every field with the values that the CPUs give it, in order."""

    def __init__(self, root: Path) -> None:
        self._fields: dict[str, list[str]] = {}
        for line in (files.text(root / "proc/cpuinfo") or "").splitlines():
            key, _, value = line.partition(":")
            self._fields.setdefault(key.strip(), []).append(value.strip())

    def first(self, key: str) -> str | None:
        """The first CPU's value; None where there is none."""
        return next(iter(self._fields.get(key, ())), None) or None

    def all(self, key: str) -> list[str]:
        """Each CPU's value."""
        return self._fields.get(key, [])

    @property
    def x86(self) -> bool:
        """Whether this is x86, which alone calls its instruction sets flags."""
        return "flags" in self._fields

    @property
    def flags(self) -> frozenset[str]:
        """Instruction sets; Arm calls them features, and lists them as x86 lists its own."""
        return frozenset((self.first("flags") or self.first("Features") or "").split())


def facts(root: Path = files.ROOT) -> dict[str, Any]:
    """What the CPU is and how it is set.

    Returns:
        ``cpu`` (its model), ``board``, ``isa``, ``cores`` (logical ones that this process may use),
        ``logical_cores`` and ``physical_cores`` (that are online), ``smt`` and ``turbo`` (whether
        they are on), ``governor``, ``frequency_hz`` (``current`` is the mean over cores, ``min`` and
        ``max`` are the hardware's, ``allowed_max`` what it is held to), ``microcode``, and
        ``virtual`` (whether a hypervisor says it is there). None for what is not told.
    """
    info = Info(root)
    folders = folders_of(root)
    online = files.cpu_list(files.text(root / "sys/devices/system/cpu/online"))
    if online is not None:
        folders = [folder for folder in folders if int(folder.name[3:]) in online]
    logical = len(folders) or len(info.all("processor")) or None
    physical = _physical(folders, info)
    return {
        "cpu": _model(info, root),
        "board": board(root),
        "isa": [name for name in _ISA if name in info.flags],
        "cores": len(usable(root)) or logical,
        "logical_cores": logical,
        "physical_cores": physical,
        "smt": _smt(root, logical, physical),
        "turbo": _turbo(root, folders),
        "governor": _governor(folders),
        "frequency_hz": frequency(root, folders),
        "microcode": info.first("microcode"),
        # Arm's hypervisors cannot be seen in its features.
        "virtual": "hypervisor" in info.flags if info.x86 else None,
    }


def saturates(root: Path = files.ROOT) -> bool:
    """Whether this CPU adds pairs of 8-bit products in 16 bits that saturate: x86 without VNNI."""
    info = Info(root)
    return info.x86 and not any("vnni" in flag or "amx_int8" in flag for flag in info.flags)


def board(root: Path = files.ROOT) -> str | None:
    """The board's name as its device tree gives it: of Arm machines, mostly."""
    return files.text(root / "proc/device-tree/model")


def frequency(root: Path = files.ROOT, folders: list[Path] | None = None) -> dict[str, int | None]:
    """The cores' clock in Hz, by cpufreq, else as /proc/cpuinfo says it now."""
    if folders is None:
        folders = folders_of(root)

    def khz(name: str) -> list[int]:
        return files.numbers(folder / "cpufreq" / name for folder in folders)

    now = [1000 * value for value in khz("scaling_cur_freq")] or [
        round(float(value) * 1e6)
        for value in Info(root).all("cpu MHz")
        if value.replace(".", "", 1).isdecimal()
    ]
    lowest, highest = khz("cpuinfo_min_freq"), khz("cpuinfo_max_freq")
    allowed = khz("scaling_max_freq")
    return {
        "current": round(sum(now) / len(now)) if now else None,
        "min": 1000 * min(lowest) if lowest else None,
        "max": 1000 * max(highest) if highest else None,
        "allowed_max": 1000 * max(allowed) if allowed else None,
    }


def _model(info: Info, root: Path) -> str | None:
    parts = []
    for implementer, part in zip(info.all("CPU implementer"), info.all("CPU part"), strict=False):
        try:
            name = _ARM.get((int(implementer, 16), int(part, 16)))
        except ValueError:
            name = None
        if name and name not in parts:
            parts.append(name)
    if parts:
        # Kernels of Jetsons say "ARMv8 Processor rev 1" as the model of all.
        return " + ".join(parts)
    found = info.first("model name") or info.first("Model") or board(root)
    if found is None and root == files.ROOT:
        return platform.processor() or platform.machine() or None
    return found


def folders_of(root: Path = files.ROOT, cpus: Collection[int] | None = None) -> list[Path]:
    """Where the kernel tells of each CPU, of those in `cpus`; of all without."""
    found = files.numbered(root / "sys/devices/system/cpu", "cpu[0-9]*")
    return found if cpus is None else [folder for folder in found if int(folder.name[3:]) in cpus]


def usable(root: Path = files.ROOT) -> frozenset[int]:
    """The CPUs that this process may run on; empty where that is not told."""
    if root == files.ROOT and hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    for line in (files.text(root / "proc/self/status") or "").splitlines():
        key, _, value = line.partition(":")
        if key == "Cpus_allowed_list":
            return frozenset(files.cpu_list(value.strip()) or ())
    return frozenset(range(os.cpu_count() or 1) if root == files.ROOT else ())


def core(folder: Path) -> str | None:
    """What a CPU's core is known by: the set of its threads. The core's own number is only unique
    in its cluster or package."""
    return files.text(folder / "topology/thread_siblings_list")


def _physical(folders: list[Path], info: Info) -> int | None:
    cores = {core(folder) for folder in folders} - {None}
    if cores:
        return len(cores)
    pairs = zip(info.all("physical id"), info.all("core id"), strict=False)
    return len(set(pairs)) or None


def _smt(root: Path, logical: int | None, physical: int | None) -> bool | None:
    active = files.number(root / "sys/devices/system/cpu/smt/active")
    if active is not None:
        return bool(active)
    return None if logical is None or physical is None else logical > physical


def _turbo(root: Path, folders: list[Path]) -> bool | None:
    base = root / "sys/devices/system/cpu"
    if (off := files.number(base / "intel_pstate/no_turbo")) is not None:
        return not off
    if (boost := files.number(base / "cpufreq/boost")) is not None:
        return bool(boost)
    own = files.numbers(folder / "cpufreq/boost" for folder in folders)
    return any(own) if own else None


def _governor(folders: list[Path]) -> str | None:
    """The governor; all of them where cores have different ones."""
    found = {files.text(folder / "cpufreq/scaling_governor") for folder in folders} - {None}
    return ", ".join(sorted(map(str, found))) or None
