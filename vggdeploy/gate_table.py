"""What a person reads of a gate: its table, and each criterion in one line."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from vggdeploy.terminal import Terminal

if TYPE_CHECKING:
    from vggdeploy.gates import Criterion, Verdicts

COLUMNS = ("criterion", "bound", "value", "95%", "verdict")

EMULATED = "accuracy was judged by emulation, not on the device"

_COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow"}


def cells(criterion: Criterion) -> tuple[str, str, str, str, str]:
    """A criterion's row, by `COLUMNS`."""
    bound, value = _apart(criterion)
    return (
        criterion.name,
        f"{bound} {criterion.unit}".strip(),
        value,
        "{:.5g} to {:.5g}".format(*criterion.interval) if criterion.interval else "",
        criterion.verdict + (" (emulated)" if criterion.execution == "emulated" else ""),
    )


def _apart(criterion: Criterion) -> tuple[str, str]:
    """Bound and value: the bound as it was given, bytes to the last one, else six digits, and more
    where two figures would look like one."""
    bound, value = criterion.bound, criterion.value
    if criterion.unit == "bytes":
        return f"{bound:,.15g}", "none" if value is None else f"{value:,.15g}"
    if value is None:
        return f"{bound:.15g}", "none"
    asked = f"{bound:.15g}"
    shown = (f"{value:.{digits}g}" for digits in range(6, 18))
    told = (each for each in shown if float(each) != bound or bound == value)
    return asked, next(told, str(value))


def sentence(criterion: Criterion) -> str:
    """What was found of a criterion beside what is asked, and why it could not be told."""
    _, bound, value, interval, verdict = cells(criterion)
    found = f"{value} {criterion.unit}".strip() + (f" (95%: {interval})" if interval else "")
    side = "at least" if criterion.name.startswith("min_") else "at most"
    said = f"{verdict}: {found}, asked is {side} {bound}"
    return f"{said}; {criterion.note}" if criterion.note else said


def headline(verdicts: Verdicts) -> str:
    """The verdict over all, and whether it rests on emulation."""
    emulated = verdicts.execution == "emulated"
    return f"verdict: {verdicts.verdict.upper()}{' (emulated)' if emulated else ''}"


def show_gate(terminal: Terminal, verdicts: Verdicts) -> None:
    """Every criterion, then the verdict."""
    rows = []
    for criterion in verdicts.criteria:
        row: list[str | Text] = [*cells(criterion)]
        row[-1] = Text(str(row[-1]), style=_COLOURS[criterion.verdict])
        rows.append(row)
    terminal.table(COLUMNS, rows)
    for criterion in verdicts.criteria:
        if criterion.note:
            terminal.line(f"{criterion.name}: {criterion.note}", style="yellow")
    for caution in verdicts.cautions:
        terminal.line(caution, style="yellow")
    if verdicts.judged:
        terminal.line(f"judged on {verdicts.images} images ({verdicts.judged})")
    if verdicts.execution == "emulated":
        terminal.line(EMULATED, style="yellow")
    terminal.line(headline(verdicts), style=f"bold {_COLOURS[verdicts.verdict]}")


def text(verdicts: Verdicts) -> str:
    """What `show_gate` shows, as plain lines, whatever the environment says of colours."""
    written = io.StringIO()
    console = Console(file=written, force_terminal=False, color_system=None, highlight=False)
    show_gate(Terminal(console), verdicts)
    return "\n".join(line.rstrip() for line in written.getvalue().splitlines())
