"""How long ``vggdeploy verify`` takes on a bundle's own probes:
``python -m vggdeploy.benchmarks.verifying BUNDLE``.

Each run is a new process, from the command to its end. Before every second one the system is asked
to drop the files of the bundle, of Python and of its packages from memory (posix_fadvise(2)), where
they are not after a start of the device either; what this process has mapped stays, Python and numpy
among it. It is to take at most 5 s on a full ov-int8 bundle, in an installation for the device.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

import vggdeploy
from vggdeploy import cli, flags, machine, results
from vggdeploy.errors import ResultError

if TYPE_CHECKING:
    from collections.abc import Iterable

BOUND_S = 5.0
RUNS = 5


def drop(folders: Iterable[Path]) -> bool:
    """Ask the system to drop every file in `folders` from memory; whether it can be asked."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for file in (file for folder in folders for file in folder.rglob("*") if file.is_file()):
        with contextlib.suppress(OSError), file.open("rb", buffering=0) as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def timed(bundle: Path) -> float:
    """Seconds from the command to its end.

    Raises:
        ResultError: when it fails.
    """
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "vggdeploy", "verify", str(bundle)],
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - begin
    if done.returncode:
        raise ResultError(
            "verify failed",
            got=(done.stderr.strip().splitlines() or ["nothing"])[-1],
            expected="a bundle that verifies",
            fix=f"see what 'vggdeploy verify {bundle}' says",
        )
    return seconds


def measure(bundle: Path, runs: int) -> dict[str, Any]:
    """Verify it `runs` times with its files in memory and as often without, in turns, after one run
    that brings them there."""
    paths = sysconfig.get_paths()
    installed = {Path(paths[name]) for name in ("stdlib", "purelib", "platlib")}
    needed = [bundle, *installed, Path(vggdeploy.__file__).parent]
    timed(bundle)
    warm, cold = [], []
    for _ in range(runs):
        if drop(needed):
            cold.append(timed(bundle))
        warm.append(timed(bundle))
    judged = median(cold or warm)
    return {
        "kind": "verifying",
        "bundle": str(bundle),
        "cold_s": median(cold) if cold else None,
        "warm_s": median(warm),
        "bound_s": BOUND_S,
        "met": judged <= BOUND_S,
        "samples": {"cold_s": cold, "warm_s": warm},
        "system": machine.system(),
    }


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    bundle: flags.BundlePath,
    runs: Annotated[int, typer.Option(min=1, help="Processes to start, of each kind.")] = RUNS,
    json: flags.Json = None,
    force: flags.Force = False,
) -> None:
    """Measure how long verify takes on the probes, its files in memory or not."""
    results.refuse_overwrite(json, force)
    result = measure(bundle, runs)
    cli.terminal.table(
        ("files", "median", "slowest"),
        [
            (name, f"{median(seconds):.2f} s", f"{max(seconds):.2f} s")
            for name, seconds in (
                ("on the disk", result["samples"]["cold_s"]),
                ("in memory", result["samples"]["warm_s"]),
            )
            if seconds
        ],
    )
    cli.terminal.line(
        f"at most {BOUND_S:g} s{'' if result['cold_s'] else ', files in memory'}: "
        f"{'met' if result['met'] else 'not met'}"
    )
    results.write(result, json)


if __name__ == "__main__":
    raise SystemExit(cli.main(program=app))
