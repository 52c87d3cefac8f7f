"""TensorRT: NVIDIA's GPUs, cards and Jetsons, in FP32, FP16 and INT8.

The engine is a serialized plan. TensorRT chooses and times kernels for the GPU that it finds;
TensorRT for RTX compiles ahead of time, for the compute capabilities that it is told, and needs no
GPU for that. What runs in which precision is written in the graph itself, so the bundle holds it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from vggdeploy import atomic, digests
from vggdeploy.cache import default_root
from vggdeploy.contracts import Availability, Target, TrtOptions
from vggdeploy.errors import ConfigError, MissingError
from vggdeploy.targets import cuda, nvidia, trt_api

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vggdeploy.bundle import Bundle
    from vggdeploy.contracts import CompileOptions, Dialect, Probe, Runner, RunOptions
    from vggdeploy.targets.trt_api import Api

ENGINE = "model.engine"
_FACTS = "model.engine.json"

TIMING = "timing"
"""The folder of timing caches, below that of the stage cache."""

_PATHS = ("timing_cache", "calibration_cache")


class TensorRT(Target):
    """A TensorRT target at one precision.

    Attributes:
        flavour: which of the two is used; None for what is installed. `prepare` sets it.
    """

    keeps_graph = True
    takes_pixels = True

    def __init__(self, name: str, precision: str, dialect: Dialect | None) -> None:
        super().__init__(name, precision, dialect)
        self.flavour: str | None = None
        if precision == "fp16":
            self.float_type = "float16"

    def availability(self) -> Availability:
        return trt_api.availability(self.flavour)

    def version(self) -> str:
        api = trt_api.load(self.flavour)
        return f"{trt_api.MODULES[api.flavour]} {api.version}"

    def dialect_for(self, cpu_isa: str) -> Dialect | None:
        """As for any target; for a TensorRT that has no typed networks, with float32 for what is
        not quantized: its QuantizeLinear takes no other scales, and builder flags bring 16 bits.
        """
        dialect = super().dialect_for(cpu_isa)
        if dialect is None or not self.availability().ok:
            return dialect
        typed = trt_api.load(self.flavour).strongly_typed
        return dialect if typed else replace(dialect, high_precision="float32")

    def prepare(self, options: CompileOptions) -> dict[str, Any]:
        wanted = options.tensorrt or TrtOptions()
        self.flavour = wanted.flavour
        api = trt_api.load(wanted.flavour)
        api.check(wanted)
        if wanted.dla_core is not None:
            self._check_dla(wanted)
        settings = {key: value for key, value in asdict(wanted).items() if key not in _PATHS}
        return {
            **settings,
            "flavour": api.flavour,
            "version": api.version,
            # Ahead of time, the machine makes no difference.
            "gpu": None if api.ahead else _gpu(),
        }

    def _check_dla(self, wanted: TrtOptions) -> None:
        if self.precision == "fp32":
            raise ConfigError(
                "DLA computes in 16 and 8 bits",
                got=f"--target {self.name}",
                expected="trt-fp16 or trt-int8",
                fix="choose one of them, or drop --dla",
            )
        if len(set(wanted.batches)) > 1:
            raise ConfigError(
                "DLA takes one batch size",
                got=f"batches {', '.join(map(str, wanted.batches))}",
                expected="the same three times",
                fix="give --min-batch, --opt-batch and --max-batch the same number",
            )

    def compile(self, onnx: Path, options: CompileOptions, out_dir: Path) -> tuple[Path, ...]:
        wanted = options.tensorrt or TrtOptions()
        api = trt_api.load(wanted.flavour)
        timing = wanted.timing_cache or timing_path(api)
        held = timing.read_bytes() if timing.is_file() and not api.ahead else None
        built = api.build(onnx, wanted, held)
        (out_dir / ENGINE).write_bytes(built.plan)
        facts: dict[str, Any] = {
            "flavour": api.flavour,
            "version": api.version,
            "gpu": None if api.ahead else _gpu(),
            "batches": list(built.batches),
            "compute_capabilities": list(wanted.compute_capabilities),
            "workspace_bytes": wanted.workspace_bytes,
            "optimization_level": wanted.optimization_level,
            "dla_core": wanted.dla_core,
            "typed": built.typed,
            "timing_cache": None,
            "layers": built.layers,
        }
        if built.timing_cache is not None:
            facts["timing_cache"] = {
                "sha256": hashlib.sha256(built.timing_cache).hexdigest(),
                "size": len(built.timing_cache),
                "mismatch": built.timing_mismatch or None,
            }
            atomic.write_bytes(timing, built.timing_cache)
        (out_dir / _FACTS).write_text(json.dumps(facts), encoding="utf-8")
        return (out_dir / ENGINE,)

    def facts(self, out_dir: Path) -> dict[str, Any]:
        said: dict[str, Any] = json.loads((out_dir / _FACTS).read_text(encoding="utf-8"))
        return said

    def open(self, bundle: Bundle, options: RunOptions) -> Runner:
        here = self.runs_on(options.device)
        if not here.ok:
            raise MissingError(
                f"{self.name} does not run here",
                got=here.reason,
                expected="an NVIDIA GPU, TensorRT and PyCUDA",
                fix=here.fix,
            )
        from vggdeploy.targets.trt_runner import TensorRTRunner

        said = _built_by(bundle)
        api = trt_api.load(said.get("flavour"))
        aims = said.get("gpu") or ", ".join(said.get("compute_capabilities") or ())
        built = f"an engine of {said.get('flavour')} {said.get('version')}"
        return TensorRTRunner(
            api,
            bundle.file(ENGINE),
            options,
            name=str(bundle.path),
            built=f"{built} for {aims}" if aims else built,
            dla_core=said.get("dla_core"),
        )

    def runs_on(self, device: str) -> Availability:
        here = self.availability()
        if not here.ok:
            return here
        if not nvidia.gpus():
            return Availability(
                False,
                "there is no NVIDIA GPU, or no driver for it",
                "install the GPU's driver ('nvidia-smi' shows what it finds), or run it on the "
                "device",
            )
        if importlib.util.find_spec("pycuda") is None:
            return Availability(
                False, "the package pycuda is not installed", "pip install 'vggdeploy[tensorrt]'"
            )
        return here

    def device_facts(self, device: str) -> dict[str, Any]:
        return nvidia.facts(cuda.ordinal(device))

    def copy_rates(self, device: str) -> dict[str, float]:
        from vggdeploy.targets import cuda_copies

        found = cuda_copies.measure(cuda.ordinal(device))
        return {
            "copy_bytes_per_s": found.within,
            "upload_bytes_per_s": found.upload,
            "download_bytes_per_s": found.download,
        }

    def cautions(self, bundle: Bundle, options: RunOptions) -> tuple[str, ...]:
        timing = _built_by(bundle).get("timing_cache") or {}
        if timing.get("mismatch"):
            return (
                f"the timing cache was of another GPU or version, and every kernel was timed anew: "
                f"{timing['mismatch']}",
            )
        return ()

    def probes(self, options: RunOptions) -> Sequence[Probe]:
        return ()


def timing_path(api: Api) -> Path:
    """The timing cache of this GPU, flavour and version."""
    key = digests.sha256_json([api.flavour, api.version, _gpu()])[:32]
    return default_root() / TIMING / f"{key}.cache"


def _gpu() -> str | None:
    """The GPU that TensorRT builds for: the first that CUDA shows."""
    found = nvidia.gpus()
    return str(found[0]) if found else None


def _built_by(bundle: Bundle) -> dict[str, Any]:
    """What `facts` put into the manifest."""
    said: dict[str, Any] = bundle.manifest["build"].get("engine") or {}
    return said
