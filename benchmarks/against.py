"""Two bundles in one run, query by query in turn."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from vggdeploy.benchmarks.scenarios import Samples
from vggdeploy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vggdeploy.benchmarks.options import BenchOptions
    from vggdeploy.benchmarks.scenarios import Clock, Stop
    from vggdeploy.contracts import Batch, Runner

NO_ENERGY = "two bundles took turns in the same window"


def check(options: BenchOptions) -> None:
    """Make sure that a measurement can be made query by query in turn.

    Raises:
        ConfigError: for a scenario whose queries overlap.
    """
    if options.scenario not in ("latency", "multistream") or options.mlperf:
        raise ConfigError(
            "--against takes turns query by query",
            got="--mlperf" if options.mlperf else f"--scenario {options.scenario}",
            expected="--scenario latency or multistream",
            fix="measure each with --json, and 'vggdeploy compare' the results",
        )


def interleaved(
    runners: Sequence[Runner], batches: Sequence[Sequence[Batch]], stop: Stop, clock: Clock
) -> tuple[Samples, Samples]:
    """The samples of two open runners: a query of each in turn, the order changing every time, so
    that neither is always the one that finds the caches full of the other's.

    Ends when `stop` says so of the first with its half of the time. Ctrl-C keeps whole pairs.
    """
    found = (Samples(), Samples())
    over = stop.checker()
    found[0].begin = found[1].begin = begin = clock()
    try:
        for turn in itertools.count():
            times = {}
            for side in (turn % 2, 1 - turn % 2):
                batch = batches[side][turn % len(batches[side])]
                before = clock()
                runners[side].infer(batch)
                times[side] = before, clock()
            for side, (before, after) in times.items():
                found[side].add(before, after)
            if over(found[0].seconds, (clock() - begin) / 2):
                break
    except KeyboardInterrupt:
        for each in found:
            each.partial = True
    found[0].end = found[1].end = clock()
    # Both of a pair or neither, should the interruption have come between the two.
    whole = min(len(each.seconds) for each in found)
    for each in found:
        del each.seconds[whole:], each.started[whole:]
    return found
