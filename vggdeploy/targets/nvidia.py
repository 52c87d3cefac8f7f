"""The NVIDIA GPUs of this machine, asked of the driver itself: no package is needed for that.

The functions are those of the CUDA driver API (cuda.h); no context is made, and no memory is taken.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from typing import Any

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"

# CUdevice_attribute in cuda.h, whose values do not change.
_MAJOR, _MINOR = 75, 76
_SMS, _CLOCK_KHZ, _MEMORY_CLOCK_KHZ, _BUS_BITS = 16, 13, 36, 37
_NAME_BYTES = 256
_BUS_BYTES = 16


@dataclass(frozen=True)
class Gpu:
    """A GPU as the driver knows it."""

    name: str
    compute_capability: str

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.compute_capability})"


def gpus() -> tuple[Gpu, ...]:
    """The GPUs that CUDA shows this process, in its order; none where there is no driver."""
    try:
        driver = ctypes.CDLL(_LIBRARY)
    except OSError:
        return ()
    return _ask(driver)


def _ask(driver: Any) -> tuple[Gpu, ...]:
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return ()
    found = []
    for index in range(count.value):
        device, name = ctypes.c_int(), ctypes.create_string_buffer(_NAME_BYTES)
        major, minor = ctypes.c_int(), ctypes.c_int()
        failed = (
            driver.cuDeviceGet(ctypes.byref(device), index)
            or driver.cuDeviceGetName(name, _NAME_BYTES, device)
            or driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
            or driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
        )
        if not failed:
            version = f"{major.value}.{minor.value}"
            found.append(Gpu(name.value.decode(errors="replace"), version))
    return tuple(found)


def facts(index: int = 0, driver: Any = None) -> dict[str, Any]:
    """What `gpus.rated` asks of a GPU and where it is, JSON-ready; empty where there is none. 0
    stands for what the driver does not tell, and no ``pci_bus_id`` for one without a bus.

    Args:
        index: of the GPU, in the driver's order.
        driver: the driver's library; None loads it.
    """
    if driver is None:
        try:
            driver = ctypes.CDLL(_LIBRARY)
        except OSError:
            return {}
    found = _ask(driver)
    if index >= len(found):
        return {}
    device, value = ctypes.c_int(), ctypes.c_int()
    driver.cuDeviceGet(ctypes.byref(device), index)
    said: dict[str, int] = {}
    for key, attribute, unit in (
        ("multiprocessors", _SMS, 1),
        ("clock_hz", _CLOCK_KHZ, 1000),
        ("memory_clock_hz", _MEMORY_CLOCK_KHZ, 1000),
        ("memory_bus_bits", _BUS_BITS, 1),
    ):
        failed = driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        said[key] = 0 if failed else value.value * unit
    where = ctypes.create_string_buffer(_BUS_BYTES)
    if driver.cuDeviceGetPCIBusId(where, _BUS_BYTES, device):
        where.value = b""
    return {
        "name": found[index].name,
        "compute_capability": found[index].compute_capability,
        "pci_bus_id": where.value.decode(errors="replace") or None,
        **said,
    }
