"""What a measurement is asked to be, and whether that can be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vggdeploy.benchmarks.scenarios import MULTISTREAM_SAMPLES, NAMES, Stop
from vggdeploy.contracts import Settings
from vggdeploy.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from vggdeploy.benchmarks.scenarios import Name

SECONDS = 5.0
PRECISION_SECONDS = 60.0
"""How long a precision is tried for where no limit is given."""

QUERIES = 30
LARGEST_BATCH = 1024
"""Images of 224x224 in FP32 that take 0.6 GB: more serves no measurement."""

MOST_QUERIES = 10_000_000


@dataclass(frozen=True)
class BenchOptions:
    """How to measure.

    Attributes:
        batch: images a query; a query of multistream has 8.
        seconds: how long each loop measures; with a precision, at most. None for a default.
        device: the backend's own name of the device.
        scenario: how queries arrive; see `scenarios`.
        precision: half the width of the median's interval that is enough, as a share of the median.
        queries: the fewest to measure.
        rate: arrivals a second (server); None to find the highest one.
        p99_bound: of latency, in seconds, that a rate is found for (server).
        batches: sizes whose throughput is measured besides.
        mlperf: whether MLPerf's LoadGen drives.
        full: whether its run is to be of valid length.
        logs: where its logs go.
        seed: of arrivals.
        settings: how the device is used.
        beside: the same for the throughput that is measured beside latency; `settings` if None.
        tuned: whether what the bundle was tuned to is used in their place.
        free_batch: whether the batch was left to that.
    """

    batch: int = 1
    seconds: float | None = None
    device: str = "CPU"
    scenario: Name = "latency"
    precision: float | None = None
    queries: int | None = None
    rate: float | None = None
    p99_bound: float | None = None
    batches: tuple[int, ...] = ()
    mlperf: bool = False
    full: bool = False
    logs: Path | None = None
    seed: int = 0
    settings: Settings = Settings()
    beside: Settings | None = None
    tuned: bool = False
    free_batch: bool = False

    @property
    def size(self) -> int:
        """Images a query."""
        return MULTISTREAM_SAMPLES if self.scenario == "multistream" else self.batch

    @property
    def goal(self) -> Literal["latency", "throughput"]:
        """What the runner is opened for."""
        return "latency" if self.scenario in ("latency", "multistream") else "throughput"

    @property
    def queue_settings(self) -> Settings:
        """How the device is used where throughput is measured."""
        if self.beside is None or self.scenario != "latency":
            return self.settings
        return self.beside

    @property
    def limit_s(self) -> float:
        """Seconds of a loop."""
        if self.seconds is not None:
            return self.seconds
        return SECONDS if self.precision is None else PRECISION_SECONDS

    @property
    def stop(self) -> Stop:
        """When the scenario's loop ends."""
        return Stop(self.limit_s, self.queries or QUERIES, self.precision)

    def check(self) -> None:
        """Make sure that something can be measured.

        Raises:
            ConfigError: for what is impossible, or does not go together.
        """
        if self.scenario not in NAMES:
            raise ConfigError(
                "unknown scenario",
                got=repr(self.scenario),
                expected=", ".join(NAMES),
                fix="mend --scenario",
            )
        for flag, size in (("--batch", self.batch), *(("--batches", one) for one in self.batches)):
            _within("the batch", size, 1, LARGEST_BATCH, flag)
        for flag, name, number in (
            ("--seconds", "the time", self.seconds),
            ("--rate", "the rate", self.rate),
            ("--p99-bound", "the bound", self.p99_bound),
        ):
            if number is not None and not 0 < number < math.inf:
                raise ConfigError(
                    f"{name} is out of range",
                    got=number,
                    expected="above 0 and finite",
                    fix=f"mend {flag}",
                )
        if self.precision is not None and not 0 < self.precision < 1:
            raise ConfigError(
                "the precision is out of range",
                got=self.precision,
                expected="a share between 0 and 1, such as 0.01",
                fix="mend --precision",
            )
        if self.queries is not None:
            _within("the number of queries", self.queries, 1, MOST_QUERIES, "--queries")
        if self.rate is not None:
            self.require_countable(self.rate)
        self._check_together()

    def require_countable(self, rate: float) -> None:
        """Make sure that a schedule of what arrives at `rate` a second can be held in memory.

        Raises:
            ConfigError: when it cannot.
        """
        count = rate * self.limit_s
        if count > MOST_QUERIES:
            raise ConfigError(
                "too many queries would arrive",
                got=f"{count:.3g}, {rate:g} a second for {self.limit_s:g} s",
                expected=f"{MOST_QUERIES:,} at most",
                fix="lower --rate or --seconds",
            )

    def _check_together(self) -> None:
        server = self.scenario == "server"
        scenario = f"--scenario {self.scenario}"
        clashes: list[tuple[bool, str, str, str, str]] = [
            (
                not server and self.rate is not None,
                "--rate is of arrivals, which --scenario server alone has",
                scenario,
                "--scenario server",
                "drop it, or measure the server scenario",
            ),
            (
                not server and self.p99_bound is not None,
                "--p99-bound is what --scenario server finds a rate for",
                scenario,
                "--scenario server",
                "drop it, or measure the server scenario; 'gate --max-p99' holds a result to one",
            ),
            (
                server and self.rate is None and self.p99_bound is None,
                "--scenario server needs a rate, or a bound to find one for",
                "neither",
                "one of them",
                "give --rate, or --p99-bound",
            ),
            (
                server and self.precision is not None,
                "--precision is of a loop that waits for each query, and a server does not",
                f"--precision {self.precision}",
                "a time or a number of queries",
                "give --seconds or --queries",
            ),
            (
                self.scenario == "multistream" and self.batch not in (1, MULTISTREAM_SAMPLES),
                f"a query of --scenario multistream has {MULTISTREAM_SAMPLES} samples",
                f"--batch {self.batch}",
                "no --batch",
                "drop --batch",
            ),
            (
                not self.mlperf and (self.full or self.logs is not None),
                "--full and --logs are of --mlperf",
                "no --mlperf",
                "all of them, or none",
                "give --mlperf too, or drop them",
            ),
            (
                self.mlperf and (self.precision is not None or self.queries is not None),
                "LoadGen decides by itself when --mlperf ends",
                "--precision or --queries",
                "neither",
                "drop --precision and --queries",
            ),
            (
                self.mlperf and server and self.p99_bound is None,
                "MLPerf's Server is held to a bound on its 99th percentile",
                "none",
                "--p99-bound in seconds",
                "give --p99-bound",
            ),
            (
                self.mlperf and self.scenario in ("latency", "server") and self.batch != 1,
                f"a query of MLPerf's {'Server' if server else 'SingleStream'} is one sample",
                f"--batch {self.batch}",
                "--batch 1",
                "drop --batch",
            ),
        ]
        for wrong, what, got, expected, fix in clashes:
            if wrong:
                raise ConfigError(what, got=got, expected=expected, fix=fix)


def _within(name: str, got: int, low: int, high: int, flag: str) -> None:
    if not low <= got <= high:
        raise ConfigError(
            f"{name} is out of range", got=got, expected=f"{low} to {high}", fix=f"mend {flag}"
        )
