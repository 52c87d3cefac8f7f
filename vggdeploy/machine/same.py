"""Whether two results are of one machine; those that are not are never mixed unasked.

::

    require_same(a: Mapping, b: Mapping, *, across_machines: bool, speed: bool = True)
        -> tuple[str, ...]

with two results, or two ``system`` of results, returns the differences as cautions where
`across_machines` allows them, and raises `ResultError` naming each key and both values where not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vggdeploy import forms
from vggdeploy.errors import ResultError

_KEYS: dict[str, tuple[str, ...]] = {
    "CPU model": ("cpu",),
    "board": ("board",),
    "ISA": ("isa",),
    "architecture": ("machine",),
    "Jetson": ("jetson", "model"),
    "Jetson Linux": ("jetson", "l4t"),
    "JetPack": ("jetson", "jetpack"),
}
"""What the machine is."""

_SPEED_KEYS: dict[str, tuple[str, ...]] = {
    "cores": ("cores",),
    "physical cores": ("physical_cores",),
    "logical cores": ("logical_cores",),
    "SMT": ("smt",),
    "turbo": ("turbo",),
    "governor": ("governor",),
    "highest clock": ("frequency_hz", "max"),
    "highest allowed clock": ("frequency_hz", "allowed_max"),
    "microcode": ("microcode",),
    "kernel": ("system",),
    "memory": ("memory_bytes",),
    "CPU limit": ("limits", "cpus"),
    "memory limit": ("limits", "memory_bytes"),
    "cpuset": ("limits", "cpuset"),
    "power mode": ("jetson", "power_mode"),
    "power mode number": ("jetson", "power_mode_id"),
    "GPU governor": ("jetson", "gpu_governor"),
    "GPU clock, lowest": ("jetson", "gpu_hz", "min"),
    "GPU clock, highest": ("jetson", "gpu_hz", "max"),
}
"""How it is set, which decides its speed and not what it computes."""

_GPU_KEYS = ("name", "driver", "compute_capability", "mig")
_GPU_SPEED_KEYS = ("power_limit_w", "memory_bytes", "ecc")

_BACKENDS = {
    "ov": ("openvino",),
    "trt": ("tensorrt", "tensorrt-rtx-cu13", "pycuda"),
    "torch": ("torch",),
}
"""The libraries that a target's figures depend on, by the beginning of its name."""

_MEMORY_SHARE = 0.02
"""A kernel keeps some memory for itself, and another start of it some other amount."""


@dataclass(frozen=True)
class Difference:
    """One thing that two machines do not have in common.

    Attributes:
        key: what it is, in words.
        a, b: what each has; None where it was not recorded or is not told.
    """

    key: str
    a: Any
    b: Any

    def __str__(self) -> str:
        return f"{self.key}: {_said(self.a)} and {_said(self.b)}"


def require_same(
    a: Mapping[str, Any], b: Mapping[str, Any], *, across_machines: bool, speed: bool = True
) -> tuple[str, ...]:
    """Make sure that two results are of one machine, set the same way, with the same backend.

    Args:
        a, b: results with a ``system`` (those of ``run``: of their ``bench``), or such systems
            themselves. The libraries of the targets that they name are compared, all backends'
            where they name none; NVIDIA's GPUs, where TensorRT is among them.
        across_machines: allows differences; they are then returned.
        speed: whether times are compared. Without, what only decides speed may differ.

    Returns:
        each difference as a caution, such as ``governor: powersave and performance``.

    Raises:
        ResultError: when they differ and may not, or one does not say its machine; with every key
            and both values.
    """
    try:
        found = differences(a, b, speed=speed)
    except (TypeError, AttributeError) as error:
        raise ResultError(
            "a result does not say its machine",
            got=f"{type(error).__name__}: {error}",
            expected="JSON that a command's --json wrote",
            fix="run the command again with this version",
        ) from error
    if found and not across_machines:
        first, others = found[0], found[1:]
        more = f" (also {'; '.join(map(str, others))})" if others else ""
        raise ResultError(
            f"the results are of different machines or settings: {first.key}",
            got=f"{_said(first.a)} and {_said(first.b)}{more}",
            expected="one machine",
            fix="measure both on one, or give --across-machines",
        )
    return tuple(f"different machines or settings, {difference}" for difference in found)


def differences(
    a: Mapping[str, Any], b: Mapping[str, Any], *, speed: bool = True
) -> tuple[Difference, ...]:
    """What differs between the machines of two results; see `require_same`."""
    ours, theirs = _system(a), _system(b)
    if ours is None or theirs is None:
        # Whether they are of one machine cannot be told, and then they are not.
        return (Difference("machine", *(side and side["cpu"] for side in (ours, theirs))),)
    keys = {**_KEYS, **(_SPEED_KEYS if speed else {})}
    pairs = [(key, forms.at(ours, path), forms.at(theirs, path)) for key, path in keys.items()]
    if "tensorrt" in _libraries(a, b):  # other targets do not run on what NVML knows
        pairs += _gpu_pairs(ours, theirs, speed)
    pairs += [
        (name, forms.at(ours, ("libraries", name)), forms.at(theirs, ("libraries", name)))
        for name in _libraries(a, b)
    ]
    return tuple(Difference(key, x, y) for key, x, y in pairs if not _equal(key, x, y))


def _system(result: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """A result's machine; None where it was not recorded."""
    found: Any = result
    if found.get("kind") == "run":
        found = found.get("bench") or found.get("verify") or {}
    # A system has a "system" of its own: the kernel, which is text.
    if isinstance(found.get("system"), Mapping):
        found = found["system"]
    return found if "cpu" in found else None


def _gpu_pairs(
    a: Mapping[str, Any], b: Mapping[str, Any], speed: bool
) -> list[tuple[str, Any, Any]]:
    """GPUs in order; a machine without NVML has none to compare."""
    ours, theirs = a.get("gpus") or [], b.get("gpus") or []
    if len(ours) != len(theirs):
        named = [
            ", ".join(str(gpu.get("name")) for gpu in side) or "none" for side in (ours, theirs)
        ]
        return [("GPUs", named[0], named[1])]
    return [
        (f"GPU {index} {key}".replace("_", " "), x.get(key), y.get(key))
        for index, (x, y) in enumerate(zip(ours, theirs, strict=True))
        for key in (*_GPU_KEYS, *(_GPU_SPEED_KEYS if speed else ()))
    ]


def _libraries(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """The libraries of the targets of both results."""
    targets = [str(side["target"]) for side in (a, b) if side.get("target")]
    found = [
        name
        for target in targets
        for name in _BACKENDS.get(target.partition("-")[0], ())
    ]  # fmt: skip
    every = [name for names in _BACKENDS.values() for name in names]
    return list(dict.fromkeys(found if targets else every))


def _equal(key: str, a: Any, b: Any) -> bool:
    if key == "memory" and a and b:
        return bool(abs(a - b) <= _MEMORY_SHARE * max(a, b))
    return bool(a == b)


def _said(value: Any) -> str:
    if value is None:
        return "not told"
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, int) and value >= 10**6:
        return f"{value:,}"
    return repr(value) if isinstance(value, str) else str(value)
