"""Mixed precision: the fewest layers left in high precision that keep the top-1 drop in bounds.

The drop is judged on images that did not calibrate, against the float graph, with every graph
executed as it is defined, in float. So it is the graph's own: what an engine adds, such as the
saturating sums of a CPU without VNNI that runs an engine not built for it, is for ``verify`` to
show.
"""

from __future__ import annotations

import json
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vggdeploy import (
    budget,
    calib,
    calibrating,
    graph_layers,
    graphs,
    machine,
    parity,
    sensitivity,
    sources,
)
from vggdeploy.benchmarks import judging, peak
from vggdeploy.contracts import GraphTarget, RunOptions
from vggdeploy.errors import BoundError
from vggdeploy.manifest import GRAPH

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from numpy.typing import NDArray

    from vggdeploy.building import Build
    from vggdeploy.cache import Entry
    from vggdeploy.contracts import Dialect

    Drop = Callable[[Collection[str]], float]

_CHOSEN = "mixed.json"
_LATENCY = "latency.json"

_QUERIES = 15
"""Of each engine, one of each in turn: enough to tell what was paid, not to publish."""

_BELIEVED = 0.5
"""Labels that the float network itself mostly disagrees with are another network's, and a drop of
its accuracy against them would be next to nothing whatever the damage."""


@dataclass(frozen=True)
class Mixed:
    """What was kept in high precision, and what it is worth.

    Attributes:
        kept: names of layers, the most damaging first.
        drop: top-1 drop of the mixed graph, as a share of the images.
        int8_drop: that with every layer quantized.
        images: how many were judged.
        judged: ``labels`` where the drop is one of accuracy; ``agreement`` where it is the share of
            images with another best class than the float network's, which no drop can exceed.
        trials: graphs that were judged.
    """

    kept: tuple[str, ...]
    drop: float
    int8_drop: float
    images: int
    judged: str
    trials: int


def choose(
    job: Build,
    graph: Entry,
    table: Entry,
    rounded: Entry | None,
    dialect: Dialect,
    *,
    against: Entry,
) -> Mixed:
    """Choose what stays in high precision for ``max_drop``; kept in the cache.

    Args:
        job: the build.
        graph: the float graph that is quantized.
        table: of its calibration.
        rounded: its weights, rounded.
        dialect: of the target.
        against: the float graph that the drop is counted from: `graph`, before it was pruned.

    Raises:
        BoundError: when the drop is too large even with a single layer quantized.
    """
    assert job.judged is not None
    pixels = job.judged

    def make(work: Path) -> None:
        with tempfile.TemporaryDirectory(dir=work) as scratch:
            judge = _Judge(job, graph, table, rounded, dialect, Path(scratch), against)
            chosen = _choose(job, judge, graph, table, rounded, dialect)
        (work / _CHOSEN).write_text(json.dumps(asdict(chosen)))

    entry = job.stage(
        "mixed",
        {
            "graph": graph.digest,
            "against": against.digest,
            "table": table.digest,
            "rounded": rounded.digest if rounded else None,
            "dialect": asdict(dialect),
            "images": pixels.judged_digest(),
            "sensitivity_images": job.ranking.digest(),
            "preprocess": job.source.preprocess.to_json(),
            "max_drop": job.options.max_drop,
        },
        make,
    )
    said = json.loads((entry.path / _CHOSEN).read_text())
    return Mixed(**{**said, "kept": tuple(said["kept"])})


def _choose(
    job: Build,
    judge: _Judge,
    graph: Entry,
    table: Entry,
    rounded: Entry | None,
    dialect: Dialect,
) -> Mixed:
    bound = job.options.max_drop
    assert bound is not None
    whole = judge.drop(())
    kept: tuple[str, ...] = ()
    if whole > bound:
        entry = sensitivity.stage(job, graph, table, rounded, dialect)
        ranking = [layer.name for layer in sensitivity.load(entry)]
        found = fewest(ranking, judge.drop, bound)
        if found is None:
            raise BoundError(
                f"no mixed precision of {job.source.name} keeps the top-1 drop within {bound:g}",
                got=f"{judge.drop(ranking[:-1]):g} with {ranking[-1]} alone quantized, "
                f"{whole:g} with every layer, on {judge.images} held-out images "
                f"({judge.judged})",
                expected="a drop within it",
                fix="allow a larger --max-drop, calibrate on more images, or build a float target",
            )
        kept = found
    return Mixed(kept, judge.drop(kept), whole, judge.images, judge.judged, judge.trials)


def fewest(ranking: Sequence[str], drop: Drop, bound: float) -> tuple[str, ...] | None:
    """Few layers that, kept in high precision, bring the drop within `bound`.

    The shortest head of the ranking that does is found by bisection, then each of its layers that
    can be spared is left out, the least damaging first.

    Args:
        ranking: every layer, the most damaging first.
        drop: the drop with some layers kept.
        bound: the largest drop; it is known that keeping none does not meet it.

    Returns:
        The layers in the ranking's order; None where even keeping all but the last does not do.
    """
    short, enough = 0, len(ranking) - 1
    if enough < 1 or drop(ranking[:enough]) > bound:
        return None
    while enough - short > 1:
        middle = (short + enough) // 2
        if drop(ranking[:middle]) <= bound:
            enough = middle
        else:
            short = middle
    kept = list(ranking[:enough])
    # The last one is needed: without it the bisection failed.
    for name in kept[-2::-1]:
        fewer = [other for other in kept if other != name]
        if drop(fewer) <= bound:
            kept = fewer
    return tuple(kept)


class _Judge:
    """Quantized forms of a network, each judged once, on held-out images."""

    def __init__(
        self,
        job: Build,
        graph: Entry,
        table: Entry,
        rounded: Entry | None,
        dialect: Dialect,
        folder: Path,
        against: Entry,
    ) -> None:
        assert job.judged is not None
        self._job, self._dialect, self._folder = job, dialect, folder
        self._original = graph.path / GRAPH
        self._table = calibrating.load_table(table)
        self._rounded = calibrating.load_rounded(rounded)
        self._pixels = list(job.judged.pixels(job.source.preprocess))
        self._known: dict[frozenset[str], float] = {}
        self.images = len(self._pixels)
        self._reference = self._scores(against.path / GRAPH, "running the float graph")
        labels = job.judged.labels()
        believed = (
            labels is not None and float((self._reference.argmax(1) == labels).mean()) >= _BELIEVED
        )
        self._labels = labels if believed else None
        self.judged = "agreement" if self._labels is None else "labels"

    @property
    def trials(self) -> int:
        """How many graphs were judged."""
        return len(self._known)

    def drop(self, kept: Collection[str]) -> float:
        """The top-1 drop with the layers `kept` in high precision."""
        key = frozenset(kept)
        if key not in self._known:
            out = self._folder / "trial.onnx"
            calib.quantize(self._original, self._table, self._dialect, out, self._rounded, key)
            label = f"judging INT8 with {len(key)} layers kept" if key else "judging INT8"
            self._known[key] = self._drop(self._scores(out, label))
        return self._known[key]

    def _drop(self, scores: NDArray[np.float32]) -> float:
        if self._labels is not None:
            return parity.accuracy(self._reference, scores, self._labels).drop
        other = int((self._reference.argmax(1) != scores.argmax(1)).sum())
        return other / self.images

    def _scores(self, onnx: Path, label: str) -> NDArray[np.float32]:
        rows = sensitivity.float_scores(onnx, self._pixels, self._job.source.preprocess)
        return np.concatenate(list(self._job.reporter.track(rows, self.images, label)))


def report(
    job: Build, mixed: Mixed, graph: Entry, quantized: Entry, whole: Callable[[], Entry]
) -> dict[str, Any]:
    """The JSON form of a choice, with what the kept layers cost.

    Args:
        job: the build.
        mixed: what was chosen.
        graph: the float graph.
        quantized: the graph in mixed precision.
        whole: makes the graph with every layer quantized, to be measured beside it.
    """
    rows = graph_layers.rows(graphs.read(graph.path / GRAPH))
    macs = sum(row["macs"] for row in rows)
    share = sum(row["macs"] for row in rows if row["name"] in mixed.kept) / macs
    latency: dict[str, float | None] = dict.fromkeys(
        ("estimated_latency_s", "measured_latency_s", "int8_latency_s")
    )
    if mixed.kept and isinstance(job.target, GraphTarget):
        latency |= _latency(job, mixed, rows, quantized, whole())
    said = asdict(mixed)
    return {**said, "kept": list(mixed.kept), "max_drop": job.options.max_drop,
            "kept_macs_share": share, **latency}  # fmt: skip


def _latency(
    job: Build, mixed: Mixed, rows: Sequence[dict[str, Any]], quantized: Entry, whole: Entry
) -> dict[str, float]:
    """Seconds of a query, estimated and measured; kept in the cache of this kind of machine."""
    target = job.target
    assert isinstance(target, GraphTarget)

    def make(work: Path) -> None:
        # On the default device, as the float graph is run.
        options = RunOptions()
        rates = {
            name: peak.peak(of.probes(RunOptions(profile=True)), name, job.reporter)
            for name, of in (("fp32", sources.float_target()), (target.precision, target))
        }
        onnx = [entry.path / GRAPH for entry in (quantized, whole)]
        with ExitStack() as stack:
            runners = [stack.enter_context(target.open_graph(path, (), options)) for path in onnx]
            shape = [side or 1 for side in runners[0].input.shape]
            batch = np.random.default_rng(0).random(shape, np.float32)
            with job.reporter.step("measuring what it costs"):
                samples = judging.interleave(runners, batch, _QUERIES)
        found = {
            "estimated_latency_s": estimate(rows, target.precision, mixed.kept, rates),
            "measured_latency_s": float(np.median(samples[0])),
            "int8_latency_s": float(np.median(samples[1])),
        }
        (work / _LATENCY).write_text(json.dumps(found))

    system = machine.system()
    entry = job.stage(
        "latency",
        {
            "mixed": quantized.digest,
            "int8": whole.digest,
            "target": target.name,
            # What the machine is, and not how busy or how fast it is just now.
            "system": {key: system[key] for key in ("cpu", "isa", "cores", "libraries")},
        },
        make,
    )
    measured: dict[str, float] = json.loads((entry.path / _LATENCY).read_text())
    return measured


def estimate(
    rows: Sequence[dict[str, Any]],
    precision: str,
    kept: Collection[str],
    rates: dict[str, budget.Device],
) -> float:
    """Seconds of a query by the roofline: each layer's MACs at its precision's attainable rate, or
    its weights' bytes at the attainable bandwidth, whichever takes longer.

    Args:
        rows: of `graph_layers.rows`.
        precision: of layers that are not kept.
        kept: names of layers in FP32.
        rates: by precision, FP32 among them.
    """
    total = 0.0
    for row in rows:
        device = rates["fp32" if row["name"] in kept else precision]
        size = budget.row_bytes(row, precision, kept)
        total += max(row["macs"] / device.macs_per_s, size / device.bytes_per_s)
    return total
