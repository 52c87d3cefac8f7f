"""This machine: what a result was measured on, and what its CPU can do."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

LIBRARIES = (
    "vggdeploy", "numpy", "pillow", "openvino", "torch", "onnx", "onnx-ir", "onnxscript",
    "safetensors", "scikit-learn",
)  # fmt: skip
"""What results depend on besides the machine."""

_ISA = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
    "sve",
    "bf16",
)
"""CPU flags that decide how fast 8-bit and 16-bit arithmetic is."""


def system() -> dict[str, Any]:
    """CPU, memory, system and library versions; None for what the machine does not tell."""
    model, flags = _cpu()
    return {
        "cpu": model,
        "isa": [name for name in _ISA if name in flags],
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_bytes": _memory(),
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in LIBRARIES},
    }


def saturates() -> bool:
    """Whether this CPU adds pairs of 8-bit products in 16 bits that saturate: x86 without VNNI."""
    flags = _cpu()[1]
    x86 = platform.machine().lower() in ("x86_64", "amd64", "i386", "i686")
    return x86 and bool(flags) and not any("vnni" in flag or "amx_int8" in flag for flag in flags)


def _cpu() -> tuple[str, frozenset[str]]:
    """Model name and flags, from Linux's /proc/cpuinfo; what Python knows elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine(), frozenset()
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    # On Arm the name of the CPU is missing, and boards say theirs.
    name = fields.get("model name") or fields.get("Model") or _board() or platform.processor()
    # Arm calls its flags features, and instruction sets are named there as here.
    return name or platform.machine(), frozenset(
        (fields.get("flags") or fields.get("Features") or "").split()
    )


def _board() -> str:
    try:
        text = Path("/proc/device-tree/model").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return text.strip("\0\n ")


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def version(package: str) -> str | None:
    """The version of an installed package, by its name on the index; None when it is missing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
