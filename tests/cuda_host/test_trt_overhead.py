"""The program that measures what the runner adds, in small."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from vggdeploy.benchmarks import trt_overhead
from vggdeploy.errors import MissingError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from host import Host


def test_it_tells_what_a_query_adds_and_leaves(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trt_overhead, "TURNS", 20)
    trt_overhead.main(Path(host.library._name), queries=50, json=str(tmp_path / "result.json"))
    result = json.loads((tmp_path / "result.json").read_text())
    assert [row["goal"] for row in result["rows"]] == ["latency", "throughput"]
    for row in result["rows"]:
        assert min(row["copies"], row["query"]) > 0
        assert row["leaked"] == {}
    assert (result["queries"], result["left"]) == (50, {})


def test_what_is_added_is_the_median_of_the_turns(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that queries and copies move, since on a shared machine either may be slower."""
    now = 0.0

    def lasting(*seconds: float) -> Callable[..., None]:
        turns = itertools.cycle(seconds)

        def last(*_: object) -> None:
            nonlocal now
            now += next(turns)

        return last

    monkeypatch.setattr(trt_overhead, "TURNS", 21)
    monkeypatch.setattr(trt_overhead.time, "perf_counter", lambda: now)
    monkeypatch.setattr(trt_overhead, "copies", lambda batch: lasting(1, 2, 4))
    for goal in ("latency", "throughput"):
        query = lasting(3, 7, 5)
        runner = SimpleNamespace(
            infer=query, infer_many=lambda batches, query=query: map(query, batches)
        )
        found = trt_overhead.measure(runner, goal, host.library, 2)  # type: ignore[arg-type]
        assert (found.query, found.copies, found.added) == (5, 2, 2)


def test_what_is_left_behind_is_told(host: Host) -> None:
    """A query that leaks a stream is seen."""
    import ctypes

    from vggdeploy.targets import cuda

    device = cuda.Device()
    left = ctypes.c_void_p()

    class Leaks:
        def infer(self, batch: np.ndarray) -> None:
            with device.active():
                host.library.cuStreamCreate(ctypes.byref(left), 0)

    found = trt_overhead.measure(Leaks(), "latency", host.library, 3)  # type: ignore[arg-type]
    device.close()
    assert found.leaked == {"streams": 3}
    assert host.live()["abandoned"] > 3  # those of the turns that were timed, too
    host.heal()


def test_both_are_timed_in_turn() -> None:
    called: list[str] = []
    found = trt_overhead.interleaved(lambda: called.append("a"), lambda: called.append("b"), 20)
    assert found.shape == (20, 2)
    assert (found > 0).all()
    assert called == ["a", "b"] * 22


def test_another_library_is_refused(host: Host, tmp_path: Path) -> None:
    for path in (tmp_path / "libcuda.so.1", Path("libm.so.6")):
        with pytest.raises(
            MissingError, match=r"not the CUDA driver of host memory.*make test-cuda"
        ):
            trt_overhead.load(path)
