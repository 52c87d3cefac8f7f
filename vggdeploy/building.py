"""A build's stages, each a method: what it makes, and what that depends on.

Each stage's result is kept in the cache under the digest of all that it was made from, so a second
build of the same inputs finds everything there. `pipeline` knows their order.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vggdeploy import (
    budget,
    bundle,
    cache,
    calib,
    calibration_file,
    digests,
    export,
    graphs,
    inputs,
    sources,
)
from vggdeploy import reference as references
from vggdeploy.cache import Cache, Entry
from vggdeploy.calib import trt_cache
from vggdeploy.contracts import CompileOptions, RunOptions, TensorSpec
from vggdeploy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from vggdeploy.bundle import Bundle
    from vggdeploy.calib import CalibrationTable
    from vggdeploy.calib.rounding import Rounded
    from vggdeploy.calibration_file import CalibrationFile
    from vggdeploy.contracts import Dialect, GraphTarget, Reporter, Runner, Target
    from vggdeploy.inputs import BuildOptions

_GRAPH = bundle.GRAPH
_STATISTICS = "statistics.npz"
_ROUNDED = "rounded.npz"
_QUANTIZED = "quantized.json"
_ENGINE_LIST = "engine.json"

ROUNDING_IMAGES = 64
"""Images that second-order rounding looks at, of those that calibrate: enough positions of every
map, see `calib.covariance`."""


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


class Job:
    """A network's source, its stages and the cache: what every job has."""

    def __init__(self, options: BuildOptions, reporter: Reporter) -> None:
        self.options = options
        self.reporter = reporter
        self.store = Cache()
        self.stages = _Stages(reporter)
        self.source = inputs.resolve(options)

    def export(self) -> Entry:
        """The FP32 graph."""

        def make(work: Path) -> None:
            if self.source.weights is None:
                assert self.source.model is not None
                export.adopt(self.source.model, work)
            else:
                module = references.load(self.source.weights)
                export.export(module, self.source.weights.network, work)

        return self.stages.run(
            "export",
            lambda: self.store.stage("export", {"source": self.source.identity()}, make),
        )


class Calibration(Job):
    """A job with images, whose inputs are all settled before any long work."""

    def __init__(self, options: BuildOptions, reporter: Reporter) -> None:
        super().__init__(options, reporter)
        if options.method not in calib.METHODS:
            raise ConfigError(
                f"unknown method {options.method!r}",
                expected="one of " + ", ".join(calib.METHODS),
                fix="choose one with --method",
            )
        self.rounding = _rounding(options)
        if options.emit_trt_cache:
            trt_cache.version_digits(options.trt_version)
        self.images, self.probes = inputs.choose_images(options, self.source, self.store)
        self.ranking = inputs.choose_ranking(options, self.images)

    @functools.cached_property
    def observer(self) -> GraphTarget:
        """What runs the float graph in calibration."""
        return sources.calibration_target(self.options.calib_precision)

    @functools.cached_property
    def provenance(self) -> dict[str, Any]:
        """What a calibration table is made from."""
        return {
            "model": self.source.identity(),
            "images_sha256": self.images.digest(),
            "images": len(self.images),
            "seed": self.options.seed,
            "preprocess": self.source.preprocess.to_json(),
            "precision": self.observer.precision,
        }

    def collect(self, graph: Entry) -> Entry:
        """Statistics of every tensor that can be quantized."""

        def make(work: Path) -> None:
            points = calib.place(graphs.read(graph.path / _GRAPH)).points
            seen = {point.name: str(point.seen.name) for point in points}
            with self.observe(graph, seen.values()) as runner:
                calib.collect(
                    runner, seen, self.images, self.source.preprocess, self.reporter
                ).save(work / _STATISTICS)

        return self.stages.run(
            "collect",
            lambda: self.store.stage(
                "collect",
                {
                    "graph": graph.digest,
                    "images": self.provenance["images_sha256"],
                    "precision": self.observer.precision,
                    "preprocess": self.source.preprocess.to_json(),
                },
                make,
            ),
        )

    def observe(
        self,
        graph: Entry,
        tensors: Iterable[str],
        goal: Literal["latency", "throughput"] = "throughput",
    ) -> Runner:
        """A runner of the float graph that shows `tensors`."""
        image = graphs.signature(graphs.read(graph.path / _GRAPH)).input.name
        taps = [name for name in dict.fromkeys(tensors) if name != image]
        return self.observer.open_graph(graph.path / _GRAPH, taps, RunOptions(goal=goal))

    def calibrate(self, graph: Entry, statistics: Entry) -> Entry:
        """The calibration table."""

        def make(work: Path) -> None:
            placement = calib.place(graphs.read(graph.path / _GRAPH))
            calib.calibrate(
                calib.Statistics.load(statistics.path / _STATISTICS),
                {point.name: point.nonnegative for point in placement.points},
                self.options.method,
                self.provenance,
                calib.links(placement),
                rescale=self.options.rescale,
            ).save(work / bundle.CALIBRATION)

        return self.stages.run(
            "calibrate",
            lambda: self.store.stage(
                "calibrate",
                {
                    "statistics": statistics.digest,
                    "method": self.options.method,
                    "rescale": self.options.rescale,
                    "provenance": self.provenance,
                },
                make,
            ),
        )

    def _rounding_inputs(self) -> dict[str, Any] | None:
        """What rounding depends on besides graph, table and dialect."""
        if self.rounding is None:
            return None
        return {
            **asdict(self.rounding),
            "images": self.provenance["images_sha256"],
            "precision": self.observer.precision,
            "seed": self.options.seed,
        }

    def round(self, graph: Entry, table: Entry, dialect: Dialect) -> Entry | None:
        """Weights rounded with second-order information; None where all are rounded to nearest."""
        how = self.rounding
        if how is None:
            return None

        def make(work: Path) -> None:
            placement = calib.place(
                graphs.read(graph.path / _GRAPH), matrices=dialect.matrix is None
            )
            thresholds = calib.CalibrationTable.load(table.path / bundle.CALIBRATION)
            layers = calib.wanted_layers(placement, thresholds, dialect)
            images = self.images.choose(min(len(self.images), ROUNDING_IMAGES), self.options.seed)
            # One query at a time: multiplying takes as long as the network, and all cores.
            with self.observe(graph, (layer.tensor for layer in layers), "latency") as runner:
                moments = calib.covariances(
                    runner,
                    layers,
                    images,
                    self.source.preprocess,
                    self.options.seed,
                    self.reporter,
                )
            rounded = calib.round_layers(
                placement, thresholds, dialect, moments, how, self.reporter
            )
            calib.save_rounded(rounded, work / _ROUNDED)

        return self.stages.run(
            "round",
            lambda: self.store.stage(
                "round",
                {
                    "graph": graph.digest,
                    "table": table.digest,
                    "dialect": asdict(dialect),
                    "preprocess": self.source.preprocess.to_json(),
                    **(self._rounding_inputs() or {}),
                },
                make,
            ),
        )

    def write_trt_cache(self, graph: Entry, table: Entry, out: Path) -> None:
        """The table as a TensorRT calibration cache for the float graph."""
        made = calib.CalibrationTable.load(table.path / bundle.CALIBRATION)
        trt_cache.save(out, made, graphs.read(graph.path / _GRAPH), self.options.trt_version)


@dataclass(frozen=True)
class Made:
    """The stages' results that a bundle is put together from; None where a target needs none.

    `kept` names layers that could be quantized and stay in high precision.
    """

    graph: Entry
    table: Entry | None
    quantized: Entry | None
    engine: Entry
    scores: Entry
    kept: tuple[str, ...] = ()


class Build(Calibration):
    """A job that ends in a bundle."""

    def __init__(self, options: BuildOptions, reporter: Reporter) -> None:
        self.target: Target = sources.available(options.target)
        self.dialect = self.target.dialect_for(options.cpu_isa)
        if self.dialect is None:
            calibration_file.refuse(options)
            if options.max_drop is not None:
                raise ConfigError(
                    f"--max-drop keeps layers of a quantized network in high precision, and "
                    f"{options.target} quantizes none",
                    expected="an INT8 target",
                    fix="drop it, or build ov-int8",
                )
        super().__init__(options, reporter)
        self.given = calibration_file.given(options, self.source)
        self.judged = inputs.choose_judged(options, self.source, self.store, self.images)
        self.out = options.out or Path("bundles") / f"{self.source.name}-{options.target}"
        calibration = None
        if self.dialect is not None:
            made_from = {**self.provenance, "method": options.method}
            calibration = {
                **({"file": self.given.sha256} if self.given else made_from),
                "rescale": options.rescale,
                "rounding": self._rounding_inputs(),
                "dialect": asdict(self.dialect),
                "trt_cache": options.trt_version if options.emit_trt_cache else None,
                "max_drop": options.max_drop,
                "judged": self.judged.digest() if self.judged else None,
                "ranking": len(self.ranking) if self.judged else None,
            }
        self.key = digests.sha256_json(
            {
                "source": self.source.identity(),
                "preprocess": self.source.preprocess.to_json(),
                "calibration": calibration,
                "target": options.target,
                "probes": self.probes.digest(),
                "environment": cache.environment(),
            }
        )
        self.unchanged = bundle.holds(self.out, self.key, force=options.force)

    def adopt(self, graph: Entry, given: CalibrationFile) -> Entry:
        """The calibration table that was given, in place of `collect` and `calibrate`."""

        def make(work: Path) -> None:
            points = calib.place(graphs.read(graph.path / _GRAPH)).points
            table = given.table(points)
            if not self.options.rescale:
                table = table.plain()
            table.save(work / bundle.CALIBRATION)

        return self.stages.run(
            "calibration",
            lambda: self.store.stage(
                "calibration",
                {
                    "graph": graph.digest,
                    "file": given.sha256,
                    "rescale": self.options.rescale,
                },
                make,
            ),
        )

    def reference(self) -> Entry:
        """The reference's scores for the probe images."""
        return self.stages.run(
            "reference", lambda: sources.scores(self.source, self.probes, self.store, self.reporter)
        )

    def quantize(
        self,
        graph: Entry,
        table: Entry,
        rounded: Entry | None,
        dialect: Dialect,
        keep: Collection[str] = frozenset(),
    ) -> Entry:
        """The graph in 8 bits, but for the layers in `keep`."""

        def make(work: Path) -> None:
            done = calib.quantize(
                graph.path / _GRAPH,
                calib.CalibrationTable.load(table.path / bundle.CALIBRATION),
                dialect,
                work / _GRAPH,
                load_rounded(rounded),
                keep,
            )
            (work / _QUANTIZED).write_text(json.dumps(asdict(done)))

        return self.stages.run(
            "quantize",
            lambda: self.store.stage(
                "quantize",
                {
                    "graph": graph.digest,
                    "table": table.digest,
                    "rounded": rounded.digest if rounded else None,
                    "dialect": asdict(dialect),
                    "keep": sorted(keep),
                },
                make,
            ),
        )

    def compile(self, graph: Entry) -> Entry:
        """The engine of a float or a quantized graph."""

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
                },
                make,
            ),
        )

    def left(self, quantized: Entry | None) -> list[list[str]]:
        """(node, reason) of layers that quantization left in high precision."""
        if quantized is None:
            return []
        said: list[list[str]] = json.loads((quantized.path / _QUANTIZED).read_text())["left"]
        return said

    def write(self, made: Made) -> Bundle:
        """The bundle, unless the very same one is there already."""
        with self.stages.timed("bundle") as record:
            record["cached"] = self.unchanged
            if self.unchanged:
                return bundle.open_bundle(self.out)
            return bundle.write(
                self.out,
                self._facts(made),
                lambda work: self._fill(work, made),
                replace=self.out.exists(),
            )

    def _facts(self, made: Made) -> dict[str, Any]:
        """The manifest's own part."""
        signature = graphs.signature(graphs.read(made.graph.path / _GRAPH))
        table = load_table(made.table)
        return {
            "target": self.target.name,
            "precision": self.target.precision,
            "model": self.source.facts(),
            "input": _contract(signature.input),
            "output": _contract(signature.output),
            "preprocess": self.source.preprocess.to_json(),
            "engine": json.loads((made.engine.path / _ENGINE_LIST).read_text()),
            "calibration": made.table.digest if made.table else None,
            "settings": {},
            "build": {
                "key": self.key,
                "backend": self.target.version(),
                "seed": self.options.seed,
                "method": table.method if table else None,
                "calibration_file": self.given.sha256 if self.given else None,
                "cpu_isa": self.options.cpu_isa if made.table else None,
                "kept": list(made.kept),
            },
        }

    def _fill(self, work: Path, made: Made) -> None:
        """Put every file of the bundle but its manifest into `work`."""
        for name in json.loads((made.engine.path / _ENGINE_LIST).read_text()):
            shutil.copyfile(made.engine.path / name, work / name)
        if made.quantized and made.table:
            shutil.copyfile(made.quantized.path / _GRAPH, work / bundle.GRAPH)
            shutil.copyfile(made.table.path / bundle.CALIBRATION, work / bundle.CALIBRATION)
            if self.options.emit_trt_cache:
                self.write_trt_cache(made.graph, made.table, work / bundle.TRT_CACHE)
        bundle.Probes(
            np.stack(list(self.probes.pixels(self.source.preprocess))),
            np.load(made.scores.path / sources.SCORES, allow_pickle=False),
            self.probes.labels(),
        ).save(work / bundle.PROBES)
        precision = self.target.precision
        if self.source.network:
            layers = budget.budget(self.source.network, precision, kept=made.kept).to_json()
        else:
            rows = graphs.layer_rows(graphs.read(made.graph.path / _GRAPH))
            layers = budget.from_rows(self.source.name, rows, precision, made.kept)
        (work / bundle.LAYERS).write_text(json.dumps(layers, indent=1))


def _rounding(options: BuildOptions) -> calib.SecondOrder | None:
    """How weights are rounded; None for to nearest.

    Raises:
        ConfigError: for an unknown way or order, or a damping that cannot be.
    """
    for flag, value, known in (
        ("weight-rounding", options.weight_rounding, ("gptq", "nearest")),
        ("order", options.order, calib.ORDERS),
    ):
        if value not in known:
            raise ConfigError(
                f"unknown --{flag} {value!r}",
                expected="one of " + ", ".join(known),
                fix="choose one of them",
            )
    if not 0 < options.damping <= 100:
        raise ConfigError(
            "--damping is wrong",
            got=options.damping,
            expected="above 0 and at most 100; 0.01 is usual",
            fix="mend the value",
        )
    if options.weight_rounding == "nearest":
        if options.bias_correction:
            raise ConfigError(
                "--bias-correction goes with second-order rounding, which measures what it needs",
                got="--weight-rounding nearest",
                fix="drop one of them",
            )
        return None
    order: Any = options.order
    return calib.SecondOrder(options.damping, order, options.bias_correction)


def load_table(table: Entry | None) -> CalibrationTable | None:
    """The table in a stage's entry; None where there is none."""
    return load_calibration(table) if table else None


def load_calibration(table: Entry) -> CalibrationTable:
    """The table in a stage's entry."""
    return calib.CalibrationTable.load(table.path / bundle.CALIBRATION)


def load_rounded(rounded: Entry | None) -> dict[str, Rounded] | None:
    """The rounded weights in a stage's entry; None where there is none."""
    return calib.load_rounded(rounded.path / _ROUNDED) if rounded else None


def _contract(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "shape": list(spec.shape), "dtype": spec.dtype}
