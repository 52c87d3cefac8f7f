"""TensorRT's Python interface, in its two flavours and its versions: 8.6, 10, 11, and for RTX.

Every difference between them is settled here and in `trt_build`, by asking for the name (`hasattr`) and never by a
version number: names come and go between releases, and the values of enumerations change with them.

- 8.6 has no STRONGLY_TYPED: what may run in 8 and 16 bits is told by builder flags.
- 10 has both; calibrators are deprecated, and warn.
- 11 has neither the builder flags nor calibrators nor EXPLICIT_BATCH; every network is typed.
- For RTX it compiles ahead of time for compute capabilities, with no GPU, and times no kernels.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vggdeploy.contracts import Availability, TrtOptions
from vggdeploy.errors import ConfigError, MissingError, ModelError
from vggdeploy.targets import trt_layers, trt_log, trt_profiler

if TYPE_CHECKING:
    from pathlib import Path

MODULES = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
"""The package of each flavour, in the order in which they are chosen."""

EXTRAS = {"tensorrt": "tensorrt", "rtx": "tensorrt-rtx"}
"""The extra of this project that brings it."""

WHEELS = {"tensorrt": "tensorrt", "rtx": "tensorrt-rtx-cu13"}
"""Its name on the package index, which is enough to build."""

_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
"""TensorRT's names of types, and numpy's."""

_FOREIGN = ("serialization version", "version tag", "magictag", "magic tag", "compute capability")
"""What a log says, in small letters, of an engine of another TensorRT or another GPU."""

_NO_DRIVER = ("driver", "cuda initialization", "no cuda", "cuda error", "cudaerror", "cuinit")
"""What it says where no GPU can be had."""


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of an engine; -1 in `shape` stands for the batch."""

    name: str
    is_input: bool
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class BuiltEngine:
    """What a build gave.

    Attributes:
        plan: the engine, serialized.
        layers: the engine's layers, see `trt_layers.parse`: as the inspector tells them, or, where
            the engine cannot be loaded on the machine that built it, as the builder logged them;
            None where it did not.
        timing_cache: the times of kernels, for the next build; None where none were taken.
        timing_mismatch: why the timing cache that was given was not used; empty where it was.
        batches: least, tuned for and most, as the network has them.
        typed: whether the network's own types decided, and not builder flags.
    """

    plan: bytes
    layers: list[dict[str, Any]] | None
    timing_cache: bytes | None
    timing_mismatch: str
    batches: tuple[int, int, int]
    typed: bool


def flavours() -> dict[str, Availability]:
    """Whether each flavour is installed; none is imported."""
    return {name: _installed(name) for name in MODULES}


def _installed(flavour: str) -> Availability:
    if importlib.util.find_spec(MODULES[flavour]) is None:
        return Availability(
            False,
            f"the package {MODULES[flavour]} is not installed",
            f"pip install {WHEELS[flavour]}, or 'vggdeploy[{EXTRAS[flavour]}]' to run engines as "
            "well",
        )
    return Availability(True)


def availability(flavour: str | None = None) -> Availability:
    """Whether a flavour is installed; any of them for None."""
    if flavour is not None:
        return _installed(_known(flavour))
    if any(here.ok for here in flavours().values()):
        return Availability(True)
    return Availability(
        False,
        "neither of the packages tensorrt and tensorrt_rtx is installed",
        "pip install tensorrt-rtx-cu13 for RTX cards, or tensorrt for others (JetPack brings it); "
        "'vggdeploy[tensorrt-rtx]' and 'vggdeploy[tensorrt]' bring what runs engines as well",
    )


def load(flavour: str | None = None) -> Api:
    """A flavour's interface; of what is installed, the full TensorRT first, for None.

    Raises:
        ConfigError: for an unknown flavour.
        MissingError: when it is not installed, or its libraries cannot be loaded.
    """
    here = availability(flavour)
    if not here.ok:
        raise MissingError(
            "TensorRT is not here",
            got=here.reason,
            expected="its package for Python",
            fix=here.fix,
        )
    chosen = flavour or next(name for name, found in flavours().items() if found.ok)
    try:
        module = importlib.import_module(MODULES[chosen])
    except (ImportError, OSError, RuntimeError) as error:  # the wheel, its libraries, its stub
        raise MissingError(
            f"the package {MODULES[chosen]} is installed but cannot be loaded",
            got=error,
            expected="its libraries, of the same version",
            fix=f"pip install --force-reinstall {WHEELS[chosen]}",
        ) from error
    return Api(chosen, module)


def _known(flavour: str) -> str:
    if flavour not in MODULES:
        raise ConfigError(
            "unknown flavour of TensorRT",
            got=repr(flavour),
            expected="one of " + ", ".join(MODULES),
            fix="choose one with --flavour, or drop it",
        )
    return flavour


class Api:
    """One flavour and version of TensorRT.

    Attributes:
        flavour: ``tensorrt`` or ``rtx``.
        version: such as ``"10.3.0"``.
        module: the package.
    """

    def __init__(self, flavour: str, module: Any) -> None:
        self.flavour = flavour
        self.module = module
        self.version = str(module.__version__)

    @property
    def strongly_typed(self) -> bool:
        """Whether a network's own types can decide what runs in which precision."""
        return hasattr(self.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")

    @property
    def implicit(self) -> bool:
        """Whether a float network can be quantized inside, by a calibration cache."""
        return hasattr(self.module, "IInt8EntropyCalibrator2") and hasattr(
            self.module.BuilderFlag, "INT8"
        )

    @property
    def compute_capabilities(self) -> tuple[str, ...]:
        """What engines can be compiled for ahead of time, such as ``"8.6"``; none where they are
        compiled for the GPU at hand."""
        kinds = getattr(self.module, "ComputeCapability", None)
        names = [name for name in dir(kinds) if name.startswith("SM") and name[2:].isdigit()]
        return tuple(sorted((f"{name[2:-1]}.{name[-1]}" for name in names), key=_by_number))

    @property
    def ahead(self) -> bool:
        """Whether engines are compiled ahead of time, with no GPU and no kernel timed."""
        return bool(self.compute_capabilities)

    def check(self, options: TrtOptions) -> None:
        """Make sure that this flavour can build with `options`, before it is asked to.

        Raises:
            ConfigError: naming the flag.
        """
        for capability in options.compute_capabilities:
            if not self.ahead:
                raise ConfigError(
                    f"{self.name} compiles for the GPU at hand",
                    got=f"--compute-capability {capability}",
                    expected="no --compute-capability",
                    fix="drop it, or build with --flavour rtx",
                )
            if capability not in self.compute_capabilities:
                raise ConfigError(
                    f"{self.name} does not compile for this compute capability",
                    got=capability,
                    expected="one of " + ", ".join(self.compute_capabilities),
                    fix="choose others with --compute-capability; other GPUs take the full "
                    "TensorRT, on the device",
                )
        if options.dla_core is not None and not self.implicit:
            raise ConfigError(
                f"{self.name} cannot build for DLA, which takes 8 bits by a calibration cache alone",
                got=f"--dla {options.dla_core}",
                expected="a TensorRT with calibrators: 8 or 10, as JetPack has them",
                fix="drop --dla, or build on the device",
            )
        if options.sparse and not hasattr(self.module.BuilderFlag, "SPARSE_WEIGHTS"):
            raise ConfigError(
                f"{self.name} has no kernels for sparse weights",
                got="--sparsity 2:4",
                expected="TensorRT 8.0 or newer",
                fix="drop it, or build with such a version",
            )
        if options.optimization_level is not None and not hasattr(
            self.module.IBuilderConfig, "builder_optimization_level"
        ):
            raise ConfigError(
                f"{self.name} has no builder optimization level",
                got=f"--optimization-level {options.optimization_level}",
                expected="TensorRT 8.6 or newer",
                fix="drop it, or build with such a version",
            )

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{'TensorRT for RTX' if self.flavour == 'rtx' else 'TensorRT'} {self.version}"

    def build(
        self, onnx: Path, options: TrtOptions, timing_cache: bytes | None = None
    ) -> BuiltEngine:
        """Compile a graph.

        Args:
            onnx: typed as it shall run; the float graph for a calibration cache or a DLA core.
            options: how.
            timing_cache: of an earlier build.

        Raises:
            ConfigError: for options that this flavour or this graph does not take.
            ModelError: with all that the parser or the builder has to say.
            MissingError: when there is no GPU, and the flavour needs one.
        """
        from vggdeploy.targets import trt_build

        self.check(options)
        with warnings.catch_warnings(), trt_log.uncollected():
            # What a release deprecates is asked for by name here, and may go with the next.
            warnings.simplefilter("ignore", DeprecationWarning)
            return trt_build.build(self, onnx, options, timing_cache)

    def made(self, kind: Any, log: Any) -> Any:
        """A builder or a runtime: the constructors fail where CUDA does."""
        try:
            with trt_log.uncollected():
                return kind(log)
        except (TypeError, RuntimeError) as error:
            raise MissingError(
                f"{self.name} cannot start on this machine",
                got=log.said() or error,
                expected="an NVIDIA GPU and its driver",
                fix="install the driver, or build on the device",
            ) from error

    def deserialize(self, plan: bytes, dla_core: int | None = None) -> Any:
        """An engine, ready for contexts.

        Raises:
            MissingError: when this machine has no driver or no GPU that it can run on.
            ModelError: when it is no engine of this flavour, version and GPU.
        """
        log = trt_log.log(self.module)
        runtime = self.made(self.module.Runtime, log)
        if dla_core is not None:
            runtime.DLA_core = dla_core
        with trt_log.uncollected():
            engine = runtime.deserialize_cuda_engine(plan)
        if engine is not None:
            return engine
        said = log.said()
        foreign = any(word in said.lower() for word in _FOREIGN)
        if not foreign and any(word in said.lower() for word in _NO_DRIVER):
            raise MissingError(
                f"{self.name} cannot load an engine on this machine",
                got=said,
                expected="an NVIDIA GPU and its driver",
                fix="install the driver, or run it on the device; 'nvidia-smi' shows what is there",
            )
        raise ModelError(
            f"{self.name} does not load the engine",
            got=said or "no reason",
            expected=f"an engine of {self.name}, for this GPU",
            fix="build it again, or compile it on this device",
        )

    def io(self, engine: Any) -> list[TensorInfo]:
        """Inputs and outputs of an engine, in its own order."""
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        return [
            TensorInfo(
                name,
                engine.get_tensor_mode(name) == self.module.TensorIOMode.INPUT,
                tuple(int(side) for side in engine.get_tensor_shape(name)),
                _dtype(engine.get_tensor_dtype(name)),
            )
            for name in names
        ]

    def profile(self, engine: Any, name: str) -> tuple[int, int, int]:
        """Least, tuned for and most images that the input `name` takes."""
        shapes = engine.get_tensor_profile_shape(name, 0)
        least, tuned, most = (int(shape[0]) for shape in shapes)
        return least, tuned, most

    def execution_context(self, engine: Any, *, graphs: bool = True) -> tuple[Any, bool]:
        """An execution context, None where the device's memory does not suffice; and whether it
        captures and launches graphs by itself.

        For RTX it does, where `graphs` are wanted: kernels are compiled while it runs, so it alone
        knows when a graph can be captured.
        """
        strategies = getattr(self.module, "CudaGraphStrategy", None)
        with trt_log.uncollected():
            if strategies is None or not hasattr(engine, "create_runtime_config"):
                return engine.create_execution_context(), False
            config = engine.create_runtime_config()
            config.cuda_graph_strategy = (
                strategies.WHOLE_GRAPH_CAPTURE if graphs else strategies.DISABLED
            )
            return engine.create_execution_context(config), graphs

    def layers(self, engine: Any) -> list[dict[str, Any]]:
        """The engine's layers, as its inspector tells them (`trt_layers.parse`)."""
        inspector = engine.create_engine_inspector()
        kind = self.module.LayerInformationFormat.JSON
        return trt_layers.parse(inspector.get_engine_information(kind))

    def profiler(self, context: Any) -> trt_profiler.Profiler:
        """What hears of the layers of each execution of `context`.

        Raises:
            ConfigError: when this version has no profiler.
        """
        if not hasattr(self.module, "IProfiler"):
            raise ConfigError(
                f"{self.name} times no layers",
                got="a Python package without IProfiler",
                expected="one that has it",
                fix="drop --layers",
            )
        return trt_profiler.Profiler(self.module, context)


def _by_number(capability: str) -> tuple[int, ...]:
    return tuple(int(part) for part in capability.split("."))


def _dtype(kind: Any) -> str:
    name = getattr(kind, "name", str(kind).rsplit(".", 1)[-1])
    return _DTYPES.get(name, name.lower())
