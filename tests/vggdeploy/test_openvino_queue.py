"""The queue of an OpenVINO runner: queries side by side, failures kept, and an end without waiting
for itself."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from vggdeploy import bundle, targets
from vggdeploy.contracts import RunOptions, Settings
from vggdeploy.errors import RunnerError
from vggdeploy.targets.openvino_queue import Lanes

if TYPE_CHECKING:
    from pathlib import Path


def test_as_many_at_once_as_there_are_lanes() -> None:
    lanes = Lanes(3)
    together = threading.Barrier(3, timeout=60)
    seen: list[int] = []

    def work(lane: int) -> None:
        together.wait()  # ends only when all three are here
        seen.append(lane)

    for _ in range(6):
        lanes.begin(work)
    assert lanes.drain() == []
    lanes.close()
    assert sorted(seen) == [0, 0, 1, 1, 2, 2]


def test_begin_waits_for_a_lane() -> None:
    lanes = Lanes(1)
    go, begun = threading.Event(), threading.Event()
    lanes.begin(lambda lane: go.wait(60) and None)

    def second() -> None:
        lanes.begin(lambda lane: None)
        begun.set()

    waiting = threading.Thread(target=second)
    waiting.start()
    assert not begun.wait(0.05)
    go.set()
    waiting.join(60)
    assert begun.is_set()
    assert lanes.drain() == []
    lanes.close()


def test_failures_are_kept_and_told_once() -> None:
    lanes = Lanes(2)

    def fails(lane: int) -> None:
        raise KeyError("lost")

    lanes.begin(fails)
    lanes.begin(lambda lane: None)
    (failure,) = lanes.drain()
    assert isinstance(failure, KeyError)
    assert lanes.drain() == []
    lanes.begin(lambda lane: None)
    lanes.close()


def test_close_ends_the_threads_after_what_was_begun() -> None:
    before = threading.active_count()
    lanes = Lanes(4)
    done: list[int] = []
    for _ in range(8):
        lanes.begin(done.append)
    lanes.close()
    assert len(done) == 8
    assert threading.active_count() == before


@pytest.fixture
def opened(tiny_bundle: Path) -> Any:
    pytest.importorskip("openvino")
    return bundle.open_bundle(tiny_bundle)


def test_queries_end_with_their_own_scores(opened: Any) -> None:
    target = targets.get("ov-int8")
    images = opened.probes().images[:12]
    batches = [opened.batch(image[None]) for image in images]
    with target.open(opened, RunOptions()) as runner:
        wanted = [runner.scores(batch).copy() for batch in batches]
    found: dict[int, Any] = {}
    options = RunOptions(goal="throughput", settings=Settings(streams=2))
    with target.open(opened, options) as runner:
        name = runner.outputs[0].name
        for index, batch in enumerate(batches):
            runner.start(
                batch, lambda outputs, index=index: found.update({index: outputs[name].copy()})
            )
        runner.drain()
    assert sorted(found) == list(range(12))
    for index, scores in found.items():
        # The order of sums may differ with the threads.
        np.testing.assert_allclose(scores, wanted[index], rtol=1e-3, atol=1e-3)


def test_what_done_raises_comes_out_of_drain(opened: Any) -> None:
    batch = opened.batch(opened.probes().images[:1])

    def done(outputs: Any) -> None:
        raise RunnerError("not this one", got=1, expected=2, fix="mend it")

    with targets.get("ov-int8").open(opened, RunOptions(goal="throughput")) as runner:
        runner.start(batch, done)
        with pytest.raises(RunnerError, match="not this one"):
            runner.drain()
        runner.drain()


def test_it_can_be_closed_at_once(opened: Any) -> None:
    """A model that is closed waits for its streams, which must need nothing of the one who waits."""
    batch = opened.batch(opened.probes().images[:1])
    count: list[int] = []
    for _ in range(5):
        with targets.get("ov-int8").open(opened, RunOptions(goal="throughput")) as runner:
            for _ in range(4):
                runner.start(batch, lambda outputs: count.append(1))
    assert len(count) == 20
