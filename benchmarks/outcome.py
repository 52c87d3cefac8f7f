"""What a measurement's result says: figures with their intervals, floors, and what casts doubt."""

from __future__ import annotations

import math
import shlex
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from vggdeploy import budget
from vggdeploy.benchmarks import profiling, stability, statistics

if TYPE_CHECKING:
    from pathlib import Path

    from vggdeploy.benchmarks.conditions import Conditions
    from vggdeploy.benchmarks.options import BenchOptions
    from vggdeploy.benchmarks.profiling import Profiled
    from vggdeploy.benchmarks.scenarios import Samples
    from vggdeploy.benchmarks.stability import Diagnosis
    from vggdeploy.benchmarks.warmup import Warmup
    from vggdeploy.benchmarks.watch import Window
    from vggdeploy.bundle import Bundle


@dataclass(frozen=True)
class Measured:
    """A scenario's measurement, and what was seen over the same window."""

    samples: Samples
    warmup: Warmup
    window: Window
    depth: int
    details: dict[str, Any]
    server: dict[str, Any] | None = None
    mlperf: dict[str, Any] | None = None


@dataclass
class Rest:
    """What is measured after the scenario, as far as nothing interrupted it."""

    throughput_ips: float | None = None
    throughput_ci95: tuple[float, float] | None = None
    throughput_queries: int | None = None
    throughput_requests: int | None = None
    by_batch: list[dict[str, Any]] = field(default_factory=list)
    profiled: Profiled | None = None
    partial: bool = False


def result(
    opened: Bundle,
    options: BenchOptions,
    measured: Measured,
    rest: Rest,
    conditions: Conditions,
) -> dict[str, Any]:
    """The JSON form of a measurement of `opened`, made as `options` say."""
    samples = measured.samples
    ordered = sorted(samples.seconds)
    summary = statistics.summarize(ordered)
    diagnosis = _diagnosis(options, measured) + stability.of_throttling(conditions.throttled)
    return {
        "kind": "bench",
        "bundle": str(opened.path),
        "target": opened.target,
        "digest": opened.manifest["digest"],
        "model": {key: opened.manifest["model"].get(key) for key in ("name", "sha256")},
        "scenario": options.scenario,
        "batch": options.size,
        "device": {**measured.details, **(rest.profiled.copies if rest.profiled else {})},
        "settings": asdict(options.settings),
        "throughput_settings": asdict(options.queue_settings),
        "latency_s": asdict(summary),
        "ci95": {
            f"p{percent}": found and list(found)
            for percent in statistics.PERCENTILES
            for found in [statistics.interval_in_time(samples.seconds, percent)]
        },
        "early_stopping": {
            f"p{percent}": statistics.early_stopping(ordered, percent)
            for percent in statistics.EARLY
        },
        "samples_s": samples.seconds,
        "started_s": samples.offsets,
        "throughput_ips": rest.throughput_ips,
        "throughput_ci95": rest.throughput_ci95 and list(rest.throughput_ci95),
        "throughput_queries": rest.throughput_queries,
        "throughput_requests": rest.throughput_requests,
        "throughput_by_batch": rest.by_batch,
        "warmup": asdict(measured.warmup),
        "measured_seconds": samples.measured_seconds,
        "partial": samples.partial or rest.partial,
        "budget": _budget(opened, options, summary.p50, rest),
        "stable": not diagnosis.reasons,
        "unstable_because": list(diagnosis.reasons),
        "advice": list(dict.fromkeys(command(opened.path, options, x) for x in diagnosis.advice)),
        "others_share": measured.window.others,
        "engine_bytes": opened.engine_bytes,
        # The machine, its heat, and the energy of the samples' own time.
        **conditions.to_json(len(samples.seconds) * options.size, samples.begin, samples.end),
        "server": measured.server,
        "mlperf": measured.mlperf,
    }


def command(path: Path, options: BenchOptions, advice: str) -> str:
    """A piece of advice as a command: what begins as a flag is for the measurement of the bundle at
    `path` again, with what else was asked for."""
    if not advice.startswith("--"):
        return advice
    changed = advice.split()
    if options.mlperf and changed[0] in ("--queries", "--seconds"):
        changed = ["--full"]  # LoadGen decides by itself how many it takes
    if changed[0] == "--seconds":  # more than was not enough
        changed[1] = f"{max(float(changed[1]), 3 * options.limit_s):.12g}"
    # Throughput's batch is what the bundle was tuned to unless it is given.
    free = options.free_batch or (options.batch == 1 and options.scenario != "throughput")
    values = {
        "--scenario": options.scenario if options.scenario != "latency" else None,
        "--batch": None if free else options.batch,
        "--device": options.device if options.device != "CPU" else None,
        "--seconds": options.seconds,
        "--precision": options.precision,
        "--queries": options.queries,
        "--rate": options.rate,
        "--p99-bound": options.p99_bound,
        "--batches": ",".join(map(str, options.batches)) or None,
        "--seed": options.seed or None,
    }
    switches = {"--mlperf": options.mlperf, "--full": options.full, "--no-tuned": not options.tuned}
    words = ["vggdeploy", "bench", str(path)]
    for flag, value in values.items():
        if value is not None and flag != changed[0]:
            words += [flag, f"{value:.12g}" if isinstance(value, float) else str(value)]
    words += [flag for flag, on in switches.items() if on and flag != changed[0]]
    return shlex.join([*words, *changed])


def _diagnosis(options: BenchOptions, measured: Measured) -> Diagnosis:
    """Every reason not to trust the figures."""
    samples, server = measured.samples.seconds, measured.server
    found = stability.of_warmup(measured.warmup)
    found += stability.of_samples(samples, waiting=options.scenario == "server")
    if options.scenario in ("server", "multistream"):
        found += stability.of_percentile(len(samples), 99)
    found += stability.of_precision(samples, options.precision)
    if server is not None:
        p99 = statistics.percentile(sorted(samples), 99)
        found += stability.of_server(server["rate"], server["capacity"], p99, server["p99_bound_s"])
    if measured.mlperf is not None:
        found += stability.of_loadgen(measured.mlperf)
    return found + stability.of_machine(measured.window)


def _budget(opened: Bundle, options: BenchOptions, p50: float, rest: Rest) -> dict[str, Any]:
    """A query against its floors; what the peak is needed for is None without one."""
    totals = opened.budget()["total"]
    seconds = p50
    if options.goal == "throughput" and rest.throughput_ips:
        # Queries overlap: what one of them takes of the device's time.
        seconds = options.size / rest.throughput_ips
    macs = options.size * totals["macs"]
    # Without a peak, nothing to be compared with it.
    known = rest.profiled
    device = known.device if known else budget.Device(math.inf, 0.0)
    judgement = asdict(budget.judge(macs, totals["weight_bytes"], seconds, device))
    if known is None:
        unknown = ("peak_macs_per_s", "utilisation", "compute_floor_s", "memory_floor_s", "bound")
        judgement |= dict.fromkeys(unknown)
    said = known.budget if known else {"peak_from": None, **profiling.NOTHING}
    return {**judgement, **said}
