"""What a GPU's memory moves, measured: the bandwidth that a budget's floor is made of.

Copies are timed by events on a stream of their own, as CUDA's bandwidthTest sample does it, and the
best of several counts: a floor is what the memory can do when nothing is in its way.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vggdeploy.errors import RunnerError
from vggdeploy.targets import cuda
from vggdeploy.targets.cuda_slot import DeviceBuffer, Event, PinnedArray, Stream

if TYPE_CHECKING:
    from collections.abc import Callable

LARGEST = 512 << 20
"""Bytes of a copy within the device: many times the largest cache (126 MB, B200), which would else
be measured in place of the memory."""

LARGEST_OF_HOST = 64 << 20
"""Bytes of a copy between host and device: page-locked memory is taken from everyone else."""

_SHARE = 8
"""A buffer takes one part in so many of the memory that is free: there are two, and others."""

REPEATS = 10


@dataclass(frozen=True)
class CopyRates:
    """Bytes a second.

    Attributes:
        within: read and written by a copy within the device's memory, each byte counted twice.
        upload: from page-locked host memory to the device.
        download: from the device to page-locked host memory.
    """

    within: float
    upload: float
    download: float


def measure(number: int = 0, *, largest: int = LARGEST, repeats: int = REPEATS) -> CopyRates:
    """Measure the bandwidth of a device's memory and of its way to the host: a second or less.

    Args:
        number: which of the devices that the driver lists.
        largest: bytes of a copy within the device, and at most those of one to the host.
        repeats: copies that are timed, of each kind, after one that is not.

    Raises:
        MissingError: when PyCUDA, the driver or the device is missing.
        RunnerError: when the device fails, or has no memory to copy.
    """
    device = cuda.Device(number)
    try:
        with device.active(), contextlib.ExitStack() as held:
            return _measure(device, held, largest, repeats)
    finally:
        device.close()


def _measure(
    device: cuda.Device, held: contextlib.ExitStack, largest: int, repeats: int
) -> CopyRates:
    free, _ = device.cuda.mem_get_info()
    size = min(largest, free // _SHARE)
    if not size:
        raise RunnerError(
            f"{device.facts.name} has no memory to measure with",
            got=f"{free:,} bytes are free",
            expected=f"{_SHARE:,} bytes or more",
            fix="end what else uses it ('nvidia-smi' shows that)",
        )
    stream = Stream(device)
    held.callback(stream.free)
    events = (Event(device), Event(device))
    for event in events:
        held.callback(event.free)
    buffers = []
    for _ in range(2):
        buffers.append(DeviceBuffer(device, size))
        held.callback(buffers[-1].free)
    source, target = buffers
    of_host = min(size, LARGEST_OF_HOST)
    host = PinnedArray(device, (of_host,), np.dtype(np.uint8))
    held.callback(host.free)
    host.array.fill(0)

    def best(copy: Callable[[], None]) -> float:
        """Seconds of the shortest."""
        found = []
        for turn in range(repeats + 1):
            events[0].record(stream)
            copy()
            events[1].record(stream)
            stream.synchronize()
            if turn:
                found.append(events[1].seconds_since(events[0]))
        return min(found)

    seconds = best(lambda: target.copy(source, size, stream))
    up = best(lambda: target.upload(host, stream))
    down = best(lambda: source.download(host, stream))
    return CopyRates(2 * size / seconds, of_host / up, of_host / down)
