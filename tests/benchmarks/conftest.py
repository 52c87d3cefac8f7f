"""A clock that moves when told to, runners that take as long as they say, and a small graph."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from vggdeploy.contracts import Runner, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

ENDLESS = 2_000


class Clock:
    """Seconds that pass only when a runner takes them."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Timed(Runner):
    """Query `k` takes ``durations[k]`` seconds, the last one again and again.

    With a queue of `depth`, results come one duration apart, and the first when the queue is full.
    """

    def __init__(
        self,
        clock: Clock,
        durations: Sequence[float],
        batch: int = 1,
        depth: int = 1,
        shape: tuple[int, ...] = (3, 4, 4),
    ) -> None:
        super().__init__()
        self.name = "timed"
        self.input = TensorSpec("image", (batch, *shape))
        self.outputs = (TensorSpec("scores", (batch, 2)),)
        self.depth = depth
        self.seen: list[Any] = []
        self.stopped = 0
        self._clock = clock
        self._left = itertools.chain(durations, itertools.repeat(durations[-1]))

    def _start(self) -> None:
        self.details = {"device": "fake", "requests": self.depth}

    def _stop(self) -> None:
        self.stopped += 1

    def _infer(self, batch: Any) -> Any:
        assert len(self.seen) < ENDLESS, "the measurement does not end"
        self.seen.append(batch)
        self._clock.now += next(self._left)
        return {"scores": np.zeros((len(batch), 2), np.float32)}

    def _infer_many(self, batches: Iterable[Any]) -> Any:
        waiting = []
        for batch in batches:
            waiting.append(batch)
            if len(waiting) == self.depth:
                yield self._infer(waiting.pop(0))
        for batch in waiting:
            self._clock.now += 100  # draining is slow here, so that it shows if it is counted
            yield self._infer(batch)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def timed() -> type[Timed]:
    return Timed


@pytest.fixture
def foreign(small_graph: Callable[..., Any], tmp_path: Path) -> list[str]:
    """Flags of a foreign graph of a few layers, 32 pixels wide."""
    onnx = pytest.importorskip("onnx")
    onnx.save(small_graph(), tmp_path / "small.onnx")
    recipe = tmp_path / "small.toml"
    recipe.write_text('size = [32, 32]\nresize = "stretch"\nmean = [0, 0, 0]\nstd = [1, 1, 1]\n')
    return ["--model", str(tmp_path / "small.onnx"), "--preprocess", str(recipe)]


@pytest.fixture
def autoregressive() -> Any:
    """Makes values of variance 1, each `rho` of the one before and the rest new."""

    def make(rng: np.random.Generator, count: int, rho: float) -> Any:
        noise = rng.standard_normal(count) * np.sqrt(1 - rho**2)
        values = [rng.standard_normal()]
        for each in noise[1:]:
            values.append(rho * values[-1] + each)
        return np.array(values)

    return make
