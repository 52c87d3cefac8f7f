"""Devices, memory, streams and events through real PyCUDA; and what each lack of them says."""

from __future__ import annotations

import ctypes
import sys
from ctypes import byref, c_void_p
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from host import DEVICE_UNAVAILABLE, INVALID_VALUE, OUT_OF_MEMORY

from vggdeploy.errors import ConfigError, MissingError, RunnerError
from vggdeploy.targets import cuda, cuda_slot, libcuda

if TYPE_CHECKING:
    from collections.abc import Iterator

    from host import Host


@pytest.fixture
def device(host: Host) -> Iterator[cuda.Device]:
    made = cuda.Device()
    yield made
    made.close()


def current(host: Host) -> int:
    return host.live().get("current", 0)


def test_facts_are_the_drivers_own(device: cuda.Device) -> None:
    facts = device.facts
    assert facts.name == "Host memory 0"
    assert facts.compute_capability == "8.6"
    assert facts.driver == "13.0"


def test_the_context_is_current_inside_alone(host: Host, device: cuda.Device) -> None:
    assert current(host) == 0
    with device.active():
        assert current(host) == 1
        with device.active():
            assert current(host) == 1  # PyCUDA lets CUDA's stack get one deep
        assert current(host) == 1
    assert current(host) == 0
    with pytest.raises(KeyError), device.active():
        raise KeyError
    assert current(host) == 0


def test_whoever_else_is_current_is_so_again(host: Host) -> None:
    """As torch is, which makes the primary context current for good."""
    theirs, found = c_void_p(), c_void_p()
    host.library.cuInit(0)
    host.library.cuDevicePrimaryCtxRetain(byref(theirs), 0)
    host.library.cuCtxPushCurrent_v2(theirs)
    try:
        device = cuda.Device()
        assert host.live() == {"contexts": 2, "current": 1}
        with device.active():
            buffer = cuda_slot.DeviceBuffer(device, 16)
            buffer.free()
        device.close()
        device.close()
        assert host.live() == {"contexts": 1, "current": 1}
        host.library.cuCtxGetCurrent(byref(found))
        assert found.value == theirs.value
    finally:
        host.library.cuCtxPopCurrent_v2(byref(found))
        host.library.cuDevicePrimaryCtxRelease_v2(0)


def test_a_closed_device_is_refused(device: cuda.Device) -> None:
    device.close()
    with pytest.raises(RunnerError, match="is closed"), device.active():
        pass


def test_copies_go_to_the_device_and_back(device: cuda.Device) -> None:
    with device.active():
        slot = cuda_slot.Slot(device, {"x": ((3, 5), "float32"), "y": ((3, 5), "float16")})
        x, y = slot.tensors["x"], slot.tensors["y"]
        assert (x.host.array.dtype, y.host.array.dtype) == (np.float32, np.float16)
        sent = np.arange(15, dtype=np.float32).reshape(3, 5)
        x.host.array[...] = sent
        x.device.upload(x.host, slot.stream)
        slot.stream.synchronize()
        x.host.array.fill(0)
        x.device.download(x.host, slot.stream)
        assert (x.host.array == 0).all()  # it is asynchronous, and the driver's is never early
        slot.stream.synchronize()
        np.testing.assert_array_equal(x.host.array, sent)
        slot.free()
        slot.free()


def test_what_is_freed_is_so_though_it_is_still_referred_to(
    host: Host, device: cuda.Device
) -> None:
    with device.active():
        buffer = cuda_slot.DeviceBuffer(device, 16)
        pinned = cuda_slot.PinnedArray(device, (4,), np.dtype("float32"))
        held = (buffer._memory, pinned.array)
        buffer.free()
        pinned.free()
        assert host.live() == {"contexts": 1, "current": 1}
        del held


def test_a_slot_times_its_work(host: Host, device: cuda.Device) -> None:
    import time

    nap = ctypes.CFUNCTYPE(None, c_void_p)(lambda _: time.sleep(0.02))
    with device.active():
        slot = cuda_slot.Slot(device, {})
        stream = c_void_p(slot.stream.handle)
        # What comes before and behind is not in it.
        start = time.perf_counter()
        host.library.cuLaunchHostFunc(stream, nap, None)
        slot.timed(lambda: host.library.cuLaunchHostFunc(stream, nap, None) and None)
        host.library.cuLaunchHostFunc(stream, nap, None)
        seconds = slot.wait()
        wall = time.perf_counter() - start
        slot.free()
    assert 0.02 <= seconds <= wall - 0.04


@pytest.mark.parametrize(
    ("function", "skip"),
    [
        ("cuStreamCreate", 0),
        *(
            (name, skip)
            for name in ("cuEventCreate", "cuMemHostAlloc", "cuMemAlloc")
            for skip in (0, 1)
        ),
    ],
)
def test_a_slot_that_cannot_be_made_leaves_nothing(
    host: Host, device: cuda.Device, function: str, skip: int
) -> None:
    tensors: dict[str, Any] = {"x": ((8,), "float32"), "y": ((8,), "float32")}
    host.fail(function, OUT_OF_MEMORY, skip=skip)
    with (
        pytest.raises(RunnerError, match=r"not enough memory.*out of memory.*--batch") as caught,
        device.active(),
    ):
        cuda_slot.Slot(device, tensors)
    # While the error is kept, and with it the frames it went through.
    assert host.live() == {"contexts": 1}
    del caught
    assert not device.lost


def test_an_error_of_the_device_is_told_in_the_drivers_words(
    host: Host, device: cuda.Device
) -> None:
    host.fail("cuStreamSynchronize", INVALID_VALUE)
    with (
        pytest.raises(RunnerError, match=r"Host memory 0 reports.*invalid argument.*nvidia-smi"),
        device.active(),
    ):
        stream = cuda_slot.Stream(device)
        stream.synchronize()
    assert current(host) == 0
    with device.active():
        stream.free()


def test_a_lost_device_takes_what_it_holds_with_it(
    host: Host, capfd: pytest.CaptureFixture[str]
) -> None:
    device = cuda.Device()
    with device.active():
        slot = cuda_slot.Slot(device, {"x": ((8,), "float32")})
    host.fail("cuStreamSynchronize", DEVICE_UNAVAILABLE, lose=True)
    with pytest.raises(RunnerError, match=r"is lost.*unavailable.*nvidia-smi"), device.active():
        slot.wait()
    assert device.lost
    device.close()
    slot.free()
    del slot
    assert not host.live()
    assert capfd.readouterr().err == ""


def test_a_slot_on_a_device_that_is_being_lost_leaves_nothing(
    host: Host, capfd: pytest.CaptureFixture[str]
) -> None:
    device = cuda.Device()
    host.fail("cuMemAlloc", DEVICE_UNAVAILABLE, skip=1, lose=True)
    with pytest.raises(RunnerError, match="is lost") as caught, device.active():
        cuda_slot.Slot(device, {"x": ((8,), "float32"), "y": ((8,), "float32")})
    device.close()
    # Its frames hold what has been made, until the context is gone.
    del caught
    assert not host.live()
    assert capfd.readouterr().err == ""


def test_no_device(host: Host) -> None:
    host.set("devices", 0)
    with pytest.raises(MissingError, match=r"no NVIDIA GPU.*no CUDA-capable device.*nvidia-smi"):
        cuda.Device()


def test_a_device_that_is_not_there(host: Host) -> None:
    with pytest.raises(MissingError, match=r"no device GPU\.3: got GPU\.0: Host memory 0"):
        cuda.Device(3)


def test_the_second_device(host: Host) -> None:
    host.set("devices", 2)
    device = cuda.Device(1)
    assert device.facts.name == "Host memory 1"
    device.close()


def test_a_device_that_lets_nobody_in(host: Host) -> None:
    host.fail("cuDevicePrimaryCtxRetain", DEVICE_UNAVAILABLE)
    with pytest.raises(MissingError, match=r"cannot be used.*unavailable.*who else uses it"):
        cuda.Device()


def test_a_driver_that_does_not_start(host: Host) -> None:
    host.fail("cuInit", 803)
    with pytest.raises(MissingError, match="driver combination"):
        cuda.Device()


def test_an_old_driver(host: Host) -> None:
    host.set("driver", 11040)
    with pytest.raises(MissingError) as caught:
        cuda.Device()
    assert caught.value.got == "a driver of CUDA 11.4"
    assert "CUDA 13.0 or newer" in str(caught.value)
    assert "install a newer driver" in str(caught.value)


def test_an_older_driver_of_the_same_major_version_will_do(host: Host) -> None:
    host.set("driver", 13000)
    cuda.Device().close()


def test_no_pycuda(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingError, match=r"pycuda.*pip install 'vggdeploy\[tensorrt\]'"):
        cuda.Device()


@pytest.mark.parametrize(
    ("said", "means"),
    [
        (
            "libcuda.so.1: cannot open shared object file: No such file or directory",
            "no NVIDIA driver on this machine.*--gpus all",
        ),
        ("_driver.so: undefined symbol: cuEventElapsedTime_v2", "driver is too old.*newer driver"),
        ("numpy.core.multiarray failed to import", "cannot be loaded.*force-reinstall"),
    ],
)
def test_pycuda_that_cannot_be_loaded(
    host: Host, monkeypatch: pytest.MonkeyPatch, said: str, means: str
) -> None:
    class Finder:
        @staticmethod
        def find_spec(name: str, path: Any = None, target: Any = None) -> None:
            if name == "pycuda.driver":
                raise ImportError(said)

    monkeypatch.delitem(sys.modules, "pycuda.driver", raising=False)
    if "pycuda" in sys.modules:
        monkeypatch.delattr(sys.modules["pycuda"], "driver", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    with pytest.raises(MissingError, match=means) as caught:
        cuda.Device()
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(("name", "number"), [("GPU", 0), ("CPU", 0), ("GPU.0", 0), ("GPU.2", 2)])
def test_names_of_devices(name: str, number: int) -> None:
    assert cuda.ordinal(name) == number


@pytest.mark.parametrize("name", ["NPU", "GPU.", "GPU.x", "GPU.-1", "CPU.1", "cuda", ""])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(ConfigError, match=r"GPU\.1.*--device"):
        cuda.ordinal(name)


def test_a_stream_does_not_wait_for_the_default_one(host: Host, device: cuda.Device) -> None:
    host.set("trace", 1)
    with device.active():
        cuda_slot.Stream(device).free()
    assert host.trace() == ["cuStreamCreate 1"]


def counted(host: Host, stream: cuda_slot.Stream, calls: list[int]) -> Any:
    """What queues a call, and keeps the callback."""
    callback = ctypes.CFUNCTYPE(None, c_void_p)(lambda _: calls.append(1))

    def queue() -> None:
        assert host.library.cuLaunchHostFunc(c_void_p(stream.handle), callback, None) == 0

    queue.callback = callback  # type: ignore[attr-defined]
    return queue


def test_a_graph_is_captured_and_launched(host: Host, device: cuda.Device) -> None:
    calls: list[int] = []
    with device.active():
        stream = cuda_slot.Stream(device)
        queue = counted(host, stream, calls)

        def twice() -> None:
            queue()
            queue()

        graph = libcuda.Graph(stream.handle, twice)
        stream.synchronize()
        assert not calls
        for turn in (1, 2):
            graph.launch()
            stream.synchronize()
            assert len(calls) == 2 * turn
        assert host.live()["execs"] == 1
        assert "graphs" not in host.live()
        graph.free()
        graph.free()
        stream.free()


@pytest.mark.parametrize(
    "function", ["cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate"]
)
def test_a_capture_that_fails_leaves_the_stream_usable(
    host: Host, device: cuda.Device, function: str
) -> None:
    calls: list[int] = []
    host.fail(function, 801, times=1)
    with device.active():
        stream = cuda_slot.Stream(device)
        queue = counted(host, stream, calls)
        with pytest.raises(libcuda.CallError, match=f"{function}.*not supported"):
            libcuda.Graph(stream.handle, queue)
        queue()
        stream.synchronize()
        stream.free()
    assert calls == [1]


def test_work_that_breaks_a_capture_is_told(host: Host, device: cuda.Device) -> None:
    with device.active():
        stream = cuda_slot.Stream(device)
        with pytest.raises(libcuda.CallError, match=r"cuStreamEndCapture failed.*during capture"):
            libcuda.Graph(stream.handle, lambda: host.library.cuCtxSynchronize() and None)
        with pytest.raises(KeyError):
            libcuda.Graph(stream.handle, lambda: {}["work that fails"])
        stream.synchronize()
        stream.free()


def test_a_driver_without_graphs(
    host: Host, device: cuda.Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(libcuda._ARGUMENTS, "cuStreamBeginCaptureNever", [])
    with pytest.raises(libcuda.CallError, match="the CUDA driver has no cuStreamBeginCaptureNever"):
        libcuda._function("cuStreamBeginCaptureNever")
