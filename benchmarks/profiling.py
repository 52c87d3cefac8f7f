"""Where a query's time goes: each layer of the network against its own floors.

Profiled queries and probes of the peak take turns, and neither touches the samples of a
measurement: profiling is done after it, on an engine of its own.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from vggdeploy import roofline
from vggdeploy.benchmarks import peak
from vggdeploy.contracts import RunOptions
from vggdeploy.machine import caches
from vggdeploy.roofline import Owners

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vggdeploy.budget import Device
    from vggdeploy.bundle import Bundle
    from vggdeploy.contracts import Batch, LayerTime, Probe, Reporter, Target
    from vggdeploy.roofline import Peaks, Row

QUERIES = 3
"""Profiled queries a turn."""

WARMUP_QUERIES = 2


@dataclass(frozen=True)
class Profiled:
    """What profiling found.

    Attributes:
        device: the two roofs for the whole network.
        budget: for the result's ``budget``: ``peak_from``, ``layers``, ``roofline``,
            ``peak_check`` and ``profile``; the last three are empty where the backend does not
            tell its layers' times.
        copies: rates of copies, in bytes a second, where the target measures them
            (`Target.copy_rates`).
    """

    device: Device
    budget: dict[str, Any]
    copies: dict[str, float] = field(default_factory=dict)


def layers(
    opened: Bundle,
    target: Target,
    options: RunOptions,
    batches: Sequence[Batch],
    reporter: Reporter,
    clock: Callable[[], float] = time.perf_counter,
) -> Profiled:
    """Profile `opened`, and measure what its layers are held against.

    Args:
        opened: the bundle.
        target: its target.
        options: how it was measured; the layers are profiled one query at a time.
        batches: what it was measured with, used in turn.
        reporter: hears of each turn.
        clock: seconds.

    Raises:
        MissingError: when this machine cannot run it, or nothing says what it can attain.
    """
    settings = RunOptions(options.device, options.batch, "latency", options.settings, profile=True)
    with contextlib.ExitStack() as stack:
        runner = stack.enter_context(target.open(opened, settings))
        queries: list[list[LayerTime]] = []
        walls: list[float] = []

        def profile(count: int) -> None:
            for _ in range(count):
                batch = batches[len(walls) % len(batches)]
                before = clock()
                runner.infer(batch)
                walls.append(clock() - before)
                queries.append(runner.layer_times())

        def bounded(peaks: Peaks) -> bool:
            rows = _rows(opened, target, options.batch, queries, peaks)
            return bool(roofline.peak_check(rows)["ok"])

        profile(WARMUP_QUERIES)
        told = bool(queries[0])
        queries.clear()
        walls.clear()
        probes = target.probes(settings)
        copies: dict[str, float] = {}
        if not probes:
            with reporter.step("measuring the memory's bandwidth"):
                copies = target.copy_rates(options.device)
        between = (lambda: profile(QUERIES)) if told else None
        peaks = _peaks(
            target, settings, probes, copies, reporter, between, clock,
            lambda found: not told or bounded(found),
        )  # fmt: skip
    source = "measured" if probes else "table"
    if copies:
        source = "rate by table, bandwidth measured"
    device = peaks.device(target.precision)
    if not told:
        return Profiled(device, {"peak_from": source, **NOTHING}, copies)
    rows = _rows(opened, target, options.batch, queries, peaks)
    return Profiled(
        device,
        {
            "peak_from": source,
            "layers": roofline.to_json(rows),
            "roofline": roofline.chart(rows, peaks),
            "peak_check": roofline.peak_check(rows),
            "profile": {
                "queries": len(queries),
                "seconds": sum(row.seconds for row in rows),
                "floor_s": sum(row.floor_s for row in rows),
                "query_s": median(walls),
                "unmatched": [row.name for row in rows if row.macs and not row.engine_layers],
            },
        },
        copies,
    )


NOTHING: dict[str, Any] = {"layers": [], "roofline": None, "peak_check": None, "profile": None}
"""What there is to say where the layers were not timed."""


def _peaks(
    target: Target,
    options: RunOptions,
    probes: Sequence[Probe],
    copies: Mapping[str, float],
    reporter: Reporter,
    between: Callable[[], None] | None,
    clock: Callable[[], float],
    enough: Callable[[Peaks], bool],
) -> Peaks:
    if probes:
        # Other devices have caches of their own, or share this one and do not say how.
        cache = caches.last_level_bytes() if options.device.split(".")[0] == "CPU" else None
        return peak.measure(probes, reporter, between, clock, cache, enough)
    if between is not None:
        for _ in reporter.track(range(peak.ROUNDS), peak.ROUNDS, "profiling"):
            between()
    return peak.rated({**target.device_facts(options.device), **copies}, target.precision)


def _rows(
    opened: Bundle,
    target: Target,
    batch: int,
    queries: Sequence[Sequence[LayerTime]],
    peaks: Peaks,
) -> list[Row]:
    said = opened.budget()
    kept = opened.manifest["build"].get("kept", ())
    known = roofline.layers(said, target.precision, batch, kept)
    return roofline.rows(known, Owners(said), queries, peaks, target.precision)
