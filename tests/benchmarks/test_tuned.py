"""A tuned bundle beside benchmark_app: its report read, the order, the verdicts, and once for real."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from vggdeploy import bundle, cli, machine, results, targets, tuning
from vggdeploy.benchmarks import tuned
from vggdeploy.contracts import Settings, Silent
from vggdeploy.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from pathlib import Path


def figures(throughput: float, latency: float, spread: float = 0.001) -> dict[Any, list[float]]:
    wobble = [1 + spread * (-1) ** turn for turn in range(10)]
    return {
        ("app", "throughput"): [20.0 * each for each in wobble],
        ("ours", "throughput"): [20.0 * throughput] * 10,
        ("app", "latency"): [0.05 * each for each in wobble],
        ("ours", "latency"): [0.05 * latency] * 10,
    }


@pytest.mark.parametrize(
    ("throughput", "latency", "spread", "verdicts"),
    [
        (1.08, 0.98, 0.001, ("met", "met")),
        (1.08, 1.0, 0.001, ("met", "met")),
        (1.03, 1.05, 0.001, ("not met", "not met")),
        (1.06, 1.009, 0.05, ("not shown", "not shown")),
    ],
)
def test_verdicts(throughput: float, latency: float, spread: float, verdicts: Any) -> None:
    rows = {row["goal"]: row for row in tuned.judge(figures(throughput, latency, spread), 0)}
    assert (rows["throughput"]["verdict"], rows["latency"]["verdict"]) == verdicts
    assert rows["throughput"]["ratio"] == pytest.approx(throughput, rel=0.06)
    assert rows["throughput"]["wanted"] == 1.06
    assert rows["latency"]["wanted"] == 1.0


def test_too_few_rounds_show_nothing() -> None:
    few = {key: value[:3] for key, value in figures(1.5, 0.5).items()}
    assert {row["verdict"] for row in tuned.judge(few, 0)} == {"not shown"}


def test_every_round_has_all_four_and_the_next_is_backwards() -> None:
    made: list[Any] = []

    def run(side: str, goal: str) -> float:
        made.append((side, goal))
        return float(len(made))

    found = tuned.measure(run, 6, 1, Silent())
    rounds = [made[start : start + 4] for start in range(0, 24, 4)]
    assert all(len(set(each)) == 4 for each in rounds)
    assert all(b == a[::-1] for a, b in zip(rounds[::2], rounds[1::2], strict=True))
    assert {len(values) for values in found.values()} == {6}
    assert found[made[0]][0] == 1.0


def test_reports_are_read_in_seconds(tmp_path: Path) -> None:
    report = tmp_path / "benchmark_report.json"
    report.write_text(
        json.dumps({"execution_results": {"throughput": "26.60", "latency (ms)": "38.30"}})
    )
    assert tuned.read_report(report, "throughput") == 26.6
    assert tuned.read_report(report, "latency") == pytest.approx(0.0383)
    for bad in ("{}", "no JSON", '{"execution_results": {"throughput": "fast"}}'):
        report.write_text(bad)
        with pytest.raises(ModelError, match="report cannot be read"):
            tuned.read_report(report, "throughput")


def test_a_report_of_the_round_before_is_not_taken_for_this_ones(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "benchmark_report.json").write_text('{"execution_results": {"throughput": "9"}}')
    monkeypatch.setattr(tuned, "_run", lambda command, name: None)
    with pytest.raises(ModelError, match="report cannot be read"):
        tuned.app(bundle.open_bundle(tiny_bundle), "throughput", 1.0, tmp_path)


@pytest.fixture
def copied(tiny_bundle: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_bundle, tmp_path / "tiny")
    return tmp_path / "tiny"


def test_an_untuned_bundle_is_refused_with_the_command(copied: Path) -> None:
    pytest.importorskip("openvino")
    with pytest.raises(ConfigError, match="not tuned for latency") as caught:
        tuned.require_tuned(bundle.open_bundle(copied))
    assert caught.value.fix == f"vggdeploy tune {copied} --goal latency"


def test_a_failure_of_a_program_is_told() -> None:
    import sys

    with pytest.raises(ModelError, match="benchmark_app ended with 3: got out of luck"):
        tuned._run([sys.executable, "-c", "import sys; print('out of luck'); sys.exit(3)"],
                   "benchmark_app")  # fmt: skip


def test_for_real(copied: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    place = tuning.place("CPU", machine.system(), {})
    backend = targets.get("ov-int8").version()
    for goal, batch in (("latency", 1), ("throughput", 4)):
        choice = tuning.Choice(goal, batch, Settings(1, 1, True), place, backend)
        tuning.record(bundle.open_bundle(copied), choice, {})
    out = tmp_path / "tuned.json"
    flags = [str(copied), "--rounds", "1", "--seconds", "0.2", "--json", str(out)]
    assert cli.main(flags, program=tuned.program) == 0
    said = results.read(out)
    assert said["kind"] == "tuned"
    for row in said["rows"]:
        assert len(row["ours"]) == len(row["benchmark_app"]) == 1
        # The same engine on the same machine, within what a shared one does.
        assert 0.02 < row["ratio"] < 50
        assert row["verdict"] == "not shown"
    rows = {row["goal"]: row for row in said["rows"]}
    assert rows["latency"]["benchmark_app"][0] < 1 < rows["throughput"]["benchmark_app"][0]
