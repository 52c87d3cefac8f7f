"""Tables of ``tune`` and ``compare``, on standard error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vggdeploy.bench_table import settings_words, show_bench
from vggdeploy.benchmarks import comparison
from vggdeploy.benchmarks.search import UNTRIED
from vggdeploy.terminal import duration

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vggdeploy.terminal import Terminal

_COLOURS = {
    comparison.FASTER: "green",
    comparison.SLOWER: "red",
    comparison.NO_DIFFERENCE: "yellow",
}

_SHOWN = 12
"""Candidates of the table; all are in the JSON and in the bundle."""

_WORDS = {"slower": "slower", "percentile": "p99", "cannot be run": "failed"}


def show_tune(terminal: Terminal, result: Mapping[str, Any]) -> None:
    """What was tried, the best first, and the winner."""
    measured = [row for row in result["tried"] if row["rounds"]]
    measured.sort(key=lambda row: (row["kept_until"], not row["out"]), reverse=True)
    terminal.table(
        ("batch", "settings", "p50", "p99", "images/s", "turns", "rung", "out"),
        [
            (
                str(row["batch"]),
                settings_words(row["settings"]),
                duration(row["p50"]),
                duration(row["p99"]),
                f"{row['images_per_s']:.2f}",
                str(row["rounds"]),
                str(row["kept_until"]),
                _out(row["out"]),
            )
            for row in measured[:_SHOWN]
        ],
        f"{result['target']} on {result['device']}, for {result['goal']}"
        + (f" with p99 within {duration(result['bound_s'])}" if result["bound_s"] else ""),
        left=2,
    )
    if len(measured) > _SHOWN:
        terminal.line(f"and {len(measured) - _SHOWN} more that were dropped earlier", style="dim")
    late = sum(row["out"] == UNTRIED for row in result["tried"])
    if late:
        terminal.line(
            f"no time for {late} of {len(result['tried'])} candidates: give more --seconds",
            style="yellow",
        )
    for row in result["tried"]:
        if not row["rounds"] and row["out"] != UNTRIED:
            words = settings_words(row["settings"])
            terminal.line(f"batch {row['batch']}, {words}: {row['out']}", style="yellow")
    for text in (
        "turns are interleaved, and rung by rung the slower half is out; the figures are of all of",
        "a candidate's turns, its rank is by the rounds that it shared with the others",
    ):
        terminal.line(text, style="dim")
    _show_winner(terminal, result)


def _out(text: str) -> str:
    """Why a candidate is out, in a word."""
    return next((word for part, word in _WORDS.items() if part in text), "")


def _show_winner(terminal: Terminal, result: Mapping[str, Any]) -> None:
    winner = result["winner"]
    if winner is None:
        terminal.line(f"nothing was chosen: {result['reason']}", style="bold red")
        return
    chosen = (
        "the backend's own settings stay"
        if winner["default"]
        else f"batch {winner['batch']}, {settings_words(winner['settings'])}"
    )
    terminal.line(
        f"{chosen}: {result['reason']}",
        style="bold yellow" if winner["default"] else "bold green",
    )
    if winner["ratio"] is not None:
        ends = winner["ci95"]
        sure = f"95%: {ends[0]:.3f} to {ends[1]:.3f}" if ends else "too few turns for an interval"
        terminal.line(
            "seconds an image, the best of the search over the backend's own settings: "
            f"{winner['ratio']:.3f} ({sure})"
        )
    terminal.line(
        f"in the bundle {result['bundle']}, whose digest stays {result['digest'][:16]}..., after "
        f"{duration(result['seconds'])}"
    )


_FIGURES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "latency": lambda side: duration(side["p50"]),
    "throughput": lambda side: f"{side['images_per_s']:.2f} images/s",
    "rate": lambda side: f"{side['queries_per_s']:.2f} queries/s",
}
"""A side's figure, by the metric of a comparison."""


def show_comparison(terminal: Terminal, result: Mapping[str, Any]) -> None:
    """Both sides, and the verdict in words."""
    rows = []
    for name in ("a", "b"):
        side = result[name]
        figure = _FIGURES[result["metric"]](side)
        rows.append((name.upper(), side["bundle"], side["target"], str(side["samples"]), figure))
    turns = ", query by query in turn" if result["paired"] else ""
    terminal.line(f"{result['scenario']} at batch {result['batch']}{turns}")
    what = comparison.WHAT[result["metric"]]
    terminal.table(("", "bundle", "target", "samples", what), rows, left=3)
    for caution in result["cautions"]:
        terminal.line(caution, style="yellow")
    terminal.line(comparison.words(result), style=f"bold {_COLOURS[result['verdict']]}")


def show_against(terminal: Terminal, result: Mapping[str, Any]) -> None:
    """Both measurements, and the comparison."""
    for name in ("a", "b"):
        side = result["results"][name]
        terminal.line(f"{name.upper()}: {side['bundle']}, {side['target']}", style="bold")
        show_bench(terminal, side)
        terminal.line("")
    show_comparison(terminal, {**result, "cautions": []})
