"""The order of the stages, and the one file that knows it: weights and images to a bundle.

Each stage's result is kept in the cache under the digest of all that it was made from, so a second
build of the same inputs finds everything there.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import json
import shutil
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import vggdeploy
from vggdeploy import (
    atomic,
    budget,
    bundle,
    calib,
    dataset,
    digests,
    export,
    gates,
    graphs,
    results,
    sources,
    verification,
)
from vggdeploy import reference as references
from vggdeploy.benchmarks import BenchOptions
from vggdeploy.benchmarks import bench as measure
from vggdeploy.cache import Cache, Entry
from vggdeploy.calib import methods
from vggdeploy.contracts import CPU_WEIGHTS, CompileOptions, RunOptions, Silent, TensorSpec
from vggdeploy.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vggdeploy.contracts import Dialect, Reporter, Target
    from vggdeploy.dataset import Dataset
    from vggdeploy.gates import Policy, Verdicts
    from vggdeploy.sources import Source

CALIBRATION_IMAGES = 128
"""How many images calibrate by default."""

PROBES = 32
"""Probe images in a bundle: 4.8 MB at most, seconds to verify on a small device."""

_GRAPH = bundle.GRAPH
_STATISTICS = "statistics.npz"
_QUANTIZED = "quantized.json"
_ENGINE_LIST = "engine.json"


@dataclass(frozen=True)
class BuildOptions:
    """What to build. None stands for a default that the weights decide.

    Attributes:
        target: a name in `targets.REGISTRY`.
        weights: ``demo``, ``imagenet`` or a checkpoint.
        model: a foreign FP32 ONNX graph, in place of weights.
        arch: see `reference.locate`.
        num_classes: see `reference.locate`.
        preprocess: a preset or a TOML file.
        calib_data: a folder of images, or ``demo``.
        calib_images: how many to draw; `CALIBRATION_IMAGES`, or all of a smaller folder, when
            None.
        method: a key of `calib.METHODS`.
        seed: draws the images.
        cpu_isa: the CPU that OpenVINO INT8 is built for, a key of `contracts.CPU_WEIGHTS`.
        out: where the bundle goes; ``bundles/<name>-<target>`` when None.
        force: whether another bundle at `out` is replaced.
    """

    target: str = "ov-int8"
    weights: str = "demo"
    model: Path | None = None
    arch: str | None = None
    num_classes: int | None = None
    preprocess: str | None = None
    calib_data: str | None = None
    calib_images: int | None = None
    method: str = methods.DEFAULT
    seed: int = 0
    cpu_isa: str = "vnni"
    out: Path | None = None
    force: bool = False


@dataclass
class _Stages:
    """Runs stages one after the other and keeps the time of each."""

    reporter: Reporter
    done: list[dict[str, Any]] = field(default_factory=list)

    def run(self, name: str, work: Callable[[], Entry]) -> Entry:
        with self.timed(name) as record:
            entry = work()
            record["cached"] = entry.cached
        return entry

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[dict[str, Any]]:
        start = time.perf_counter()
        record: dict[str, Any] = {"name": name, "seconds": 0.0, "cached": False}
        with self.reporter.step(name):
            yield record
        record["seconds"] = time.perf_counter() - start
        self.done.append(record)
        self.reporter.done(name, record["seconds"], record["cached"])
        if not record["cached"]:
            # torch's export and OpenVINO's models sit in reference cycles: their memory goes
            # before the next stage needs its own.
            gc.collect()


def build(options: BuildOptions, reporter: Reporter | None = None) -> dict[str, Any]:
    """Build a bundle.

    Returns:
        ``bundle``, ``target``, ``digest``, ``engine_bytes``, ``stages``, ``unchanged`` (the same
        bundle was there already), ``left_in_high_precision``, ``calibration_images`` and
        ``ignored_files``.

    Raises:
        VggdeployError: one of its kinds; nothing half-written is left.
    """
    return _Build(options, reporter or Silent()).bundle()


def export_graph(options: BuildOptions, reporter: Reporter | None = None) -> dict[str, Any]:
    """Export the FP32 graph alone, into the folder ``options.out``.

    Raises:
        VggdeployError: one of its kinds; nothing half-written is left.
    """
    job = _Job(options, reporter or Silent())
    out = options.out or Path(f"{job.source.name}.onnx")
    _refuse(out, options.force)
    graph = job.export()
    with atomic.folder(out, replace=out.exists()) as work:
        for name in ("model.onnx", "model.onnx.data"):
            shutil.copyfile(graph.path / name, work / name)
    return {
        "kind": "export",
        "onnx": str(out / "model.onnx"),
        "digest": graph.digest,
        "stages": job.stages.done,
    }


def calibrate(options: BuildOptions, reporter: Reporter | None = None) -> dict[str, Any]:
    """Calibrate alone: write the table, which fits any target, to the file ``options.out``.

    Raises:
        VggdeployError: one of its kinds; nothing half-written is left.
    """
    job = _Calibration(options, reporter or Silent())
    out = options.out or Path(f"{job.source.name}-{bundle.CALIBRATION}")
    _refuse(out, options.force)
    graph = job.export()
    table = job.calibrate(graph, job.collect(graph))
    atomic.write_text(out, (table.path / bundle.CALIBRATION).read_text(encoding="utf-8"))
    return {
        "kind": "calibrate",
        "table": str(out),
        "calibration_images": len(job.images),
        "ignored_files": job.images.ignored,
        "stages": job.stages.done,
    }


def _refuse(out: Path, force: bool) -> None:
    if out.exists() and not force:
        raise ConfigError(f"{out} exists", fix="give --force to replace it, or another --out")


def bench(
    path: Path, *, batch: int, seconds: float, device: str, reporter: Reporter
) -> dict[str, Any]:
    """Measure the bundle at `path`; see `benchmarks.bench`."""
    opened = bundle.open_bundle(path)
    target = sources.available(opened.target)
    return measure(opened, target, BenchOptions(batch, seconds, device), reporter)


def gate(
    paths: Sequence[Path],
    bounds: Policy,
    *,
    data: str | None,
    reference: Path | None,
    device: str,
    reporter: Reporter,
) -> Verdicts:
    """Hold result files against `bounds`; a bundle among `paths` is verified first."""
    found = [
        verification.verify(path, data=data, reference=reference, device=device, reporter=reporter)
        if path.is_dir()
        else results.read(path)
        for path in paths
    ]
    return gates.judge(found, bounds)


def run(
    options: BuildOptions,
    bounds: Policy,
    *,
    data: str | None,
    device: str,
    batch: int,
    seconds: float,
    reporter: Reporter,
) -> tuple[dict[str, Any], Verdicts]:
    """Build, verify, bench and gate.

    Without `data`, a bundle of the demo is verified on the demo's held-out images and any other on
    its probes.
    """
    built = build(options, reporter)
    path = Path(built["bundle"])
    if data is None and options.weights == sources.DEMO and options.model is None:
        data = sources.DEMO
    verified = verification.verify(path, data=data, device=device, reporter=reporter)
    benched = bench(path, batch=batch, seconds=seconds, device=device, reporter=reporter)
    verdicts = gates.judge([built, verified, benched], bounds)
    result = {
        "kind": "run",
        "build": built,
        "verify": verified,
        "bench": benched,
        "gate": verdicts.to_json(),
    }
    return result, verdicts


class _Job:
    """A network's source, its stages and the cache: what every job has."""

    def __init__(self, options: BuildOptions, reporter: Reporter) -> None:
        self.options = options
        self.reporter = reporter
        self.store = Cache()
        self.stages = _Stages(reporter)
        self.source = _resolve(options)

    def export(self) -> Entry:
        """The FP32 graph."""

        def make(work: Path) -> None:
            if self.source.weights is None:
                assert self.source.model is not None
                export.adopt(self.source.model, work)
            else:
                module = references.load(self.source.weights)
                export.export(module, self.source.weights.network, work)

        versions = {name: _version(name) for name in ("torch", "onnx", "onnx-ir", "onnxscript")}
        return self.stages.run(
            "export",
            lambda: self.store.stage(
                "export", {"source": self.source.identity(), "versions": versions}, make
            ),
        )


class _Calibration(_Job):
    """A job with images, whose inputs are all settled before any long work."""

    def __init__(self, options: BuildOptions, reporter: Reporter) -> None:
        super().__init__(options, reporter)
        if options.method not in calib.METHODS:
            raise ConfigError(
                f"unknown method {options.method!r}",
                expected="one of " + ", ".join(calib.METHODS),
                fix="choose one with --method",
            )
        self.images, self.probes = _images(options, self.source, self.store)
        self.provenance = {
            "model": self.source.identity(),
            "images_sha256": self.images.digest(),
            "images": len(self.images),
            "seed": options.seed,
            "preprocess": self.source.preprocess.to_json(),
        }

    def collect(self, graph: Entry) -> Entry:
        """Statistics of every tensor that can be quantized."""
        runner_of = sources.float_target()

        def make(work: Path) -> None:
            model = graphs.read(graph.path / _GRAPH)
            names = [point.name for point in calib.place(model).points]
            taps = [name for name in names if name != graphs.signature(model).input.name]
            options = RunOptions(goal="throughput")
            with runner_of.open_graph(graph.path / _GRAPH, taps, options) as runner:
                calib.collect(
                    runner, names, self.images, self.source.preprocess, self.reporter
                ).save(work / _STATISTICS)

        return self.stages.run(
            "collect",
            lambda: self.store.stage(
                "collect",
                {
                    "graph": graph.digest,
                    "images": self.provenance["images_sha256"],
                    "preprocess": self.source.preprocess.to_json(),
                    "version": runner_of.version(),
                },
                make,
            ),
        )

    def calibrate(self, graph: Entry, statistics: Entry) -> Entry:
        """The calibration table."""

        def make(work: Path) -> None:
            points = calib.place(graphs.read(graph.path / _GRAPH)).points
            calib.calibrate(
                calib.Statistics.load(statistics.path / _STATISTICS),
                {point.name: point.nonnegative for point in points},
                self.options.method,
                self.provenance,
            ).save(work / bundle.CALIBRATION)

        return self.stages.run(
            "calibrate",
            lambda: self.store.stage(
                "calibrate",
                {
                    "statistics": statistics.digest,
                    "method": self.options.method,
                    "provenance": self.provenance,
                },
                make,
            ),
        )


class _Build(_Calibration):
    """A job that ends in a bundle."""

    def __init__(self, options: BuildOptions, reporter: Reporter) -> None:
        self.target: Target = sources.available(options.target)
        self.dialect = _dialect(self.target, options.cpu_isa)
        super().__init__(options, reporter)
        self.out = options.out or Path("bundles") / f"{self.source.name}-{options.target}"
        self.key = digests.sha256_json(
            {
                **self.provenance,
                "target": options.target,
                "dialect": asdict(self.dialect) if self.dialect else None,
                "method": options.method,
                "probes": self.probes.digest(),
                "backend": self.target.version(),
                "tool": vggdeploy.__version__,
            }
        )
        self.unchanged = bundle.holds(self.out, self.key, force=options.force)

    def bundle(self) -> dict[str, Any]:
        """Run every stage that the target needs, and write the bundle."""
        graph = self.export()
        table: Entry | None = None
        quantized: Entry | None = None
        if self.dialect is not None:
            table = self.calibrate(graph, self.collect(graph))
            quantized = self._quantize(graph, table, self.dialect)
        engine = self._compile(quantized or graph)
        scores = self.stages.run(
            "reference", lambda: sources.scores(self.source, self.probes, self.store, self.reporter)
        )
        with self.stages.timed("bundle") as record:
            record["cached"] = self.unchanged
            made = (
                bundle.open_bundle(self.out)
                if self.unchanged
                else bundle.write(
                    self.out,
                    self._facts(graph, engine, table),
                    lambda work: self._fill(work, graph, quantized, table, engine, scores),
                    replace=self.out.exists(),
                )
            )
        left = json.loads((quantized.path / _QUANTIZED).read_text())["left"] if quantized else []
        return {
            "kind": "build",
            "bundle": str(self.out),
            "target": self.target.name,
            "digest": made.manifest["digest"],
            "engine_bytes": made.engine_bytes,
            "stages": self.stages.done,
            "unchanged": self.unchanged,
            "left_in_high_precision": left,
            "calibration_images": len(self.images) if table else 0,
            "ignored_files": self.images.ignored,
        }

    def _quantize(self, graph: Entry, table: Entry, dialect: Dialect) -> Entry:
        def make(work: Path) -> None:
            done = calib.quantize(
                graph.path / _GRAPH,
                calib.CalibrationTable.load(table.path / bundle.CALIBRATION),
                dialect,
                work / _GRAPH,
            )
            (work / _QUANTIZED).write_text(json.dumps(asdict(done)))

        return self.stages.run(
            "quantize",
            lambda: self.store.stage(
                "quantize",
                {
                    "graph": graph.digest,
                    "table": table.digest,
                    "dialect": asdict(dialect),
                },
                make,
            ),
        )

    def _compile(self, graph: Entry) -> Entry:
        def make(work: Path) -> None:
            options = CompileOptions(self.source.network)
            files = self.target.compile(graph.path / _GRAPH, options, work)
            (work / _ENGINE_LIST).write_text(json.dumps([file.name for file in files]))

        return self.stages.run(
            "compile",
            lambda: self.store.stage(
                "compile",
                {
                    "graph": graph.digest,
                    "target": self.target.name,
                    "version": self.target.version(),
                },
                make,
            ),
        )

    def _facts(self, graph: Entry, engine: Entry, table: Entry | None) -> dict[str, Any]:
        """The manifest's own part."""
        signature = graphs.signature(graphs.read(graph.path / _GRAPH))
        return {
            "target": self.target.name,
            "precision": self.target.precision,
            "model": self.source.facts(),
            "input": _contract(signature.input),
            "output": _contract(signature.output),
            "preprocess": self.source.preprocess.to_json(),
            "engine": json.loads((engine.path / _ENGINE_LIST).read_text()),
            "calibration": table.digest if table else None,
            "settings": {},
            "build": {
                "key": self.key,
                "backend": self.target.version(),
                "seed": self.options.seed,
                "method": self.options.method if table else None,
                "cpu_isa": self.options.cpu_isa if table else None,
            },
        }

    def _fill(
        self,
        work: Path,
        graph: Entry,
        quantized: Entry | None,
        table: Entry | None,
        engine: Entry,
        scores: Entry,
    ) -> None:
        """Put every file of the bundle but its manifest into `work`."""
        for name in json.loads((engine.path / _ENGINE_LIST).read_text()):
            shutil.copyfile(engine.path / name, work / name)
        if quantized and table:
            shutil.copyfile(quantized.path / _GRAPH, work / bundle.GRAPH)
            shutil.copyfile(table.path / bundle.CALIBRATION, work / bundle.CALIBRATION)
        bundle.Probes(
            np.stack(list(self.probes.pixels(self.source.preprocess))),
            np.load(scores.path / sources.SCORES, allow_pickle=False),
            self.probes.labels(),
        ).save(work / bundle.PROBES)
        precision = self.target.precision
        if self.source.network:
            layers = budget.budget(self.source.network, precision).to_json()
        else:
            rows = graphs.layer_rows(graphs.read(graph.path / _GRAPH))
            layers = budget.from_rows(self.source.name, rows, precision)
        (work / bundle.LAYERS).write_text(json.dumps(layers, indent=1))


def _dialect(target: Target, cpu_isa: str) -> Dialect | None:
    """The target's dialect, with weights that suit the CPU it is for."""
    if cpu_isa not in CPU_WEIGHTS:
        raise ConfigError(
            f"unknown CPU {cpu_isa!r}",
            expected="one of " + ", ".join(CPU_WEIGHTS),
            fix="choose one with --cpu-isa",
        )
    if target.dialect is None or target.dialect.name != "openvino":
        return target.dialect
    return replace(target.dialect, weight=CPU_WEIGHTS[cpu_isa])


def _resolve(options: BuildOptions) -> Source:
    if options.model is None:
        return sources.from_weights(
            options.weights,
            arch=options.arch,
            num_classes=options.num_classes,
            preprocess=options.preprocess,
        )
    for flag, value in (("--arch", options.arch), ("--num-classes", options.num_classes)):
        if value is not None:
            raise ConfigError(
                f"{flag} goes with --weights, not with --model",
                got=value,
                fix="drop it: a graph says by itself what it is",
            )
    return sources.from_onnx(options.model, options.preprocess)


def _images(options: BuildOptions, source: Source, store: Cache) -> tuple[Dataset, Dataset]:
    """Images to calibrate on, and probes that are not among them where the folder has more."""
    ours = source.weights is not None and source.weights.demo
    if options.calib_data is None and not ours:
        raise DatasetError(
            "there are no images to calibrate and to probe with",
            expected="a folder of some hundred images like those the network will see",
            fix="give --calib-data DIR",
        )
    if options.calib_data in (None, sources.DEMO):
        everything = sources.demo_images("training", store)
    else:
        everything = dataset.scan(Path(str(options.calib_data)).expanduser())
    count = options.calib_images
    if count is None:
        count = min(CALIBRATION_IMAGES, len(everything))
    chosen = everything.choose(count, options.seed)
    rest = everything.without(chosen)
    pool = rest if len(rest) else chosen
    return chosen, pool.choose(min(PROBES, len(pool)), options.seed)


def _contract(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "shape": list(spec.shape), "dtype": spec.dtype}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
