"""`vggdeploy report`, and `run --report`: files written whole, never over others, errors of one line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import report_page
import report_results as made

from vggdeploy.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Capture = pytest.CaptureFixture[str]

pytest.importorskip("jinja2")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    made.written(folder, made.full(), made.full("fp32", 1))
    return folder


def refused(capsys: Capture, *arguments: str, code: int = 2) -> str:
    assert main(list(arguments)) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert "bug" not in err
    assert err.count("error:") == 1
    return " ".join(err.split())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_page_markdown_and_json(capsys: Capture, here: Path) -> None:
    results = ["result-0.json", "result-1.json"]
    assert main(["report", *results, "--out", "a.html", "--markdown", "a.md", "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {
        "schema": 1,
        "kind": "report",
        "html": "a.html",
        "markdown": "a.md",
        "verdict": "pass",
        "bundles": [
            {
                "digest": run["build"]["digest"],
                "bundle": run["build"]["bundle"],
                "target": run["build"]["target"],
                "verdict": "pass",
            }
            for run in (made.full(), made.full("fp32", 1))
        ],
    }
    assert "wrote a.html" in err
    assert "wrote a.md" in err
    root = report_page.parse((here / "a.html").read_text("utf-8"))
    assert root.all("h1")[0].text == "2 bundles side by side"
    assert (here / "a.md").read_text("utf-8").startswith("# 2 bundles side by side\n")


def test_the_page_has_a_name_of_its_own(here: Path) -> None:
    assert main(["report", "result-0.json"]) == 0
    assert names(here) == ["report.html", "result-0.json", "result-1.json"]


def test_markdown_alone_needs_no_jinja2(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["report", "result-0.json", "--markdown", "a.md"]) == 0
    assert names(here) == ["a.md", "result-0.json", "result-1.json"]


def test_without_jinja2_it_says_what_to_install(
    capsys: Capture, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'vggdeploy[report]'" in refused(capsys, "report", "result-0.json", code=3)
    assert names(here) == ["result-0.json", "result-1.json"]


def test_nothing_is_replaced_without_force(capsys: Capture, here: Path) -> None:
    (here / "a.html").write_text("mine")
    assert "give --force, or another --out" in refused(
        capsys, "report", "result-0.json", "--out", "a.html"
    )
    assert (here / "a.html").read_text() == "mine"
    assert main(["report", "result-0.json", "--out", "a.html", "--force"]) == 0
    assert (here / "a.html").read_text("utf-8").startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--out", "a.pdf"], "cannot be written to a.pdf"),
        (["--out", "nowhere/a.html"], "no folder nowhere"),
        (["--markdown", "."], "a report cannot be written to ."),
        (["--out", "a.md", "--markdown", "a.md"], "--markdown is the same file as --out"),
        (["--markdown", "a.md", "--json", "a.md"], "--json is the same file as --markdown"),
        (["--json", "result-0.json", "--force"], "--json is a result that is read"),
    ],
)  # fmt: skip
def test_places_that_will_not_do(capsys: Capture, here: Path, flags: list[str], words: str) -> None:
    before = (here / "result-0.json").read_bytes()
    assert words in refused(capsys, "report", "result-0.json", *flags)
    assert names(here) == ["result-0.json", "result-1.json"]
    assert (here / "result-0.json").read_bytes() == before


def test_a_result_is_never_written_over(capsys: Capture, here: Path) -> None:
    (here / "r.html").write_bytes((here / "result-0.json").read_bytes())
    assert "--out is a result that is read" in refused(
        capsys, "report", "r.html", "--out", "r.html", "--force"
    )
    assert json.loads((here / "r.html").read_text("utf-8"))["kind"] == "run"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read"), ('{"schema": 9, "kind": "run"}', "another schema"),
        ('{"schema": 1, "kind": "doctor"}', "kind 'doctor'"),
        ('{"schema": 1, "kind": "bench"}', "got nothing at /digest"),
        ('{"schema": 1, "kind": "run"}', "nothing to report"),
    ],
)  # fmt: skip
def test_broken_results(capsys: Capture, here: Path, text: str, words: str) -> None:
    (here / "x.json").write_text(text)
    assert words in refused(capsys, "report", "x.json")
    assert names(here) == ["result-0.json", "result-1.json", "x.json"]


def test_run_writes_a_report(
    capsys: Capture, here: Path, tiny: Callable[..., Any], tiny_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("vggdeploy.benchmarks.peak.SECONDS", 0.01)
    options = tiny()
    flags = ["--weights", options.weights, "--preprocess", options.preprocess]
    flags += ["--calib-data", options.calib_data, "--calib-images", "16", "--seconds", "0.05"]
    flags += ["--out", "bundle", "--max-resident-bytes", "1e12", "--json", "run.json"]
    assert main(["run", *flags, "--report", "run.html"]) == 0
    assert "wrote run.html" in capsys.readouterr().err
    root = report_page.parse((here / "run.html").read_text("utf-8"))
    result = json.loads((here / "run.json").read_text("utf-8"))
    median = next(
        e for e in root.all("data") if e.attributes.get("data-pointer") == "/bench/latency_s/p50"
    )
    assert json.loads(median.attributes["value"]) == result["bench"]["latency_s"]["p50"]
    # Of its JSON the same report is made, but for the file's name and digest.
    assert main(["report", "run.json", "--out", "again.html"]) == 0
    assert (here / "again.html").read_text("utf-8")[:5000] == (here / "run.html").read_text(
        "utf-8"
    )[:5000]


@pytest.mark.parametrize(
    ("place", "words"),
    [("a.pdf", "the ending '.pdf'"), ("nowhere/a.html", "no folder"), ("there.md", "exists")],
)
def test_run_settles_the_report_before_it_builds(
    capsys: Capture, here: Path, place: str, words: str
) -> None:
    (here / "there.md").write_text("mine")
    assert words in refused(capsys, "run", "--out", "bundle", "--report", place)
    assert not (here / "bundle").exists()


def test_run_without_jinja2_builds_nothing(
    capsys: Capture, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vggdeploy.report.page.errors.importlib.util.find_spec", lambda name: None)
    flags = ["--out", "bundle", "--report", "a.html"]
    assert "vggdeploy[report]" in refused(capsys, "run", *flags, code=3)
    assert not (here / "bundle").exists()
