"""A double of TensorRT's engine on the driver of host memory.

It has the names of TensorRT's Python interface that a runner uses, and keeps its rules: shapes
before addresses, an address for every tensor, nothing captured on the first execution after a shape
was set, memory of its own for every context, freed while CUDA's context is current. What it queues
on the stream is OpenVINO's execution of the graph in place of a kernel; its "plan" is an ONNX
graph.
"""

from __future__ import annotations

import ctypes
import weakref
from ctypes import c_int, c_void_p
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from vggdeploy.errors import ModelError
from vggdeploy.targets import trt_api, trt_profiler

_CALLBACK = ctypes.CFUNCTYPE(None, c_void_p)


def _cuda(name: str, *arguments: Any) -> int:
    function = getattr(ctypes.CDLL("libcuda.so.1"), name)
    function.restype = c_int
    return int(function(*arguments))


@dataclass(frozen=True)
class Info:
    name: str
    is_input: bool
    shape: tuple[int, ...]
    dtype: str = "float32"


class Api:
    """Stands where `trt_api.Api` does.

    Args:
        profile: the batches that engines take.
        own_graphs: as TensorRT for RTX, which captures by itself.
        said: what the engine says of its tensors, by name, where that is not the graph's.
    """

    def __init__(
        self,
        profile: tuple[int, int, int] = (1, 2, 4),
        *,
        own_graphs: bool = False,
        said: dict[str, Info] | None = None,
    ) -> None:
        self.flavour = "rtx" if own_graphs else "tensorrt"
        self.version = "10.3.0"
        self.module = SimpleNamespace(IProfiler=IProfiler)
        if own_graphs:
            self.module.CudaGraphStrategy = SimpleNamespace(
                DISABLED="disabled", WHOLE_GRAPH_CAPTURE="whole graph"
            )
        self.module.__version__ = self.version
        self.limits = profile
        self.said = said or {}
        self.engines: weakref.WeakSet[Engine] = weakref.WeakSet()
        self.engine_kind = Engine
        self.context_kind = Context

    def deserialize(self, plan: bytes, dla_core: int | None = None) -> Any:
        try:
            engine = self.engine_kind(self, plan)
        except RuntimeError as error:  # OpenVINO's
            raise ModelError(
                "it does not load the engine",
                got="magicTagRead failed",
                expected="a plan of this double",
                fix="build it again",
            ) from error
        self.engines.add(engine)
        return engine

    def io(self, engine: Engine) -> list[Info]:
        return [self.said.get(info.name, info) for info in engine.infos]

    def profile(self, engine: Engine, name: str) -> tuple[int, int, int]:
        assert name == engine.infos[0].name
        return self.limits

    def execution_context(self, engine: Engine, *, graphs: bool = True) -> tuple[Any, bool]:
        # The adapter's own.
        return trt_api.Api(self.flavour, self.module).execution_context(engine, graphs=graphs)

    def layers(self, engine: Engine) -> list[dict[str, Any]]:
        return INSPECTED

    def profiler(self, context: Any) -> trt_profiler.Profiler:
        return trt_profiler.Profiler(self.module, context)


class IProfiler:
    """The base of profilers, whose binding has to be initialized by name."""

    def __init__(self) -> None:
        self.bound = True


PROFILE = [("c0 + c0.relu", 0.5), ("reformat", 0.125), ("f0", 0.25)]
"""What the double's profiler reports of every execution, in milliseconds."""

INSPECTED: list[dict[str, Any]] = [
    {
        "name": "c0 + c0.relu",
        "type": "CaskConvolution",
        "nodes": ["c0", "c0.relu"],
        "inputs": [{"name": "image", "type": "Int8", "format": None}],
    },
    {
        "name": "f0",
        "type": "kgen",
        "nodes": ["f0"],
        "inputs": [{"name": "flat", "type": None, "format": "Half NC/32HW32"}],
    },
]
"""What its inspector says of two of them."""


class Engine:
    def __init__(self, api: Api, plan: bytes) -> None:
        import openvino as ov

        core = ov.Core()
        model = core.read_model(plan)
        self.model = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        self.infos = [
            Info(
                port.get_any_name(),
                is_input,
                tuple(
                    side.get_length() if side.is_static else -1 for side in port.get_partial_shape()
                ),
                np.dtype(port.get_element_type().to_dtype()).name,
            )
            for is_input, ports in ((True, model.inputs), (False, model.outputs))
            for port in ports
        ]
        self.context_kind = api.context_kind
        self.contexts = 0
        if hasattr(api.module, "CudaGraphStrategy"):
            self.create_runtime_config = SimpleNamespace

    def create_execution_context(self, config: Any = None) -> Any:
        assert hasattr(self, "create_runtime_config") == (config is not None)
        if config is not None:
            assert config.cuda_graph_strategy in ("disabled", "whole graph")
        self.contexts += 1
        context = self.context_kind(self)
        context.own_graphs = config is not None and config.cuda_graph_strategy == "whole graph"
        # TensorRT gives None where the device's memory does not suffice.
        return context if context.workspace else None


class Context:
    WORKSPACE = 4096

    own_graphs = False
    profiler: Any = None
    enqueue_emits_profile = True

    def report_to_profiler(self) -> bool:
        # Of the last execution, which must have ended; the stream is deferred, so that shows.
        if self.profiler is None or self.reported == self.executed:
            return False
        self.reported = self.executed
        for name, milliseconds in PROFILE:
            self.profiler.report_layer_time(name, milliseconds)
        return True

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.shape: tuple[int, ...] | None = None
        self.addresses: dict[str, int] = {}
        self.fresh = True
        self.executed = self.reported = 0
        self.failed: BaseException | None = None
        # Of the context itself it may not hold more than a weak reference, or neither ever goes.
        me = weakref.ref(self)
        self._callback = _CALLBACK(lambda _: me()._run())  # type: ignore[union-attr]
        memory = c_void_p()
        code = _cuda("cuMemAlloc_v2", ctypes.byref(memory), ctypes.c_size_t(self.WORKSPACE))
        self.workspace = None if code else memory.value

    def __del__(self) -> None:
        if self.workspace:
            _cuda("cuMemFree_v2", c_void_p(self.workspace))

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        info = self.engine.infos[0]
        fits = len(shape) == len(info.shape) and all(
            want in (-1, got) for want, got in zip(info.shape, shape, strict=True)
        )
        if name != info.name or not fits:
            return False
        self.shape = tuple(shape)
        self.fresh = True
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert self.shape is not None, "no shape is set"
        info = next(info for info in self.engine.infos if info.name == name)
        return self.shape if info.is_input else (self.shape[0], *info.shape[1:])

    def set_tensor_address(self, name: str, address: int) -> bool:
        if address % 256:
            return False
        self.addresses[name] = address
        return name in {info.name for info in self.engine.infos}

    def execute_async_v3(self, stream: int) -> bool:
        if set(self.addresses) != {info.name for info in self.engine.infos} or not stream:
            return False
        if self.profiler is not None:
            # One that reports by itself waits for the device, which is not what is wanted.
            assert not self.own_graphs
            assert self.profiler.bound
            assert not self.enqueue_emits_profile
        if self.fresh:
            # Work that was put off is done now, and breaks a capture.
            self.fresh = False
            if _cuda("cuCtxSynchronize"):
                return False
        return _cuda("cuLaunchHostFunc", c_void_p(stream), self._callback, None) == 0

    def _array(self, name: str) -> Any:
        shape = self.get_tensor_shape(name)
        (dtype,) = (np.dtype(info.dtype) for info in self.engine.infos if info.name == name)
        kind = ctypes.c_byte * (int(np.prod(shape)) * dtype.itemsize)
        return np.frombuffer(kind.from_address(self.addresses[name]), dtype).reshape(shape)

    def _run(self) -> None:
        """What a kernel would do. An exception cannot leave a callback."""
        try:
            self.executed += 1
            inputs, *outputs = (info.name for info in self.engine.infos)
            results = self.engine.model([self._array(inputs).copy()])
            for index, name in enumerate(outputs):
                self._array(name)[...] = results[index]
        except BaseException as error:
            self.failed = error
