"""Where a machine tells its power: RAPL's counters, hwmon's sensors, NVML.

A source reads either joules that were used so far, or the watts of this moment.

Sources: the kernel's power/powercap/powercap.rst (RAPL zones, ``energy_uj``,
``max_energy_range_uj``), hwmon/sysfs-interface.rst and hwmon/ina3221.rst (units of channels); the
Jetson Linux Developer Guide, "Software-Based Power Consumption Modeling" (rails); NVIDIA's NVML API
Reference Guide (``nvmlDeviceGetTotalEnergyConsumption``, since Volta, and
``nvmlDeviceGetPowerUsage``).
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vggdeploy.machine import files, nvml

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

RAILS = ("VDD_IN", "VIN", "POM_5V_IN")
"""Rails that feed a whole module: Orin NX and Nano and Xavier NX, Thor, and Nano."""

SUPPLIES = ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")
"""AGX Orin has no such rail: these three together feed it. (The memory's, which is measured too,
hangs on the last.)"""


class PowerError(Exception):
    """A source that tells no more."""


class Source(ABC):
    """What tells energy or power.

    Attributes:
        name: what is measured, in words.
        interval: seconds between readings while it is watched.
        least_seconds: below, too few updates of the sensor lie in a measurement.
    """

    name: str
    # Reading a rail takes a millisecond of a bus: a hundredth of a core.
    interval: float = 0.1
    least_seconds: float

    @abstractmethod
    def start(self, now: float) -> None:
        """Begin to count at `now`, in seconds.

        Raises:
            PowerError: when it cannot be read.
        """

    @abstractmethod
    def advance(self, now: float) -> float:
        """The joules since `start` or the last call.

        Raises:
            PowerError: when it cannot be read.
        """


class Counters(Source):
    """RAPL's counters of microjoules, one a package, which start over at 0 when they are full."""

    # RAPL is updated every millisecond. A counter of 65 kJ, the smallest in servers, is full after
    # two minutes at 500 W, and is to be seen in between.
    least_seconds = 0.1

    def __init__(self, zones: list[Path]) -> None:
        self._zones = zones
        self._ranges = [files.number(zone / "max_energy_range_uj") for zone in zones]
        self._last: list[int] = []
        self.name = "RAPL, " + " and ".join(str(files.text(zone / "name")) for zone in zones)

    def start(self, now: float) -> None:
        self._last = self._read()

    def advance(self, now: float) -> float:
        found, used = self._read(), 0
        for value, last, full in zip(found, self._last, self._ranges, strict=True):
            passed = value - last
            if passed < 0:
                if full is None:
                    raise PowerError("a counter started over, and does not say where it is full")
                passed += full
            used += passed
        self._last = found
        return used / 1e6

    def _read(self) -> list[int]:
        found = files.numbers(zone / "energy_uj" for zone in self._zones)
        if len(found) != len(self._zones):
            raise PowerError("RAPL cannot be read")
        return found


class Gauge(Source):
    """Watts of the moment, integrated by the trapezoidal rule."""

    least_seconds = 1.0

    def __init__(self) -> None:
        self._last = (0.0, 0.0)

    @abstractmethod
    def watts(self) -> float:
        """The power now.

        Raises:
            PowerError: when it cannot be read.
        """

    def start(self, now: float) -> None:
        self._last = (now, self.watts())

    def advance(self, now: float) -> float:
        (before, was), (_, watts) = self._last, (now, self.watts())
        self._last = (now, watts)
        return (was + watts) / 2 * (now - before)


@dataclass(frozen=True)
class Rail:
    """A channel of a sensor: its power in microwatts, or voltage (mV) and current (mA)."""

    power: Path | None
    voltage: Path | None = None
    current: Path | None = None

    def watts(self) -> float | None:
        """Power; None where it cannot be read."""
        if self.power is not None:
            found = files.number(self.power)
            return None if found is None else found / 1e6
        if self.voltage is None or self.current is None:
            return None
        volts, amperes = files.number(self.voltage), files.number(self.current)
        return None if volts is None or amperes is None else volts * amperes / 1e6


class Rails(Gauge):
    """Supply rails of a board, added."""

    def __init__(self, rails: Mapping[str, Rail]) -> None:
        super().__init__()
        self._rails = dict(rails)
        self.name = "hwmon, " + " + ".join(rails)

    def watts(self) -> float:
        found = [rail.watts() for rail in self._rails.values()]
        known = [value for value in found if value is not None]
        if len(known) != len(found):
            raise PowerError(f"{self.name} cannot be read")
        return sum(known)


class GpuCounter(Source):
    """NVML's millijoules since the driver was loaded."""

    # Its sensor is read a few times to a few tens of times a second (Yang et al., "Part-time Power
    # Measurements: nvidia-smi's Lack of Attention", SC 2024).
    least_seconds = 1.0

    def __init__(self, gpu: nvml.Gpu) -> None:
        self._gpu = gpu
        self._last = 0
        self.name = f"NVML, energy of GPU {gpu.index}"

    def start(self, now: float) -> None:
        self._last = self._read()

    def advance(self, now: float) -> float:
        found = self._read()
        passed, self._last = found - self._last, found
        if passed < 0:
            raise PowerError("the GPU's driver was loaded again")
        return passed / 1e3

    def _read(self) -> int:
        said = self._gpu.ask("nvmlDeviceGetTotalEnergyConsumption")
        if said is None:
            raise PowerError(f"{self.name} cannot be read")
        return int(said)


class GpuGauge(Gauge):
    """NVML's milliwatts, of GPUs that do not count energy."""

    def __init__(self, gpu: nvml.Gpu) -> None:
        super().__init__()
        self._gpu = gpu
        self.name = f"NVML, power of GPU {gpu.index}"

    def watts(self) -> float:
        said = self._gpu.ask("nvmlDeviceGetPowerUsage")
        if said is None:
            raise PowerError(f"{self.name} cannot be read")
        return float(said) / 1e3


@contextlib.contextmanager
def source(
    device: str = "CPU", facts: Mapping[str, Any] | None = None, root: Path = files.ROOT
) -> Iterator[tuple[Source | None, str]]:
    """What tells the power of `device`, for as long as the block lasts, or why nothing does.

    A board's own supply covers everything on it. Else a CPU's package covers the CPU and what is
    integrated with it, and NVML the GPU alone.

    Args:
        device: the backend's name of it.
        facts: of `Target.device_facts`: ``pci_bus_id`` of an NVIDIA GPU, ``integrated`` of others.
        root: of the file system.
    """
    facts = facts or {}
    if (rails := _rails(root)) is not None:
        yield rails, ""
    elif "compute_capability" in facts:
        with nvml.gpus() as gpus:
            yield _gpu(gpus, facts.get("pci_bus_id"))
    elif device.upper() == "CPU" or facts.get("integrated") is True:
        yield _rapl(root)
    else:
        yield None, f"nothing on this machine tells the power of {device}"


def _rapl(root: Path) -> tuple[Source | None, str]:
    """Packages alone: cores and memory controllers are within them, and psys is around them."""
    zones = [
        zone
        for zone in files.numbered(root / "sys/class/powercap", "intel-rapl:*")
        if (files.text(zone / "name") or "").startswith("package-")
    ]
    if not zones:
        return None, "this machine does not tell its power"
    if any(files.number(zone / "energy_uj") is None for zone in zones):
        return None, (
            "RAPL is there, and for root alone: run as root, or "
            "sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj"
        )
    return Counters(zones), ""


def _gpu(gpus: list[nvml.Gpu] | None, bus_id: str | None) -> tuple[Source | None, str]:
    if gpus is None:
        return None, "the GPU's power is told by NVML: pip install 'vggdeploy[nvml]'"
    wanted = None if bus_id is None else nvml.short_bus_id(bus_id)
    # One GPU alone cannot be mistaken, even where the bus is not told.
    found = [gpu for gpu in gpus if gpu.bus_id == wanted] if wanted else gpus
    if len(found) != 1:
        return None, "NVML does not tell which of its GPUs this is"
    for kind in (GpuCounter, GpuGauge):
        candidate = kind(found[0])
        with contextlib.suppress(PowerError):
            candidate.start(0.0)
            return candidate, ""
    return None, "this GPU does not tell its power"


def _rails(root: Path) -> Rails | None:
    channels = _channels(root)
    for name in RAILS:
        if name in channels:
            return Rails({name: channels[name]})
    if all(name in channels for name in SUPPLIES):
        return Rails({name: channels[name] for name in SUPPLIES})
    return None


def _channels(root: Path) -> dict[str, Rail]:
    """The channels of power sensors (INA3221, INA238, ...) by their rail's name."""
    found: dict[str, Rail] = {}
    for chip in files.numbered(root / "sys/class/hwmon", "hwmon*"):
        if not (files.text(chip / "name") or "").startswith("ina"):
            continue
        for label in files.numbered(chip, "in*_label"):
            number = label.name.removeprefix("in").removesuffix("_label")
            current = chip / f"curr{number}_input"
            if (name := files.text(label)) and current.exists():
                found.setdefault(name, Rail(None, chip / f"in{number}_input", current))
        for power in files.numbered(chip, "power*_input"):
            short = power.name.removesuffix("_input")
            # A sensor of a single channel is named as a whole.
            if name := files.text(chip / f"{short}_label") or files.text(chip / "label"):
                found[name] = Rail(power)
    return found
