"""OpenVINO itself, imported in one place: without its telemetry."""

from __future__ import annotations

import sys
from typing import Any, cast

from vggdeploy.errors import missing_package

_TELEMETRY = "openvino_telemetry"


def load() -> Any:
    """The module ``openvino``.

    Left to itself, ``import openvino`` puts an identifier into the home folder and sends an event to
    Google Analytics (OpenVINO's documentation, "OpenVINO Telemetry"), and a process waits for that
    when it ends. A device that verifies a bundle tells nobody, so the package that sends cannot be
    found meanwhile: OpenVINO has a stub for where it is not installed. Of a process that has
    imported OpenVINO before, nothing changes.

    Raises:
        MissingError: when it is not installed.
    """
    before = sys.modules.get(_TELEMETRY)
    # Python's reference, 5.3.1: a module that is None in sys.modules is not found.
    cast("dict[str, Any]", sys.modules)[_TELEMETRY] = None
    try:
        import openvino
    except ImportError as error:
        raise missing_package("openvino", "openvino", "an OpenVINO target") from error
    finally:
        if before is None:
            sys.modules.pop(_TELEMETRY, None)
        else:
            sys.modules[_TELEMETRY] = before
    return openvino
