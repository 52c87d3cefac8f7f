"""The last-level cache, from folders that look as Linux's do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import machines
import pytest

from vggdeploy.machine import caches

if TYPE_CHECKING:
    from pathlib import Path

Cache = tuple[str, int, str, str]


@pytest.fixture
def cpus(tmp_path: Path) -> Path:
    return machines.write(tmp_path, {"proc/self/status": "Cpus_allowed_list:\t0-1"})


def write(cpus: Path, cpu: int, *found: Cache) -> None:
    for number, (kind, level, size, shared) in enumerate(found):
        folder = cpus / machines.CPU / f"cpu{cpu}" / "cache" / f"index{number}"
        folder.mkdir(parents=True)
        for name, value in zip(
            ("type", "level", "size", "shared_cpu_list"), (kind, level, size, shared), strict=True
        ):
            (folder / name).write_text(f"{value}\n")


def test_a_shared_cache_counts_once(cpus: Path) -> None:
    for cpu in (0, 1):
        write(
            cpus, cpu,
            ("Data", 1, "32K", str(cpu)), ("Instruction", 1, "32K", str(cpu)),
            ("Unified", 2, "512K", str(cpu)), ("Unified", 3, "32768K", "0-1"),
        )  # fmt: skip
    assert caches.last_level_bytes(cpus) == 32 << 20


def test_separate_caches_add_up_and_those_of_other_cpus_do_not_count(cpus: Path) -> None:
    for cpu in (0, 1, 2):
        write(cpus, cpu, ("Unified", 3, "16M", str(cpu)))
    assert caches.last_level_bytes(cpus) == 32 << 20


def test_instructions_are_no_data(cpus: Path) -> None:
    write(cpus, 0, ("Data", 1, "32K", "0"), ("Instruction", 1, "64K", "0"))
    assert caches.last_level_bytes(cpus) == 32 << 10


def test_a_board_with_two_levels(cpus: Path) -> None:
    for cpu in (0, 1):
        write(cpus, cpu, ("Data", 1, "64K", str(cpu)), ("Unified", 2, "1024K", "0-3"))
    assert caches.last_level_bytes(cpus) == 1 << 20


@pytest.mark.parametrize("size", ["", "none", "0K"])
def test_what_is_not_told_is_not_known(cpus: Path, size: str) -> None:
    assert caches.last_level_bytes(cpus) is None
    write(cpus, 0, ("Unified", 3, size, "0-1"))
    assert caches.last_level_bytes(cpus) is None


def test_without_affinity_every_cpu_counts(cpus: Path) -> None:
    (cpus / "proc/self/status").unlink()
    (cpus / machines.CPU / "cpufreq").mkdir(parents=True)
    for cpu in (0, 7):
        write(cpus, cpu, ("Unified", 3, "1G", str(cpu)))
    assert caches.last_level_bytes(cpus) == 2 << 30
