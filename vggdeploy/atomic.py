"""Files and folders that appear whole or not at all.

Everything is written beside its final name and renamed into place. What a killed process left
behind is cleared away by the next one that writes to the same name.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import socket
from typing import TYPE_CHECKING

from vggdeploy.errors import ConfigError, MissingError, VggdeployError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_PARTIAL, _OLD = ".partial", ".old"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextlib.contextmanager
def folder(final: Path, *, replace: bool = False) -> Iterator[Path]:
    """A private folder to write into, renamed to `final` when the block ends without an error.

    Args:
        final: where the folder shall be; its parent is made.
        replace: whether a folder that is there already gives way. If not, it stays, and the new
            one is thrown away.

    Raises:
        MissingError: when the disk is full.
        ConfigError: when the place cannot be written.
    """
    with writing(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        _recover(final)
        work = final.parent / f"{_prefix(final)}{_owner()}{_PARTIAL}"
        work.mkdir(mode=0o700)
    try:
        with writing(final):
            yield work
            work.chmod(0o777 & ~_umask())
            _publish(work, final, replace)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _publish(work: Path, final: Path, replace: bool) -> None:
    old = final.parent / f"{_prefix(final)}{_owner()}{_OLD}"
    if replace and final.exists():
        final.rename(old)
    try:
        work.rename(final)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or replace:
            raise
    shutil.rmtree(old, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole.

    Raises:
        MissingError: when the disk is full.
        ConfigError: when the place cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        work = path.parent / f"{_prefix(path)}{_owner()}{_PARTIAL}"
        try:
            work.write_text(text, encoding="utf-8")
            work.replace(path)
        finally:
            work.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(place: Path) -> Iterator[None]:
    """Map what the operating system says about writing to `place` to an error with a fix."""
    try:
        yield
    except VggdeployError:
        raise
    except OSError as error:
        if error.errno in _FULL:
            free = shutil.disk_usage(_existing(place)).free
            raise MissingError(
                f"no space left to write {place}",
                got=f"{free / 1e6:,.0f} MB free",
                fix="free some space, or choose another disk with --out or VGGDEPLOY_CACHE",
            ) from error
        if error.errno in _DENIED or isinstance(error, NotADirectoryError | FileExistsError):
            raise ConfigError(
                f"{place} cannot be written",
                got=error.strerror,
                fix="choose another place with --out, --json or VGGDEPLOY_CACHE",
            ) from error
        raise


def _existing(place: Path) -> Path:
    return next(parent for parent in (place, *place.absolute().parents) if parent.exists())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _prefix(final: Path) -> str:
    return f".{final.name}~"


def _owner() -> str:
    """Names the process that a leftover belonged to: host, process id, and a random tail."""
    return f"{socket.gethostname()}~{os.getpid()}~{secrets.token_hex(4)}"


def _recover(final: Path) -> None:
    """Clear what killed processes of this host left; put back a folder they had set aside."""
    for left in final.parent.glob(f"{_prefix(final)}*"):
        host, _, rest = left.name.removeprefix(_prefix(final)).partition("~")
        pid = rest.partition("~")[0]
        if host != socket.gethostname() or not pid.isdigit() or _alive(int(pid)):
            continue
        if left.suffix == _OLD and not final.exists():
            left.rename(final)
        elif left.suffix in (_PARTIAL, _OLD):
            shutil.rmtree(left, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
