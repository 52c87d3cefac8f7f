"""The stage cache: what a stage made, kept under the digest of everything it was made from.

Entries are checked against their recorded digests before they are used, so a damaged one is made
anew; one that a power cut has emptied too, so that nothing waits for the disk here. The cache lives in ``$VGGDEPLOY_CACHE``, else ``$XDG_CACHE_HOME/vggdeploy``, else
``~/.cache/vggdeploy``, and the entries unused for longest go when it outgrows
``$VGGDEPLOY_CACHE_LIMIT`` bytes. A job has a lock on the index of each entry that it uses, for as
long as it lives, and no entry goes that somebody has a lock on.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import re
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vggdeploy import atomic, digests, locks, machine
from vggdeploy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

LIMIT = 8 << 30
"""Bytes kept by default: six builds of VGG16."""

_MAKERS = (
    "vggdeploy",
    "vggdeploy.benchmarks",
    "vggdeploy.calib",
    "vggdeploy.demo",
    "vggdeploy.export",
    "vggdeploy.machine",
    "vggdeploy.targets",
)

_INDEX = "entry.json"
_NAME = re.compile(r"\.?([0-9a-f]{32})(~[0-9a-f]{16}\.(?:partial|old))?")
"""An entry's, or of what is made of it, replaces it, or was left when that was killed; see `atomic`.
Nothing else in the folder is ours."""

_IN_USE_SECONDS = 3600
"""An entry used within the hour stays too: not every file system has locks."""


@dataclass(frozen=True)
class Entry:
    """A stage's files, and whether they were there already.

    Attributes:
        path: the folder.
        digest: one digest over all files, which the next stage's key is made from.
    """

    path: Path
    digest: str
    cached: bool


class Cache:
    """Entries below one folder."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or default_root()
        self._used: dict[Path, int] = {}
        weakref.finalize(self, _release, self._used)

    def stage(self, name: str, inputs: Mapping[str, Any], make: Callable[[Path], None]) -> Entry:
        """The files of stage `name` for `inputs`, made by `make(folder)` unless they are there.

        This package's own code and the libraries it stands on are among what a result depends on.

        Args:
            name: the stage; a folder of that name holds its entries.
            inputs: a JSON-ready mapping of everything the result depends on.
            make: writes files into the folder it is given.
        """
        final = (
            self.root
            / name
            / digests.sha256_json({"stage": name, "environment": environment(), **inputs})[:32]
        )
        atomic.recover(final)
        self._hold(final)
        files = _checked(final, inputs)
        if files is not None:
            with atomic.writing(final):
                os.utime(final)
            return Entry(final, digests.sha256_json(files), cached=True)
        # A damaged entry gives way, and never one that another process made in the meantime and
        # may be reading.
        with atomic.folder(
            final, replace=lambda: _checked(final, inputs) is None, lasting=False
        ) as work:
            make(work)
            (work / _INDEX).write_text(_index(inputs, describe(work)))
        self._hold(final)
        self._prune()
        # Another process may have been faster, with bytes of its own where a tool is not
        # deterministic: what counts is what is there.
        published = json.loads((final / _INDEX).read_text())["files"]
        return Entry(final, digests.sha256_json(published), cached=False)

    def size(self) -> int:
        """Bytes of all entries, and of what is being made or was left."""
        return sum(size for _, _, size in self._folders())

    def _hold(self, final: Path) -> None:
        """Keep others from pruning an entry, where there is one."""
        lock = None
        with contextlib.suppress(OSError):  # who cannot read it has no use for it
            lock = locks.take(final / _INDEX, shared=True)
        if lock is not None:
            locks.release(self._used.get(final, -1))
            self._used[final] = lock

    def _folders(self) -> list[tuple[float, Path, int]]:
        """When each folder of ours was last used, and its bytes."""
        found = []
        for folder in self.root.glob("*/*"):
            if not _NAME.fullmatch(folder.name):
                continue
            try:
                size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
                found.append((folder.stat().st_mtime, folder, size))
            except FileNotFoundError:
                continue  # another process pruned it between the listing and the look
        return found

    def _prune(self) -> None:
        """Remove what killed jobs left, and the entries unused for longest where there is too much."""
        for left in self.root.glob("*/.*"):
            if (name := _NAME.fullmatch(left.name)) and name[2]:
                atomic.recover(left.with_name(name[1]))
        now = time.time()
        # A time to come is one of a clock that was wrong, and says as little as one long gone.
        entries = sorted(
            ((abs(now - used), path, size) for used, path, size in self._folders()), reverse=True
        )
        surplus = sum(size for _, _, size in entries) - _limit()
        for age, path, size in entries:
            if surplus <= 0 or age < _IN_USE_SECONDS:
                return
            # What is being made is another job's.
            if not path.name.startswith(".") and path not in self._used and _remove(path):
                surplus -= size


def _remove(entry: Path) -> bool:
    """Remove an entry unless another job has a lock on it; whether it is gone."""
    index = entry / _INDEX
    with contextlib.suppress(OSError):  # what is not ours to read
        lock = locks.take(index, wait=False, blind=True)
        if lock is not None or not index.exists():
            atomic.discard(entry)
            locks.release(-1 if lock is None else lock)
    return not entry.exists()


def _release(used: dict[Path, int]) -> None:
    for lock in used.values():
        locks.release(lock)


@functools.cache
def environment() -> str:
    """One digest over this package's source and the versions of the libraries it stands on."""
    found: list[tuple[str, str, str | None]] = []
    for part in _MAKERS:
        spec = importlib.util.find_spec(part)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            for file in sorted(Path(folder).glob("*.py")):
                found.append((part, file.name, digests.sha256_file(file)))
    found += [("library", name, machine.version(name)) for name in machine.LIBRARIES]
    return digests.sha256_json(found)


def default_root() -> Path:
    """The cache's folder on this machine.

    Raises:
        ConfigError: when the home folder that it would be in is not known.
    """
    own = os.environ.get("VGGDEPLOY_CACHE")
    try:
        if own:
            return Path(own).expanduser().absolute()
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as error:  # a user whom the system does not know, without HOME
        raise ConfigError(
            "there is no place for the cache",
            got=str(error).rstrip("."),
            expected="a home folder, or a folder in VGGDEPLOY_CACHE",
            fix="set VGGDEPLOY_CACHE to the path of a folder",
        ) from error
    return Path(base) / "vggdeploy"


def describe(folder: Path) -> dict[str, dict[str, Any]]:
    """Digest and size of each file below a folder, by its path in it."""
    return {
        file.relative_to(folder).as_posix(): {
            "sha256": digests.sha256_file(file),
            "size": file.stat().st_size,
        }
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def _index(inputs: Mapping[str, Any], files: Mapping[str, Any]) -> str:
    return json.dumps({"inputs": dict(inputs), "files": files}, sort_keys=True)


def _checked(final: Path, inputs: Mapping[str, Any]) -> dict[str, dict[str, Any]] | None:
    """The files of an entry that is whole, to the byte of its index; None when it is absent or
    damaged."""
    try:
        said = (final / _INDEX).read_text()
        files = describe(final)
    except (OSError, ValueError):
        return None
    # Another process may have pruned it between the two looks.
    whole = files.pop(_INDEX, None) is not None and said == _index(inputs, files)
    return files if whole else None


def _limit() -> int:
    text = os.environ.get("VGGDEPLOY_CACHE_LIMIT", str(LIMIT))
    if not text.isdecimal():
        raise ConfigError(
            "VGGDEPLOY_CACHE_LIMIT is wrong",
            got=repr(text),
            expected="a number of bytes",
            fix=f"unset it, or set it to a number such as {LIMIT}",
        )
    return int(text)
