"""Files and folders that appear whole or not at all.

Everything is written beside its final name and renamed into place, once the disk has all of it: so
it is whole after a power cut too. A writer holds a lock on what it is writing, which the kernel lets
go when the process dies in whatever way; what is there without a lock was left by a killed process,
and the next one that writes to the same name clears it away.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import os
import re
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from vggdeploy import digests, locks
from vggdeploy.errors import ConfigError, MissingError, VggdeployError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PARTIAL, _OLD = ".partial", ".old"
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DENIED = {
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS, errno.EPIPE, errno.ELOOP, errno.ENAMETOOLONG), ""
    ),
    errno.EBUSY: ", as of a mount point",
    errno.EXDEV: ", as of a folder in a lower layer of an overlay: a copy of it can be replaced",
    errno.EINVAL: ", as of a name that this file system does not take",
}
"""What the system says of a place that cannot be written, and what that may mean."""

_LONG = 100
"""Bytes of a name that has room for what is added to it: file systems take 255, eCryptfs 143."""

_ATTEMPTS = 16
"""Renames to try when other processes keep replacing the same folder."""

_HERE, _EXCHANGE = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE of Linux's renameat2(2)."""


@contextlib.contextmanager
def folder(
    final: Path, *, replace: bool | Callable[[], bool] = False, lasting: bool = True
) -> Iterator[Path]:
    """A private folder to write into, renamed to `final` when the block ends without an error.

    Args:
        final: where the folder shall be; its parent is made.
        replace: whether a folder that is there already gives way; of a link, the folder that it
            leads to. If not, it stays, and the new one is thrown away. A function is asked when
            the new one is whole, while no other writer can replace what is there; it may raise an
            error in place of an answer.
        lasting: whether it is to be whole after a power cut too; else it may then have files that
            are empty.

    Raises:
        MissingError: when the disk is full.
        ConfigError: when the place cannot be written, see `require_writable`.
    """
    with writing(final):
        _require_replaceable(final)
        final = _behind(final)
        with _fresh(final, _make_folder) as work:
            yield work
            _finish(work, 0o777, lasting=lasting)
            _publish(work, final, replace)
            if lasting:
                _sync(final.parent)


@contextlib.contextmanager
def successor(final: Path) -> Iterator[Path]:
    """A private folder to write into, which takes the place of the folder `final` when the block
    ends without an error. No other writer can replace that in the meantime, so that what is read
    there in the block is what gives way.

    Raises:
        MissingError: when the disk is full.
        ConfigError: when the place cannot be written, or there is no folder.
    """
    with writing(final), contextlib.ExitStack() as stack:
        final = _behind(final)
        while (lock := locks.take(final)) is None:  # another writer replaced it
            if not final.is_dir():
                raise ConfigError(
                    f"folder {final} cannot be replaced",
                    got="nothing there",
                    expected="a folder",
                    fix="check the path",
                )
        stack.callback(locks.release, lock)
        work = stack.enter_context(_fresh(final, _make_folder))
        yield work
        _finish(work, 0o777)
        if not _exchange(work, final):
            with contextlib.suppress(FileNotFoundError):
                _set_aside(final, stack)
            work.rename(final)
        _sync(final.parent)


@contextlib.contextmanager
def _fresh(final: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """Something new beside `final`, locked; what has that name when the block ends goes."""
    _make_parent(final)
    recover(final)
    with contextlib.ExitStack() as stack:
        lock = None
        while lock is None:
            work = _beside(final, _PARTIAL)
            stack.callback(_remove, work)
            make(work)
            lock = locks.take(work)
        stack.callback(locks.release, lock)
        yield work


def _behind(place: Path) -> Path:
    """What a link leads to; a path that is none as it is."""
    if not place.is_symlink():
        return place
    with contextlib.suppress(FileNotFoundError):  # it leads to what is not there yet
        place.stat()  # fails of links in a circle
    return Path(os.path.realpath(place))


def _make_folder(place: Path) -> None:
    place.mkdir(mode=0o700)


def _make_file(place: Path) -> None:
    place.touch(mode=0o600, exist_ok=False)


def _finish(work: Path, mode: int | None, *, lasting: bool = True) -> None:
    """Give what is whole its modes, less the mask, and have the disk hold it, all that is in it
    first."""
    if mode is not None:
        work.chmod(mode & ~_umask())
    if lasting:
        for each in sorted(work.rglob("*"), reverse=True):
            _sync(each)
        _sync(work)


def _sync(place: Path) -> None:
    """Wait until the disk holds what a file or a folder is now, where the system can be asked to."""
    if not locks.HERE:
        return
    with contextlib.suppress(PermissionError):  # a folder that can be written and not read
        handle = os.open(place, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno not in locks.LACKING:
                raise
        finally:
            os.close(handle)


def _remove(left: Path) -> None:
    if left.is_dir():
        shutil.rmtree(left, ignore_errors=True)
    else:
        left.unlink(missing_ok=True)


def discard(place: Path) -> None:
    """Remove a folder, of which no part has its name when this is killed."""
    left = _beside(place, _PARTIAL)
    with contextlib.suppress(OSError):  # another process did it, or it cannot be removed
        place.rename(left)
        _remove(left)


def _publish(work: Path, final: Path, replace: bool | Callable[[], bool]) -> None:
    with contextlib.ExitStack() as aside:
        for attempt in range(_ATTEMPTS):
            try:
                work.rename(final)
                return
            except OSError as error:
                if error.errno not in _TAKEN or attempt == _ATTEMPTS - 1:
                    raise
                if not replace:
                    return
            lock = locks.take(final)
            if lock is None:  # another writer replaced it
                continue
            aside.callback(locks.release, lock)
            if callable(replace) and not replace():
                return
            if _exchange(work, final):
                return
            with contextlib.suppress(FileNotFoundError):  # where nothing can be locked
                _set_aside(final, aside)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change places in one step, so that there is one at any moment; False where
    the system or the file system cannot."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):  # another system than Linux, or an old one
        return False
    done: int = rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE)
    return done == 0


def _set_aside(final: Path, aside: contextlib.ExitStack) -> None:
    """Move what is at `final` out of the way until `aside` is done; were this process killed before
    the new folder is in place, the next one would put it back."""
    old = _beside(final, _OLD)
    final.rename(old)
    aside.callback(_settle, old, final)


def _settle(old: Path, final: Path) -> None:
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
    else:
        old.rename(final)


@contextlib.contextmanager
def alone(file: Path) -> Iterator[None]:
    """Read a file and write it anew with nobody else doing so: who asks for the same file, or
    another of its folder, waits until the block ends. Of a link, the file that it leads to.

    Raises:
        ConfigError: when its folder cannot be made.
    """
    with writing(file), contextlib.ExitStack() as stack:
        file = Path(os.path.realpath(file))
        lock = None
        while lock is None:  # where the folder is gone again
            _make_parent(file)
            lock = locks.take(file.parent)
        stack.callback(locks.release, lock)
        yield


def write_text(path: Path, text: str) -> None:
    """Write a text file whole; see `write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes, *, private: bool = False, replace: bool = True) -> None:
    """Write a file whole; see `file`."""
    with file(path, private=private, replace=replace) as stream:
        stream.write(content)


@contextlib.contextmanager
def file(final: Path, *, private: bool = False, replace: bool = True) -> Iterator[BinaryIO]:
    """A file to write and read, renamed to `final` when the block ends without an error. Until then
    nobody else can read what there is of it.

    Args:
        final: where it shall be; its parent is made. Of a link, the file that it leads to.
        private: whether nobody else may read it then either.
        replace: whether a file that is there already gives way; else there must be none, which
            takes a file system that has links.

    Raises:
        MissingError: when the disk is full.
        ConfigError: when the place cannot be written, or there is a file that is not to give way.
    """
    with writing(final):
        _require_replaceable(final)
        final = _behind(final)
        with _fresh(final, _make_file) as work:
            with work.open("r+b") as stream:
                yield stream
            _finish(work, None if private else 0o666)
            if replace:
                work.replace(final)
            else:
                os.link(work, final)  # refused where there is something
            _sync(final.parent)


def require_writable(place: Path) -> None:
    """Make sure, before any long work, that a file or folder `place` can be put where it shall be.
    Folders that it lies in need not be there yet, and are not made.

    Raises:
        MissingError: when the disk is full.
        ConfigError: when nothing can be written there, or what is there cannot be replaced: a
            device or the like, a mount point, or the folder that this runs in.
    """
    with writing(place):
        _require_replaceable(place)
        final = _behind(place).absolute()
        probe = _beside(_existing(final.parent) / final.name, _PARTIAL)
        probe.touch()
        probe.unlink(missing_ok=True)


def _require_replaceable(place: Path) -> None:
    """Nothing takes the place of what others stand on."""
    if place.name in ("", ".."):
        got = "the folder that the command runs in, or one around it"
        fix = "give a name in it, or run the command elsewhere"
    elif place.exists() and not (place.is_file() or place.is_dir()):
        got = "a device, a pipe or a socket"
        fix = "choose another place; standard output is -"
    elif _is_mounted(place):
        got = "a mount point"
        fix = "choose another place, such as one in a folder that is mounted"
    else:
        return
    raise ConfigError(
        f"{place} cannot be written",
        got=got,
        expected="what can be replaced, or a free path",
        fix=fix,
    )


def _is_mounted(place: Path) -> bool:
    """Whether a folder or a file is mounted at a place."""
    real = os.path.realpath(place)
    try:
        mounts = Path("/proc/self/mountinfo").read_bytes()
    except OSError:
        return os.path.ismount(real)
    # proc(5): the fifth field is where, with blanks and backslashes in octal.
    said = re.sub(rb"[ \t\n\\]", lambda odd: b"\\%03o" % odd[0][0], os.fsencode(real))
    return said in (line.split()[4] for line in mounts.splitlines())


@contextlib.contextmanager
def writing(place: Path) -> Iterator[None]:
    """Map what the operating system says about writing to `place` to an error with a fix."""
    try:
        yield
    except VggdeployError:
        raise
    except OSError as error:
        if error.errno in _FULL:
            raise no_space(place) from error
        if error.errno in _DENIED or isinstance(
            error, NotADirectoryError | IsADirectoryError | FileExistsError | FileNotFoundError
        ):
            raise ConfigError(
                f"{place} cannot be written",
                got=f"{error.strerror}{_DENIED.get(error.errno or 0, '')}",
                expected="a place that can be written to",
                fix="choose another place or name with --out, --json or VGGDEPLOY_CACHE",
            ) from error
        raise


def no_space(place: Path) -> MissingError:
    """The error for a full disk; raised too for libraries that do not pass on what the system says
    when they cannot write."""
    free = shutil.disk_usage(_existing(place)).free
    return MissingError(
        f"no space left to write {place}",
        got=f"{free / 1e6:,.0f} MB free",
        expected="room for all of it",
        fix="free some space, or choose another disk with --out or VGGDEPLOY_CACHE",
    )


def _make_parent(place: Path) -> None:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:  # below /proc, say, or a dangling link
        raise ConfigError(
            f"{place} cannot be written",
            got=f"no folder {place.parent}, and none can be made",
            expected="a folder that exists, or can be made",
            fix="choose another place with --out, --json or VGGDEPLOY_CACHE",
        ) from error


def _existing(place: Path) -> Path:
    return next(parent for parent in (place, *place.absolute().parents) if parent.exists())


def _umask() -> int:
    """Asked of Linux: where it has to be set to be known, files that other threads make meanwhile
    have the modes of no mask."""
    try:
        said = re.search(rb"^Umask:\s*([0-7]+)$", Path("/proc/self/status").read_bytes(), re.M)
    except OSError:
        said = None
    if said is not None:
        return int(said[1], 8)
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _prefix(final: Path) -> str:
    """What the names of all that is beside `final` begin with; a long name is told by its digest, so
    that these are not too long where it is not."""
    name = final.name
    return f".{digests.sha256_json(name)[:32] if len(os.fsencode(name)) > _LONG else name}~"


def _beside(final: Path, ending: str) -> Path:
    return final.parent / f"{_prefix(final)}{secrets.token_hex(8)}{ending}"


def recover(final: Path) -> None:
    """Clear what killed processes left; put back a folder that one of them had set aside."""
    if not locks.HERE:  # nothing is cleared away there
        return
    for left in final.parent.glob(f"{glob.escape(_prefix(final))}{'[0-9a-f]' * 16}.*"):
        if left.suffix not in (_PARTIAL, _OLD):
            continue
        with contextlib.suppress(OSError):  # a link, or gone in the meantime
            lock = locks.take(left, wait=False)
            if lock is None:
                continue
            try:
                if left.suffix == _OLD and not final.exists():
                    left.rename(final)
                else:
                    _remove(left)
            finally:
                locks.release(lock)
