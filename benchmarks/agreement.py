"""One bundle's latency by three harnesses: ``python -m vggdeploy.benchmarks.agreement BUNDLE``.

This project's ``latency``, MLPerf's LoadGen (SingleStream) over the same runner, and OpenVINO's own
``benchmark_app`` with the same properties, a turn of each in every round, so that all meet the same
machine. Their medians are to agree within 3%.
"""

from __future__ import annotations

import json as json_module
import re
import subprocess
import tempfile
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vggdeploy import bundle as bundles
from vggdeploy import cli, execution, flags, machine, results
from vggdeploy.benchmarks import benchmark_app, mlperf, scenarios, statistics
from vggdeploy.contracts import RunOptions
from vggdeploy.errors import ConfigError, ResultError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vggdeploy.bundle import Bundle
    from vggdeploy.contracts import Runner

WITHIN = 0.03
ROUNDS, SECONDS = 5, 5.0

_MEDIAN = re.compile(r"Median:\s+([\d.]+) (s|ms|us)\b")
_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}


def own(runner: Runner, opened: Bundle, seconds: float) -> float:
    """The median by this project's loop."""
    batches = opened.probe_batches(1)
    found = scenarios.latency(runner, batches, scenarios.Stop(seconds, 30))
    if found.partial:
        raise KeyboardInterrupt
    return statistics.percentile(sorted(found.seconds), 50)


def loadgen(runner: Runner, opened: Bundle, seconds: float) -> float:
    """The median by LoadGen's SingleStream."""
    batches = opened.probe_batches(1)
    expected = scenarios.latency(runner, batches, scenarios.Stop(0.0, 5)).seconds
    plan = mlperf.Plan("latency", seconds, expected_s=median(expected))
    with tempfile.TemporaryDirectory() as logs:
        found, said = mlperf.run(runner, batches, plan, Path(logs))
    if found.partial:
        raise KeyboardInterrupt
    return float(said["percentiles_s"]["50"])


def app_median(output: str) -> float:
    """The median, in seconds, from what ``benchmark_app`` prints.

    Raises:
        ResultError: when it is not there.
    """
    found = _MEDIAN.search(output)
    if found is None:
        raise ResultError(
            "benchmark_app printed no median",
            got=(output.strip().splitlines() or ["nothing"])[-1],
            expected="its line of the median latency",
            fix="run it by hand on the bundle's model.xml",
        )
    return float(found[1]) * _UNITS[found[2]]


def theirs(opened: Bundle, properties: Mapping[str, Any], seconds: float) -> float:
    """The median by ``benchmark_app``, with the properties that this project's runner has."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "properties.json"
        config.write_text(json_module.dumps({"CPU": dict(properties)}), encoding="utf-8")
        command = benchmark_app.command(
            opened, "latency", seconds, "-api", "sync", "-load_config", str(config)
        )
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    return app_median(done.stdout + done.stderr)


def interleaved(ways: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Each way in every round; who begins moves on."""
    names = list(ways)
    found: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        at = turn % len(names)
        for name in names[at:] + names[:at]:
            found[name].append(ways[name]())
    return found


def spread(found: Mapping[str, list[float]]) -> float:
    """By how much the largest median is above the smallest, as a share."""
    medians = [median(values) for values in found.values()]
    return max(medians) / min(medians) - 1


def measure(path: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """Measure a bundle by all three."""
    mlperf.available()
    opened = bundles.open_bundle(path)
    target = execution.native(opened, "CPU").target
    configuration = getattr(target, "configuration", None)
    if configuration is None:
        raise ConfigError(
            f"benchmark_app does not run bundle {path}",
            got=f"one of {opened.target}",
            expected="one of an OpenVINO target",
            fix="give another",
        )
    options = RunOptions()
    properties = {key: _text(value) for key, value in configuration(options).items()}
    with target.open(opened, options) as runner:
        scenarios.warm_up(runner, opened.probe_batches(1))
        found = interleaved(
            {
                "latency": lambda: own(runner, opened, seconds),
                "--mlperf SingleStream": lambda: loadgen(runner, opened, seconds),
                "benchmark_app": lambda: theirs(opened, properties, seconds),
            },
            rounds,
        )
    return {
        "kind": "agreement",
        "bundle": str(path),
        "medians_s": {name: median(values) for name, values in found.items()},
        "rounds_s": found,
        "spread": spread(found),
        "within": WITHIN,
        "met": spread(found) <= WITHIN,
        "properties": properties,
        "system": machine.system(),
    }


def _text(value: Any) -> str:
    """A property as benchmark_app reads it."""
    return ("YES" if value else "NO") if isinstance(value, bool) else str(value)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    bundle: flags.BundlePath,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each.")] = ROUNDS,
    seconds: flags.Seconds = SECONDS,
    json: flags.Json = None,
    force: flags.Force = False,
) -> None:
    """Measure one bundle's latency by three harnesses."""
    results.refuse_overwrite(json, force)
    with cli.terminal.step("measuring by each in turn"):
        result = measure(bundle, rounds, seconds)
    cli.terminal.table(
        ("measured by", "median", *(f"round {turn + 1}" for turn in range(rounds))),
        [
            (name, f"{value * 1e3:.3f} ms", *(f"{v * 1e3:.3f}" for v in result["rounds_s"][name]))
            for name, value in result["medians_s"].items()
        ],
    )
    cli.terminal.line(
        f"{result['spread']:.2%} apart, at most {WITHIN:.0%}: "
        f"{'met' if result['met'] else 'not met'}"
    )
    results.write(result, json)


if __name__ == "__main__":
    raise SystemExit(cli.main(program=app))
