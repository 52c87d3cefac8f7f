"""peers --latency: everyone in turns, the table, and once for real on a small graph."""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from vggdeploy import cli, results
from vggdeploy.benchmarks import latency_peers, peers
from vggdeploy.benchmarks.latency_peers import BESIDE, Contender
from vggdeploy.contracts import RunOptions, Silent
from vggdeploy.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

IMAGE = np.zeros((1, 3, 4, 4), np.float32)


@pytest.fixture
def entered(clock: Any, timed: Any) -> list[Contender]:
    def make(seconds: float, batch: int, goal: str) -> Any:
        return timed(clock, [seconds], batch=batch), batch

    def fails(goal: str) -> Any:
        if goal == "throughput":
            raise RuntimeError("no compiler")
        raise ModelError("no such operator", got=1, expected=2, fix="mend it")

    return [
        Contender("fast", "faster", lambda goal: make(0.05, 1, goal)),
        Contender("broken", "does not run", fails),
        Contender(BESIDE, "the yardstick", lambda goal: make(0.1, 1, goal)),
        Contender("batched", "four images", lambda goal: make(0.2, 4, goal)),
    ]


def test_figures_are_exact_and_beside_the_yardstick(entered: Any, clock: Any) -> None:
    races: Any = {
        goal: latency_peers.race(entered, goal, IMAGE, 8, 0, Silent(), clock, 1.0)
        for goal in latency_peers.GOALS
    }
    rows = {row.name: row for row in latency_peers.table(entered, races)}
    assert list(rows) == ["fast", "broken", BESIDE, "batched"]
    assert rows["fast"].latency_s == pytest.approx((0.05,) * 8)
    assert rows["fast"].latency_beside == pytest.approx((0.5, 0.5, 0.5))
    assert rows["batched"].images_per_s == pytest.approx((20.0,) * 8)
    assert rows["batched"].throughput_beside == pytest.approx((2.0, 2.0, 2.0))
    assert rows["batched"].batch == {"latency": 4, "throughput": 4}
    assert rows[BESIDE].latency_beside == (1.0, 1.0, 1.0)
    assert rows["broken"].note == "failed: no such operator: got 1, expected 2 -- mend it"
    assert rows["broken"].to_json()["p50"] is None
    assert races["throughput"][2] == {"broken": "failed: RuntimeError: no compiler"}
    assert latency_peers.cells(rows["fast"])[2:6] == ("50.00", "0.500", "20.00", "2.000")
    assert latency_peers.cells(rows["broken"])[2:] == ("",) * 5


def test_a_drift_is_in_none_of_the_ratios(clock: Any, timed: Any) -> None:
    class Drifting(timed):  # type: ignore[misc]
        def _infer(self, batch: Any) -> Any:
            before = clock.now
            found = super()._infer(batch)
            clock.now = before + (clock.now - before) * (1 + (before - 1000) / 20)
            return found

    entered = [
        Contender(BESIDE, "", lambda goal: (Drifting(clock, [0.05]), 1)),
        Contender("same", "", lambda goal: (Drifting(clock, [0.05]), 1)),
    ]
    found, _, _ = latency_peers.race(entered, "latency", IMAGE, 20, 0, Silent(), clock)
    assert max(found["same"]) > 1.4 * min(found["same"])
    row = latency_peers._beside(found["same"], found[BESIDE])
    assert row is not None
    assert row[0] == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("goal", latency_peers.GOALS)
def test_one_that_fails_in_a_round_is_out_and_the_rest_goes_on(
    clock: Any, timed: Any, goal: Any
) -> None:
    class Failing(timed):  # type: ignore[misc]
        def _infer(self, batch: Any) -> Any:
            if len(self.seen) == 9:
                raise RuntimeError("lost\nits device")
            return super()._infer(batch)

    entered = [
        Contender(BESIDE, "", lambda goal: (timed(clock, [0.5]), 1)),
        Contender("failing", "", lambda goal: (Failing(clock, [0.25]), 1)),
    ]
    found, sizes, failed = latency_peers.race(entered, goal, IMAGE, 6, 0, Silent(), clock, 0.5)
    assert list(found) == list(sizes) == [BESIDE]
    assert len(found[BESIDE]) == 6
    assert failed == {"failing": "failed: RuntimeError: lost its device"}


def test_benchmark_apps_settings_are_its_hint_alone() -> None:
    pytest.importorskip("openvino")
    target = latency_peers.Hinted("app", "fp32", None)
    for goal in latency_peers.GOALS:
        options = RunOptions(goal=goal)
        assert target.configuration(options) == {"PERFORMANCE_HINT": goal.upper()}
        assert not target.exact(options)


def test_for_real(
    foreign: list[str], digits_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count()
    # Tuning takes as long as its clock is looked at, however busy this machine is.
    clock = lambda: next(ticks) / 1e3  # noqa: E731
    monkeypatch.setattr(latency_peers, "tune", functools.partial(latency_peers.tune, clock=clock))
    for package in ("openvino", "nncf", "onnxruntime"):
        pytest.importorskip(package)
    out = tmp_path / "latency.json"
    flags = ("--calib-data", str(digits_folder), "--calib-images", "8", "--images", "4")
    flags = (*flags, "--runs", "6", "--tune-seconds", "2", "--json", str(out), "--latency")
    assert cli.main([*foreign, *flags], program=peers.app) == 0
    said = results.read(out)
    assert said["kind"] == "peers-latency"
    assert said["not_quantized"] == {}
    found = {row["name"]: row for row in said["rows"]}
    # A foreign graph has no module of torch's, and no 4-bit layers are left out.
    assert list(found) == [
        "ort-fp32", "app-fp32", "ov-fp32", "ort-int8", "app-nncf", BESIDE, "ov-int8",
        "ov-int8-tuned", "ov-int8-w4",
    ]  # fmt: skip
    for row in found.values():
        assert not row["note"], row
        assert len(row["latency_s"]) == len(row["images_per_s"]) == 6
        assert 0 < row["p50"] < 1 < row["throughput_ips"]
    assert found[BESIDE]["latency_beside"] == [1, 1, 1]
    assert set(said["tuned"]) == {"latency", "throughput"}
    assert found["ov-int8-tuned"]["batch"]["throughput"] == said["tuned"]["throughput"]["batch"]


def test_the_compiled_reference_runs_in_the_same_harness(tiny: Any) -> None:
    pytest.importorskip("torch")
    from vggdeploy import inputs

    source = inputs.resolve(tiny())
    entered = latency_peers.contenders(source, source.weights.path, {}, {})
    assert [each.name for each in entered[:2]] == ["torch-eager", "torch-compiled"]
    image = np.zeros((1, 3, 64, 64), np.float32)
    runner, batch = entered[0].make("latency")
    with runner:
        assert runner.scores(image).shape == (1, 10)
    assert batch == 1


def test_everyone_is_measured_or_none(capsys: Any) -> None:
    assert cli.main(["--latency", "--only", "nncf"], program=peers.app) == 2
    assert "--latency measures everyone" in capsys.readouterr().err
