"""Each kind of plot as SVG; see `svg` for how it fits a page of any width."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from vggdeploy.report import plots
from vggdeploy.report.figures import show
from vggdeploy.report.svg import (
    CHARACTER,
    GAP,
    LINE,
    NARROW,
    Area,
    Svg,
    beside,
    box_of,
    colour_of,
    element,
    icon,
    label,
    overlap,
    percent,
    sample,
    short,
    x_axis_of,
    y_axis_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vggdeploy.report.plots import Bars, Ecdf, Histogram, Intervals, Lines, Mark, Roofline

_MARK_ROWS = 3
"""Of labels above a histogram, one below the other."""


def draw(plot: plots.Plot, name: str, title: str, finding: str) -> Svg:
    """A plot with its alternative in words.

    Args:
        plot: what to draw.
        name: unique in the page; ids begin with it.
        title: what is plotted.
        finding: what it shows, which a screen reader says in its place.
    """
    inner, height = _DRAW[type(plot)](plot)  # type: ignore[operator]
    words = element("title", escape(title), id=f"plot-{name}-title")
    words += element("desc", escape(finding), id=f"plot-{name}-desc")
    return Svg(
        element(
            "svg",
            words + inner,
            role="img",
            aria_labelledby=f"plot-{name}-title plot-{name}-desc",
            width="100%",
            height=height,
            focusable="false",
        )
    )


def legend(plot: plots.Plot) -> list[tuple[Svg, str]]:
    """What marks and lines stand for, each with a sample; empty where labels say it."""
    if isinstance(plot, plots.Ecdf) and len(plot.curves) > 1:
        return [(sample(curve.series), curve.name) for curve in plot.curves]
    if isinstance(plot, plots.Lines) and len(plot.lines) > 1:
        return [(sample(line.series), line.name) for line in plot.lines]
    if isinstance(plot, plots.Roofline):
        kinds = dict.fromkeys(point.kind for point in plot.points)
        return [(icon(_shape(kind, "50%", 8, 5)), _KIND_NAMES[kind]) for kind in kinds]
    if isinstance(plot, plots.Bars):
        floors = any(bar.floor is not None for bar in plot.bars)
        bar = element("rect", x=1, y=2, width=22, height=12, class_="time")
        floor = element("rect", x=1, y=5, width=22, height=6, class_="floor")
        shown = [(icon(bar), "time")]
        return [*shown, (icon(floor), "floor")] if floors else []
    return []


_KIND_NAMES = {
    "conv": "convolution", "linear": "fully connected", "whole": "whole network", "other": "other",
}  # fmt: skip


def _histogram(plot: Histogram) -> tuple[str, int]:
    y = plots.Axis(0.0, float(max(plot.counts) or 1), "count", "samples")
    area = Area(_MARK_ROWS * (LINE + 2) + 22, 150, plot.x, y)
    out = y_axis_of(area, y, _whole(plots.ticks_of(y)))
    for start, end, count in zip(plot.edges[:-1], plot.edges[1:], plot.counts, strict=True):
        left, right = plot.x.place(start), plot.x.place(end)
        top = area.down(count)
        what = f"{show(start, 's')} to {show(end, 's')}: {count:,} samples"
        bar = element("title", escape(what))
        if count:
            out += element(
                "rect",
                bar,
                x=percent(left),
                width=percent(right - left),
                y=top,
                height=round(area.foot - top, 2),
                class_=f"bar {colour_of(plot.series)}",
            )
    for row, mark in enumerate(plot.marks):
        place = plot.x.place(mark.value)
        y_text = row * (LINE + 2) + 12
        x = percent(place)
        out += element("line", x1=x, x2=x, y1=y_text - 9, y2=area.foot, class_="mark")
        out += label(
            f"{mark.name} {show(mark.value, 's')}", x, y_text, class_="halo", **beside(place)
        )
    return out + x_axis_of(area), area.foot + 42


def _whole(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(value for value in values if value == int(value))


def _ecdf(plot: Ecdf) -> tuple[str, int]:
    y = plots.Axis(0.0, 1.0, "share", "queries within that time")
    area = Area(32, 220, plot.x, y)
    out = y_axis_of(area, y, (0.0, 0.5, 0.9, 0.99))
    curves = ""
    for curve in plot.curves:
        path = ""
        for value, share in zip(curve.values, curve.shares, strict=True):
            right, down = 1000 * plot.x.place(value), area.height * (1 - share)
            path += f"H{right:.1f}V{down:.2f}" if path else f"M{right:.1f} {area.height}V{down:.2f}"
        if curve.shares and curve.shares[-1] < 1:
            path += "H1000"  # the rest lies beyond
        curves += element(
            "path",
            d=path,
            vector_effect="non-scaling-stroke",
            class_=f"line {colour_of(curve.series)}",
        )
    # Only a path cannot be told in percentages: it is stretched, its stroke is not.
    out += element(
        "svg",
        curves,
        x=0,
        y=area.top,
        width="100%",
        height=area.height,
        viewBox=f"0 0 1000 {area.height}",
        preserveAspectRatio="none",
        class_="stretched",
    )
    alone = len(plot.curves) == 1
    for curve in plot.curves:
        colour = colour_of(curve.series)
        if alone:
            out += _drops(area, curve.marks)
        for mark in curve.marks:
            out += _whisker(area, mark, area.at(plots.SHARES[mark.name]), colour)
        if curve.letter and curve.marks:
            x = area.across(curve.marks[0].value)
            out += label(
                curve.letter, x, area.at(0.5) + 16, dx=GAP, class_=f"halo strong {colour}-text"
            )
    return out + x_axis_of(area), area.foot + 42


def _drops(area: Area, marks: Sequence[Mark]) -> str:
    """Lines from the percentiles down, each named above the axis: there the curve never is."""
    out = ""
    for row, mark in enumerate(marks):
        place = area.x.place(mark.value)
        across, y = percent(place), area.foot - 10 - (len(marks) - 1 - row) * (LINE + 3)
        top = area.at(plots.SHARES[mark.name])
        out += element("line", x1=across, x2=across, y1=top, y2=area.foot, class_="mark")
        out += label(
            f"{mark.name} {show(mark.value, 's')}", across, y, class_="halo", **beside(place)
        )
    return out


def _whisker(area: Area, mark: Mark, y: float, colour: str) -> str:
    """A dot on a curve with its interval."""
    out = ""
    if mark.low is not None and mark.high is not None:
        out += element(
            "line",
            x1=area.across(mark.low),
            x2=area.across(mark.high),
            y1=y,
            y2=y,
            class_=f"interval {colour}",
        )
    return out + element("circle", cx=area.across(mark.value), cy=y, r=4, class_=f"dot {colour}")


def _shape(kind: str, x: str, y: float, r: float, inner: str = "") -> str:
    """A mark of a kind; in a frame of its own, so that any shape stands at a percentage."""
    if kind == "conv":
        return element("circle", inner, cx=x, cy=y, r=r, class_="point series-0")
    if kind == "linear":
        shape = element("rect", inner, x=-r, y=-r, width=2 * r, height=2 * r)
    elif kind == "whole":
        shape = element("path", inner, d=f"M0 {-r:g}L{r:g} 0L0 {r:g}L{-r:g} 0Z")
    else:
        shape = element("path", inner, d=f"M0 {-r:g}L{r:g} {r:g}L{-r:g} {r:g}Z")
    colour = {"linear": "series-1", "whole": "series-2"}.get(kind, "series-3")
    return element("svg", element("g", shape, class_=f"point {colour}"), x=x, y=y, class_="at")


def _roofline(plot: Roofline) -> tuple[str, int]:
    area = Area(32, 270, plot.x, plot.y)
    out = y_axis_of(area, plot.y)
    x_axis = x_axis_of(area)
    taken: list[tuple[float, float, float, float]] = []
    ridge = plot.x.low
    if plot.bandwidth:
        ridge = min(plot.x.high, max(plot.x.low, plot.peak / plot.bandwidth))
        # Where the slope enters the plot: at its left edge, or at its foot.
        start = max(plot.x.low, plot.y.low / plot.bandwidth)
        if start < ridge:
            end = min(plot.peak, ridge * plot.bandwidth)
            out += element(
                "line",
                x1=area.across(start),
                x2=area.across(ridge),
                y1=area.down(start * plot.bandwidth),
                y2=area.down(end),
                class_="roof",
            )
            middle = (start * ridge) ** 0.5
            x, y = plot.x.place(middle), area.down(middle * plot.bandwidth) + 4
            words = show(plot.bandwidth, "B/s")
            # Left of the slope, or below it where the axis is near.
            left = x * NARROW > len(words) * CHARACTER
            dx, y = (-GAP, y) if left else (GAP, y + LINE)
            anchor = "end" if left else "start"
            out += label(words, percent(x), y, dx=dx, text_anchor=anchor, class_="halo label")
            taken.append(box_of(x, y, words, left=left))
    level = area.down(plot.peak)
    out += element("line", x1=area.across(ridge), x2="100%", y1=level, y2=level, class_="roof")
    words = f"{show(plot.peak, 'MAC/s')} peak"
    out += label(words, "100%", level - 7, text_anchor="end", class_="halo label")
    marks = []
    for point in plot.points:
        x, y = plot.x.place(point.x), area.down(point.y)
        r = 6.0 if point.kind == "whole" else round(3.5 + 9 * point.share**0.5, 2)
        marks.append((x * NARROW - r, y - r, x * NARROW + r, y + r))
        out += _shape(point.kind, percent(x), y, r, element("title", escape(point.tip)))
    order = sorted(
        range(len(plot.points)),
        key=lambda i: (plot.points[i].kind != "whole", -plot.points[i].share, i),
    )
    for index in order:
        point = plot.points[index]
        x, y = plot.x.place(point.x), area.down(point.y) + 4
        left = x >= 0.6
        reach = (marks[index][2] - marks[index][0]) / 2 + 4
        box = box_of(x, y, point.name, left=left, gap=reach)
        others = [*taken, *(mark for place, mark in enumerate(marks) if place != index)]
        if any(overlap(box, other) for other in others):
            continue
        taken.append(box)
        out += label(
            short(point.name),
            percent(x),
            y,
            dx=-reach if left else reach,
            text_anchor="end" if left else "start",
            class_="halo",
        )
    return out + x_axis, area.foot + 42


_ROW = 22


def _bars(plot: Bars) -> tuple[str, int]:
    area = Area(4, _ROW * len(plot.bars), plot.x)
    out = ""
    for row, bar in enumerate(plot.bars):
        y = area.top + row * _ROW
        width = plot.x.place(bar.value)
        said = f"{bar.name}: {show(bar.value, 's')}"
        if bar.floor is not None:
            said += f", floor {show(bar.floor, 's')}"
        out += label(short(bar.name), "0%", y + 15, dx=-GAP, text_anchor="end")
        inner = element("title", escape(said))
        out += element("rect", inner, x=0, y=y + 4, width=percent(width), height=14, class_="time")
        if bar.floor is not None:
            floor = percent(plot.x.place(bar.floor))
            out += element("rect", x=0, y=y + 8, width=floor, height=6, class_="floor")
        end = max(width, plot.x.place(bar.floor or 0.0))
        out += label(bar.label, percent(end), y + 15, dx=6)
    return out + x_axis_of(area), area.foot + 42


def _lines(plot: Lines) -> tuple[str, int]:
    area = Area(32, 200, plot.x, plot.y)
    out = y_axis_of(area, plot.y)
    taken: list[tuple[float, float, float, float]] = []
    for line in plot.lines:
        colour = colour_of(line.series)
        places = [(plot.x.place(x), area.down(y)) for x, y in line.points]
        for (x1, y1), (x2, y2) in itertools.pairwise(places):
            out += element(
                "line",
                x1=percent(x1),
                x2=percent(x2),
                y1=y1,
                y2=y2,
                class_=f"line {colour}",
            )
        best = max(range(len(places)), key=lambda i: line.points[i][1])
        for index, ((x, y), (batch, rate)) in enumerate(zip(places, line.points, strict=True)):
            tip = element("title", escape(f"batch {batch:g}: {show(rate, 'images/s')}"))
            out += element("circle", tip, cx=percent(x), cy=y, r=4, class_=f"dot {colour}")
            if index == best:
                words = f"{line.letter} {show(rate, 'images/s')}".strip()
                anchor, back = ("end", 1.0) if x > 0.7 else ("start", 0.0) if x < 0.3 else (
                    "middle", 0.5)  # fmt: skip
                width = len(words) * CHARACTER
                start = x * NARROW - back * width
                # Above its point, or below where another label stands there.
                down = next(
                    (
                        shift
                        for shift in (-10, 20, 36)
                        if not any(
                            overlap((start, y + shift - 12, start + width, y + shift + 3), other)
                            for other in taken
                        )
                    ),
                    -10,
                )
                taken.append((start, y + down - 12, start + width, y + down + 3))
                out += label(
                    words,
                    percent(x),
                    y + down,
                    text_anchor=anchor,
                    class_=f"halo {colour}-text",
                )
    return out + x_axis_of(area), area.foot + 42


def _intervals(plot: Intervals) -> tuple[str, int]:
    row = 44
    area = Area(6, row * len(plot.rows), plot.x)
    out = ""
    if plot.line is not None:
        x = area.across(plot.line)
        out += element("line", x1=x, x2=x, y1=area.top, y2=area.foot, class_="mark")
    for index, item in enumerate(plot.rows):
        y = area.top + index * row + 28
        name = item.name if len(item.name) < 34 else item.name[:33] + "…"
        out += label(f"{name}: {item.label}", "0%", y - 14, class_="halo")
        if item.reference is not None:
            x = area.across(item.reference)
            out += element("line", x1=x, x2=x, y1=y - 8, y2=y + 8, class_="reference")
        ends = {"x1": area.across(item.low), "x2": area.across(item.high)}
        out += element("line", y1=y, y2=y, class_="interval series-0", **ends)
        out += element("circle", cx=area.across(item.value), cy=y, r=4, class_="dot series-0")
    return out + x_axis_of(area), area.foot + 42


_DRAW = {
    plots.Histogram: _histogram,
    plots.Ecdf: _ecdf,
    plots.Roofline: _roofline,
    plots.Bars: _bars,
    plots.Lines: _lines,
    plots.Intervals: _intervals,
}
