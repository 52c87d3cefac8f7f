"""Temperatures and throttling, of machines laid out as files."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import machines
import pytest
from nvml_double import Nvml

from vggdeploy import machine
from vggdeploy.machine import State

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def no_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)


def test_every_sensor_by_its_name(tmp_path: Path) -> None:
    assert machine.temperatures(machines.laptop(tmp_path)) == {
        "nvme/Composite": 38.85, "coretemp/Package id 0": 61.0, "coretemp/temp2": 59.0,
        "x86_pkg_temp": 61.0,
    }  # fmt: skip


def test_two_of_a_name_are_both_told_in_order(tmp_path: Path) -> None:
    found = machine.temperatures(machines.server(tmp_path))
    assert list(found.items()) == [("k10temp/Tctl", 48.125), ("k10temp/Tctl #2", 51.0)]


def test_a_zone_that_is_off_has_no_temperature(tmp_path: Path) -> None:
    assert machine.temperatures(machines.jetson(tmp_path)) == {
        "cpu-thermal": 47.156, "tj-thermal": 48.0,
    }  # fmt: skip


def test_gpus_are_sensors_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml({}, {"Temperature": None}))
    assert machine.temperatures(tmp_path) == {"gpu0": 55.0}
    assert machine.state(tmp_path).temperature_c == {"gpu0": 55.0}


def test_an_empty_root_has_no_state(tmp_path: Path) -> None:
    said = machine.state(tmp_path)
    assert said == State()
    assert machine.throttling(said, said) == []


def test_a_state_is_json(tmp_path: Path) -> None:
    said = machine.state(machines.laptop(tmp_path)).to_json()
    assert json.loads(json.dumps(said))["clock_hz"] == 3_200_000_000


@pytest.mark.parametrize("make", [machines.laptop, machines.raspberry_pi, machines.jetson])
def test_a_quiet_machine_does_not_throttle(tmp_path: Path, make: Any) -> None:
    """Old events, running fans, and heat alone are none."""
    root = make(tmp_path)
    assert machine.throttling(machine.state(root), machine.state(root)) == []


@pytest.mark.parametrize(
    ("make", "files", "said"),
    [
        (machines.laptop, {f"{machines.CPU}/cpu2/thermal_throttle/core_throttle_count": 8},
         "a core was throttled by heat, 5 times"),
        (machines.laptop, {f"{machines.CPU}/cpu0/thermal_throttle/package_throttle_count": 9},
         "the CPU was throttled by heat, 2 times"),
        (machines.container, {"sys/fs/cgroup/cpu.stat": "nr_periods 9\nnr_throttled 11"},
         "the container's CPU quota held it up, 7 times"),
        (machines.laptop, {"sys/class/thermal/cooling_device0/cur_state": 2},
         "the cooling device Processor is at step 2"),
        (machines.jetson, {"sys/class/hwmon/hwmon2/oc3_event_cnt": 6},
         "throttled by over-current (oc3), 4 times"),
        (machines.jetson, {"sys/class/thermal/cooling_device1/cur_state": 1},
         "the cooling device cpu-throttle-alert is at step 1"),
        (machines.raspberry_pi,
         {"sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled": "f000a"},
         "held back by a capped clock; held back by the soft temperature limit"),
        (machines.raspberry_pi, {"sys/class/hwmon/hwmon1/in0_lcrit_alarm": 1},
         "held back by under-voltage"),
        (machines.raspberry_pi, machines.per_cpu(4, {"cpufreq/scaling_cur_freq": 1200000}),
         "the cores' clock fell from 1.50 to 1.20 GHz"),
    ],
)  # fmt: skip
def test_throttling(tmp_path: Path, make: Any, files: dict[str, Any], said: str) -> None:
    root = make(tmp_path)
    before = machine.state(root)
    machines.write(root, files)
    assert "; ".join(machine.throttling(before, machine.state(root))) == said


def test_every_core_counts_and_its_threads_once(tmp_path: Path) -> None:
    root = machines.laptop(tmp_path)

    def count(cpu: int, times: int) -> None:
        machines.write(
            root, {f"{machines.CPU}/cpu{cpu}/thermal_throttle/core_throttle_count": times}
        )

    count(0, 100)
    count(4, 100)
    before = machine.state(root)
    for cpu in (1, 5):  # one core's threads; another has been throttled more often long since
        count(cpu, 4)
    after = machine.state(root)
    assert machine.throttling(before, after) == ["a core was throttled by heat, 1 times"]


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (0x04, []),  # the power limit as it was set
        (0x20, ["GPU 0 is slowed down by heat (software)"]),
        (0x88, ["GPU 0 is slowed down by a hardware slowdown", "GPU 0 is slowed down by a power brake"]),
        (None, []),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["CurrentClocksEventReasons", "CurrentClocksThrottleReasons"])
def test_a_gpu_that_is_slowed_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: int | None, said: list[str], name: str
) -> None:
    gpu: dict[str, Any] = {"CurrentClocksEventReasons": None, name: mask}
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(gpu))
    assert machine.throttling(State(), machine.state(tmp_path)) == said


def test_a_clock_may_rise_and_may_fall_a_little() -> None:
    before = State(clock_hz=4_000_000_000)
    for now, throttled in ((3_800_000_000, False), (3_799_999_999, True), (5_000_000_000, False)):
        after = replace(before, clock_hz=now)
        assert bool(machine.throttling(before, after)) is throttled
    assert machine.throttling(before, State()) == machine.throttling(State(), before) == []


def test_a_counter_that_comes_or_goes_is_no_event() -> None:
    some = State(counts={"a core was throttled by heat": 5})
    assert machine.throttling(State(), some) == machine.throttling(some, State()) == []
