"""What a device can attain, measured: small networks that do one thing, run by the backend itself.

The shortest query counts and not the median, since a peak is what the device can do when nothing
is in its way. Probes take turns, and the caller may put work of its own between the turns: what is
held against the peak is then measured in the same minutes, so that drift of the machine's clock or
load does not decide.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import numpy as np

from vggdeploy import gpus, roofline
from vggdeploy.errors import ConfigError, MissingError
from vggdeploy.roofline import Peaks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from vggdeploy.benchmarks.scenarios import Clock
    from vggdeploy.budget import Device
    from vggdeploy.contracts import LayerTime, Probe, Reporter

ROUNDS = 6
"""Turns of each probe."""

ATTEMPTS = 3
"""So often all of that at most, where the best so far is known to fall short of the peak."""

SECONDS = 0.5
"""Given to each probe, all its turns of one attempt together."""

WARMUP_QUERIES = 2
"""Of each probe; the first ones allocate."""


def peak(
    probes: Sequence[Probe],
    precision: str,
    reporter: Reporter,
    clock: Clock = time.perf_counter,
) -> Device:
    """The attainable MAC rate at `precision` and the bandwidth."""
    return measure(probes, reporter, clock=clock).device(precision)


def measure(
    probes: Sequence[Probe],
    reporter: Reporter,
    between: Callable[[], None] | None = None,
    clock: Clock = time.perf_counter,
    cache_bytes: int | None = None,
    enough: Callable[[Peaks], bool] | None = None,
) -> Peaks:
    """The best of each precision's compute probes, and of the bandwidth probes.

    Where a runner tells what its layers took, those that do the probe's work count and not the
    whole query, as it is with the layers that are held against them; and the precision is that
    which the backend really chose.

    Args:
        probes: at least one with MACs, for `RunOptions` with ``profile``. Their runners are opened
            here.
        reporter: hears of each turn.
        between: called before each turn of all probes.
        clock: seconds.
        cache_bytes: the device's last-level cache, if it is known.
        enough: tells when what was found may be the peak; where it may not, probes go on for
            `ATTEMPTS`. On a machine that others use, the best of few queries was disturbed too.
    """
    with contextlib.ExitStack() as stack:
        turns = [
            _Turn(probe, clock) for probe in probes if stack.enter_context(probe.runner) is not None
        ]
        for _ in range(ATTEMPTS):
            for _ in reporter.track(range(ROUNDS), ROUNDS, "measuring the attainable peak"):
                if between is not None:
                    between()
                for turn in turns:
                    turn.take(SECONDS / ROUNDS)
            found = _best(turns, cache_bytes)
            if enough is None or enough(found):
                break
    return found


def _best(turns: Sequence[_Turn], cache_bytes: int | None) -> Peaks:
    rates: dict[str, float] = {}
    bandwidth = 0.0
    for turn in turns:
        probe, best = turn.probe, turn.best
        if probe.macs:
            rates[turn.precision] = max(rates.get(turn.precision, 0.0), probe.macs / best)
        else:
            bandwidth = max(bandwidth, probe.bytes / best)
    return Peaks(rates, bandwidth, cache_bytes)


class _Turn:
    """A probe whose runner is open, and the shortest of its queries so far."""

    def __init__(self, probe: Probe, clock: Clock) -> None:
        self.probe = probe
        self.best = float("inf")
        self.precision = probe.precision
        self._clock = clock
        spec = probe.runner.input
        shape = [side or 1 for side in spec.shape]
        self._batch = np.random.default_rng(0).random(shape, np.float32)
        for _ in range(WARMUP_QUERIES):
            probe.runner.infer(self._batch)

    def take(self, seconds: float) -> None:
        """Run for `seconds`, one query at least."""
        runner, clock = self.probe.runner, self._clock
        begin = clock()
        while True:
            before = clock()
            runner.infer(self._batch)
            after = clock()
            told = runner.layer_times()
            self.best = min(self.best, self._work(told) if told else after - before)
            if after - begin >= seconds:
                return

    def _work(self, told: Sequence[LayerTime]) -> float:
        """What the probe's work would take if all of it went as its best layer.

        Its work is done by equal layers of one kind, that which takes most of the time. Each is as
        long as a layer of a network, and as likely as one to be left alone by other processes.
        """
        spent: dict[str, float] = {}
        for layer in told:
            spent[layer.kind] = spent.get(layer.kind, 0.0) + layer.seconds
        kind = max(spent, key=lambda name: spent[name])
        working = [layer for layer in told if layer.kind == kind]
        self.precision = roofline.precision_class(working[0].precision) or self.precision
        return len(working) * min(layer.seconds for layer in working)


def rated(facts: Mapping[str, Any], precision: str) -> Peaks:
    """What a GPU can do at most by the table, at `precision` and at the others that it has.

    Raises:
        ConfigError, MissingError: as `gpus.peak`.
    """
    main = gpus.rated(facts, precision)
    rates = {precision: main.macs_per_s}
    for other in ("fp32", "fp16", "int8"):
        with contextlib.suppress(ConfigError, MissingError):
            rates.setdefault(other, gpus.rated(facts, other).macs_per_s)
    return Peaks(rates, main.bytes_per_s)
