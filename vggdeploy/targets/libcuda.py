"""What PyCUDA leaves out of the CUDA driver's interface: captured graphs, and the stack of contexts.

Functions and their arguments are those of NVIDIA's "CUDA Driver API" (Stream Management, Graph
Management, Context Management). The library is the one that PyCUDA has loaded.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from ctypes import c_char_p, c_int, c_ulonglong, c_void_p
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"

_ARGUMENTS: dict[str, list[Any]] = {
    "cuGetErrorString": [c_int, ctypes.POINTER(c_char_p)],
    "cuCtxPushCurrent_v2": [c_void_p],
    "cuCtxPopCurrent_v2": [ctypes.POINTER(c_void_p)],
    "cuStreamBeginCapture_v2": [c_void_p, c_int],
    "cuStreamEndCapture": [c_void_p, ctypes.POINTER(c_void_p)],
    "cuGraphInstantiateWithFlags": [ctypes.POINTER(c_void_p), c_void_p, c_ulonglong],
    "cuGraphLaunch": [c_void_p, c_void_p],
    "cuGraphDestroy": [c_void_p],
    "cuGraphExecDestroy": [c_void_p],
}

_THREAD_LOCAL = 1
"""CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: what other threads do on the device does not end a capture.
The driver's numbers are its binary interface, and stay."""


class CallError(Exception):
    """A function of the driver that has failed, or that the driver does not have."""


@functools.cache
def _function(name: str) -> Any:
    """A function of the driver, which returns its error as a number.

    Raises:
        CallError: when the driver is older than the function.
    """
    try:
        found = getattr(ctypes.CDLL(LIBRARY), name)
    except (AttributeError, OSError) as error:
        raise CallError(f"the CUDA driver has no {name}") from error
    found.argtypes = _ARGUMENTS[name]
    found.restype = c_int
    return found


def _call(name: str, *arguments: Any) -> None:
    """Call a function of the driver.

    Raises:
        CallError: with the driver's own words.
    """
    code = _function(name)(*arguments)
    if code:
        text = c_char_p()
        _function("cuGetErrorString")(code, text)
        said = (text.value or b"unknown error").decode()
        raise CallError(f"{name.partition('_')[0]} failed: {said}")


class Graph:
    """Work captured from a stream, launched again with one call.

    Args:
        stream: the handle of a stream that is not the default one.
        work: queues the work on that stream.

    Raises:
        CallError: when the work or the driver allows no capture. The stream captures no more.
    """

    def __init__(self, stream: int, work: Callable[[], None]) -> None:
        self._stream = stream
        self._made: int | None = None
        captured, made = c_void_p(), c_void_p()
        _call("cuStreamBeginCapture_v2", stream, _THREAD_LOCAL)
        try:
            work()
        except BaseException:
            # What ends it may itself say that the capture has failed, which is known.
            _function("cuStreamEndCapture")(stream, captured)
            if captured.value:
                _function("cuGraphDestroy")(captured)
            raise
        _call("cuStreamEndCapture", stream, captured)
        try:
            _call("cuGraphInstantiateWithFlags", made, captured, 0)
        finally:
            _function("cuGraphDestroy")(captured)
        self._made = made.value

    def launch(self) -> None:
        """Queue the work on the stream that it was captured from.

        Raises:
            CallError: when the driver refuses.
        """
        _call("cuGraphLaunch", self._made, self._stream)

    def free(self) -> None:
        """Destroy it; only the first call does something."""
        made, self._made = self._made, None
        if made is not None:
            _function("cuGraphExecDestroy")(made)


def without_contexts(work: Callable[[], None]) -> None:
    """Do `work` while this thread has no current context, and let it leave none.

    What was current before is so again afterwards.
    """
    pop, push = _function("cuCtxPopCurrent_v2"), _function("cuCtxPushCurrent_v2")

    def pop_all() -> list[int]:
        found = []
        context = c_void_p()
        while pop(context) == 0 and context.value:
            found.append(context.value)
        return found

    before = pop_all()
    try:
        work()
    finally:
        pop_all()
        for context in reversed(before):
            push(context)
