"""Places of every kind: links, mount points, long names, and what the system says of them."""

import errno
import os
import re
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from small_bundle import FACTS, fill

from vggdeploy import atomic, bundle, compiling, packing, results
from vggdeploy.cache import Cache
from vggdeploy.errors import ConfigError, MissingError, VggdeployError


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def make(final):
    with atomic.folder(final, replace=True) as work:
        (work / "a.txt").write_text("new")


WRITERS = [
    pytest.param(make, id="folder"),
    pytest.param(lambda final: atomic.write_text(final, "new"), id="file"),
]


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EBUSY, "mount point"),
        (errno.EXDEV, "lower layer of an overlay: a copy of it can be replaced"),
        (errno.EINVAL, "a name that this file system does not take"),
        (errno.ENAMETOOLONG, "too long"),
        (errno.ELOOP, "symbolic links"),
    ],
)
@pytest.mark.parametrize("write", WRITERS)
def test_a_rename_that_the_system_refuses_is_an_error_with_a_fix(
    tmp_path, monkeypatch, write, number, said
):
    def refuse(self, target):
        raise OSError(number, os.strerror(number))

    for name in ("rename", "replace"):
        monkeypatch.setattr(Path, name, refuse)
    with pytest.raises(ConfigError, match=f"out cannot be written: got .*{said}") as caught:
        write(tmp_path / "out")
    assert caught.value.__cause__.errno == number
    assert "--out" in caught.value.fix
    assert listing(tmp_path) == []


@pytest.mark.parametrize("write", [*WRITERS, pytest.param(atomic.require_writable, id="asked")])
def test_what_others_stand_on_is_not_replaced(tmp_path, monkeypatch, write):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for place in (Path(), Path(".."), Path("/")):
        with pytest.raises(ConfigError, match="got the folder that the command runs in, or one ar"):
            write(place)
    with pytest.raises(ConfigError, match="got a mount point"):
        write(Path("/proc"))
    assert listing(tmp_path) == ["here"]
    assert listing(tmp_path / "here") == []


MOUNTED = """
import sys
from pathlib import Path
from vggdeploy import atomic

for place in map(Path, sys.argv[1:]):
    for write in (atomic.require_writable, lambda at: atomic.write_text(at, "new")):
        try:
            write(place)
        except atomic.ConfigError as error:
            print(error)
"""


def test_a_file_that_is_mounted_is_not_replaced(tmp_path):
    """Of the same file system too, where no look at the file shows that it is one."""
    places = [tmp_path / "a file", tmp_path / "back\\slash"]
    for place in (tmp_path / "other", *places):
        place.write_text("old")
    mount = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    script = 'other="$1"; shift; for each; do mount --bind "$other" "$each" || exit 9; done; '
    run = subprocess.run(
        [
            *mount,
            f'{script} exec "$0" -c "$CODE" "$@"',
            sys.executable,
            tmp_path / "other",
            *places,
        ],
        env={**os.environ, "CODE": MOUNTED},
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode == 9 or "unshare" in run.stderr:
        pytest.skip("nothing can be mounted here")
    assert run.stdout.count("got a mount point") == 4, run.stderr
    assert [place.read_text() for place in places] == ["old", "old"]


@pytest.mark.parametrize("write", [*WRITERS, pytest.param(atomic.require_writable, id="asked")])
@pytest.mark.parametrize("name", ["n" * 255, "é" * 127, "\udcff" * 255])
def test_every_name_that_the_system_takes_can_be_written(tmp_path, write, name):
    try:
        (tmp_path / name).touch()
        (tmp_path / name).unlink()
    except OSError:
        pytest.skip("not here")
    left = atomic._beside(tmp_path / name, ".partial")
    left.touch()
    other = atomic._beside(tmp_path / ("n" * 254), ".partial")
    other.touch()
    write(tmp_path / name)
    if write is not atomic.require_writable:
        assert not left.exists(), "what a killed writer of that name left"
        assert (tmp_path / name).exists()
    assert other.exists()


def test_a_name_that_is_too_long_is_refused(tmp_path):
    place = tmp_path / ("n" * 256)
    for write in (
        make,
        lambda at: atomic.write_text(at, "x"),
        atomic.require_writable,
        lambda at: results.refuse_overwrite(str(at), force=True),
        lambda at: results.refuse_overwrite(str(at), force=False, out=tmp_path / "out"),
        lambda at: bundle.holds(at, "key", force=False),
        lambda at: bundle.refuse_taken(at, force=False),
    ):
        with pytest.raises(VggdeployError, match="cannot be written: got File name too long"):
            write(place)
    assert listing(tmp_path) == []


def test_a_place_can_be_asked_for_before_its_folders_are_made(tmp_path):
    atomic.require_writable(tmp_path / "deep" / "er" / "out")
    assert listing(tmp_path) == []


def test_a_place_is_asked_for_before_anything_is_compiled_or_unpacked(tmp_path):
    bundle.write(tmp_path / "b", {**FACTS, "target": "trt-int8"}, fill, replace=False)
    for act in (
        lambda out: compiling.compile_bundle(tmp_path / "b", out=out),
        lambda out: packing.unpack(tmp_path / "nowhere.zip", out),
    ):
        with pytest.raises(ConfigError, match="/proc/nowhere cannot be written"):
            act(Path("/proc/nowhere"))


# Links.


def test_of_a_link_the_file_that_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "v1").mkdir()
    link = tmp_path / "b.json"
    link.symlink_to(tmp_path / "v1" / "b.json")
    for text in ("first", "second"):  # where it leads to nothing, and to a file
        atomic.write_text(link, text)
        assert link.is_symlink()
        assert (tmp_path / "v1" / "b.json").read_text() == text
    assert listing(tmp_path / "v1") == ["b.json"]
    assert listing(tmp_path) == ["b.json", "v1"]


def test_who_writes_by_a_link_waits_for_who_writes_to_the_file(tmp_path):
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / "b.json").write_text("")
    (tmp_path / "b.json").symlink_to("v1/b.json")
    (tmp_path / "v2").symlink_to("v1")
    order = []

    def second(place):
        with atomic.alone(place):
            order.append("second")

    for place in (tmp_path / "b.json", tmp_path / "v2" / "b.json"):
        order.clear()
        with atomic.alone(tmp_path / "v1" / "b.json"):
            other = threading.Thread(target=second, args=[place])
            other.start()
            other.join(timeout=0.2)
            order.append("first")
        other.join(timeout=60)
        assert order == ["first", "second"]


def test_links_in_a_circle_are_refused(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    for write in (
        lambda at: atomic.write_text(at, "x"),
        atomic.require_writable,
        lambda at: results.refuse_overwrite(str(at), force=True),
        lambda at: results.refuse_overwrite(str(at), force=True, out=tmp_path / "out"),
    ):
        with pytest.raises(ConfigError, match=r"cannot be written: got .*symbolic links"):
            write(tmp_path / "a")
    results.refuse_overwrite(str(tmp_path / "x.json"), force=True, out=tmp_path / "a")
    results.require_apart([tmp_path / "a"], {"--json": tmp_path / "b"})
    assert listing(tmp_path) == ["a", "b"]


# Modes.


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the mask")
def test_the_mask_is_read_and_never_set(tmp_path, monkeypatch):
    mask = os.umask(0o027)
    with monkeypatch.context() as patch:
        patch.setattr(os, "umask", None)
        atomic.write_text(tmp_path / "f", "x")
    os.umask(mask)
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o640


# Power cuts.


@pytest.fixture
def steps(monkeypatch):
    """What is waited for until the disk has it, and what gets its name, in order; random parts of
    names are left out."""
    seen = []

    def plain(place):
        return re.sub("~.*", "~", Path(place).name)

    def watch(owner, name, say):
        real = getattr(owner, name)

        def wrapped(*given):
            seen.append(say(*given))
            return real(*given)

        monkeypatch.setattr(owner, name, wrapped)

    watch(os, "fsync", lambda handle: "sync " + plain(Path(f"/proc/self/fd/{handle}").readlink()))
    for name in ("rename", "replace"):
        watch(Path, name, lambda work, final: f"name {plain(final)}")
    watch(atomic, "_exchange", lambda work, final: f"name {plain(final)}")
    return seen


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux names what is open")
def test_the_disk_has_what_gets_its_name_and_then_the_name(tmp_path, steps):
    place = tmp_path / "place"

    def fill(work):
        (work / "deep").mkdir()
        (work / "deep" / "b").touch()
        (work / "a").touch()

    for there in ([], ["name out"]):  # where it does not give way by itself
        steps.clear()
        with atomic.folder(place / "out", replace=True) as work:
            fill(work)
        first = ["sync b", "sync deep", "sync a", "sync .out~"]
        assert steps == [*first, "name out", *there, "sync place"]
    steps.clear()
    with atomic.successor(place / "out") as work:
        (work / "a").touch()
    assert steps == ["sync a", "sync .out~", "name out", "sync place"]
    steps.clear()
    atomic.write_text(place / "f", "x")
    assert steps == ["sync .f~", "name f", "sync place"]


def test_the_cache_waits_for_no_disk(tmp_path, steps):
    Cache(tmp_path).stage("s", {}, lambda work: (work / "a").touch())
    assert not any(step.startswith("sync") for step in steps)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
def test_a_file_system_that_syncs_no_folders_is_written_to(tmp_path, monkeypatch, number):
    real = os.fsync

    def fsync(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    make(tmp_path / "out")
    atomic.write_text(tmp_path / "f", "x")
    assert listing(tmp_path) == ["f", "out"]


@pytest.mark.parametrize("write", WRITERS)
def test_a_disk_that_turns_out_full_at_the_end_is_said_and_nothing_is_left(
    tmp_path, monkeypatch, write
):
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MissingError, match="no space left"):
        write(tmp_path / "out")
    assert listing(tmp_path) == []
