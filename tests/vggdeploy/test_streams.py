"""Standard output and error that are gone, full or of few letters: whole commands, each in a process
of its own."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vggdeploy import cli, errors, streams
from vggdeploy.terminal import Terminal

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")

BUILD = {"schema": 1, "kind": "build", "digest": "d" * 64, "target": "ov-int8", "engine_bytes": 9}
GATE = ["gate", "build.json", "--max-engine-bytes"]
FILES = ["--json", "g.json", "--junit", "g.xml", "--summary", "g.md"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    (tmp_path / "build.json").write_text(json.dumps(BUILD))
    return tmp_path


def full():
    return FULL.open("wb")


def unread():
    """The writing end of a pipe that nobody reads any more."""
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "wb")


BROKEN = [pytest.param(full, marks=needs_full), unread]


def run(words, out=subprocess.PIPE, err=subprocess.PIPE, **environment):
    return subprocess.run(
        [sys.executable, "-m", "vggdeploy", *words],
        stdout=out,
        stderr=err,
        env={**os.environ, **environment},
        check=False,
    )


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize(("bound", "code"), [("9", 0), ("8", 1)])
def test_files_and_verdict_are_what_they_are_where_standard_error_is_broken(
    here, broken, bound, code
):
    with broken() as stream:
        ended = run([*GATE, bound, *FILES, "--annotations", "github"], err=stream)
    assert ended.returncode == code
    assert ended.stdout.startswith(b"::")
    assert all((here / name).stat().st_size for name in ("g.json", "g.xml", "g.md"))


@pytest.mark.parametrize(("bound", "code"), [("9", 0), ("8", 1)])
@pytest.mark.parametrize("words", [["--annotations", "github"], ["--json", "-"]])
def test_who_stops_reading_hears_no_more_and_changes_no_verdict(bound, code, words):
    with unread() as stream:
        ended = run([*GATE, bound, *words], out=stream)
    assert ended.returncode == code
    assert b"error" not in ended.stderr
    assert b"verdict: " in ended.stderr


@needs_full
@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], [*GATE, "9", "--json", "-", "--junit", "g.xml"]]
)
def test_what_was_asked_for_on_a_full_device_is_an_error(words):
    with full() as stream:
        ended = run(words, out=stream)
    assert ended.returncode == errors.EXIT_MISSING
    (said,) = [line for line in ended.stderr.decode().splitlines() if line.startswith("error")]
    assert said.startswith("error: standard output cannot be written: got No space left on device")
    assert ended.stderr.decode().count("\n") == 1 or "verdict: PASS" in ended.stderr.decode()


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "cp1252"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "ascii"},
    ],
    ids=str,
)
def test_a_character_that_the_encoding_lacks_is_escaped(here, environment):
    said = {**BUILD, "target": "\u2248\u4e2d"}
    (here / "build.json").write_text(json.dumps(said))
    ended = run([*GATE, "9", "--annotations", "github"], **environment)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == (
        b"::notice title=vggdeploy \\u2248\\u4e2d::verdict: PASS, 1 bound met\n"
    )


def test_a_pipe_that_does_not_wait_is_waited_for(monkeypatch):
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    text = "x" * (1 << 20) + "\n"
    with os.fdopen(reading) as pipe, os.fdopen(writing, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(sys, "stdout", None)
        streams.secure()
        assert sys.stdout is None
        found = []
        reader = threading.Thread(target=lambda: found.append(pipe.readline()))
        reader.start()
        sys.stderr.write(text)
        reader.join()
    assert found == [text]


def test_progress_on_a_terminal_that_hung_up_stops_no_work(monkeypatch):
    class Gone(io.RawIOBase):
        def writable(self):
            return True

        def isatty(self):
            return True

        def fileno(self):
            raise OSError("no descriptor")

        def write(self, data):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(Gone()))
    streams.secure()
    screen = Terminal()
    assert screen.console.is_terminal
    assert list(screen.track([1, 2, 3], 3, "counting")) == [1, 2, 3]


def test_what_cannot_be_written_is_shown(monkeypatch, capsys):
    monkeypatch.setattr("vggdeploy.results.write", lambda *_: 1 / 0)
    assert cli.main(["budget", "--json", "b.json"]) == errors.EXIT_INPUT
    assert "15,470,264,320" in capsys.readouterr().err


def test_what_cannot_be_shown_is_written(here, monkeypatch):
    monkeypatch.setattr("vggdeploy.gate_table.show_gate", lambda *_: 1 / 0)
    assert cli.main([*GATE, "9", *FILES]) == errors.EXIT_INPUT
    assert json.loads((here / "g.json").read_text())["verdict"] == "pass"
