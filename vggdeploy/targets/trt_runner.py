"""Runs a TensorRT engine: page-locked buffers, a stream a slot, and CUDA graphs where they go.

A query is a copy to page-locked memory, a copy to the device, the engine, and a copy back, queued
on one stream. For throughput there are two slots, each with a stream, buffers and an execution
context of its own, so that one's copies are made while the other computes. Two events around the
engine tell the device's time apart from the wall's.
"""

from __future__ import annotations

import traceback
from collections import deque
from statistics import median
from typing import TYPE_CHECKING, Any

from vggdeploy.contracts import Runner, TensorSpec
from vggdeploy.errors import BundleError, ConfigError, MissingError, ModelError, RunnerError
from vggdeploy.targets import cuda, trt_profiler
from vggdeploy.targets.trt_lane import Lane, Signature

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping
    from pathlib import Path

    from vggdeploy.contracts import Batch, LayerTime, Outputs, RunOptions
    from vggdeploy.targets.trt_lane import Api

SLOTS = {"latency": 1, "throughput": 2}
"""Queries in flight: two are enough to hide copies behind the engine, which is one at a time on a
device that it fills."""

_FLOATS = ("float32", "float16")

KEPT = 4096
"""Device times that are remembered, for their median."""


class TensorRTRunner(Runner):
    """Runs a TensorRT engine on one GPU. Results are copies, and remain after `close`.

    Args:
        api: of the flavour that the engine was built with.
        plan: the engine's file; its digest has been checked, for an engine is native code.
        options: device, batch, and whether one query or several are in flight.
        name: of the bundle, for messages.
        built: what the engine was built with and for, for messages.
        dla_core: of a Jetson's accelerators, the one that it was built for.

    Raises:
        MissingError: when there is no PyCUDA, driver or GPU.
        ConfigError: for a device that TensorRT does not have.
    """

    reuses_buffers = False

    def __init__(
        self,
        api: Api,
        plan: Path,
        options: RunOptions,
        *,
        name: str,
        built: str = "",
        dla_core: int | None = None,
    ) -> None:
        super().__init__()
        self.name = f"TensorRT runner of {name}"
        self.depth = SLOTS[options.goal]
        self._api = api
        self._plan = plan
        self._options = options
        self._built = built
        self._dla_core = dla_core
        self._number = cuda.ordinal(options.device)
        cuda.driver()
        self._device: cuda.Device | None = None
        self._engine: Any = None
        self._lanes: list[Lane] = []
        self._times: deque[float] = deque(maxlen=KEPT)
        self._layers: list[Mapping[str, Any]] = []

    def _start(self) -> None:
        self._times.clear()
        self._device = device = cuda.Device(self._number)
        try:
            with device.active():
                self._engine = self._load(device)
                signature = self._signature()
                for _ in range(self.depth):
                    self._lanes.append(
                        Lane(
                            device,
                            self._api,
                            self._engine,
                            signature,
                            self.name,
                            profile=self._options.profile,
                        )
                    )
                if self._options.profile:
                    self._layers = list(self._api.layers(self._engine))
        except BaseException as error:
            self._release(error)
            raise
        self._describe(device, signature)

    def _load(self, device: cuda.Device) -> Any:
        try:
            plan = self._plan.read_bytes()
        except OSError as error:
            raise BundleError(
                f"{self.name} has no engine that can be read",
                got=error,
                expected="the engine that the manifest names",
                fix="build it again, or compile it on this device",
            ) from error
        facts, api = device.facts, self._api
        try:
            engine = api.deserialize(plan, self._dla_core)
            if engine is None:
                raise ModelError(
                    "the engine is refused",
                    got="no reason",
                    expected="an engine of this TensorRT and GPU",
                    fix="compile it on this device",
                )
        except (MissingError, ModelError) as error:
            raise type(error)(
                f"{self.name}: TensorRT does not load its engine here",
                got=f"{self._built or 'an engine'}; it says: {error.got or error.what}",
                expected=f"one of {api.flavour} {api.version}, for {facts.name} "
                f"(compute capability {facts.compute_capability}, driver of CUDA {facts.driver})",
                fix="compile it on this device with 'vggdeploy compile', or install the version "
                "that built it",
            ) from error
        return engine

    def _signature(self) -> Signature:
        """The engine's tensors at the batch that is asked for.

        Raises:
            ModelError: when it has not one input.
            ConfigError: when it takes no such batch.
        """
        found = list(self._api.io(self._engine))
        images = [info for info in found if info.is_input]
        if len(images) != 1 or len(images) == len(found):
            raise ModelError(
                f"{self.name}: the engine is no classifier's",
                got=f"{len(images)} inputs of {len(found)} tensors",
                expected="one input, and an output at least",
                fix="build it from a graph that has",
            )
        image = images[0]
        batch = self._options.batch
        least, tuned, most = (
            self._api.profile(self._engine, image.name)
            if image.shape[0] == -1
            else (image.shape[0],) * 3
        )
        if not least <= batch <= most:
            raise ConfigError(
                f"{self.name}: the engine takes no batch of {batch}",
                got=f"--batch {batch}",
                expected=f"{least} to {most}, tuned for {tuned}" if least < most else f"{most}",
                fix="mend --batch, or build with --min-batch and --max-batch around it",
            )
        tensors = {}
        for info in [image, *(info for info in found if not info.is_input)]:
            shape = (batch if info.shape[0] == -1 else info.shape[0], *info.shape[1:])
            if min(shape) < 1:
                raise ModelError(
                    f"{self.name}: the size of {info.name!r} is not known before it runs",
                    got=list(info.shape),
                    expected="a dynamic batch alone",
                    fix="build it from a graph whose other sizes are fixed",
                )
            taken = (*_FLOATS, "uint8") if info is image else _FLOATS
            if info.dtype not in taken:
                raise ModelError(
                    f"{self.name}: the dtype of {info.name!r} cannot be used",
                    got=info.dtype,
                    expected=" or ".join(taken),
                    fix="build it from a graph with float outputs, and floats or uint8 pixels for "
                    "its input",
                )
            tensors[info.name] = (shape, info.dtype)
        return Signature(image.name, tensors)

    def _describe(self, device: cuda.Device, signature: Signature) -> None:
        shape, dtype = signature.tensors[signature.image]
        # Floats are narrowed where they are copied; pixels are taken as they are.
        self.input = TensorSpec(signature.image, shape, "uint8" if dtype == "uint8" else "float32")
        self.outputs = tuple(
            TensorSpec(name, signature.tensors[name][0]) for name in signature.outputs
        )
        facts = device.facts
        self.details = {
            "device": facts.name,
            "compute_capability": facts.compute_capability,
            "driver": facts.driver,
            "flavour": self._api.flavour,
            "version": self._api.version,
            "requests": self.depth,
            "cuda_graph": self._lanes[0].graph_is,
            "device_seconds": None,
        }

    def _stop(self) -> None:
        if self._times:
            self.details["device_seconds_p50"] = median(self._times)
        self._release(None)

    def _release(self, error: BaseException | None) -> None:
        """Free everything, and what the frames that `error` went through still hold."""
        device, self._device = self._device, None
        if device is None:
            return
        try:
            with device.active():
                # This also waits for what is still in flight.
                if device.usable():
                    self._drop(error, lost=False)
        finally:
            device.close()
            self._drop(error, lost=True)

    def _drop(self, error: BaseException | None, *, lost: bool) -> None:
        while self._lanes:
            self._lanes.pop().free(lost=lost)
        self._engine = None
        while error is not None:
            traceback.clear_frames(error.__traceback__)
            error = error.__cause__

    def _infer(self, batch: Batch) -> Outputs:
        lane = self._lanes[0]
        with self._current():
            lane.begin(batch)
            return self._taken(lane)

    def layer_times(self) -> list[LayerTime]:
        """What TensorRT's profiler says of the last `infer`, with the inspector's word on each."""
        profiler = self._lanes[0].profiler if self._lanes else None
        if profiler is None or not self._times:
            raise RunnerError(
                f"{self.name}: its layers are not timed",
                got="a runner that is closed, does not profile or has run no query",
                expected="an open runner with RunOptions.profile, and a query",
                fix="open it with profile=True and run one",
            )
        with self._current():
            return trt_profiler.joined(profiler.seconds(), self._layers)

    def _infer_many(self, batches: Iterable[Batch]) -> Generator[Outputs, None, None]:
        # Lanes are used in turn, so results come in order.
        flying: deque[Lane] = deque()
        try:
            for count, batch in enumerate(batches):
                if len(flying) == self.depth:
                    yield self._ended(flying.popleft())
                lane = self._lanes[count % self.depth]
                with self._current():
                    lane.begin(batch)
                flying.append(lane)
            while flying:
                yield self._ended(flying.popleft())
        finally:
            self._settle(flying)

    def _ended(self, lane: Lane) -> Outputs:
        with self._current():
            return self._taken(lane)

    def _taken(self, lane: Lane) -> Outputs:
        seconds = lane.slot.wait()
        self._times.append(seconds)
        self.details["device_seconds"] = seconds
        return lane.results()

    def _settle(self, flying: Iterable[Lane]) -> None:
        """Wait for what nobody will ask for, so that its buffers can be used again."""
        if self._device is None or self._device.lost:
            return
        with self._current():
            for lane in flying:
                lane.slot.wait()

    def _current(self) -> Any:
        if self._device is None:
            raise RunnerError(
                f"{self.name} is not open",
                got="a closed runner",
                expected="an open one",
                fix="call it inside 'with runner:'",
            )
        return self._device.active()
