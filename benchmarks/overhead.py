"""What the harness adds to a query: ``python -m vggdeploy.benchmarks.overhead BUNDLE``.

Blocks of queries by the latency loop and by a bare loop over the runner's own compiled request, in
turn, so that both meet the same machine. What is added is a matter of microseconds, and a query of
a full network varies by more: the slim demo network, whose queries take 3 ms, tells it closely.
A loop over a runner that computes nothing would not: it finds its own code in the caches, which an
engine has just emptied.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vggdeploy import bundle as bundles
from vggdeploy import cli, execution, flags, machine, results
from vggdeploy.benchmarks import scenarios, statistics
from vggdeploy.contracts import RunOptions
from vggdeploy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vggdeploy.benchmarks.scenarios import Clock
    from vggdeploy.contracts import Batch, Runner

BOUND = 0.002
"""What the harness may add to a query."""

QUERY_S = 0.038
"""Of a query that long: a full ov-int8 network on two cores of a current server."""

BLOCK = 5
SECONDS = 60.0


@dataclass(frozen=True)
class Overhead:
    """What was found, in seconds a query.

    Attributes:
        harness: median over blocks, by the latency loop.
        bare: by the bare loop.
        added: median of what a block of the one takes more than its neighbour of the other.
        added_ci95: an interval of it; None for few blocks.
        share: of a query of `QUERY_S`.
        verdict: whether the whole interval is within `BOUND` of such a query (``met``), beyond it
            (``not met``), or neither (``inconclusive``).
    """

    harness: float
    bare: float
    added: float
    added_ci95: tuple[float, float] | None
    share: float
    verdict: str


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
    seconds: float,
    clock: Clock = time.perf_counter,
) -> tuple[list[float], list[float]]:
    """Seconds a query, block by block, of the latency loop and of the bare one."""
    stop = scenarios.Stop(0.0, BLOCK)
    ours: list[float] = []
    theirs: list[float] = []

    def harness(count: int) -> None:
        scenarios.latency(runner, [batch], stop)

    harness(BLOCK)
    bare(BLOCK)
    began = clock()
    while not ours or clock() - began < seconds:
        # Who is first alternates, so that what one leaves in the caches favours neither.
        pair = [(harness, ours), (bare, theirs)][:: -1 if len(ours) % 2 else 1]
        for loop, found in pair:
            before = clock()
            loop(BLOCK)
            found.append((clock() - before) / BLOCK)
    return ours, theirs


def summarize(ours: list[float], theirs: list[float]) -> Overhead:
    """The figures of both series of blocks."""
    differences = sorted(a - b for a, b in zip(ours, theirs, strict=True))
    added = statistics.percentile(differences, 50)
    interval = statistics.interval(differences, 50)
    low, high = interval or (float("-inf"), float("inf"))
    allowed = BOUND * QUERY_S
    return Overhead(
        statistics.percentile(sorted(ours), 50),
        statistics.percentile(sorted(theirs), 50),
        added,
        interval,
        added / QUERY_S,
        "met" if high <= allowed else "not met" if low > allowed else "inconclusive",
    )


def measure(path: Path, seconds: float) -> dict[str, Any]:
    """Measure the harness on a bundle."""
    opened = bundles.open_bundle(path)
    target = execution.native(opened, "CPU").target
    batch = opened.batch(opened.probes().images[:1])
    with target.open(opened, RunOptions()) as runner:
        bare = bare_loop(runner, batch)
        scenarios.warm_up(runner, [batch])
        ours, theirs = compare(runner, batch, bare, seconds)
    return {
        "kind": "overhead",
        "bundle": str(path),
        **asdict(summarize(ours, theirs)),
        "bound": BOUND,
        "query_s": QUERY_S,
        "blocks": {"harness": ours, "bare": theirs, "queries": BLOCK},
        "system": machine.system(),
    }


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    bundle: flags.BundlePath,
    seconds: Annotated[
        float, typer.Option(min=0.1, help="How long both loops take, together.")
    ] = SECONDS,
    json: flags.Json = None,
    force: flags.Force = False,
) -> None:
    """Measure what the harness adds to a query."""
    results.refuse_overwrite(json, force)
    with cli.terminal.step("timing both loops in turn"):
        result = measure(bundle, seconds)
    interval = result["added_ci95"]
    allowed = BOUND * QUERY_S
    cli.terminal.table(
        ("loop", "of one query"),
        [
            ("the harness's", f"{result['harness'] * 1e6:,.1f} us"),
            ("a bare one", f"{result['bare'] * 1e6:,.1f} us"),
            (
                f"added, over {len(result['blocks']['bare'])} pairs of blocks",
                f"{result['added'] * 1e6:.1f} us"
                + (
                    f" (95%: {interval[0] * 1e6:.1f} to {interval[1] * 1e6:.1f})"
                    if interval
                    else ""
                ),
            ),
        ],
    )
    cli.terminal.line(
        f"at most {allowed * 1e6:.0f} us, {BOUND:.1%} of {QUERY_S * 1e3:g} ms: {result['verdict']}"
        + (
            "; take a bundle of shorter queries, or more --seconds"
            if result["verdict"] == "inconclusive"
            else ""
        )
    )
    results.write(result, json)


if __name__ == "__main__":
    raise SystemExit(cli.main(program=app))
