"""This product beside its peers: ``python -m vggdeploy.benchmarks.peers [FLAGS]``.

This product, ``nncf.quantize`` as it comes and onnxruntime's ``quantize_static`` quantize the same
network on the same images, each in a process of its own. What they made is judged on images that
none was calibrated on, twice: as the graph is defined, executed in float, and as OpenVINO's integer
kernels run it here. Latency is measured in one process, a query of each engine in turn, so that a
drift of the machine touches all alike.

::

    python -m vggdeploy.benchmarks.peers --json peers.json
    python -m vggdeploy.benchmarks.peers --model vgg.onnx --preprocess caffe \\
        --calib-data photos/ --calib-images 64 --data others/
"""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from vggdeploy import cli, dataset, inputs, machine, parity, results, sources, targets
from vggdeploy.benchmarks import competitors, judging
from vggdeploy.benchmarks.children import Children
from vggdeploy.benchmarks.competitors import COMPETITORS, NNCF, ONNXRUNTIME, OWN, TENSORRT
from vggdeploy.cache import Cache
from vggdeploy.contracts import DEFAULT_CPU, GraphTarget, RunOptions
from vggdeploy.errors import EXIT_GATE, ConfigError, DatasetError, VggdeployError
from vggdeploy.inputs import BuildOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from vggdeploy.benchmarks.children import Outcome
    from vggdeploy.console import Terminal
    from vggdeploy.contracts import Runner
    from vggdeploy.dataset import Dataset
    from vggdeploy.sources import Source

JUDGED = 100
"""Images that judge by default: some minutes in float for all competitors together."""

_WIDTH = 92
"""Columns that the whole table takes; below, it is shown in two parts."""

Scores = dict[str, "NDArray[np.float32]"]


@dataclass(frozen=True)
class Row:
    """A competitor's figures; None for what it has not.

    Attributes:
        images: how many it was calibrated on.
        seconds: from the FP32 graph to the quantized model on the disk, imports left out.
        collect_seconds: of these, running the float network and observing it.
        peak_bytes: peak resident memory of the process that quantized.
        samples_s: latencies in OpenVINO at batch 1, in order.
        own_samples_s: the same in the competitor's own runtime.
        sqnr_db: of the graph as it is defined, against the float network.
        sqnr_db_here: of the engine as OpenVINO runs it on this machine.
        requantized: FakeQuantize nodes that OpenVINO executes by themselves.
        note: what to know; begins with ``failed`` where there is nothing.
    """

    name: str
    images: int | None = None
    seconds: float | None = None
    collect_seconds: float | None = None
    peak_bytes: int | None = None
    engine_bytes: int | None = None
    samples_s: tuple[float, ...] = ()
    own_samples_s: tuple[float, ...] = ()
    sqnr_db: float | None = None
    agreement: float | None = None
    sqnr_db_here: float | None = None
    agreement_here: float | None = None
    requantized: tuple[str, ...] = ()
    note: str = ""

    @property
    def failed(self) -> bool:
        """Whether there is no model to show."""
        return self.note.startswith("failed")

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping, with the medians of the samples."""
        return {
            **asdict(self),
            "median_s": _median(self.samples_s),
            "own_median_s": _median(self.own_samples_s),
        }


def _median(samples: Sequence[float]) -> float | None:
    return float(np.median(samples)) if samples else None


def first_row(name: str, made: Outcome) -> Row:
    """What quantizing took."""
    return Row(
        name,
        made.images,
        made.seconds,
        made.collect_seconds,
        made.peak_bytes,
        made.engine_bytes,
        note=f"failed: {made.error}" if made.error else made.note,
    )


def chosen(only: str, target: str | None, foreign: bool) -> list[str]:
    """The competitors that take part, in the order of the table.

    Args:
        only: names with commas between; all when empty.
        target: targets of this product, likewise; ``ov-int8`` when None, and ``ov-int8-w4`` for
            weights of ours.
        foreign: whether the network is a foreign graph.

    Raises:
        ConfigError: for an unknown name.
    """
    own = [name for name in OWN if name != TENSORRT]
    wanted = _names("--target", target or ("ov-int8" if foreign else ",".join(own)), own)
    if only and not target:
        wanted = own  # what is named with --only alone takes part
    known = [name for name in COMPETITORS if name not in own or name in wanted]
    return [name for name in known if not only or name in _names("--only", only, known)]


def _names(flag: str, text: str, known: Sequence[str]) -> list[str]:
    found = [name.strip() for name in text.split(",")]
    for name in found:
        if name not in known:
            raise ConfigError(
                f"unknown {flag} {name!r}",
                expected="some of " + ", ".join(known) + ", with commas between",
                fix="choose among them",
            )
    return found


def held_out(source: Source, data: str | None, calibration: Dataset, store: Cache) -> Dataset:
    """The images of `data` that are not among the calibration images.

    Raises:
        DatasetError: when none is left.
    """
    demo = source.weights is not None and source.weights.demo
    if data == sources.DEMO or (data is None and demo):
        return sources.demo_images("heldout", store)
    folder = dataset.scan(Path(data).expanduser() if data else calibration.root)
    taken = {sample.path.resolve() for sample in calibration.samples}
    rest = tuple(sample for sample in folder.samples if sample.path.resolve() not in taken)
    if not rest:
        raise DatasetError(
            f"every image of {folder.root} calibrates, and none is left to judge on",
            got=f"{len(folder)} images, {len(calibration)} of them calibrate",
            fix="give --data another folder, or fewer --calib-images",
        )
    return replace(folder, samples=rest)


class Judge:
    """Judges quantized models against the float network's scores."""

    def __init__(self, source: Source, images: Dataset, store: Cache, terminal: Terminal) -> None:
        self._source = source
        self._images = images
        self._terminal = terminal
        found = np.load(sources.scores(source, images, store, terminal).path / sources.SCORES)
        self._reference = found.reshape(len(found), -1)

    def judge(self, row: Row, made: Outcome) -> Row:
        """The row with how close the graph is as it is defined, and as it runs here."""
        try:
            defined = self._closeness(made.graph, sources.float_target(), f"{row.name} in float")
            row = replace(row, sqnr_db=defined.sqnr_db, agreement=defined.top1_agreement)
            if made.engine:
                here = self._closeness(made.engine, integer_target(row.name), f"{row.name} here")
                row = replace(row, sqnr_db_here=here.sqnr_db, agreement_here=here.top1_agreement)
        except VggdeployError as error:
            return _failed(row, error)
        return row

    def _closeness(self, graph: str, target: GraphTarget, label: str) -> parity.Parity:
        recipe = self._source.preprocess
        found = judging.scores(target, Path(graph), self._images, recipe, self._terminal, label)
        return parity.parity(self._reference, found)


def _failed(row: Row, error: VggdeployError) -> Row:
    return replace(row, note="; ".join(filter(None, (f"failed: {error}", row.note))))


def _noted(row: Row, said: str) -> Row:
    return replace(row, note="; ".join(filter(None, (row.note, said))))


def integer_target(name: str) -> GraphTarget:
    """The target that runs a competitor's engine with integer kernels."""
    found = targets.get(name if name in targets.REGISTRY else "ov-int8")
    assert isinstance(found, GraphTarget)
    return found


def race(
    rows: Sequence[Row], made: dict[str, Outcome], batch: NDArray[np.float32], runs: int
) -> list[Row]:
    """The rows with latencies, all engines in one process and in turn; the models of onnxruntime
    in its own runtime too."""
    done = list(rows)
    runners: list[tuple[int, bool, Runner]] = []
    with contextlib.ExitStack() as stack:
        for index, row in enumerate(rows):
            engine = made[row.name].engine
            if not engine or row.failed:
                continue
            try:
                target = integer_target(row.name)
                runner = stack.enter_context(target.open_graph(Path(engine), (), RunOptions()))
                done[index] = replace(row, requantized=tuple(judging.requantized(runner)))
            except VggdeployError as error:
                done[index] = _failed(row, error)
                continue
            runners.append((index, False, runner))
            if row.name in ONNXRUNTIME:
                own = judging.OnnxRuntimeRunner(Path(engine), batch.shape)
                try:
                    runners.append((index, True, stack.enter_context(own)))
                except VggdeployError as error:
                    done[index] = _noted(done[index], str(error))
        found = judging.interleave([runner for _, _, runner in runners], batch, runs)
    for (index, own_runtime, _), samples in zip(runners, found, strict=True):
        if own_runtime:
            done[index] = replace(done[index], own_samples_s=tuple(samples))
        else:
            done[index] = replace(done[index], samples_s=tuple(samples))
    return done


_COLUMNS = (
    "quantizer", "images", "total\ns", "collect\ns", "peak\nGB", "engine\nMB",
    "latency\nms", "own\nms", "SQNR\ndB", "here\ndB", "agree", "here",
)  # fmt: skip
_QUALITY = 6
"""The first column of the second part."""


def cells(row: Row) -> tuple[str, ...]:
    """A row as it is shown, a cell for each of `_COLUMNS`."""
    figures = (
        (row.images, 1.0, ".0f"),
        (row.seconds, 1.0, ".1f"),
        (row.collect_seconds, 1.0, ".1f"),
        (row.peak_bytes, 1e-9, ".2f"),
        (row.engine_bytes, 1e-6, ".1f"),
        (_median(row.samples_s), 1e3, ".1f"),
        (_median(row.own_samples_s), 1e3, ".1f"),
        (row.sqnr_db, 1.0, ".2f"),
        (row.sqnr_db_here, 1.0, ".2f"),
        (row.agreement, 1.0, ".4f"),
        (row.agreement_here, 1.0, ".4f"),
    )
    return row.name, *(
        "" if value is None else format(value * scale, form) for value, scale, form in figures
    )


def show(terminal: Terminal, rows: Sequence[Row], judged: int, saturates: bool) -> None:
    """The table, in two parts where the terminal is narrow, and what there is to say of it."""
    shown = [cells(row) for row in rows]
    if terminal.console.width >= _WIDTH:
        terminal.table(_COLUMNS, shown)
    else:
        terminal.table(_COLUMNS[:_QUALITY], [row[:_QUALITY] for row in shown])
        terminal.line("")
        second = [(row[0], *row[_QUALITY:]) for row in shown]
        terminal.table((_COLUMNS[0], *_COLUMNS[_QUALITY:]), second)
    terminal.line(
        f"total: FP32 graph to quantized model, imports left out; peak: resident memory of that "
        f"process; latency: median in OpenVINO at batch 1; own: in onnxruntime. SQNR and agreement "
        f"with the float network on {judged} images that none was calibrated on: of the graph as "
        "it is defined, and of the engine as OpenVINO's integer kernels run it here."
    )
    for row in rows:
        if row.note:
            terminal.line(f"{row.name}: {row.note}", style="red" if row.failed else "yellow")
        if row.requantized:
            terminal.line(f"{row.name}: executes FakeQuantize by itself: {len(row.requantized)}")
    for text in ratios(rows):
        terminal.line(text)
    if saturates:
        terminal.line(
            "this CPU has no VNNI: its 8-bit products are added in 16 bits and saturate, which is "
            "the difference between SQNR and here (--cpu-isa avx2: 7-bit weights for everyone)",
            style="yellow",
        )


def ratios(rows: Sequence[Row]) -> list[str]:
    """Latency beside NNCF's engine: of the medians, and the median of the pairs of each turn."""
    beside = next((row.samples_s for row in rows if row.name == NNCF and row.samples_s), None)
    if beside is None:
        return []
    return [
        f"latency of {row.name} / {NNCF}: {np.median(row.samples_s) / np.median(beside):.3f} "
        f"(median of {len(beside)} pairs {np.median(np.divide(row.samples_s, beside)):.3f})"
        for row in rows
        if row.name in OWN and row.samples_s
    ]


def main(
    weights: Annotated[str, typer.Option(help="Weights of ours.")] = "demo",
    model: Annotated[Path | None, typer.Option(help="A foreign FP32 graph in their place.")] = None,
    arch: Annotated[str | None, typer.Option(help="As 'build' takes it.")] = None,
    num_classes: Annotated[int | None, typer.Option(help="As 'build' takes it.")] = None,
    preprocess: Annotated[str | None, typer.Option(help="A preset, or a TOML file.")] = None,
    calib_data: Annotated[str | None, typer.Option(help="A folder to calibrate on.")] = None,
    calib_images: Annotated[int | None, typer.Option(help="How many images to draw.")] = None,
    data: Annotated[
        str | None, typer.Option(help="A folder to judge on; the rest of the other if left out.")
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="How many judge.")] = JUDGED,
    target: Annotated[
        str | None, typer.Option(help="Targets of ours, with commas between.")
    ] = None,
    only: Annotated[
        str, typer.Option(help="These alone, of: " + ", ".join(COMPETITORS) + ".")
    ] = "",
    ort_images: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="How many calibrate onnxruntime's entropy and percentile, which keep every "
            "activation; as many as the memory allows if left out, and never more.",
        ),
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Queries of each engine.")] = 30,
    cpu_isa: Annotated[str, typer.Option(help="vnni, or avx2: 7-bit weights.")] = DEFAULT_CPU,
    seed: Annotated[int, typer.Option(help="Draws the images.")] = 0,
    json: Annotated[str | None, typer.Option(help="Write the result as JSON.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
) -> None:
    """Compare this product with NNCF and onnxruntime on one network and the same images."""
    results.refuse_overwrite(json, force)
    terminal = cli.terminal
    names = chosen(only, target, model is not None)
    for name in names:
        competitors.require(name)
    options = BuildOptions(
        weights=weights, model=model, arch=arch, num_classes=num_classes, preprocess=preprocess,
        calib_data=calib_data, calib_images=calib_images, cpu_isa=cpu_isa, seed=seed,
    )  # fmt: skip
    integer_target("ov-int8").dialect_for(cpu_isa)
    store = Cache()
    source = inputs.resolve(options)
    calibration, _ = inputs.choose_images(options, source, store)
    judged = held_out(source, data, calibration, store)
    judged = judged.choose(min(images, len(judged)), seed)
    options = replace(options, calib_data=str(calibration.root), calib_images=len(calibration))
    with tempfile.TemporaryDirectory(prefix="vggdeploy-") as scratch:
        children = Children(Path(scratch), options, source)
        with terminal.step("FP32 graph"):
            children.float_graph()
        made: dict[str, Outcome] = {}
        for name in names:
            # Another dialect of what was collected and calibrated for the target before it.
            before = OWN[0] if name == TENSORRT and OWN[0] in made else None
            with terminal.step(name):
                made[name] = children.run(name, cached_by=before, kept_images=ort_images)
            if made[name].seconds is not None:
                terminal.done(name, made[name].seconds or 0.0, cached=False)
        judge = Judge(source, judged, store, terminal)
        rows = [first_row(name, made[name]) for name in names]
        rows = [row if row.failed else judge.judge(row, made[row.name]) for row in rows]
        batch = source.preprocess.arithmetic(next(judged.pixels(source.preprocess))[None])
        with terminal.step("latency"):
            rows = race(rows, made, batch, runs)
    show(terminal, rows, len(judged), machine.saturates())
    results.write(
        {
            "kind": "peers",
            "model": source.facts(),
            "calibration_images": len(calibration),
            "judged_images": len(judged),
            "cpu_isa": cpu_isa,
            "saturates": machine.saturates(),
            "rows": [row.to_json() for row in rows],
            "system": {
                **machine.system(),
                "peers": {name: machine.version(name) for name in ("nncf", "onnxruntime")},
            },
        },
        json,
    )
    if all(row.failed for row in rows):
        raise typer.Exit(EXIT_GATE)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command()(main)

if __name__ == "__main__":
    raise SystemExit(cli.main(program=app))
