"""Jobs in processes of their own: what comes back, and above all when nothing does."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import pytest

from vggdeploy.benchmarks import children, competitors
from vggdeploy.benchmarks.children import Job, Outcome, spawn
from vggdeploy.errors import CalibrationError, MissingError

if TYPE_CHECKING:
    from pathlib import Path

OPTIONS: dict[str, Any] = {"weights": "demo", "model": None, "seed": 0, "cpu_isa": "vnni"}


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job("ov-int8", "", str(tmp_path / "place"), {**OPTIONS, "model": "/no/such.onnx"})


def test_an_error_of_the_child_comes_back_in_its_own_words(job: Job, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    made = spawn(job, tmp_path / "cache")
    assert "/no/such.onnx" in made.error
    assert "\n" not in made.error
    assert replace(made, error="") == Outcome()


def test_a_child_that_breaks_is_told_by_its_last_line(job: Job, tmp_path: Path) -> None:
    made = spawn(replace(job, name="nobody"), tmp_path / "cache")
    assert made.error == "its process ended with 1 and said: KeyError: 'nobody'"


def script(path: Path, *lines: str) -> str:
    path.write_text("\n".join(("#!/bin/sh", *lines)) + "\n")
    path.chmod(0o755)
    return str(path)


def test_a_child_that_is_killed(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", script(tmp_path / "python", "kill -9 $$"))
    made = spawn(job, tmp_path / "cache")
    assert made.error == "its process was ended by SIGKILL, as when memory runs out"


def test_a_child_gets_its_job_and_its_cache_and_says_nothing_on_ours(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    outcome = Outcome("g", "e", 7, 3, 1.5, 0.5, 9, "well")
    text = json.dumps(asdict(outcome))
    lines = ("echo noise", "echo noise >&2", f"echo '{text}' > \"$4\"", 'cp "$3" "$4.seen"')
    lines = (*lines, f'echo "$VGGDEPLOY_CACHE" > "{tmp_path}/cache.txt"')
    monkeypatch.setattr(sys, "executable", script(tmp_path / "python", *lines))
    assert spawn(job, tmp_path / "own") == outcome
    assert Job(**json.loads((tmp_path / "place/result.json.seen").read_text())) == job
    assert (tmp_path / "cache.txt").read_text().strip() == str(tmp_path / "own")
    assert capfd.readouterr() == ("", "")
    assert (tmp_path / "place/log.txt").read_text() == "noise\nnoise\n"


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (MemoryError(), "out of memory"),
        (
            CalibrationError("a tensor is empty", got=0, expected="more", fix="look"),
            "a tensor is empty: got 0, expected more -- look",
        ),
        (ValueError("two\n lines"), "ValueError: two lines"),
    ],
)
def test_every_failure_is_an_outcome(
    job: Job, monkeypatch: pytest.MonkeyPatch, raised: Exception, said: str
) -> None:
    def fail(job: Job) -> Outcome:
        raise raised

    work = competitors._Work(fail, (), "peers")
    monkeypatch.setitem(competitors._WORK, "ov-int8", work)
    assert competitors.perform(job) == Outcome(error=said)


def test_what_it_took_is_added(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    work = competitors._Work(lambda job: Outcome(engine="e", collect_seconds=0.25), (), "peers")
    monkeypatch.setitem(competitors._WORK, "ov-int8", work)
    made = competitors.perform(job)
    assert made.seconds is not None
    assert 0 <= made.seconds < 10
    assert made.peak_bytes is not None
    assert made.peak_bytes > 10_000_000
    assert (made.engine, made.collect_seconds) == ("e", 0.25)


def test_a_package_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    work = competitors._Work(lambda job: Outcome(), ("vgg_no_such_package",), "peers")
    monkeypatch.setitem(competitors._WORK, "nncf", work)
    with pytest.raises(MissingError, match=r"vgg_no_such_package.*vggdeploy\[peers\]"):
        competitors.require("nncf")


def test_every_job_has_a_folder_a_cache_and_the_same_images(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Job, Path]] = []

    def record(job: Job, cache: Path) -> Outcome:
        seen.append((job, cache))
        if job.name == children.EXPORT:
            (cache / children.EXPORT).mkdir()
        return Outcome(graph="exported.onnx")

    monkeypatch.setattr(children, "spawn", record)
    options = tiny()
    from vggdeploy import inputs

    workers = children.Children(tmp_path, options, inputs.resolve(options))
    workers.run("ov-int8")
    workers.run("tensorrt-dialect", cached_by="ov-int8")
    workers.run("collect", place="collect-3", calib_images=3)
    export, first, second, third = seen
    assert export[0].name == children.EXPORT  # once, for all
    assert {job.onnx for job, _ in seen[1:]} == {"exported.onnx"}
    assert first[1] == second[1] != third[1]
    # A cache starts with the export, and with nothing else.
    assert [path.name for path in third[1].iterdir()] == [children.EXPORT]
    assert third[0].options["calib_images"] == 3
    assert first[0].options["calib_images"] == options.calib_images
    assert len({job.out for job, _ in seen}) == 4
    assert first[0].build_options().weights == options.weights


def test_an_export_that_fails_ends_everything(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vggdeploy import inputs
    from vggdeploy.errors import ModelError

    monkeypatch.setattr(children, "spawn", lambda job, cache: Outcome(error="no room"))
    workers = children.Children(tmp_path, tiny(), inputs.resolve(tiny()))
    with pytest.raises(ModelError, match="no room"):
        workers.float_graph()
