"""What a result was measured on, in one place: the machine, its settings, and the libraries."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from typing import TYPE_CHECKING, Any

from vggdeploy.machine import cpu, files, jetson, limits, nvml

if TYPE_CHECKING:
    from pathlib import Path

LIBRARIES = (
    "vggdeploy", "numpy", "pillow", "openvino", "torch", "onnx", "onnx-ir", "onnxscript",
    "safetensors", "scikit-learn",
)  # fmt: skip
"""What results depend on besides the machine, and what stages are cached by."""

RUNTIMES = ("tensorrt", "tensorrt-rtx-cu13", "pycuda", "nvidia-ml-py", "mlcommons-loadgen")
"""What measurements depend on besides; no stage that is cached does."""


def system(root: Path = files.ROOT) -> dict[str, Any]:
    """CPU, memory, GPUs, limits, system and library versions; None for what the machine does not
    tell.

    Returns:
        what `cpu.facts` says, ``memory_bytes``, ``machine`` (its architecture), ``system``,
        ``python``, ``load_average`` now, ``limits`` (`limits.facts`), ``gpus`` (`nvml.facts`),
        ``jetson`` (`jetson.facts`) and ``libraries`` by version.
    """
    return {
        **cpu.facts(root),
        "memory_bytes": limits.memory(root) or (_memory() if root == files.ROOT else None),
        "load_average": limits.load(root),
        "limits": limits.facts(root),
        "gpus": nvml.facts(),
        "jetson": jetson.facts(root),
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in (*LIBRARIES, *RUNTIMES)},
    }


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def resident(root: Path = files.ROOT) -> int | None:
    """The most memory that this process has held, in bytes: ``VmHWM`` (proc_pid_status(5))."""
    found = re.search(r"^VmHWM:\s*(\d+) kB$", files.text(root / "proc/self/status") or "", re.M)
    return int(found[1]) << 10 if found else None


def version(package: str) -> str | None:
    """The version of an installed package, by its name on the index; None when it is missing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
