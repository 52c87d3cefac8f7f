"""Small files of /proc and /sys: None for one that is missing, forbidden or says nothing of use."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT = Path("/")


def text(path: Path) -> str | None:
    """A file's text without what surrounds it; None where it cannot be read or is empty.

    Reading a sensor can fail at any time: its device is off, or its file is for root alone.
    """
    try:
        found = path.read_bytes()
    except OSError:
        return None
    return found.decode("utf-8", errors="replace").strip("\0\r\n\t ") or None


def number(path: Path) -> int | None:
    """The whole number that a file holds."""
    found = text(path)
    try:
        return None if found is None else int(found)
    except ValueError:
        return None


def numbers(paths: Iterable[Path]) -> list[int]:
    """The numbers of those files that hold one."""
    return [found for path in paths if (found := number(path)) is not None]


def numbered(folder: Path, pattern: str) -> list[Path]:
    """What matches `pattern` in a folder, in the order of the numbers in the names: cpu2, cpu10."""
    try:
        found = list(folder.glob(pattern))
    except OSError:
        return []
    return sorted(found, key=lambda path: [int(part) for part in re.findall(r"\d+", path.name)])


def cpu_list(said: str | None) -> set[int] | None:
    """The CPUs of a list in the kernel's form, such as ``0-3,8``; None where it is no such list."""
    if said is None:
        return None
    found: set[int] = set()
    for part in said.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdecimal() or not (last or first).isdecimal():
            return None
        found.update(range(int(first), int(last or first) + 1))
    return found
