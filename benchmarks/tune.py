"""Find the settings that a bundle runs best with on this machine."""

from __future__ import annotations

import functools
import math
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from vggdeploy.benchmarks import statistics
from vggdeploy.benchmarks.options import LARGEST_BATCH
from vggdeploy.benchmarks.search import Candidate, Plan, Search
from vggdeploy.contracts import RunOptions
from vggdeploy.errors import ConfigError
from vggdeploy.machine import system

if TYPE_CHECKING:
    from collections.abc import Callable

    from vggdeploy.benchmarks.search import Found, Trial
    from vggdeploy.bundle import Bundle
    from vggdeploy.contracts import Reporter, Runner, Target

SECONDS = 180.0
"""Three minutes: some twenty candidates of an INT8 VGG16 on two cores."""

MAX_BATCH = 16
"""By then the weights, which are read once a batch, are a small part of what is computed; more
costs memory and latency for little."""

GOALS = ("latency", "throughput")


@dataclass(frozen=True)
class TuneOptions:
    """What to tune for, and with how much.

    Attributes:
        goal: the least median latency, of one image or the fewest that the engine takes, or the
            most images a second.
        bound_s: on the 99th percentile of a query's latency; with throughput alone.
        seconds: for everything, opening runners included.
        device: the backend's own name of the device.
        max_batch: the largest batch that is tried for throughput; powers of two up to it.
        seed: draws orders, and candidates where not all can be tried.
    """

    goal: str = "latency"
    bound_s: float | None = None
    seconds: float = SECONDS
    device: str = "CPU"
    max_batch: int = MAX_BATCH
    seed: int = 0

    def check(self) -> None:
        """Make sure that these can be met.

        Raises:
            ConfigError: for what is impossible, or does not go together.
        """
        if self.goal not in GOALS:
            raise ConfigError(
                "unknown --goal",
                got=repr(self.goal),
                expected="one of " + ", ".join(GOALS),
                fix="choose one of them",
            )
        if self.bound_s is not None and self.goal == "latency":
            raise ConfigError(
                "--latency-bound goes with --goal throughput",
                got="--goal latency, which is as low as it gets",
                expected="--goal throughput",
                fix="drop it, or tune for throughput",
            )
        numbers = {"--seconds": self.seconds, "--latency-bound": self.bound_s}
        for flag, value in numbers.items():
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(
                    f"{flag} is out of range",
                    got=value,
                    expected="seconds above 0 and finite",
                    fix="mend it",
                )
        if not 1 <= self.max_batch <= LARGEST_BATCH:
            raise ConfigError(
                "--max-batch is out of range",
                got=self.max_batch,
                expected=f"1 to {LARGEST_BATCH}",
                fix="mend it",
            )

    @property
    def run(self) -> Callable[..., RunOptions]:
        """Makes run options with batch and settings."""
        goal: Literal["latency", "throughput"] = (
            "latency" if self.goal == "latency" else "throughput"
        )
        return functools.partial(RunOptions, device=self.device, goal=goal)


def candidates(target: Target, opened: Bundle, options: TuneOptions) -> list[Candidate]:
    """What is tried, the backend's own choice first: for throughput, each of the target's settings
    at each batch that the engine takes."""
    least, _, most = opened.batches or (1, 1, options.max_batch)
    sizes = [least]
    if options.goal == "throughput":
        powers = [2**power for power in range(options.max_batch.bit_length())]
        sizes += [size for size in powers if least < size <= min(options.max_batch, most)]
    found = [Candidate(least)]
    for batch in sizes:
        settings = target.candidates(options.run(batch=batch))
        found += [Candidate(batch, each) for each in settings]
    return list(dict.fromkeys(found))


def tune(
    opened: Bundle,
    target: Target,
    options: TuneOptions,
    reporter: Reporter | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Search for the best settings of `opened` on `target`'s device.

    Returns:
        the result's JSON form: ``goal``, ``bound_s``, ``tried`` (every candidate with what was
        measured of it and why it is out), ``winner`` (None where nothing keeps the bound), and the
        machine.

    Raises:
        ConfigError: for options that are impossible, or too little time.
        MissingError: when this machine cannot run it.
    """
    options.check()
    batches = functools.cache(opened.probe_batches)

    def opener(candidate: Candidate) -> Runner:
        return target.open(opened, options.run(batch=candidate.batch, settings=candidate.settings))

    goal: Literal["latency", "throughput"] = options.run().goal
    plan = Plan(goal, options.seconds, options.bound_s, options.seed)
    tried = candidates(target, opened, options)
    found = Search(tried, opener, batches, plan, clock, reporter).run()
    return {
        "kind": "tune",
        "bundle": str(opened.path),
        "target": opened.target,
        "digest": opened.manifest["digest"],
        "goal": options.goal,
        "bound_s": options.bound_s,
        "device": options.device,
        "seconds": found.seconds,
        "budget_seconds": options.seconds,
        "seed": options.seed,
        "tried": [_row(trial) for trial in found.trials],
        "winner": _winner(found),
        "reason": found.reason,
        "backend": target.version(),
        "system": system(),
    }


def _row(trial: Trial) -> dict[str, Any]:
    """A candidate as a result has it; figures are None where it was not measured."""
    figures: tuple[float | None, ...] = (None, None, None)
    if trial.latencies:
        ordered = sorted(trial.latencies)
        p50, p99 = (statistics.percentile(ordered, percent) for percent in (50, 99))
        figures = (p50, p99, trial.images / trial.seconds)
    return {
        "batch": trial.candidate.batch,
        "settings": asdict(trial.candidate.settings),
        "rounds": len(trial.costs),
        "p50": figures[0],
        "p99": figures[1],
        "images_per_s": figures[2],
        "kept_until": trial.kept_until,
        "out": trial.out,
    }


def _winner(found: Found) -> dict[str, Any] | None:
    """The winner, and what the last run showed of the best other beside the backend's own choice:
    seconds an image of the one over those of the other."""
    if found.winner is None:
        return None
    trial = next(each for each in found.trials if each.candidate == found.winner)
    row = _row(trial)
    return {
        **{key: row[key] for key in ("batch", "settings", "p50", "p99", "images_per_s")},
        "default": trial is found.trials[0],
        "ratio": found.confirmed.value if found.confirmed else None,
        "ci95": list(found.confirmed.ci95) if found.confirmed and found.confirmed.ci95 else None,
        "pairs": found.pairs,
    }
