"""OpenVINO: CPU, integrated GPU and NPU.

The engine is OpenVINO's own model format (IR), which carries 8-bit weights as 8 bits and 4-bit
weights as 4, and is compiled for the device when it is opened.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vggdeploy import atomic, machine
from vggdeploy.contracts import (
    CPU_WEIGHTS,
    Availability,
    GraphTarget,
    LayerTime,
    Runner,
    TensorSpec,
)
from vggdeploy.errors import ConfigError, MissingError, ModelError, RunnerError
from vggdeploy.machine import cores
from vggdeploy.targets import openvino_module, openvino_settings
from vggdeploy.targets.openvino_graph import free_weights, number, take_pixels, widen
from vggdeploy.targets.openvino_queue import Lanes

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence
    from pathlib import Path

    from vggdeploy.bundle import Bundle
    from vggdeploy.contracts import (
        Batch,
        CompileOptions,
        Dialect,
        Outputs,
        Probe,
        RunOptions,
        Settings,
    )

ENGINE, WEIGHTS = "model.xml", "model.bin"

# OpenVINO's names of precisions: of inference, and among a device's capabilities.
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32", "int8-w4": "f32"}
_CAPABILITIES = {
    "fp32": "FP32",
    "bf16": "BF16",
    "fp16": "FP16",
    "int8": "INT8",
    "int8-w4": "INT8",
}

_DYNAMIC_GROUPS = {"int8": 128, "int8-w4": 64}
"""Inputs of a fully connected layer that a CPU with VNNI quantizes together, to 8 bits, while it
runs; fixed here so that an engine does not change with OpenVINO's own choice. Of 8-bit weights,
groups of 128 take 0.98 times what OpenVINO's 32 take and are as near to the reference (52.9 and
53.0 dB; at 256 it is 51.7). 4-bit weights have their scales in groups of 128, which these have to
divide. A CPU without VNNI computes these layers in float32."""


class OpenVINO(GraphTarget):
    """An OpenVINO target at one precision."""

    takes_pixels = True

    def availability(self) -> Availability:
        if importlib.util.find_spec("openvino") is None:
            return Availability(
                False, "the package openvino is not installed", "pip install 'vggdeploy[openvino]'"
            )
        return Availability(True)

    def version(self) -> str:
        return f"openvino {importlib.metadata.version('openvino')}"

    def compile(self, onnx: Path, options: CompileOptions, out_dir: Path) -> tuple[Path, ...]:
        ov = openvino_module.load()
        model = _read(ov, onnx)
        number(model)
        if options.pixels is not None:
            take_pixels(model, options.pixels)
        path = out_dir / ENGINE
        # Half the bytes for bfloat16 too: above 6e-5 float16 rounds finer than bfloat16 will, and
        # below it a weight is too small to matter.
        try:
            ov.save_model(model, path, compress_to_fp16=self.precision in ("fp16", "bf16"))
        except RuntimeError as error:  # of its streams, whatever the system said
            raise atomic.no_space(path) from error
        return path, path.with_suffix(".bin")

    def dialect_for(self, cpu_isa: str) -> Dialect | None:
        if self.dialect is None:
            return super().dialect_for(cpu_isa)
        if cpu_isa not in CPU_WEIGHTS:
            raise ConfigError(
                "unknown CPU",
                got=repr(cpu_isa),
                expected="one of " + ", ".join(CPU_WEIGHTS),
                fix="choose one with --cpu-isa",
            )
        return replace(self.dialect, weight=CPU_WEIGHTS[cpu_isa])

    def open(self, bundle: Bundle, options: RunOptions) -> Runner:
        bundle.file(WEIGHTS)  # which the engine names, and OpenVINO reads with it
        return OpenVINORunner(self, bundle.file(ENGINE), (), options, name=str(bundle.path))

    def open_graph(self, onnx: Path, taps: Sequence[str], options: RunOptions) -> Runner:
        return OpenVINORunner(self, onnx, taps, options, name=onnx.name)

    def runs_on(self, device: str) -> Availability:
        here = self.availability()
        if not here.ok:
            return here
        try:
            self.require_device(openvino_module.load().Core(), device)
        except MissingError as error:
            return Availability(False, f"{error.what}, but {error.got}", error.fix)
        return here

    def device_facts(self, device: str) -> dict[str, Any]:
        if device.upper().partition(".")[0] not in ("GPU", "NPU"):
            return {}
        try:
            kind = openvino_module.load().Core().get_property(device, "DEVICE_TYPE")
        except RuntimeError:
            return {}  # no such device: opening it says so
        return {"integrated": str(kind).upper().endswith("INTEGRATED")}

    def cautions(self, bundle: Bundle, options: RunOptions) -> tuple[str, ...]:
        built_for = bundle.manifest["build"].get("cpu_isa")
        on_cpu = options.device.split(":")[0] in ("CPU", "AUTO")
        if self.dialect is not None and built_for == "vnni" and on_cpu and machine.saturates():
            return (
                "this CPU has no VNNI: its 8-bit products are added in 16 bits and may saturate; "
                "where 'verify --data' shows a loss, build for it with --cpu-isa avx2",
            )
        return ()

    def probes(self, options: RunOptions) -> Sequence[Probe]:
        from vggdeploy.targets import openvino_probes

        return openvino_probes.probes(self, options)

    def candidates(self, options: RunOptions) -> Sequence[Settings]:
        core, device = openvino_module.load().Core(), options.device
        self.require_device(core, device)
        several = device.split(":")[0] in ("AUTO", "MULTI", "HETERO")
        has = () if several else core.get_property(device, "OPTIMIZATION_CAPABILITIES")
        return openvino_settings.candidates(self.precision, options, cores.usable(), has)

    def tunable(self, settings: Settings, cores: int) -> bool:
        return openvino_settings.tunable(self.precision, settings, cores)

    def exact(self, options: RunOptions) -> bool:
        """Whether a graph is computed in float32 throughout, quantized and float16 parts too."""
        return self.precision == "fp32" and options.device.split(".")[0] == "CPU"

    def configuration(self, options: RunOptions) -> dict[str, Any]:
        """OpenVINO's properties for a run."""
        config: dict[str, Any] = {"PERFORMANCE_HINT": options.goal.upper()}
        if self.precision != "fp16":
            # fp16 is a matter of the weights' size; the device computes as it likes best.
            config["INFERENCE_PRECISION_HINT"] = _HINTS[self.precision]
        chosen = options.settings
        if chosen.precision is not None:
            config["INFERENCE_PRECISION_HINT"] = chosen.precision
        if chosen.streams is not None:
            config["NUM_STREAMS"] = chosen.streams
        if chosen.threads is not None:
            config["INFERENCE_NUM_THREADS"] = chosen.threads
            own = cores.usable()
            if own.logical > own.physical:
                # Left to itself it may use one hyperthread of each core, whatever the threads.
                config["ENABLE_HYPER_THREADING"] = chosen.threads > own.physical
        if chosen.pinning is not None:
            config["ENABLE_CPU_PINNING"] = chosen.pinning
        if options.profile:
            config["PERF_COUNT"] = True
        if self.exact(options):
            # A quantized graph too is computed in float, as QuantizeLinear and DequantizeLinear
            # define it, and not with 8-bit kernels.
            config["LP_TRANSFORMS_MODE"] = "NO"
            config["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 0
        if self.dialect and self.dialect.matrix and options.device.split(".")[0] == "CPU":
            config["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = _DYNAMIC_GROUPS[self.precision]
        return config

    def require_device(self, core: Any, device: str) -> None:
        """Make sure that the device is there and has the precision.

        Raises:
            MissingError: when it is not or has not; OpenVINO would silently compute in FP32.
        """
        if device.split(":")[0] in ("AUTO", "MULTI", "HETERO"):
            return
        present = core.available_devices
        if device not in present and device.split(".")[0] not in present:
            raise MissingError(
                f"OpenVINO finds no device {device}",
                got=", ".join(present) or "none",
                expected=f"{device} among them",
                fix="choose another with --device, or install the device's driver",
            )
        has = core.get_property(device, "OPTIMIZATION_CAPABILITIES")
        if self.precision != "fp16" and _CAPABILITIES[self.precision] not in has:
            raise MissingError(
                f"{device} ({core.get_property(device, 'FULL_DEVICE_NAME')}) has no "
                f"{_CAPABILITIES[self.precision]} arithmetic",
                got=", ".join(has),
                expected=f"{_CAPABILITIES[self.precision]} among them",
                fix=f"run {self.name} on a device that has it, or build ov-fp32 or ov-int8",
            )


class OpenVINORunner(Runner):
    """Runs an OpenVINO model on a device."""

    reuses_buffers = True

    def __init__(
        self,
        target: OpenVINO,
        model: Path | Any,
        taps: Sequence[str],
        options: RunOptions,
        *,
        name: str,
    ) -> None:
        super().__init__()
        ov = openvino_module.load()
        self.name = f"{target.name} runner of {name}"
        self._target = target
        self._options = options
        self._core = ov.Core()
        target.require_device(self._core, options.device)
        self._model = model if isinstance(model, ov.Model) else _read(ov, model)
        if not (self._model.inputs and self._model.outputs):
            raise ModelError(
                f"{self.name}: its graph is no network",
                got=f"{len(self._model.inputs)} inputs and {len(self._model.outputs)} outputs",
                expected="one of each",
                fix="build it again",
            )
        _float_ports(ov, self._model)
        if target.exact(options):
            widen(self._model)
        own = [port.get_any_name() for port in self._model.outputs]
        if taps:
            self._model.add_outputs(list(taps))
        port = self._model.inputs[0]
        sides = [side.get_length() for side in list(port.get_partial_shape())[1:]]
        _fix_batch(self._model, [options.batch, *sides], self.name)
        free_weights(self._model)
        kind = "uint8" if port.get_element_type() == ov.Type.u8 else "float32"
        self.input = TensorSpec(port.get_any_name(), (options.batch, *sides), kind)
        names = [*own, *taps]
        self.outputs = tuple(
            TensorSpec(name, (options.batch, *list(out.get_partial_shape().to_shape())[1:]))
            for name, out in zip(names, self._model.outputs, strict=True)
        )
        self._requests: list[Any] = []
        self._compiled: Any = None
        self._queue: Lanes | None = None
        self._nodes: dict[str, tuple[str, ...]] | None = None

    def _start(self) -> None:
        try:
            self._compiled = self._core.compile_model(
                self._model, self._options.device, self._target.configuration(self._options)
            )
        except RuntimeError as error:
            raise ModelError(
                f"{self.name}: OpenVINO does not compile it for {self._options.device}",
                got=_reason(error),
                expected="a graph and settings that it takes",
                fix="try --device CPU, or another target",
            ) from error
        self.depth = (
            1
            if self._options.goal == "latency"
            else max(2, int(self._compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")))
        )
        self._requests = [self._compiled.create_infer_request() for _ in range(self.depth)]
        self.details = {
            "device": ", ".join(self._compiled.get_property("EXECUTION_DEVICES")),
            "requests": self.depth,
        }

    def _stop(self) -> None:
        if self._queue is not None:
            self._queue.close()
        self._queue = None
        self._requests = []
        self._nodes = None
        self._compiled = None

    def _infer(self, batch: Batch) -> Outputs:
        request = self._requests[0]
        request.infer({0: batch}, share_inputs=True)
        return self._results(request)

    def _infer_many(self, batches: Iterable[Batch]) -> Generator[Outputs, None, None]:
        # Requests are used in turn, so results come in order; a batch is held until its request
        # is done with it, since inputs are shared and not copied.
        held: list[Batch | None] = [None] * self.depth
        started = finished = 0
        try:
            for batch in batches:
                slot = started % self.depth
                if started - finished == self.depth:
                    self._requests[slot].wait()
                    finished += 1
                    yield self._results(self._requests[slot])
                held[slot] = batch
                self._requests[slot].start_async({0: batch}, share_inputs=True)
                started += 1
            while finished < started:
                slot = finished % self.depth
                self._requests[slot].wait()
                finished += 1
                yield self._results(self._requests[slot])
        finally:
            for request in self._requests:
                request.wait()

    def _begin(self, batch: Batch, done: Callable[[Outputs], None]) -> None:
        if self._queue is None:
            self._queue = Lanes(self.depth)

        def work(lane: int) -> None:
            request = self._requests[lane]
            try:
                request.infer({0: batch}, share_inputs=True)
            except RuntimeError as error:
                raise RunnerError(
                    f"{self.name}: a query failed",
                    got=_reason(error),
                    expected="scores",
                    fix="run it again; if it fails again, lower --batch or try --device CPU",
                ) from error
            done(self._results(request))

        self._queue.begin(work)

    def _drain(self) -> None:
        failures = self._queue.drain() if self._queue is not None else []
        if failures:
            raise failures[0]

    def _results(self, request: Any) -> Outputs:
        return {
            spec.name: request.get_output_tensor(index).data
            for index, spec in enumerate(self.outputs)
        }

    def layer_times(self) -> list[LayerTime]:
        """What each executed node of the compiled graph took in the last `infer`, in its order.

        The precision is that of the kernel: a fully connected layer of 8-bit weights that is
        computed in float says ``f32``.
        """
        if not (self._options.profile and self._requests):
            raise RunnerError(
                f"{self.name}: its layers are not timed",
                got="a closed runner, or one that does not profile",
                expected="an open runner with RunOptions.profile",
                fix="open it with profile=True",
            )
        if self._nodes is None:
            self._nodes = self._original_names()
        return [
            LayerTime(
                said.node_name,
                # Without a runtime model, a node's name is all that there is to know it by.
                self._nodes.get(said.node_name, ()) if self._nodes else (said.node_name,),
                said.node_type,
                # Such as jit_avx2_I8: the instruction set, then the type.
                said.exec_type.rpartition("_")[2],
                said.real_time.total_seconds(),
            )
            for said in self._requests[0].get_profiling_info()
            if said.status == said.Status.EXECUTED
        ]

    def _original_names(self) -> dict[str, tuple[str, ...]]:
        """Of each executed node, the names of the model's nodes in it; empty for a device that
        shows no runtime model."""
        try:
            layers = self.executed_layers()
        except (RuntimeError, KeyError):
            return {}
        return {
            layer["name"]: tuple(name for name in layer["original"].split(",") if name)
            for layer in layers
        }

    def executed_layers(self) -> list[dict[str, Any]]:
        """The compiled graph as it executes: name, type and precision of every node."""
        return [
            {
                "name": node.get_friendly_name(),
                "type": node.get_rt_info()["layerType"].astype(str),
                "precision": node.get_rt_info()["runtimePrecision"].astype(str),
                "original": node.get_rt_info()["originalLayersNames"].astype(str),
            }
            for node in self._compiled.get_runtime_model().get_ordered_ops()
        ]


def _read(ov: Any, path: Path) -> Any:
    try:
        return ov.Core().read_model(path)
    except RuntimeError as error:
        raise ModelError(
            f"OpenVINO does not take {path.name}",
            got=_reason(error),
            expected="operators that OpenVINO has",
            fix="export the model without them",
        ) from error


def _fix_batch(model: Any, shape: list[int], name: str) -> None:
    """Give a model the input shape that it will run with."""
    try:
        model.reshape({model.inputs[0]: shape})
    except RuntimeError as error:
        raise ModelError(
            f"{name}: its graph takes no batch of {shape[0]}",
            got=_reason(error),
            expected="a graph whose batch is free",
            fix="export the model with a dynamic batch",
        ) from error


def _float_ports(ov: Any, model: Any) -> None:
    """Let a foreign graph that is float16 or float64 outside take and give float32 too."""
    single, others = ov.Type.f32, (ov.Type.f16, ov.Type.bf16, ov.Type.f64)
    if not any(port.get_element_type() in others for port in (*model.inputs, *model.outputs)):
        return
    converter = ov.preprocess.PrePostProcessor(model)
    for index, port in enumerate(model.inputs):
        if port.get_element_type() in others:
            converter.input(index).tensor().set_element_type(single)
    for index, port in enumerate(model.outputs):
        if port.get_element_type() in others:
            converter.output(index).tensor().set_element_type(single)
    converter.build()


def _reason(error: RuntimeError) -> str:
    """The last line that says something: OpenVINO prints where it failed first."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip(" -")]
    return lines[-1] if lines else type(error).__name__
