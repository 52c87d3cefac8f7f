"""How long opening a bundle takes, every digest checked: ``python -m vggdeploy.benchmarks.checking
BUNDLE``.

The files are in memory after the first time. It is to take at most 0.3 s for a full ov-int8 bundle,
engine and graph of 138 MB each. A file is hashed from its beginning to its end, so no number of
cores opens a bundle faster than the largest one is hashed; the result says how long that takes, and
how long all files would one after the other.
"""

from __future__ import annotations

import time
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vggdeploy import bundle as bundles
from vggdeploy import cli, digests, flags, machine, results
from vggdeploy.manifest import files

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BOUND_S = 0.3
RUNS = 9


def measure(path: Path, runs: int) -> dict[str, Any]:
    """Open the bundle at `path` `runs` times after one that brings its files into memory."""
    opened = bundles.open_bundle(path)
    listed = files(opened.manifest)
    largest = max(listed, key=lambda name: listed[name]["size"])

    def one_by_one() -> None:
        for name in listed:
            digests.sha256_file(path / name)

    steps: dict[str, Callable[[], object]] = {
        "open_s": lambda: bundles.open_bundle(path),
        "largest_s": lambda: digests.sha256_file(path / largest),
        "one_by_one_s": one_by_one,
    }
    # In turns, so that a machine that slows down slows all of them.
    samples: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(runs):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            samples[name].append(time.perf_counter() - begin)
    medians = {name: median(values) for name, values in samples.items()}
    return {
        "kind": "checking",
        "bundle": str(path),
        "bytes": sum(said["size"] for said in listed.values()),
        "largest": {"name": largest, "bytes": listed[largest]["size"]},
        **medians,
        "hash_bps": listed[largest]["size"] / medians["largest_s"],
        "bound_s": BOUND_S,
        "met": medians["open_s"] <= BOUND_S,
        "samples": samples,
        "system": machine.system(),
    }


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    bundle: flags.BundlePath,
    runs: Annotated[int, typer.Option(min=1, help="Times to open it.")] = RUNS,
    json: flags.Json = None,
    force: flags.Force = False,
) -> None:
    """Measure how long checking a bundle's digests takes."""
    results.refuse_overwrite(json, force)
    result = measure(bundle, runs)
    cli.terminal.table(
        ("", "median"),
        [
            ("open the bundle", f"{result['open_s']:.3f} s"),
            (f"hash {result['largest']['name']} alone", f"{result['largest_s']:.3f} s"),
            ("hash all, one after the other", f"{result['one_by_one_s']:.3f} s"),
        ],
    )
    cli.terminal.line(
        f"{result['bytes'] / 1e6:.1f} MB checked in {result['open_s']:.3f} s, at most {BOUND_S:g} s: "
        f"{'met' if result['met'] else 'not met'}; SHA-256 runs at {result['hash_bps'] / 1e9:.2f} "
        "GB/s a core here"
    )
    results.write(result, json)


if __name__ == "__main__":
    raise SystemExit(cli.main(program=app))
