"""A calibration's stages, each a method: what it makes, and what that depends on.

Each stage's result is kept in the cache under the digest of all that it was made from, so a second
job of the same inputs finds everything there. `pipeline` knows their order.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from vggdeploy import calib, export, graphs, inputs, observers
from vggdeploy import reference as references
from vggdeploy.cache import Cache, Entry
from vggdeploy.calib import trt_cache
from vggdeploy.contracts import RunOptions
from vggdeploy.errors import ConfigError
from vggdeploy.manifest import CALIBRATION, GRAPH

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from vggdeploy.calib import CalibrationTable
    from vggdeploy.calib.rounding import Rounded
    from vggdeploy.contracts import Dialect, GraphTarget, Reporter, Runner
    from vggdeploy.dataset import Dataset
    from vggdeploy.inputs import BuildOptions

_STATISTICS = "statistics.npz"
_ROUNDED = "rounded.npz"

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

    def stage(self, name: str, made_from: Mapping[str, Any], make: Callable[[Path], None]) -> Entry:
        """Run stage `name` unless the cache has what `make` would make from the same."""
        return self.stages.run(name, lambda: self.store.stage(name, made_from, make))

    def export(self) -> Entry:
        """The FP32 graph."""

        def make(work: Path) -> None:
            if self.source.weights is None:
                assert self.source.model is not None
                export.adopt(self.source.model, work)
            else:
                module = references.load(self.source.weights)
                export.export(module, self.source.weights.network, work)

        return self.stage("export", {"source": self.source.identity()}, make)


class Calibration(Job):
    """A job with images, whose inputs are all settled before any long work."""

    def __init__(self, options: BuildOptions, reporter: Reporter) -> None:
        super().__init__(options, reporter)
        if options.method not in calib.METHODS:
            raise ConfigError(
                "unknown method",
                got=repr(options.method),
                expected="one of " + ", ".join(calib.METHODS),
                fix="choose one with --method",
            )
        observers.require_known(options.calib_precision)
        self.rounding = _rounding(options)
        if options.emit_trt_cache or options.portable:
            trt_cache.version_digits(options.trt_version)
        self.images, self.probes = inputs.choose_images(options, self.source, self.store)
        self.ranking = inputs.choose_ranking(options, self.images)

    @functools.cached_property
    def observer(self) -> GraphTarget:
        """What runs the float graph in calibration."""
        return observers.choose(self.options.calib_precision, self.store)

    @functools.cached_property
    def provenance(self) -> dict[str, Any]:
        """What a calibration table is made from."""
        said = {
            "model": self.source.identity(),
            "images_sha256": self.images.digest(),
            "images": len(self.images),
            "seed": self.options.seed,
            "preprocess": self.source.preprocess.to_json(),
            "precision": self.observer.precision,
        }
        if self.options.sparsity is not None:
            said["sparsity"] = self.options.sparsity
        return said

    def collect(self, graph: Entry) -> Entry:
        """Statistics of every tensor that can be quantized."""

        def make(work: Path) -> None:
            points = calib.place(graphs.read(graph.path / GRAPH)).points
            seen = {point.name: str(point.seen.name) for point in points}
            with self.observe(graph, seen.values()) as runner:
                calib.collect(
                    runner, seen, self.images, self.source.preprocess, self.reporter
                ).save(work / _STATISTICS)

        return self.stage(
            "collect",
            {
                "graph": graph.digest,
                "images": self.provenance["images_sha256"],
                "precision": self.provenance["precision"],
                "preprocess": self.source.preprocess.to_json(),
            },
            make,
        )

    def observe(
        self,
        graph: Entry,
        tensors: Iterable[str],
        goal: Literal["latency", "throughput"] = "throughput",
    ) -> Runner:
        """A runner of the float graph that shows `tensors`."""
        image = graphs.signature(graphs.read(graph.path / GRAPH)).input.name
        taps = [name for name in dict.fromkeys(tensors) if name != image]
        return self.observer.open_graph(graph.path / GRAPH, taps, RunOptions(goal=goal))

    def calibrate(self, graph: Entry, statistics: Entry) -> Entry:
        """The calibration table."""

        def make(work: Path) -> None:
            placement = calib.place(graphs.read(graph.path / GRAPH))
            calib.calibrate(
                calib.Statistics.load(statistics.path / _STATISTICS),
                {point.name: point.nonnegative for point in placement.points},
                self.options.method,
                self.provenance,
                calib.links(placement),
                rescale=self.options.rescale,
            ).save(work / CALIBRATION)

        return self.stage(
            "calibrate",
            {
                "statistics": statistics.digest,
                "method": self.options.method,
                "rescale": self.options.rescale,
                "provenance": self.provenance,
            },
            make,
        )

    def _rounding_inputs(self) -> dict[str, Any] | None:
        """What rounding depends on besides graph, table and dialect."""
        if self.rounding is None:
            return None
        return {
            **asdict(self.rounding),
            "images": self.provenance["images_sha256"],
            "precision": self.provenance["precision"],
            "seed": self.options.seed,
        }

    def round(self, graph: Entry, table: Entry, dialect: Dialect) -> Entry | None:
        """Weights rounded with second-order information; None where all are rounded to nearest."""
        how = self.rounding
        if how is None:
            return None

        def make(work: Path) -> None:
            placement = calib.place(
                graphs.read(graph.path / GRAPH), matrices=dialect.matrix is None
            )
            thresholds = load_table(table)
            layers = calib.wanted_layers(placement, thresholds, dialect)
            # One query at a time: multiplying takes as long as the network, and all cores.
            with self.observe(graph, (layer.tensor for layer in layers), "latency") as runner:
                moments = calib.covariances(
                    runner,
                    layers,
                    rounding_images(self),
                    self.source.preprocess,
                    self.options.seed,
                    self.reporter,
                )
            rounded = calib.round_layers(
                placement, thresholds, dialect, moments, how, self.reporter
            )
            calib.save_rounded(rounded, work / _ROUNDED)

        return self.stage(
            "round",
            {
                "graph": graph.digest,
                "table": table.digest,
                "dialect": asdict(dialect),
                "preprocess": self.source.preprocess.to_json(),
                **(self._rounding_inputs() or {}),
            },
            make,
        )

    def write_trt_cache(
        self, graph: Entry, table: Entry, out: Path, version: str | None = None
    ) -> None:
        """The table as a TensorRT calibration cache for the float graph, to be read by `version`,
        or by the one that the options name."""
        model = graphs.read(graph.path / GRAPH)
        trt_cache.save(out, load_table(table), model, version or self.options.trt_version)


def rounding_images(job: Calibration) -> Dataset:
    """The images that second-order rounding looks at."""
    return job.images.choose(min(len(job.images), ROUNDING_IMAGES), job.options.seed)


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
                f"unknown --{flag}",
                got=repr(value),
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
                expected="--weight-rounding gptq",
                fix="drop one of them",
            )
        return None
    order: Any = options.order
    return calib.SecondOrder(options.damping, order, options.bias_correction)


def load_table(table: Entry) -> CalibrationTable:
    """The table in a stage's entry."""
    return calib.CalibrationTable.load(table.path / CALIBRATION)


def load_rounded(rounded: Entry | None) -> dict[str, Rounded] | None:
    """The rounded weights in a stage's entry; None where there is none."""
    return calib.load_rounded(rounded.path / _ROUNDED) if rounded else None
