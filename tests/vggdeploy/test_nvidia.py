"""The driver asked for its GPUs, over a driver that answers as cuda.h says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from vggdeploy import gpus
from vggdeploy.targets import nvidia

if TYPE_CHECKING:
    import ctypes


class Driver:
    """One GPU, or none; `broken` attributes answer with an error."""

    ATTRIBUTES = {16: 16, 13: 1_300_000, 36: 1_300_000, 37: 256, 75: 8, 76: 7}  # noqa: RUF012

    def __init__(self, count: int = 1, broken: tuple[int | str, ...] = ()) -> None:
        self.count, self.broken = count, broken

    def cuInit(self, flags: int) -> int:
        return 0 if self.count else 100

    def cuDeviceGetCount(self, out: Any) -> int:
        out._obj.value = self.count
        return 0

    def cuDeviceGet(self, out: Any, index: int) -> int:
        out._obj.value = index
        return 0

    def cuDeviceGetName(self, buffer: Any, size: int, device: Any) -> int:
        assert size == len(buffer)
        buffer.value = b"Orin" if not device.value else f"Orin {device.value}".encode()
        return 0

    def cuDeviceGetPCIBusId(self, buffer: Any, size: int, device: Any) -> int:
        assert size == len(buffer)
        buffer.value = f"000{device.value}:01:00.0".encode()
        return 1 if "bus" in self.broken else 0

    def cuDeviceGetAttribute(self, out: Any, attribute: int, device: ctypes.c_int) -> int:
        if attribute in self.broken:
            return 1
        out._obj.value = self.ATTRIBUTES[attribute]
        return 0


def test_facts_are_what_a_rating_takes() -> None:
    said = nvidia.facts(driver=Driver())
    assert said == {
        "name": "Orin", "compute_capability": "8.7", "pci_bus_id": "0000:01:00.0", "multiprocessors": 16, "clock_hz": 1_300_000_000,
        "memory_clock_hz": 1_300_000_000, "memory_bus_bits": 256,
    }  # fmt: skip
    # Jetson AGX Orin: 85 dense INT8 TOPS.
    assert 2 * gpus.rated(said, "int8").macs_per_s == pytest.approx(85e12, rel=0.03)


def test_no_gpu_has_no_facts() -> None:
    assert nvidia.facts(driver=Driver(count=0)) == {}
    assert nvidia.facts(1, driver=Driver(count=1)) == {}


def test_each_gpu_has_its_own() -> None:
    second = nvidia.facts(1, driver=Driver(count=2))
    assert (second["name"], second["pci_bus_id"]) == ("Orin 1", "0001:01:00.0")


def test_what_the_driver_does_not_say_is_unknown() -> None:
    said = nvidia.facts(driver=Driver(broken=(36, "bus")))
    assert said["pci_bus_id"] is None
    assert said["memory_clock_hz"] == 0
    assert said["multiprocessors"] == 16
