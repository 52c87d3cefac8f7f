"""The programs for the project's own figures: arithmetic and order, not how fast anything is."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from vggdeploy import bundle
from vggdeploy.benchmarks import agreement, benchmark_app, checking, overhead, startup, verifying
from vggdeploy.errors import ConfigError, ResultError
from vggdeploy.manifest import files

if TYPE_CHECKING:
    from pathlib import Path


def test_overhead_takes_both_loops_in_turn(clock: Any, timed: Any) -> None:
    order: list[str] = []

    class Told(timed):  # type: ignore[misc]
        def _infer(self, batch: Any) -> Any:
            order.append("harness")
            return super()._infer(batch)

    def bare(count: int) -> None:
        order.append("bare")
        clock.now += 0.5 * count

    with Told(clock, [0.75]) as runner:
        batch = np.zeros((1, 3, 4, 4), np.float32)
        ours, theirs = overhead.compare(runner, batch, bare, 3 * 1.25 * overhead.BLOCK, clock)
    assert (ours, theirs) == ([0.75] * 3, [0.5] * 3)
    # The first turn warms up; who is first alternates.
    block = ["harness"] * overhead.BLOCK
    assert order == [*block, "bare", *block, "bare", "bare", *block, *block, "bare"]


def test_overhead_is_the_median_of_neighbours() -> None:
    found = overhead.summarize([1.1, 2.2, 3.0, 4.8], [1.0, 2.0, 3.0, 4.0])
    assert found.added == pytest.approx(0.1)
    assert found.added_ci95 is None
    assert found.share == pytest.approx(0.1 / overhead.QUERY_S)
    assert found.verdict == "inconclusive"


@pytest.mark.parametrize(
    ("added", "verdict"),
    [([70e-6] * 9, "met"), ([80e-6] * 9, "not met"), ([0, 1] * 9, "inconclusive")],
)
def test_overhead_is_judged_by_its_interval(added: list[float], verdict: str) -> None:
    assert overhead.summarize(added, [0.0] * len(added)).verdict == verdict


def test_a_runner_without_a_request_is_refused(clock: Any, timed: Any) -> None:
    with pytest.raises(ConfigError, match="no request to run bare"):
        overhead.bare_loop(timed(clock, [1.0]), None)  # type: ignore[arg-type]


def test_ways_are_interleaved_and_take_turns_to_begin() -> None:
    seen: list[str] = []

    def way(name: str, value: float) -> Any:
        def measured() -> float:
            seen.append(name)
            return value + len(seen) / 1000

        return measured

    found = agreement.interleaved({name: way(name, 1.0) for name in "abc"}, 3)
    assert "".join(seen) == "abcbcacab"
    assert [len(values) for values in found.values()] == [3, 3, 3]


def test_how_far_medians_are_apart() -> None:
    found = {"a": [1.0, 9.0, 1.0], "b": [1.02, 1.02, 0.1], "c": [1.01] * 3}
    assert agreement.spread(found) == pytest.approx(0.02)


def test_the_median_that_benchmark_app_prints() -> None:
    printed = "[ INFO ] Latency:\n[ INFO ]    Median:        38.21 ms\n[ INFO ]    Average: 9 ms\n"
    assert agreement.app_median(printed) == pytest.approx(0.03821)
    with pytest.raises(ResultError, match="printed no median: got oh"):
        agreement.app_median("what\noh")


def test_all_three_measure_the_same_bundle(tiny_bundle: Path) -> None:
    pytest.importorskip("mlperf_loadgen", reason="mlcommons-loadgen is not installed")
    found = agreement.measure(tiny_bundle, 1, 0.1)
    assert list(found["medians_s"]) == ["latency", "--mlperf SingleStream", "benchmark_app"]
    assert all(0 < value < 1 for value in found["medians_s"].values())
    assert found["properties"]["PERFORMANCE_HINT"] == "LATENCY"
    assert found["spread"] == agreement.spread(found["rounds_s"])


def test_overhead_is_measured_on_a_bundle(tiny_bundle: Path) -> None:
    found = overhead.measure(tiny_bundle, 0.1)
    assert len(found["blocks"]["harness"]) == len(found["blocks"]["bare"]) > 0
    assert found["verdict"] in ("met", "not met", "inconclusive")


def test_a_start_is_timed_to_its_first_query(tiny_bundle: Path) -> None:
    found = startup.measure(tiny_bundle, 1)
    (one,) = found["starts"]
    assert 0 < one["began"] <= one["ended"]
    assert found["first_query_s"] == one["began"]
    assert one["for_builds"] == ()


def test_a_start_that_comes_to_no_query(tmp_path: Path) -> None:
    with pytest.raises(
        ResultError, match=r"did not come to its first query: got error: .*no bundle"
    ):
        startup.start(tmp_path)


def test_what_builds_need_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = '{"began": 5.0, "ended": 6.0, "modules": ["json", "torch", "numpy"]}'
    done = SimpleNamespace(stdout=said, stderr="")
    monkeypatch.setattr(startup.subprocess, "run", lambda *_, **__: done)
    monkeypatch.setattr(startup.time, "clock_gettime", lambda _: 4.0)
    assert startup.start(tmp_path) == startup.Start(1.0, 2.0, ("torch",))


def test_the_command_of_benchmark_app(tiny_bundle: Path) -> None:
    opened = bundle.open_bundle(tiny_bundle)
    command = benchmark_app.command(opened, "latency", 0.2, "-api", "sync")
    assert command[0] == sys.executable
    said = dict(zip(command[3::2], command[4::2], strict=True))
    assert said == {
        "-m": str(tiny_bundle.resolve() / "model.xml"), "-d": "CPU", "-hint": "latency", "-t": "1",
        "-shape": "[1,3,64,64]", "-api": "sync",
    }  # fmt: skip


def test_checking_measures_what_opening_does(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    real = bundle.open_bundle
    monkeypatch.setattr(bundle, "open_bundle", lambda path: (opened.append(path), real(path))[1])
    found = checking.measure(tiny_bundle, 3)
    assert opened == [tiny_bundle] * 4  # once to bring the files into memory
    listed = files(real(tiny_bundle).manifest)
    assert found["bytes"] == sum(said["size"] for said in listed.values())
    assert found["largest"]["bytes"] == max(said["size"] for said in listed.values())
    assert {name: len(values) for name, values in found["samples"].items()} == {
        "open_s": 3, "largest_s": 3, "one_by_one_s": 3,
    }  # fmt: skip
    assert found["open_s"] == sorted(found["samples"]["open_s"])[1]
    assert found["met"] == (found["open_s"] <= 0.3)


def test_verifying_takes_files_from_the_disk_and_from_memory_in_turns(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def drop(folders: Any) -> bool:
        assert tiny_bundle in folders
        done.append("drop")
        return True

    def timed(path: Path) -> float:
        done.append("verify")
        return float(len(done))

    monkeypatch.setattr(verifying, "drop", drop)
    monkeypatch.setattr(verifying, "timed", timed)
    found = verifying.measure(tiny_bundle, 3)
    assert done == ["verify", *["drop", "verify", "verify"] * 3]
    assert found["samples"] == {"cold_s": [3.0, 6.0, 9.0], "warm_s": [4.0, 7.0, 10.0]}
    assert (found["cold_s"], found["warm_s"], found["met"]) == (6.0, 7.0, False)
    # Where files cannot be dropped, there is no cold start to judge.
    monkeypatch.setattr(verifying, "drop", lambda folders: False)
    done.clear()
    found = verifying.measure(tiny_bundle, 3)
    assert (found["cold_s"], found["warm_s"], found["met"]) == (None, 3.0, True)


def test_every_file_is_dropped_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not hasattr(os, "posix_fadvise"):
        assert not verifying.drop([tmp_path])
        return
    for name in ("a", "inner/b"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "gone").symlink_to("nowhere")
    dropped = []

    def advise(descriptor: int, *what: int) -> None:
        assert what == (0, 0, os.POSIX_FADV_DONTNEED)
        dropped.append(os.pread(descriptor, 9, 0))

    monkeypatch.setattr(os, "posix_fadvise", advise)
    assert verifying.drop([tmp_path])
    assert sorted(dropped) == [b"a", b"inner/b"]


def test_verifying_verifies(tiny_bundle: Path, tmp_path: Path) -> None:
    assert verifying.timed(tiny_bundle) > 0
    with pytest.raises(ResultError, match=r"verify failed: got error: .*no bundle"):
        verifying.timed(tmp_path)
