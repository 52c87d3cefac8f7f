"""The quantizers that `peers` compares, each run in a process of its own.

``python -m vggdeploy.benchmarks.competitors JOB RESULT`` reads a `Job`, quantizes, and writes an
`Outcome`: so the seconds and the peak resident memory are one quantizer's alone. The clock of each
starts when its packages are imported and stops when its model is on the disk.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import json
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vggdeploy import building, calibrating, machine, pipeline
from vggdeploy.benchmarks import memory
from vggdeploy.benchmarks.children import COLLECT, EXPORT, Images, Job, Outcome
from vggdeploy.contracts import DIALECTS, Silent
from vggdeploy.errors import VggdeployError, require_package
from vggdeploy.manifest import GRAPH
from vggdeploy.targets import openvino_module
from vggdeploy.targets.openvino import ENGINE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from numpy.typing import NDArray

TENSORRT = "tensorrt-dialect"
NNCF = "nncf"
ONNXRUNTIME = {
    "ort-minmax": "MinMax",
    "ort-entropy": "Entropy",
    "ort-percentile": "Percentile",
}
"""onnxruntime's calibration methods by the name of their row."""


def _export(job: Job) -> Outcome:
    made = calibrating.Job(job.build_options(), Silent())
    return Outcome(graph=str(made.export().path / GRAPH))


def _collect(job: Job) -> Outcome:
    made = calibrating.Calibration(job.build_options(), Silent())
    made.collect(made.export())
    return Outcome(collect_seconds=_stage(made, "collect"), images=len(made.images))


def _ours(job: Job) -> Outcome:
    dialect = DIALECTS["tensorrt"] if job.name == TENSORRT else None
    made = building.Build(job.build_options(**({} if dialect else {"target": job.name})), Silent())
    chosen = dialect or made.dialect
    assert chosen is not None, f"{job.name} is no INT8 target"
    quantized = pipeline.quantized_graph(made, chosen)
    path = quantized.path / GRAPH
    if dialect:
        return Outcome(graph=str(path), images=len(made.images))
    engine = made.compile(quantized).path / ENGINE
    return Outcome(
        str(path),
        str(engine),
        _ir_bytes(engine),
        len(made.images),
        collect_seconds=_stage(made, "collect"),
        note="7-bit convolutions" if made.options.cpu_isa == "avx2" else "",
    )


def _stage(made: calibrating.Job, name: str) -> float:
    return next(float(stage["seconds"]) for stage in made.stages.done if stage["name"] == name)


def _nncf(job: Job) -> Outcome:
    """NNCF as it comes; with 7-bit weights everywhere for a CPU without VNNI."""
    import nncf

    openvino = openvino_module.load()
    images = job.images()
    advanced, note = None, ""
    if job.options["cpu_isa"] == "avx2":
        advanced = nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE)
        note = "7-bit weights (overflow_fix)"
    with _collecting() as collected:
        quantized = nncf.quantize(
            openvino.Core().read_model(job.onnx),
            nncf.Dataset(images),
            subset_size=len(images),
            advanced_parameters=advanced,
        )
    engine = Path(job.out) / ENGINE
    openvino.save_model(quantized, engine, compress_to_fp16=False)
    return Outcome(
        str(engine),
        str(engine),
        _ir_bytes(engine),
        len(images),
        collect_seconds=sum(collected) if collected else None,
        note=note,
    )


@contextlib.contextmanager
def _collecting() -> Iterator[list[float]]:
    """Seconds of NNCF's collections in the block; none where it keeps them elsewhere."""
    found: list[float] = []
    try:
        from nncf.openvino.statistics.aggregator import OVStatisticsAggregator
    except ImportError:
        yield found
        return
    original = OVStatisticsAggregator.collect_statistics

    def timed(*arguments: Any) -> None:
        start = time.perf_counter()
        original(*arguments)
        found.append(time.perf_counter() - start)

    OVStatisticsAggregator.collect_statistics = timed
    try:
        yield found
    finally:
        OVStatisticsAggregator.collect_statistics = original


class _Reader:
    """Images one by one, as onnxruntime asks for them."""

    def __init__(self, images: Images, name: str) -> None:
        self._left = iter(images)
        self._name = name

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        image = next(self._left, None)
        return None if image is None else {self._name: image}


def _onnxruntime(job: Job) -> Outcome:
    """``quantize_static`` behind its own preparation, with the settings that its documentation has
    for x86: QDQ, unsigned activations, signed weights, each channel with its scale."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared, quantized = Path(job.out) / "prepared.onnx", Path(job.out) / "model.onnx"
    quant_pre_process(
        job.onnx, prepared, skip_symbolic_shape=importlib.util.find_spec("sympy") is None
    )
    images, notes = job.images(), []
    kept = memory.activations(prepared)
    method = ONNXRUNTIME[job.name]
    if method != "MinMax":
        count, why = memory.affordable(
            min(len(images), job.kept_images or len(images)),
            kept,
            prepared.stat().st_size,
            machine.available_memory(),
        )
        if count < len(images):
            images = Images(images.chosen.choose(count, job.options["seed"]), images.recipe)
            notes.append(f"{count} images: {why or 'as asked for'}")
    reduced = job.options["cpu_isa"] == "avx2"
    if reduced:
        notes.append("7-bit weights (reduce_range)")
    quantization.quantize_static(
        prepared,
        quantized,
        _Reader(images, kept.input),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        reduce_range=reduced,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        calibrate_method=quantization.CalibrationMethod[method],
    )
    prepared.unlink()
    return Outcome(
        str(quantized),
        str(quantized),
        quantized.stat().st_size,
        len(images),
        note="; ".join(notes),
    )


@dataclass(frozen=True)
class _Work:
    """A child's work.

    Attributes:
        packages: what it cannot do without.
        extra: the extras of this project that bring them.
        late: modules that they import when they are used, which would be counted as work.
    """

    run: Callable[[Job], Outcome]
    packages: tuple[str, ...]
    extra: str
    late: tuple[str, ...] = ()

    def load(self) -> None:
        """Import all of it."""
        for package in self.packages:
            importlib.import_module(package)
        for module in self.late:
            with contextlib.suppress(ImportError):  # another version keeps it elsewhere
                importlib.import_module(module)


_OWN = functools.partial(
    _Work,
    packages=("openvino", "onnx", "onnx_ir"),
    extra="export,openvino",
    late=("onnx_ir.passes.common",),
)
_NNCF = _Work(
    _nncf,
    ("openvino", "nncf"),
    "openvino,peers",
    ("nncf.openvino.quantization.quantize_model", "nncf.openvino.statistics.aggregator"),
)
_ONNXRUNTIME = _Work(
    _onnxruntime,
    ("onnx", "onnxruntime"),
    "export,peers",
    ("onnxruntime.quantization.shape_inference", "onnxruntime.tools.symbolic_shape_infer"),
)
_WORK: dict[str, _Work] = {
    EXPORT: _OWN(_export),
    COLLECT: _OWN(_collect),
    "ov-int8": _OWN(_ours),
    "ov-int8-w4": _OWN(_ours),
    TENSORRT: _OWN(_ours),
    NNCF: _NNCF,
    **dict.fromkeys(ONNXRUNTIME, _ONNXRUNTIME),
}
OWN = tuple(name for name, work in _WORK.items() if work.run is _ours)
COMPETITORS = tuple(name for name in _WORK if name not in (EXPORT, COLLECT))
"""What ``--only`` takes, in the order of the table."""


def require(name: str) -> None:
    """Make sure that a competitor's packages are installed.

    Raises:
        MissingError: with the command that installs them.
    """
    for package in _WORK[name].packages:
        require_package(package, _WORK[name].extra, name)


def perform(job: Job) -> Outcome:
    """Do a job in this process, and say what it took. Every failure is an `Outcome` too."""
    work = _WORK[job.name]
    try:
        work.load()
        start = time.perf_counter()
        made = work.run(job)
        seconds = time.perf_counter() - start
    except VggdeployError as error:
        return Outcome(error=str(error))
    except MemoryError:
        return Outcome(error="out of memory")
    except Exception as error:  # a competitor's own: it is its row that says so
        return Outcome(error=" ".join(f"{type(error).__name__}: {error}".split())[:300])
    if job.name == TENSORRT:
        return made  # it may have found the calibration in the cache, so its time says nothing
    return replace(made, seconds=seconds, peak_bytes=memory.peak())


def _ir_bytes(xml: Path) -> int:
    return xml.stat().st_size + xml.with_suffix(".bin").stat().st_size


def main(job: Path, result: Path) -> None:
    """Do the job in the file `job` and write its outcome to the file `result`."""
    with contextlib.suppress(OSError):
        # If memory runs out, this process is what goes, and nothing else on the machine.
        Path("/proc/self/oom_score_adj").write_text("1000")
    openvino_module.silence()  # NNCF's own telemetry too
    outcome = perform(Job(**json.loads(job.read_text())))
    result.write_text(json.dumps(asdict(outcome)))


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:3]))
