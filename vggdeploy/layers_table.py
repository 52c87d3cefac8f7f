"""What a person sees of the layers: each one's time against its own floor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.text import Text

from vggdeploy.terminal import bar, duration

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vggdeploy.terminal import Terminal

_FULL_WIDTH = 96
"""Columns that the whole table takes; below, the bar and the rates are left out."""

_FAR = 2.0
"""A layer this many times above its floor, and this much of the query, is worth a look."""
_LARGE = 0.02


def show_layers(terminal: Terminal, budget: Mapping[str, Any]) -> None:
    """A row for each layer, the engine's other work, and the total.

    Args:
        terminal: where.
        budget: a result's ``budget``.
    """
    profile = budget["profile"]
    if profile is None:
        terminal.line("layers: the backend does not tell what each took", style="yellow")
        return
    wide = terminal.console.width >= _FULL_WIDTH
    largest = max(row["share"] for row in budget["layers"])
    columns = ["layer", "", "type", "time", "share", "floor", "x floor", "bound", "rate"]
    rows: list[list[str | Text]] = [
        [
            row["name"],
            bar(row["share"] / largest / 2 if largest else 0.0),
            row["precision"] or "",
            duration(row["seconds"]) if row["engine_layers"] else "",
            f"{row['share']:.1%}" if row["engine_layers"] else "",
            duration(row["floor_s"]) if row["floor_s"] else "",
            _times(row),
            row["bound"] or ("" if row["engine_layers"] else "not executed"),
            _rate(row),
        ]
        for row in budget["layers"]
    ]
    total = profile["seconds"]
    rows.append(
        ["total", "", "", duration(total), f"{1:.0%}", duration(profile["floor_s"]),
         f"{total / profile['floor_s']:.2f}" if profile["floor_s"] else "", "", ""]
    )  # fmt: skip
    kept = range(len(columns)) if wide else (0, 3, 4, 5, 6, 7)
    terminal.table(
        [columns[index] for index in kept],
        [[row[index] for index in kept] for row in rows],
        f"where a query's time goes, median of {profile['queries']} profiled queries",
        left=3 if wide else 1,
    )
    peaks = budget["roofline"]
    rates = ", ".join(
        f"{precision} {rate / 1e9:.0f} GMAC/s" for precision, rate in peaks["macs_per_s"].items()
    )
    memory = peaks["bytes_per_s"]
    terminal.line(
        f"floor: MACs at the peak ({rates}), or bytes that must come from memory"
        + (f" ({memory / 1e9:.1f} GB/s)" if memory else ", at a bandwidth that is not known")
        + ", whichever takes longer."
    )
    terminal.line(
        f"profiled queries took {duration(profile['query_s'])}; timing each layer has its price."
    )
    if profile["unmatched"]:
        terminal.line(
            "the engine does not say where these run: "
            + ", ".join(profile["unmatched"])
            + "; a bundle that was built by this version says more",
            style="yellow",
        )


def _times(row: Mapping[str, Any]) -> str | Text:
    if row["of_floor"] is None:
        return ""
    shown = f"{row['of_floor']:.2f}"
    if row["of_floor"] < 1:
        return Text(shown, style="yellow")
    far = row["of_floor"] >= _FAR and row["share"] >= _LARGE
    return Text(shown, style="red" if far else "")


def _rate(row: Mapping[str, Any]) -> str:
    """What was achieved of what binds it."""
    if row["bound"] == "memory" and row["achieved_bytes_per_s"]:
        return f"{row['achieved_bytes_per_s'] / 1e9:.1f} GB/s"
    if row["achieved_macs_per_s"]:
        return f"{row['achieved_macs_per_s'] / 1e9:.0f} GMAC/s"
    return ""
