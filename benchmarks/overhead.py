"""What the harness adds to a query: ``python -m vggdeploy.benchmarks.overhead BUNDLE``.

Blocks of queries by the latency loop and by a bare loop over the runner's own compiled request, in
turn, so that both meet the same machine. A query of tens of milliseconds varies more than a
harness may add, so the loop is timed over a runner that computes nothing too: what that takes is
the harness's, whatever the machine does.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from vggdeploy import bundle as bundles
from vggdeploy import cli, execution, flags, machine, results
from vggdeploy.benchmarks import scenarios, statistics
from vggdeploy.contracts import Runner, RunOptions, TensorSpec
from vggdeploy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from vggdeploy.benchmarks.scenarios import Clock
    from vggdeploy.contracts import Batch, Outputs

BOUND = 0.002
"""What the harness may add to a query."""

QUERY_S = 0.038
"""Of a query that long: a full ov-int8 network on two cores of a current server."""

ROUNDS, BLOCK = 60, 5
NOTHING_QUERIES = 20_000


@dataclass(frozen=True)
class Overhead:
    """What was found, in seconds a query.

    Attributes:
        harness: median over blocks, by the latency loop.
        bare: by the bare loop.
        share: median of what a block of the one takes more than its neighbour of the other.
        share_ci95: an interval of it; None for few rounds.
        nothing: of the latency loop over a runner that computes nothing.
        nothing_share: of a query of `QUERY_S`.
    """

    harness: float
    bare: float
    share: float
    share_ci95: tuple[float, float] | None
    nothing: float
    nothing_share: float


class Nothing(Runner):
    """A runner that computes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.name = "nothing"
        self.input = TensorSpec("image", (1, 3, 224, 224))
        self.outputs = (TensorSpec("scores", (1, 1000)),)
        self._scores = {"scores": np.zeros((1, 1000), np.float32)}

    def _start(self) -> None: ...

    def _stop(self) -> None: ...

    def _infer(self, batch: NDArray[np.float32]) -> Outputs:
        return self._scores


def bare_loop(runner: Runner, batch: Batch) -> Callable[[int], None]:
    """A loop over the compiled request that an OpenVINO runner holds, and nothing else.

    Raises:
        ConfigError: for another backend's runner.
    """
    requests = getattr(runner, "_requests", None)
    if not requests:
        raise ConfigError(
            f"{runner.name} has no request to run bare",
            got=f"a {type(runner).__name__}",
            expected="the runner of an OpenVINO bundle",
            fix="give one",
        )
    request = requests[0]

    def loop(count: int) -> None:
        for _ in range(count):
            request.infer({0: batch}, share_inputs=True)

    return loop


def compare(
    runner: Runner,
    batch: Batch,
    bare: Callable[[int], None],
    rounds: int,
    clock: Clock = time.perf_counter,
) -> tuple[list[float], list[float]]:
    """Seconds a query, block by block, of the latency loop and of the bare one."""
    stop = scenarios.Stop(0.0, BLOCK)
    ours: list[float] = []
    theirs: list[float] = []

    def harness(count: int) -> None:
        scenarios.latency(runner, [batch], stop)

    for turn in range(-1, rounds):
        # Who is first alternates, so that what one leaves in the caches favours neither.
        pair = [(harness, ours), (bare, theirs)][:: 1 if turn % 2 else -1]
        for loop, found in pair:
            before = clock()
            loop(BLOCK)
            if turn >= 0:
                found.append((clock() - before) / BLOCK)
    return ours, theirs


def of_nothing(queries: int = NOTHING_QUERIES, clock: Clock = time.perf_counter) -> float:
    """Seconds a query of the latency loop over a runner that computes nothing."""
    with Nothing() as runner:
        batch = np.zeros((1, 3, 224, 224), np.float32)
        before = clock()
        scenarios.latency(runner, [batch], scenarios.Stop(0.0, queries))
        return (clock() - before) / queries


def summarize(ours: list[float], theirs: list[float], nothing: float) -> Overhead:
    """The figures of both series of blocks."""
    shares = sorted(a / b - 1 for a, b in zip(ours, theirs, strict=True))
    return Overhead(
        statistics.percentile(sorted(ours), 50),
        statistics.percentile(sorted(theirs), 50),
        statistics.percentile(shares, 50),
        statistics.interval(shares, 50),
        nothing,
        nothing / QUERY_S,
    )


def measure(path: Path, rounds: int) -> dict[str, Any]:
    """Measure the harness on a bundle."""
    opened = bundles.open_bundle(path)
    target = execution.native(opened, "CPU").target
    batch = opened.batch(opened.probes().images[:1])
    with target.open(opened, RunOptions()) as runner:
        bare = bare_loop(runner, batch)
        scenarios.warm_up(runner, [batch])
        ours, theirs = compare(runner, batch, bare, rounds)
    found = summarize(ours, theirs, of_nothing())
    return {
        "kind": "overhead",
        "bundle": str(path),
        **asdict(found),
        "bound": BOUND,
        "met": found.nothing_share <= BOUND and found.share <= BOUND,
        "blocks": {"harness": ours, "bare": theirs, "queries": BLOCK},
        "system": machine.system(),
    }


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    bundle: flags.BundlePath,
    rounds: Annotated[int, typer.Option(min=1, help="Blocks of each, in turn.")] = ROUNDS,
    json: flags.Json = None,
    force: flags.Force = False,
) -> None:
    """Measure what the harness adds to a query."""
    results.refuse_overwrite(json, force)
    with cli.terminal.step("timing both loops in turn"):
        result = measure(bundle, rounds)
    interval = result["share_ci95"]
    cli.terminal.table(
        ("the harness adds", "", "of a query"),
        [
            (
                f"to a bare loop, {rounds} blocks of {BLOCK} each",
                f"{(result['harness'] - result['bare']) * 1e6:.1f} us",
                f"{result['share']:.3%}"
                + (f" (95%: {interval[0]:.3%} to {interval[1]:.3%})" if interval else ""),
            ),
            (
                f"to nothing, of {QUERY_S * 1e3:g} ms",
                f"{result['nothing'] * 1e6:.1f} us",
                f"{result['nothing_share']:.3%}",
            ),
        ],
    )
    cli.terminal.line(f"at most {BOUND:.1%}: {'met' if result['met'] else 'not met'}")
    results.write(result, json)


if __name__ == "__main__":
    raise SystemExit(cli.main(program=app))
