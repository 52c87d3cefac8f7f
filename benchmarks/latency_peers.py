"""Speed beside peers, all in one process and in turns: what ``peers --latency`` measures.

Every contender has a turn in every round, an uncounted query first, in an order that is drawn anew
and then goes backwards (see `turns`), so caches and drift touch all alike. Latency is the median
query; throughput is measured in a second pass, with each contender's own queue kept full.
"""

from __future__ import annotations

import contextlib
import functools
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vggdeploy import machine, reference, targets
from vggdeploy.bench_table import settings_words
from vggdeploy.benchmarks import bootstrap, competitors, judging, turns
from vggdeploy.benchmarks.search import DEFAULT, SLICE_SECONDS, Candidate, Plan, Search
from vggdeploy.contracts import RunOptions, TensorSpec
from vggdeploy.errors import VggdeployError, require_package
from vggdeploy.targets.openvino import OpenVINO
from vggdeploy.targets.torch_eager import TorchRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from vggdeploy.benchmarks.children import Children
    from vggdeploy.benchmarks.scenarios import Clock
    from vggdeploy.contracts import Batch, GraphTarget, Reporter, Runner
    from vggdeploy.sources import Source
    from vggdeploy.terminal import Terminal

    Goal = Literal["latency", "throughput"]

BESIDE = "app-ov-int8"
"""What the others are set beside: the same engine as ov-int8 under benchmark_app's settings."""

_QUANTIZERS = ("ov-int8", "ov-int8-w4", competitors.NNCF, "ort-minmax")
_QUERIES = 3
_TUNED_BATCHES = (1, 2, 4, 8, 16)
GOALS: tuple[Goal, ...] = ("latency", "throughput")


class Hinted(OpenVINO):
    """OpenVINO as benchmark_app sets it: with its performance hint and nothing else.

    From the source of ``openvino.tools.benchmark``: ``-hint`` becomes PERFORMANCE_HINT, and there
    are as many requests as OPTIMAL_NUMBER_OF_INFER_REQUESTS says.
    """

    def configuration(self, options: RunOptions) -> dict[str, Any]:
        return {"PERFORMANCE_HINT": options.goal.upper()}

    def exact(self, options: RunOptions) -> bool:
        return False


@dataclass(frozen=True)
class Contender:
    """Who takes part.

    Attributes:
        how: what it is, for the table.
        make: a runner for a goal, not yet open, and the images of its queries.
    """

    name: str
    how: str
    make: Callable[[Goal], tuple[Runner, int]]


@dataclass(frozen=True)
class Row:
    """A contender's figures; None for what it has not.

    Attributes:
        latency_s: the median of each of its turns, in seconds.
        images_per_s: of each of its turns.
        latency_beside, throughput_beside: its figure over that of `BESIDE`, of paired turns, with
            the ends of the 95% interval.
        note: what to know; begins with ``failed`` where there is nothing.
    """

    name: str
    how: str
    batch: dict[str, int]
    latency_s: tuple[float, ...] = ()
    images_per_s: tuple[float, ...] = ()
    latency_beside: tuple[float, float | None, float | None] | None = None
    throughput_beside: tuple[float, float | None, float | None] | None = None
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping, with the medians of the turns."""
        return {
            **asdict(self),
            "p50": float(np.median(self.latency_s)) if self.latency_s else None,
            "throughput_ips": float(np.median(self.images_per_s)) if self.images_per_s else None,
        }


def contenders(
    source: Source, onnx: Path, engines: Mapping[str, Path], tuned: Mapping[Goal, Candidate]
) -> list[Contender]:
    """Everyone, in the order of the table.

    Args:
        source: the network.
        onnx: its FP32 graph.
        engines: quantized models by the name of what made them.
        tuned: what ov-int8 was tuned to, by goal.
    """
    size = source.preprocess.size

    def torch_runner(compiled: bool, goal: Goal) -> tuple[Runner, int]:
        require_package("torch", "export", "the reference")
        weights = source.weights
        assert weights is not None

        def module() -> Any:
            import torch

            made = reference.fold_batchnorm(reference.load(weights).eval())
            return torch.compile(made) if compiled else made

        shapes = TensorSpec("image", (1, 3, *size)), TensorSpec("scores", (1, None))
        return TorchRunner(module, *shapes, "torch, compiled" if compiled else "torch"), 1

    def runtime(graph: Path, goal: Goal) -> tuple[Runner, int]:
        return judging.OnnxRuntimeRunner(graph, (1, 3, *size)), 1

    def openvino(target: GraphTarget, graph: Path, goal: Goal) -> tuple[Runner, int]:
        return target.open_graph(graph, (), RunOptions(goal=goal)), 1

    def best(graph: Path, goal: Goal) -> tuple[Runner, int]:
        chosen = tuned.get(goal, DEFAULT)
        options = RunOptions(goal=goal, batch=chosen.batch, settings=chosen.settings)
        return _own("ov-int8").open_graph(graph, (), options), chosen.batch

    floats, integers = Hinted("app", "fp32", None), Hinted("app", "int8", _own("ov-int8").dialect)
    part = functools.partial
    found = []
    if source.weights is not None:
        found += [
            Contender("torch-eager", "torch, FP32", part(torch_runner, False)),
            Contender("torch-compiled", "torch.compile, FP32", part(torch_runner, True)),
        ]
    found += [
        Contender("ort-fp32", "onnxruntime, FP32", part(runtime, onnx)),
        Contender("app-fp32", "OpenVINO, benchmark_app's settings", part(openvino, floats, onnx)),
        Contender("ov-fp32", "this product", part(openvino, _own("ov-fp32"), onnx)),
    ]
    if "ort-minmax" in engines:
        graph = engines["ort-minmax"]
        found.append(Contender("ort-int8", "onnxruntime, its own INT8", part(runtime, graph)))
    if competitors.NNCF in engines:
        graph = engines[competitors.NNCF]
        how = "NNCF's IR, benchmark_app's settings"
        found.append(Contender("app-nncf", how, part(openvino, integers, graph)))
    for name in ("ov-int8", "ov-int8-w4"):
        if name not in engines:
            continue
        graph = engines[name]
        if name == "ov-int8":
            how = "the same engine, benchmark_app's settings"
            found.append(Contender(BESIDE, how, part(openvino, integers, graph)))
        found.append(Contender(name, "this product", part(openvino, _own(name), graph)))
        if name == "ov-int8":
            found.append(Contender("ov-int8-tuned", "this product, tuned", part(best, graph)))
    return found


def _own(name: str) -> OpenVINO:
    found = targets.get(name)
    assert isinstance(found, OpenVINO)
    return found


def tune(
    engine: Path,
    image: Batch,
    seconds: float,
    seed: int,
    reporter: Reporter,
    clock: Clock = time.perf_counter,
) -> dict[Goal, Candidate]:
    """What an ov-int8 engine is best run with, by goal, each searched for in `seconds`."""
    target = _own("ov-int8")
    found: dict[Goal, Candidate] = {}
    for goal in GOALS:
        batches = _TUNED_BATCHES if goal == "throughput" else (1,)

        def opener(each: Candidate, goal: Goal = goal) -> Runner:
            options = RunOptions(goal=goal, batch=each.batch, settings=each.settings)
            return target.open_graph(engine, (), options)

        tried = [
            Candidate(batch, settings)
            for batch in batches
            for settings in target.candidates(RunOptions(goal=goal, batch=batch))
        ]
        plan = Plan(goal, seconds, seed=seed)
        search = Search(tried, opener, lambda size: [_repeated(image, size)], plan, clock, reporter)
        found[goal] = search.run().winner or DEFAULT
    return found


def _repeated(image: Batch, size: int) -> Batch:
    return np.ascontiguousarray(np.repeat(image, size, axis=0))


def race(
    entered: Sequence[Contender],
    goal: Goal,
    image: Batch,
    rounds: int,
    seed: int,
    reporter: Reporter,
    clock: Clock = time.perf_counter,
    seconds: float = SLICE_SECONDS,
) -> tuple[dict[str, list[float]], dict[str, int], dict[str, str]]:
    """Turns of all contenders; one that fails is out, with the turns that it had.

    Returns:
        by name: seconds a query (latency: the median of each turn) or images a second
        (throughput), turn by turn; images a query; and why one failed.
    """
    failed: dict[str, str] = {}
    open_now: list[tuple[str, Runner, list[Batch]]] = []
    sizes: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        for each in entered:
            with _noting(each.name, failed), reporter.step(f"opening {each.name}"):
                runner, size = each.make(goal)
                stack.enter_context(runner)
                batches = [_repeated(image, size)]
                runner.infer(batches[0])
                sizes[each.name] = size
                open_now.append((each.name, runner, batches))
        found: dict[str, list[float]] = {name: [] for name, _, _ in open_now}
        orders = turns.orders(len(open_now), seed)
        for _ in reporter.track(range(rounds), rounds, goal):
            for index in next(orders):
                name, runner, batches = open_now[index]
                if name in failed:
                    continue
                with _noting(name, failed):
                    if goal == "latency":
                        runner.infer(batches[0])
                        part = turns.one_by_one(runner, batches, 0.0, _QUERIES, clock)
                        found[name].append(part.median)
                    else:
                        part = turns.queued(runner, batches, seconds, 1, clock)
                        found[name].append(part.images / part.seconds)
    for name in failed:
        found.pop(name, None)
        sizes.pop(name, None)
    return found, sizes, failed


@contextlib.contextmanager
def _noting(name: str, failed: dict[str, str]) -> Iterator[None]:
    try:
        yield
    except VggdeployError as error:
        failed[name] = f"failed: {error}"
    except Exception as error:  # a compiler's own, say: it is its row that says so
        failed[name] = " ".join(f"failed: {type(error).__name__}: {error}".split())[:300]


def table(
    entered: Sequence[Contender],
    races: Mapping[Goal, tuple[dict[str, list[float]], dict[str, int], dict[str, str]]],
) -> list[Row]:
    """The rows of both races."""
    rows = []
    for each in entered:
        batch: dict[str, int] = {
            goal: races[goal][1][each.name] for goal in races if each.name in races[goal][1]
        }
        note = next(
            (races[goal][2][each.name] for goal in races if each.name in races[goal][2]), ""
        )
        row = Row(each.name, each.how, batch, note=note)
        if turns_of := races["latency"][0].get(each.name):
            row = replace(row, latency_s=tuple(turns_of))
        if turns_of := races["throughput"][0].get(each.name):
            row = replace(row, images_per_s=tuple(turns_of))
        rows.append(row)
    beside = next((row for row in rows if row.name == BESIDE), None)
    if beside is None:
        return rows
    return [
        replace(
            row,
            latency_beside=_beside(row.latency_s, beside.latency_s),
            throughput_beside=_beside(row.images_per_s, beside.images_per_s),
        )
        for row in rows
    ]


def _beside(
    own: Sequence[float], other: Sequence[float]
) -> tuple[float, float | None, float | None] | None:
    if not own or not other:
        return None
    found = bootstrap.ratio(own, other, paired=True)
    return found.value, *(found.ci95 or (None, None))


def measure(
    source: Source,
    children: Children,
    image: Batch,
    *,
    rounds: int,
    tune_seconds: float,
    seed: int,
    terminal: Terminal,
) -> dict[str, Any]:
    """Quantize, tune, race, and show the table.

    Returns:
        the result's JSON form, of the kind ``peers-latency``.
    """
    with terminal.step("FP32 graph"):
        onnx = children.float_graph()
    engines, notes = {}, {}
    for name in _QUANTIZERS:
        # The second of ours goes on from what was collected and calibrated for the first.
        before = "ov-int8" if name == "ov-int8-w4" and "ov-int8" in engines else None
        with terminal.step(f"quantizing: {name}"):
            made = children.run(name, cached_by=before)
        if made.error:
            notes[name] = made.error
        else:
            engines[name] = Path(made.engine)
    tuned = {}
    if "ov-int8" in engines:
        tuned = tune(engines["ov-int8"], image, tune_seconds, seed, terminal)
    entered = contenders(source, onnx, engines, tuned)
    races = {goal: race(entered, goal, image, rounds, seed, terminal) for goal in GOALS}
    rows = table(entered, races)
    show(terminal, rows, notes, tuned)
    return {
        "kind": "peers-latency",
        "model": source.facts(),
        "rounds": rounds,
        "seed": seed,
        "tuned": {goal: asdict(each) for goal, each in tuned.items()},
        "not_quantized": notes,
        "rows": [row.to_json() for row in rows],
        "system": {
            **machine.system(),
            "peers": {name: machine.version(name) for name in ("nncf", "onnxruntime")},
        },
    }


def cells(row: Row) -> tuple[str, ...]:
    """A row as it is shown."""

    def beside(found: tuple[float, float | None, float | None] | None) -> str:
        return "" if found is None else f"{found[0]:.3f}"

    said = row.to_json()
    return (
        row.name,
        row.how,
        "" if said["p50"] is None else f"{1e3 * said['p50']:.2f}",
        beside(row.latency_beside),
        "" if said["throughput_ips"] is None else f"{said['throughput_ips']:.2f}",
        beside(row.throughput_beside),
        str(row.batch.get("throughput", "")),
    )


def show(
    terminal: Terminal,
    rows: Sequence[Row],
    notes: Mapping[str, str],
    tuned: Mapping[Goal, Candidate],
) -> None:
    """The table, and what there is to say of it."""
    terminal.table(
        ("", "", "latency\nms", f"beside\n{BESIDE}", "images/s", f"beside\n{BESIDE}", "batch"),
        [cells(row) for row in rows],
        left=2,
    )
    for text in (
        "medians of turns, all contenders in each round, in drawn orders; latency at batch 1,",
        f"throughput with a full queue; beside: over {BESIDE}, of paired turns",
    ):
        terminal.line(text, style="dim")
    for goal, chosen in tuned.items():
        words = settings_words(asdict(chosen.settings))
        terminal.line(f"tuned for {goal}: batch {chosen.batch}, {words}")
    for row in rows:
        for metric, found in (
            ("latency", row.latency_beside),
            ("throughput", row.throughput_beside),
        ):
            if row.name == "ov-int8-tuned" and found is not None:
                sure = f" (95%: {found[1]:.3f} to {found[2]:.3f})" if found[1] is not None else ""
                terminal.line(f"{metric} of {row.name} / {BESIDE}: {found[0]:.3f}{sure}")
        if row.note:
            terminal.line(f"{row.name}: {row.note}", style="red")
    for name, why in notes.items():
        terminal.line(f"{name} is not there: {why}", style="red")
