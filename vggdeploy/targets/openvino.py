"""OpenVINO: CPU, integrated GPU and NPU.

The engine is OpenVINO's own model format (IR), which carries 8-bit weights as 8 bits and 4-bit
weights as 4, and is compiled for the device when it is opened.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from vggdeploy import machine
from vggdeploy.contracts import (
    CPU_WEIGHTS,
    Availability,
    GraphTarget,
    Probe,
    Runner,
    TensorSpec,
)
from vggdeploy.errors import ConfigError, MissingError, ModelError, missing_package
from vggdeploy.targets.openvino_graph import free_weights

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from vggdeploy.bundle import Bundle
    from vggdeploy.contracts import CompileOptions, Dialect, Outputs, RunOptions

ENGINE = "model.xml"

# OpenVINO's names of precisions: of inference, and among a device's capabilities.
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32", "int8-w4": "f32"}
_CAPABILITIES = {
    "fp32": "FP32",
    "bf16": "BF16",
    "fp16": "FP16",
    "int8": "INT8",
    "int8-w4": "INT8",
}

_DYNAMIC_GROUP = 32
"""Inputs of a layer with 4-bit weights that a CPU with VNNI quantizes together, to 8 bits, while it
runs: OpenVINO's own choice, fixed here so that an engine does not change with it. A CPU without
VNNI computes these layers in float32."""

_PROBE_WEIGHT_BYTES = 128 << 20
"""More than most last-level caches hold, so that a read of it comes from memory."""


def _openvino() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise missing_package("openvino", "openvino", "an OpenVINO target") from error
    return openvino


class OpenVINO(GraphTarget):
    """An OpenVINO target at one precision."""

    def availability(self) -> Availability:
        if importlib.util.find_spec("openvino") is None:
            return Availability(
                False, "the package openvino is not installed", "pip install 'vggdeploy[openvino]'"
            )
        return Availability(True)

    def version(self) -> str:
        return f"openvino {importlib.metadata.version('openvino')}"

    def compile(self, onnx: Path, options: CompileOptions, out_dir: Path) -> tuple[Path, ...]:
        ov = _openvino()
        model = _read(ov, onnx)
        # OpenVINO numbers what has no name through the whole process; numbered through the model,
        # the same graph gives the same bytes.
        for index, operation in enumerate(model.get_ordered_ops()):
            if operation.get_friendly_name() == operation.get_name():
                operation.set_friendly_name(f"{operation.get_type_name()}_{index}")
        path = out_dir / ENGINE
        # Half the bytes for bfloat16 too: above 6e-5 float16 rounds finer than bfloat16 will, and
        # below it a weight is too small to matter.
        ov.save_model(model, path, compress_to_fp16=self.precision in ("fp16", "bf16"))
        return path, path.with_suffix(".bin")

    def dialect_for(self, cpu_isa: str) -> Dialect | None:
        if self.dialect is None:
            return super().dialect_for(cpu_isa)
        if cpu_isa not in CPU_WEIGHTS:
            raise ConfigError(
                f"unknown CPU {cpu_isa!r}",
                expected="one of " + ", ".join(CPU_WEIGHTS),
                fix="choose one with --cpu-isa",
            )
        return replace(self.dialect, weight=CPU_WEIGHTS[cpu_isa])

    def open(self, bundle: Bundle, options: RunOptions) -> Runner:
        return OpenVINORunner(self, bundle.path / ENGINE, (), options, name=str(bundle.path))

    def open_graph(self, onnx: Path, taps: Sequence[str], options: RunOptions) -> Runner:
        return OpenVINORunner(self, onnx, taps, options, name=onnx.name)

    def runs_on(self, device: str) -> Availability:
        here = self.availability()
        if not here.ok:
            return here
        try:
            self.require_device(_openvino().Core(), device)
        except MissingError as error:
            return Availability(False, error.what, error.fix or "")
        return here

    def cautions(self, bundle: Bundle, options: RunOptions) -> tuple[str, ...]:
        built_for = bundle.manifest["build"].get("cpu_isa")
        on_cpu = options.device.split(":")[0] in ("CPU", "AUTO")
        if self.dialect is not None and built_for == "vnni" and on_cpu and machine.saturates():
            return (
                "this CPU has no VNNI: its 8-bit products are added in 16 bits and may saturate, "
                "which costs accuracy; build for it with --cpu-isa avx2",
            )
        return ()

    def probes(self, options: RunOptions) -> Sequence[Probe]:
        ov = _openvino()
        options = replace(options, batch=1, goal="latency")
        # Of 8-bit convolutions and 4-bit weights, the former decide how fast a network is.
        precision = "int8" if self.dialect else self.precision
        found = []
        for channels, side in ((256, 56), (512, 28), (128, 112)):
            model, macs = _convolutions(ov, precision, channels, side)
            runner = OpenVINORunner(self, model, (), options, name=f"conv {channels}x{side}x{side}")
            found.append(Probe(runner.name, runner, macs=macs))
        # Bandwidth is the device's, whatever the precision, and 8-bit matrix-vector products are
        # bound by arithmetic on a CPU that has no instruction for them.
        for target, kind in ((self, precision), (OpenVINO("ov-fp32", "fp32", None), "fp32")):
            model, size = _wide_matrix(ov, kind)
            runner = OpenVINORunner(
                target, model, (), options, name=f"{kind} matrix-vector product"
            )
            found.append(Probe(runner.name, runner, bytes=size))
        return found

    def configuration(self, options: RunOptions) -> dict[str, Any]:
        """OpenVINO's properties for a run."""
        config: dict[str, Any] = {"PERFORMANCE_HINT": options.goal.upper()}
        if self.precision != "fp16":
            # fp16 is a matter of the weights' size; the device computes as it likes best.
            config["INFERENCE_PRECISION_HINT"] = _HINTS[self.precision]
        if self.precision == "fp32" and options.device.split(".")[0] == "CPU":
            # A quantized graph too is computed in float, as QuantizeLinear and DequantizeLinear
            # define it, and not with 8-bit kernels.
            config["LP_TRANSFORMS_MODE"] = "NO"
        if self.dialect and self.dialect.matrix and options.device.split(".")[0] == "CPU":
            config["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = _DYNAMIC_GROUP
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
                fix="choose another with --device, or install the device's driver",
            )
        has = core.get_property(device, "OPTIMIZATION_CAPABILITIES")
        if self.precision != "fp16" and _CAPABILITIES[self.precision] not in has:
            raise MissingError(
                f"{device} ({core.get_property(device, 'FULL_DEVICE_NAME')}) has no "
                f"{_CAPABILITIES[self.precision]} arithmetic",
                got=", ".join(has),
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
        ov = _openvino()
        self.name = f"{target.name} runner of {name}"
        self._target = target
        self._options = options
        self._core = ov.Core()
        target.require_device(self._core, options.device)
        self._model = model if isinstance(model, ov.Model) else _read(ov, model)
        _float_ports(ov, self._model)
        own = [port.get_any_name() for port in self._model.outputs]
        if taps:
            self._model.add_outputs(list(taps))
        port = self._model.inputs[0]
        sides = [side.get_length() for side in list(port.get_partial_shape())[1:]]
        _fix_batch(self._model, [options.batch, *sides], self.name)
        free_weights(self._model)
        self.input = TensorSpec(port.get_any_name(), (options.batch, *sides))
        names = [*own, *taps]
        self.outputs = tuple(
            TensorSpec(name, (options.batch, *list(out.get_partial_shape().to_shape())[1:]))
            for name, out in zip(names, self._model.outputs, strict=True)
        )
        self._requests: list[Any] = []
        self._compiled: Any = None

    def _start(self) -> None:
        try:
            self._compiled = self._core.compile_model(
                self._model, self._options.device, self._target.configuration(self._options)
            )
        except RuntimeError as error:
            raise ModelError(
                f"{self.name}: OpenVINO does not compile it for {self._options.device}",
                got=_reason(error),
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
        self._requests = []
        self._compiled = None

    def _infer(self, batch: NDArray[np.float32]) -> Outputs:
        request = self._requests[0]
        request.infer({0: batch}, share_inputs=True)
        return self._results(request)

    def _infer_many(self, batches: Iterable[NDArray[np.float32]]) -> Generator[Outputs, None, None]:
        # Requests are used in turn, so results come in order; a batch is held until its request
        # is done with it, since inputs are shared and not copied.
        held: list[NDArray[np.float32] | None] = [None] * self.depth
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

    def _results(self, request: Any) -> Outputs:
        return {
            spec.name: request.get_output_tensor(index).data
            for index, spec in enumerate(self.outputs)
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


def _quantized(value: Any, precision: str) -> Any:
    """An activation as an INT8 target has it: unsigned 8 bits of 0 to 4."""
    from openvino import opset13 as ops

    if precision != "int8":
        return value
    low, high = np.float32(0), np.float32(4)
    return ops.fake_quantize(value, low, high, low, high, 256)


def _weights(shape: tuple[int, ...], precision: str) -> Any:
    """Random weights of a target's type, dequantized where they are integers."""
    from openvino import opset13 as ops

    rng = np.random.default_rng(0)
    if precision != "int8":
        return ops.constant(rng.standard_normal(shape, np.float32) * 0.02)
    integers = rng.integers(-127, 128, shape, np.int8)
    scale = np.full((shape[0], *(1,) * (len(shape) - 1)), 2e-4, np.float32)
    return ops.multiply(ops.convert(ops.constant(integers), "f32"), ops.constant(scale))


def _convolutions(ov: Any, precision: str, channels: int, side: int) -> tuple[Any, int]:
    """Two 3x3 convolutions, one after the other, and their MACs: what VGG does most."""
    from openvino import opset13 as ops

    image = ops.parameter([1, channels, side, side], np.float32, name="image")
    value: Any = image
    for _ in range(2):
        value = ops.convolution(
            _quantized(value, precision),
            _weights((channels, channels, 3, 3), precision),
            [1, 1],
            [1, 1],
            [1, 1],
            [1, 1],
        )
        value = ops.relu(value)
    # Pooled and quantized, so that no time goes into writing wide floats.
    value = ops.max_pool(
        _quantized(value, precision),
        [side, side],
        [1, 1],
        [0, 0],
        [0, 0],
        [side, side],
    ).output(0)
    return ov.Model([value], [image], "convolutions"), 2 * side**2 * channels**2 * 9


def _wide_matrix(ov: Any, precision: str) -> tuple[Any, int]:
    """One fully connected layer whose weights fill memory, and their bytes."""
    from openvino import opset13 as ops

    width = {"int8": 1, "fp32": 4}.get(precision, 2)
    inputs, outputs = _PROBE_WEIGHT_BYTES // width // 4096, 4096
    vector = ops.parameter([1, inputs], np.float32, name="image")
    weights = _weights((outputs, inputs), precision)
    value = ops.matmul(_quantized(vector, precision), weights, False, True)
    return ov.Model([value], [vector], "matrix"), inputs * outputs * width
