"""The search of tune on faked runners and a clock that moves when told to."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from vggdeploy.benchmarks import pool, search, turns
from vggdeploy.benchmarks.search import DEFAULT, Candidate, Plan, Search
from vggdeploy.contracts import Runner, Settings, Silent, TensorSpec
from vggdeploy.errors import ConfigError, ModelError


class World:
    """Runners whose queries take as long as a function of candidate and time says."""

    def __init__(self, seconds: Any, *, opening: float = 0.0, depth: int = 1) -> None:
        self.now = 500.0
        self.seconds = seconds
        self.opening = opening
        self.depth = depth
        self.asked: list[Candidate] = []
        self.open: list[Candidate] = []
        self.most_open = self.opened = 0

    def clock(self) -> float:
        return self.now

    def runner(self, candidate: Candidate) -> Runner:
        return Faked(self, candidate)

    def search(self, candidates: Any, reporter: Any = None, **plan: Any) -> search.Found:
        self.start = self.now
        chosen = Plan(**{"goal": "latency", "seconds": 60.0, **plan})
        batches = lambda size: [np.zeros((size, 1), np.float32)]  # noqa: E731
        found = Search(candidates, self.runner, batches, chosen, self.clock, reporter).run()
        assert not self.open, "a runner was left open"
        return found


class Faked(Runner):
    def __init__(self, world: World, candidate: Candidate) -> None:
        super().__init__()
        self.name = "faked"
        self.input = TensorSpec("image", (None, 1))
        self.outputs = (TensorSpec("scores", (None, 1)),)
        self.depth = world.depth
        self._world, self._candidate = world, candidate

    def _start(self) -> None:
        self._world.now += self._world.opening
        self._world.open.append(self._candidate)
        self._world.opened += 1
        self._world.most_open = max(self._world.most_open, len(self._world.open))

    def _stop(self) -> None:
        self._world.open.remove(self._candidate)

    def _infer(self, batch: Any) -> Any:
        world = self._world
        world.asked.append(self._candidate)
        assert len(world.asked) < 100_000, "the search does not end"
        world.now += world.seconds(self._candidate, world.now)
        return {"scores": batch}


def streams(count: int) -> list[Candidate]:
    return [DEFAULT, *(Candidate(1, Settings(streams=each)) for each in range(1, count + 1))]


def by_streams(seconds: dict[int, float], otherwise: float = 0.1) -> Any:
    """Seconds of a query by the candidate's streams; 0 is the backend's own choice."""
    return lambda candidate, now: seconds.get(candidate.settings.streams or 0, otherwise)


def trial(found: search.Found, candidate: Candidate) -> search.Trial:
    return next(each for each in found.trials if each.candidate == candidate)


def test_the_fastest_wins_and_the_last_run_shows_it() -> None:
    world = World(by_streams({5: 0.09, 3: 0.095}))
    found = world.search(streams(7))
    assert found.winner == Candidate(1, Settings(streams=5))
    assert found.reason == "shown to be faster in the last run"
    assert found.confirmed is not None
    assert found.confirmed.value == pytest.approx(0.9)
    assert found.confirmed.ci95 == pytest.approx((0.9, 0.9))
    assert found.pairs >= 6
    # Eight candidates, then four, then two.
    kept = sorted(each.kept_until for each in found.trials)
    assert kept == [1, 1, 1, 1, 2, 2, 3, 3]
    winner = trial(found, found.winner)
    assert winner.kept_until == 3
    assert not winner.out
    assert "rung 1" in "".join(each.out for each in found.trials if each.kept_until == 1)


@pytest.mark.parametrize("seed", range(12))
def test_drift_chooses_nothing(seed: int) -> None:
    """The machine becomes 2.2 times as slow while it is tuned, by far more than the candidates
    differ, and what is measured first gains by it."""
    fast = {2: 0.0485}

    def seconds(candidate: Candidate, now: float) -> float:
        own = fast.get(candidate.settings.streams or 0, 0.05)
        return own * (1 + 0.02 * (now - 500))

    found = World(seconds).search(streams(5), seed=seed)
    assert found.winner == Candidate(1, Settings(streams=2))
    # What its 3% are worth is seen through the drift.
    assert found.confirmed is not None
    assert found.confirmed.value == pytest.approx(0.97, abs=0.01)
    # As a plain comparison of what was measured would not.
    medians = {each.candidate: np.median(each.latencies) for each in found.trials}
    assert min(medians, key=lambda each: medians[each]) != found.winner


def test_a_step_of_the_clock_chooses_nothing() -> None:
    def seconds(candidate: Candidate, now: float) -> float:
        own = 0.0485 if candidate.settings.streams == 2 else 0.05
        return own * (1.5 if now > 517 else 1.0)

    assert World(seconds).search(streams(5)).winner == Candidate(1, Settings(streams=2))


@pytest.mark.parametrize("seed", range(6))
def test_where_nothing_is_shown_the_backends_own_choice_stays(seed: int) -> None:
    """All are equally fast and noisy, so one looks best by chance."""
    rng = np.random.default_rng(seed)
    found = World(lambda candidate, now: 0.05 * float(np.exp(0.1 * rng.standard_normal()))).search(
        streams(5), seed=seed
    )
    assert found.winner == DEFAULT
    if found.confirmed is not None:
        assert found.confirmed.ci95 is not None
        assert found.confirmed.ci95[1] >= 1
        assert found.reason == "no other was shown to be faster in the last run"


def test_the_backends_own_choice_may_be_the_best() -> None:
    found = World(by_streams({0: 0.05})).search(streams(3))
    assert (found.winner, found.confirmed) == (DEFAULT, None)
    assert found.reason == "no other was better in the search"


@pytest.mark.parametrize("seconds", [20.0, 35.0, 120.0])
@pytest.mark.parametrize("opening", [0.0, 0.4])
def test_the_time_is_kept(seconds: float, opening: float) -> None:
    world = World(by_streams({1: 0.07, 2: 0.3, 3: 0.05}), opening=opening)
    found = world.search(streams(9), seconds=seconds)
    spent = world.now - world.start
    assert found.seconds == pytest.approx(spent)
    assert spent <= seconds
    assert found.winner != DEFAULT
    if found.confirmed:
        # What is left is less than a pair of turns.
        assert spent > seconds - 2.5
    assert all(each.costs or each.out for each in found.trials)


def test_what_is_much_slower_than_thought_does_not_break_the_time() -> None:
    world = World(by_streams({0: 0.05, 1: 9.0, 2: 9.0, 3: 9.0}))
    world.search(streams(3), seconds=30.0)
    # One turn of the slowest, a warm-up query and one that counts, is what may come on top.
    assert world.now - world.start <= 30.0 + 18


def test_where_not_all_fit_some_are_drawn() -> None:
    world = World(lambda candidate, now: 0.1, opening=0.5)
    found = world.search(streams(60), seconds=40.0)
    tried = [each for each in found.trials if each.costs]
    assert 4 < len(tried) < 30
    left = [each for each in found.trials if not each.costs]
    assert {each.out for each in left} == {"no time for it"}
    assert {each.kept_until for each in left} == {0}
    # Not the first of the list, which would be one corner of what there is.
    assert max(each.candidate.settings.streams or 0 for each in tried) > 30
    other = World(lambda candidate, now: 0.1, opening=0.5).search(streams(60), seconds=40.0, seed=1)
    assert {e.candidate for e in other.trials if e.costs} != {e.candidate for e in tried}


def test_too_little_time_is_said_with_what_would_do() -> None:
    world = World(by_streams({1: 0.9}, otherwise=1.0))
    with pytest.raises(ConfigError, match="the time is too short") as caught:
        world.search(streams(3), seconds=10.0)
    enough = int(str(caught.value.expected).split()[0])
    assert 10 < enough < 200
    again = World(by_streams({1: 0.9}, otherwise=1.0))
    assert again.search(streams(3), seconds=float(enough)).trials
    with pytest.raises(ConfigError):
        World(by_streams({1: 0.9}, otherwise=1.0)).search(streams(3), seconds=enough * 0.85)


def test_few_runners_are_open_at_once_and_survivors_stay_open() -> None:
    world = World(by_streams({4: 0.05}), opening=0.1)
    world.search(streams(8), seconds=90.0)
    assert world.most_open == pool.KEPT_OPEN
    three = World(by_streams({2: 0.05}), opening=0.1)
    three.search(streams(2), seconds=60.0)
    # The backend's own choice once more, to see what opening takes.
    assert three.opened == 4


def test_every_round_has_a_turn_of_each_in_changing_order(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Candidate] = []
    whole = turns.one_by_one

    def recorded(runner: Any, *arguments: Any) -> turns.Slice:
        made.append(runner._candidate)
        return whole(runner, *arguments)

    monkeypatch.setattr(turns, "one_by_one", recorded)
    World(by_streams({2: 0.05})).search(streams(2), seconds=60.0)
    rounds = [tuple(made[start : start + 3]) for start in range(2, 32, 3)]
    assert all(len(set(each)) == 3 for each in rounds)
    assert len(set(rounds)) >= 4
    assert all(b == a[::-1] for a, b in zip(rounds[::2], rounds[1::2], strict=True))


def test_orders_mirror_each_other() -> None:
    drawn = list(itertools.islice(turns.orders(7, 3), 40))
    assert all(sorted(each) == list(range(7)) for each in drawn)
    assert all(b == a[::-1] for a, b in zip(drawn[::2], drawn[1::2], strict=True))
    assert len({tuple(each) for each in drawn[::2]}) > 15
    assert drawn == list(itertools.islice(turns.orders(7, 3), 40))
    assert drawn != list(itertools.islice(turns.orders(7, 4), 40))


def test_ranks_are_by_ratios_within_rounds() -> None:
    """What all of a round share, as a slow minute, says nothing of any of them."""
    shared = {1: 1.0, 2: 10.0, 3: 100.0}
    better, worse = (search.Trial(each) for each in streams(1))
    better.costs = {1: 0.9 * shared[1], 2: 1.05 * shared[2], 3: 0.9 * shared[3], 4: 7.0}
    worse.costs = dict(shared)
    assert np.median(list(better.costs.values())[:3]) > np.median(list(worse.costs.values()))
    ranked = Search(streams(1), World(None).runner, lambda size: [], Plan("latency", 1.0))._ranked
    assert ranked([worse, better]) == [better, worse]
    assert ranked([better, worse]) == [better, worse]


def test_one_that_cannot_be_run_is_out_and_says_why() -> None:
    world = World(by_streams({2: 0.05}))
    whole = world.runner

    def runner(candidate: Candidate) -> Runner:
        if candidate.settings.streams == 1:
            raise ModelError("no such kernel", got=1, expected=2, fix="mend it")
        return whole(candidate)

    world.runner = runner  # type: ignore[method-assign]
    found = world.search(streams(4))
    assert found.winner == Candidate(1, Settings(streams=2))
    bad = trial(found, Candidate(1, Settings(streams=1)))
    assert bad.out == "it cannot be run: no such kernel: got 1, expected 2 -- mend it"
    assert (bad.kept_until, bad.costs) == (0, {})


def test_the_backends_own_choice_must_run() -> None:
    world = World(by_streams({}))

    def runner(candidate: Candidate) -> Runner:
        raise ModelError("nothing runs", got=1, expected=2, fix="mend it")

    world.runner = runner  # type: ignore[method-assign]
    with pytest.raises(ModelError, match="nothing runs"):
        world.search(streams(2))


def images(count: int) -> list[Candidate]:
    return [Candidate(2**power) for power in range(count)]


def by_batch(fixed: float, each: float) -> Any:
    """A batch takes a fixed time and one for each image."""
    return lambda candidate, now: fixed + each * candidate.batch


def test_throughput_weighs_images_and_not_queries() -> None:
    found = World(by_batch(0.04, 0.01), depth=2).search(images(5), goal="throughput", seconds=90.0)
    assert found.winner == Candidate(16)
    winner = trial(found, Candidate(16))
    assert winner.images / winner.seconds == pytest.approx(16 / 0.2)
    assert found.confirmed is not None
    assert found.confirmed.value == pytest.approx((0.2 / 16) / 0.05)


def test_in_the_last_run_both_have_turns_of_equal_length(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[Candidate, float]] = []
    whole = turns.queued

    def recorded(runner: Any, *arguments: Any) -> turns.Slice:
        part = whole(runner, *arguments)
        made.append((runner._candidate, part.seconds))
        return part

    monkeypatch.setattr(turns, "queued", recorded)
    # A query of 16 images takes 0.9 s, and two are in flight.
    found = World(by_batch(0.1, 0.05), depth=2).search(images(5), goal="throughput", seconds=600.0)
    assert found.winner == Candidate(16)
    last = made[-2 * found.pairs :]
    assert {each for each, _ in last} == {DEFAULT, Candidate(16)}
    assert all(3.3 <= seconds <= 3.7 for _, seconds in last)
    # Before, short turns are many.
    assert min(seconds for each, seconds in made if each == DEFAULT) < 1


def test_a_bound_excludes_what_is_faster_but_late() -> None:
    found = World(by_batch(0.04, 0.01), depth=2).search(
        images(5), goal="throughput", seconds=90.0, bound_s=0.1
    )
    # Batch 4 takes 80 ms, batch 8 takes 120.
    assert found.winner == Candidate(4)
    for batch in (8, 16):
        late = trial(found, Candidate(batch))
        assert late.out == "its 99th percentile is above 0.1 s"
        assert not late.usable


def test_the_best_within_the_bound_wins_though_the_backends_own_choice_is_faster() -> None:
    def seconds(candidate: Candidate, now: float) -> float:
        return {0: 0.2, 1: 0.05, 2: 0.06}[candidate.settings.streams or 0] * candidate.batch

    fast = [DEFAULT, Candidate(1, Settings(streams=1)), Candidate(1, Settings(streams=2))]
    found = World(seconds).search(fast, goal="throughput", bound_s=0.1)
    assert found.winner == Candidate(1, Settings(streams=1))
    assert found.reason == "the backend's own choice breaks the bound"


def test_nothing_within_the_bound_is_no_winner() -> None:
    found = World(by_batch(0.04, 0.01)).search(
        images(3), goal="throughput", bound_s=0.03, seconds=30.0
    )
    assert found.winner is None
    assert found.reason == "nothing that was tried keeps the bound"


def test_one_that_breaks_the_bound_in_the_last_run_gives_way_to_the_next() -> None:
    """Fast on the average, and late in one query of twenty once it is confirmed."""
    made = itertools.count()

    def seconds(candidate: Candidate, now: float) -> float:
        if candidate.settings.streams == 1:
            late = now > 545 and next(made) % 20 == 0
            return 0.5 if late else 0.02
        return {0: 0.05, 2: 0.03}[candidate.settings.streams or 0]

    found = World(seconds).search(streams(2), goal="throughput", bound_s=0.1, seconds=60.0)
    assert found.winner == Candidate(1, Settings(streams=2))
    assert not trial(found, Candidate(1, Settings(streams=1))).usable


def test_a_last_run_is_as_long_as_what_is_left() -> None:
    """Turns of the last rung had a larger share than those of the last run have."""
    found = World(by_streams({0: 0.002, 1: 0.001})).search(streams(1), seconds=2.0)
    assert found.confirmed is not None
    assert found.confirmed.value == pytest.approx(0.5)
    assert found.winner == Candidate(1, Settings(streams=1))


def test_no_time_for_a_last_run_leaves_the_backends_own_choice() -> None:
    """The machine sleeps just before it."""
    world = World(by_streams({1: 0.05}))

    class Sleeping(Silent):
        def step(self, label: str) -> Any:
            world.now += 100.0 if label == "confirming the winner" else 0.0
            return super().step(label)

    found = world.search(streams(1), Sleeping())
    assert (found.winner, found.confirmed, found.pairs) == (DEFAULT, None, 0)
    assert found.reason == "there was no time to confirm another"


def test_the_backends_own_choice_is_the_first_whatever_its_batch() -> None:
    world = World(by_batch(0.04, 0.01))
    found = world.search([Candidate(4), Candidate(8)], goal="throughput", seconds=30.0)
    assert {each.batch for each in world.asked} == {4, 8}
    assert [each.candidate for each in found.trials] == [Candidate(4), Candidate(8)]
    assert found.winner == Candidate(8)


class Together(Runner):
    """`depth` queries at a time, each of one second, that end when all are begun."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.name = "together"
        self.input = TensorSpec("image", (None, 1))
        self.outputs = (TensorSpec("scores", (None, 1)),)
        self.depth = depth
        self.now = 0.0
        self.begun = 0
        self._flying: list[Any] = []

    def _start(self) -> None: ...

    def _stop(self) -> None: ...

    def _infer(self, batch: Any) -> Any:
        return {"scores": batch}

    def _begin(self, batch: Any, done: Any) -> None:
        if len(self._flying) == self.depth:
            self._drain()
        self._flying.append(done)
        self.begun += 1

    def _drain(self) -> None:
        self.now += 1.0 if self._flying else 0.0
        for done in self._flying:
            done({})
        self._flying = []


def test_a_queue_is_measured_while_it_is_full() -> None:
    runner = Together(4)
    with runner:
        part = turns.queued(runner, [np.zeros((3, 1), np.float32)], 5.0, 1, lambda: runner.now)
    assert runner.begun % 4 == 0
    counted = runner.begun - 4
    # Without the wait for a place, and without those that came first.
    assert part.latencies == (1.0,) * counted
    assert part.images == 3 * counted
    assert part.seconds == counted / 4
    # Enough for five seconds, and the group that was in flight.
    assert 5 <= part.seconds <= 6
    with Together(4) as short:
        part = turns.queued(short, [np.zeros((1, 1), np.float32)], 0, 2, lambda: 0.0)
    assert len(part.latencies) == 8
    assert short.begun == 12


class Uneven(Together):
    """A queue of two whose streams take different times and wait for each other nowhere."""

    seconds = (1.0, 1.25)

    def __init__(self) -> None:
        super().__init__(2)
        self.ends = [0.0, 0.0]

    def _begin(self, batch: Any, done: Any) -> None:
        stream = self.begun % 2
        self.begun += 1
        self.ends[stream] += self.seconds[stream]
        self.now = self.ends[stream]
        done({})

    def _drain(self) -> None: ...


def test_a_stream_that_ends_before_another_does_not_look_idle() -> None:
    runner = Uneven()
    with runner:
        part = turns.queued(runner, [np.zeros((1, 1), np.float32)], 0.0, 1, lambda: runner.now)
    # One query of each, in the mean of their times; until the last one's end it would be 1.25.
    assert (part.images, part.seconds) == (2, 1.125)


def test_one_by_one_ends_after_time_and_number() -> None:
    world = World(lambda candidate, now: 0.25)
    with world.runner(DEFAULT) as runner:
        batch = [np.zeros((2, 1), np.float32)]
        part = turns.one_by_one(runner, batch, 1.0, 1, world.clock)
        assert part == turns.Slice((0.25,) * 4, 1.0, 8)
        assert len(turns.one_by_one(runner, batch, 0.0, 7, world.clock).latencies) == 7
    assert part.median == 0.25
