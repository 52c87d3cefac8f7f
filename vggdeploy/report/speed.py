"""What a report says of throughput, tuning and energy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vggdeploy.report.document import Block, Drawing, Section, Table
from vggdeploy.report.figures import Figure, derived
from vggdeploy.report.measured import settings
from vggdeploy.report.plots import Axis, Line, Lines

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vggdeploy.report.document import Cell, Words
    from vggdeploy.report.measured import Measured
    from vggdeploy.report.reading import Given, Node


def throughput(found: Sequence[Measured], given: Given) -> Section | None:
    """Throughput, and how it changes with the batch; None where nothing was measured."""
    tuned = [(s, node) for s in given.subjects for node in s.of("tune")]
    if not found and not tuned:
        return None
    findings: list[Words] = []
    lines: list[Line] = []
    rows: list[tuple[Cell, ...]] = []
    for one in found:
        rate = one.node.maybe("images/s", "throughput_ips", low=0)
        if rate:
            who = f"{one.letter}: " if len(found) > 1 else ""
            findings.append((who, rate, *_in_flight(one.node), "."))
        points = [
            (item.need("batch").figure("count", 1), item.need("images_per_s").figure("images/s", 0))
            for item in one.node.items("throughput_by_batch")
        ]
        _add(lines, rows, one.letter, one.title, points, one.number)
    for place, (subject, node) in enumerate(tuned):
        name = f"{subject.title}, tuned"
        letter = f"{subject.letter} tuned".strip() if found or len(tuned) > 1 else ""
        _add(lines, rows, letter, name, _best(node), len(found) + place)
    if len({batch for line in lines for batch, _ in line.points}) < 2:
        nothing = "No result has throughput at several batches."
        return Section("throughput", "Throughput", (*findings, (nothing,)))
    drawing = _against_batch(lines, rows)
    findings.append(drawing.finding)
    return Section("throughput", "Throughput", tuple(findings), (Block(drawings=(drawing,)),))


def _in_flight(node: Node) -> Words:
    requests = node.maybe("count", "throughput_requests", low=0)
    if requests is None:
        return ()
    batch = f" of batch {node.number('batch', low=1):.0f}"
    return (
        " with ",
        requests,
        (" query" if requests.value == 1 else " queries") + batch,
        " in flight",
    )


def _best(node: Node) -> list[tuple[Figure, Figure]]:
    """The highest throughput that was tried at each batch."""
    best: dict[float, tuple[Figure, Figure]] = {}
    for item in node.items("tried"):
        rate = item.maybe("images/s", "images_per_s", low=0)
        batch = item.maybe("count", "batch", low=1)
        if rate and batch and (batch.value not in best or rate.value > best[batch.value][1].value):
            best[batch.value] = (batch, rate)
    return [best[key] for key in sorted(best)]


def _add(
    lines: list[Line],
    rows: list[tuple[Cell, ...]],
    letter: str,
    name: str,
    points: list[tuple[Figure, Figure]],
    series: int,
) -> None:
    if points:
        ordered = sorted(points, key=lambda point: point[0].value)
        values = tuple((batch.value, rate.value) for batch, rate in ordered)
        lines.append(Line(letter, name, values, series))
        rows += [(name, batch, rate) for batch, rate in ordered]


def _against_batch(lines: list[Line], rows: list[tuple[Cell, ...]]) -> Drawing:
    batches = sorted({x for line in lines for x, _ in line.points})
    rates = [y for line in lines for _, y in line.points]
    low, high = batches[0], batches[-1]
    ticks = tuple(batches) if len(batches) <= 8 else ()
    x = Axis(low / 1.15, high * 1.15, "count", "images a query", log=True, ticks=ticks)
    y = Axis(0.0, max(rates) * 1.12 or 1.0, "images/s", "throughput")
    finding: Words = ()
    for line in lines:
        batch, rate = max(line.points, key=lambda point: point[1])
        who = f"{line.letter} is" if line.letter else "Throughput is"
        finding += (f"{who} highest at batch {batch:.0f}, ", derived(rate, "images/s"), ". ")
    return Drawing(
        "throughput-batch",
        "Throughput against batch",
        finding,
        Lines(x, y, tuple(lines)),
        Table("Throughput at each batch", ("result", "batch", "throughput"), tuple(rows)),
    )


def tuning(given: Given) -> Section | None:
    """What was tried to find the best setting; None where nothing was tuned."""
    found = [(subject, node) for subject in given.subjects for node in subject.of("tune")]
    if not found:
        return None
    findings: list[Words] = []
    blocks = []
    for subject, node in found:
        who = f"{subject.letter}: for" if subject.letter else "For"
        bound = node.maybe("s", "bound_s", low=0)
        said: Words = (f"{who} the best {node.text('goal')}",)
        said += (" with 99% of queries within ", bound) if bound else ()
        said += (", of ", derived(len(node.items("tried")), "count"), " settings tried: ")
        winner = node.find("winner")
        reason = node.text("reason", default="")
        said += (settings(winner) if winner else "none will do",)
        findings.append((*said, f" ({reason})." if reason else "."))
        blocks.append(Block(subject.title if len(found) > 1 else "", tables=(_tried(node),)))
    return Section("tuning", "Tuning", tuple(findings), tuple(blocks))


def _tried(node: Node) -> Table:
    columns = ["setting", "rounds", "median", "p99", "throughput", "kept until rung", "why out"]
    winner = node.find("winner")
    chosen = (winner.find("batch"), winner.find("settings")) if winner else (None, None)
    rows: list[tuple[Cell, ...]] = []
    marked = []
    for place, item in enumerate(node.items("tried")):
        same = winner is not None and all(
            (a.value if a else None) == (b.value if b else None)
            for a, b in zip(chosen, (item.find("batch"), item.find("settings")), strict=True)
        )
        if same:
            marked.append(place)
        rows.append(
            (
                settings(item) + (": chosen" if same else ""),
                item.maybe("count", "rounds", low=0) or "",
                item.maybe("s", "p50", low=0) or "",
                item.maybe("s", "p99", low=0) or "",
                item.maybe("images/s", "images_per_s", low=0) or "",
                item.maybe("count", "kept_until", low=0) or "",
                item.text("out", default=""),
            )
        )
    kept = [0, *(place for place in range(1, len(columns)) if any(row[place] for row in rows))]
    return Table(
        "Settings that were tried",
        tuple(columns[place] for place in kept),
        tuple(tuple(row[place] for place in kept) for row in rows),
        marked=frozenset(marked),
    )


def energy(found: Sequence[Measured]) -> Section | None:
    """Joules an image where the machine tells; None where nothing was measured."""
    if not found:
        return None
    told = [one for one in found if one.node.find("energy")]
    warm = [one for one in found if one.node.find("temperature_c")]
    told_heat = [_temperatures(one, len(found) > 1) for one in warm]
    tables = tuple(table for table in told_heat if table.rows)
    block = (Block(tables=tables),) if tables else ()
    if not told:
        notes = {one.node.text("energy_note", default="") for one in found} - {""}
        why = "; ".join(sorted(notes)) or "the machine does not tell"
        return Section("energy", "Energy", ((f"No energy was recorded: {why}.",),), block)
    findings: list[Words] = []
    rows: list[tuple[Cell, ...]] = []
    for key, name, unit in _ENERGY:
        cells = [one.node.need("energy").maybe(unit, key, low=-1e30) for one in told]
        if any(cells):
            rows.append((name, *(cell or "" for cell in cells)))
    rows.append(("source", *(one.node.text("energy", "source", default="") for one in told)))
    for one in told:
        part = one.node.need("energy")
        joules = part.maybe("J", "joules_per_image")
        net = part.maybe("J", "net_joules_per_image")
        if joules:
            said: Words = (f"{one.letter}: an" if len(found) > 1 else "An", " image takes ", joules)
            said += (" (", net, " above idle)") if net else ()
            findings.append((*said, "."))
    heads = [one.title if len(found) > 1 else "value" for one in told]
    table = Table("Energy over the window of the samples", ("measure", *heads), tuple(rows))
    return Section("energy", "Energy", tuple(findings), (Block(tables=(table, *tables)),))


_ENERGY = (
    ("joules_per_image", "energy an image", "J"),
    ("net_joules_per_image", "above idle, an image", "J"),
    ("watts", "mean power", "W"),
    ("idle_watts", "idle power", "W"),
    ("seconds", "window", "s"),
    ("images", "images in it", "count"),
)


def _temperatures(one: Measured, several: bool) -> Table:
    part = one.node.need("temperature_c")
    before, after = part.find("before"), part.find("after")
    sensors: dict[str, list[Cell]] = {}
    for place, side in enumerate((before, after)):
        for name, leaf in side.leaves() if side else ():
            if leaf.value is not None:
                sensors.setdefault(name, ["", ""])[place] = leaf.figure("degC")
    caption = f"Temperatures{', ' + one.letter if several else ''}"
    rows = tuple((name, *cells) for name, cells in sensors.items())
    return Table(caption, ("sensor", "before", "after"), rows)
