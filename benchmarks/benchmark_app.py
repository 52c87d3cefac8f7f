"""OpenVINO's own ``benchmark_app`` on the engine of a bundle, as a command."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vggdeploy.bundle import Bundle

MAIN = (
    "from vggdeploy.targets import openvino_module; openvino_module.load(); "
    "from openvino.tools.benchmark.main import main; main()"
)
"""What the script ``benchmark_app`` does, whether or not it is on the path, without telemetry."""


def command(opened: Bundle, hint: str, seconds: float, *more: str) -> list[str]:
    """The command that measures the bundle's engine on the CPU, one image a query.

    Args:
        opened: of an OpenVINO target.
        hint: ``latency`` or ``throughput``.
        seconds: for how long; whole ones, one at least.
        more: of its other flags.
    """
    shape = ",".join(str(side or 1) for side in opened.manifest["input"]["shape"])
    return [
        sys.executable, "-c", MAIN, "-m", str(opened.engine[0].resolve()), "-d", "CPU",
        "-hint", hint, "-t", str(max(1, round(seconds))), "-shape", f"[{shape}]", *more,
    ]  # fmt: skip
