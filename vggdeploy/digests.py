"""Digests: one way to hash files, folders and settings."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

_CHUNK = 1 << 20
_THREADS = 4
"""Files that are hashed side by side: beyond, memory is what limits it."""


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read a mebibyte at a time."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        view = memoryview(bytearray(_CHUNK))
        while count := file.readinto(view):
            digest.update(view[:count])
    return digest.hexdigest()


def sha256_files(paths: Collection[Path]) -> dict[Path, str]:
    """Hexadecimal SHA-256 of each file, hashed side by side, the largest first.

    A file is hashed from its beginning to its end, so the largest one is what it takes.
    """
    from concurrent.futures import ThreadPoolExecutor

    ordered = sorted(paths, key=lambda path: path.stat().st_size, reverse=True)
    with ThreadPoolExecutor(max_workers=_THREADS) as pool:
        return dict(zip(ordered, pool.map(sha256_file, ordered), strict=True))


def sha256_json(value: Any) -> str:
    """Hexadecimal SHA-256 of a JSON value in its one canonical spelling."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
