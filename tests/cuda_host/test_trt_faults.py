"""What goes wrong under a TensorRT runner: each a clear error, and nothing left behind.

That nothing is left, in memory, streams, events, graphs and contexts, the fixture `host` holds every
test here to.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from double import Api, Context, Engine, Info
from host import DEVICE_UNAVAILABLE, INVALID_VALUE, LAUNCH_FAILED, OUT_OF_MEMORY

from vggdeploy.contracts import RunOptions
from vggdeploy.errors import BundleError, ConfigError, MissingError, ModelError, RunnerError
from vggdeploy.targets.trt_runner import TensorRTRunner

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from host import Host


@pytest.fixture(autouse=True)
def quiet(capfd: pytest.CaptureFixture[str]) -> Any:
    """Nothing is printed: PyCUDA warns on standard error where it cannot free something."""
    yield
    assert capfd.readouterr().err == ""


def enter(runner: Any) -> None:
    with runner:
        pass


def works(opened: Callable[..., Any], images: np.ndarray, expected: np.ndarray) -> None:
    """The next runner is none the worse."""
    with opened() as runner:
        np.testing.assert_allclose(runner.scores(images[:1]), expected[:1], rtol=1e-5, atol=1e-5)


# Allocations of a runner with two slots, in the order in which they are made: of each slot a stream
# and two events, page-locked and device memory for input and output, the context's own, a graph.
OPENING = {
    "cuStreamCreate": 2,
    "cuEventCreate": 4,
    "cuMemHostAlloc": 4,
    "cuMemAlloc": 6,
}


@pytest.mark.parametrize(
    ("function", "skip"), [(name, skip) for name, count in OPENING.items() for skip in range(count)]
)
def test_an_allocation_that_fails_while_it_opens(
    host: Host,
    opened: Callable[..., Any],
    images: np.ndarray,
    expected: np.ndarray,
    function: str,
    skip: int,
) -> None:
    api = Api()
    host.fail(function, OUT_OF_MEMORY, skip=skip)
    with pytest.raises(RunnerError, match=r"not enough memory.*--batch"):
        enter(opened(api, goal="throughput"))
    assert not host.live()
    assert not api.engines
    host.heal()
    works(opened, images, expected)


def test_opening_makes_what_the_tests_above_count(host: Host, opened: Callable[..., Any]) -> None:
    for function, count in OPENING.items():
        host.fail(function, OUT_OF_MEMORY, skip=count)
    enter(opened(goal="throughput"))


@pytest.mark.parametrize("lose", [False, True])
@pytest.mark.parametrize(
    "function",
    ["cuStreamCreate", "cuEventCreate", "cuMemHostAlloc", "cuMemAlloc", "cuMemcpyHtoDAsync",
     "cuEventRecord", "cuMemcpyDtoHAsync", "cuStreamSynchronize", "cuEventElapsedTime"],
)  # fmt: skip
@pytest.mark.parametrize("skip", [0, 1])
def test_any_call_that_fails_while_it_opens(
    host: Host, opened: Callable[..., Any], function: str, skip: int, lose: bool
) -> None:
    api = Api()
    host.fail(function, DEVICE_UNAVAILABLE if lose else INVALID_VALUE, skip=skip, lose=lose)
    runner = opened(api, goal="throughput")
    with pytest.raises(RunnerError, match="is lost" if lose else r"reports|no execution context"):
        enter(runner)
    assert not host.live()
    assert not api.engines


COPIES = ["cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync"]
QUERY = [*COPIES, "cuEventRecord", "cuGraphLaunch", "cuStreamSynchronize", "cuEventElapsedTime"]


@pytest.mark.parametrize("goal", ["latency", "throughput"])
@pytest.mark.parametrize("function", QUERY)
def test_a_query_that_fails_once(
    host: Host,
    opened: Callable[..., Any],
    images: np.ndarray,
    expected: np.ndarray,
    function: str,
    goal: str,
) -> None:
    """The runner goes on, and the next queries are right."""
    with opened(goal=goal) as runner:
        before = host.live()
        host.fail(function, INVALID_VALUE, skip=2, times=1)
        with pytest.raises(RunnerError, match="invalid argument"):
            list(runner.infer_many(image[None] for image in images))
        assert host.live() == before
        found = [out["scores"] for out in runner.infer_many(image[None] for image in images)]
    np.testing.assert_allclose(np.concatenate(found), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("goal", ["latency", "throughput"])
@pytest.mark.parametrize("function", QUERY)
def test_a_device_that_is_lost_in_a_query(
    host: Host,
    opened: Callable[..., Any],
    images: np.ndarray,
    expected: np.ndarray,
    function: str,
    goal: str,
) -> None:
    api = Api()
    with opened(api, goal=goal) as runner:
        host.fail(function, DEVICE_UNAVAILABLE, skip=2, lose=True)
        with pytest.raises(RunnerError, match=r"is lost.*unavailable.*nvidia-smi"):
            list(runner.infer_many(image[None] for image in images))
        with pytest.raises(RunnerError, match="is lost"):
            runner.infer(images[:1])
    assert not host.live()
    assert not api.engines
    host.heal()
    works(opened, images, expected)


def test_a_device_that_is_lost_while_nobody_looks(
    host: Host, opened: Callable[..., Any], images: np.ndarray
) -> None:
    with opened() as runner:
        runner.infer(images[:1])
        host.fail("cuCtxSynchronize", LAUNCH_FAILED, times=1, lose=True)
    assert not host.live()


def test_closing_with_a_queue_in_flight(
    host: Host, opened: Callable[..., Any], images: np.ndarray
) -> None:
    with opened(goal="throughput") as runner:
        results = runner.infer_many(image[None] for image in images)
        next(results)
    assert not host.live()
    results.close()


def test_an_error_of_the_user_closes_it(
    host: Host, opened: Callable[..., Any], images: np.ndarray
) -> None:
    with pytest.raises(KeyError), opened() as runner:
        runner.infer(images[:1])
        raise KeyError
    assert not host.live()


def spoilt(**methods: Any) -> Api:
    """An interface whose contexts have these methods."""
    api = Api()
    api.context_kind = type("Spoilt", (Context,), methods)
    return api


@pytest.mark.parametrize(
    ("methods", "means"),
    [
        (
            {"get_tensor_shape": lambda self, name: (1, 9 if name == "scores" else 3, 32, 32)[:2]},
            r"size of 'image' is not what the engine says: got \[1, 3\]",
        ),
        (
            {"get_tensor_shape": lambda self, name: (1, 9) if name == "scores" else (1, 3, 32, 32)},
            r"size of 'scores' is not what the engine says: got \[1, 9\], expected \[1, 10\]",
        ),
        (
            {
                "get_tensor_shape": lambda self, name: (
                    (-1, 10) if name == "scores" else (1, 3, 32, 32)
                )
            },
            r"got \[-1, 10\]",
        ),
        ({"set_input_shape": lambda self, name, shape: False}, "refuses the input's shape"),
        ({"set_tensor_address": lambda self, name, at: False}, "refuses the memory of 'image'"),
        ({"execute_async_v3": lambda self, stream: False}, "does not execute the engine"),
    ],
    ids=["input", "wrong output", "unknown output", "shape", "address", "execute"],
)
def test_a_context_that_refuses(
    host: Host, opened: Callable[..., Any], methods: dict[str, Any], means: str
) -> None:
    api = spoilt(**methods)
    with pytest.raises(RunnerError, match=means):
        enter(opened(api, goal="throughput"))
    assert not host.live()
    assert not api.engines


def test_an_engine_that_stops_executing(
    host: Host, opened: Callable[..., Any], images: np.ndarray
) -> None:
    host.set("capture", 0)
    api = spoilt()
    with opened(api, goal="throughput") as runner:
        api.context_kind.execute_async_v3 = lambda self, stream: False
        with pytest.raises(RunnerError, match="does not execute"):
            list(runner.infer_many(image[None] for image in images[:3]))


def test_no_execution_context(host: Host, opened: Callable[..., Any]) -> None:
    """The device's memory holds the buffers and not the context."""
    host.fail("cuMemAlloc", OUT_OF_MEMORY, skip=2, times=1)
    with pytest.raises(RunnerError, match=r"makes no execution context.*--batch"):
        enter(opened())


class Refuses(Api):
    """An interface that loads no engine, as TensorRT does: it says why, or nothing."""

    def __init__(self, error: Exception | None) -> None:
        super().__init__()
        self.error = error

    def deserialize(self, plan: bytes, dla_core: int | None = None) -> Any:
        if self.error is not None:
            raise self.error
        return None


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (
            ModelError(
                "no",
                got="The engine plan file is generated on an incompatible device",
                expected="a whole one",
                fix="mend it",
            ),
            ModelError,
            "incompatible device",
        ),
        (
            ModelError(
                "no",
                got="Version tag does not match: current 239, serialized 232",
                expected="a whole one",
                fix="mend it",
            ),
            ModelError,
            "Version tag does not match",
        ),
        (
            MissingError(
                "no",
                got="CUDA initialization failure with error: 35",
                expected="a whole one",
                fix="mend it",
            ),
            MissingError,
            "35",
        ),
        (None, ModelError, "no reason"),
    ],
    ids=["another GPU", "another version", "driver", "silent"],
)
def test_an_engine_that_does_not_load(
    host: Host, plan: Path, error: Exception | None, kind: type[Exception], says: str
) -> None:
    runner = TensorRTRunner(
        Refuses(error),
        plan,
        RunOptions(device="GPU"),
        name="bundles/vgg16",
        built="an engine of TensorRT 10.9.0 for compute capability 8.9",
    )
    with pytest.raises(kind) as caught:
        enter(runner)
    message = str(caught.value)
    assert says in message
    assert "bundles/vgg16" in message
    assert "an engine of TensorRT 10.9.0 for compute capability 8.9" in message
    assert (
        "tensorrt 10.3.0, for Host memory 0 (compute capability 8.6, driver of CUDA 13.0)"
        in message
    )
    assert "vggdeploy compile" in message
    assert "\n" not in message
    assert not host.live()


def test_a_truncated_engine(
    host: Host, opened: Callable[..., Any], plan: Path, tmp_path: Path
) -> None:
    short = tmp_path / "model.engine"
    short.write_bytes(plan.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"magicTag.*compile"):
        enter(opened(path=short))
    assert not host.live()


def test_an_engine_that_is_not_there(
    host: Host, opened: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match=r"no engine that can be read.*model.engine"):
        enter(opened(path=tmp_path / "model.engine"))
    assert not host.live()


def test_an_engine_whose_execution_fails(
    host: Host, opened: Callable[..., Any], images: np.ndarray
) -> None:
    """A kernel that faults is told at the next wait, and spoils the context for good."""
    with opened() as runner:
        host.fail("cuStreamSynchronize", LAUNCH_FAILED, lose=True)
        with pytest.raises(RunnerError, match="made its context unusable"):
            runner.infer(images[:1])
    assert not host.live()


@pytest.mark.parametrize(
    ("spoil", "means"),
    [
        (lambda host: host.set("devices", 0), "no NVIDIA GPU"),
        (lambda host: host.set("driver", 11040), "driver is too old"),
    ],
    ids=["no device", "old driver"],
)
def test_what_is_missing_is_told_before_anything_is_opened(
    host: Host, opened: Callable[..., Any], spoil: Callable[[Host], None], means: str
) -> None:
    spoil(host)
    with pytest.raises(MissingError, match=means):
        opened()


def test_a_device_that_is_not_there(opened: Callable[..., Any]) -> None:
    with pytest.raises(MissingError, match=r"no device GPU\.1"):
        enter(opened(device="GPU.1"))
    with pytest.raises(ConfigError, match="no such device: got NPU"):
        opened(device="NPU")


def test_a_core_of_dla_is_handed_on(host: Host, plan: Path) -> None:
    asked = []

    class Cores(Api):
        def deserialize(self, plan: bytes, dla_core: int | None = None) -> Any:
            asked.append(dla_core)
            return super().deserialize(plan)

    enter(TensorRTRunner(Cores(), plan, RunOptions(), name="x", dla_core=1))
    assert asked == [1]


def test_the_double_keeps_tensorrts_rules(host: Host, plan: Path) -> None:
    """Else it would not notice a runner that breaks them."""
    from vggdeploy.targets import cuda, cuda_slot

    device = cuda.Device()
    with device.active():
        engine = Engine(Api(), plan.read_bytes())
        context = engine.create_execution_context()
        stream = cuda_slot.Stream(device)
        buffer = cuda_slot.DeviceBuffer(device, 4 * 3 * 32 * 32)
        with pytest.raises(AssertionError, match="no shape"):
            context.get_tensor_shape("scores")
        assert not context.set_input_shape("image", (1, 3, 16, 16))
        assert context.set_input_shape("image", (1, 3, 32, 32))
        assert not context.set_tensor_address("image", buffer.address + 4)
        assert context.set_tensor_address("image", buffer.address)
        assert not context.execute_async_v3(stream.handle)  # an address is missing
        assert context.set_tensor_address("scores", buffer.address)
        code = host.library.cuStreamBeginCapture_v2(ctypes.c_void_p(stream.handle), 1)
        assert code == 0
        assert not context.execute_async_v3(stream.handle)  # the first cannot be captured
        host.library.cuStreamEndCapture(
            ctypes.c_void_p(stream.handle), ctypes.byref(ctypes.c_void_p())
        )
        assert context.execute_async_v3(stream.handle)
        assert context.executed == 0  # it is asynchronous
        stream.synchronize()
        assert (context.executed, context.failed) == (1, None)
        del context, engine
        buffer.free()
        stream.free()
    device.close()


def test_an_engine_with_nothing_to_say(opened: Callable[..., Any]) -> None:
    api = Api(said={"scores": Info("scores", True, (-1, 10))})
    with pytest.raises(ModelError, match="an output at least"):
        enter(opened(api))
