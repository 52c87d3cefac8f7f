"""What a report says of parity with the reference, and of accuracy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vggdeploy.report.document import Block, Drawing, Section, Table, between
from vggdeploy.report.figures import Figure, derived
from vggdeploy.report.plots import Axis, Interval, Intervals

if TYPE_CHECKING:
    from vggdeploy.report.document import Cell, Words
    from vggdeploy.report.reading import Given, Node, Subject

_PARITY = (
    ("top1_agreement", "top-1 agreement", "share", 0.0, 1.0),
    ("cosine_mean", "cosine, mean", "cosine", -1.0, 1.0),
    ("cosine_min", "cosine, least", "cosine", -1.0, 1.0),
    ("sqnr_db", "SQNR, mean", "dB", -1e30, 1e30),
    ("kl_mean", "KL divergence, mean", "nat", -1.0, 1e30),
    ("max_abs", "largest difference of a score", "", 0.0, 1e30),
)
"""Key, name, unit and range. Rounding may leave a divergence a hair below 0."""

_SIGNIFICANT = 0.05
"""The usual level: above it, McNemar's test shows no difference."""


def section(given: Given) -> Section | None:
    """Parity and accuracy of every verification; None where nothing was verified."""
    found = [(subject, node) for subject in given.subjects for node in subject.of("verify")]
    if not found:
        return None
    heads = _heads(found)
    labelled = [place for place, (_, node) in enumerate(found) if node.find("accuracy")]
    tables = [_parity(found, heads)]
    drawings = []
    if labelled:
        tables.append(_accuracy([found[place] for place in labelled], [heads[p] for p in labelled]))
        drawings.append(_intervals([found[p][1] for p in labelled], [heads[p] for p in labelled]))
    several = len(found) > 1
    findings = tuple(
        _sentence(node, head if several else "")
        for head, (_, node) in zip(heads, found, strict=True)
    )
    text: tuple[Words, ...] = ()
    if not labelled:
        text = (("The images have no labels, so there is no accuracy to tell.",),)
    block = Block(text=text, drawings=tuple(drawings), tables=tuple(tables))
    return Section("parity", "Parity", findings, (block,))


def agreement(node: Node) -> Words:
    """Top-1 agreement and how many images that is."""
    figure = node.need("parity", "top1_agreement").figure("share", 0, 1)
    images = images_of(node)
    return (figure, " (", derived(round(figure.value * images.value), "count"), " of ", images, ")")


def images_of(node: Node) -> Figure:
    """How many images were judged."""
    return node.need("parity", "n").figure("count", 1)


def _heads(found: list[tuple[Subject, Node]]) -> list[str]:
    """A column's head for each verification; the images, where a bundle has several."""
    heads = []
    for subject, node in found:
        several = len(subject.of("verify")) > 1
        extra = f", {node.text('judged', default='images')} ({node.file.name})" if several else ""
        heads.append(subject.title + extra)
    return heads if len(heads) > 1 else ["the engine"]


def _sentence(node: Node, who: str) -> Words:
    parity = node.need("parity")
    images = images_of(node)
    share = parity.need("top1_agreement").figure("share", 0, 1)
    engine = f"{who} decides" if who else "The engine decides"
    how = " (emulated)" if node.text("execution", default="native") == "emulated" else ""
    said: Words = (f"{engine} as its reference on ", share, " of ", images, f" images{how}")
    sqnr = parity.maybe("dB", "sqnr_db")
    if sqnr:
        said += (", with ", sqnr, " of signal to noise in the scores")
    accuracy = node.find("accuracy")
    if accuracy is None:
        return (*said, ".")
    top1, drop = accuracy.need("top1").figure("share", 0, 1), accuracy.need("drop").figure("points")
    said += ("; it is right on ", top1, ", the reference on ")
    said += (accuracy.need("reference_top1").figure("share", 0, 1),)
    p = accuracy.maybe("p", "mcnemar_p", low=0, high=1)
    if p is None:
        return (*said, ", a drop of ", drop, ".")
    shown = "a difference is shown" if p.value < _SIGNIFICANT else "no difference is shown"
    return (*said, f": {shown} (McNemar p ", p, ").")


def _parity(found: list[tuple[Subject, Node]], heads: list[str]) -> Table:
    rows: list[tuple[Cell, ...]] = [("images", *(images_of(node) for _, node in found))]
    rows.append(("judged", *(node.text("judged", default="") for _, node in found)))
    rows.append(("execution", *(node.text("execution", default="") for _, node in found)))
    for key, name, unit, low, high in _PARITY:
        cells = [node.need("parity").maybe(unit, key, low=low, high=high) for _, node in found]
        if any(cells):
            rows.append((name, *(cell or "" for cell in cells)))
    return Table("Scores against the reference's", ("measure", *heads), tuple(rows))


def _accuracy(found: list[tuple[Subject, Node]], heads: list[str]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for key, name, unit in (
        ("n", "labelled images", "count"),
        ("top1", "top-1", "share"),
        ("ci95", "top-1, 95% interval", "share"),
        ("top5", "top-5", "share"),
        ("reference_top1", "reference top-1", "share"),
        ("drop", "drop in top-1", "points"),
        ("mcnemar_p", "McNemar p", "p"),
    ):
        nodes = [node.need("accuracy") for _, node in found]
        cells: list[Cell]
        if key == "ci95":
            cells = [between(node.interval(unit, key)) for node in nodes]
        else:
            low = -1.0 if key == "drop" else 0.0
            cells = [node.maybe(unit, key, low=low) or "" for node in nodes]
        if any(cells):
            rows.append((name, *cells))
    return Table("Accuracy by the images' labels", ("measure", *heads), tuple(rows))


def _intervals(nodes: list[Node], heads: list[str]) -> Drawing:
    rows = []
    for node, head in zip(nodes, heads, strict=True):
        accuracy = node.need("accuracy")
        top1 = accuracy.need("top1").figure("share", 0, 1)
        low, high = accuracy.interval("share", "ci95") or (top1, top1)
        reference = accuracy.need("reference_top1").figure("share", 0, 1)
        rows.append(Interval(head, top1.value, low.value, high.value, top1.text, reference.value))
    least = min(min(row.low, row.reference or 1.0) for row in rows)
    most = max(max(row.high, row.reference or 0.0) for row in rows)
    pad = max(0.005, (most - least) / 10)
    axis = Axis(max(0.0, least - pad), min(1.0, most + pad), "share", "top-1 accuracy")
    finding: Words = ()
    table_rows: list[tuple[Cell, ...]] = []
    for node, head in zip(nodes, heads, strict=True):
        accuracy = node.need("accuracy")
        top1 = accuracy.need("top1").figure("share")
        ends = between(accuracy.interval("share", "ci95"))
        reference = accuracy.need("reference_top1").figure("share")
        finding += (f"{head}: top-1 ", top1, *((" (95%: ", *ends, ")") if ends else ()))
        finding += (", reference ", reference, ". ")
        table_rows.append((head, top1, ends, reference))
    return Drawing(
        "accuracy",
        "Top-1 accuracy with its 95% interval, and the reference's",
        finding,
        Intervals(axis, tuple(rows)),
        Table(
            "Top-1 accuracy", ("bundle", "top-1", "95% interval", "reference"), tuple(table_rows)
        ),
        note="A dot with its interval is the engine; the upright stroke is the reference.",
    )
