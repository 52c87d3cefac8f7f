"""A build's stages after calibration, each a method: what it makes, and what that depends on."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vggdeploy import (
    atomic,
    budget,
    bundle,
    cache,
    calib,
    calibration_file,
    compiling,
    digests,
    graph_layers,
    graphs,
    half,
    inputs,
    pixels,
    pruning,
    sources,
    trt_flags,
)
from vggdeploy.calibrating import Calibration, load_rounded, load_table
from vggdeploy.contracts import CompileOptions, TensorSpec
from vggdeploy.errors import ConfigError
from vggdeploy.manifest import CALIBRATION, GRAPH, LAYERS, PROBES, TRT_CACHE
from vggdeploy.targets import trt_layers

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

    from vggdeploy.bundle import Bundle
    from vggdeploy.cache import Entry
    from vggdeploy.calibration_file import CalibrationFile
    from vggdeploy.contracts import Dialect, Reporter, Target
    from vggdeploy.inputs import BuildOptions

_QUANTIZED = "quantized.json"
_ENGINE_LIST = "engine.json"


@dataclass(frozen=True)
class Made:
    """The stages' results that a bundle is put together from; None where a target needs none, and
    for the engine of a portable bundle.

    `compiled` is the graph that the engine was compiled from: the quantized one, or a float one.
    `graph` is the float graph that the others were made from, pruned where it is; `sparsity` is
    what that did (`pruning.report`). `kept` names layers that could be quantized and stay in high
    precision.
    """

    graph: Entry
    table: Entry | None
    quantized: Entry | None
    compiled: Entry
    engine: Entry | None
    scores: Entry
    kept: tuple[str, ...] = ()
    sparsity: dict[str, Any] | None = None

    @property
    def engine_files(self) -> list[str]:
        """Names of the engine's files."""
        if self.engine is None:
            return []
        names: list[str] = json.loads((self.engine.path / _ENGINE_LIST).read_text())
        return names


class Build(Calibration):
    """A job that ends in a bundle."""

    def __init__(self, options: BuildOptions, reporter: Reporter) -> None:
        tensorrt = trt_flags.tensorrt(options)
        self.target: Target = sources.buildable(options.target, portable=options.portable)
        self.takes_pixels = pixels.asked(options.input_format, self.target, options.dla)
        self.recipe = compiling.recipe(tensorrt) if tensorrt else None
        # What else a portable bundle's engine depends on is the device's.
        self.engine_key: dict[str, Any] = (
            {compiling.RECIPE: self.recipe}
            if options.portable
            else self.target.prepare(CompileOptions(tensorrt=tensorrt))
        )
        self.dialect = self.target.dialect_for(options.cpu_isa)
        if options.portable:
            self.dialect = _of_the_device(self.target, options.trt_version)
        if self.dialect is None:
            calibration_file.refuse(options)
            if options.max_drop is not None:
                raise ConfigError(
                    "--max-drop keeps layers of a quantized network in high precision",
                    got=f"{options.target}, which quantizes none",
                    expected="an INT8 target",
                    fix="drop it, or build ov-int8",
                )
        super().__init__(options, reporter)
        # A graph that is kept takes pixels itself.
        by_engine = self.takes_pixels and not self.target.keeps_graph
        self.compiling = CompileOptions(
            self.source.network,
            tensorrt=tensorrt,
            pixels=self.source.preprocess if by_engine else None,
        )
        if self.takes_pixels:
            pixels.constants(self.source.preprocess, self.high_precision)
        if self.implicit and options.max_drop is not None:
            raise ConfigError(
                "--max-drop does not go with --dla, which quantizes the whole network by itself",
                got=f"--max-drop {options.max_drop} and --dla {options.dla}",
                expected="either alone",
                fix="drop one of them",
            )
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
                "trt_cache": options.trt_version if self.trt_cache else None,
                "max_drop": options.max_drop,
                "judged": self.judged.judged_digest() if self.judged else None,
                "ranking": len(self.ranking) if self.judged else None,
            }
        self.key = digests.sha256_json(
            {
                "source": self.source.identity(),
                "preprocess": self.source.preprocess.to_json(),
                "calibration": calibration,
                "target": options.target,
                "probes": self.probes.judged_digest(),
                "portable": options.portable,
                "sparsity": pruning.made_from(self),
                "input_format": options.input_format,
                "engine": self.engine_key,
                "environment": cache.environment(),
            }
        )
        atomic.recover(self.out)
        self.unchanged = bundle.holds(self.out, self.key, force=options.force)
        if not self.unchanged:
            atomic.require_writable(self.out)

    @property
    def trt_cache(self) -> bool:
        """Whether the bundle holds a TensorRT calibration cache: the device may need it (DLA)."""
        asked = self.options.emit_trt_cache or self.options.portable or self.implicit
        return asked and self.dialect is not None

    def adopt(self, graph: Entry, given: CalibrationFile) -> Entry:
        """The calibration table that was given, in place of `collect` and `calibrate`."""

        def make(work: Path) -> None:
            points = calib.place(graphs.read(graph.path / GRAPH)).points
            table = given.table(points)
            if not self.options.rescale:
                table = table.plain()
            table.save(work / CALIBRATION)

        return self.stage(
            "calibration",
            {
                "graph": graph.digest,
                "file": given.sha256,
                "rescale": self.options.rescale,
            },
            make,
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
                graph.path / GRAPH,
                load_table(table),
                dialect,
                work / GRAPH,
                load_rounded(rounded),
                keep,
            )
            (work / _QUANTIZED).write_text(json.dumps(asdict(done)))

        return self.stage(
            "quantize",
            {
                "graph": graph.digest,
                "table": table.digest,
                "rounded": rounded.digest if rounded else None,
                "dialect": asdict(dialect),
                "keep": sorted(keep),
            },
            make,
        )

    @property
    def implicit(self) -> bool:
        """Whether the backend quantizes the float graph by itself, by a calibration cache."""
        tensorrt = self.compiling.tensorrt
        return self.dialect is not None and tensorrt is not None and tensorrt.dla_core is not None

    def typed(self, graph: Entry) -> Entry:
        """The float graph in the type that the target computes in."""
        if self.target.float_type == "float32":
            return graph

        def make(work: Path) -> None:
            model = graphs.read(graph.path / GRAPH)
            half.to_float16(model)
            model.graph.sort()
            graphs.write(model, work / GRAPH, external=False)
            graphs.check(work / GRAPH)

        return self.stage("half", {"graph": graph.digest}, make)

    @property
    def high_precision(self) -> str:
        """The type of what is not quantized in the graph that is compiled."""
        return self.dialect.high_precision if self.dialect else self.target.float_type

    def formed(self, graph: Entry) -> Entry:
        """The graph that is compiled, with the input that was asked for, where that is the graph's
        to bring and not the engine's."""
        if not self.takes_pixels or self.compiling.pixels is not None:
            return graph

        def make(work: Path) -> None:
            model = graphs.read(graph.path / GRAPH)
            external = bool(graphs.data_files(graph.path / GRAPH, model))
            pixels.take(model, self.source.preprocess, self.high_precision)
            graphs.write(model, work / GRAPH, external=external)
            graphs.check(work / GRAPH)

        made_from = {"graph": graph.digest, "preprocess": self.source.preprocess.to_json()}
        return self.stage("pixels", made_from, make)

    def compile(self, graph: Entry, table: Entry | None = None) -> Entry:
        """The engine of a float or a quantized graph; with a table, TensorRT quantizes by that."""

        def make(work: Path) -> None:
            options = self.compiling
            if table is not None and options.tensorrt is not None:
                cache = work / TRT_CACHE
                self.write_trt_cache(graph, table, cache, self.engine_key["version"])
                tensorrt = replace(options.tensorrt, calibration_cache=cache)
                options = replace(options, tensorrt=tensorrt)
            files = self.target.compile(graph.path / GRAPH, options, work)
            (work / _ENGINE_LIST).write_text(json.dumps([file.name for file in files]))

        return self.stage(
            "compile",
            {
                "graph": graph.digest,
                "target": self.target.name,
                "engine": self.engine_key,
                "table": table.digest if table else None,
                "pixels": own.to_json() if (own := self.compiling.pixels) else None,
            },
            make,
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
                # Another process may have built the same in the meantime, and opened it.
                replace=lambda: not bundle.holds(self.out, self.key, force=self.options.force),
            )

    def _probe_labels(self, made: Made) -> NDArray[np.int64] | None:
        """The probes' labels; None where their folders are not of this network's classes."""
        labels = self.probes.labels()
        shape = graphs.signature(graphs.read(made.graph.path / GRAPH)).output.shape
        if labels is None or len(shape) != 2 or labels.max() >= int(shape[-1] or 0):
            return None
        return labels

    def _facts(self, made: Made) -> dict[str, Any]:
        """The manifest's own part."""
        signature = graphs.signature(graphs.read(made.graph.path / GRAPH))
        table = load_table(made.table) if made.table else None
        facts = self.target.facts(made.engine.path) if made.engine else {}
        return {
            "target": self.target.name,
            "precision": self.target.precision,
            "model": self.source.facts(),
            "input": _contract(
                pixels.spec(signature.input, self.source.preprocess)
                if self.takes_pixels
                else signature.input
            ),
            "output": _contract(signature.output),
            "preprocess": self.source.preprocess.to_json(),
            "engine": made.engine_files,
            "portable": self.options.portable,
            compiling.RECIPE: self.recipe,
            "calibration": made.table.digest if made.table else None,
            "settings": {},
            "build": {
                "key": self.key,
                "backend": self.target.version() if made.engine else None,
                "seed": self.options.seed,
                "method": table.method if table else None,
                "calibration_file": self.given.sha256 if self.given else None,
                "cpu_isa": self.options.cpu_isa if made.table else None,
                "kept": list(made.kept),
                "sparsity": made.sparsity,
                "engine": {k: v for k, v in facts.items() if k != "layers"},
            },
        }

    def _fill(self, work: Path, made: Made) -> None:
        """Put every file of the bundle but its manifest into `work`."""
        if made.engine:
            for name in made.engine_files:
                shutil.copyfile(made.engine.path / name, work / name)
        if made.quantized or self.target.keeps_graph:
            graph = made.compiled.path / GRAPH
            for file in (graph, *graphs.data_files(graph, graphs.read(graph))):
                shutil.copyfile(file, work / file.name)
        if made.table:
            shutil.copyfile(made.table.path / CALIBRATION, work / CALIBRATION)
            if self.trt_cache:
                ours = self.implicit and made.engine is not None
                version = self.engine_key["version"] if ours else None
                self.write_trt_cache(made.graph, made.table, work / TRT_CACHE, version)
        bundle.Probes(
            np.stack(list(self.probes.pixels(self.source.preprocess))),
            np.load(made.scores.path / sources.SCORES, allow_pickle=False),
            self._probe_labels(made),
        ).save(work / PROBES)
        precision = self.target.precision
        if self.source.network:
            layers = budget.budget(self.source.network, precision, kept=made.kept).to_json()
        else:
            rows = graph_layers.rows(graphs.read(made.graph.path / GRAPH))
            layers = budget.from_rows(self.source.name, rows, precision, made.kept)
        # Engines call their layers after the graph's nodes and tensors.
        compiled = graphs.read(made.compiled.path / GRAPH)
        layers["nodes"] = nodes = graph_layers.nodes(compiled, layers["layers"])
        layers["tensors"] = graph_layers.tensors(compiled, nodes)
        if self.target.keeps_graph:
            seen = self.target.facts(made.engine.path).get("layers") if made.engine else None
            layers["engine_layers"] = None if seen is None else trt_layers.assign(seen, nodes)
        (work / LAYERS).write_text(json.dumps(layers, indent=1))


def _contract(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "shape": list(spec.shape), "dtype": spec.dtype}


def _of_the_device(target: Target, trt_version: str) -> Dialect | None:
    """The dialect of a device's TensorRT, whatever is installed here: QuantizeLinear of TensorRT 8
    takes float32 scales alone."""
    dialect = target.dialect
    if dialect is not None and trt_version.split(".")[0] == "8":
        return replace(dialect, high_precision="float32")
    return dialect
