"""What the TensorRT runner adds to a query:
``python -m vggdeploy.benchmarks.trt_overhead --driver .venv/cuda_host/libcuda.so.1``.

On the CUDA driver of host memory that ``make test-cuda`` builds, with an engine that computes
nothing, a query is copies and bookkeeping. Copies of the same bytes by themselves are timed in turn
with it; what is left is the runner's, PyCUDA's and that driver's. The queries go on to show that
nothing is left behind.
"""

from __future__ import annotations

import ctypes
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from vggdeploy import cli, machine, results
from vggdeploy.contracts import RunOptions
from vggdeploy.errors import MissingError
from vggdeploy.targets.trt_profiler import Profiler

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from vggdeploy.targets.trt_runner import TensorRTRunner

BOUND_S = 50e-6
"""What the runner may add to a query."""

TURNS = 2000
QUERIES = 10_000

_KINDS = ("contexts", "current", "device", "pinned", "streams", "events", "graphs", "execs")

_PAGE_BYTES = 4096


@dataclass(frozen=True)
class _Tensor:
    name: str
    is_input: bool
    shape: tuple[int, ...]
    dtype: str = "float32"


_TENSORS = (
    _Tensor("image", True, (1, 3, 224, 224)),
    _Tensor("logits", False, (1, 1000)),
)


class _Nothing:
    """VGG's tensors, and an engine that queues no work."""

    flavour, version, module = "none", "0", SimpleNamespace()

    def deserialize(self, plan: bytes, dla_core: int | None = None) -> Any:
        return SimpleNamespace(
            set_input_shape=lambda name, shape: True,
            set_tensor_address=lambda name, address: True,
            get_tensor_shape=lambda name: next(t.shape for t in _TENSORS if t.name == name),
            execute_async_v3=lambda stream: True,
        )

    def io(self, engine: Any) -> tuple[_Tensor, ...]:
        return _TENSORS

    def profile(self, engine: Any, name: str) -> tuple[int, int, int]:
        return 1, 1, 1

    def execution_context(self, engine: Any, *, graphs: bool = True) -> tuple[Any, bool]:
        return engine, False

    def layers(self, engine: Any) -> tuple[()]:
        return ()

    def profiler(self, context: Any) -> Profiler:
        return Profiler(self.module, context)


@dataclass(frozen=True)
class Overhead:
    """Medians over the turns, in seconds; and what 10,000 queries left behind.

    Attributes:
        query: of a whole query.
        copies: of its copies alone.
        added: of the difference, turn by turn.
        leaked: what there is more of after the queries than before, by kind.
        grown_bytes: of resident memory, meanwhile.
    """

    goal: str
    query: float
    copies: float
    added: float
    leaked: dict[str, int]
    grown_bytes: int


def copies(batch: NDArray[np.float32]) -> Callable[[], None]:
    """The copies of a query: to page-locked memory, to the device, back, and to the result."""
    staged, there = np.empty_like(batch), np.empty_like(batch)
    result, back = (np.zeros(_TENSORS[1].shape, np.float32) for _ in range(2))

    def copy() -> None:
        np.copyto(staged, batch)
        np.copyto(there, staged)
        np.copyto(back, result)
        back.copy()

    return copy


def interleaved(
    one: Callable[[], Any], other: Callable[[], Any], turns: int
) -> NDArray[np.float64]:
    """Seconds of both, ``[turns, 2]``, in turn, so that both meet the same machine."""
    found = np.empty((turns, 2))
    for turn in range(-turns // 10, turns):
        start = time.perf_counter()
        one()
        middle = time.perf_counter()
        other()
        if turn >= 0:
            found[turn] = middle - start, time.perf_counter() - middle
    return found


def measure(runner: TensorRTRunner, goal: str, driver: ctypes.CDLL, queries: int) -> Overhead:
    """Time queries of an open runner, and look for what they leave behind."""
    batch = np.random.default_rng(0).random(_TENSORS[0].shape, np.float32)

    def through_the_queue() -> None:
        for _ in runner.infer_many([batch]):
            pass

    query = through_the_queue if goal == "throughput" else lambda: runner.infer(batch)
    seconds = interleaved(query, copies(batch), TURNS)
    before, size = live(driver), resident_bytes()
    for _ in range(queries):
        query()
    after = live(driver)
    return Overhead(
        goal,
        query=float(median(seconds[:, 0])),
        copies=float(median(seconds[:, 1])),
        added=float(median(seconds[:, 0] - seconds[:, 1])),
        leaked={kind: after[kind] - before[kind] for kind in _KINDS if after[kind] != before[kind]},
        grown_bytes=resident_bytes() - size,
    )


def live(driver: ctypes.CDLL) -> dict[str, int]:
    """What the driver of host memory holds, by kind."""
    driver.host_live.restype = ctypes.c_long
    return {kind: int(driver.host_live(kind.encode())) for kind in _KINDS}


def resident_bytes() -> int:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES


def load(path: Path) -> ctypes.CDLL:
    """The driver of host memory, in front of any other.

    Raises:
        MissingError: when it is not there, or is another driver.
    """
    try:
        found = ctypes.CDLL(str(path.resolve()), mode=ctypes.RTLD_GLOBAL)
        _ = found.host_live
    except (OSError, AttributeError) as error:
        raise MissingError(
            f"{path} is not the CUDA driver of host memory",
            got=error,
            expected="what 'make test-cuda' builds",
            fix="make test-cuda",
        ) from error
    return found


def main(
    driver: Annotated[Path, typer.Option(help="The CUDA driver of host memory.")],
    queries: Annotated[int, typer.Option(help="Queries that shall leave nothing.")] = QUERIES,
    json: Annotated[str | None, typer.Option(help="Write the result as JSON.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
) -> None:
    """Measure what the TensorRT runner adds to a query, copies aside."""
    results.refuse_overwrite(json, force)
    library = load(driver)
    # Imports PyCUDA, which finds the driver that is loaded.
    from vggdeploy.targets.trt_runner import TensorRTRunner

    rows: list[Overhead] = []
    with tempfile.NamedTemporaryFile(suffix=".engine") as plan:
        for goal in ("latency", "throughput"):
            options = RunOptions(device="GPU", goal=goal)
            runner = TensorRTRunner(_Nothing(), Path(plan.name), options, name="nothing")
            with runner, cli.terminal.step(f"{goal}, {queries} queries"):
                rows.append(measure(runner, goal, library, queries))
    left = {kind: count for kind, count in live(library).items() if count}
    cli.terminal.table(
        ("one query", "all\nus", "copies\nus", "added\nus", "bound\nus", "leaked", "grown\nkB"),
        [
            (
                row.goal,
                *(f"{1e6 * value:.1f}" for value in (row.query, row.copies, row.added, BOUND_S)),
                ", ".join(f"{kind} {count:+}" for kind, count in row.leaked.items()) or "nothing",
                f"{row.grown_bytes / 1e3:.0f}",
            )
            for row in rows
        ],
    )
    cli.terminal.line(f"left after closing: {left or 'nothing'}")
    results.write(
        {
            "kind": "trt_overhead",
            "bound_s": BOUND_S,
            "rows": [asdict(row) for row in rows],
            "left": left,
            "queries": queries,
            "system": {**machine.system(), "pycuda": machine.version("pycuda")},
        },
        json,
    )


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command()(main)

if __name__ == "__main__":
    raise SystemExit(cli.main(program=app))
