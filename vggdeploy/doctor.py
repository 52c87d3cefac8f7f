"""What this machine can do: packages, targets, devices, and where things are kept."""

from __future__ import annotations

import importlib.util
from typing import Any

from vggdeploy import machine, targets
from vggdeploy.benchmarks import power
from vggdeploy.cache import Cache
from vggdeploy.errors import ConfigError
from vggdeploy.targets import openvino_module

_PACKAGES = {
    "torch": "export",
    "onnx": "export",
    "onnxscript": "export",
    "onnx-ir": "export",
    "safetensors": "export",
    "openvino": "openvino",
    "scikit-learn": "demo",
    "tensorrt": "tensorrt",
    "tensorrt-rtx-cu13": "tensorrt-rtx",
    "pycuda": "tensorrt",
    "nvidia-ml-py": "nvml",
}
"""Optional packages, and the extra that brings each."""


def doctor() -> dict[str, Any]:
    """Facts about this machine, JSON-ready; nothing heavy is imported but OpenVINO's runtime."""
    return {
        "kind": "doctor",
        "system": machine.system(),
        "temperature_c": machine.temperatures(),
        "power": _power(),
        "saturates": machine.saturates(),
        "packages": {
            name: {"version": machine.version(name), "extra": extra}
            for name, extra in _PACKAGES.items()
        },
        "targets": {name: _target(name) for name in targets.REGISTRY},
        "openvino_devices": _openvino_devices(),
        "cache": _cache(),
    }


def _cache() -> dict[str, Any]:
    """Where the cache is and what it holds, or why there is none."""
    try:
        cache = Cache()
    except ConfigError as error:
        return {"path": None, "bytes": 0, "reason": str(error)}
    return {"path": str(cache.root), "bytes": cache.size(), "reason": None}


def _power() -> dict[str, str | None]:
    """What tells the CPU's or the board's power, or why nothing does."""
    with power.source() as (found, why):
        return {"source": None if found is None else found.name, "reason": why or None}


def _target(name: str) -> dict[str, Any]:
    target = targets.get(name)
    here = target.availability()
    runs = target.runs_on("CPU")
    return {
        "available": here.ok,
        "runs_here": runs.ok,
        "reason": runs.reason,
        "fix": runs.fix,
        # Without the backend a portable bundle can be built, and verified by emulation.
        "emulated": target.keeps_graph and not runs.ok and targets.get("ov-fp32").availability().ok,
        "summary": targets.REGISTRY[name].summary,
    }


def _openvino_devices() -> dict[str, Any]:
    """Each OpenVINO device, its full name, and the precisions it computes in."""
    if importlib.util.find_spec("openvino") is None:
        return {}
    core = openvino_module.load().Core()
    return {
        device: {
            "name": core.get_property(device, "FULL_DEVICE_NAME"),
            "precisions": sorted(core.get_property(device, "OPTIMIZATION_CAPABILITIES")),
        }
        for device in core.available_devices
    }
