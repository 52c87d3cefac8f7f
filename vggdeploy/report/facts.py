"""What a report says of comparisons, of how bundles were built, of the machines, and of digests."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from vggdeploy.report.document import Block, Drawing, Section, Table, between, text_of
from vggdeploy.report.figures import derived
from vggdeploy.report.plots import Axis, Interval, Intervals
from vggdeploy.text import clean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vggdeploy.report.document import Cell, Words
    from vggdeploy.report.reading import Given, Node

_DIGEST = 12
"""Characters that name a bundle where it has no other name."""

_FEW = "too few samples for an interval"


def comparison(given: Given) -> Section | None:
    """Comparisons of two bundles in one run; None where there is none."""
    if not given.comparisons:
        return None
    findings: list[Words] = []
    rows: list[tuple[Cell, ...]] = []
    intervals = []
    cautions: list[str] = []
    for node in given.comparisons:
        a, b = _named(given, node.need("a")), _named(given, node.need("b"))
        ratio = node.need("ratio").figure("times", 1e-12)
        ends = node.interval("times", "ci95")
        low, high = ends or (ratio, ratio)
        metric, verdict = node.text("metric"), node.text("verdict")
        paired = "paired" if node.flag("paired", default=False) else "not paired"
        name = f"{a} to {b}, {metric}"
        what = {"latency": "median latency", "rate": "rate of arrivals"}.get(metric, metric)
        said = f"{a} is {verdict} than {b}"
        if verdict not in ("faster", "slower"):
            said = f"{a} beside {b}: {verdict}"
        unsure = "found by trials, with no interval" if metric == "rate" else _FEW
        sure: Words = ("95%: ", *between(ends)) if ends else (unsure,)
        findings.append((f"{said}; its {what} is ", ratio, f" {b}'s (", *sure, ")."))
        cautions += node.texts("cautions")
        rows.append((name, ratio, between(ends), verdict, paired))
        intervals.append(Interval(name, ratio.value, low.value, high.value, ratio.text))
    reach = [value for row in intervals for value in (row.low, row.high, row.value)] + [1.0]
    pad = 1.05
    axis = Axis(min(reach) / pad, max(reach) * pad, "times", "ratio", log=True)
    drawing = Drawing(
        "comparison",
        "Ratio with its 95% interval; at 1 there is no difference",
        tuple(part for said in findings for part in (*said, " ")),
        Intervals(axis, tuple(intervals), line=1.0),
        Table("Ratios", ("comparison", "ratio", "95% interval", "verdict", "samples"), tuple(rows)),
        note="The first over the second: below 1 the first has the lower latency, or throughput.",
    )
    text = tuple((f"Caution: {caution}.",) for caution in dict.fromkeys(cautions))
    block = Block(text=text, drawings=(drawing,))
    return Section("comparison", "Comparison", tuple(findings), (block,))


def _named(given: Given, side: Node) -> str:
    known = given.named(side.text("digest", default=""))
    if known is not None:
        return known.letter or known.name
    bundle = side.text("bundle", default="").rstrip("/").rpartition("/")[2]
    target = side.text("target", default="")
    return ", ".join(filter(None, (bundle, target))) or side.text("digest")[:_DIGEST]


def building(given: Given) -> Section | None:
    """How long each stage of a build took and what it left; None where nothing was built."""
    found = [(subject, node) for subject in given.subjects for node in subject.of("build")]
    if not found:
        return None
    blocks = []
    findings: list[Words] = []
    for subject, node in found:
        stages = node.items("stages")
        seconds = [item.need("seconds").figure("s", 0) for item in stages]
        rows = tuple(
            (
                item.text("name"),
                figure,
                "from the cache" if item.flag("cached", default=False) else "made",
            )
            for item, figure in zip(stages, seconds, strict=True)
        )
        who = f"{subject.letter}: the" if subject.letter else "The"
        finding: Words = (f"{who} build took ", derived(sum(f.value for f in seconds), "s"))
        size = node.maybe("B", "engine_bytes", low=0)
        if size and size.value:
            finding += (" and made an engine of ", size)
        findings.append((*finding, "."))
        text: list[Words] = []
        images = node.maybe("count", "calibration_images", low=0)
        if images and images.value:
            text.append(("Calibrated on ", images, " images."))
        left = [
            f"{pair[0].text()} ({pair[1].text()})"
            for item in node.items("left_in_high_precision")
            if len(pair := item.items()) == 2
        ]
        if left:
            text.append((f"Left in high precision: {'; '.join(left)}.",))
        tables = (Table("Stages of the build", ("stage", "time", ""), rows),) if rows else ()
        title = subject.title if len(found) > 1 else ""
        blocks.append(Block(title, tuple(text), tables=tables))
    return Section("build", "Build", tuple(findings), tuple(blocks))


def machine(given: Given) -> Section | None:
    """The machines, and where they differ; None where no result names one."""
    machines = _machines(given)
    if not machines:
        return None
    told = [dict(system.leaves()) for system, _ in machines]
    varying = [
        key for key in _MOMENTARY for values in told if any(name.startswith(key) for name in values)
    ]
    shared = any(len(names) > 1 for _, names in machines)
    groups: dict[str, list[str]] = {"": []}
    for key in dict.fromkeys(key for values in told for key in values):
        if shared and any(key.startswith(name) for name in varying):
            continue  # of one moment, and these results are of several
        group = key.partition(" ")[0] if key.startswith(_GROUPS) else ""
        groups.setdefault(group, []).append(key)
    heads: tuple[str, ...] = ("value",)
    if len(machines) > 1:
        heads = tuple(
            f"machine {place}" + (f" ({', '.join(names)})" if any(names) else "")
            for place, (_, names) in enumerate(machines, 1)
        )
    tables, differing = [], []
    for group, keys in groups.items():
        table, found = _machine_table(group, keys, told, heads)
        tables += [table] if table.rows else []
        differing += found
    first = machines[0][0]
    cores = first.maybe("count", "cores", low=0)
    cpu = first.text("cpu", default="an unnamed CPU")
    finding: Words = (f"Measured on {cpu}", *((", ", cores, " cores") if cores else ()), ".")
    if len(machines) > 1:
        listed = ", ".join(differing[:6])
        more = f" and {len(differing) - 6} more" if len(differing) > 6 else ""
        finding = (
            f"The results are of {len(machines)} machines, or of one in several states. They "
            f"differ in {listed}{more}, which is to be kept in mind when figures are compared.",
        )
    return Section("machine", "Machine", (finding,), (Block(tables=tuple(tables)),))


_MOMENTARY = ("load_average", "frequency_hz current")
"""What changes from one measurement to the next on one machine."""

_GROUPS = ("libraries ", "gpus ", "jetson ")
"""Keys of the machine that have a table of their own."""


def _machines(given: Given) -> list[tuple[Node, list[str]]]:
    """Each machine, with the letters of the bundles that were measured on it."""
    found = [
        (subject.letter, node.need("system"))
        for subject in given.subjects
        for kind in ("bench", "tune")
        for node in subject.of(kind)
        if node.find("system")
    ]
    found += [("", node.need("system")) for node in given.comparisons if node.find("system")]
    machines: list[tuple[Node, list[str]]] = []
    for name, system in found:
        same = next((m for m in machines if _lasting(m[0]) == _lasting(system)), None)
        if same is None:
            machines.append((system, [name]))
        elif name not in same[1]:
            same[1].append(name)
    return machines


def _lasting(system: Node) -> dict[str, Any]:
    return {
        key: node.value
        for key, node in system.leaves()
        if not key.startswith(_MOMENTARY) and node.value not in (None, [], {})
    }


def _machine_table(
    group: str, keys: Sequence[str], told: Sequence[dict[str, Node]], heads: tuple[str, ...]
) -> tuple[Table, list[str]]:
    """A table of some of the machine's keys, and which of them differ."""
    rows: list[tuple[Cell, ...]] = []
    differing: list[str] = []
    marked = []
    for key in keys:
        cells = [_value(key, values[key]) if key in values else "" for values in told]
        if not any(cells):
            continue
        label = key.removeprefix(f"{group} ").replace("_", " ")
        shown = {text_of(cell) for cell in cells}
        if len(shown) > 1 and not key.startswith(_MOMENTARY):
            marked.append(len(rows))
            differing.append(label)
            label += " (differs)"
        rows.append((label, *cells))
    caption = "The machine"
    if group:
        caption = {"libraries": "Libraries", "gpus": "GPUs", "jetson": "Jetson"}[group]
    table = Table(
        caption, ("key", *heads), tuple(rows), numeric=len(heads) + 1, marked=frozenset(marked)
    )
    return table, differing


def _value(key: str, node: Node) -> Cell:
    """A value of the machine; in a row of its own."""
    value = node.value
    if value is None or value in ([], {}):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        if "hz" in key:
            return node.figure("Hz")
        return node.figure("B" if key.endswith("bytes") else "raw")
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return clean(", ".join(value))
    return clean(json.dumps(value))


def digests(given: Given) -> Section:
    """What the report was made from, to the byte."""
    bundles: list[tuple[Cell, ...]] = [
        (subject.title, subject.bundle, subject.digest) for subject in given.subjects
    ]
    files: list[tuple[Cell, ...]] = [
        (file.name, file.kind, file.sha256) for file in given.files if file.sha256
    ]
    tables = []
    if bundles:
        tables.append(
            Table("Bundles", ("bundle", "place", "digest"), tuple(bundles), numeric=3, code=True)
        )
    if files:
        columns = ("file", "kind", "SHA-256")
        tables.append(Table("Result files", columns, tuple(files), numeric=3, code=True))
    finding = f"{_count(len(bundles), 'bundle')}, {_count(len(given.files), 'result file')}."
    return Section("digests", "Digests", ((finding,),), (Block(tables=tuple(tables)),))


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def present(sections: Sequence[Section | None]) -> tuple[Section, ...]:
    """The sections that there are."""
    return tuple(section for section in sections if section is not None)
