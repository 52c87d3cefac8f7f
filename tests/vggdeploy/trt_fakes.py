"""The shape of TensorRT's Python interface, version by version, as far as a build touches it.

Each version has exactly the names that it has, by its Python bindings' source (python/src/infer and
python/src/parsers of NVIDIA/TensorRT): asking for one that is gone, or that is not there yet, is an
AttributeError, in reading as in writing. What a build does is written down.
"""

from __future__ import annotations

import enum
import json
import warnings
from types import SimpleNamespace
from typing import Any

FLAGS_8 = (
    "FP16", "INT8", "DEBUG", "GPU_FALLBACK", "REFIT", "DISABLE_TIMING_CACHE", "TF32",
    "SPARSE_WEIGHTS", "SAFETY_SCOPE", "OBEY_PRECISION_CONSTRAINTS",
    "PREFER_PRECISION_CONSTRAINTS", "DIRECT_IO",
)  # fmt: skip
FLAGS_11 = (
    "DEBUG", "GPU_FALLBACK", "REFIT", "DISABLE_TIMING_CACHE", "TF32", "SPARSE_WEIGHTS",
    "SAFETY_SCOPE", "DIRECT_IO",
)  # fmt: skip

CONFIG = (
    "default_device_type", "DLA_core", "profiling_verbosity", "builder_optimization_level",
)  # fmt: skip

VERSIONS: dict[str, dict[str, Any]] = {
    "8.6.1": {
        "creation": {"EXPLICIT_BATCH": 0},
        "flags": FLAGS_8,
        "config": (*CONFIG, "int8_calibrator", "max_workspace_size"),
        "calibrators": True,
        "node_names": False,
        "io": "Bindings",
    },
    "10.3.0": {
        "creation": {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1},
        "flags": FLAGS_8,
        "config": (*CONFIG, "int8_calibrator"),
        "calibrators": True,
        "node_names": True,
        "io": "Bindings",
    },
    "11.0.0": {
        "creation": {"STRONGLY_TYPED": 0},
        "flags": FLAGS_11,
        "config": CONFIG,
        "calibrators": False,
        "node_names": True,
        "io": "I/O Tensors",
    },
    "rtx": {
        "creation": {"STRONGLY_TYPED": 0},
        "flags": FLAGS_11,
        "config": (*CONFIG, "num_compute_capabilities"),
        "calibrators": False,
        "node_names": True,
        "io": "I/O Tensors",
    },
}


class Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    Severity = Severity


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class LayerType(enum.Enum):
    CONVOLUTION = 0
    QUANTIZE = 1


class IInt8EntropyCalibrator2:
    """The base of calibrators, which has nothing of its own."""


class IProfiler:
    """The base of profilers, whose binding has to be initialized by name."""

    def __init__(self) -> None:
        self.bound = True


class Cache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> memoryview:
        return memoryview(self.content + b"+timed")


def layer(kind: LayerType, dtype: DataType) -> Any:
    out = SimpleNamespace(dtype=dtype)
    return SimpleNamespace(type=kind, num_outputs=1, get_output=lambda index: out)


FLOAT = (layer(LayerType.CONVOLUTION, DataType.FLOAT),)
HALF = (layer(LayerType.CONVOLUTION, DataType.HALF),)
QUANTIZED = (layer(LayerType.QUANTIZE, DataType.INT8), *FLOAT)


LISTING = """Layers:
Name: first_0, LayerType: kgen, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, Metadata:
Name: c0_1, LayerType: correlation, Inputs: [ { Name: a, Dimensions: [-1,4,8,8], Strides: [256,1,32,4], StrideOrder: [3,0,2,1], Datatype: Int8, Format: (NHWC) Channel major format }], Constants: [ { Name: w, Dimensions: [8,4,3,3], Datatype: Half, Format: (NHWC) Channel major format }], Outputs: [ { Name: b, Dimensions: [-1,8,8,8], Datatype: Float, Format: (NHWC) Channel major format }, { Name: c, Dimensions: [], Datatype: Int32, Format: Row major }], TacticName: stub, StreamId: 0, Metadata: [ONNX Layer: c0][ONNX Layer: r0]

I/O Tensors:
 Name: image, IOMode: Input, DataType: Float, Dimensions: [-1,3,8,8], Location: Device
"""
"""What TensorRT for RTX 1.7.1 logs of an engine, cut short."""


class Fake:
    """A module of one version, and what was asked of it.

    Args:
        version: a key of `VERSIONS`.
        layers: of the network that the parser makes.
        batch: of its input; -1 for any.
        errors: of the parser, as (node index, name, operator, text).
        refuses: what the builder logs as an error, giving no plan.
        timing: ``taken``, ``refused``, or what is logged as a warning and skipped.
        loads: whether engines can be loaded, or what is logged where they cannot.
        starts: whether a builder can be made.
    """

    def __init__(
        self,
        version: str,
        *,
        layers: tuple[Any, ...] = FLOAT,
        batch: int = -1,
        errors: tuple[tuple[int, str, str, str], ...] = (),
        refuses: str = "",
        timing: str = "taken",
        loads: bool | str = True,
        starts: bool = True,
    ) -> None:
        self.shape = VERSIONS[version]
        self.layers, self.batch, self.errors = layers, batch, errors
        self.refuses, self.timing, self.loads, self.starts = refuses, timing, loads, starts
        self.created = -1
        self.flags: set[Any] = set()
        self.profiles: list[Any] = []
        self.capabilities: list[Any] = []
        self.config: Any = None
        self.workspace: int | None = None
        self.calibrated_with: bytes | None = None
        self.runtime: Any = None
        self.module = self._module("1.7.1" if version == "rtx" else version)

    def _module(self, version: str) -> Any:
        made: dict[str, Any] = {
            "__version__": version,
            "ILogger": ILogger,
            "DataType": DataType,
            "LayerType": LayerType,
            "TensorIOMode": TensorIOMode,
            "IProfiler": IProfiler,
            "DeviceType": enum.Enum("DeviceType", ["GPU", "DLA"]),
            "MemoryPoolType": enum.Enum("MemoryPoolType", ["WORKSPACE"]),
            "ProfilingVerbosity": enum.Enum("ProfilingVerbosity", ["LAYER_NAMES_ONLY", "DETAILED"]),
            "LayerInformationFormat": enum.Enum("LayerInformationFormat", ["ONELINE", "JSON"]),
            "BuilderFlag": enum.Enum("BuilderFlag", list(self.shape["flags"])),
            "NetworkDefinitionCreationFlag": enum.IntEnum(
                "NetworkDefinitionCreationFlag", self.shape["creation"]
            ),
            "Builder": self._builder,
            "OnnxParser": self._parser,
            "Runtime": self._runtime,
            "IBuilderConfig": self._config_class(),
        }
        if self.shape["calibrators"]:
            made["IInt8EntropyCalibrator2"] = IInt8EntropyCalibrator2
        if "num_compute_capabilities" in self.shape["config"]:
            made["ComputeCapability"] = enum.Enum(
                "ComputeCapability", ["NONE", "CURRENT", "SM120", "SM75", "SM86"]
            )
        return SimpleNamespace(**made)

    def _config_class(self) -> Any:
        fake = self

        class Config:
            __slots__ = fake.shape["config"]

            def __setattr__(self, name: str, value: Any) -> None:
                if name == "int8_calibrator":
                    warnings.warn("Deprecated in TensorRT 10.1", DeprecationWarning, stacklevel=2)
                    fake.calibrated_with = value.read_calibration_cache()
                super().__setattr__(name, value)

            def set_flag(self, flag: Any) -> None:
                fake.flags.add(flag.name)

            def clear_flag(self, flag: Any) -> None:
                fake.flags.discard(flag.name)

            def set_memory_pool_limit(self, pool: Any, size: int) -> None:
                fake.workspace = size

            def add_optimization_profile(self, profile: Any) -> int:
                fake.profiles.append(profile.shapes)
                return 0

            def create_timing_cache(self, content: bytes) -> Cache:
                return Cache(content)

            def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
                assert not ignore_mismatch
                if cache.content and fake.timing not in ("taken", "refused"):
                    fake.log.log(Severity.WARNING, fake.timing)
                if cache.content and fake.timing == "refused":
                    return False
                fake.cache = cache
                return True

            def get_timing_cache(self) -> Cache:
                return fake.cache

        if "num_compute_capabilities" in self.shape["config"]:

            def aim(config: Any, kind: Any, index: int) -> bool:
                if index >= getattr(config, "num_compute_capabilities", 0):
                    return False
                fake.capabilities.append(kind.name)
                return True

            Config.set_compute_capability = aim
        return Config

    def _builder(self, log: Any) -> Any:
        if not self.starts:
            log.log(Severity.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self.log, self.cache = log, Cache(b"")
        return SimpleNamespace(
            create_network=self._network,
            create_builder_config=self._config,
            create_optimization_profile=_Profile,
            build_serialized_network=self._build,
        )

    def _config(self) -> Any:
        self.flags = {"TF32"}  # TensorRT's default
        self.config = self.module.IBuilderConfig()
        return self.config

    def _network(self, flags: int) -> Any:
        self.created = flags
        return SimpleNamespace(
            num_layers=len(self.layers),
            get_layer=lambda index: self.layers[index],
            get_input=lambda index: SimpleNamespace(name="image", shape=(self.batch, 3, 8, 8)),
        )

    def _build(self, network: Any, config: Any) -> Any:
        self.log.log(Severity.INFO, "chatter")
        self.log.log(Severity.VERBOSE, LISTING)
        if self.refuses:
            self.log.log(Severity.ERROR, self.refuses)
            return None
        return memoryview(b"plan")

    def _parser(self, network: Any, log: Any) -> Any:
        def error(index: int) -> Any:
            node, name, operator, text = self.errors[index]
            said = {"desc": lambda: text, "node": lambda: node}
            if self.shape["node_names"]:
                said |= {"node_name": lambda: name, "node_operator": lambda: operator}
            return SimpleNamespace(**said)

        return SimpleNamespace(
            parse_from_file=lambda path: not self.errors,
            num_errors=len(self.errors),
            get_error=error,
        )

    def _runtime(self, log: Any) -> Any:
        def deserialize(plan: bytes) -> Any:
            if self.loads is True:
                return self.engine()
            log.log(Severity.ERROR, str(self.loads))
            return None

        self.runtime = SimpleNamespace(deserialize_cuda_engine=deserialize, DLA_core=-1)
        return self.runtime

    def engine(self) -> Any:
        ports = {"Bindings": ["image", "scores"], "I/O Tensors": [{"Name": "image"}]}
        said = {
            "Layers": [
                {
                    "Name": "c0 + r0",
                    "LayerType": "CaskConvolution",
                    "TacticName": "sm80_xmma",
                    "Inputs": [{"Name": "image", "Dimensions": [1, 3, 8, 8], "Datatype": "Int8"}],
                    "Outputs": [],
                    "Metadata": "[ONNX Layer: c0]\x1e[ONNX Layer: r0]",
                },
                "Reformatting CopyNode",
            ],
            self.shape["io"]: ports[self.shape["io"]],
        }
        tensors = {"image": (True, (-1, 3, 8, 8)), "scores": (False, (-1, 10))}
        inspector = SimpleNamespace(
            get_engine_information=lambda kind: json.dumps(said) if kind.name == "JSON" else ""
        )
        return SimpleNamespace(
            num_io_tensors=2,
            get_tensor_name=lambda index: list(tensors)[index],
            get_tensor_mode=lambda name: (
                TensorIOMode.INPUT if tensors[name][0] else TensorIOMode.OUTPUT
            ),
            get_tensor_shape=lambda name: tensors[name][1],
            get_tensor_dtype=lambda name: DataType.FLOAT,
            get_tensor_profile_shape=lambda name, index: [(b, 3, 8, 8) for b in (1, 4, 16)],
            create_engine_inspector=lambda: inspector,
        )


class _Profile:
    def __init__(self) -> None:
        self.shapes: tuple[Any, ...] = ()

    def set_shape(self, name: str, least: Any, tuned: Any, most: Any) -> None:
        self.shapes = (name, least, tuned, most)
