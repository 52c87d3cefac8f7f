"""The rows of a comparison: a competitor's figures, in a table and in a result."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vggdeploy.benchmarks.competitors import NNCF, OWN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vggdeploy.benchmarks.children import Outcome
    from vggdeploy.terminal import Terminal

_WIDTH = 92
"""Columns that the whole table takes; below, it is shown in two parts."""


@dataclass(frozen=True)
class Row:
    """A competitor's figures; None for what it has not.

    Attributes:
        images: how many it was calibrated on.
        seconds: from the FP32 graph to the quantized model on the disk, imports left out.
        collect_seconds: of these, running the float network and observing it.
        peak_bytes: peak resident memory of the process that quantized.
        samples_s: latencies in OpenVINO at batch 1, in order.
        own_samples_s: the same in the competitor's own runtime.
        sqnr_db: of the graph as it is defined, against the float network.
        sqnr_db_here: of the engine as OpenVINO runs it on this machine.
        requantized: FakeQuantize nodes that OpenVINO executes by themselves.
        note: what to know; begins with ``failed`` where there is nothing.
    """

    name: str
    images: int | None = None
    seconds: float | None = None
    collect_seconds: float | None = None
    peak_bytes: int | None = None
    engine_bytes: int | None = None
    samples_s: tuple[float, ...] = ()
    own_samples_s: tuple[float, ...] = ()
    sqnr_db: float | None = None
    agreement: float | None = None
    sqnr_db_here: float | None = None
    agreement_here: float | None = None
    requantized: tuple[str, ...] = ()
    note: str = ""

    @property
    def failed(self) -> bool:
        """Whether there is no model to show."""
        return self.note.startswith("failed")

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready mapping, with the medians of the samples."""
        return {
            **asdict(self),
            "median_s": _median(self.samples_s),
            "own_median_s": _median(self.own_samples_s),
        }


def _median(samples: Sequence[float]) -> float | None:
    return float(np.median(samples)) if samples else None


def first_row(name: str, made: Outcome) -> Row:
    """What quantizing took."""
    return Row(
        name,
        made.images,
        made.seconds,
        made.collect_seconds,
        made.peak_bytes,
        made.engine_bytes,
        note=f"failed: {made.error}" if made.error else made.note,
    )


_COLUMNS = (
    "quantizer", "images", "total\ns", "collect\ns", "peak\nGB", "engine\nMB",
    "latency\nms", "own\nms", "SQNR\ndB", "here\ndB", "agree", "here",
)  # fmt: skip
_QUALITY = 6
"""The first column of the second part."""


def cells(row: Row) -> tuple[str, ...]:
    """A row as it is shown, a cell for each of `_COLUMNS`."""
    figures = (
        (row.images, 1.0, ".0f"),
        (row.seconds, 1.0, ".1f"),
        (row.collect_seconds, 1.0, ".1f"),
        (row.peak_bytes, 1e-9, ".2f"),
        (row.engine_bytes, 1e-6, ".1f"),
        (_median(row.samples_s), 1e3, ".1f"),
        (_median(row.own_samples_s), 1e3, ".1f"),
        (row.sqnr_db, 1.0, ".2f"),
        (row.sqnr_db_here, 1.0, ".2f"),
        (row.agreement, 1.0, ".4f"),
        (row.agreement_here, 1.0, ".4f"),
    )
    return row.name, *(
        "" if value is None else format(value * scale, form) for value, scale, form in figures
    )


def show(terminal: Terminal, rows: Sequence[Row], judged: int, saturates: bool) -> None:
    """The table, in two parts where the terminal is narrow, and what there is to say of it."""
    shown = [cells(row) for row in rows]
    if terminal.console.width >= _WIDTH:
        terminal.table(_COLUMNS, shown)
    else:
        terminal.table(_COLUMNS[:_QUALITY], [row[:_QUALITY] for row in shown])
        terminal.line("")
        second = [(row[0], *row[_QUALITY:]) for row in shown]
        terminal.table((_COLUMNS[0], *_COLUMNS[_QUALITY:]), second)
    for text in (
        "total: FP32 graph to quantized model, imports left out; peak: resident memory of that "
        "process",
        "latency: median at batch 1, in OpenVINO and (own) in onnxruntime, all engines in turn",
        f"SQNR, agree (largest output): with the float network, {judged} images that none was "
        "calibrated on,",
        "    of the graph as it is defined, and here: as OpenVINO's integer kernels run it",
    ):
        terminal.line(text, style="dim")
    for row in rows:
        if row.note:
            terminal.line(f"{row.name}: {row.note}", style="red" if row.failed else "yellow")
        if row.requantized:
            terminal.line(f"{row.name}: executes FakeQuantize by itself: {len(row.requantized)}")
    for text in ratios(rows):
        terminal.line(text)
    if saturates:
        terminal.line(
            "this CPU has no VNNI: its 8-bit products are added in 16 bits and saturate, which is "
            "the difference between SQNR and here (--cpu-isa avx2: 7 bits for everyone)",
            style="yellow",
        )


def ratios(rows: Sequence[Row]) -> list[str]:
    """Latency beside NNCF's engine: of the medians, and the median of the pairs of each turn."""
    beside = next((row.samples_s for row in rows if row.name == NNCF and row.samples_s), None)
    if beside is None:
        return []
    return [
        f"latency of {row.name} / {NNCF}: {np.median(row.samples_s) / np.median(beside):.3f} "
        f"(median of {len(beside)} pairs {np.median(np.divide(row.samples_s, beside)):.3f})"
        for row in rows
        if row.name in OWN and row.samples_s
    ]
