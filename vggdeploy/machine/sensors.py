"""How hot the machine is, how fast it is clocked, and whether it holds itself back.

Sources: the kernel's hwmon/sysfs-interface.rst (temperatures in millidegrees),
driver-api/thermal/sysfs-api.rst (zones, cooling devices) and
ABI/testing/sysfs-devices-system-cpu (thermal_throttle); the Jetson Linux Developer Guide
(over-current events); Raspberry Pi's documentation of ``vcgencmd get_throttled``.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from vggdeploy.machine import cpu, files, limits, nvml

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_COLDEST, _HOTTEST = -60.0, 150.0
"""Degrees beyond which a sensor is off or absent: Jetson's zones say -256, others 0x7fff."""

_CLOCK_FELL = 0.95
"""Cores that run at less than this share of what they ran at before are held back, and not merely
unsteady: all-core clocks are reached within the warm-up."""

_BRAKES = re.compile(r"cpufreq|processor|throttle|devfreq|clock_reduce", re.IGNORECASE)
"""Cooling devices that make something slower. Fans make it cooler."""

_PI = {0: "under-voltage", 1: "a capped clock", 2: "throttling", 3: "the soft temperature limit"}
"""Bits of get_throttled: now; the same 16 bits higher: since it was switched on."""


@dataclass(frozen=True)
class State:
    """The machine at one moment.

    Attributes:
        temperature_c: degrees Celsius of each sensor.
        clock_hz: of the cores that this process may use, on average; None where it is not told.
        counts: what only ever counts up, in words: times that something was throttled.
        braked: what is held back at this moment, in words.
    """

    temperature_c: Mapping[str, float] = field(default_factory=dict)
    clock_hz: int | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    braked: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self)


def state(root: Path = files.ROOT) -> State:
    """The machine now. Read while it works, or right after: clocks fall when it idles."""
    clock = cpu.frequency(root, cpu.folders_of(root, cpu.usable(root) or None))["current"]
    counts, braked = _counts(root), _braked(root)
    with nvml.gpus() as gpus:
        found = gpus or []
        braked += nvml.slowdowns(found)
        heat = {**_heat(root), **nvml.temperatures(found)}
    return State(heat, clock, counts, tuple(braked))


def temperatures(root: Path = files.ROOT) -> dict[str, float]:
    """Degrees Celsius by sensor: hwmon's as ``coretemp/Package id 0``, thermal zones by type, GPUs
    as ``gpu0``. Empty where the machine tells none."""
    with nvml.gpus() as gpus:
        return {**_heat(root), **nvml.temperatures(gpus or [])}


def throttling(before: State, after: State) -> list[str]:
    """Whether the machine held itself back between two moments, both while it worked.

    Returns:
        what happened, a line each; empty where nothing shows. On a machine without such sensors
        that is no proof.
    """
    found = [
        f"{what}, {after.counts[what] - count} times"
        for what, count in before.counts.items()
        if after.counts.get(what, count) > count
    ]
    found += after.braked
    was, now = before.clock_hz, after.clock_hz
    if was and now and now < _CLOCK_FELL * was:
        found.append(f"the cores' clock fell from {was / 1e9:.2f} to {now / 1e9:.2f} GHz")
    return found


def _heat(root: Path) -> dict[str, float]:
    said: dict[str, float] = {}

    def add(name: str, path: Path) -> None:
        value = files.number(path)
        if value is None or not _COLDEST <= value / 1000 <= _HOTTEST:
            return
        key, turn = name, 2
        while key in said:  # two drives of a kind
            key, turn = f"{name} #{turn}", turn + 1
        said[key] = value / 1000

    for chip in files.numbered(root / "sys/class/hwmon", "hwmon*"):
        name = files.text(chip / "name") or chip.name
        for sensor in files.numbered(chip, "temp*_input"):
            short = sensor.name.removesuffix("_input")
            add(f"{name}/{files.text(chip / f'{short}_label') or short}", sensor)
    for zone in files.numbered(root / "sys/class/thermal", "thermal_zone*"):
        add(files.text(zone / "type") or zone.name, zone / "temp")
    return said


def _counts(root: Path) -> dict[str, int]:
    said: dict[str, int] = {}
    for name, what in (
        ("core_throttle_count", "a core was throttled by heat"),
        ("package_throttle_count", "the CPU was throttled by heat"),
    ):
        # Threads of a core, and cores of a package, show the same counter.
        found: dict[str | None, int] = {}
        for folder in cpu.folders_of(root):
            count = files.number(folder / "thermal_throttle" / name)
            if count is not None:
                package = files.text(folder / "topology/physical_package_id")
                one = package if name.startswith("package") else cpu.core(folder) or folder.name
                found[one] = max(count, found.get(one, 0))
        if found:
            said[what] = sum(found.values())
    held = limits.held_up(root)
    if held is not None:
        said[limits.HELD_UP] = held
    for chip in files.numbered(root / "sys/class/hwmon", "hwmon*"):
        for event in files.numbered(chip, "oc*_event_cnt"):
            events = files.number(event)
            if events is not None:
                said[f"throttled by over-current ({event.name.removesuffix('_event_cnt')})"] = (
                    events
                )
    return said


def _braked(root: Path) -> list[str]:
    said = []
    for device in files.numbered(root / "sys/class/thermal", "cooling_device*"):
        kind = files.text(device / "type") or ""
        step = files.number(device / "cur_state")
        if step is not None and step > 0 and _BRAKES.search(kind):
            said.append(f"the cooling device {kind} is at step {step}")
    for file in files.numbered(root / "sys/devices/platform", "soc*/*firmware/get_throttled"):
        try:
            mask = int(files.text(file) or "0", 16)
        except ValueError:
            continue
        said += [f"held back by {why}" for bit, why in _PI.items() if mask >> bit & 1]
    for chip in files.numbered(root / "sys/class/hwmon", "hwmon*"):
        if files.text(chip / "name") == "rpi_volt" and files.number(chip / "in0_lcrit_alarm"):
            said.append("held back by under-voltage")
    return list(dict.fromkeys(said))
