"""What a CI server is told of a gate: JUnit XML, a job's summary, annotations, and the flags."""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vggdeploy
from vggdeploy import gate_table
from vggdeploy.ci import annotate, junit, summary
from vggdeploy.cli import main
from vggdeploy.gates import Criterion, Verdicts

xmlschema = pytest.importorskip("xmlschema")

SCHEMA = xmlschema.XMLSchema(str(Path(__file__).with_name("junit.xsd")))
WHEN = datetime.datetime(
    2026, 3, 1, 1, 30, 5, 999, tzinfo=datetime.timezone(datetime.timedelta(hours=2))
)

PASSED = Criterion("min_cosine", 0.97, 0.98, "pass", execution="native")
MISSED = Criterion("max_p99", 0.1, 0.25, "fail", (0.2, 0.3), "s")
UNTOLD = Criterion(
    "min_agreement", 0.97, 0.98, "inconclusive", (0.96, 0.99), note="about 1,118 would decide",
    needed={"images": 1118}, execution="native",
)  # fmt: skip
VERDICTS = Verdicts(
    "fail", (PASSED, UNTOLD, MISSED), "native", ("p99 drifts",), "d" * 64, "ov-int8", "data", 400,
    ("CPU differs",),
)  # fmt: skip
MET = dataclasses.replace(VERDICTS, verdict="pass", criteria=(PASSED,), unstable=(), cautions=())
HOSTILE = 'a|b\n- c </testcase> ]]> <script>"&` \x1b[31m\x00\x08￾\ud800\r\n::error::x *@octocat*'


def suite(verdicts, when=WHEN):
    """The only suite of the report, after it was held against the schema."""
    text = junit.render(verdicts, when)
    SCHEMA.validate(text)
    (found,) = ElementTree.fromstring(text)
    return found


# --- JUnit


def test_a_gate_is_a_suite_of_its_criteria():
    found = suite(VERDICTS)
    assert found.attrib == {
        "name": "ov-int8",
        "package": "vggdeploy",
        "id": "0",
        "hostname": found.get("hostname"),
        "timestamp": "2026-02-28T23:30:05",
        "tests": "3",
        "failures": "1",
        "errors": "1",
        "skipped": "0",
        "time": "0.000",
    }
    passed, untold, missed = found.findall("testcase")
    assert [case.get("name") for case in (passed, untold, missed)] == [
        "min_cosine",
        "min_agreement",
        "max_p99",
    ]
    assert {case.get("classname") for case in (passed, untold, missed)} == {"vggdeploy.ov-int8"}
    assert list(passed) == []
    (error,), (failure,) = untold, missed
    assert (error.tag, error.get("type")) == ("error", "inconclusive")
    assert error.get("message") == error.text == gate_table.sentence(UNTOLD)
    assert (failure.tag, failure.get("type")) == ("failure", "fail")
    assert failure.text == "fail: 0.25 s (95%: 0.2 to 0.3), asked is at most 0.1 s"
    assert {each.get("name"): each.get("value") for each in found.iter("property")} == {
        "verdict": "fail",
        "digest": "d" * 64,
        "execution": "native",
        "judged": "data",
        "images": "400",
        "vggdeploy": vggdeploy.__version__,
    }
    assert found.find("system-out").text == gate_table.text(VERDICTS)
    assert found.find("system-err").text == "p99 drifts\nCPU differs"


def test_bytes_are_shown_to_the_last_and_figures_apart():
    size = Criterion("max_engine_bytes", 138_357_543, 138_357_544, "fail", unit="bytes")
    assert gate_table.cells(size)[1:3] == ("138,357,543 bytes", "138,357,544")
    part = Criterion("max_engine_bytes", 1.5, 2, "fail", unit="bytes")
    assert gate_table.cells(part)[1:3] == ("1.5 bytes", "2")
    hair = Criterion("min_cosine", 0.97, 0.97 - 1e-9, "fail")
    assert gate_table.cells(hair)[1:3] == ("0.97", "0.969999999")
    near = Criterion("min_cosine", 0.9999999, 0.99999, "fail")
    assert gate_table.cells(near)[1:3] == ("0.9999999", "0.99999")
    assert gate_table.cells(PASSED)[1:3] == ("0.97", "0.98")
    assert gate_table.cells(dataclasses.replace(size, value=None))[2] == "none"
    even = Criterion("max_ratio.p50", 1.05, 1.05, "pass")
    assert gate_table.cells(even)[1:3] == ("1.05", "1.05")


def test_what_was_not_verified_has_no_property():
    bench = dataclasses.replace(VERDICTS, execution=None, judged=None, images=0)
    names = {each.get("name") for each in suite(bench).iter("property")}
    assert names == {"verdict", "digest", "vggdeploy"}


@pytest.mark.parametrize("name", ["FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS"])
def test_what_a_terminal_can_do_changes_nothing(monkeypatch, name):
    before = gate_table.text(VERDICTS)
    monkeypatch.setenv(name, "1")
    assert gate_table.text(VERDICTS) == before
    assert "\x1b" not in before


def test_the_time_is_now_if_none_is_given():
    before = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0, tzinfo=None)
    said = datetime.datetime.fromisoformat(suite(VERDICTS, None).get("timestamp"))
    assert before <= said <= before + datetime.timedelta(minutes=1)


@pytest.mark.parametrize(
    ("found", "instead"),
    [
        ('tests="3"', 'tests="three"'),
        ('time="0.000"', 'time="0,0"'),
        ("2026-02-28T23:30:05", "2026-02-28T23:30:05+00:00"),
        ("<testsuites>", '<testsuites version="1">'),
        ('name="max_p99"', 'name="min_cosine"'),
        ('type="fail"', ""),
        ("<properties>", "<system-out />\n<properties>"),
        ("failure", "failed"),
        ("</testsuite>", "<testcase name='a' classname='b' time='0' /></testsuite>"),
    ],
)
def test_the_schema_refuses(found, instead):
    text = junit.render(VERDICTS, WHEN)
    assert found in text
    assert not SCHEMA.is_valid(text.replace(found, instead))


def test_nothing_of_a_result_is_xml():
    hostile = dataclasses.replace(
        VERDICTS,
        target=HOSTILE,
        digest=HOSTILE,
        unstable=(HOSTILE,),
        criteria=(dataclasses.replace(UNTOLD, note=HOSTILE),),
    )
    found = suite(hostile)
    assert [each.tag for each in found] == ["properties", "testcase", "system-out", "system-err"]
    assert '</testcase> ]]> <script>"&`' in found.find("testcase/error").text


@given(st.text(st.characters(exclude_categories=()), min_size=1))
def test_any_text_gives_xml_that_is_read_back(text):
    found = suite(dataclasses.replace(VERDICTS, cautions=(text,)))
    said = found.find("system-err").text.partition("p99 drifts\n")[2]
    assert len(said) <= 401
    plain = re.fullmatch(r"[ -~]{1,400}", text)
    assert said == text if plain else "\n" not in said


# --- the summary


def rows(markdown):
    return [line for line in markdown.splitlines() if line.startswith("|")]


def test_a_summary_says_the_verdict_first():
    lines = summary.render(VERDICTS).splitlines()
    assert lines[0] == "### ✗ verdict: FAIL, ov-int8"
    assert rows(summary.render(VERDICTS)) == [
        "| criterion | bound | value | 95% | verdict |",
        "|---|--:|--:|--:|---|",
        r"| min\_cosine | 0.97 | 0.98 |  | pass |",
        r"| min\_agreement | 0.97 | 0.98 | 0.96 to 0.99 | inconclusive |",
        r"| max\_p99 | 0.1 s | 0.25 | 0.2 to 0.3 | fail |",
    ]
    assert [line for line in lines if line.startswith("- ")] == [
        r"- **min\_agreement**: about 1,118 would decide",
        "- **unstable**: p99 drifts",
        "- **caution**: CPU differs",
    ]
    assert "Judged on 400 images (data)" in lines[-1]
    assert "d" * 64 in lines[-1]


def test_a_summary_says_what_was_emulated():
    emulated = dataclasses.replace(
        MET, execution="emulated", criteria=(dataclasses.replace(PASSED, execution="emulated"),)
    )
    found = summary.render(emulated)
    assert found.startswith("### ✓ verdict: PASS (emulated), ov-int8\n")
    assert "| pass (emulated) |" in found
    assert f"- **emulated**: {gate_table.EMULATED}" in found


def test_nothing_of_a_result_is_markup():
    hostile = dataclasses.replace(
        VERDICTS, target=HOSTILE, cautions=(HOSTILE,), digest=HOSTILE, unstable=()
    )
    found = summary.render(hostile)
    assert len(found.splitlines()) == len(summary.render(VERDICTS).splitlines()) - 1
    for sign in "|<`*@":
        assert not re.search(rf"(?<!\\){re.escape(sign)}\S", found.partition("caution**")[2]), sign


def test_the_jobs_own_summary_is_appended_to(tmp_path, monkeypatch):
    collected = tmp_path / "step_summary"
    collected.write_text("of another step")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(collected))
    summary.write(VERDICTS, collected)
    summary.write(MET, collected)
    said = collected.read_text(encoding="utf-8")
    assert said == f"of another step\n{summary.render(VERDICTS)}\n{summary.render(MET)}"


@pytest.mark.parametrize("variable", [None, "", "elsewhere"])
def test_any_other_file_is_written_whole(tmp_path, monkeypatch, variable):
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    if variable is not None:
        monkeypatch.setenv("GITHUB_STEP_SUMMARY", variable)
    summary.write(VERDICTS, tmp_path / "s.md")
    summary.write(MET, tmp_path / "s.md")
    assert (tmp_path / "s.md").read_text(encoding="utf-8") == summary.render(MET)


# --- annotations


def test_a_criterion_that_is_not_met_is_an_error_and_missed_ones_come_first():
    lines = annotate.github(VERDICTS).splitlines()
    assert lines == [
        "::error title=vggdeploy ov-int8%3A max_p99::fail: 0.25 s (95%25: 0.2 to 0.3), asked is at "
        "most 0.1 s",
        "::error title=vggdeploy ov-int8%3A min_agreement::inconclusive: 0.98 (95%25: 0.96 to 0.99)"
        ", asked is at least 0.97; about 1,118 would decide",
        "::warning title=vggdeploy ov-int8%3A unstable::p99 drifts",
        "::warning title=vggdeploy ov-int8%3A caution::CPU differs",
    ]


def test_a_pass_is_a_notice():
    assert annotate.github(MET) == (
        "::notice title=vggdeploy ov-int8::verdict: PASS, 1 bound met\n"
    )
    emulated = dataclasses.replace(MET, execution="emulated", criteria=(PASSED, PASSED))
    assert annotate.github(emulated).splitlines() == [
        f"::warning title=vggdeploy ov-int8%3A emulated::{gate_table.EMULATED}",
        "::notice title=vggdeploy ov-int8::verdict: PASS (emulated), 2 bounds met",
    ]


def test_nothing_of_a_result_is_a_command():
    hostile = dataclasses.replace(MET, target="a,b:c%\n::x", cautions=("50%\r\n::error::y: z,",))
    assert annotate.github(hostile).splitlines() == [
        "::warning title=vggdeploy a%2Cb%3Ac%25%0A%3A%3Ax%3A caution::50%25%0D%0A::error::y: z,",
        "::notice title=vggdeploy a%2Cb%3Ac%25%0A%3A%3Ax::verdict: PASS, 1 bound met",
    ]
    annotate.github(dataclasses.replace(MET, cautions=(HOSTILE,))).encode("utf-8")


# --- the flags


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A folder of its own with a result, and no CI server around."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    result = {
        "schema": 1, "kind": "build", "digest": "d" * 64, "target": "ov-int8", "engine_bytes": 1000,
    }  # fmt: skip
    (tmp_path / "build.json").write_text(json.dumps(result), encoding="utf-8")
    return tmp_path


GATE = ["gate", "build.json", "--max-engine-bytes"]


@pytest.mark.parametrize(
    ("bounds", "code", "word"),
    [
        (["1000"], 0, "pass"),
        (["999"], 1, "fail"),
        (["1000", "--max-p50", "1"], 1, "inconclusive"),
    ],
)
def test_a_gate_writes_it_all_whatever_the_verdict(here, capsys, bounds, code, word):
    flags = ["--junit", "j.xml", "--summary", "s.md", "--annotations", "github", "--json", "g.json"]
    assert main([*GATE, *bounds, *flags]) == code
    out = capsys.readouterr().out
    assert out.startswith("::notice " if word == "pass" else "::error ")
    assert all(line.startswith("::") for line in out.splitlines())
    text = (here / "j.xml").read_text(encoding="utf-8")
    SCHEMA.validate(text)
    assert f'<property name="verdict" value="{word}" />' in text
    assert f"verdict: {word.upper()}, ov-int8" in (here / "s.md").read_text(encoding="utf-8")
    said = json.loads((here / "g.json").read_text(encoding="utf-8"))
    assert said["verdict"] == word


def test_the_jobs_summary_needs_no_force(here, monkeypatch):
    (here / "step").write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(here / "step"))
    assert main([*GATE, "1000", "--summary", "step"]) == 0
    assert (here / "step").read_text(encoding="utf-8").startswith("before\n\n### ✓ verdict: PASS")


REFUSED = [
    (
        ["--junit", "old.xml"],
        "old.xml exists: got a file, expected a free path -- give --force, or another --junit",
    ),
    (
        ["--summary", "old.xml"],
        "old.xml exists: got a file, expected a free path -- give --force, or another --summary",
    ),
    (["--junit", "nowhere/j.xml"], "no folder nowhere"),
    (["--summary", ".", "--force"], "a folder"),
    (["--junit", "-"], "--junit takes a file"),
    (["--summary", "-"], "--summary takes a file"),
    (["--junit", "x", "--summary", "x"], "--summary is the same file as --junit"),
    (["--junit", "x", "--json", "x"], "--junit is the same file as --json"),
    (["--annotations", "githb"], "perhaps 'github'"),
    (["--annotations", "github", "--json", "-"], "both write to standard output"),
]


@pytest.mark.parametrize(("flags", "said"), REFUSED, ids=str)
@pytest.mark.parametrize("command", ["gate", "run"])
def test_what_cannot_be_written_is_said_before_any_work(
    here, capsys, monkeypatch, command, flags, said
):
    def late(*arguments, **options):
        raise AssertionError("the work was done first")

    monkeypatch.setattr(f"vggdeploy.pipeline.{command}", late)
    (here / "old.xml").write_text("mine")
    words = ["gate", "build.json"] if command == "gate" else ["run"]
    assert main([*words, *flags]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in " ".join(err.split())
    assert (here / "old.xml").read_text() == "mine"
    assert sorted(path.name for path in here.iterdir()) == ["build.json", "old.xml"]


def test_a_result_is_not_written_over(here, capsys):
    assert main([*GATE, "1000", "--junit", "build.json", "--force"]) == 2
    assert "--junit is a result that is read" in " ".join(capsys.readouterr().err.split())
    assert json.loads((here / "build.json").read_text())["kind"] == "build"


def test_a_run_does_not_write_over_its_bundle_or_report(capsys):
    for flags in (["--out", "b"], ["--report", "b.md"]):
        assert main(["run", *flags, "--junit", flags[1]]) == 2
        assert f"same file as {flags[0]}" in " ".join(capsys.readouterr().err.split())


def test_files_are_replaced_with_force(here):
    (here / "j.xml").write_text("mine")
    assert main([*GATE, "1000", "--junit", "j.xml", "--force"]) == 0
    SCHEMA.validate((here / "j.xml").read_text(encoding="utf-8"))


def test_a_closed_standard_output_is_said(here, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert main([*GATE, "1000", "--annotations", "github"]) == 2
    assert "--annotations has nowhere to go" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("verdict", ["pass", "fail", "inconclusive"])
def test_a_run_writes_what_a_gate_writes(here, capsys, monkeypatch, verdict):
    made = dataclasses.replace(MET, verdict=verdict)
    monkeypatch.setattr("vggdeploy.pipeline.run", lambda *a, **k: ({"bench": None}, made))
    monkeypatch.setattr("vggdeploy.console.show_run", lambda *arguments: None)
    flags = ["--junit", "j.xml", "--summary", "s.md", "--annotations", "github"]
    assert main(["run", *flags]) == (0 if verdict == "pass" else 1)
    assert (here / "s.md").read_text(encoding="utf-8") == summary.render(made)
    assert capsys.readouterr().out == annotate.github(made)
    assert f'value="{verdict}"' in (here / "j.xml").read_text(encoding="utf-8")


def test_every_verdict_has_a_place():
    """None is a pass for want of a form."""
    for verdict in ("fail", "inconclusive"):
        one = Criterion("min_top1", 0.7, None, verdict, note="no labels")
        judged = dataclasses.replace(MET, verdict=verdict, criteria=(one,))
        found = suite(judged)
        assert int(found.get("failures")) + int(found.get("errors")) == 1
        assert annotate.github(judged).startswith("::error ")


def test_a_gate_of_results_that_do_not_say_their_target():
    found = suite(dataclasses.replace(MET, target=""))
    assert found.get("name") == found.find("testcase").get("classname") == "vggdeploy"
