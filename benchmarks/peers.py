"""This product beside its peers: ``python -m vggdeploy.benchmarks.peers [FLAGS]``.

This product, ``nncf.quantize`` as it comes and onnxruntime's ``quantize_static`` quantize the same
network on the same images, each in a process of its own. What they made is judged on images that
none was calibrated on, twice: as the graph is defined, executed in float, and as OpenVINO's integer
kernels run it here. Latency is measured in one process, a query of each engine in turn, so that a
drift of the machine touches all alike.

::

    python -m vggdeploy.benchmarks.peers --json peers.json
    python -m vggdeploy.benchmarks.peers --latency --json latency.json
    python -m vggdeploy.benchmarks.peers --model vgg.onnx --preprocess caffe \\
        --calib-data photos/ --calib-images 64 --data others/
"""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from vggdeploy import cli, inputs, machine, parity, results, sources, targets
from vggdeploy.benchmarks import competitors, judging, latency_peers
from vggdeploy.benchmarks.children import Children
from vggdeploy.benchmarks.competitors import COMPETITORS, ONNXRUNTIME, OWN, TENSORRT
from vggdeploy.benchmarks.rows import Row, first_row, show
from vggdeploy.benchmarks.tune import SECONDS
from vggdeploy.cache import Cache
from vggdeploy.contracts import DEFAULT_CPU, GraphTarget, RunOptions
from vggdeploy.errors import EXIT_GATE, ConfigError, VggdeployError
from vggdeploy.inputs import BuildOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from vggdeploy.benchmarks.children import Outcome
    from vggdeploy.contracts import Runner
    from vggdeploy.dataset import Dataset
    from vggdeploy.sources import Source
    from vggdeploy.terminal import Terminal

JUDGED = 100
"""Images that judge by default: some minutes in float for all competitors together."""


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
                f"unknown {flag}",
                got=repr(name),
                expected="some of " + ", ".join(known) + ", with commas between",
                fix="choose among them",
            )
    return found


class Judge:
    """Judges quantized models against the float network's scores."""

    def __init__(self, source: Source, images: Dataset, store: Cache, terminal: Terminal) -> None:
        self._source = source
        self._images = images
        self._terminal = terminal
        found = np.load(
            sources.scores(source, images, store, terminal).path / sources.SCORES,
            allow_pickle=False,
        )
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
    cpu_isa: Annotated[str, typer.Option(help="vnni, or avx2: 7-bit convolutions.")] = DEFAULT_CPU,
    seed: Annotated[int, typer.Option(help="Draws the images.")] = 0,
    latency: Annotated[
        bool,
        typer.Option(
            "--latency", help="Speed alone: torch, onnxruntime, OpenVINO, NNCF's and ours in turns."
        ),
    ] = False,
    tune_seconds: Annotated[
        float, typer.Option(help="Of --latency: how long ov-int8 is tuned, for each goal.")
    ] = SECONDS,
    json: Annotated[str | None, typer.Option(help="Write the result as JSON.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
) -> None:
    """Compare this product with NNCF and onnxruntime on one network and the same images."""
    results.refuse_overwrite(json, force)
    terminal = cli.terminal
    if latency and (only or target):
        raise ConfigError(
            "--latency measures everyone",
            got=f"--only {only}" if only else f"--target {target}",
            expected="neither --only nor --target",
            fix="drop it",
        )
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
    judged = inputs.held_out(source, data, calibration, store)
    judged = judged.choose(min(images, len(judged)), seed)
    options = replace(options, calib_data=str(calibration.root), calib_images=len(calibration))
    with tempfile.TemporaryDirectory(prefix="vggdeploy-") as scratch:
        children = Children(Path(scratch), options, source)
        if latency:
            image = source.preprocess.arithmetic(next(judged.pixels(source.preprocess))[None])
            result = latency_peers.measure(
                source, children, image, rounds=runs, tune_seconds=tune_seconds, seed=seed,
                terminal=terminal,
            )  # fmt: skip
            results.write(result, json)
            return
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
