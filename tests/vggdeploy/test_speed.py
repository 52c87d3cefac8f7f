"""tune, compare and bench --against on bundles, through the command line."""

from __future__ import annotations

import functools
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from vggdeploy import atomic, benching, bundle, machine, speed, targets, tuning
from vggdeploy.benchmarks import tune as module
from vggdeploy.benchmarks.options import BenchOptions
from vggdeploy.benchmarks.search import DEFAULT
from vggdeploy.benchmarks.tune import TuneOptions
from vggdeploy.cli import main
from vggdeploy.contracts import Settings, Silent
from vggdeploy.errors import ConfigError, MissingError

pytestmark = pytest.mark.usefixtures("hurried", "ticking")


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search's clock moves by a millisecond each time that it is looked at, however long queries
    take here."""
    ticks = itertools.count()
    clock = lambda: next(ticks) / 1e3  # noqa: E731
    monkeypatch.setattr(speed.search, "tune", functools.partial(module.tune, clock=clock))


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here looks at how fast anything is."""
    monkeypatch.setattr("vggdeploy.benchmarks.peak.SECONDS", 0.01)


@pytest.fixture
def copied(tiny_bundle: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_bundle, tmp_path / "tiny")
    return tmp_path / "tiny"


def here(goal: str, settings: Settings, batch: int = 1) -> tuning.Choice:
    place = tuning.place("CPU", machine.system(), {})
    return tuning.Choice(goal, batch, settings, place, targets.get("ov-int8").version())


def run(capsys: Any, *arguments: str, code: int = 0) -> dict[str, Any]:
    assert main([*arguments, "--json", "-"]) == code
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return {**json.loads(out), "said": " ".join(err.split())}


def test_tune_writes_what_it_found_and_bench_uses_it(capsys: Any, copied: Path) -> None:
    pytest.importorskip("openvino")
    said = run(capsys, "tune", str(copied), "--seconds", "2")
    assert (said["kind"], said["goal"], said["recorded"]) == ("tune", "latency", True)
    assert said["tried"][0]["settings"] == dict.fromkeys(
        ("streams", "threads", "pinning", "precision")
    )
    assert len(said["tried"]) == len(targets.get("ov-int8").candidates(TuneOptions().run()))
    measured = [row for row in said["tried"] if row["rounds"]]
    assert all(0 < row["p50"] <= row["p99"] for row in measured)
    opened = bundle.open_bundle(copied)
    (choice,) = tuning.choices(opened)
    assert said["winner"]["settings"] == choice.settings.__dict__
    (kept,) = json.loads((copied / "tuned.json").read_text())["runs"]
    assert kept["tried"] == said["tried"]
    assert opened.manifest["digest"] == said["digest"]
    assert "whose digest stays" in said["said"]
    benched = run(capsys, "bench", str(copied), "--seconds", "0.05")
    assert (benched["tuned"], benched["cautions"]) == (True, [])
    assert benched["settings"] == choice.settings.__dict__
    assert benched["digest"] == said["digest"]
    plain = run(capsys, "bench", str(copied), "--seconds", "0.05", "--no-tuned")
    assert not plain["tuned"]
    assert set(plain["settings"].values()) == {None}


def test_tune_for_throughput_finds_a_batch(capsys: Any, copied: Path) -> None:
    pytest.importorskip("openvino")
    said = run(capsys, "tune", str(copied), "--goal", "throughput", "--max-batch", "2",
               "--seconds", "2", "--latency-bound", "60")  # fmt: skip
    assert {row["batch"] for row in said["tried"]} == {1, 2}
    assert said["bound_s"] == 60
    (choice,) = tuning.choices(bundle.open_bundle(copied))
    assert (choice.goal, choice.bound_s) == ("throughput", 60)


def test_nothing_within_the_bound_leaves_the_bundle_and_is_exit_1(
    capsys: Any, copied: Path, folder_contents: Any
) -> None:
    pytest.importorskip("openvino")
    before = folder_contents(copied)
    said = run(capsys, "tune", str(copied), "--goal", "throughput", "--max-batch", "1",
               "--seconds", "2", "--latency-bound", "1e-7", code=1)  # fmt: skip
    assert (said["winner"], said["recorded"]) == (None, False)
    assert "nothing that was tried keeps the bound" in said["said"]
    assert folder_contents(copied) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--goal", "speed"], "unknown --goal: got 'speed'"),
        (["--latency-bound", "0.1"], "--latency-bound goes with --goal throughput"),
        (["--seconds", "0"], "--seconds is out of range"),
        (["--seconds", "nan"], "--seconds is out of range"),
        (["--goal", "throughput", "--latency-bound", "-1"], "--latency-bound is out of range"),
        (["--goal", "throughput", "--max-batch", "0"], "--max-batch is out of range"),
        (["--seconds", "0.001"], "the time is too short to tune in: got --seconds 0.001"),
    ],
)
def test_user_errors(capsys: Any, tiny_bundle: Path, arguments: list[str], said: str) -> None:
    pytest.importorskip("openvino")
    assert main(["tune", str(tiny_bundle), *arguments]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_bundle_that_cannot_be_written_is_said_before_measuring(
    capsys: Any, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")

    def denied(path: Path) -> None:
        raise ConfigError("cannot be written", got=1, expected=2, fix="mend it")

    monkeypatch.setattr(atomic, "require_writable", denied)
    monkeypatch.setattr(speed.search, "tune", lambda *_: pytest.fail("it was measured"))
    assert main(["tune", str(copied)]) == 2


@pytest.mark.parametrize(
    ("settings", "batch"),
    [(Settings(precision="bf16"), 1), (Settings(threads=1 << 20), 1), (Settings(), 1 << 20),
     (Settings(), 0)],
)  # fmt: skip
def test_what_tune_would_not_choose_is_refused(
    capsys: Any, copied: Path, settings: Settings, batch: int
) -> None:
    """No signature covers it: bench must not compute otherwise than verify, nor take all memory."""
    pytest.importorskip("openvino")
    choice = here("throughput", settings, batch)
    tuning.record(bundle.open_bundle(copied), choice, {})
    assert main(["bench", str(copied), "--scenario", "throughput"]) == 2
    assert "was not tuned by 'vggdeploy tune': got batch" in " ".join(
        capsys.readouterr().err.split()
    )
    quick = ["--seconds", "0.05", "--no-tuned"]
    assert main(["bench", str(copied), "--scenario", "throughput", *quick]) == 0


def test_nothing_is_tuned_by_emulation(copied: Path) -> None:
    opened = bundle.open_bundle(copied)
    with pytest.raises(MissingError, match="tune measures the device itself"):
        speed.native(opened, "NPU.7", "tune")


def test_batches_are_those_of_the_engines_profile(copied: Path) -> None:
    opened = bundle.open_bundle(copied)

    class Target:
        def candidates(self, options: Any) -> tuple[Settings, ...]:
            return (Settings(),)

    def batches(profile: Any, **options: Any) -> list[int]:
        build = {**opened.manifest["build"], "engine": {"batches": profile}}
        other = bundle.Bundle(opened.path, {**opened.manifest, "build": build})
        chosen = TuneOptions(**{"goal": "throughput", **options})
        return [each.batch for each in module.candidates(Target(), other, chosen)]  # type: ignore[arg-type]

    assert batches(None) == [1, 2, 4, 8, 16]
    assert batches([1, 8, 32]) == [1, 2, 4, 8, 16]
    assert batches([1, 1, 4]) == [1, 2, 4]
    assert batches(None, max_batch=6) == [1, 2, 4]
    assert batches(None, goal="latency") == [1]
    # The fewest that the engine takes come first, a power of two or not.
    assert batches([3, 4, 32]) == [3, 4, 8, 16]
    assert batches([32, 32, 32]) == [32]
    assert batches([4, 8, 32], goal="latency") == [4]


def test_an_engine_that_takes_no_single_image_is_tuned(copied: Path) -> None:
    pytest.importorskip("openvino")
    opened, target = bundle.open_bundle(copied), targets.get("ov-int8")
    build = {**opened.manifest["build"], "engine": {"batches": [2, 2, 4]}}
    opened = bundle.Bundle(opened.path, {**opened.manifest, "build": build})
    asked: set[int] = set()

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(target, name)

        def open(self, opened: Any, options: Any) -> Any:
            asked.add(options.batch)
            return target.open(opened, options)

    found = module.tune(opened, Watched(), TuneOptions(seconds=2.0), Silent())  # type: ignore[arg-type]
    assert asked == {2}
    assert {row["batch"] for row in found["tried"]} == {found["winner"]["batch"]} == {2}
    assert found["winner"]["default"] == (found["reason"] != "shown to be faster in the last run")


def test_the_default_is_tried_once(copied: Path) -> None:
    found = module.candidates(
        targets.get("ov-int8"), bundle.open_bundle(copied), TuneOptions(goal="throughput")
    )
    assert found[0] == DEFAULT
    assert found.count(DEFAULT) == 1
    assert len(set(found)) == len(found)


def test_settings_of_each_goal_reach_the_measurement(copied: Path) -> None:
    opened, target = bundle.open_bundle(copied), targets.get("ov-int8")
    latency, queue = Settings(1, 1, True), Settings(2, 2, False)
    opened = tuning.record(opened, here("latency", latency), {})
    opened = tuning.record(opened, here("throughput", queue, batch=4), {})

    def used(**options: Any) -> tuple[BenchOptions, dict[str, Any]]:
        chosen = BenchOptions(**{"tuned": True, **options})
        return benching.with_tuned(opened, target, chosen)

    found, said = used()
    assert (found.settings, found.queue_settings, found.batch) == (latency, Settings(), 1)
    assert said == {"tuned": True, "cautions": []}
    # The batch is the tuned one where none is asked for.
    found, said = used(scenario="throughput", free_batch=True)
    assert (found.settings, found.queue_settings, found.batch) == (queue, queue, 4)
    assert said["tuned"]
    found, said = used(scenario="throughput", batch=4)
    assert (found.settings, found.batch) == (queue, 4)
    found, said = used(scenario="throughput", batch=2)
    assert (found.settings, found.batch, said["tuned"]) == (Settings(), 2, False)
    assert "at batch 4, not 2" in said["cautions"][0]
    found, said = used(tuned=False)
    assert (found.settings, said) == (Settings(), {"tuned": False, "cautions": []})
    # Beside latency, a queue of the same batch.
    opened = tuning.record(opened, here("throughput", queue), {})
    assert used()[0].queue_settings == queue


def test_what_is_tuned_elsewhere_is_said_and_not_used(capsys: Any, copied: Path) -> None:
    pytest.importorskip("openvino")
    choice = here("latency", Settings(1, 1, True))
    place = tuning.Place("CPU", "Other CPU", 64)
    tuning.record(
        bundle.open_bundle(copied),
        tuning.Choice("latency", 1, choice.settings, place, choice.backend), {},
    )  # fmt: skip
    said = run(capsys, "bench", str(copied), "--seconds", "0.05")
    assert not said["tuned"]
    assert set(said["settings"].values()) == {None}
    assert "another machine (Other CPU, 64 cores)" in said["said"]


def test_bench_against_another(capsys: Any, copied: Path, tiny_bundle: Path) -> None:
    pytest.importorskip("openvino")
    said = run(capsys, "bench", str(copied), "--against", str(tiny_bundle), "--seconds", "0.1")
    assert (said["kind"], said["paired"], said["metric"]) == ("compare", True, "latency")
    a, b = said["results"]["a"], said["results"]["b"]
    assert (a["bundle"], b["bundle"]) == (str(copied), str(tiny_bundle))
    assert len(a["samples_s"]) == len(b["samples_s"]) >= 30
    assert a["energy"] is b["energy"] is None
    assert said["ratio"] == pytest.approx(a["latency_s"]["p50"] / b["latency_s"]["p50"], rel=0.2)
    assert said["verdict"] in ("faster", "slower", "no difference shown")
    assert {"throughput_ips", "budget", "system"} <= set(b)


def test_what_is_advised_of_two_bundles_measures_both() -> None:
    advised = ["vggdeploy bench b --seconds 30", "sensors"]
    again = ["vggdeploy bench b --seconds 30 --against 'my a'", "sensors"]
    assert benching._in_turns(advised, Path("my a")) == again


def test_bench_against_another_network_is_refused_before_measuring(
    capsys: Any, copied: Path, slim_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr(benching, "pair", lambda *_: pytest.fail("it was measured"))
    assert main(["bench", str(copied), "--against", str(slim_bundle)]) == 2
    assert "different model" in capsys.readouterr().err


def test_compare_files(capsys: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    for out in (a, b):
        assert main(["bench", str(tiny_bundle), "--seconds", "0.1", "--json", str(out)]) == 0
    capsys.readouterr()
    said = run(capsys, "compare", str(a), str(b))
    assert said["kind"] == "compare"
    assert said["a"]["digest"] == said["b"]["digest"]
    assert said["verdict"] in said["said"] or "A is" in said["said"]
    # Any verdict ends in 0.
    fast = json.loads(a.read_text())
    least = min(json.loads(b.read_text())["samples_s"])
    fast["samples_s"] = [least / 9 for _ in fast["samples_s"]]
    a.write_text(json.dumps(fast))
    assert "A is faster than B" in run(capsys, "compare", str(a), str(b))["said"]
    assert "A is slower than B" in run(capsys, "compare", str(b), str(a))["said"]
    # Of two rates that were found, neither is shown to be the higher.
    for path, rate in ((a, 5.0), (b, 20.0)):
        server = {"rate": rate, "found": True, "p99_bound_s": 0.2}
        served = {**json.loads(path.read_text()), "scenario": "server", "server": server}
        (tmp_path / f"{rate}.json").write_text(json.dumps(served))
    said = run(capsys, "compare", str(tmp_path / "5.0.json"), str(tmp_path / "20.0.json"))
    assert (said["ratio"], said["ci95"]) == (0.25, None)
    assert "5.00 queries/s" in said["said"]
    assert "no difference shown: A's rate of arrivals is 0.250 times B's" in said["said"]
    fast["system"]["cpu"] = "Other CPU"
    a.write_text(json.dumps(fast))
    assert main(["compare", str(a), str(b)]) == 2
    assert "Other CPU" in capsys.readouterr().err
    assert "Other CPU" in run(capsys, "compare", str(a), str(b), "--across-machines")["said"]
    assert main(["compare", str(a), str(tmp_path / "none.json")]) == 2
    fast["schema"] = 99
    a.write_text(json.dumps(fast))
    assert main(["compare", str(a), str(b)]) == 2
    assert "another schema" in capsys.readouterr().err


def test_a_search_that_fails_leaves_nothing_open(copied: Path) -> None:
    opened, target = bundle.open_bundle(copied), targets.get("ov-int8")
    kept: list[Any] = []

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(target, name)

        def open(self, *arguments: Any) -> Any:
            kept.append(target.open(*arguments))
            return kept[-1]

    with pytest.raises(ConfigError, match="too short"):
        module.tune(opened, Watched(), TuneOptions(seconds=1e-6), Silent())  # type: ignore[arg-type]
    assert kept
    assert not any(runner._open for runner in kept)
