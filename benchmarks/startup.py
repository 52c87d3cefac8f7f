"""How long ``vggdeploy bench`` takes from the command to its first query:
``python -m vggdeploy.benchmarks.startup BUNDLE``.

Each run is a new process, on files that the system has in memory after the first. The figure is to
be at most 1.5 s on a full ov-int8 bundle, in an installation for the device: nothing of what only
builds need may be imported on the way, and the result says what was.
"""

from __future__ import annotations

import json as json_module
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vggdeploy import cli, flags, machine, results
from vggdeploy.errors import ResultError

if TYPE_CHECKING:
    from pathlib import Path

BOUND_S = 1.5
RUNS = 7

FOR_BUILDS = ("torch", "onnx", "onnx_ir", "onnxscript", "sklearn", "scipy", "nncf", "onnxruntime")

# Ends the process when its first query has ended, and says when it began and ended; the clock is
# the system's, the same for all processes.
_CHILD = """
import json, os, sys, time
from vggdeploy import cli, contracts

infer = contracts.Runner.infer

def first(runner, batch):
    began = time.clock_gettime(time.CLOCK_MONOTONIC)
    infer(runner, batch)
    ended = time.clock_gettime(time.CLOCK_MONOTONIC)
    print(json.dumps({"began": began, "ended": ended, "modules": list(sys.modules)}), flush=True)
    os._exit(0)

contracts.Runner.infer = first
raise SystemExit(cli.main(sys.argv[1:]))
"""


@dataclass(frozen=True)
class Start:
    """One start.

    Attributes:
        began: seconds from the command to the beginning of the first query.
        ended: to its end.
        for_builds: packages that were imported and that only builds need.
    """

    began: float
    ended: float
    for_builds: tuple[str, ...]


def start(bundle: Path) -> Start:
    """Start the command in a process of its own.

    Raises:
        ResultError: when it does not come to a query.
    """
    command = [sys.executable, "-c", _CHILD, "bench", str(bundle)]
    begin = time.clock_gettime(time.CLOCK_MONOTONIC)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        said = json_module.loads(done.stdout)
    except ValueError as error:
        raise ResultError(
            "bench did not come to its first query",
            got=(done.stderr.strip().splitlines() or ["nothing"])[-1],
            expected="its result as JSON",
            fix=f"see what 'vggdeploy bench {bundle}' says",
        ) from error
    modules = set(said["modules"])
    return Start(
        said["began"] - begin,
        said["ended"] - begin,
        tuple(name for name in FOR_BUILDS if name in modules),
    )


def measure(bundle: Path, runs: int) -> dict[str, Any]:
    """Start it `runs` times after one that brings the files into memory."""
    start(bundle)
    starts = [start(bundle) for _ in range(runs)]
    return {
        "kind": "startup",
        "bundle": str(bundle),
        "first_query_s": median(one.began for one in starts),
        "first_result_s": median(one.ended for one in starts),
        "bound_s": BOUND_S,
        "met": median(one.began for one in starts) <= BOUND_S,
        "starts": [asdict(one) for one in starts],
        "system": machine.system(),
    }


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    bundle: flags.BundlePath,
    runs: Annotated[int, typer.Option(min=1, help="Processes to start.")] = RUNS,
    json: flags.Json = None,
    force: flags.Force = False,
) -> None:
    """Measure how soon bench's first query comes."""
    results.refuse_overwrite(json, force)
    result = measure(bundle, runs)
    cli.terminal.table(
        ("start", "first query", "its result"),
        [
            (str(turn), f"{one['began']:.3f} s", f"{one['ended']:.3f} s")
            for turn, one in enumerate(result["starts"], start=1)
        ],
    )
    loaded = sorted({name for one in result["starts"] for name in one["for_builds"]})
    cli.terminal.line(
        f"median {result['first_query_s']:.3f} s to the first query, at most {BOUND_S:g} s: "
        f"{'met' if result['met'] else 'not met'}; of what builds need, "
        f"{', '.join(loaded) or 'nothing'} was imported"
    )
    results.write(result, json)


if __name__ == "__main__":
    raise SystemExit(cli.main(program=app))
