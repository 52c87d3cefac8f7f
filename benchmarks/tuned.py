"""A tuned bundle beside OpenVINO's own benchmark_app: ``python -m vggdeploy.benchmarks.tuned BUNDLE``.

benchmark_app runs the bundle's own ``model.xml``, with ``-hint throughput`` and with ``-hint
latency``; ``vggdeploy bench`` runs the same engine with what the bundle was tuned to. Every run is a
process of its own. In each round all four have a turn, in an order that is drawn and then goes
backwards, and ratios are of the same round, so that a machine that slows down touches both sides.

::

    vggdeploy tune BUNDLE --goal latency
    vggdeploy tune BUNDLE --goal throughput
    python -m vggdeploy.benchmarks.tuned BUNDLE --json tuned.json
"""

from __future__ import annotations

import json as json_module
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vggdeploy import bundle, cli, machine, results, speed
from vggdeploy.benchmarks import benchmark_app, bootstrap, turns
from vggdeploy.benchmarks.tune import GOALS
from vggdeploy.errors import ConfigError, ModelError, require_package
from vggdeploy.targets.openvino import ENGINE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vggdeploy.bundle import Bundle
    from vggdeploy.contracts import Reporter

WANTED = {"throughput": 1.06, "latency": 1.0}
"""What tuning has to reach beside benchmark_app: at least so much throughput, at most so much
latency."""

MARGIN = 0.01
"""By how much a latency that is no worse may still look worse: two runs of one thing are never equal,
and what cannot be told from benchmark_app's within a percent is no worse."""

_SIDES = [(side, goal) for goal in GOALS for side in ("app", "ours")]


def require_tuned(opened: Bundle) -> dict[str, Any]:
    """What a bundle was tuned to here, by goal.

    Raises:
        ConfigError: where it was not, with the command that tunes it.
    """
    found = {}
    target = speed.native(opened, "CPU", "this")
    for goal in GOALS:
        choice, _ = speed.tuned(opened, target, goal, "CPU")
        if choice is None:
            raise ConfigError(
                f"bundle {opened.path} is not tuned for {goal} on this machine",
                got="no settings that were found here",
                expected="those of 'vggdeploy tune'",
                fix=f"vggdeploy tune {opened.path} --goal {goal}",
            )
        found[goal] = choice
    if ENGINE not in opened.manifest["engine"]:
        raise ConfigError(
            f"benchmark_app does not run bundle {opened.path}",
            got=f"one of {opened.target}",
            expected="one of an OpenVINO target",
            fix="give another",
        )
    return found


def app(opened: Bundle, goal: str, seconds: float, scratch: Path) -> float:
    """Images a second, or seconds of the median query, as benchmark_app says them."""
    report = scratch / "benchmark_report.json"
    report.unlink(missing_ok=True)  # of the round before
    options = ("-report_type", "no_counters", "-json_stats", "-report_folder", str(scratch))
    _run(benchmark_app.command(opened, goal, seconds, *options), "benchmark_app")
    return read_report(report, goal)


def read_report(path: Path, goal: str) -> float:
    """The figure in a report of benchmark_app, which counts in milliseconds.

    Raises:
        ModelError: when it is not there.
    """
    try:
        said = json_module.loads(path.read_text())["execution_results"]
        figure = float(said["throughput"] if goal == "throughput" else said["latency (ms)"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            "benchmark_app's report cannot be read",
            got=f"{type(error).__name__}: {error}",
            expected="its -json_stats",
            fix="install an openvino whose benchmark_app has them",
        ) from error
    return figure if goal == "throughput" else figure / 1e3


def ours(opened: Bundle, goal: str, seconds: float, scratch: Path) -> float:
    """The same of ``vggdeploy bench``."""
    out = scratch / "bench.json"
    command = [
        sys.executable, "-m", "vggdeploy", "bench", str(opened.path), "--scenario", goal,
        "--seconds", str(seconds), "--json", str(out), "--force",
    ]  # fmt: skip
    _run(command, "vggdeploy bench")
    said = results.read(out)
    return float(said["throughput_ips"] if goal == "throughput" else said["latency_s"]["p50"])


def _run(command: Sequence[str], name: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["nothing"]
        raise ModelError(
            f"{name} ended with {done.returncode}",
            got=said[-1][:300],
            expected="exit code 0",
            fix="run it by hand: " + " ".join(command),
        )


def measure(
    run: Callable[[str, str], float], rounds: int, seed: int, reporter: Reporter
) -> dict[tuple[str, str], list[float]]:
    """The figures of `run` (side, goal), round by round."""
    found: dict[tuple[str, str], list[float]] = {each: [] for each in _SIDES}
    orders = turns.orders(len(_SIDES), seed)
    for _ in reporter.track(range(rounds), rounds, "benchmark_app and bench in turn"):
        for index in next(orders):
            found[_SIDES[index]].append(run(*_SIDES[index]))
    return found


def judge(found: Mapping[tuple[str, str], Sequence[float]], seed: int) -> list[dict[str, Any]]:
    """For each goal, ours over benchmark_app's, and whether that is what was wanted: ``met`` or
    ``not met`` where the whole interval says so, else ``not shown``."""
    rows = []
    for goal in GOALS:
        ratio = bootstrap.ratio(found["ours", goal], found["app", goal], paired=True, seed=seed)
        low, high = ratio.ci95 or (0.0, float("inf"))
        wanted = WANTED[goal]
        if goal == "throughput":
            met, missed = low >= wanted, high < wanted
        else:
            met, missed = high <= wanted + MARGIN, low > wanted
        rows.append(
            {
                "goal": goal,
                "ours": list(found["ours", goal]),
                "benchmark_app": list(found["app", goal]),
                "ratio": ratio.value,
                "ci95": list(ratio.ci95) if ratio.ci95 else None,
                "wanted": wanted,
                "verdict": "met" if met else "not met" if missed else "not shown",
            }
        )
    return rows


def main(
    path: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A tuned bundle of OpenVINO.")],
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each; six for an interval.")] = 10,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each turn.")] = 10.0,
    seed: Annotated[int, typer.Option(help="Draws the orders, and of the bootstrap.")] = 0,
    json: Annotated[str | None, typer.Option(help="Write the result as JSON.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
) -> None:
    """Measure a tuned bundle and OpenVINO's benchmark_app in turn."""
    results.refuse_overwrite(json, force)
    terminal = cli.terminal
    require_package("openvino", "openvino", "benchmark_app")
    opened = bundle.open_bundle(path)
    choices = require_tuned(opened)
    with tempfile.TemporaryDirectory(prefix="vggdeploy-") as scratch:
        sides = {"app": app, "ours": ours}

        def run(side: str, goal: str) -> float:
            return sides[side](opened, goal, seconds, Path(scratch))

        rows = judge(measure(run, rounds, seed, terminal), seed)
    show(rows, choices)
    results.write(
        {
            "kind": "tuned",
            "bundle": str(path),
            "target": opened.target,
            "digest": opened.manifest["digest"],
            "rounds": rounds,
            "seconds": seconds,
            "rows": rows,
            "system": machine.system(),
        },
        json,
    )


def show(rows: Sequence[Mapping[str, Any]], choices: Mapping[str, Any]) -> None:
    """The table."""
    from dataclasses import asdict
    from statistics import median

    from vggdeploy.bench_table import settings_words
    from vggdeploy.terminal import duration

    table = []
    for row in rows:
        goal = row["goal"]
        ends = row["ci95"]
        table.append(
            (
                goal,
                settings_words(asdict(choices[goal].settings)),
                str(choices[goal].batch),
                *(
                    duration(median(row[side]))
                    if goal == "latency"
                    else f"{median(row[side]):.2f}/s"
                    for side in ("ours", "benchmark_app")
                ),
                f"{row['ratio']:.3f}",
                f"{ends[0]:.3f} to {ends[1]:.3f}" if ends else "too few",
                f"{row['verdict']} ({row['wanted']:g})",
            )
        )
    cli.terminal.table(
        ("", "tuned to", "batch", "ours", "benchmark_app", "ratio", "95%", "wanted"), table, left=2
    )


program = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
program.command()(main)

if __name__ == "__main__":
    raise SystemExit(cli.main(program=program))
