"""Text files that appear whole or not at all."""

import errno
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vggdeploy import atomic
from vggdeploy.errors import ConfigError, MissingError

KILLED_WRITING_TEXT = """
import os, signal, sys
from pathlib import Path
from vggdeploy import atomic

Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
atomic.write_text(Path(sys.argv[1]), "half")
"""


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def test_text_is_written_whole(tmp_path):
    path = tmp_path / "deep" / "x.json"
    atomic.write_text(path, "1 é\n")
    atomic.write_text(path, "2 é\n")
    assert path.read_bytes() == "2 é\n".encode()
    assert listing(path.parent) == ["x.json"]


def test_text_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    atomic.write_text(path, "old")

    def full(self, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(MissingError, match="no space left"):
        atomic.write_text(path, "new")
    assert path.read_text() == "old"
    assert listing(tmp_path) == ["x.json"]


def test_text_of_a_killed_process_is_cleared_by_the_next(tmp_path):
    path = tmp_path / "x.json"
    atomic.write_text(path, "old")
    command = [sys.executable, "-c", KILLED_WRITING_TEXT, str(path)]
    assert subprocess.run(command, check=False, timeout=60).returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    assert len(listing(tmp_path)) == 2
    atomic.write_text(path, "new")
    assert listing(tmp_path) == ["x.json"]


def test_text_where_a_folder_is_cannot_be_written(tmp_path):
    (tmp_path / "x.json").mkdir()
    with pytest.raises(ConfigError, match=r"x\.json cannot be written"):
        atomic.write_text(tmp_path / "x.json", "new")
    assert listing(tmp_path) == ["x.json"]
