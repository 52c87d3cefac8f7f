"""Sensitivity: the damage that each layer does alone when it is quantized.

For each layer there is a graph that has it alone in 8 bits, weights and input as a build would have
them, and everything else in float. The graphs are executed as they are defined, in float, so that
no CPU's saturation is taken for damage; they share one file of float weights.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vggdeploy import calib, calibrating, graph_layers, graphs, parity, sources
from vggdeploy.contracts import RunOptions
from vggdeploy.errors import ConfigError, ModelError
from vggdeploy.manifest import GRAPH

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from vggdeploy.cache import Entry
    from vggdeploy.calibrating import Calibration
    from vggdeploy.contracts import Dialect
    from vggdeploy.dataset import Dataset
    from vggdeploy.inputs import BuildOptions
    from vggdeploy.preprocess import Preprocess

_FOUND = "sensitivity.json"


@dataclass(frozen=True)
class LayerDamage:
    """What a network loses when one layer alone is quantized.

    Attributes:
        name: of the layer.
        sqnr_db: of the scores, see `parity.Parity`.
        agreement: share of images with the float network's best class.
        macs: multiply-accumulates of the layer for one image.
        weight_share: its share of the network's parameters, and so of their bytes in one type.
    """

    name: str
    sqnr_db: float
    agreement: float
    macs: int
    weight_share: float


def dialect(options: BuildOptions) -> Dialect:
    """How the target whose layers are ranked quantizes.

    Raises:
        ConfigError: for a float target.
        MissingError: when the target does not work here.
    """
    found = sources.available(options.target).dialect_for(options.cpu_isa)
    if found is None:
        raise ConfigError(
            "--sensitivity ranks the layers of a quantized network",
            got=f"{options.target}, which quantizes none",
            expected="an INT8 target",
            fix="give another --target",
        )
    return found


def stage(
    job: Calibration, graph: Entry, table: Entry, rounded: Entry | None, dialect: Dialect
) -> Entry:
    """The damage of each layer, measured once and kept in the cache; `load` reads it."""
    chosen = job.ranking

    def make(work: Path) -> None:
        with tempfile.TemporaryDirectory(dir=work) as scratch:
            variants = Variants(graph, table, rounded, dialect, Path(scratch))
            found = measure(variants, chosen, job.source.preprocess, job)
        (work / _FOUND).write_text(json.dumps([asdict(layer) for layer in found]))

    return job.stage(
        "sensitivity",
        {
            "graph": graph.digest,
            "table": table.digest,
            "rounded": rounded.digest if rounded else None,
            "dialect": asdict(dialect),
            "images": chosen.digest(),
            "preprocess": job.source.preprocess.to_json(),
        },
        make,
    )


def load(entry: Entry) -> list[LayerDamage]:
    """What `stage` found, the most damaging layer first."""
    said = json.loads((entry.path / _FOUND).read_text())
    return [LayerDamage(**layer) for layer in said]


class Variants:
    """Graphs of one network that differ in which layers are quantized.

    Their channels are rescaled as the calibration table has it, whatever is quantized, so what does
    not change lies in one file beside them.

    Args:
        graph: of an export.
        table: of a calibration.
        rounded: weights that are rounded already.
        dialect: of the target.
        folder: where graphs are written; the caller removes it.
    """

    def __init__(
        self, graph: Entry, table: Entry, rounded: Entry | None, dialect: Dialect, folder: Path
    ) -> None:
        self.original = graph.path / GRAPH
        self._table = calibrating.load_table(table)
        self._rounded = calibrating.load_rounded(rounded)
        # Variants are run in float32: a cast of all weights to float16 would leave none to share.
        self._dialect = replace(dialect, high_precision="float32")
        self._folder = folder
        model = graphs.read(self.original)
        placement = calib.place(model, matrices=dialect.matrix is None)
        self.layers = tuple(dict.fromkeys(found.name for found in placement.weighted))
        self._all = frozenset(found.name for found in graphs.weighted(model))
        self.rows = graph_layers.rows(model)

    def write(self, quantized: Iterable[str]) -> Path:
        """The graph with the layers `quantized` in 8 bits and all others in float."""
        base = self._folder / "float.onnx"
        if not base.exists():
            calib.quantize(
                self.original, self._table, self._dialect, base, keep=self._all, weights="beside"
            )
        out = self._folder / "variant.onnx"
        calib.quantize(
            base,
            self._table.applied(),
            self._dialect,
            out,
            self._rounded,
            self._all - frozenset(quantized),
            weights="shared",
        )
        return out


def measure(
    variants: Variants, chosen: Dataset, preprocess: Preprocess, job: Calibration
) -> list[LayerDamage]:
    """Quantize each layer alone and compare the scores with the float network's.

    Returns:
        Every layer that can be quantized, the most damaging first: by SQNR, then by agreement.

    Raises:
        ModelError: when a score is NaN or infinite.
    """
    pixels = list(chosen.pixels(preprocess))

    def runs() -> Iterator[tuple[str | None, NDArray[np.float32]]]:
        for row in float_scores(variants.original, pixels, preprocess):
            yield None, row
        for layer in variants.layers:
            for row in float_scores(variants.write([layer]), pixels, preprocess):
                yield layer, row

    scores: dict[str | None, list[NDArray[np.float32]]] = {}
    total = (len(variants.layers) + 1) * len(pixels)
    for name, row in job.reporter.track(runs(), total, "measuring each layer alone"):
        scores.setdefault(name, []).append(row)
    reference = np.concatenate(scores.pop(None))
    macs = dict.fromkeys(variants.layers, 0)
    weights = dict(macs)
    for line in variants.rows:
        if line["name"] in macs:
            macs[line["name"]] += line["macs"]
            weights[line["name"]] = line["params"]
    everything = sum({line["name"]: line["params"] for line in variants.rows}.values())
    found = []
    for name in variants.layers:
        close = parity.parity(reference, np.concatenate(scores[name]))
        found.append(
            LayerDamage(
                name, close.sqnr_db, close.top1_agreement, macs[name], weights[name] / everything
            )
        )
    return sorted(found, key=lambda layer: (layer.sqnr_db, layer.agreement))


def float_scores(
    onnx: Path, pixels: Sequence[NDArray[np.uint8]], preprocess: Preprocess
) -> Iterator[NDArray[np.float32]]:
    """The scores ``[1, classes]`` of each image, of a graph executed as it is defined, in float.

    Args:
        onnx: a float graph, or one with Q/DQ pairs.
        pixels: images, uint8 ``[H, W, 3]``.
        preprocess: their arithmetic.

    Raises:
        ModelError: when a score is NaN or infinite.
    """
    queries = (preprocess.arithmetic(image[None]) for image in pixels)
    with sources.float_target().open_graph(onnx, (), RunOptions(goal="throughput")) as runner:
        for outputs in runner.infer_many(queries):
            row = outputs[runner.outputs[0].name].copy()
            if len(parity.not_finite(row)):
                raise ModelError(
                    f"{onnx.name} gives NaN or infinity",
                    got=f"{np.count_nonzero(~np.isfinite(row))} of {row.size} scores",
                    expected="finite scores",
                    fix="check the weights and --preprocess",
                )
            yield row


def to_json(found: Sequence[LayerDamage], judged: Dataset, target: str) -> dict[str, Any]:
    """The JSON form of a ranking."""
    return {
        "kind": "sensitivity",
        "target": target,
        "sensitivity_images": len(judged),
        "layers": [asdict(layer) for layer in found],
    }
