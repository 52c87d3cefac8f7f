"""A report as GitHub-flavoured Markdown: the same words and tables, without the plots."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vggdeploy.report import head
from vggdeploy.report.document import MARKS, text_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vggdeploy.report.document import Block, Cell, Head, Report, Table

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~&!$@^])")
_START = re.compile(r"^(\s*)([-+=:])")
_LISTED = re.compile(r"^(\s*\d+)([.)])(?=\s|$)")


def render(report: Report) -> str:
    """The text. The same report gives the same text."""
    lines = [f"# {escape(report.title)}", "", escape(report.subtitle), ""]
    mark = MARKS[report.verdict]
    word = f"{mark} {head.word(report.verdict)}".strip()
    lines += [f"**{escape(word)}.** {_words(report.summary)}", ""]
    if report.glance:
        lines += [*_table(report.glance), ""]
    for one in report.heads:
        lines += _head(one, len(report.heads) > 1)
    for section in report.sections:
        lines += [f"## {escape(section.title)}", ""]
        for finding in section.findings:
            lines += [_words(finding), ""]
        for block in section.blocks:
            lines += _block(block)
    lines.append(f"Written by vggdeploy {escape(report.version)}.")
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """Text that Markdown and HTML in it leave as it is."""
    text = _SPECIAL.sub(r"\\\1", text)
    # Addresses are made links of by themselves; a character that is no letter stops that.
    text = re.sub(r"(?i)\b(https?|ftp)://", r"\1&#58;//", text)
    text = re.sub(r"(?i)\bwww\.", "www&#46;", text)
    return _LISTED.sub(r"\1\\\2", _START.sub(r"\1\\\2", text))


def _words(cell: Cell) -> str:
    return escape(text_of(cell).strip())


def _head(one: Head, several: bool) -> Iterator[str]:
    if several:
        yield from (f"## {escape(f'{one.letter}: {one.name}, {one.target}')}", "")
        if one.verdict != "none":
            word = escape(f"{MARKS[one.verdict]} {head.word(one.verdict)}")
            yield from (f"**{word}.** {_words(one.summary)}", "")
    elif one.keys:
        yield from ("| figure | value | |", "|---|--:|---|")
        for key in one.keys:
            yield f"| {escape(key.name)} | {_words(key.cell)} | {_words(key.context)} |"
        yield ""
    for notice in one.notices:
        yield f"- **{escape(notice.kind.capitalize())}.** {_words(notice.text)}"
        yield from (f"  - {escape(detail)}" for detail in notice.details)
        yield from (f"  - try {_code(command)}" for command in notice.commands)
    if one.notices:
        yield ""
    for criteria in one.criteria:
        yield from (*_table(criteria), "")


def _code(text: str) -> str:
    """A code span, fenced by one backtick more than it holds in a row."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _block(block: Block) -> Iterator[str]:
    if block.title:
        yield from (f"### {escape(block.title)}", "")
    for words in block.text:
        yield from (_words(words), "")
    for drawing in block.drawings:
        yield from (*_table(drawing.table), "")
    for table in block.tables:
        yield from (*_table(table), "")


def _table(table: Table) -> Iterator[str]:
    yield from (f"**{escape(table.caption)}**", "")
    yield _row([escape(column) for column in table.columns])
    yield _row(["--:" if table.right(place) else "---" for place in range(len(table.columns))])
    for row in table.rows:
        if table.code:
            yield _row([_words(row[0]), *(_cell_code(text_of(cell)) for cell in row[1:])])
        else:
            yield _row([_words(cell) for cell in row])


def _cell_code(text: str) -> str:
    """A code span in a table, where a bar would end the cell."""
    return _code(text).replace("|", "\\|") if text else ""


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
