"""Standard output and error of a process: what cannot be shown takes nothing else along.

A reader may be gone (``| head``), a device full, a terminal hung up, and a character one that the
encoding lacks. What a program has done is done all the same, and its exit code says what it found.
"""

from __future__ import annotations

import errno
import io
import select
import sys
from typing import TYPE_CHECKING, Any, TextIO

from vggdeploy.errors import MissingError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _Lasting(io.RawIOBase):
    """Writes to another stream until that fails; from then on to nowhere.

    Args:
        stream: where to.
        asked: whether what is written was asked for, and not being able to is an error: but for a
            reader that is gone, which has what it wanted.
    """

    def __init__(self, stream: io.RawIOBase, *, asked: bool) -> None:
        self._stream, self._asked = stream, asked
        self._lost = False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def write(self, data: ReadableBuffer) -> int:
        size = memoryview(data).nbytes
        if self._lost:
            return size
        try:
            # A pipe that another process made one that does not wait is waited for.
            while (written := self._stream.write(data)) is None:
                select.select([], [self._stream], [])
        except OSError as error:
            self._lost = True
            if self._asked and error.errno != errno.EPIPE:
                raise MissingError(
                    "standard output cannot be written",
                    got=error.strerror,
                    expected="room for all that was asked for",
                    fix="free some space, or send it elsewhere",
                ) from error
            return size
        return written


def secure() -> None:
    """Make the streams of this process ones that last, for as long as it runs. One that was closed
    before it began stays closed."""
    sys.stdout = _secured(sys.stdout, asked=True)
    sys.stderr = _secured(sys.stderr, asked=False)


def _secured(stream: TextIO | None, *, asked: bool) -> TextIO | None:
    if stream is None:
        return None
    raw: Any = getattr(stream.buffer, "raw", stream.buffer)
    return io.TextIOWrapper(
        io.BufferedWriter(_Lasting(raw, asked=asked)),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=True,
    )
