"""What a query in flight needs of CUDA: memory on both sides, a stream and events, each freed once.

All of it is made and freed while the device's context is current.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from vggdeploy.targets.cuda import Device


_NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: it does not wait for the default stream, where others on the same context
have their work."""


class _Freed(Protocol):
    def free(self) -> None: ...


_Part = TypeVar("_Part", bound=_Freed)


class PinnedArray:
    """A page-locked array, which the device reads and writes while the host goes on."""

    def __init__(self, device: Device, shape: Sequence[int], dtype: np.dtype[Any]) -> None:
        self._array = device.cuda.pagelocked_empty(tuple(shape), dtype)

    @property
    def array(self) -> NDArray[Any]:
        """The array. It must not outlive `free`: give copies away."""
        return self._array  # type: ignore[no-any-return]

    def free(self) -> None:
        """Unlock and free it; only the first call does something."""
        array, self._array = self._array, None
        if array is not None:
            array.base.free()


class DeviceBuffer:
    """Memory on the device.

    Attributes:
        address: what TensorRT takes as a tensor's address.
    """

    def __init__(self, device: Device, size: int) -> None:
        self._cuda = device.cuda
        self._memory = device.cuda.mem_alloc(size)
        self.address = int(self._memory)

    def upload(self, source: PinnedArray, stream: Stream) -> None:
        """Queue a copy from the host."""
        self._cuda.memcpy_htod_async(self._memory, source.array, stream.own)

    def download(self, target: PinnedArray, stream: Stream) -> None:
        """Queue a copy to the host."""
        self._cuda.memcpy_dtoh_async(target.array, self._memory, stream.own)

    def copy(self, source: DeviceBuffer, size: int, stream: Stream) -> None:
        """Queue a copy of `size` bytes from another buffer of the device."""
        self._cuda.memcpy_dtod_async(self._memory, source._memory, size, stream.own)

    def free(self) -> None:
        """Free it; only the first call does something."""
        memory, self._memory = self._memory, None
        if memory is not None:
            memory.free()


class Stream:
    """A queue of work on the device.

    Attributes:
        own: PyCUDA's stream.
        handle: what TensorRT takes.
    """

    def __init__(self, device: Device) -> None:
        self.own = device.cuda.Stream(_NON_BLOCKING)
        self.handle = int(self.own.handle)

    def synchronize(self) -> None:
        """Wait until all of it is done."""
        self.own.synchronize()

    def free(self) -> None:
        """Destroy it: PyCUDA does, with the last reference."""
        self.own = None


class Event:
    """A moment in a stream."""

    def __init__(self, device: Device) -> None:
        self._own = device.cuda.Event()

    def record(self, stream: Stream) -> None:
        """Queue it."""
        self._own.record(stream.own)

    def seconds_since(self, start: Event) -> float:
        """Device time between two moments that are past; CUDA's resolution is 0.5 microseconds."""
        return float(self._own.time_since(start._own)) * 1e-3

    def free(self) -> None:
        """Destroy it: PyCUDA does, with the last reference."""
        self._own = None


class Tensor:
    """One input or output: page-locked on the host, and its memory on the device."""

    def __init__(self, device: Device, shape: Sequence[int], dtype: str) -> None:
        self.host = PinnedArray(device, shape, np.dtype(dtype))
        try:
            self.device = DeviceBuffer(device, self.host.array.nbytes)
        except BaseException:
            if device.usable():
                self.host.free()
            raise

    def free(self) -> None:
        """Free both; only the first call does something."""
        self.device.free()
        self.host.free()


class Slot:
    """What one query in flight needs: its tensors, a stream, and two events around the work.

    To be made and freed while the device's context is current. Where making it fails, what has been
    made is freed.

    Args:
        device: where.
        tensors: shape and dtype by name.

    Attributes:
        tensors: by name.
    """

    def __init__(self, device: Device, tensors: Mapping[str, tuple[Sequence[int], str]]) -> None:
        self._parts = contextlib.ExitStack()
        self.tensors: dict[str, Tensor] = {}
        try:
            self.stream = self._hold(Stream(device))
            self._start = self._hold(Event(device))
            self._end = self._hold(Event(device))
            for name, (shape, dtype) in tensors.items():
                self.tensors[name] = self._hold(Tensor(device, shape, dtype))
        except BaseException:
            # What a lost device holds cannot be freed, and goes with its context.
            if device.usable():
                self.free()
            raise

    def _hold(self, part: _Part) -> _Part:
        self._parts.callback(part.free)
        return part

    def timed(self, work: Callable[[], None]) -> None:
        """Queue `work` between the two events."""
        self._start.record(self.stream)
        work()
        self._end.record(self.stream)

    def wait(self) -> float:
        """Wait for all that is queued; seconds that the device took between the two events."""
        self.stream.synchronize()
        return self._end.seconds_since(self._start)

    def free(self) -> None:
        """Free all of it, last made first; only the first call does something."""
        self._parts.close()
