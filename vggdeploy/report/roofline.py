"""What a report says of the budget: the roofline, and each layer's time against its floor.

The roofline is that of S. Williams, A. Waterman and D. Patterson, "Roofline: an insightful visual
performance model for multicore architectures" (CACM 52, 2009), in MACs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vggdeploy.report.document import Block, Drawing, Section, Table
from vggdeploy.report.figures import Figure, derived
from vggdeploy.report.plots import Axis, Bar, Bars, Point, Roofline

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vggdeploy.report.document import Cell, Words
    from vggdeploy.report.measured import Measured
    from vggdeploy.report.reading import Node

_MOST_BARS = 40
_ONE_SCALE = 8.0
_INSTANT_S = 1e-12
"""What is shorter took no time: a rate over it would be of anything."""

_KINDS = {"conv": "conv", "linear": "linear", "gemm": "linear", "convolution": "conv"}


@dataclass(frozen=True)
class Layer:
    """A layer of ``budget.layers``."""

    name: str
    kind: str
    seconds: Figure
    macs: Figure | None
    bytes: Figure | None
    intensity: Figure | None
    floor: Figure | None
    share: Figure | None
    bound: str
    precision: str
    peak: Figure | None

    @property
    def rate(self) -> float | None:
        """MACs a second; None where it has none or took no time."""
        if self.macs is None or not self.macs.value or self.seconds.value < _INSTANT_S:
            return None
        return self.macs.value / self.seconds.value

    @property
    def times_floor(self) -> float | None:
        """Its time over its floor; None where that is unknown or none."""
        if self.floor is None or self.floor.value < _INSTANT_S:
            return None
        return self.seconds.value / self.floor.value


def layers_of(node: Node) -> list[Layer]:
    """The layers that a measurement tells apart, in the network's order; none where no time was
    found for any."""
    layers = [
        Layer(
            item.text("name"),
            item.text("kind", default=""),
            item.need("seconds").figure("s", 0),
            item.maybe("MAC", "macs", low=0),
            item.maybe("B", "bytes", low=0),
            item.maybe("MAC/B", "intensity", low=0),
            item.maybe("s", "floor_s", low=0),
            item.maybe("part", "share", low=0),
            item.text("bound", default=""),
            item.text("precision", default=""),
            item.maybe("MAC/s", "peak_macs_per_s", low=0),
        )
        for item in node.items("budget", "layers")
    ]
    return layers if any(layer.seconds.value for layer in layers) else []


def section(found: Sequence[Measured]) -> Section | None:
    """Rooflines and totals; None where no measurement has a budget."""
    shown = [one for one in found if one.node.find("budget", "peak_macs_per_s")]
    if not shown:
        return None
    several = len(found) > 1
    blocks = []
    for one, drawing in zip(shown, _rooflines(shown), strict=True):
        blocks.append(
            Block(
                one.title if several else "",
                drawings=(drawing,) if drawing else (),
                tables=(_totals(one, several),),
            )
        )
    findings = tuple(_sentence(one, several) for one in shown)
    return Section("roofline", "Roofline", findings, tuple(blocks))


def layer_section(found: Sequence[Measured]) -> Section | None:
    """Each layer's time against its floor; None where nothing was measured."""
    shown = [one for one in found if layers_of(one.node)]
    if not shown:
        if not found:
            return None
        nothing = "No result tells the layers' times apart."
        return Section("layers", "Layers", ((nothing,),))
    several = len(found) > 1
    findings = tuple(_slowest(one, several) for one in shown)
    most = [max(_longest(layer) for layer in layers_of(one.node)) for one in shown]
    # One scale for all, as long as the fastest can be seen on it.
    scale = max(most) if max(most) <= _ONE_SCALE * min(most) else None
    blocks = tuple(
        Block(one.title if several else "", drawings=(_bars(one, scale or own),))
        for one, own in zip(shown, most, strict=True)
    )
    return Section("layers", "Layers", findings, blocks)


def _sentence(one: Measured, several: bool) -> Words:
    budget = one.node.need("budget")
    achieved = budget.maybe("MAC/s", "achieved_macs_per_s", low=0)
    share = budget.maybe("part", "utilisation", low=0)
    said: Words = (f"{one.letter} attains " if several else "The network attains ",)
    if achieved is None or share is None:
        return ("There is a peak, and no rate to hold against it.",)
    where = "measured peak" if budget.text("peak_from", default="") == "measured" else "rated peak"
    said += (achieved, ", ", share, f" of the {where}")
    bound = budget.text("bound", default="")
    if bound:
        said += (f"; {'memory' if bound == 'memory' else 'arithmetic'} is what binds",)
    if share.value > 1:
        said += (
            ". Over 100% means fewer multiplications than the network has, as Winograd's way, "
            "or a peak that was measured too low",
        )
    return (*said, ".")


def _totals(one: Measured, several: bool) -> Table:
    budget = one.node.need("budget")
    rows: list[tuple[Cell, ...]] = []
    for key, name, unit in (
        ("macs", "work of a query", "MAC"),
        ("bytes", "weights read by a query", "B"),
        ("achieved_macs_per_s", "attained", "MAC/s"),
        ("peak_macs_per_s", "peak", "MAC/s"),
        ("utilisation", "utilisation", "part"),
        ("peak_bytes_per_s", "bandwidth", "B/s"),
        ("compute_floor_s", "compute floor", "s"),
        ("memory_floor_s", "memory floor", "s"),
    ):
        figure = budget.maybe(unit, key, low=0)
        if figure:
            rows.append((name, figure))
    check = budget.find("peak_check")
    if check:
        ok = check.flag("ok", default=True)
        beaten = ", ".join(_beaten(check))
        rows.append(("peak check", "no layer beats the peak" if ok else f"beaten by {beaten}"))
    return Table(
        f"The budget{', ' + one.letter if several else ''}", ("measure", "value"), tuple(rows)
    )


def _beaten(check: Node) -> list[str]:
    """Names of layers that are faster than the peak allows."""
    return [
        item.text("name") if isinstance(item.value, dict) else item.text()
        for item in check.items("beaten_by")
    ]


def beaten(node: Node) -> list[str]:
    """Layers that beat the measured peak, so that it must be wrong."""
    check = node.find("budget", "peak_check")
    return [] if check is None or check.flag("ok", default=True) else _beaten(check)


def _rooflines(shown: Sequence[Measured]) -> list[Drawing | None]:
    """A roofline of each, all on the same axes."""
    drawn = [_roofline(one) for one in shown]
    axes = [d.plot for d in drawn if d is not None and isinstance(d.plot, Roofline)]
    if len(axes) < 2:
        return drawn
    x = replace(axes[0].x, low=min(p.x.low for p in axes), high=max(p.x.high for p in axes))
    y = replace(axes[0].y, low=min(p.y.low for p in axes), high=max(p.y.high for p in axes))
    return [
        replace(d, plot=replace(d.plot, x=x, y=y)) if d and isinstance(d.plot, Roofline) else d
        for d in drawn
    ]


def _roofline(one: Measured) -> Drawing | None:
    budget = one.node.need("budget")
    peak = budget.number("peak_macs_per_s", low=0)
    bandwidth = budget.maybe("B/s", "peak_bytes_per_s", low=0)
    points, rows = [], []
    layers = layers_of(one.node)
    whole = sum(layer.seconds.value for layer in layers) or 1.0
    for layer in layers:
        rate = layer.rate
        if rate is None or layer.intensity is None or layer.intensity.value <= 0:
            continue
        shown = derived(rate, "MAC/s")
        share = layer.seconds.value / whole
        # A layer in another precision than the rest has a peak of its own.
        top = layer.peak.value if layer.peak and layer.peak.value else peak
        roof = min(top, layer.intensity.value * bandwidth.value) if bandwidth else top
        part = derived(rate / roof if roof else 0.0, "part")
        tip = f"{layer.name}: {shown.text} at {layer.intensity.text}, {part.text} of its roof"
        kind = _KINDS.get(layer.kind.lower().partition(" ")[0], "other")
        points.append(Point(layer.name, kind, layer.intensity.value, rate, share, tip))
        rows.append((layer.name, layer.kind, layer.intensity, shown, part))
    macs, read = budget.maybe("MAC", "macs", low=0), budget.maybe("B", "bytes", low=0)
    achieved = budget.maybe("MAC/s", "achieved_macs_per_s", low=0)
    if macs and read and achieved and macs.value and read.value and achieved.value:
        intensity = derived(macs.value / read.value, "MAC/B")
        tip = f"whole network: {achieved.text} at {intensity.text} of weights"
        points.append(Point("whole network", "whole", intensity.value, achieved.value, 0.0, tip))
        roof = min(peak, intensity.value * bandwidth.value) if bandwidth else peak
        part = derived(achieved.value / roof if roof else 0.0, "part")
        rows.append(("whole network", "weights alone", intensity, achieved, part))
    if not points or peak <= 0:
        return None
    finding: Words = ("The roof is ", derived(peak, "MAC/s"))
    xs = [point.x for point in points]
    if bandwidth and bandwidth.value:
        ridge = peak / bandwidth.value
        xs.append(ridge)
        finding += (", and below ", derived(ridge, "MAC/B"), " it is the bandwidth of ", bandwidth)
    nearest = max(rows, key=lambda row: row[4].value)
    finding += (f". {nearest[0]} comes nearest to its roof, with ", nearest[4], " of it.")
    ys = [point.y for point in points]
    x = Axis(min(xs) / 2, max(xs) * 2, "MAC/B", "arithmetic intensity", log=True)
    y = Axis(min([*ys, peak / 10]) / 1.6, max([*ys, peak]) * 2, "MAC/s", "rate", log=True)
    known = bandwidth.value if bandwidth and bandwidth.value else None
    note = "The whole network counts the bytes of its weights alone."
    if layers:
        note = f"A mark's area is its share of the layers' time. {note}"
    return Drawing(
        f"roofline-{one.slug}",
        "Roofline",
        finding,
        Roofline(x, y, peak, known, tuple(points)),
        Table(
            "Layers below the roof",
            ("layer", "kind", "intensity", "attained", "of its roof"),
            tuple(rows),
            numeric=2,
        ),
        note,
    )


def _longest(layer: Layer) -> float:
    return max(layer.seconds.value, layer.floor.value if layer.floor else 0.0)


def _slowest(one: Measured, several: bool) -> Words:
    layers = layers_of(one.node)
    slow = max(layers, key=lambda layer: layer.seconds.value)
    total = sum(layer.seconds.value for layer in layers)
    said: Words = (f"{one.letter}: {slow.name}" if several else slow.name, " takes longest, ")
    said += (slow.seconds,)
    if total:
        said += (" or ", derived(slow.seconds.value / total, "part"), " of the layers' time")
    if slow.times_floor:
        said += (", ", derived(slow.times_floor, "times"), " its floor")
    return (*said, ".")


def _bars(one: Measured, longest: float) -> Drawing:
    layers = layers_of(one.node)
    slowest = sorted(layers, key=lambda layer: -layer.seconds.value)[:_MOST_BARS]
    shown = [layer for layer in layers if layer in slowest][:_MOST_BARS]
    bars = tuple(
        Bar(
            layer.name,
            layer.seconds.value,
            layer.floor.value if layer.floor else None,
            layer.seconds.text,
        )
        for layer in shown
    )
    total = sum(layer.seconds.value for layer in layers)
    floors = sum(layer.floor.value for layer in layers if layer.floor)
    finding: Words = (f"{len(layers)} layers take ", derived(total, "s"), " together")
    if floors:
        finding += (", ", derived(total / floors, "times"), " the sum of their floors")
    rows = tuple(
        (
            layer.name,
            layer.kind,
            layer.precision,
            layer.seconds,
            layer.share or (derived(layer.seconds.value / total, "part") if total else ""),
            layer.floor or "",
            derived(layer.times_floor, "times") if layer.times_floor else "",
            layer.bound,
            layer.macs or "",
            layer.bytes or "",
        )
        for layer in layers
    )
    note = "The floor, the full bar, is what the peak and the bandwidth allow."
    if len(shown) < len(layers):
        note += f" The {len(shown)} slowest of {len(layers)} are drawn; the table has all."
    return Drawing(
        f"layers-{one.slug}",
        "Time of each layer, and its floor",
        (*finding, "."),
        Bars(Axis(0.0, longest or 1e-9, "s", "time"), bars),
        Table(
            "Time of each layer",
            (
                "layer",
                "kind",
                "precision",
                "time",
                "share",
                "floor",
                "times floor",
                "binds",
                "work",
                "moved",
            ),
            rows,
            numeric=3,
        ),
        note,
    )
