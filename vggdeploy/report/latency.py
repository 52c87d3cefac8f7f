"""What a report says of latency: percentiles with their intervals, and the distributions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from vggdeploy.benchmarks import statistics
from vggdeploy.report.document import Block, Drawing, Section, Table, between
from vggdeploy.report.figures import Figure, derived
from vggdeploy.report.measured import capital, settings
from vggdeploy.report.plots import SHARES, Axis, Curve, Ecdf, Histogram, Mark

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from vggdeploy.report.document import Cell, Words
    from vggdeploy.report.measured import Measured
    from vggdeploy.report.reading import Node

PERCENTILES = tuple(SHARES)
_NAMES = {"p50": "median (p50)", "min": "least", "max": "largest"}

_LONG_TAIL = 4.0
"""An axis ends before the largest sample when that is this many times as far from the least as
the 99th percentile is: a single accident shall not flatten what is to be seen."""

_MOST_BINS = 40
_COLUMNS = 800
"""A curve needs no more points than a screen has columns."""

_ONE_AXIS = 10.0
"""Distributions this many times apart are drawn on a logarithmic axis."""


def section(found: Sequence[Measured]) -> Section | None:
    """Latency of every measurement; None where nothing was measured."""
    if not found:
        return None
    blocks = [_block(one, len(found) > 1) for one in found]
    drawn = [one for one in found if _samples(one.node).size]
    if len(drawn) > 1:
        blocks.insert(0, Block(drawings=(_ecdf(drawn, "latency-ecdf"),)))
    findings = tuple(_sentence(one, len(found) > 1) for one in found)
    return Section("latency", "Latency", findings, tuple(blocks))


def percentile(node: Node, name: str) -> Figure:
    """A percentile as the result has it."""
    return node.need("latency_s", name).figure("s", 0)


def _sentence(one: Measured, named: bool) -> Words:
    node = one.node
    p50, p99 = percentile(node, "p50"), node.maybe("s", "latency_s", "p99", low=0)
    subject = f"{one.letter}: the" if named else "The"
    ends = between(node.interval("s", "ci95", "p50"))
    said: Words = (f"{subject} median query takes ", p50)
    said += (" (95%: ", *ends, ")") if ends else ()
    if p99:
        said += ("; one in a hundred takes ", p99, " or longer")
    return (*said, ".")


def _block(one: Measured, several: bool) -> Block:
    node = one.node
    text: list[Words] = [_how(node)]
    drawings: list[Drawing] = []
    samples = _samples(node)
    if samples.size:
        drawings.append(_histogram(one, samples))
        if not several:
            drawings.append(_ecdf([one], f"ecdf-{one.slug}"))
    else:
        text.append(("The result holds no samples, so there is no distribution to draw.",))
    return Block(
        one.title if several else "", tuple(text), tuple(drawings), (_table(one, several),)
    )


def _how(node: Node) -> Words:
    count = len(node.items("samples_s"))
    said: Words = (capital(settings(node)), "; ", derived(count, "count"), " samples")
    seconds = node.maybe("s", "measured_seconds", low=0)
    if seconds:
        said += (" in ", seconds)
    warm = node.find("warmup")
    if warm:
        queries, took = warm.maybe("count", "queries", low=0), warm.maybe("s", "seconds", low=0)
        if queries and took:
            said += (", after a warm-up of ", queries, " queries in ", took)
            if not warm.flag("steady", default=True):
                said += (" that did not become steady",)
    return (*said, ".", *_server(node))


def _server(node: Node) -> Words:
    """How queries arrived in an open loop, and the bound that their latency is held to."""
    server = node.find("server")
    if server is None:
        return ()
    said: Words = ()
    rate, bound = server.maybe("/s", "rate", low=0), server.maybe("s", "p99_bound_s", low=0)
    capacity = server.maybe("/s", "capacity", low=0)
    if rate:
        said += (" Queries arrived at ", rate, " whether or not earlier ones were done")
        said += (", of ", capacity, " that can be served") if capacity else ()
        said += (", and their 99th percentile is to be within ", bound) if bound else ()
        said += (".",)
    return said


def _table(one: Measured, several: bool) -> Table:
    rows: list[tuple[Cell, ...]] = []
    estimates = one.node.find("early_stopping")
    for name in (*PERCENTILES, "mean", "min", "max"):
        figure = one.node.maybe("s", "latency_s", name, low=0)
        if figure is None:
            continue
        ends: Words = ()
        early: Cell = ""
        if name in PERCENTILES:
            ends = between(one.node.interval("s", "ci95", name))
            early = (estimates.maybe("s", name, low=0) if estimates else None) or ""
        rows.append((_NAMES.get(name, name), figure, ends, early))
    columns = ["latency", "measured", "95% interval", "early-stopping estimate"]
    kept = [0, 1] + [place for place in (2, 3) if any(row[place] for row in rows)]
    caption = f"Percentiles of latency{', ' + one.letter if several else ''}"
    return Table(
        caption,
        tuple(columns[place] for place in kept),
        tuple(tuple(row[place] for place in kept) for row in rows),
    )


def _samples(node: Node) -> NDArray[np.float64]:
    """The samples in order of size."""
    return np.sort(np.array(node.numbers("samples_s", low=0), np.float64))


def _reach(samples: NDArray[np.float64], marks: Sequence[Mark]) -> tuple[float, float, int]:
    """From where to where an axis goes, and how many samples lie beyond."""
    low, high = float(samples[0]), float(samples[-1])
    p99 = float(np.percentile(samples, 99, method="higher"))
    if high - low > _LONG_TAIL * (p99 - low) > 0:
        high = p99 + (p99 - low) / 2
    # Intervals and percentiles that a result holds are always on the page.
    ends = [value for mark in marks for value in (mark.low, mark.value, mark.high) if value]
    low, high = min([low, *ends]), max([high, *ends])
    pad = (high - low) * 0.03 or low * 0.05 or 1e-6
    return max(0.0, low - pad), high + pad, int((samples > high + pad).sum())


def _marks(node: Node) -> tuple[Mark, ...]:
    found = []
    for name in PERCENTILES:
        figure = node.maybe("s", "latency_s", name, low=0)
        if figure:
            ends = node.interval("s", "ci95", name)
            low, high = (ends[0].value, ends[1].value) if ends else (None, None)
            found.append(Mark(name, figure.value, low, high))
    return tuple(found)


def _beyond(count: int, samples: NDArray[np.float64]) -> str:
    if not count:
        return ""
    largest = derived(float(samples[-1]), "s").text
    lie = "1 sample lies" if count == 1 else f"{count:,} samples lie"
    return f"{lie} beyond the axis; the largest is {largest}."


def _histogram(one: Measured, samples: NDArray[np.float64]) -> Drawing:
    marks = _marks(one.node)
    low, high, beyond = _reach(samples, marks)
    inside = samples[samples <= high]
    spread = float(np.subtract(*np.percentile(samples, (75, 25))))
    # Freedman and Diaconis, "On the histogram as a density estimator" (1981).
    width = 2 * spread / len(samples) ** (1 / 3)
    bins = _MOST_BINS if width <= 0 else math.ceil((high - low) / width)
    counts, edges = np.histogram(inside, bins=min(_MOST_BINS, max(8, bins)), range=(low, high))
    fullest = int(counts.argmax())
    finding: Words = (
        f"Of {len(samples):,} queries most take ",
        derived(float(edges[fullest]), "s"),
        " to ",
        derived(float(edges[fullest + 1]), "s"),
        "; the median is ",
        percentile(one.node, "p50"),
        ". ",
        _beyond(beyond, samples),
    )
    rows = tuple(
        (
            (derived(float(start), "s"), " to ", derived(float(end), "s")),
            derived(int(count), "count"),
        )
        for start, end, count in zip(edges[:-1], edges[1:], counts, strict=True)
    )
    return Drawing(
        f"histogram-{one.slug}",
        "Histogram of latency",
        finding,
        Histogram(
            Axis(low, high, "s", "latency"),
            tuple(map(float, edges)),
            tuple(map(int, counts)),
            marks,
            one.number,
        ),
        Table("Samples in each bin of latency", ("latency", "samples"), rows),
        note=_beyond(beyond, samples),
    )


def thinned(samples: NDArray[np.float64], low: float, high: float) -> NDArray[np.intp]:
    """Which of the sorted samples a curve from `low` to `high` needs to look the same.

    In each of `_COLUMNS` columns the first and the last; the samples at the percentiles always, so
    that the curve passes through them exactly.
    """
    if len(samples) <= 2 * _COLUMNS:
        return np.arange(len(samples))
    columns = np.floor((samples - low) / (high - low) * _COLUMNS)
    first = np.flatnonzero(np.diff(columns, prepend=-1.0))
    last = np.append(first[1:] - 1, len(samples) - 1)
    exact = [statistics.rank(len(samples), round(100 * share)) for share in SHARES.values()]
    return np.unique(np.concatenate([first, last, exact]))


def _ecdf(found: Sequence[Measured], name: str) -> Drawing:
    all_samples = [_samples(one.node) for one in found]
    all_marks = [_marks(one.node) for one in found]
    reaches = [_reach(s, m) for s, m in zip(all_samples, all_marks, strict=True)]
    low, high = min(r[0] for r in reaches), max(r[1] for r in reaches)
    log = min(r[0] for r in reaches) > 0 and high / min(r[1] for r in reaches) > _ONE_AXIS
    curves, rows, notes = [], [], []
    for one, samples, marks in zip(found, all_samples, all_marks, strict=True):
        kept = thinned(samples, low, high)
        kept = kept[samples[kept] <= high]
        shares = (kept + 1) / len(samples)
        curves.append(
            Curve(
                one.letter,
                one.title,
                tuple(map(float, samples[kept])),
                tuple(map(float, shares)),
                marks,
                one.number,
            )
        )
        beyond = int((samples > high).sum())
        if beyond:
            notes.append(f"{one.letter + ': ' if one.letter else ''}{_beyond(beyond, samples)}")
        for mark in marks:
            figure = percentile(one.node, mark.name)
            share = f"{mark.name}: {SHARES[mark.name]:.0%} of queries"
            head = f"{one.letter}, {share}" if len(found) > 1 else share
            rows.append((head, figure, between(one.node.interval("s", "ci95", mark.name))))
    finding: Words = ()
    for one in found:
        finding += (
            f"{one.letter}: half" if one.letter else "Half",
            " of the queries take at most ",
        )
        finding += (percentile(one.node, "p50"),)
        p99 = one.node.maybe("s", "latency_s", "p99", low=0)
        finding += (", 99% at most ", p99, ". ") if p99 else (". ",)
    return Drawing(
        name,
        "Cumulative distribution of latency",
        finding,
        Ecdf(Axis(low, high, "s", "latency", log=log), tuple(curves)),
        Table(
            "Percentiles marked on the curve",
            ("percentile", "at most", "95% interval"),
            tuple(rows),
        ),
        note=" ".join([*notes, *_whiskers(all_marks)]),
    )


def _whiskers(all_marks: Sequence[Sequence[Mark]]) -> list[str]:
    shown = any(mark.low is not None for marks in all_marks for mark in marks)
    return ["Bars beside a dot are its 95% interval."] if shown else []
