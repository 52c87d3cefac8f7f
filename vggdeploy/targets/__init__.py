"""Targets by name. A new one is a file with a class and a line here; no backend is imported until
its target is asked for."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from vggdeploy.contracts import DIALECTS, Target
from vggdeploy.errors import ConfigError


@dataclass(frozen=True)
class Entry:
    """Where a target's class is, and what it is made with.

    Attributes:
        module: the backend's file in this folder.
        class_name: a `Target` in it.
        precision: one of `budget.PRECISIONS`.
        dialect: a key of `contracts.DIALECTS`; None for a float target.
        summary: one line for ``doctor``.
    """

    module: str
    class_name: str
    precision: str
    dialect: str | None
    summary: str


REGISTRY: dict[str, Entry] = {
    "torch-fp32": Entry("torch_eager", "Torch", "fp32", None, "the reference itself"),
    "ov-fp32": Entry("openvino", "OpenVINO", "fp32", None, "OpenVINO, single precision"),
    "ov-bf16": Entry("openvino", "OpenVINO", "bf16", None, "OpenVINO, bfloat16"),
    "ov-fp16": Entry("openvino", "OpenVINO", "fp16", None, "OpenVINO, half-precision weights"),
    "ov-int8": Entry("openvino", "OpenVINO", "int8", "openvino", "OpenVINO, 8-bit integers"),
    "ov-int8-w4": Entry(
        "openvino",
        "OpenVINO",
        "int8-w4",
        "openvino-w4",
        "OpenVINO, 8-bit convolutions, 4-bit weights in fully connected layers",
    ),
    "trt-fp32": Entry("tensorrt", "TensorRT", "fp32", None, "TensorRT, single precision"),
    "trt-fp16": Entry("tensorrt", "TensorRT", "fp16", None, "TensorRT, half precision"),
    "trt-int8": Entry("tensorrt", "TensorRT", "int8", "tensorrt", "TensorRT, 8-bit integers"),
}


def get(name: str) -> Target:
    """The target called `name`.

    Raises:
        ConfigError: for an unknown name, listing the known ones.
    """
    if name not in REGISTRY:
        raise ConfigError(
            "unknown target",
            got=repr(name),
            expected="one of " + ", ".join(REGISTRY),
            fix="choose one with --target",
        )
    entry = REGISTRY[name]
    module = importlib.import_module(f"{__name__}.{entry.module}")
    target: Target = getattr(module, entry.class_name)(
        name, entry.precision, DIALECTS[entry.dialect] if entry.dialect else None
    )
    return target
