"""The terminal: progress, lines and tables on standard error; and figures with their units.

What is shown may be the words of others: it is not read as markup, and controls no terminal.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from vggdeploy.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from vggdeploy.contracts import Item

_LOG_WIDTH = 120
"""Where standard error is a file, there is no terminal to fit into."""

_LOG_SECONDS = 10.0
"""How often a log, which has no bars, hears of a long job."""

_BAR_WIDTH = 20
"""Columns of a table's longest bar."""


class _Count(MofNCompleteColumn):
    """How many of how many; nothing where the number is not known."""

    def render(self, task: Task) -> Text:
        return Text("") if task.total is None else super().render(task)


class Terminal:
    """Progress bars and tables on standard error; a `contracts.Reporter`."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        if not self.console.is_terminal:
            self.console.width = _LOG_WIDTH
        self._progress: Progress | None = None
        self._running = 0

    @contextlib.contextmanager
    def _bar(self, label: str, total: int | None) -> Iterator[Any]:
        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                _Count(),
                TimeElapsedColumn(),
                console=self.console,
                transient=True,
                disable=not self.console.is_terminal,
            )
            self._progress.start()
        progress = self._progress
        task = progress.add_task(printable(label), total=total)
        self._running += 1
        try:
            yield lambda: progress.advance(task)
        finally:
            progress.remove_task(task)
            self._running -= 1
            if not self._running:
                progress.stop()
                self._progress = None

    def track(self, items: Iterable[Item], total: int, label: str) -> Iterator[Item]:
        """Pass `items` through under a bar; in a log, say now and then how far it is."""
        said = time.perf_counter()
        with self._bar(label, total) as advance:
            for count, item in enumerate(items, start=1):
                yield item
                advance()
                if not self.console.is_terminal and time.perf_counter() - said >= _LOG_SECONDS:
                    said = time.perf_counter()
                    self.line(f"{label} {count}/{total}", style="dim")

    @contextlib.contextmanager
    def step(self, label: str) -> Iterator[None]:
        """A moving bar for as long as the block lasts."""
        with self._bar(label, None):
            yield

    def done(self, label: str, seconds: float, cached: bool) -> None:
        """One line that stays."""
        self.line(f"{label:<12}{duration(seconds):>10}{'  cached' if cached else ''}", style="dim")

    def line(self, text: str, style: str = "") -> None:
        """One line of text, never read as markup and never broken."""
        self.console.print(Text(printable(text), style=style), soft_wrap=True)

    def table(
        self,
        columns: Sequence[str],
        rows: Iterable[Sequence[str | Text]],
        title: str = "",
        left: int = 1,
    ) -> None:
        """A table whose first `left` columns are text and whose others are figures."""
        table = Table(
            title=Text(printable(title), style="table.title") if title else None,
            title_justify="left",
            box=None,
            pad_edge=False,
            padding=(0, 1, 0, 0),
        )
        for index, column in enumerate(columns):
            table.add_column(
                Text("\n".join(map(printable, column.split("\n")))),
                justify="left" if index < left else "right",
                no_wrap=len(columns) > 4,
                overflow="fold",
            )
        for row in rows:
            table.add_row(*map(_cell, row))
        self.console.print(table)


def _cell(said: str | Text) -> Text:
    """A cell of a table, on one line."""
    cell = said.copy() if isinstance(said, Text) else Text(said)
    cell.plain = printable(cell.plain)
    return cell


def bar(share: float) -> str:
    """A bar of `share` of `_BAR_WIDTH` columns, to an eighth of one."""
    whole, rest = divmod(round(8 * _BAR_WIDTH * min(1.0, max(0.0, share))), 8)
    return "█" * whole + " ▏▎▍▌▋▊▉"[rest].strip()


def duration(value: float) -> str:
    """A duration in the unit that suits it."""
    if value >= 1:
        return f"{value:.2f} s"
    return f"{value * 1e3:.2f} ms" if value >= 1e-3 else f"{value * 1e6:.1f} us"
