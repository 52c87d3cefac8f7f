"""The head of a report: the verdict of each bundle, what weakens it, and the figures that count."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vggdeploy.report import accuracy, latency, roofline
from vggdeploy.report.document import (
    VERDICTS,
    Head,
    Judged,
    Key,
    Notice,
    Table,
    between,
)
from vggdeploy.report.figures import TIMES, Figure, derived
from vggdeploy.report.measured import capital

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vggdeploy.report.document import Cell, Words
    from vggdeploy.report.measured import Measured
    from vggdeploy.report.reading import Node, Subject

BOUNDS = {
    "min_agreement": ("top-1 agreement, at least", "share"),
    "max_drop": ("drop in top-1, at most", "points"),
    "min_top1": ("top-1, at least", "share"),
    "min_cosine": ("least cosine, at least", "cosine"),
    "min_sqnr": ("SQNR, at least", "dB"),
    "max_p50": ("median latency, at most", "s"),
    "max_p99": ("p99 of latency, at most", "s"),
    "min_throughput": ("throughput, at least", "images/s"),
    "min_utilisation": ("utilisation, at least", "part"),
    "max_engine_bytes": ("engine, at most", "B"),
    "max_resident_bytes": ("memory held, at most", "B"),
    "max_energy": ("energy an image, at most", "J"),
}
"""What a bound is called, and its unit."""

_WORDS = {"pass": "Pass", "fail": "Fail", "inconclusive": "Inconclusive", "none": "No verdict"}


def head(subject: Subject, found: Sequence[Measured]) -> Head:
    """One bundle: its verdict and what it rests on."""
    own = [one for one in found if one.subject is subject]
    gates = subject.of("gate")
    verdict = worst([_verdict(gate) for gate in gates])
    notices = tuple(_notices(subject, own))
    return Head(
        subject.letter,
        subject.name,
        subject.target,
        verdict,
        _summary(gates, verdict, bool(subject.of("verify")), bool(own)),
        tuple(_keys(subject, own)),
        tuple(_criteria(gate) for gate in gates),
        notices,
    )


def worst(verdicts: Sequence[str]) -> str:
    """The worst verdict; none where there is none."""
    return min(verdicts, key=VERDICTS.index, default="none")


def word(verdict: str) -> str:
    """A verdict as a heading has it."""
    return _WORDS[verdict]


def _verdict(node: Node) -> str:
    verdict = node.text("verdict")
    if verdict not in VERDICTS:
        raise node.need("verdict").error(", ".join(VERDICTS))
    return verdict


def _summary(gates: Sequence[Node], verdict: str, verified: bool, timed: bool) -> Words:
    if not gates:
        found = [name for name, there in (("parity", verified), ("speed", timed)) if there]
        said = (
            f"what was found of {' and '.join(found)} is below" if found else "nothing was judged"
        )
        return (f"No gate was given; {said}.",)
    criteria = [item for gate in gates for item in gate.items("criteria")]
    verdicts = [_verdict(item) for item in criteria]
    count = len(verdicts)
    if verdict == "pass":
        said = "The one bound is met." if count == 1 else f"All {count} bounds are met."
    else:
        names = [
            _bound(item)[0].partition(",")[0]
            for item, own in zip(criteria, verdicts, strict=True)
            if own == verdict
        ]
        how = "not met" if verdict == "fail" else "not to be told"
        said = f"{verdicts.count(verdict)} of {count} bounds {'is' if len(names) == 1 else 'are'} "
        said += f"{how}: {', '.join(names)}."
    images = [gate.maybe("count", "images", low=0) for gate in gates]
    judged = next((image for image in images if image and image.value), None)
    emulated = any(
        gate.find("execution") and gate.text("execution") == "emulated" for gate in gates
    )
    how = ", by emulation" if emulated else ""
    return (said, *((" Judged on ", judged, f" images{how}.") if judged else ()))


def _bound(item: Node) -> tuple[str, str]:
    name = item.text("name")
    if name.startswith("max_ratio."):
        return f"{name.removeprefix('max_ratio.')} beside the baseline's, at most", "times"
    return BOUNDS.get(name, (name, ""))


def _criteria(gate: Node) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for item in gate.items("criteria"):
        name, unit = _bound(item)
        emulated = item.text("execution", default="") == "emulated"
        note = item.text("note", default="")
        rows.append(
            (
                f"{name} ({note})" if note else name,
                Judged(_verdict(item), emulated),
                item.maybe(unit, "value") or "none",
                between(item.interval(unit, "interval")) or "",
                item.need("bound").figure(unit),
            )
        )
    columns = ("criterion", "verdict", "found", "95%", "bound")
    return Table("Bounds of the gate", columns, tuple(rows))


def _keys(subject: Subject, own: Sequence[Measured]) -> list[Key]:
    keys = []
    if own:
        node = _closed(own).node
        p50 = latency.percentile(node, "p50")
        ends = between(node.interval("s", "ci95", "p50"))
        batch = f"batch {node.number('batch', low=1):.0f}"
        keys.append(Key("Median latency", p50, ("95%: ", *ends) if ends else (batch,)))
        p99 = node.maybe("s", "latency_s", "p99", low=0)
        if p99:
            count = len(node.items("samples_s"))
            context: Words = (derived(count, "count"), " samples") if count else (batch,)
            keys.append(Key("p99 latency", p99, context))
        rate = _fastest(own)
        if rate:
            keys.append(Key("Throughput", *rate))
        share = node.maybe("part", "budget", "utilisation", low=0)
        achieved = node.maybe("MAC/s", "budget", "achieved_macs_per_s", low=0)
        if share and achieved:
            keys.append(Key("Of the peak", share, (achieved,)))
    for node in subject.of("verify")[:1]:
        words = accuracy.agreement(node)
        keys.append(Key("Top-1 agreement", words[0], words[2:-1]))
        top1 = node.maybe("share", "accuracy", "top1", low=0)
        if top1:
            ends = between(node.interval("share", "accuracy", "ci95"))
            keys.append(Key("Top-1 accuracy", top1, ("95%: ", *ends) if ends else ()))
        sqnr = node.maybe("dB", "parity", "sqnr_db")
        if sqnr:
            keys.append(Key("SQNR", sqnr, ("of the scores",)))
    sizes = [node.maybe("B", "engine_bytes", low=0) for parts in subject.parts.values()
             for node in parts]  # fmt: skip
    size = next((figure for figure in sizes if figure and figure.value), None)
    if size:
        keys.append(Key("Engine", size, ("on the disk",)))
    joules = next(
        (
            (figure, one.node)
            for one in own
            if (figure := one.node.maybe("J", "energy", "joules_per_image", low=0))
        ),
        None,
    )
    if joules:
        watts = joules[1].maybe("W", "energy", "watts", low=0)
        keys.append(Key("Energy an image", joules[0], ("at ", watts) if watts else ()))
    return keys


def _closed(own: Sequence[Measured]) -> Measured:
    """The measurement that latency is told from: one query at a time, of the smallest batch."""
    return min(own, key=lambda one: (one.node.text("scenario", default="") != "latency", one.batch))


def _fastest(own: Sequence[Measured]) -> tuple[Figure, Words] | None:
    """The highest throughput of any measurement, and at which batch."""
    found = []
    for one in own:
        rate = one.node.maybe("images/s", "throughput_ips", low=0)
        if rate:
            found.append((rate, one.batch))
        for item in one.node.items("throughput_by_batch"):
            found.append(
                (
                    item.need("images_per_s").figure("images/s", 0),
                    round(item.need("batch").figure("count", 1).value),
                )
            )
    if not found:
        return None
    rate, batch = max(found, key=lambda pair: pair[0].value)
    return rate, (f"batch {batch}",)


def _notices(subject: Subject, own: Sequence[Measured]) -> list[Notice]:
    found = []
    for run in subject.of("run"):
        why = run.text("not_benched", default="")
        if why:
            found.append(Notice("not measured", ("Speed was not measured here.",), (why,)))
    for node in subject.of("verify"):
        if node.text("execution", default="native") == "emulated":
            said = "Accuracy was judged by emulation on a CPU, not on the device."
            found.append(Notice("emulated", (said,)))
        note = node.text("note", default="")
        if note:
            found.append(Notice("judged", ("Not all was judged as asked.",), (note,)))
    for one in own:
        found += _measured(one, f"{one.title}: " if len(own) > 1 else "")
    cautions = dict.fromkeys(
        text
        for kind in ("build", "verify", "bench")
        for node in subject.of(kind)
        for text in node.texts("cautions")
    )
    if cautions:
        found.append(Notice("caution", ("What the tools warn of.",), tuple(cautions)))
    return found


def _measured(one: Measured, who: str) -> list[Notice]:
    node = one.node
    found = []
    if node.flag("partial", default=False):
        count = derived(len(node.items("samples_s")), "count")
        text = capital(f"{who}the measurement was interrupted and is partial, with ")
        said: Words = (text, count)
        found.append(Notice("partial", (*said, " samples.")))
    reasons = node.texts("unstable_because")
    if reasons or not node.flag("stable", default=True):
        text = capital(f"{who}the measurement was unstable, so its speed is not to be relied on.")
        found.append(Notice("unstable", (text,), reasons, node.texts("advice")))
    beaten = roofline.beaten(node)
    if beaten:
        text = capital(f"{who}the measured peak is too low, since layers beat it.")
        found.append(Notice("peak", (text,), (", ".join(beaten),)))
    if node.text("mlperf", "result", default="VALID") != "VALID":
        scenario = node.text("mlperf", "scenario", default="")
        text = f"{who}MLPerf LoadGen calls its {scenario} run invalid."
        found.append(Notice("mlperf", (text,)))
    return found


def glance(heads: Sequence[Head]) -> Table:
    """Bundles side by side; speed, size and energy also as ratios to the first."""
    names = list(dict.fromkeys(key.name for one in heads for key in one.keys))
    rows: list[tuple[Cell, ...]] = [
        ("verdict", *(Judged(one.verdict) if one.verdict != "none" else "none" for one in heads))
    ]
    for name in names:
        cells: list[Cell] = []
        first: Figure | None = None
        for place, one in enumerate(heads):
            cell = next((key.cell for key in one.keys if key.name == name), "")
            if place == 0 and isinstance(cell, Figure):
                first = cell
            elif isinstance(cell, Figure) and first and first.value and cell.unit in _RATIOS:
                ratio = derived(cell.value / first.value, "times")
                cell = (cell, " (", ratio, ")")
            cells.append(cell)
        rows.append((name[0].lower() + name[1:] if not name.isupper() else name, *cells))
    columns = ("figure", *(f"{one.letter}: {one.name}, {one.target}" for one in heads))
    return Table(f"At a glance; {TIMES} is the ratio to {heads[0].letter}", columns, tuple(rows))


_RATIOS = ("s", "B", "images/s", "J")


def summary(heads: Sequence[Head]) -> tuple[str, Words]:
    """The verdict over all bundles, and how it comes."""
    judged = [one for one in heads if one.verdict != "none"]
    verdict = worst([one.verdict for one in judged])
    if len(heads) == 1:
        return verdict, heads[0].summary
    if not judged:
        return verdict, ("No gate was given; what was found is below, side by side.",)
    parts = [f"{one.letter} {one.verdict}" for one in heads if one.verdict != "none"]
    without = len(heads) - len(judged)
    rest = f"; {without} without a gate" if without else ""
    return verdict, (f"By bundle: {', '.join(parts)}{rest}.",)


__all__ = ["BOUNDS", "glance", "head", "summary", "word", "worst"]
