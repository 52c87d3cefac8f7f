"""MLPerf's own load generator over the same `Runner`: SingleStream, MultiStream, Offline, Server.

LoadGen decides when queries come, how many and of which samples, and says what is valid; this
module executes them. Rules and seeds are those of the ``mlperf.conf`` inside of the package
``mlcommons-loadgen``, for a model that it has no special rules for.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vggdeploy import atomic
from vggdeploy.benchmarks import mlperf_log
from vggdeploy.benchmarks.scenarios import MULTISTREAM_SAMPLES, Samples
from vggdeploy.errors import EXIT_INPUT, EXIT_INTERRUPTED, MissingError, missing_package

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from vggdeploy.benchmarks.scenarios import Clock, Name
    from vggdeploy.contracts import Batch, Outputs, Runner

SCENARIOS: dict[Name, str] = {
    "latency": "SingleStream",
    "multistream": "MultiStream",
    "throughput": "Offline",
    "server": "Server",
}

FULL_SECONDS = 600.0
"""The least length of a valid run, as mlperf.conf has it."""

OFFLINE_SAMPLES = 24_576
"""Samples of a full Offline run at least (MLCommons, "MLPerf Inference Rules")."""

_MODEL = "vgg16"
_MLPERF_CONF = 0
"""What `TestSettings.FromConfig` calls the conf inside of the package."""


@dataclass(frozen=True)
class Plan:
    """What a run is to be.

    Attributes:
        scenario: by this project's name.
        seconds: the shortest run that LoadGen takes; a full run is never below `FULL_SECONDS`.
        full: whether it is to be of valid length.
        batch: images that Offline's samples are executed by.
        expected_s: about what a query takes; LoadGen makes enough queries for it beforehand.
        rate: queries a second that are offered (Server), samples a second expected (Offline).
        bound_s: on Server's 99th percentile.
    """

    scenario: Name
    seconds: float
    full: bool = False
    batch: int = 1
    expected_s: float = 0.01
    rate: float = 1.0
    bound_s: float | None = None


def available(logs: Path | None = None) -> None:
    """Make sure that LoadGen is installed and can write its logs, before anything is measured.

    Raises:
        MissingError: when it is not installed.
        ConfigError: when `logs` cannot be written.
    """
    _loadgen()
    if logs is None:
        return
    with atomic.writing(logs):
        logs.mkdir(parents=True, exist_ok=True)
    atomic.require_writable(logs / "mlperf_log_summary.txt")


def run(
    runner: Runner,
    images: Sequence[Batch],
    plan: Plan,
    logs: Path,
    clock: Clock = time.perf_counter,
) -> tuple[Samples, dict[str, Any]]:
    """Let LoadGen drive `runner`, and keep its logs.

    Args:
        runner: open, for a batch of 1 (SingleStream, Server), 8 (MultiStream) or `plan.batch`.
        images: the sample library, ``[1, ...]`` each.
        plan: what to run.
        logs: a folder, made if it is not there.
        clock: for the samples kept; LoadGen has its own.

    Returns:
        every query as it was executed (of Offline, every batch; of Server, from when it came), and
        the result's ``mlperf``; of an interrupted run LoadGen has none, and ``result`` is
        ``INVALID``.

    Raises:
        MissingError: when LoadGen is not installed.
        VggdeployError: what the runner raised.
    """
    lg = _loadgen()
    available(logs)
    system = _System(lg, runner, images, plan, clock)
    test = threading.Thread(target=system.test, args=(logs,), daemon=True, name="loadgen")
    found = Samples(begin=clock())
    test.start()
    try:
        # Not `join`: interrupted, it takes a thread that runs for one that has ended. And with a
        # limit: the signal may come to another thread, which wakes nobody.
        while not system.idle.wait(0.2):
            pass
    except KeyboardInterrupt:
        found.partial = True
        system.stop.set()
        system.idle.wait()
        _leave(EXIT_INTERRUPTED)
    if system.error is not None:
        code = getattr(system.error, "exit_code", EXIT_INPUT)
        if system.held:
            _leave(code)
        raise system.error
    for before, after in sorted(system.ran):
        found.add(before, after)
    found.end = max((after for _, after in system.ran), default=found.begin)
    said: dict[str, Any] = {"scenario": SCENARIOS[plan.scenario], "result": "INVALID"}
    if not found.partial:
        said = mlperf_log.parse(logs)
    return found, {**said, "logs": str(logs), "full": plan.full, "min_seconds": _least(plan)}


def _least(plan: Plan) -> float:
    return max(FULL_SECONDS, plan.seconds) if plan.full else plan.seconds


def _loadgen() -> Any:
    try:
        import mlperf_loadgen
    except ImportError as error:
        raise missing_package("mlperf_loadgen", "mlperf", "--mlperf") from error
    return mlperf_loadgen


class _System:
    """LoadGen's system under test and sample library, on LoadGen's thread."""

    def __init__(
        self, lg: Any, runner: Runner, images: Sequence[Batch], plan: Plan, clock: Clock
    ) -> None:
        self.ran: list[tuple[float, float]] = []
        self.error: BaseException | None = None
        self.stop, self.idle = threading.Event(), threading.Event()
        self.held = False
        self._lg, self._runner, self._images, self._plan = lg, runner, images, plan
        self._clock = clock
        self._waiting: queue.Queue[tuple[float, int, int] | None] = queue.Queue()
        self._issue: Callable[[Any], None] = {
            "latency": self._single,
            "multistream": self._multiple,
            "throughput": self._offline,
            "server": self._server,
        }[plan.scenario]

    def test(self, logs: Path) -> None:
        """One whole test."""
        lg, count = self._lg, len(self._images)
        if self._plan.scenario == "server":
            threading.Thread(target=self._serve, daemon=True, name="server").start()
        try:
            output, log = lg.LogOutputSettings(), lg.LogSettings()
            output.outdir = str(logs)
            output.copy_summary_to_stdout = False
            log.log_output = output
            log.enable_trace = False
            settings = self.settings()
            sut = lg.ConstructSUT(self._guarded, self._flush)
            library = lg.ConstructQSL(count, count, lambda chosen: None, lambda chosen: None)
            try:
                lg.StartTestWithLogSettings(sut, library, settings, log)
            finally:
                lg.DestroyQSL(library)
                lg.DestroySUT(sut)
        except BaseException as error:  # raised again where it is waited for
            self.error = self.error or error
        finally:
            self._waiting.put(None)
            self.idle.set()

    def settings(self) -> Any:
        """LoadGen's settings: its own rules and seeds, and what depends on the system."""
        lg, plan = self._lg, self._plan
        name = SCENARIOS[plan.scenario]
        settings = lg.TestSettings()
        if settings.FromConfig("", _MODEL, name, _MLPERF_CONF) or not settings.qsl_rng_seed:
            raise MissingError(
                "LoadGen has no mlperf.conf inside",
                got="neither its rules nor its seeds",
                expected="mlcommons-loadgen 5 or later",
                fix="pip install -U mlcommons-loadgen",
            )
        settings.scenario = getattr(lg.TestScenario, name)
        settings.mode = lg.TestMode.PerformanceOnly
        settings.min_duration_ms = round(1000 * _least(plan))
        if not plan.full:
            settings.min_query_count = 1
        elif plan.scenario == "throughput":
            settings.min_query_count = max(OFFLINE_SAMPLES, settings.min_query_count)
        # Half of what is expected: LoadGen makes the queries beforehand, and must not run out.
        settings.single_stream_expected_latency_ns = max(1, round(plan.expected_s / 2 * 1e9))
        settings.multi_stream_expected_latency_ns = max(1, round(plan.expected_s / 2 * 1e9))
        settings.multi_stream_samples_per_query = MULTISTREAM_SAMPLES
        settings.offline_expected_qps = settings.server_target_qps = plan.rate
        if plan.bound_s is not None:
            settings.server_target_latency_ns = round(plan.bound_s * 1e9)
        return settings

    def _guarded(self, samples: Any) -> None:
        """Execute a query that LoadGen issues.

        An exception must not pass through LoadGen, which would end the process, and LoadGen cannot
        be told to stop: its thread is held here for good.
        """
        try:
            self._issue(samples)
            if self.stop.is_set():
                self._settle()
        except BaseException as error:
            self.error = error
        if self.error is not None or self.stop.is_set():
            self._park()

    def _flush(self) -> None:
        try:
            self._settle()
        except BaseException as error:
            self.error = error
        if self.error is not None or self.stop.is_set():
            self._park()

    def _settle(self) -> None:
        """Wait for every query that has come, but for those of a run that ends early."""
        self._waiting.join()
        self._runner.drain()

    def _park(self) -> None:
        """Hold LoadGen's thread for good."""
        self.held = True
        self.idle.set()
        threading.Event().wait()

    def _single(self, samples: Any) -> None:
        (sample,) = samples
        before = self._clock()
        self._runner.infer(self._images[sample.index])
        self._complete([sample.id])
        self.ran.append((before, self._clock()))

    def _multiple(self, samples: Any) -> None:
        before = self._clock()
        self._runner.infer(np.concatenate([self._images[sample.index] for sample in samples]))
        self._complete([sample.id for sample in samples])
        self.ran.append((before, self._clock()))

    def _server(self, samples: Any) -> None:
        # Not begun here: this thread would be held while the runner's queue is full, so the queries
        # behind would come late, and what they had to wait would be in no sample.
        for sample in samples:
            self._waiting.put((self._clock(), sample.id, sample.index))

    def _serve(self) -> None:
        """Begin queries in the order in which they came, on a thread of its own."""
        while (query := self._waiting.get()) is not None:
            came, number, index = query
            try:
                if self.error is None and not self.stop.is_set():
                    self._begin([number], self._images[index], came)
            except BaseException as error:  # raised again where the run is waited for
                self.error = error
            finally:
                self._waiting.task_done()

    def _offline(self, samples: Any) -> None:
        size = self._plan.batch
        for at in range(0, len(samples), size):
            if self.stop.is_set():
                return
            part = [samples[turn] for turn in range(at, min(at + size, len(samples)))]
            images = [self._images[sample.index] for sample in part]
            # The last batch is filled up: an engine's batch is fixed.
            images += images[-1:] * (size - len(images))
            batch = images[0] if size == 1 else np.concatenate(images)
            self._begin([sample.id for sample in part], batch, self._clock())

    def _begin(self, ids: list[int], batch: Batch, before: float) -> None:
        def done(outputs: Outputs) -> None:
            self._complete(ids)
            self.ran.append((before, self._clock()))

        self._runner.start(batch, done)

    def _complete(self, ids: list[int]) -> None:
        response = self._lg.QuerySampleResponse
        self._lg.QuerySamplesComplete([response(one, 0, 0) for one in ids])


def _leave(code: int) -> None:
    """Have the process end with `code` and without its C++ destructors: LoadGen, held in the
    middle of a test, would crash in its own."""

    def leave() -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(code)

    atexit.register(leave)
