"""The report of ``benchmarks/on_gpu.sh``: its JSON results as one Markdown page beside them."""

from __future__ import annotations

import re
from pathlib import Path  # noqa: TC003 - typer looks it up
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vggdeploy import atomic, cli, results
from vggdeploy.errors import ResultError
from vggdeploy.terminal import duration

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

REPORT = "report.md"
_STEP = re.compile(r"(?P<target>trt-\w+)-(?P<step>build|verify|gate|bench-(?P<batch>\d+))\.json")


def collect(folder: Path) -> dict[str, dict[str, Any]]:
    """The results of a folder, by target and step.

    Raises:
        ResultError: when there is none, or one cannot be read.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.json")):
        if match := _STEP.fullmatch(path.name):
            found.setdefault(match["target"], {})[match["step"]] = results.read(path)
    if not found:
        raise ResultError(
            f"{folder} holds no results of TensorRT targets",
            got=f"{len(list(folder.glob('*.json')))} other JSON files",
            expected="files such as trt-int8-bench-1.json",
            fix="run benchmarks/on_gpu.sh",
        )
    return found


def markdown(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The page: a table of accuracy, one of speed, and the machine."""
    lines = ["# VGG16 on this GPU", "", *_table(_ACCURACY, _accuracy(found)), ""]
    speed = list(_speed(found))
    if speed:
        lines += [*_table(_SPEED, speed), "", *_machine(found), ""]
    return "\n".join(lines)


_ACCURACY = ("target", "engine", "execution", "images", "agreement", "top-1", "SQNR", "gate")
_SPEED = ("target", "batch", "median", "p99", "images/s", "GMAC/s", "of the peak", "stable")


def _accuracy(found: Mapping[str, Mapping[str, Any]]) -> Iterable[tuple[str, ...]]:
    for target, steps in found.items():
        if "verify" not in steps:
            continue
        verify = steps["verify"]
        parity, accuracy = verify["parity"], verify["accuracy"]
        yield (
            target,
            f"{verify['engine_bytes'] / 1e6:.1f} MB",
            verify["execution"],
            f"{parity['n']:,}",
            f"{parity['top1_agreement']:.4f}",
            f"{accuracy['top1']:.2%}" if accuracy else "",
            f"{parity['sqnr_db']:.1f} dB",
            steps["gate"]["verdict"] if "gate" in steps else "",
        )


def _speed(found: Mapping[str, Mapping[str, Any]]) -> Iterable[tuple[str, ...]]:
    for target, steps in found.items():
        benched = [steps[step] for step in steps if step.startswith("bench-")]
        for bench in sorted(benched, key=lambda result: int(result["batch"])):
            budget = bench["budget"]
            yield (
                target,
                str(bench["batch"]),
                duration(bench["latency_s"]["p50"]),
                duration(bench["latency_s"]["p99"]),
                f"{bench['throughput_ips']:.1f}",
                f"{budget['achieved_macs_per_s'] / 1e9:.0f}",
                f"{budget['utilisation']:.1%} ({budget['peak_from']})",
                "yes" if bench["stable"] else "; ".join(bench["unstable_because"]),
            )


def _machine(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    bench = next(s[step] for s in found.values() for step in s if step.startswith("bench-"))
    device = ", ".join(f"{key} {value}" for key, value in bench["device"].items())
    system = bench["system"]
    return [f"{system['cpu']}, {system['system']}, Python {system['python']}.", "", f"{device}."]


def _table(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    head = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return head + [f"| {' | '.join(row)} |" for row in rows]


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the results are.")],
) -> None:
    """Write the report of a folder of results."""
    page = folder / REPORT
    atomic.write_text(page, markdown(collect(folder)))
    cli.terminal.line(f"wrote {page}", style="bold")


if __name__ == "__main__":
    raise SystemExit(cli.main(program=app))
