"""Plots as data, in the units of their axes; `drawing` draws them."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """One direction of a plot.

    Attributes:
        low, high: what it reaches from and to, in `unit`.
        unit: as `figures.Figure` has it.
        label: what it measures.
        log: whether equal steps are equal ratios; then `low` is above 0.
        ticks: the values to mark; `ticks_of` where empty.
    """

    low: float
    high: float
    unit: str
    label: str
    log: bool = False
    ticks: tuple[float, ...] = ()

    def place(self, value: float) -> float:
        """Where `value` lies, 0 at `low` and 1 at `high`; never outside."""
        if self.log:
            value = max(value, self.low)
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return min(1.0, max(0.0, share))


SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
"""The percentiles that are marked, and the share of samples at or below each."""


@dataclass(frozen=True)
class Mark:
    """A percentile on a curve, with its interval where there is one."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Histogram:
    """Counts of samples in bins of one width.

    Attributes:
        edges: one more than `counts`, in the unit of `x`.
        marks: percentiles.
    """

    x: Axis
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    marks: tuple[Mark, ...] = ()
    series: int = 0


@dataclass(frozen=True)
class Curve:
    """One distribution: the share of samples at or below each value, a step at each."""

    letter: str
    name: str
    values: tuple[float, ...]
    shares: tuple[float, ...]
    marks: tuple[Mark, ...]
    series: int = 0


@dataclass(frozen=True)
class Ecdf:
    """Empirical cumulative distributions on one axis."""

    x: Axis
    curves: tuple[Curve, ...]


@dataclass(frozen=True)
class Point:
    """A layer, or the whole network, on a roofline.

    Attributes:
        kind: conv, linear, whole or other: each has a shape of its own.
        share: of the whole time, which is the area of its mark.
    """

    name: str
    kind: str
    x: float
    y: float
    share: float
    tip: str


@dataclass(frozen=True)
class Roofline:
    """Attained rate against arithmetic intensity, below a device's two roofs.

    Attributes:
        peak: MACs a second.
        bandwidth: bytes a second; None where it is not known.
    """

    x: Axis
    y: Axis
    peak: float
    bandwidth: float | None
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Bar:
    """A layer's time with its floor, in seconds."""

    name: str
    value: float
    floor: float | None
    label: str


@dataclass(frozen=True)
class Bars:
    """Times against floors, one row a layer."""

    x: Axis
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class Line:
    """One series of points that belong together in order."""

    letter: str
    name: str
    points: tuple[tuple[float, float], ...]
    series: int = 0


@dataclass(frozen=True)
class Lines:
    """Series over a logarithmic axis, each point marked and named."""

    x: Axis
    y: Axis
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Interval:
    """A figure with its interval, and what it is compared with: one row of `Intervals`."""

    name: str
    value: float
    low: float
    high: float
    label: str
    reference: float | None = None


@dataclass(frozen=True)
class Intervals:
    """Figures with their intervals.

    Attributes:
        line: a value that all are compared with, such as a ratio of 1.
    """

    x: Axis
    rows: tuple[Interval, ...]
    line: float | None = None


_LOOSE = 0.8
"""A tick more than was asked for is better than half as many."""

Plot = Histogram | Ecdf | Roofline | Bars | Lines | Intervals


def ticks_of(axis: Axis, most: int = 5) -> tuple[float, ...]:
    """Round values to mark on an axis, `most` at most.

    On a linear axis multiples of 1, 2 or 5 times a power of ten (Heckbert's nice numbers, Graphics
    Gems, 1990); on a logarithmic one powers of ten, with 2 and 5 between where there is room.
    """
    if axis.ticks:
        return axis.ticks
    if axis.log:
        first, last = math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high))
        for steps in ((1, 2, 5), (1, 3), (1,)):
            found = [step * 10.0**power for power in range(first, last + 1) for step in steps]
            inside = [value for value in found if axis.low <= value <= axis.high]
            if 2 <= len(inside) <= most:
                return tuple(inside)
        if len(inside) > most:
            return tuple(inside[:: math.ceil(len(inside) / most)])
    rough = (axis.high - axis.low) / max(1, most - 1)
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * nice for nice in (1, 2, 5, 10) if size * nice >= rough * _LOOSE)
    first = math.ceil(axis.low / step - 1e-9)
    last = math.floor(axis.high / step + 1e-9)
    return tuple(step * index for index in range(first, last + 1))
