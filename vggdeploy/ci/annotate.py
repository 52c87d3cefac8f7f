"""A gate as annotations: the lines by which a job tells its server what to show at the change."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vggdeploy import gate_table
from vggdeploy.text import clean

if TYPE_CHECKING:
    from vggdeploy.gates import Verdicts

_DATA = str.maketrans({"%": "%25", "\r": "%0D", "\n": "%0A"})
_PROPERTY = {**_DATA, **str.maketrans({":": "%3A", ",": "%2C"})}
"""As GitHub's own toolkit escapes them (actions/toolkit, packages/core/src/command.ts)."""


def github(verdicts: Verdicts) -> str:
    """A gate as GitHub's workflow commands.

    A criterion that is missed, or cannot be told, is an error, since either makes the job fail;
    what casts doubt is a warning, and a pass a notice. GitHub shows ten errors of a step, so the
    missed ones come first.
    """
    about = f"vggdeploy {verdicts.target}".strip()
    undecided = [each for each in verdicts.criteria if each.verdict != "pass"]
    said = [
        ("error", f"{about}: {each.name}", gate_table.sentence(each))
        for each in sorted(undecided, key=lambda each: each.verdict != "fail")
    ]
    said += [("warning", f"{about}: unstable", reason) for reason in verdicts.unstable]
    said += [("warning", f"{about}: caution", caution) for caution in verdicts.cautions]
    if verdicts.execution == "emulated":
        said.append(("warning", f"{about}: emulated", gate_table.EMULATED))
    if verdicts.verdict == "pass":
        count = len(verdicts.criteria)
        met = f"{gate_table.headline(verdicts)}, {count} bound{'s' * (count > 1)} met"
        said.append(("notice", about, met))
    return "".join(
        f"::{level} title={_escaped(title, _PROPERTY)}::{_escaped(message, _DATA)}\n"
        for level, title, message in said
    )


def _escaped(text: str, escapes: dict[int, str]) -> str:
    return clean(text.translate(escapes))
