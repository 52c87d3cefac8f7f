"""Files and folders that appear whole or not at all, whatever interrupts the writing."""

import errno
import os
import signal
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from vggdeploy import atomic, locks
from vggdeploy.errors import ConfigError, MissingError


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def make(final, text, **options):
    with atomic.folder(final, **options) as work:
        (work / "a.txt").write_text(text)


PREAMBLE = """
import os, signal, sys
from pathlib import Path
from vggdeploy import atomic

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(code, *arguments):
    """Run `code` in a process that kills itself the hard way in the midst of it."""
    command = [sys.executable, "-c", PREAMBLE + code, *map(str, arguments)]
    assert subprocess.run(command, check=False, timeout=60).returncode == -signal.SIGKILL


KILLED_INSIDE = """
with atomic.folder(Path(sys.argv[1])) as work:
    (work / "a.txt").write_text("half")
    die()
"""

KILLED_BETWEEN_RENAMES = """
atomic._exchange = lambda *_: False  # as where the system cannot
rename = Path.rename
def once(self, target):
    rename(self, target)
    die()
Path.rename = once
with atomic.folder(Path(sys.argv[1]), replace=True) as work:
    (work / "a.txt").write_text("new")
"""


def test_a_folder_appears_when_the_block_ends(tmp_path):
    final = tmp_path / "deep" / "er" / "out"
    with atomic.folder(final) as work:
        (work / "a.txt").write_text("whole")
        assert not final.exists()
        assert work.parent == final.parent, "a rename is atomic within one file system"
    assert (final / "a.txt").read_text() == "whole"
    assert listing(final.parent) == ["out"]


@pytest.mark.parametrize("there", [False, True])
def test_of_a_link_the_folder_that_it_leads_to_is_replaced(tmp_path, there):
    if there:
        (tmp_path / "v1").mkdir()
        (tmp_path / "v1" / "old").write_text("old")
    link = tmp_path / "links" / "current"
    link.parent.mkdir()
    link.symlink_to(tmp_path / "v1")
    with atomic.folder(link, replace=True) as work:
        (work / "new").write_text("new")
    assert link.is_symlink()
    assert [each.name for each in link.iterdir()] == ["new"]
    with atomic.successor(link) as work:
        (work / "newer").write_text("newer")
    assert link.is_symlink()
    assert [each.name for each in (tmp_path / "v1").iterdir()] == ["newer"]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["links", "v1"]


def test_a_link_that_leads_in_a_circle_is_refused(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with (
        pytest.raises(ConfigError, match="cannot be written"),
        atomic.folder(tmp_path / "a", replace=True),
    ):
        pass
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a", "b"]


def test_a_folder_has_the_modes_that_the_user_chose(tmp_path):
    before = os.umask(0o027)
    try:
        make(tmp_path / "out", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(1)])
@pytest.mark.parametrize("replace", [False, True])
def test_a_failure_leaves_what_was_there(tmp_path, error, replace):
    final = tmp_path / "out"
    if replace:
        make(final, "old")
    with pytest.raises(type(error)), atomic.folder(final, replace=replace) as work:
        (work / "a.txt").write_text("half")
        raise error
    assert listing(tmp_path) == (["out"] if replace else [])
    assert not replace or (final / "a.txt").read_text() == "old"


def test_what_is_there_stays_unless_replaced(tmp_path):
    final = tmp_path / "out"
    make(final, "first")
    make(final, "second")
    assert (final / "a.txt").read_text() == "first"
    make(final, "third", replace=True)
    assert (final / "a.txt").read_text() == "third"
    assert listing(tmp_path) == ["out"]


def test_two_writers_at_once_leave_one_whole_folder(tmp_path):
    final = tmp_path / "out"
    with atomic.folder(final) as first:
        (first / "a.txt").write_text("first")
        with atomic.folder(final) as second:
            assert first.exists(), "a living process's work is left alone"
            (second / "a.txt").write_text("second")
    assert (final / "a.txt").read_text() == "second"
    assert listing(tmp_path) == ["out"]


def test_a_killed_process_leaves_no_half_folder(tmp_path):
    final = tmp_path / "out"
    killed(KILLED_INSIDE, final)
    assert not final.exists()
    (left,) = listing(tmp_path)
    assert left.startswith(".out~")
    make(final, "whole")
    assert listing(tmp_path) == ["out"]


@pytest.mark.parametrize("name", ["run[1]", "a*b", "what?"])
def test_leftovers_are_found_whatever_the_name(tmp_path, name):
    killed(KILLED_INSIDE, tmp_path / name)
    make(tmp_path / name, "whole")
    assert listing(tmp_path) == [name]


def test_what_belongs_to_others_is_not_touched(tmp_path):
    # Another name's leftover, and files of the user's own.
    for name in (".out2~0123.partial", ".out.txt", ".out~notes"):
        (tmp_path / name).mkdir()
    before = listing(tmp_path)
    make(tmp_path / "out", "whole")
    assert listing(tmp_path) == sorted([*before, "out"])


def test_another_writer_is_asked_before_it_is_replaced(tmp_path):
    final = tmp_path / "out"
    make(final, "damaged")
    damaged = lambda: (final / "a.txt").read_text() == "damaged"  # noqa: E731
    with atomic.folder(final, replace=damaged) as slow:
        (slow / "a.txt").write_text("slow")
        make(final, "quick", replace=damaged)
        assert (final / "a.txt").read_text() == "quick"
    assert (final / "a.txt").read_text() == "quick", "whole, and perhaps being read"
    assert listing(tmp_path) == ["out"]


@pytest.mark.skipif(sys.platform != "linux", reason="renameat2 is Linux's")
def test_a_folder_is_there_at_every_moment_of_its_replacement(tmp_path):
    final = tmp_path / "out"
    make(final, "old")
    missed = []
    watching = True

    def look(event, arguments):
        if watching and event.startswith(("os.", "shutil.")) and not os.access(final, os.R_OK):
            missed.append(event)

    sys.addaudithook(look)
    make(final, "new", replace=True)
    watching = False
    assert (final / "a.txt").read_text() == "new"
    assert missed == []
    assert listing(tmp_path) == ["out"]


HOLD = """
with atomic.folder(Path(sys.argv[1])) as work:
    print(work, flush=True)
    sys.stdin.read()
    (work / "a.txt").write_text("slow")
"""


def test_another_living_process_is_left_alone(tmp_path):
    final = tmp_path / "out"
    command = [sys.executable, "-c", PREAMBLE + HOLD, str(final)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as slow:
        work = Path(slow.stdout.readline().decode().strip())
        make(final, "quick")
        assert work.is_dir()
        slow.stdin.close()
        assert slow.wait(timeout=60) == 0
    assert (final / "a.txt").read_text() == "quick"
    assert listing(tmp_path) == ["out"]


def test_killed_between_the_renames_the_old_folder_comes_back(tmp_path):
    final = tmp_path / "out"
    make(final, "old")
    killed(KILLED_BETWEEN_RENAMES, final)
    assert not final.exists()
    with pytest.raises(ValueError, match="no"), atomic.folder(final) as work:
        assert (final / "a.txt").read_text() == "old"
        assert work != final
        raise ValueError("no")
    assert listing(tmp_path) == ["out"]


def test_a_failed_replacement_leaves_the_old_folder(tmp_path, monkeypatch):
    final = tmp_path / "out"
    make(final, "old")
    rename = Path.rename

    def full(self, target):
        if self.name.endswith(".partial"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(MissingError):
        make(final, "new", replace=True)
    monkeypatch.undo()
    assert (final / "a.txt").read_text() == "old"
    assert listing(tmp_path) == ["out"]


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, MissingError),
        (errno.EDQUOT, MissingError),
        (errno.EACCES, ConfigError),
        (errno.EPERM, ConfigError),
        (errno.EROFS, ConfigError),
    ],
)
def test_what_the_system_says_becomes_an_error_with_a_fix(tmp_path, number, kind):
    final = tmp_path / "out"
    with pytest.raises(kind, match=str(final)) as caught, atomic.folder(final) as work:
        (work / "a.txt").write_text("half")
        raise OSError(number, os.strerror(number))
    assert caught.value.exit_code == (3 if kind is MissingError else 2)
    assert caught.value.__cause__.errno == number
    assert "--out" in caught.value.fix
    assert listing(tmp_path) == []


def test_other_errors_of_the_system_stay_what_they_are(tmp_path):
    with pytest.raises(OSError, match="broken") as caught, atomic.folder(tmp_path / "out"):
        raise OSError(errno.EIO, "broken")
    assert caught.value.errno == errno.EIO


def test_a_place_below_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for act in (lambda at: make(at, "x"), lambda at: atomic.write_text(at, "x")):
        for place in (tmp_path / "file" / "out", tmp_path / "file" / "deep" / "out"):
            with pytest.raises(ConfigError, match="cannot be written"):
                act(place)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("mask", [0, 0o022, 0o077])
def test_what_is_half_there_is_nobodys_to_read(tmp_path, mask):
    before = os.umask(mask)
    try:
        with atomic.file(tmp_path / "f") as stream:
            (work,) = tmp_path.iterdir()
            assert mode(work) == 0o600
            stream.write(b"x")
        with atomic.folder(tmp_path / "d") as work:
            assert mode(work) == 0o700
        atomic.write_bytes(tmp_path / "private", b"x", private=True)
    finally:
        os.umask(before)
    assert mode(tmp_path / "f") == 0o666 & ~mask
    assert mode(tmp_path / "d") == 0o777 & ~mask
    assert mode(tmp_path / "private") == 0o600


def test_a_file_that_fails_leaves_nothing(tmp_path):
    def fail():
        with atomic.file(tmp_path / "f") as stream:
            stream.write(b"half")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert listing(tmp_path) == []


def test_a_file_is_left_alone_until_it_is_in_place(tmp_path, monkeypatch):
    replace = Path.replace

    def late(self, target):
        atomic.recover(tmp_path / "f")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", late)
    atomic.write_bytes(tmp_path / "f", b"whole")
    assert (tmp_path / "f").read_bytes() == b"whole"
    assert listing(tmp_path) == ["f"]


def test_a_file_that_was_cleared_before_it_was_locked_is_made_anew(tmp_path, monkeypatch):
    flock = locks._flock

    def late(handle, *, shared, wait):
        if wait and not cleared:
            cleared.append(handle)
            atomic.recover(tmp_path / "f")
        return flock(handle, shared=shared, wait=wait)

    cleared = []
    monkeypatch.setattr(locks, "_flock", late)
    atomic.write_bytes(tmp_path / "f", b"whole")
    assert cleared
    assert (tmp_path / "f").read_bytes() == b"whole"
    assert listing(tmp_path) == ["f"]


def test_two_may_ask_at_once_whether_a_place_can_be_written(tmp_path, monkeypatch):
    unlink = Path.unlink

    def late(self, **options):
        monkeypatch.setattr(Path, "unlink", unlink)
        atomic.require_writable(tmp_path / "f")
        unlink(self, **options)

    monkeypatch.setattr(Path, "unlink", late)
    atomic.require_writable(tmp_path / "f")
    assert listing(tmp_path) == []


def inherit(final, text):
    with atomic.successor(final) as work:
        (work / "a.txt").write_text((final / "a.txt").read_text() + text)


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_successor_holds_what_it_replaces(tmp_path, monkeypatch, exchanges):
    final = tmp_path / "out"
    make(final, "a")
    if not exchanges:
        monkeypatch.setattr(atomic, "_exchange", lambda *_: False)
    with ThreadPoolExecutor() as pool:
        others = []
        with atomic.successor(final) as work:
            others += [pool.submit(inherit, final, "c"), pool.submit(make, final, "d")]
            (work / "a.txt").write_text("ab")
            assert not wait(others[:1], timeout=0.2).done
        for other in others:
            other.result(timeout=60)
    assert (final / "a.txt").read_text() == "abc"
    assert listing(tmp_path) == ["out"]


def test_a_successor_that_fails_leaves_what_was_there(tmp_path):
    make(tmp_path / "out", "old")
    with pytest.raises(ValueError, match="no"), atomic.successor(tmp_path / "out"):
        raise ValueError("no")
    assert (tmp_path / "out" / "a.txt").read_text() == "old"
    assert listing(tmp_path) == ["out"]


def test_nothing_has_no_successor(tmp_path):
    with pytest.raises(ConfigError, match=r"out cannot be replaced: got nothing"):
        inherit(tmp_path / "out", "x")
    assert listing(tmp_path) == []


def test_an_error_in_place_of_an_answer_leaves_what_was_there(tmp_path):
    def no():
        raise ValueError("no")

    make(tmp_path / "out", "old")
    with pytest.raises(ValueError, match="no"):
        make(tmp_path / "out", "new", replace=no)
    assert (tmp_path / "out" / "a.txt").read_text() == "old"
    assert listing(tmp_path) == ["out"]


def test_a_device_or_a_pipe_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", Path(os.devnull)):
        for write in (atomic.require_writable, lambda place: atomic.write_bytes(place, b"x")):
            with pytest.raises(ConfigError, match="got a device, a pipe or a socket"):
                write(place)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_file_in_no_folder_cannot_be_appended_to(tmp_path):
    with (
        pytest.raises(ConfigError, match="cannot be written: got No such file"),
        atomic.writing(tmp_path / "gone/file"),
        (tmp_path / "gone/file").open("a"),
    ):
        pass


def test_a_pipe_or_a_link_named_as_what_is_left_holds_nobody_up(tmp_path):
    pipe, link = (tmp_path / f".out~{digit * 16}.partial" for digit in "01")
    os.mkfifo(pipe)
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "a.txt").write_text("dear")
    link.symlink_to(tmp_path / "others")
    held_up = PREAMBLE + "atomic.recover(Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", held_up, str(tmp_path / "out")], check=True, timeout=30)
    assert not pipe.exists()
    assert link.is_symlink()
    assert (tmp_path / "others" / "a.txt").read_text() == "dear"
