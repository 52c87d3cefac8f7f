"""The search behind ``tune``: successive halving over interleaved rounds, within a time budget.

Every candidate is measured a little, the worse half is dropped, and the rest shares the next stretch
of time, until one is left (K. Jamieson and A. Talwalkar, "Non-stochastic best arm identification and
hyperparameter optimization", AISTATS 2016). What is compared is always measured in the same rounds
(see `turns`): a candidate's cost in a round is divided by the round's geometric mean, and the median
of these ratios ranks it, so a machine that slows down between rounds changes no rank.

The winner was picked because it looked good, which flatters it. So a last run, of it and of the
backend's own choice in turn and on new samples alone, has to show that it is faster; else the
backend's own choice stays.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from vggdeploy.benchmarks import bootstrap, statistics, turns
from vggdeploy.benchmarks.pool import KEPT_OPEN, Pool
from vggdeploy.contracts import Settings, Silent
from vggdeploy.errors import ConfigError, VggdeployError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from vggdeploy.benchmarks.bootstrap import Ratio
    from vggdeploy.benchmarks.scenarios import Clock
    from vggdeploy.benchmarks.turns import Slice
    from vggdeploy.contracts import Batch, Reporter, Runner

CONFIRM = 0.4
"""Share of the time that is kept for the last run."""

SLICE_SECONDS = 0.5
"""A turn is not longer than that where one query is not: many short rounds beat a few long ones."""

UNTRIED = "no time for it"
"""Why a candidate that was not measured is out."""

MARGIN = 1.1
"""How much longer than estimated a turn may well take."""


@dataclass(frozen=True)
class Candidate:
    """One way to run an engine."""

    batch: int = 1
    settings: Settings = Settings()


DEFAULT = Candidate()
"""The backend's own choice, one image a query."""


@dataclass(frozen=True)
class Plan:
    """What is searched for, and with how much.

    Attributes:
        goal: the least median latency, or the most images a second.
        seconds: for everything, opening runners included.
        bound_s: on the 99th percentile of latency; None without one.
        seed: draws the orders, and the candidates where not all can be tried in the time.
    """

    goal: Literal["latency", "throughput"]
    seconds: float
    bound_s: float | None = None
    seed: int = 0


@dataclass
class Trial:
    """A candidate and what was measured of it.

    Attributes:
        costs: seconds an image of its turns, by the number of the round.
        turn_seconds: that its last turn took, without opening.
        least_seconds: that its shortest turn would take.
        group_seconds: that a query took in its last turn, or as many as are in flight at once.
        kept_until: the last rung that it was measured in; 0 if it never was.
        out: why it is out; empty for the winner of the halving.
        usable: whether it can be run and, as far as is known, keeps the bound.
    """

    candidate: Candidate
    costs: dict[int, float] = field(default_factory=dict)
    latencies: list[float] = field(default_factory=list)
    images: int = 0
    seconds: float = 0.0
    turn_seconds: float = 0.0
    least_seconds: float = 0.0
    group_seconds: float = 0.0
    kept_until: int = 0
    out: str = ""
    usable: bool = True

    def add(self, number: int, part: Slice, cost: float) -> None:
        """Take in a turn of round `number`."""
        self.costs[number] = cost
        self.latencies += part.latencies
        self.images += part.images
        self.seconds += part.seconds


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Attributes:
        trials: of every candidate, the backend's own choice first.
        winner: what is to be used: the backend's own choice where no other was shown to be better,
            and None where nothing keeps the bound.
        confirmed: seconds an image of the winner over those of the backend's own choice, in the
            last run; None where there was none.
        pairs: of turns in the last run.
        reason: why it is the winner.
        seconds: that it took.
    """

    trials: tuple[Trial, ...]
    winner: Candidate | None
    confirmed: Ratio | None
    pairs: int
    reason: str
    seconds: float


class Search:
    """One search.

    Args:
        candidates: what to try, the backend's own choice first.
        opener: gives a candidate's runner, not yet open.
        batches: gives inputs of a batch size.
        plan: what for, and how long.
        clock: monotonic seconds.
        reporter: told the progress.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        opener: Callable[[Candidate], Runner],
        batches: Callable[[int], Sequence[Batch]],
        plan: Plan,
        clock: Clock = time.perf_counter,
        reporter: Reporter | None = None,
    ) -> None:
        self._plan = plan
        self._clock = clock
        self._reporter = reporter or Silent()
        self._batches = batches
        self._pool = Pool(opener)
        self._trials = {each: Trial(each) for each in candidates}
        self._own = self._trials[candidates[0]]
        self._rounds = 0
        self._opening = self._image_seconds = 0.0
        self._depth = 1
        self._orders = np.random.default_rng(plan.seed)
        self._start = clock()
        self._end = self._start + plan.seconds
        self._halved_by = self._end

    def run(self) -> Found:
        """Search.

        Raises:
            ConfigError: when the time is too short for anything.
            VggdeployError: when the backend's own choice cannot be run.
        """
        with self._pool:
            with self._reporter.step("the backend's own choice"):
                self._gauge()
            self._halved_by = self._end - CONFIRM * (self._end - self._clock())
            self._halve(self._affordable())
            return self._conclude()

    def _gauge(self) -> None:
        """Measure the backend's own choice, so that the rest can be planned: the second time, since
        the first one loads libraries and reads files too. Neither counts for anything else."""
        self._turn(self._own, 0.0)
        self._pool.close(self._own.candidate)
        part = self._turn(self._own, 0.0)
        self._image_seconds = part.seconds / part.images
        self._depth = self._pool.get(self._own.candidate).depth

    def _least(self, trial: Trial) -> float:
        """Seconds of the shortest turn: measured, or from those of the backend's own choice."""
        least = trial.least_seconds
        if not least:
            depth = 1
            if self._plan.goal == "throughput":
                streams = trial.candidate.settings.streams
                depth = self._depth if streams is None else max(2, streams)
            # As many come first and are not counted.
            least = 2 * depth * trial.candidate.batch * self._image_seconds
        return MARGIN * least

    def _pair_expected(self, trials: Sequence[Trial]) -> float:
        """Seconds of two rounds as long as the last ones."""
        opening = self._opening if len(trials) > KEPT_OPEN else 0.0
        return 2 * sum(
            max(self._least(trial), trial.turn_seconds) + MARGIN * opening for trial in trials
        )

    def _affordable(self) -> list[Trial]:
        """The trials that fit into the time: all, or some drawn by the seed.

        Each rung has two rounds at least, and half as many candidates as the one before: together
        about four turns for each candidate of the first.
        """
        now = self._clock()
        left = self._halved_by - now
        last = (self._end - self._halved_by) / bootstrap.FEWEST
        own, opening = self._least(self._own), MARGIN * self._opening
        taken, used = [self._own], 4 * (own + opening)
        others = [trial for trial in self._trials.values() if trial is not self._own]
        for index in self._orders.permutation(len(others)):
            trial = others[int(index)]
            cost = self._least(trial)
            if used + 4 * (cost + opening) <= left and own + cost <= last:
                taken.append(trial)
                used += 4 * (cost + opening)
            else:
                trial.out = UNTRIED
        if len(taken) == 1 and others:
            cheapest = min(self._least(trial) for trial in others)
            needed = (now - self._start) + max(
                (used + 4 * (cheapest + opening)) / (1 - CONFIRM),
                bootstrap.FEWEST * (own + cheapest) / CONFIRM,
            )
            raise ConfigError(
                "the time is too short to tune in",
                got=f"--seconds {self._plan.seconds:g}",
                expected=f"{math.floor(needed) + 1} at least, {math.ceil(4 * needed)} for a good look",
                fix="give it more",
            )
        return taken

    def _halve(self, trials: list[Trial]) -> None:
        """Drop the worse half, rung by rung."""
        rung, survivors = 1, self._fit(trials)
        while len(survivors) > 1:
            left = math.ceil(math.log2(len(survivors)))
            until = self._clock() + (self._halved_by - self._clock()) / left
            label = f"rung {rung}: {len(survivors)} candidates"
            with self._reporter.step(label):
                first = self._rounds
                self._rung(survivors, rung, until)
            if self._rounds == first:
                break  # the time is up
            ranked = self._ranked(self._fit(survivors))
            survivors = ranked[: math.ceil(len(ranked) / 2)]
            for trial in ranked[len(survivors) :]:
                trial.out = f"slower, after rung {rung}"
            rung += 1
        for trial in self._ranked(survivors)[1:]:
            if not trial.out:
                trial.out = "slower when the time was up" if trial.costs else UNTRIED

    def _rung(self, trials: list[Trial], rung: int, until: float) -> None:
        """Rounds of all `trials`, in pairs, until `until`."""
        share = (until - self._clock()) / (2 * len(trials))
        orders = turns.orders(len(trials), int(self._orders.integers(1 << 31)))
        pairs = 0
        while True:
            expected = self._pair_expected([trial for trial in trials if trial.usable])
            if self._clock() + expected > (until if pairs else self._halved_by):
                return
            for _ in range(2):
                drawn = [trials[index] for index in next(orders)]
                if not self._round([trial for trial in drawn if trial.usable], share):
                    return
            for trial in trials:
                trial.kept_until = rung if trial.usable else trial.kept_until
            pairs += 1

    def _round(self, trials: Sequence[Trial], share: float) -> bool:
        """One turn of each; False, and nothing is taken in, when the time has run out in the
        middle."""
        parts = []
        for trial in trials:
            try:
                part = self._turn(trial, share)
            except VggdeployError as error:
                if trial is self._own:
                    raise
                trial.usable, trial.out = False, f"it cannot be run: {error}"
                continue
            parts.append((trial, part))
            if self._clock() > self._halved_by:
                return False
        self._rounds += 1
        for trial, part in parts:
            trial.add(self._rounds, part, self._cost(part))
        return True

    def _turn(self, trial: Trial, share: float, longest: float = SLICE_SECONDS) -> Slice:
        """A slice of a candidate in about `share` seconds, `longest` at most where one query is not
        more, behind one that is not counted: the candidate before has left the caches full of its
        own."""
        batches = self._batches(trial.candidate.batch)
        start = self._clock()
        held = self._pool.opened
        runner = self._pool.get(trial.candidate)
        opened = self._clock()
        if self._pool.opened != held:
            self._opening = opened - start
        if self._plan.goal == "latency":
            runner.infer(batches[0])
            warm = self._clock()
            spent, more = warm - start, warm - opened
            measure = turns.one_by_one
        else:
            spent, more = opened - start, 2 * trial.group_seconds
            measure = turns.queued
        # Less what the last ones take, so that they end in time.
        spare = min(longest, max(0.0, share - spent - more))
        part = measure(runner, batches, spare, 1, self._clock)
        trial.turn_seconds = self._clock() - opened
        groups = len(part.latencies)
        if self._plan.goal == "throughput":
            groups //= runner.depth
        trial.group_seconds = part.seconds / groups
        trial.least_seconds = trial.turn_seconds - part.seconds + trial.group_seconds
        return part

    def _cost(self, part: Slice) -> float:
        return part.median if self._plan.goal == "latency" else part.seconds / part.images

    def _fit(self, trials: Iterable[Trial], fresh: Sequence[float] = ()) -> list[Trial]:
        """Those that keep the bound as far as is known: with all of their latencies, and with
        `fresh` ones alone, which no trial was picked by."""
        found = []
        bound = self._plan.bound_s
        for trial in trials:
            late = bound is not None and any(
                statistics.exceeds(sorted(each), bound) for each in (trial.latencies, fresh)
            )
            if trial.usable and late:
                trial.usable = False
                trial.out = f"its 99th percentile is above {bound:g} s"
            if trial.usable:
                found.append(trial)
        return found

    def _ranked(self, trials: Sequence[Trial]) -> list[Trial]:
        """The best first, by the rounds in which all of them were measured."""
        shared = [set(trial.costs) for trial in trials]
        rounds = sorted(set.intersection(*shared)) if shared else []
        if not rounds:
            return list(trials)
        costs = np.log([[trial.costs[number] for number in rounds] for trial in trials])
        scores = np.median(costs - costs.mean(axis=0), axis=1)
        return [trials[int(index)] for index in np.argsort(scores, kind="stable")]

    def _conclude(self) -> Found:
        """The winner of the halving against the backend's own choice; then the next best, where
        the last run shows that a winner breaks the bound and there is time left."""
        tried = [trial for trial in self._trials.values() if trial.kept_until and trial.usable]
        tried.sort(key=lambda trial: (not trial.out, trial.kept_until), reverse=True)
        reason = "no other was better in the search"
        for trial in tried:
            if trial is self._own:
                break
            made = self._confirm(trial)
            if made is None:
                reason = "there was no time to confirm another"
                break
            if not trial.usable:
                continue
            if not self._fit([self._own]):
                return self._done(trial, *made, "the backend's own choice breaks the bound")
            ci95 = made[0].ci95
            if ci95 is not None and ci95[1] < 1:
                return self._done(trial, *made, "shown to be faster in the last run")
            return self._done(self._own, *made, "no other was shown to be faster in the last run")
        if self._fit([self._own]):
            return self._done(self._own, None, 0, reason)
        return self._done(None, None, 0, "nothing that was tried keeps the bound")

    def _confirm(self, trial: Trial) -> tuple[Ratio, int] | None:
        """Turns of `trial` and the backend's own choice until the time is up; None when there is
        none for as many as an interval needs."""
        pair = [trial, self._own]
        if self._clock() + bootstrap.FEWEST * sum(map(self._least, pair)) > self._end:
            return None
        share = (self._end - self._clock()) / (4 * bootstrap.FEWEST)
        for each in pair:
            each.turn_seconds = 0.0  # those of the last rung may have had a larger share
        longest = self._equal(pair)
        orders = turns.orders(2, self._plan.seed)
        costs: tuple[list[float], list[float]] = ([], [])
        fresh: list[float] = []
        with self._reporter.step("confirming the winner"):
            while self._clock() + self._pair_expected(pair) / 2 <= self._end:
                self._rounds += 1
                for index in next(orders):
                    part = self._turn(pair[index], share, longest[index])
                    costs[index].append(self._cost(part))
                    pair[index].add(self._rounds, part, self._cost(part))
                    fresh += part.latencies if pair[index] is trial else ()
                if len(costs[0]) >= bootstrap.FEWEST and not self._fit([trial], fresh):
                    break
        if not costs[0]:
            return None
        found = bootstrap.ratio(costs[0], costs[1], paired=True, seed=self._plan.seed)
        self._fit([trial], fresh)
        return found, len(costs[0])

    def _equal(self, pair: Sequence[Trial]) -> list[float]:
        """How long to begin queries, for turns of equal length: the noise of a pair is that of its
        shorter turn. Of a queue, whose turns may be long, two groups of the slower one; the last
        group of either ends by itself, some time after it has begun."""
        if self._plan.goal == "latency":
            return [SLICE_SECONDS] * len(pair)
        whole = 2 * max(each.group_seconds for each in pair)
        return [max(SLICE_SECONDS, whole - 1.4 * each.group_seconds) for each in pair]

    def _done(self, trial: Trial | None, found: Ratio | None, pairs: int, reason: str) -> Found:
        return Found(
            tuple(self._trials.values()),
            trial.candidate if trial else None,
            found,
            pairs,
            reason,
            self._clock() - self._start,
        )
