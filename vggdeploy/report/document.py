"""What a report says, as data: sections of text, tables and plots, for any form of page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vggdeploy.report.figures import Figure

if TYPE_CHECKING:
    from vggdeploy.report.plots import Plot

Words = tuple[str | Figure, ...]
"""Text with figures in it."""

VERDICTS = ("fail", "inconclusive", "pass")
"""The worst first."""

MARKS = {"pass": "✓", "fail": "✗", "inconclusive": "?", "note": "!", "none": ""}
"""Beside the word, never in place of it."""


@dataclass(frozen=True)
class Judged:
    """What became of a bound."""

    verdict: str
    emulated: bool = False

    @property
    def text(self) -> str:
        """Mark and word."""
        return f"{MARKS[self.verdict]} {self.verdict}" + (" (emulated)" if self.emulated else "")


Cell = str | Figure | Judged | Words


def text_of(cell: Cell) -> str:
    """A cell for reading."""
    if isinstance(cell, tuple):
        return "".join(map(text_of, cell))
    return cell if isinstance(cell, str) else cell.text


def between(ends: tuple[Figure, Figure] | None) -> Words:
    """An interval; nothing where there is none."""
    return () if ends is None else (ends[0], " to ", ends[1])


@dataclass(frozen=True)
class Table:
    """Rows of cells; the first cell heads its row.

    Attributes:
        caption: what the table shows.
        columns: heads of columns.
        rows: each as long as `columns`.
        numeric: from which column on cells may be figures.
        code: whether cells are spellings to copy, as digests are.
        marked: rows that differ, by number; said in words in the row too.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    numeric: int = 1
    code: bool = False
    marked: frozenset[int] = frozenset()

    def right(self, column: int) -> bool:
        """Whether a column is of figures, which stand to the right."""
        return column >= self.numeric and any(
            isinstance(row[column], Figure | tuple) for row in self.rows
        )


@dataclass(frozen=True)
class Drawing:
    """A plot and the table behind it.

    Attributes:
        name: unique in the report, of letters, digits and hyphens.
        title: what is plotted.
        finding: what it shows, in words: the plot's alternative for who does not see it.
        note: what is to be known when reading it.
    """

    name: str
    title: str
    finding: Words
    plot: Plot
    table: Table
    note: str = ""


@dataclass(frozen=True)
class Notice:
    """Something that weakens what was found.

    Attributes:
        kind: one word: emulated, unstable, partial, caution.
        text: what, and of which result.
        details: one line each.
        commands: that would help.
    """

    kind: str
    text: Words
    details: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()


@dataclass(frozen=True)
class Block:
    """A part of a section about one result, or about all of them where it has no title."""

    title: str = ""
    text: tuple[Words, ...] = ()
    drawings: tuple[Drawing, ...] = ()
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True)
class Section:
    """A heading, what was found, a paragraph for each result, and what shows it."""

    name: str
    title: str
    findings: tuple[Words, ...]
    blocks: tuple[Block, ...] = ()


@dataclass(frozen=True)
class Key:
    """A figure at the head of the report: its name, what it is, and its interval or context."""

    name: str
    cell: Cell
    context: Words = ()


@dataclass(frozen=True)
class Head:
    """One bundle at the head of the report.

    Attributes:
        letter: its short name in plots; empty where it is alone.
        verdict: pass, fail, inconclusive, or none.
        summary: one sentence.
        criteria: the bounds, where a gate was given.
    """

    letter: str
    name: str
    target: str
    verdict: str
    summary: Words
    keys: tuple[Key, ...] = ()
    criteria: tuple[Table, ...] = ()
    notices: tuple[Notice, ...] = ()


@dataclass(frozen=True)
class Report:
    """A whole report.

    Attributes:
        verdict: the worst of the gates', or none.
        summary: of it, in one sentence.
        subtitle: what it is about, in one line.
        glance: the bundles side by side, where there are several.
        version: of the program that wrote it.
    """

    title: str
    verdict: str
    subtitle: str
    summary: Words
    heads: tuple[Head, ...]
    sections: tuple[Section, ...]
    version: str
    glance: Table | None = None
