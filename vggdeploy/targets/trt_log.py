"""What TensorRT says while it works: kept for messages of ours, and never printed."""

from __future__ import annotations

import contextlib
import gc
import re
from typing import TYPE_CHECKING, Any

from vggdeploy.targets import trt_layers

if TYPE_CHECKING:
    from collections.abc import Iterator

_PLACE = re.compile(r"\s*\bIn \w+ at \S+:\d+")
"""Where in TensorRT's source an error was found, which helps nobody here."""

_SHOWN = 6
"""Log lines and parser errors in one message."""


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """No garbage collection meanwhile, for every call that may log.

    TensorRT calls its logger with a lock held that destructors of its objects take too: a
    collection that the logger's own Python code sets off, and that finds an old builder, would
    wait for itself for ever.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def log(trt: Any) -> Any:
    """A logger that keeps errors and warnings for our own messages, and prints nothing."""

    class Log(trt.ILogger):  # type: ignore[misc]  # the base is the flavour's
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []
            self.errors: list[str] = []
            self.listed = ""

        def log(self, severity: Any, text: str) -> None:
            kinds = trt.ILogger.Severity
            if severity == kinds.VERBOSE and text.startswith(trt_layers.LISTING):
                self.listed = text
            if severity in (kinds.ERROR, kinds.INTERNAL_ERROR):
                self.errors.append(text)
            if severity in (kinds.ERROR, kinds.INTERNAL_ERROR, kinds.WARNING):
                self.lines.append(text)

        def said(self) -> str:
            """The first of the errors, each once."""
            lines = list(dict.fromkeys(_PLACE.sub("", line) for line in self.errors))
            more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
            return "; ".join(lines[:_SHOWN] + more)

    return Log()
