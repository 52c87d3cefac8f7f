"""What the CPU did meanwhile, from files like Linux's."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from vggdeploy.benchmarks import watch
from vggdeploy.benchmarks.watch import Look, Window, between

if TYPE_CHECKING:
    from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A machine of four CPUs of which this process may use two."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/status").write_text("Cpus_allowed_list:\t1-2\n")
    (tmp_path / "proc/stat").write_text(
        "cpu  1 1 1 1 1 1 1 1 1 1\n"
        "cpu0 9000 9 9 9 9 9 9 9 0 0\n"
        f"cpu1 {100 * TICK} {1 * TICK} {10 * TICK} {999 * TICK} {99 * TICK} 0 {2 * TICK} {3 * TICK} 5 5\n"
        f"cpu2 {200 * TICK} 0 {20 * TICK} 5 5 {4 * TICK} 0 0 0 0\n"
        "cpu3 9000 9 9 9 9 9 9 9 0 0\nintr 1 2 3\n"
    )
    return tmp_path


def test_files_of_the_own_cpus_are_read(machine: Path) -> None:
    found = watch.look(lambda: 5.0, machine)
    # User, nice, system, interrupts and stolen time; idle, waiting and guests are not in it.
    assert found.busy_s == 100 + 1 + 10 + 2 + 3 + 200 + 20 + 4
    assert (found.seconds, found.cpus) == (5.0, 2)


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    found = watch.look(lambda: 5.0, tmp_path)
    assert found.busy_s is None
    assert between(found, Look(6.0, None, 9.0, 2)) == Window(1.0)


def test_the_share_of_others_is_what_is_not_ours() -> None:
    before = Look(10.0, 500.0, 40.0, cpus=2)
    # 12 s of two CPUs were used in 10 s, 8 of them by this process: 4 of 20 by others.
    assert between(before, Look(20.0, 512.0, 48.0, 2)).others == 0.2
    # Counted apart from the whole, ours may seem to be more than it.
    assert between(before, Look(20.0, 507.0, 48.0, 2)).others == 0.0
    assert between(before, Look(20.0, 600.0, 48.0, 2)).others == 1.0


def test_this_machine_is_looked_at() -> None:
    if not os.path.exists("/proc/stat"):  # noqa: PTH110
        pytest.skip("no Linux")
    first, second = watch.look(), watch.look()
    assert first.busy_s is not None
    assert second.busy_s is not None
    assert second.busy_s >= first.busy_s > 0
    assert second.own_s >= first.own_s > 0
