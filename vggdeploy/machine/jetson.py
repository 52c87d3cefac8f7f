"""Jetsons: the module, its JetPack and Jetson Linux, and the power mode it is in.

Source: NVIDIA's "Jetson Linux Developer Guide", Platform Power and Performance (nvpmodel,
devfreq of the GPU).
"""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING, Any

from vggdeploy.machine import files
from vggdeploy.machine.cpu import board

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

_SECONDS = 3.0
"""nvpmodel answers within one; one that hangs shall not hold up a measurement."""


def ask(words: Sequence[str]) -> str | None:
    """What a program prints; None where it is missing, fails or does not end in time."""
    try:
        done = subprocess.run(
            list(words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace")


def facts(
    root: Path = files.ROOT, run: Callable[[Sequence[str]], str | None] = ask
) -> dict[str, Any] | None:
    """What this Jetson is; None where it is none.

    Args:
        root: of the file system.
        run: runs ``nvpmodel -q``, where its status file does not say the mode.

    Returns:
        ``model``, ``l4t`` (such as ``36.4.3``), ``jetpack``, ``power_mode`` (nvpmodel's name, such
        as ``MAXN``), ``power_mode_id``, ``gpu_governor`` and ``gpu_hz`` (``current``, ``min`` and
        ``max`` of its devfreq; equal ones are fixed by jetson_clocks).
    """
    compatible = files.text(root / "proc/device-tree/compatible") or ""
    release = files.text(root / "etc/nv_tegra_release")
    if release is None and "nvidia,tegra" not in compatible:
        return None
    mode_id, mode = _power_mode(root, run)
    gpu = _gpu(root)
    return {
        "model": board(root),
        "l4t": _l4t(release),
        "jetpack": _jetpack(root),
        "power_mode": mode,
        "power_mode_id": mode_id,
        "gpu_governor": None if gpu is None else files.text(gpu / "governor"),
        "gpu_hz": {
            key: None if gpu is None else files.number(gpu / f"{name}_freq")
            for key, name in (("current", "cur"), ("min", "min"), ("max", "max"))
        },
    }


def _l4t(release: str | None) -> str | None:
    found = re.search(r"R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)", release or "")
    return f"{found[1]}.{found[2]}" if found else None


def _jetpack(root: Path) -> str | None:
    """The version of the package nvidia-jetpack, from what dpkg has installed."""
    try:
        with (root / "var/lib/dpkg/status").open(encoding="utf-8", errors="replace") as lines:
            inside = False
            for line in lines:
                key, _, value = line.rstrip("\n").partition(": ")
                if key == "Package":
                    inside = value == "nvidia-jetpack"
                elif inside and key == "Version":
                    return value
    except OSError:
        pass
    return None


def _power_mode(
    root: Path, run: Callable[[Sequence[str]], str | None]
) -> tuple[int | None, str | None]:
    """nvpmodel's mode, its number and its name."""
    said = re.search(r"pmode:(\d+)", files.text(root / "var/lib/nvpmodel/status") or "")
    if said:
        number = int(said[1])
        names = re.findall(
            r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>",
            files.text(root / "etc/nvpmodel.conf") or "",
        )
        return number, next((name for ident, name in names if int(ident) == number), None)
    answer = run(["nvpmodel", "-q"]) or ""
    name = re.search(r"NV Power Mode:\s*(\S+)", answer)
    last = re.search(r"^\s*(\d+)\s*$", answer, re.MULTILINE)
    return int(last[1]) if last else None, name[1] if name else None


def _gpu(root: Path) -> Path | None:
    """The GPU's devfreq: ``17000000.gpu``, ``17000000.ga10b``, ``gpu-gpc-0``."""
    for folder in files.numbered(root / "sys/class/devfreq", "*"):
        if re.search(r"gpu|ga10b|gv11b|gp10b", folder.name):
            return folder
    return None
