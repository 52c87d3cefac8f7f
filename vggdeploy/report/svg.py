"""Plots drawn as SVG that is part of a page: its style is the page's, its text never scales.

There is no ``viewBox``: across, places are percentages of the width that the page gives, so a plot
is as wide as its column while type and strokes keep their size; down, they are pixels. What is left
and right of a plot hangs over into margins that the style sheet keeps free.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape, quoteattr

from vggdeploy.report import plots
from vggdeploy.report.figures import scale, tick

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vggdeploy.report.plots import Axis

SERIES = 6
"""Colours and dashes that the style sheet has; then they start again."""

GAP = 8
NARROW = 230.0
"""The width in pixels that labels are set out for: what a plot has on a phone."""

CHARACTER = 6.6
"""Width in pixels of a character, on the wide side."""

LINE = 14
_MOST_NAME = 16
"""Characters of a name beside a row."""


class Svg(str):
    """SVG whose text is escaped; a template takes it as it is."""

    __slots__ = ()

    def __html__(self) -> str:
        return self


def element(name: str, inner: str = "", **attributes: object) -> str:
    """An element with escaped attributes; `inner` is SVG already. ``_`` in a name is ``-``."""
    said = "".join(
        f" {key.rstrip('_').replace('_', '-')}={quoteattr(_number(value))}"
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{said}>{inner}</{name}>" if inner else f"<{name}{said}/>"


def _number(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def percent(share: float) -> str:
    """A share as SVG has it."""
    return f"{100 * share:.3f}".rstrip("0").rstrip(".") + "%"


def label(said: str, x: str, y: float, **attributes: object) -> str:
    """Escaped text at a place."""
    return element("text", escape(said), x=x, y=y, **attributes)


@dataclass
class Area:
    """A plot's inside: `height` pixels down from `top`, all its width across."""

    top: int
    height: int
    x: Axis
    y: Axis | None = None

    def across(self, value: float) -> str:
        """A value's place on the way across."""
        return percent(self.x.place(value))

    def down(self, value: float) -> float:
        """A value's place on the way down."""
        return self.at(self.y.place(value) if self.y else 0.0)

    def at(self, share: float) -> float:
        """A share's place on the way down."""
        return round(self.top + self.height * (1 - share), 2)

    @property
    def foot(self) -> int:
        """Where the plot ends below."""
        return self.top + self.height


def icon(inner: str) -> Svg:
    """A small picture beside a word that says the same."""
    return Svg(element("svg", inner, width=24, height=16, aria_hidden="true", focusable="false"))


def sample(series: int) -> Svg:
    """A piece of a series' line."""
    return icon(element("line", x1=0, x2=24, y1=8, y2=8, class_=f"line {colour_of(series)}"))


def colour_of(series: int) -> str:
    """The class that colours and dashes a series."""
    return f"series-{series % SERIES}"


def x_axis_of(area: Area) -> str:
    """The line below with its ticks and what it measures."""
    step, unit = scale(area.x.high, area.x.unit)
    out = element("line", x1="0%", x2="100%", y1=area.foot, y2=area.foot, class_="axis")
    for value in plots.ticks_of(area.x):
        place = area.across(value)
        out += element("line", x1=place, x2=place, y1=area.foot, y2=area.foot + 4, class_="axis")
        out += label(tick(value, step), place, area.foot + 18, text_anchor="middle")
    words = f"{area.x.label}, {unit}" if unit else area.x.label
    return out + label(words, "100%", area.foot + 36, text_anchor="end", class_="label")


def y_axis_of(area: Area, axis: Axis, values: Sequence[float] = ()) -> str:
    """Lines across at the ticks, and above what is measured; `values` in place of ticks."""
    step, unit = scale(axis.high, axis.unit)
    out = ""
    for value in values or plots.ticks_of(axis):
        y = area.at(axis.place(value))
        out += element("line", x1="0%", x2="100%", y1=y, y2=y, class_="grid")
        out += label(tick(value, step), "0%", y + 4, dx=-GAP, text_anchor="end")
    words = f"{axis.label}, {unit}" if unit else axis.label
    return out + label(words, "0%", area.top - 14, class_="label")


def beside(place: float) -> dict[str, object]:
    """Where a label stands beside its mark: to the right, or left where the right is near."""
    return {"dx": GAP, "text_anchor": "start"} if place < 0.6 else {
        "dx": -GAP, "text_anchor": "end",
    }  # fmt: skip


def box_of(
    x: float, y: float, words: str, *, left: bool, gap: float = GAP
) -> tuple[float, float, float, float]:
    """Where a label will be on a narrow page: left, top, right and bottom, in pixels."""
    width = len(short(words)) * CHARACTER
    start = x * NARROW + (-gap - width if left else gap)
    return start, y - LINE + 3, start + width, y + 3


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """Whether two boxes share a place."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def short(name: str) -> str:
    """A name that fits beside a row."""
    return name if len(name) <= _MOST_NAME else name[: _MOST_NAME - 1] + "…"
