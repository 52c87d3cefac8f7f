"""A gate as Markdown for a job's summary: the verdict, the table, and what casts doubt."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import vggdeploy
from vggdeploy import atomic, gate_table
from vggdeploy.report.document import MARKS
from vggdeploy.report.markdown import escape
from vggdeploy.text import clean

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vggdeploy.gates import Verdicts

JOB = "GITHUB_STEP_SUMMARY"
"""The variable that names the file whose Markdown GitHub (Gitea and Forgejo too) shows as the
summary of a job."""


def is_the_jobs(path: Path) -> bool:
    """Whether a file is the one that the CI server collects a job's summary in."""
    named = os.environ.get(JOB)
    return bool(named) and Path(str(named)).resolve() == path.resolve()


def write(verdicts: Verdicts, path: Path) -> None:
    """Write a summary: appended to the job's own file, which holds what other steps had to say and
    is there before any of them; any other file is written whole.

    Raises:
        VggdeployError: one of its kinds, when the file cannot be written.
    """
    if not is_the_jobs(path):
        atomic.write_text(path, render(verdicts))
        return
    with atomic.writing(path), path.open("a", encoding="utf-8") as file:
        file.write(f"\n{render(verdicts)}")


def render(verdicts: Verdicts) -> str:
    """A gate as GitHub-flavoured Markdown, in which nothing of a result is markup."""
    heading = f"{MARKS[verdicts.verdict]} {gate_table.headline(verdicts)}"
    lines = [f"### {heading}" + (f", {_plain(verdicts.target)}" if verdicts.target else ""), ""]
    lines += [_row(gate_table.COLUMNS), "|---|--:|--:|--:|---|"]
    lines += [_row(gate_table.cells(criterion)) for criterion in verdicts.criteria]
    lines += ["", *_doubts(verdicts)]
    judged = f"Judged on {verdicts.images} images ({verdicts.judged}). " if verdicts.judged else ""
    lines.append(
        f"{_plain(judged)} Bundle {_plain(verdicts.digest)}, vggdeploy {vggdeploy.__version__}."
    )
    return "\n".join(lines).strip() + "\n"


def _doubts(verdicts: Verdicts) -> Iterator[str]:
    said = [(each.name, each.note) for each in verdicts.criteria if each.note]
    said += [("unstable", reason) for reason in verdicts.unstable]
    said += [("caution", caution) for caution in verdicts.cautions]
    said += [("emulated", gate_table.EMULATED)] if verdicts.execution == "emulated" else []
    yield from (f"- **{_plain(about)}**: {_plain(text)}" for about, text in said)
    if said:
        yield ""


def _row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(map(_plain, cells))} |"


def _plain(text: str) -> str:
    """Text on one line that is no markup."""
    return escape(clean(text).strip())
