"""One of a TensorRT runner's queries in flight: buffers, execution context, and CUDA graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from vggdeploy.errors import RunnerError
from vggdeploy.targets.cuda_slot import Slot
from vggdeploy.targets.libcuda import CallError, Graph

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vggdeploy.contracts import Batch, Outputs
    from vggdeploy.targets import cuda
    from vggdeploy.targets.trt_profiler import Profiler


class TensorInfo(Protocol):
    """An input or output of an engine; -1 in `shape` stands for the batch."""

    @property
    def name(self) -> str: ...
    @property
    def is_input(self) -> bool: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str: ...


class Api(Protocol):
    """What of `trt_api.Api` a runner needs."""

    @property
    def flavour(self) -> str:
        """``tensorrt`` or ``rtx``."""

    @property
    def version(self) -> str:
        """Of the package."""

    @property
    def module(self) -> Any:
        """The package."""

    def deserialize(self, plan: bytes, dla_core: int | None = None) -> Any:
        """An engine, ready for contexts."""

    def io(self, engine: Any) -> Sequence[TensorInfo]:
        """Inputs and outputs of an engine."""

    def profile(self, engine: Any, name: str) -> tuple[int, int, int]:
        """Least, tuned for and most images that the input `name` takes."""

    def execution_context(self, engine: Any, *, graphs: bool = True) -> tuple[Any, bool]:
        """An execution context, and whether it captures and launches graphs by itself, as it may
        where `graphs` are wanted."""

    def layers(self, engine: Any) -> Sequence[Mapping[str, Any]]:
        """The engine's layers, as its inspector tells them."""

    def profiler(self, context: Any) -> Profiler:
        """What hears of the layers of each execution of `context`."""


@dataclass(frozen=True)
class Signature:
    """An engine's one input and its outputs, at the batch that is run."""

    image: str
    tensors: dict[str, tuple[tuple[int, ...], str]]

    @property
    def outputs(self) -> list[str]:
        return [name for name in self.tensors if name != self.image]


class Lane:
    """A slot with the execution context that works on it, and its graph.

    To be made and freed while the device's context is current. Where its layers are to be timed
    there is no graph, so that each layer is an execution of its own.
    """

    def __init__(
        self,
        device: cuda.Device,
        api: Api,
        engine: Any,
        signature: Signature,
        name: str,
        *,
        profile: bool = False,
    ) -> None:
        self._name = name
        self._signature = signature
        self._context: Any = None
        self._graph: Graph | None = None
        self.profiler: Profiler | None = None
        self.slot = Slot(device, signature.tensors)
        self._image = self.slot.tensors[signature.image]
        self._results = {key: self.slot.tensors[key] for key in signature.outputs}
        try:
            self._context, own_graphs = api.execution_context(engine, graphs=not profile)
            self._bind()
            if profile:
                self.profiler = api.profiler(self._context)
                self.graph_is = "none: layers are timed"
            else:
                self.graph_is = "TensorRT's own" if own_graphs else self._capture(device)
        except BaseException:
            if device.usable():
                self.free()
            raise

    def _bind(self) -> None:
        """Tell the context the shape of the input, and where every tensor is.

        Raises:
            RunnerError: when TensorRT refuses, or means another size than the engine says.
        """
        if self._context is None:
            raise RunnerError(
                f"{self._name}: TensorRT makes no execution context",
                got="not enough memory on the device, as a rule",
                expected="room for one more",
                fix="lower --batch, or end what else uses the device ('nvidia-smi' shows that)",
            )
        context, image = self._context, self._signature.image
        shape = self._signature.tensors[image][0]
        if not context.set_input_shape(image, shape):
            raise RunnerError(
                f"{self._name}: TensorRT refuses the input's shape",
                got=list(shape),
                expected="a shape of the engine's profile",
                fix="build it again, or compile it on this device",
            )
        for key, (expected, _) in self._signature.tensors.items():
            found = tuple(int(side) for side in context.get_tensor_shape(key))
            if found != expected:
                raise RunnerError(
                    f"{self._name}: the size of {key!r} is not what the engine says",
                    got=list(found),
                    expected=list(expected),
                    fix="build it again, or compile it on this device",
                )
            if not context.set_tensor_address(key, self.slot.tensors[key].device.address):
                raise RunnerError(
                    f"{self._name}: TensorRT refuses the memory of {key!r}",
                    got=f"address {self.slot.tensors[key].device.address:#x}",
                    expected="one that it takes",
                    fix="build it again, or compile it on this device",
                )

    def _capture(self, device: cuda.Device) -> str:
        """Capture the engine into a graph; what became of that, in words.

        TensorRT puts off some of its work to the first execution after a shape is set, and that
        cannot be captured ("Developer Guide", CUDA Graphs): the first one is a rehearsal.
        """
        self._image.host.array.fill(0)
        self._queue()
        self.slot.wait()
        try:
            self._graph = Graph(self.slot.stream.handle, self._execute)
        except (CallError, RunnerError, device.cuda.Error) as error:
            return f"none: {error}"
        return "captured"

    def _execute(self) -> None:
        if not self._context.execute_async_v3(self.slot.stream.handle):
            raise RunnerError(
                f"{self._name}: TensorRT does not execute the engine",
                got="no reason",
                expected="a query that begins",
                fix="'nvidia-smi' and the kernel's log show the device's state; run again",
            )

    def begin(self, batch: Batch) -> None:
        """Queue a query. Its input is copied first, so the caller may reuse `batch`."""
        np.copyto(self._image.host.array, batch, casting="same_kind")
        if self.profiler is not None:
            self.profiler.forget()
        self._queue()

    def _queue(self) -> None:
        stream = self.slot.stream
        self._image.device.upload(self._image.host, stream)
        self.slot.timed(self._graph.launch if self._graph else self._execute)
        for tensor in self._results.values():
            tensor.device.download(tensor.host, stream)

    def results(self) -> Outputs:
        """Copies of the outputs, in single precision, of the query that was waited for."""
        return {key: tensor.host.array.astype(np.float32) for key, tensor in self._results.items()}

    def free(self, *, lost: bool = False) -> None:
        """Free all of it; only the first call does something.

        What was on a `lost` device has gone with its context, which must be released by then.
        """
        graph, self._graph = self._graph, None
        if graph is not None and not lost:
            graph.free()
        self.profiler = None
        # Its destructor frees what it has on the device.
        self._context = None
        self.slot.free()
