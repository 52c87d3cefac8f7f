"""NVIDIA's GPUs by NVML, asked through the package nvidia-ml-py where it is installed.

Functions are those of NVIDIA's "NVML API Reference Guide". A GPU need not answer all of them: an
integrated one knows few, and what it does not answer is None.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# NVML's numbers for clock and temperature domains, and for why clocks are held back
# (nvmlClocksEventReasons; nvmlClocksThrottleReasons in older packages). They are its binary
# interface, and packages of different years name them differently.
_SM, _MEMORY = 1, 2
_GPU_CORE = 0
SLOWDOWNS: Mapping[int, str] = {
    0x08: "a hardware slowdown",
    0x20: "heat (software)",
    0x40: "heat (hardware)",
    0x80: "a power brake",
}
"""Reasons that are trouble. The software power cap is none: it is the limit as it was set."""


@dataclass(frozen=True)
class Gpu:
    """A GPU that can be asked.

    Attributes:
        library: the module pynvml, initialized.
        handle: the library's own.
        index: among NVML's, which need not be CUDA's order.
    """

    library: Any
    handle: Any
    index: int

    def ask(self, name: str, *arguments: Any) -> Any:
        """What a function of NVML says of this GPU; None where it does not say."""
        function = getattr(self.library, name, None)
        if function is None:
            return None
        try:
            said = function(self.handle, *arguments)
        except self.library.NVMLError:
            return None
        # Older packages return bytes.
        return said.decode(errors="replace") if isinstance(said, bytes) else said

    @property
    def bus_id(self) -> str | None:
        """Where it is on the PCI bus, as CUDA writes it: ``0000:01:00.0``."""
        said = getattr(self.ask("nvmlDeviceGetPciInfo"), "busId", None)
        if isinstance(said, bytes):
            said = said.decode(errors="replace")
        return None if not said else short_bus_id(said)


def short_bus_id(said: str) -> str:
    """A PCI bus id with a domain of four digits, as CUDA has it, and in lower case."""
    domain, _, rest = said.strip().lower().partition(":")
    return f"{domain[-4:]}:{rest}"


@contextlib.contextmanager
def gpus() -> Iterator[list[Gpu] | None]:
    """The GPUs for as long as the block lasts; None where NVML cannot be asked."""
    try:
        import pynvml
    except ImportError:
        yield None
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield list(_found(pynvml))
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _found(library: Any) -> Iterator[Gpu]:
    try:
        count = library.nvmlDeviceGetCount()
    except library.NVMLError:
        return
    for index in range(count):
        try:
            yield Gpu(library, library.nvmlDeviceGetHandleByIndex(index), index)
        except library.NVMLError:
            continue  # one that has fallen off the bus, or is another user's


def facts() -> list[dict[str, Any]] | None:
    """Each GPU with its driver, clocks, power limit and mode; None where NVML cannot be asked."""
    with gpus() as found:
        return None if found is None else [_facts(gpu) for gpu in found]


def _facts(gpu: Gpu) -> dict[str, Any]:
    try:
        driver = gpu.library.nvmlSystemGetDriverVersion()
    except gpu.library.NVMLError:
        driver = None
    capability = gpu.ask("nvmlDeviceGetCudaComputeCapability")
    memory = gpu.ask("nvmlDeviceGetMemoryInfo")
    state = gpu.ask("nvmlDeviceGetPerformanceState")
    persistence = gpu.ask("nvmlDeviceGetPersistenceMode")
    ecc, mig = gpu.ask("nvmlDeviceGetEccMode"), gpu.ask("nvmlDeviceGetMigMode")
    return {
        "name": gpu.ask("nvmlDeviceGetName"),
        "pci_bus_id": gpu.bus_id,
        "driver": driver.decode(errors="replace") if isinstance(driver, bytes) else driver,
        "compute_capability": ".".join(map(str, capability)) if capability else None,
        "memory_bytes": None if memory is None else int(memory.total),
        "clock_hz": {
            "sm": _hz(gpu.ask("nvmlDeviceGetClockInfo", _SM)),
            "sm_max": _hz(gpu.ask("nvmlDeviceGetMaxClockInfo", _SM)),
            "memory": _hz(gpu.ask("nvmlDeviceGetClockInfo", _MEMORY)),
            "memory_max": _hz(gpu.ask("nvmlDeviceGetMaxClockInfo", _MEMORY)),
        },
        "power_limit_w": _watts(gpu.ask("nvmlDeviceGetEnforcedPowerLimit")),
        "power_default_w": _watts(gpu.ask("nvmlDeviceGetPowerManagementDefaultLimit")),
        "performance_state": None if state is None else f"P{state}",
        "persistence": None if persistence is None else bool(persistence),
        "ecc": bool(ecc[0]) if ecc else None,
        "mig": bool(mig[0]) if mig else None,
    }


def temperatures(found: list[Gpu]) -> dict[str, float]:
    """Degrees Celsius of each GPU's core."""
    said = {f"gpu{gpu.index}": gpu.ask("nvmlDeviceGetTemperature", _GPU_CORE) for gpu in found}
    return {name: float(value) for name, value in said.items() if value is not None}


def slowdowns(found: list[Gpu]) -> list[str]:
    """What holds the GPUs' clocks back now, but for the power limit."""
    said = []
    for gpu in found:
        mask = gpu.ask("nvmlDeviceGetCurrentClocksEventReasons")
        if mask is None:  # the name of it in packages before 2024
            mask = gpu.ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        said += [
            f"GPU {gpu.index} is slowed down by {why}"
            for bit, why in SLOWDOWNS.items()
            if (mask or 0) & bit
        ]
    return said


def _hz(mhz: int | None) -> int | None:
    return None if mhz is None else mhz * 1_000_000


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1000
