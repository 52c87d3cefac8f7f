"""Measure a bundle: latency, throughput, and both against its budget."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vggdeploy.benchmarks import (
    against,
    bootstrap,
    mlperf,
    outcome,
    profiling,
    rates,
    scenarios,
    watch,
)
from vggdeploy.benchmarks.conditions import Conditions
from vggdeploy.benchmarks.options import QUERIES, SECONDS, BenchOptions
from vggdeploy.benchmarks.outcome import Measured, Rest
from vggdeploy.benchmarks.scenarios import Stop
from vggdeploy.contracts import RunOptions, Silent
from vggdeploy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vggdeploy.benchmarks.scenarios import Clock, Samples, Sleep
    from vggdeploy.benchmarks.warmup import Warmup
    from vggdeploy.benchmarks.watch import Look, Window
    from vggdeploy.bundle import Bundle
    from vggdeploy.contracts import Reporter, Runner, Target

Loop = TypeVar("Loop")

CAPACITY_SECONDS = 2.0
"""How long a server's capacity is measured, which bounds the rates that are tried."""

OVERLOAD = 2.0
"""Times a server's capacity: what arrives faster would be served for several times as long as was
asked, to show no more than that waits grow."""

LIBRARY = 64
"""Images of MLPerf's sample library at most: 39 MB of 224x224 in FP32."""


@dataclass(frozen=True)
class _Tools:
    """What a measurement tells time, waits and looks at the machine with."""

    reporter: Reporter
    clock: Clock
    sleep: Sleep
    look: Callable[[], Look]
    conditions: Conditions


def bench(
    opened: Bundle,
    target: Target,
    options: BenchOptions,
    reporter: Reporter | None = None,
    clock: Clock = time.perf_counter,
    sleep: Sleep = time.sleep,
    look: Callable[[], Look] = watch.look,
) -> dict[str, Any]:
    """Measure `opened` on `target`'s device.

    Args:
        opened: the bundle.
        target: what it was built for.
        options: how to measure.
        reporter: told the progress.
        clock: tells seconds.
        sleep: waits for them.
        look: at what else the CPU does.

    Returns:
        the result's JSON form: every latency sample in order, summaries with their intervals, the
        judgement against the measured peak, and the machine. Of a measurement that Ctrl-C ended,
        what there was until then, with ``partial``.

    Raises:
        ConfigError: for what cannot be measured.
        MissingError: when this machine cannot run it.
        KeyboardInterrupt: before there was anything to keep.
    """
    options.check()
    if options.mlperf:
        mlperf.available(_logs(opened, options))
    conditions = Conditions(
        options.device, target.device_facts(options.device), clock=clock, sleep=sleep
    )
    tools = _Tools(reporter or Silent(), clock, sleep, look, conditions)
    run = RunOptions(options.device, options.size, options.goal, options.settings)
    # The first query comes before anything that can wait: a figure of its own is how soon.
    with target.open(opened, run) as runner:
        measured = _scenario(opened, runner, options, tools)
    if not measured.samples.seconds:
        raise KeyboardInterrupt
    rest = _rest(opened, target, options, measured, tools)
    return outcome.result(opened, options, measured, rest, conditions)


def pair(
    sides: Sequence[tuple[Bundle, Target, BenchOptions]],
    reporter: Reporter | None = None,
    clock: Clock = time.perf_counter,
    sleep: Sleep = time.sleep,
    look: Callable[[], Look] = watch.look,
) -> list[dict[str, Any]]:
    """Measure the latencies of two bundles query by query in turn.

    Args:
        sides: of each bundle its target and how it is measured; scenario, batch, device and time
            are those of the first.

    Returns:
        of each what `bench` returns; energy is not told, since both took turns in the same window.

    Raises:
        As `bench`.
    """
    options = sides[0][2]
    options.check()
    against.check(options)
    facts = sides[0][1].device_facts(options.device)
    conditions = Conditions(options.device, facts, clock=clock, sleep=sleep)
    tools = _Tools(reporter or Silent(), clock, sleep, look, conditions)
    batches = [opened.probe_batches(options.size) for opened, _, _ in sides]
    with contextlib.ExitStack() as stack:
        runners = [
            stack.enter_context(
                target.open(
                    opened, RunOptions(options.device, options.size, options.goal, own.settings)
                )
            )
            for opened, target, own in sides
        ]
        with tools.reporter.step(f"measuring {options.scenario} in turn"):
            warmups = [
                scenarios.warm_up(runner, images, clock)
                for runner, images in zip(runners, batches, strict=True)
            ]
            found, window = _measured(
                lambda: against.interleaved(runners, batches, options.stop, clock), tools
            )
    if not found[0].seconds:
        raise KeyboardInterrupt
    results = []
    for (opened, target, own), samples, warmed, runner in zip(
        sides, found, warmups, runners, strict=True
    ):
        measured = Measured(samples, warmed, window, runner.depth, runner.details)
        rest = _rest(opened, target, own, measured, tools)
        result = outcome.result(opened, own, measured, rest, conditions)
        results.append({**result, "energy": None, "energy_note": against.NO_ENERGY})
    return results


def _scenario(opened: Bundle, runner: Runner, options: BenchOptions, tools: _Tools) -> Measured:
    """Measure the scenario that was asked for."""
    if options.scenario == "server":
        return _server(opened, runner, options, tools)
    if options.mlperf:
        return _mlperf(opened, runner, options, tools)
    batches = opened.probe_batches(options.size)
    with tools.reporter.step(f"measuring {options.scenario}"):
        if options.scenario == "throughput":
            warmed: list[Warmup] = []

            def queue() -> Samples:
                samples, warmup = scenarios.throughput(runner, batches, options.stop, tools.clock)
                warmed.append(warmup)
                return samples

            samples, window = _measured(queue, tools)
            warmup = warmed[0]
        else:
            warmup = scenarios.warm_up(runner, batches, tools.clock)
            samples, window = _measured(
                lambda: scenarios.latency(runner, batches, options.stop, tools.clock), tools
            )
    return Measured(samples, warmup, window, runner.depth, runner.details)


def _measured(loop: Callable[[], Loop], tools: _Tools) -> tuple[Loop, Window]:
    """Run the loop that measures: what is to be seen over the samples' own window is read here,
    right before and right after."""
    with tools.conditions.window():
        before = tools.look()
        samples = loop()
        return samples, watch.between(before, tools.look())


def _server(opened: Bundle, runner: Runner, options: BenchOptions, tools: _Tools) -> Measured:
    """Arrivals at the rate that was given, or at the highest that keeps the bound."""
    batches, clock, sleep = opened.probe_batches(options.size), tools.clock, tools.sleep
    with tools.reporter.step("measuring what a full queue does"):
        stop = Stop(min(options.limit_s, CAPACITY_SECONDS), 10)
        full, warmup = scenarios.throughput(runner, batches, stop, clock)
        capacity = full.queries_per_s
        if full.partial or capacity is None:
            raise KeyboardInterrupt
        _require_servable(options, capacity)
        for batch in batches[:1] * 2 * runner.depth:  # the queue that reports its ends, too
            runner.start(batch, lambda outputs: None)
        runner.drain()
    tried: Sequence[rates.Trial] = ()
    rate, bound = options.rate, options.p99_bound
    if rate is None:
        bounded = float(bound or math.inf)
        rates.possible(runner, batches, bounded, clock)
        with tools.reporter.step("finding the highest rate"):
            found = rates.highest(
                lambda each: rates.attempt(
                    runner, batches, each, bounded, options.limit_s, options.seed, clock, sleep
                ),
                capacity,
                bounded,
            )
        rate, tried = found.rate, found.tried
    said = {
        "rate": rate,
        "found": options.rate is None,
        "p99_bound_s": bound,
        "capacity": capacity,
        "seed": options.seed,
        "tried": [asdict(trial) for trial in tried],
    }
    if options.mlperf:
        return replace(_mlperf(opened, runner, options, tools, rate), server=said)
    count = max(options.queries or 1, math.ceil(rate * options.limit_s), 2)
    # Other arrivals than those that the rate was found by.
    schedule = scenarios.arrivals(rate, count, options.seed + 1)
    with tools.reporter.step(f"measuring server at {rate:.3g} queries a second"):
        samples, window = _measured(
            lambda: scenarios.server(runner, batches, schedule, clock, sleep), tools
        )
    return Measured(samples, warmup, window, runner.depth, runner.details, said)


def _require_servable(options: BenchOptions, capacity: float) -> None:
    """Make sure that a server's measurement ends, now that it is known how much it can serve.

    Raises:
        ConfigError: when it would not.
    """
    rate, most = options.rate or capacity, OVERLOAD * capacity
    if rate > most:
        raise ConfigError(
            "--rate is far above what can be served",
            got=f"{rate:g} queries a second",
            expected=f"{most:.3g} at most, {OVERLOAD:g} times what a full queue does",
            fix="lower it, or find the highest with --p99-bound",
        )
    options.require_countable(rate)


def _mlperf(
    opened: Bundle,
    runner: Runner,
    options: BenchOptions,
    tools: _Tools,
    rate: float | None = None,
) -> Measured:
    """Let LoadGen drive; how fast queries are is told it from a warm-up."""
    batches, clock = opened.probe_batches(options.size), tools.clock
    with tools.reporter.step("warming up"):
        if rate is None and options.scenario == "throughput":
            stop = Stop(min(options.limit_s, CAPACITY_SECONDS), 10)
            full, warmup = scenarios.throughput(runner, batches, stop, clock)
            rate = (full.queries_per_s or 1.0) * options.size
        else:
            warmup = scenarios.warm_up(runner, batches, clock)
    plan = mlperf.Plan(
        options.scenario,
        options.limit_s,
        full=options.full,
        batch=options.size,
        expected_s=max(1e-6, warmup.seconds / max(1, warmup.queries)),
        rate=rate or 1.0,
        bound_s=options.p99_bound,
    )
    images = opened.probes().images[:LIBRARY]
    library = [opened.batch(images[turn : turn + 1]) for turn in range(len(images))]
    logs = _logs(opened, options)
    with tools.reporter.step(f"LoadGen drives {mlperf.SCENARIOS[options.scenario]}"):
        said: list[dict[str, Any]] = []

        def drive() -> Samples:
            samples, found = mlperf.run(runner, library, plan, logs, clock)
            said.append(found)
            return samples

        samples, window = _measured(drive, tools)
    return Measured(samples, warmup, window, runner.depth, runner.details, mlperf=said[0])


def _logs(opened: Bundle, options: BenchOptions) -> Path:
    return options.logs or Path(f"{opened.path.name}.mlperf")


def _rest(
    opened: Bundle, target: Target, options: BenchOptions, measured: Measured, tools: _Tools
) -> Rest:
    """Throughput beside latency, throughput by batch, and the device's peak."""
    rest = Rest(partial=measured.samples.partial)
    if options.scenario == "latency":
        # The scenario's own runner had no queue.
        ways = {options.size: "throughput_ips"}
    else:
        per_s = measured.samples.queries_per_s
        # LoadGen's Offline says it by itself; a batch of it may be filled up.
        said = (measured.mlperf or {}).get("samples_per_s")
        rest.throughput_ips = said or (per_s and per_s * options.size)
        if options.scenario == "throughput" and not said:
            rest.throughput_ci95 = _interval(measured.samples, options.size)
        rest.throughput_queries = len(measured.samples.seconds)
        rest.throughput_requests = measured.depth
        ways = {}
    if rest.partial:
        return rest
    stop = Stop(options.limit_s if options.precision is None else SECONDS, QUERIES)
    settings = options.queue_settings
    try:
        for size in dict.fromkeys((*ways, *options.batches)):
            run = RunOptions(options.device, size, "throughput", settings)
            with (
                target.open(opened, run) as runner,
                tools.reporter.step(f"measuring throughput at batch {size}"),
            ):
                found, _ = scenarios.throughput(
                    runner, opened.probe_batches(size), stop, tools.clock
                )
            per_s = found.queries_per_s
            rest.partial = rest.partial or found.partial
            if size in ways:
                rest.throughput_ips = per_s and per_s * size
                rest.throughput_ci95 = _interval(found, size)
                rest.throughput_queries = len(found.seconds)
                rest.throughput_requests = runner.depth
            if size in options.batches and per_s is not None:
                rest.by_batch.append({"batch": size, "images_per_s": per_s * size})
            if rest.partial:
                return rest
        run = RunOptions(options.device, options.size, "latency", options.settings)
        batches = opened.probe_batches(options.size)
        rest.profiled = profiling.layers(opened, target, run, batches, tools.reporter, tools.clock)
    except KeyboardInterrupt:
        rest.partial = True
    return rest


def _interval(samples: Samples, size: int) -> tuple[float, float] | None:
    """The 95% interval of the images a second; None where there are too few queries."""
    found = bootstrap.rate(samples.started, samples.seconds)
    return found and (found[0] * size, found[1] * size)
