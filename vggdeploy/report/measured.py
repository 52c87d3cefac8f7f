"""Measurements of a report: each with a name that tells it from the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vggdeploy.report.reading import Given, Node, Subject


@dataclass(frozen=True)
class Measured:
    """One result of bench.

    Attributes:
        number: its place among all measurements: the colour of its curves.
        letter: its short name in plots; empty where it is alone.
        title: what it is, for headings.
    """

    subject: Subject
    node: Node
    number: int
    letter: str
    title: str

    @property
    def slug(self) -> str:
        """For the names of drawings."""
        return f"m{self.number + 1}"

    @property
    def batch(self) -> int:
        """Images a query."""
        return round(self.node.number("batch", low=1))


def measured(given: Given) -> list[Measured]:
    """Every measurement, in the order of the bundles."""
    found = [(subject, node) for subject in given.subjects for node in subject.of("bench")]
    varied = [len({show(node) for _, node in found}) > 1 for show in (_scenario, _batch, _device)]
    all_of_them = []
    for number, (subject, node) in enumerate(found):
        own = subject.of("bench")
        letter = subject.letter
        if len(own) > 1:
            letter += str([id(other) for other in own].index(id(node)) + 1)
        parts = [subject.title]
        parts += [
            show(node)
            for show, varies in zip((_scenario, _batch, _device), varied, strict=True)
            if varies
        ]
        title = ", ".join(filter(None, parts))
        all_of_them.append(Measured(subject, node, number, letter, title))
    titles = [one.title for one in all_of_them]
    return [
        Measured(
            one.subject,
            one.node,
            one.number,
            one.letter,
            f"{one.title} ({one.letter}, {one.node.file.name})"
            if titles.count(one.title) > 1
            else one.title,
        )
        for one in all_of_them
    ]


def settings(node: Node) -> str:
    """How a query was run: scenario, batch, device, streams, threads, pinning, precision."""
    scenario = _scenario(node)
    said = [f"{scenario} scenario" if scenario else "", _batch(node), _device(node)]
    chosen = node.find("settings")
    if chosen is None:
        return ", ".join(filter(None, said))
    for key in ("stream", "thread"):
        number = chosen.maybe("count", f"{key}s", low=0)
        if number:
            said.append(f"{number.text} {key}{'' if number.value == 1 else 's'}")
    if chosen.find("pinning"):
        said.append("threads pinned" if chosen.flag("pinning", default=True) else "not pinned")
    precision = chosen.text("precision", default="")
    if precision:
        said.append(f"{precision} hinted")
    if all(chosen.find(key) is None for key in ("streams", "threads", "pinning", "precision")):
        said.append("the backend's own settings")
    return ", ".join(filter(None, said))


def capital(text: str) -> str:
    """Text as a sentence begins."""
    return text[:1].upper() + text[1:]


def _scenario(node: Node) -> str:
    return node.text("scenario", default="")


def _batch(node: Node) -> str:
    return f"batch {node.number('batch', low=1):.0f}"


def _device(node: Node) -> str:
    device = node.find("device")
    if device is None:
        return ""
    if isinstance(device.value, str):
        return device.text()
    return device.text("name", default="") or device.text("device", default="")
