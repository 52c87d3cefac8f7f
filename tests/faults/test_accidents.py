"""The program that counts accidents: a few of each, and what it says of a product that is not safe."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import accidents
import pytest

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("openvino")
pytest.importorskip("onnx")
pytest.importorskip("sklearn")


def said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *flags: str
) -> tuple[int, list[str]]:
    none = ("--kills", "0", "--flips", "0", "--together", "0")
    monkeypatch.setattr(sys, "argv", ["accidents.py", *none, *flags])
    # Another test may have needed an engine in this process.
    for name in ("openvino", "torch"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    code = accidents.main()
    return code, capsys.readouterr().out.splitlines()


def test_a_few_of_each(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    flags = ("--kills", "3", "--flips", "40", "--together", "3")
    code, lines = said(monkeypatch, capsys, *flags)
    assert code == 0
    assert lines[0] == "kept    40 flips over 8 files: 40 found before any engine was parsed"
    assert "1 digest, 0 errors, 0 left over" in lines[1]
    assert "0 corrupt bundles, 0 failed builds, 0 left litter" in lines[2]


def test_flips_that_pass_are_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(accidents.bundle, "open_bundle", lambda path: None)
    code, (line,) = said(monkeypatch, capsys, "--flips", "16")
    assert code == 1
    assert line.startswith("BROKEN  16 flips over 8 files: 0 found")


def test_builds_that_come_to_another_digest_are_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(accidents, "opens", lambda path, digest: False)
    code, (line,) = said(monkeypatch, capsys, "--kills", "1")
    assert code == 1
    assert line.startswith("BROKEN")
    assert "0 corrupt" not in line
