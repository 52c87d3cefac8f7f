"""pynvml of a machine with GPUs that answer what they are told to, and nothing out of turn."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


class NVMLError(Exception):
    """What every failed call of the real module raises."""


ANSWERS: dict[str, Any] = {
    "Name": "NVIDIA L4",
    "CudaComputeCapability": (8, 9),
    "MemoryInfo": SimpleNamespace(total=24 << 30),
    "EnforcedPowerLimit": 72_000,
    "PowerManagementDefaultLimit": 75_000,
    "PerformanceState": 0,
    "PersistenceMode": 1,
    "EccMode": [1, 1],
    "Temperature": 55,
    "CurrentClocksEventReasons": 0,
    "ClockInfo": {1: 1590, 2: 6250},
    "MaxClockInfo": {1: 2040, 2: 6251},
    "TotalEnergyConsumption": 5_000,
    "PowerUsage": 30_000,
}


class Nvml:
    """Stands for the module: ``monkeypatch.setitem(sys.modules, "pynvml", Nvml(...))``.

    Args:
        gpus: what each answers in place of `ANSWERS`, by the function's name without
            ``nvmlDeviceGet``; None is "not supported".
        present: whether there is a driver.
    """

    NVMLError = NVMLError

    def __init__(self, *gpus: dict[str, Any], present: bool = True) -> None:
        self.gpus = [dict(ANSWERS, **gpu) for gpu in gpus]
        self.present = present
        self.open = 0

    def nvmlInit(self) -> None:
        if not self.present:
            raise NVMLError("Driver Not Loaded")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self._check()
        self.open -= 1

    def _check(self) -> None:
        if not self.open:
            raise NVMLError("Uninitialized")

    def nvmlSystemGetDriverVersion(self) -> str:
        self._check()
        return "550.54.15"

    def nvmlDeviceGetCount(self) -> int:
        self._check()
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        self._check()
        if self.gpus[index].get("lost"):
            raise NVMLError("GPU is lost")
        return index

    def nvmlDeviceGetPciInfo(self, handle: int) -> Any:
        self._check()
        where = self.gpus[handle].get("bus", f"0000000{handle}:01:00.0")
        if where is None:
            raise NVMLError("Not Supported")
        return SimpleNamespace(busId=where)

    def __getattr__(self, name: str) -> Any:
        key = name.removeprefix("nvmlDeviceGet")
        if key == name or not any(key in gpu for gpu in self.gpus):
            raise AttributeError(name)

        def answer(handle: int, *arguments: Any) -> Any:
            self._check()
            said = self.gpus[handle].get(key)
            if arguments and isinstance(said, dict):
                said = said.get(arguments[0])
            if said is None:
                raise NVMLError("Not Supported")
            return said() if callable(said) else said

        return answer
