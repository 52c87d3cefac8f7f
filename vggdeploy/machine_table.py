"""The machine as lines of a table: what each fact is called, and its value with its unit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

NOT_TOLD = "not told"


def rows(system: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The rows of a result's ``system``; what most machines do not have is left out where it is
    not."""
    found = [("CPU", _cpu(system))]
    if system.get("board") and not system.get("jetson"):  # whose model it is
        found.append(("board", str(system["board"])))
    found += [
        ("8- and 16-bit instructions", ", ".join(system["isa"]) or "none known"),
        ("clock", _clock(system.get("frequency_hz") or {})),
        (
            "governor",
            f"{system.get('governor') or NOT_TOLD}, turbo {_switch(system.get('turbo'))}, "
            f"SMT {_switch(system.get('smt'))}",
        ),
    ]
    if system.get("microcode"):
        found.append(("microcode", str(system["microcode"])))
    found += [
        ("memory", _gib(system.get("memory_bytes"))),
        ("limits", _limits(system.get("limits") or {})),
        ("load", _load(system.get("load_average"))),
    ]
    found += [(f"GPU {index}", _gpu(gpu)) for index, gpu in enumerate(system.get("gpus") or [])]
    if system.get("jetson"):
        found.append(("Jetson", _jetson(system["jetson"])))
    found.append(("system", f"{system['system']}, Python {system['python']}"))
    return found


def heat(temperature_c: Mapping[str, float]) -> str:
    """The hottest sensor, and of how many."""
    if not temperature_c:
        return NOT_TOLD
    name = max(temperature_c, key=temperature_c.__getitem__)
    others = f", of {len(temperature_c)} sensors" if len(temperature_c) > 1 else ""
    return f"{temperature_c[name]:.1f} °C ({name}{others})"


def warming(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """What the sensor that is hottest in the end said before; empty where none tells both."""
    both = {name: value for name, value in after.items() if name in before}
    if not both:
        return ""
    name = max(both, key=both.__getitem__)
    return f"{before[name]:.1f} to {both[name]:.1f} °C ({name})"


def energy(said: Mapping[str, Any]) -> str:
    """Joules an image, and what they are of."""
    net = said["net_joules_per_image"]
    above = "" if net is None else f", {net:.3g} J above the {said['idle_watts']:.1f} W of idle"
    return (
        f"{said['joules_per_image']:.3g} J an image at {said['watts']:.1f} W{above} "
        f"({said['source']})"
    )


def _cpu(system: Mapping[str, Any]) -> str:
    parts = [str(system["cpu"] or NOT_TOLD), f"{system['cores']} cores"]
    logical, physical = system.get("logical_cores"), system.get("physical_cores")
    if logical and logical != system["cores"]:
        parts[-1] += f" of {logical}"
    if physical and physical != logical:
        parts.append(f"{physical} physical")
    if system.get("virtual"):
        parts.append("a virtual machine")
    return ", ".join(parts)


def _clock(hz: Mapping[str, Any]) -> str:
    parts = []
    if hz.get("current"):
        parts.append(f"{_ghz(hz['current'])} now")
    if hz.get("min") and hz.get("max"):
        parts.append(f"{_ghz(hz['min'])} to {_ghz(hz['max'])}")
    if hz.get("allowed_max") and hz["allowed_max"] != hz.get("max"):
        parts.append(f"held to {_ghz(hz['allowed_max'])}")
    return ", ".join(parts) or NOT_TOLD


def _limits(limits: Mapping[str, Any]) -> str:
    parts = []
    if limits.get("cpus") is not None:
        parts.append(f"{limits['cpus']:g} CPUs")
    if limits.get("memory_bytes") is not None:
        parts.append(_gib(limits["memory_bytes"]))
    if limits.get("cpuset"):
        parts.append(f"cpuset {limits['cpuset']}")
    said = ", ".join(parts) or ("none" if limits.get("cgroup") else NOT_TOLD)
    return said + (f" (in {limits['container']})" if limits.get("container") else "")


def _load(load: list[float] | None) -> str:
    return NOT_TOLD if load is None else " ".join(f"{value:.2f}" for value in load)


def _gpu(gpu: Mapping[str, Any]) -> str:
    clock = gpu["clock_hz"]
    parts = [str(gpu["name"])]
    if gpu["memory_bytes"]:
        parts.append(_gib(gpu["memory_bytes"]))
    if gpu["driver"]:
        parts.append(f"driver {gpu['driver']}")
    if clock["sm_max"]:
        now = f" ({_ghz(clock['sm'])} now)" if clock["sm"] else ""
        parts.append(f"{_ghz(clock['sm_max'])}{now}")
    if gpu["power_limit_w"]:
        parts.append(f"{gpu['power_limit_w']:g} W")
    return ", ".join(parts)


def _jetson(jetson: Mapping[str, Any]) -> str:
    mode = jetson["power_mode"]
    if mode is None and jetson["power_mode_id"] is not None:
        mode = f"number {jetson['power_mode_id']}"
    clocks = jetson["gpu_hz"]
    parts = [
        str(jetson["model"] or "model not told"),
        f"JetPack {jetson['jetpack'] or NOT_TOLD}",
        f"L4T {jetson['l4t'] or NOT_TOLD}",
        f"power mode {mode or NOT_TOLD}",
    ]
    if clocks["min"] and clocks["max"]:
        parts.append(f"GPU {_ghz(clocks['min'])} to {_ghz(clocks['max'])}")
    return ", ".join(parts)


def _switch(state: bool | None) -> str:
    return NOT_TOLD if state is None else "on" if state else "off"


def _ghz(hz: float) -> str:
    return f"{hz / 1e9:.2f} GHz"


def _gib(size: float | None) -> str:
    return NOT_TOLD if size is None else f"{size / 2**30:.1f} GiB"
