"""Locks on files and folders, which the kernel lets go when a process dies in whatever way."""

from __future__ import annotations

import errno
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

HERE = sys.platform != "win32"
"""Windows has no locks on folders."""

LACKING = (errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
"""What a file system says that has no locks, or does not sync folders; NFS may have none for what is
not open for writing."""


def take(
    place: Path, *, shared: bool = False, wait: bool = True, blind: bool | None = None
) -> int | None:
    """A handle that locks a folder or a file, which is no link; None when that was gone before the
    lock was had.

    Args:
        place: the folder or the file.
        shared: whether others may have such a lock too.
        wait: until others let it go; else None while they have it.
        blind: whether to go on where the file system has no locks; as `wait` when None.

    Raises:
        OSError: when it cannot be opened, as a link cannot.
    """
    if not HERE:
        return -1
    try:
        # A pipe is opened at once, and not when somebody writes to it.
        handle = os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    held = False
    try:
        ours = _flock(handle, shared=shared, wait=wait)
        held = (wait if blind is None else blind) if ours is None else ours
        held = held and os.path.samestat(os.fstat(handle), place.stat())
    except FileNotFoundError:
        held = False
    finally:
        if not held:
            os.close(handle)
    return handle if held else None


def release(handle: int) -> None:
    """Let a lock go."""
    if handle >= 0:
        os.close(handle)


def _flock(handle: int, *, shared: bool, wait: bool) -> bool | None:
    """Lock an open file or folder; whether it is ours now, None where there are no locks."""
    import fcntl

    how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(handle, how if wait else how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in LACKING:
            raise
        return None
    return True
