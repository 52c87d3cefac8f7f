"""The stage cache: hits, misses, damage, and what goes when it outgrows its limit."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vggdeploy import cache, digests
from vggdeploy.cache import Cache
from vggdeploy.errors import ConfigError

HOUR = 3600


class Maker:
    """Makes two files and counts how often."""

    def __init__(self, text="made", size=0):
        self.text, self.size, self.calls = text, size, 0

    def __call__(self, work):
        self.calls += 1
        (work / "a.txt").write_text(self.text)
        (work / "deep").mkdir()
        (work / "deep" / "b.bin").write_bytes(bytes(self.size))


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("VGGDEPLOY_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("VGGDEPLOY_CACHE_LIMIT", raising=False)
    return Cache()


def test_the_same_inputs_are_made_once(store, tmp_path):
    make = Maker()
    first = store.stage("export", {"a": 1, "b": [2.5]}, make)
    second = store.stage("export", {"b": [2.5], "a": 1}, make)
    assert make.calls == 1
    assert (first.cached, second.cached) == (False, True)
    assert (first.path, first.digest) == (second.path, second.digest)
    assert first.path.parent == tmp_path / "cache" / "export"
    assert (second.path / "a.txt").read_text() == "made"


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("export", {"a": 2}),
        ("export", {"a": 1, "b": None}),
        ("export", {"a": "1"}),
        ("x", {"a": 1}),
    ],
)
def test_other_inputs_or_another_stage_are_made_anew(store, name, inputs):
    make = Maker()
    first = store.stage("export", {"a": 1}, make)
    other = store.stage(name, inputs, make)
    assert make.calls == 2
    assert not other.cached
    assert first.path != other.path
    assert first.digest == other.digest, "the digest is of the contents, and these are the same"


def test_the_digest_is_of_names_and_contents(store):
    one = store.stage("a", {}, Maker("one"))
    assert one.digest != store.stage("b", {}, Maker("two")).digest
    assert one.digest != store.stage("c", {}, Maker("one", size=1)).digest


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda at: flip(at / "a.txt"),
        lambda at: (at / "a.txt").write_text("made and more"),
        lambda at: (at / "a.txt").unlink(),
        lambda at: (at / "entry.json").unlink(),
        *(
            lambda at, text=text: (at / "entry.json").write_text(text)
            for text in ("", "[]", "{}", '{"files": 3}', '{"files": {"a.txt": {}}}', '{"files": [')
        ),
    ],
)
def test_a_damaged_entry_is_made_anew(store, damage):
    make = Maker()
    first = store.stage("export", {}, make)
    damage(first.path)
    second = store.stage("export", {}, make)
    assert make.calls == 2
    assert (second.cached, second.path, second.digest) == (False, first.path, first.digest)
    assert (second.path / "a.txt").read_text() == "made"
    assert store.stage("export", {}, make).cached


def test_a_stage_that_fails_leaves_nothing(store, tmp_path):
    def fail(work):
        (work / "a.txt").write_text("half")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        store.stage("export", {}, fail)
    assert list((tmp_path / "cache" / "export").iterdir()) == []
    assert not store.stage("export", {}, Maker()).cached


def test_the_longest_unused_go_when_it_outgrows_its_limit(store, monkeypatch):
    kept = [Cache().stage("s", {"n": n}, Maker(size=10_000)) for n in range(4)]
    now = max(entry.path.stat().st_mtime for entry in kept)
    # Entry 2 has been unused for longest, then 0, 3 and 1.
    for age, n in enumerate([1, 3, 0, 2], start=2):
        os.utime(kept[n].path, (now - age * HOUR,) * 2)
    monkeypatch.setenv("VGGDEPLOY_CACHE_LIMIT", "35000")
    store.stage("s", {"n": 4}, Maker(size=10_000))
    assert [entry.path.exists() for entry in kept] == [False, True, False, True]
    # Five entries and their bookkeeping are above 50,000 bytes; three are below 35,000.
    assert 30_000 < store.size() <= 35_000


def test_a_hit_counts_as_use(store, monkeypatch):
    old, older = (Cache().stage("s", {"n": n}, Maker(size=10_000)) for n in range(2))
    now = old.path.stat().st_mtime
    os.utime(old.path, (now - 2 * HOUR,) * 2)
    os.utime(older.path, (now - 3 * HOUR,) * 2)
    assert store.stage("s", {"n": 1}, Maker()).cached
    monkeypatch.setenv("VGGDEPLOY_CACHE_LIMIT", "25000")
    store.stage("s", {"n": 2}, Maker(size=10_000))
    assert (old.path.exists(), older.path.exists()) == (False, True)


def test_what_was_used_within_the_hour_stays(store, monkeypatch):
    first = store.stage("s", {"n": 0}, Maker(size=10_000))
    monkeypatch.setenv("VGGDEPLOY_CACHE_LIMIT", "1")
    second = store.stage("s", {"n": 1}, Maker(size=10_000))
    assert first.path.exists()
    assert second.path.exists()


@pytest.mark.parametrize("text", ["lots", "-1", "", "1.5", "8GB", "²"])
def test_a_wrong_limit_is_an_error(store, monkeypatch, text):
    monkeypatch.setenv("VGGDEPLOY_CACHE_LIMIT", text)
    with pytest.raises(ConfigError, match="VGGDEPLOY_CACHE_LIMIT is wrong"):
        store.stage("s", {}, Maker())


def test_where_the_cache_is(tmp_path, monkeypatch):
    monkeypatch.setenv("VGGDEPLOY_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache.default_root() == tmp_path / "own"
    monkeypatch.setenv("VGGDEPLOY_CACHE", "~/mine")
    assert cache.default_root() == tmp_path / "home" / "mine"
    monkeypatch.delenv("VGGDEPLOY_CACHE")
    assert cache.default_root() == tmp_path / "xdg" / "vggdeploy"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.default_root() == tmp_path / "home" / ".cache" / "vggdeploy"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VGGDEPLOY_CACHE", "here")
    assert cache.default_root() == tmp_path / "here", "relative to where the command was started"


def test_a_place_that_is_a_file_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot be written.*VGGDEPLOY_CACHE"):
        Cache(tmp_path / "file").stage("s", {}, Maker())


def test_describe_lists_every_file(tmp_path):
    Maker("abc")(tmp_path)
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert cache.describe(tmp_path) == {
        "a.txt": {"sha256": abc, "size": 3},
        "deep/b.bin": {"sha256": empty, "size": 0},
    }


def test_a_file_is_hashed_across_its_chunks(tmp_path):
    # FIPS 180-2, appendix B.3: a million times "a"; and once over a mebibyte.
    path = tmp_path / "a"
    path.write_bytes(b"a" * 1_000_000)
    expected = "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"
    assert digests.sha256_file(path) == expected
    path.write_bytes(b"a" * (1 << 20) + b"b")
    longer = digests.sha256_file(path)
    flip(Path(path))
    assert digests.sha256_file(path) != longer


def test_json_has_one_spelling():
    assert digests.sha256_json({"b": 1, "a": [1, 2]}) == digests.sha256_json({"a": (1, 2), "b": 1})
    assert digests.sha256_json({"a": 1}) != digests.sha256_json({"a": 1.5})
    with pytest.raises(ValueError, match="JSON"):
        digests.sha256_json({"a": float("nan")})


@pytest.mark.parametrize("moved", [-50 * 365 * 24 * HOUR, 365 * 24 * HOUR])
def test_entries_of_a_wrong_clock_go_first(store, monkeypatch, moved):
    wrong, usual = (Cache().stage("s", {"n": n}, Maker(size=10_000)) for n in range(2))
    now = usual.path.stat().st_mtime
    os.utime(wrong.path, (now + moved,) * 2)
    os.utime(usual.path, (now - 2 * HOUR,) * 2)
    monkeypatch.setenv("VGGDEPLOY_CACHE_LIMIT", "25000")
    store.stage("s", {"n": 2}, Maker(size=10_000))
    assert (wrong.path.exists(), usual.path.exists()) == (False, True)


def test_what_a_job_uses_stays_whatever_the_clock_says(store, monkeypatch):
    own = store.stage("s", {"n": 0}, Maker(size=10_000))
    os.utime(own.path, (0, 0))
    monkeypatch.setenv("VGGDEPLOY_CACHE_LIMIT", "15000")
    store.stage("s", {"n": 1}, Maker(size=10_000))
    assert own.path.exists()


def test_an_entry_that_another_process_made_meanwhile_stays(store):
    def slow(work):
        Cache().stage("s", {}, Maker("quick"))
        Maker("slow")(work)

    made = store.stage("s", {}, slow)
    assert (made.path / "a.txt").read_text() == "quick"
    assert made.digest == store.stage("s", {}, Maker()).digest


# What killed jobs leave, and what others use.


def old(entry, hours=2):
    then = entry.stat().st_mtime - hours * HOUR
    os.utime(entry, (then, then))


def listing(store):
    return sorted(path.name for path in (store.root / "s").iterdir())


def test_what_killed_jobs_left_of_any_key_is_cleared(store):
    kept = store.stage("s", {"n": 0}, Maker(size=10_000))
    key = digests.sha256_json("another")[:32]
    others = [".notes~1.partial", f".{key}.partial", f".{key}~{'0' * 15}.old", f"{key}0"]
    left = [f".{key}~{'0' * 16}.partial", f".{kept.path.name}~{'1' * 16}.old"]
    for name in others + left:
        (store.root / "s" / name).mkdir()
        (store.root / "s" / name / "big").write_bytes(bytes(10_000))
    assert store.size() > 30_000, "what is left is told"
    made = store.stage("s", {"n": 1}, Maker())
    assert listing(store) == sorted([kept.path.name, made.path.name, *others])


def test_what_another_job_is_making_stays(store, monkeypatch):
    """However long it takes."""
    monkeypatch.setenv("VGGDEPLOY_CACHE_LIMIT", "1")

    def slow(work):
        Maker("slow")(work)
        old(work)
        Cache().stage("s", {"n": 1}, Maker())
        assert (work / "a.txt").exists()

    assert (store.stage("s", {"n": 0}, slow).path / "a.txt").read_text() == "slow"


def test_a_folder_without_an_index_goes_as_an_entry_does(store, monkeypatch):
    torn = store.root / "s" / digests.sha256_json("torn")[:32]
    torn.mkdir(parents=True)
    Maker(size=10_000)(torn)
    old(torn)
    assert store.size() > 10_000
    monkeypatch.setenv("VGGDEPLOY_CACHE_LIMIT", "1000")
    made = store.stage("s", {}, Maker())
    assert listing(store) == [made.path.name]


@pytest.mark.parametrize("cached", [False, True])
def test_what_another_job_uses_stays_however_old(store, monkeypatch, cached):
    if cached:
        Cache().stage("s", {"n": 0}, Maker(size=10_000))
    other = Cache()
    used = other.stage("s", {"n": 0}, Maker(size=10_000))
    assert used.cached is cached
    monkeypatch.setenv("VGGDEPLOY_CACHE_LIMIT", "1000")
    old(used.path)
    store.stage("s", {"n": 1}, Maker())
    assert used.path.exists()
    del other
    store.stage("s", {"n": 2}, Maker())
    assert not used.path.exists(), "the job is done"


def test_without_locks_what_is_old_goes_but_for_what_the_job_uses(store, monkeypatch):
    def lacking(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", lacking)
    other = Cache()
    theirs, own = other.stage("s", {"n": 0}, Maker()), store.stage("s", {"n": 1}, Maker())
    old(theirs.path)
    old(own.path)
    monkeypatch.setenv("VGGDEPLOY_CACHE_LIMIT", "1")
    store.stage("s", {"n": 2}, Maker())
    assert (theirs.path.exists(), own.path.exists()) == (False, True)


def test_an_entry_that_is_replaced_is_held_anew(store, monkeypatch):
    first = store.stage("s", {"n": 0}, Maker())
    flip(first.path / "a.txt")
    assert not store.stage("s", {"n": 0}, Maker()).cached, "who uses it may replace it"
    old(first.path)
    monkeypatch.setenv("VGGDEPLOY_CACHE_LIMIT", "1")
    Cache().stage("s", {"n": 1}, Maker())
    assert first.path.exists()


KILLED_PRUNING = """
import os, shutil, signal
from vggdeploy.cache import Cache

def rmtree(path, **_):
    os.remove(path / "a.txt")
    os.kill(os.getpid(), signal.SIGKILL)

shutil.rmtree = rmtree
Cache().stage("s", {"n": 1}, lambda work: None)
"""


def test_a_killed_pruning_leaves_no_half_entry(store, monkeypatch):
    entry = Cache().stage("s", {"n": 0}, Maker(size=10_000))
    old(entry.path)
    monkeypatch.setenv("VGGDEPLOY_CACHE_LIMIT", "1000")
    command = [sys.executable, "-c", KILLED_PRUNING]
    assert subprocess.run(command, check=False, timeout=60).returncode == -signal.SIGKILL
    assert not entry.path.exists()
    made = store.stage("s", {"n": 2}, Maker())
    assert len(listing(store)) == 2
    assert made.path.name in listing(store)


def test_an_entry_that_is_pruned_while_it_is_looked_at_is_none(store, monkeypatch):
    make = Maker()
    entry = store.stage("s", {}, make)
    real = cache.describe

    def late(folder):
        monkeypatch.setattr(cache, "describe", real)
        (folder / "entry.json").unlink()
        return real(folder)

    monkeypatch.setattr(cache, "describe", late)
    assert not store.stage("s", {}, make).cached
    assert (make.calls, (entry.path / "entry.json").exists()) == (2, True)


@pytest.mark.parametrize("own", [None, "~/cache"])
def test_a_user_without_a_home_is_told_to_name_a_place(monkeypatch, own):
    for name in ("VGGDEPLOY_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    if own is not None:
        monkeypatch.setenv("VGGDEPLOY_CACHE", own)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)  # whom no system knows
    with pytest.raises(ConfigError, match=r"no place for the cache.* -- set VGGDEPLOY_CACHE"):
        Cache()


def test_files_are_hashed_side_by_side_as_one_by_one(tmp_path):
    paths = []
    for index, size in enumerate((0, 1, (1 << 20) + 1, 1 << 20, 3 << 20, 5)):
        paths.append(tmp_path / f"f{index}")
        paths[-1].write_bytes(bytes([index]) * size)
    assert digests.sha256_files(paths) == {path: digests.sha256_file(path) for path in paths}
    assert digests.sha256_files([]) == {}
    with pytest.raises(FileNotFoundError):
        digests.sha256_files([tmp_path / "none"])
