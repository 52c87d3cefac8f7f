"""OpenVINO itself, imported in one place: without its telemetry."""

from __future__ import annotations

import contextlib
import sys
import threading
from typing import TYPE_CHECKING, Any, cast

from vggdeploy.errors import missing_package

if TYPE_CHECKING:
    from collections.abc import Iterator

_TELEMETRY, _ABSENT = "openvino_telemetry", object()
_loading = threading.Lock()


def load() -> Any:
    """The module ``openvino``.

    Left to itself, ``import openvino`` puts an identifier into the home folder and sends an event to
    Google Analytics (OpenVINO's documentation, "OpenVINO Telemetry"), and a process waits for that
    when it ends. A device that verifies a bundle tells nobody, so the package that sends is hidden
    while OpenVINO is imported, which has a stub for where it is not installed. In a process that has
    imported OpenVINO already, its telemetry stays as it is.

    Raises:
        MissingError: when it is not installed.
    """
    with _loading, contextlib.nullcontext() if "openvino" in sys.modules else _hidden():
        try:
            import openvino
        except ImportError as error:
            raise missing_package("openvino", "openvino", "an OpenVINO target") from error
    return openvino


def silence() -> None:
    """Hide the package that sends for the rest of this process, from others that use it too."""
    # Python's reference, 5.3.1: a module that is None in sys.modules is not found.
    cast("dict[str, Any]", sys.modules).setdefault(_TELEMETRY, None)


@contextlib.contextmanager
def _hidden() -> Iterator[None]:
    modules = cast("dict[str, Any]", sys.modules)
    before = modules.get(_TELEMETRY, _ABSENT)
    modules[_TELEMETRY] = None
    try:
        yield
    finally:
        if before is _ABSENT:
            del modules[_TELEMETRY]
        else:
            modules[_TELEMETRY] = before
