"""Joules of machines laid out as files, on a clock that moves when told to."""

from __future__ import annotations

import importlib
import os
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import machines
import pytest
from nvml_double import Nvml

from vggdeploy import bundle
from vggdeploy.benchmarks import BenchOptions, energy, power
from vggdeploy.benchmarks.conditions import Conditions
from vggdeploy.benchmarks.energy import Meter
from vggdeploy.contracts import Probe

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# The package has a function of the module's name.
bench_module = importlib.import_module("vggdeploy.benchmarks.bench")

RAPL = "sys/class/powercap/intel-rapl"
RANGE = 262_143_328_850


@pytest.fixture(autouse=True)
def no_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)


@pytest.fixture
def meter(tmp_path: Path, clock: Any) -> Callable[..., Meter]:
    """A meter of the machine at `tmp_path`, read when it is told to."""

    def make(*arguments: Any, **options: Any) -> Meter:
        return Meter(*arguments, root=tmp_path, clock=clock, watched=False, **options)

    return make


def energy_uj(root: Path, value: int, zone: str = "0") -> None:
    machines.write(root, {f"{RAPL}:{zone}/energy_uj": value})


# RAPL


def test_packages_alone_are_counted(tmp_path: Path, clock: Any, meter: Any) -> None:
    """The cores are in the package, psys is around it, and MMIO's package is the same one."""
    machines.laptop(tmp_path)
    watched = meter()
    with watched:
        clock.now += 2.0
        for zone in ("0", "0:0", "1"):
            energy_uj(tmp_path, 31_000_000, zone)
    assert watched.note == ""
    assert watched.result(10) == {
        "joules_per_image": 3.0, "watts": 15.0, "idle_watts": None, "idle_seconds": None,
        "net_joules_per_image": None, "source": "RAPL, package-0", "seconds": 2.0, "images": 10,
    }  # fmt: skip


def test_packages_add_up_and_start_over_each(tmp_path: Path, clock: Any, meter: Any) -> None:
    machines.server(tmp_path)  # both full but for 0.61 and 1.11 J
    watched = meter()
    with watched:
        clock.now += 1.0
        energy_uj(tmp_path, 10_000_000, "0")
        energy_uj(tmp_path, 65_532_600_000, "1")
    assert watched.result(1)["joules_per_image"] == pytest.approx(10.610987 + 1.1)
    assert watched.result(1)["source"] == "RAPL, package-0 and package-1"


def test_a_counter_that_starts_over_twice_is_followed(
    tmp_path: Path, clock: Any, meter: Any
) -> None:
    machines.laptop(tmp_path)
    energy_uj(tmp_path, RANGE - 1_000_000)
    with meter() as watched:
        for value in (4_000_000, RANGE - 2_000_000, 3_000_000):
            clock.now += 10.0
            energy_uj(tmp_path, value)
            watched.sample()
    assert watched.result(1)["joules_per_image"] == pytest.approx(RANGE / 1e6 + 1 + 3)


def test_a_counter_without_a_range_is_not_guessed(tmp_path: Path, clock: Any, meter: Any) -> None:
    machines.laptop(tmp_path)
    (tmp_path / f"{RAPL}:0/max_energy_range_uj").unlink()
    with meter() as watched:
        clock.now += 1.0
        energy_uj(tmp_path, 5)
    assert watched.result(1) is None
    assert "started over" in watched.note


def test_what_is_for_root_alone_is_said(tmp_path: Path, meter: Any) -> None:
    machines.laptop(tmp_path)
    # Tests may run as root, whom no mode keeps out: a folder cannot be read by anybody.
    (tmp_path / f"{RAPL}:0/energy_uj").unlink()
    (tmp_path / f"{RAPL}:0/energy_uj").mkdir()
    with meter() as watched:
        pass
    assert watched.result(1) is None
    assert watched.note == (
        "RAPL is there, and for root alone: run as root, or "
        "sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_forbidden_counter_is_said(tmp_path: Path, meter: Any) -> None:
    machines.laptop(tmp_path)
    (tmp_path / f"{RAPL}:0/energy_uj").chmod(0)
    with meter() as watched:
        pass
    assert "for root alone" in watched.note


def test_a_counter_that_goes_away_leaves_no_figure(tmp_path: Path, clock: Any, meter: Any) -> None:
    machines.laptop(tmp_path)
    with meter() as watched:
        clock.now += 1.0
        energy_uj(tmp_path, 2_000_000)
        watched.sample()
        (tmp_path / f"{RAPL}:0/energy_uj").unlink()
        clock.now += 1.0
    assert (watched.result(1), watched.note) == (None, "RAPL cannot be read")


@pytest.mark.parametrize(("seconds", "told"), [(0.05, False), (0.1, True)])
def test_too_short_a_time_has_no_figure(
    tmp_path: Path, clock: Any, meter: Any, seconds: float, told: bool
) -> None:
    machines.laptop(tmp_path)
    with meter() as watched:
        clock.now += seconds
        energy_uj(tmp_path, 2_000_000)
    assert (watched.result(1) is not None) is told
    assert ("0.05 s are too few for RAPL" in watched.note) is not told


def test_a_part_of_the_block_is_its_own_share(tmp_path: Path, clock: Any, meter: Any) -> None:
    """What warms up or drains is not the samples'."""
    machines.laptop(tmp_path)
    begin = clock.now
    with meter() as watched:
        for watts in (2, 8, 8, 1):
            clock.now += 1.0
            used = int((tmp_path / f"{RAPL}:0/energy_uj").read_text()) + watts * 1_000_000
            energy_uj(tmp_path, used)
            watched.sample()
    said = watched.result(2, begin + 1.0, begin + 3.0)
    assert (said["joules_per_image"], said["watts"], said["seconds"]) == (8.0, 8.0, 2.0)
    # Half of the second of 2 W, and half of that of 8.
    assert watched.result(1, begin + 0.5, begin + 1.5)["joules_per_image"] == pytest.approx(5.0)
    assert watched.result(1)["joules_per_image"] == 19.0


@pytest.mark.parametrize(("begin", "end"), [(-0.1, 1.0), (0.5, 2.1), (1.5, 1.0)])
def test_a_part_that_was_not_seen_has_no_figure(
    tmp_path: Path, clock: Any, meter: Any, begin: float, end: float
) -> None:
    machines.laptop(tmp_path)
    start = clock.now
    with meter() as watched:
        clock.now += 2.0
    assert watched.result(1, start + begin, start + end) is None
    assert watched.note == "what was measured lies outside of what the meter saw"


def test_no_image_has_no_figure(tmp_path: Path, clock: Any, meter: Any) -> None:
    machines.laptop(tmp_path)
    with meter() as watched:
        clock.now += 1.0
    assert (watched.result(0), watched.note) == (None, "no image was computed")


# Idle


def test_idle_is_measured_and_taken_off(tmp_path: Path, clock: Any, meter: Any) -> None:
    machines.laptop(tmp_path)
    watched, slept = meter(), []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock.now += seconds
        energy_uj(tmp_path, 1_000_000 + round(4_000_000 * sum(slept)))

    watched.idle(2.0, sleep)
    assert (watched.idle_watts, watched.idle_seconds) == pytest.approx((4.0, 2.0))
    with watched:
        clock.now += 5.0
        energy_uj(tmp_path, 109_000_000)  # 100 J on
    said = watched.result(20)
    assert said["joules_per_image"] == pytest.approx(5.0)
    assert said["net_joules_per_image"] == pytest.approx((100 - 4 * 5) / 20)
    assert (said["idle_watts"], said["idle_seconds"]) == pytest.approx((4.0, 2.0))


def test_idle_takes_no_time_where_nothing_tells(tmp_path: Path, meter: Any) -> None:
    def sleep(seconds: float) -> None:
        raise AssertionError("waited for nothing")

    watched = meter()
    watched.idle(sleep=sleep)
    assert (watched.idle_watts, watched.note) == (None, "this machine does not tell its power")


def test_idle_ends_on_a_clock_that_stands(tmp_path: Path, meter: Any) -> None:
    machines.laptop(tmp_path)
    watched = meter()
    watched.idle(1.0, lambda seconds: None)
    assert watched.idle_watts is None


# hwmon


def current(root: Path, milliamperes: int, rail: int = 1) -> None:
    machines.write(root, {f"sys/class/hwmon/hwmon1/curr{rail}_input": milliamperes})


def test_a_jetsons_supply_is_integrated(tmp_path: Path, clock: Any, meter: Any) -> None:
    """6 W, then 10 W from the first second on: 8 J by the trapezoid, then 10."""
    machines.jetson(tmp_path)
    with meter("CUDA", {"compute_capability": "8.7", "pci_bus_id": None}) as watched:
        clock.now += 1.0
        current(tmp_path, 2000)
        watched.sample()
        clock.now += 1.0
    said = watched.result(3)
    assert said["source"] == "hwmon, VDD_IN"
    assert said["joules_per_image"] == pytest.approx(18.0 / 3)
    assert said["watts"] == pytest.approx(9.0)


def test_a_jetsons_idle_is_sampled_on_its_way(tmp_path: Path, clock: Any, meter: Any) -> None:
    machines.jetson(tmp_path)
    turns: list[float] = []

    def sleep(seconds: float) -> None:
        turns.append(seconds)
        clock.now += seconds
        current(tmp_path, 1200 + 200 * (len(turns) % 2))  # 6 and 7 W in turn

    watched = meter()
    watched.idle(1.0, sleep)
    assert turns == [0.1] * 10
    assert watched.idle_watts == pytest.approx(6.5)


def relabelled(root: Path, names: list[str]) -> None:
    for number, name in enumerate(names, start=1):
        machines.write(root, {f"sys/class/hwmon/hwmon1/in{number}_label": name})


def test_agx_orins_supplies_are_added(tmp_path: Path, clock: Any, meter: Any) -> None:
    machines.jetson(tmp_path)
    relabelled(tmp_path, ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"])
    with meter() as watched:
        clock.now += 2.0
    said = watched.result(1)
    assert said["source"] == "hwmon, VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0"
    assert said["watts"] == pytest.approx(6.0 + 1.5 + 1.0)


def test_rails_that_are_not_the_whole_are_no_figure(tmp_path: Path, meter: Any) -> None:
    machines.jetson(tmp_path)
    relabelled(tmp_path, ["VDD_GPU_SOC", "VDD_CPU_CV", "VDDQ"])
    with meter() as watched:
        pass
    assert (watched.result(1), watched.note) == (None, "this machine does not tell its power")


def test_a_channel_that_tells_power_itself(tmp_path: Path, clock: Any, meter: Any) -> None:
    """Thor's input is an INA238's, in microwatts."""
    machines.write(tmp_path, {
        "sys/class/hwmon/hwmon3/name": "ina238", "sys/class/hwmon/hwmon3/label": "VIN",
        "sys/class/hwmon/hwmon3/power1_input": 25_500_000,
    })  # fmt: skip
    with meter() as watched:
        clock.now += 1.0
    assert watched.result(1)["watts"] == pytest.approx(25.5)


def test_a_rail_of_another_chip_is_none(tmp_path: Path, meter: Any) -> None:
    machines.jetson(tmp_path)
    machines.write(tmp_path, {"sys/class/hwmon/hwmon1/name": "nct6798"})
    with meter() as watched:
        pass
    assert watched.note == "this machine does not tell its power"


def test_a_rail_that_is_lost_leaves_no_figure(tmp_path: Path, clock: Any, meter: Any) -> None:
    machines.jetson(tmp_path)
    with meter() as watched:
        clock.now += 2.0
        (tmp_path / "sys/class/hwmon/hwmon1/in1_input").unlink()
    assert (watched.result(1), watched.note) == (None, "hwmon, VDD_IN cannot be read")


# NVML

GPU = {"compute_capability": "8.9", "pci_bus_id": "0001:01:00.0"}


def test_a_gpu_counts_its_energy(clock: Any, meter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    said = iter([0, 1_000, 91_000])  # once to see whether it does
    library = Nvml({}, {"TotalEnergyConsumption": lambda: next(said)})
    monkeypatch.setitem(sys.modules, "pynvml", library)
    with meter("0", GPU) as watched:
        clock.now += 3.0
    assert watched.result(9) == {
        "joules_per_image": 10.0, "watts": 30.0, "idle_watts": None, "idle_seconds": None,
        "net_joules_per_image": None, "source": "NVML, energy of GPU 1", "seconds": 3.0, "images": 9,
    }  # fmt: skip
    assert library.open == 0


def test_a_gpu_that_counts_nothing_tells_its_power(
    clock: Any, meter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = iter([1, 30_000, 50_000, 50_000])
    older = {"TotalEnergyConsumption": None, "PowerUsage": lambda: next(said)}
    monkeypatch.setitem(sys.modules, "pynvml", Nvml({}, older))
    with meter("0", GPU) as watched:
        clock.now += 1.0
        watched.sample()
        clock.now += 1.0
    assert watched.result(1)["joules_per_image"] == pytest.approx(40 + 50)
    assert watched.result(1)["source"] == "NVML, power of GPU 1"


@pytest.mark.parametrize(
    ("library", "facts", "note"),
    [
        (None, GPU, "pip install 'vggdeploy[nvml]'"),
        (Nvml({}, present=False), GPU, "pip install 'vggdeploy[nvml]'"),
        (Nvml({}, {}), {**GPU, "pci_bus_id": "0007:01:00.0"}, "does not tell which"),
        (Nvml({}, {}), {**GPU, "pci_bus_id": None}, "does not tell which"),
        (Nvml(dict.fromkeys(("TotalEnergyConsumption", "PowerUsage"))),
         {**GPU, "pci_bus_id": "0000:01:00.0"}, "this GPU does not tell its power"),
    ],
)  # fmt: skip
def test_a_gpu_that_is_not_told_has_none(
    tmp_path: Path, meter: Any, monkeypatch: pytest.MonkeyPatch, library: Any, facts: Any, note: str
) -> None:
    machines.laptop(tmp_path)  # whose CPU tells its power, which is not the GPU's
    monkeypatch.setitem(sys.modules, "pynvml", library)
    with meter("0", facts) as watched:
        pass
    assert watched.result(1) is None
    assert note in watched.note


def test_a_single_gpu_needs_no_bus(clock: Any, meter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml({"bus": None}))
    with meter("0", {**GPU, "pci_bus_id": None}) as watched:
        clock.now += 1.0
    assert watched.result(1)["source"] == "NVML, energy of GPU 0"


# Which source is whose


@pytest.mark.parametrize(
    ("device", "facts", "name"),
    [
        ("CPU", {}, "RAPL, package-0"),
        ("GPU", {"integrated": True}, "RAPL, package-0"),
        ("GPU", {"integrated": False}, None),
        ("AUTO", {}, None),
    ],
)
def test_a_package_tells_what_is_within_it(
    tmp_path: Path, device: str, facts: dict[str, Any], name: str | None
) -> None:
    with power.source(device, facts, machines.laptop(tmp_path)) as (found, why):
        assert (found and found.name) == name
        assert why == ("" if name else f"nothing on this machine tells the power of {device}")


@pytest.mark.parametrize("make", [machines.raspberry_pi, machines.container])
def test_machines_that_tell_nothing(tmp_path: Path, meter: Any, make: Any) -> None:
    make(tmp_path)
    with meter() as watched:
        pass
    assert (watched.result(1), watched.note) == (None, "this machine does not tell its power")


# The thread


def test_a_thread_reads_on_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its readings move the clock, and leaving waits for it; no time passes."""
    machines.jetson(tmp_path)
    monkeypatch.setattr(power.Gauge, "interval", 0.0)
    seen, ticks = threading.Event(), iter(range(10**9))

    def clock() -> float:
        now = float(next(ticks))
        if now > 5:
            seen.set()
        return now

    meter = Meter(root=tmp_path, clock=clock)
    with meter:
        assert seen.wait(60)
    assert threading.active_count() == 1 or not [
        thread for thread in threading.enumerate() if thread.name == "power"
    ]
    said = meter.result(1)
    assert said is not None
    assert said["seconds"] > 5
    assert said["watts"] == pytest.approx(6.0)


def test_the_thread_ends_with_an_error_of_the_block(tmp_path: Path) -> None:
    machines.jetson(tmp_path)
    with pytest.raises(ZeroDivisionError), Meter(root=tmp_path):
        raise ZeroDivisionError
    assert not [thread for thread in threading.enumerate() if thread.name == "power"]


# Around a measurement


def test_conditions_join_a_result(tmp_path: Path, clock: Any) -> None:
    machines.laptop(tmp_path)

    def sleep(seconds: float) -> None:
        clock.now += seconds
        energy_uj(tmp_path, 6_000_000)  # 5 J

    conditions = Conditions(root=tmp_path, clock=clock, sleep=sleep)
    machines.write(tmp_path, {"proc/loadavg": "9.00 9.00 9.00 1/1 1"})
    with conditions.window():
        clock.now += 4.0
        energy_uj(tmp_path, 106_000_000)
        machines.write(tmp_path, {
            "sys/class/hwmon/hwmon4/temp1_input": 88000,
            f"{machines.CPU}/cpu0/thermal_throttle/core_throttle_count": 5,
        })  # fmt: skip
    said = conditions.to_json(20)
    assert set(said) == {"energy", "energy_note", "temperature_c", "resident_bytes", "system"}
    assert said["energy"]["joules_per_image"] == pytest.approx(5.0)
    assert said["energy"]["net_joules_per_image"] == pytest.approx((100 - 5 * 4) / 20)
    assert said["energy"]["idle_seconds"] == pytest.approx(energy.IDLE_SECONDS)
    assert said["energy_note"] == ""
    heat = said["temperature_c"]
    assert [heat[when]["coretemp/Package id 0"] for when in ("before", "after")] == [61.0, 88.0]
    assert conditions.throttled == ["a core was throttled by heat, 2 times"]
    assert said["system"]["load_average"] == [0.5, 0.25, 0.1]
    assert said["system"]["governor"] == "powersave"


def test_conditions_of_a_measurement_that_was_interrupted(tmp_path: Path, clock: Any) -> None:
    machines.laptop(tmp_path)
    conditions = Conditions(root=tmp_path, clock=clock, sleep=lambda seconds: None)
    with pytest.raises(KeyboardInterrupt), conditions.window():
        clock.now += 2.0
        energy_uj(tmp_path, 21_000_000)
        raise KeyboardInterrupt
    said = conditions.to_json(4)
    assert said["energy"]["joules_per_image"] == pytest.approx(5.0)
    assert said["temperature_c"]["after"] == said["temperature_c"]["before"] != {}


def test_conditions_where_nothing_is_told(tmp_path: Path, clock: Any) -> None:
    conditions = Conditions(root=tmp_path, clock=clock)
    with conditions.window():
        clock.now += 1.0
    said = conditions.to_json(4)
    assert (said["energy"], said["energy_note"]) == (None, "this machine does not tell its power")
    assert said["temperature_c"] == {"before": {}, "after": {}}
    assert conditions.throttled == []


@pytest.mark.parametrize("scenario", ["latency", "throughput"])
def test_bench_meters_the_samples_own_time(
    tmp_path: Path,
    slim_bundle: Path,
    clock: Any,
    timed: Any,
    monkeypatch: pytest.MonkeyPatch,
    scenario: str,
) -> None:
    """10 W for as long as queries run, warm-up and draining included, and 1 J of idle before."""
    machines.laptop(tmp_path)
    used = [0.0]

    class Drawing(timed):  # type: ignore[misc]
        def _infer(self, batch: Any) -> Any:
            before = clock.now
            found = super()._infer(batch)
            used[0] += 10.0 * (clock.now - before)
            energy_uj(tmp_path, 1_000_000 + round(1e6 * used[0]))
            return found

    class Target:
        precision = "int8"

        def probes(self, options: Any) -> list[Any]:
            return [Probe("conv", timed(clock, [2.0]), macs=10**9, bytes=10**9)]

        def device_facts(self, device: str) -> dict[str, Any]:
            return {}

        def open(self, opened: Any, options: Any) -> Any:
            return Drawing(clock, [0.25], batch=2, depth=2, shape=(3, 224, 224))

    def sleep(seconds: float) -> None:
        clock.now += seconds
        used[0] += seconds
        energy_uj(tmp_path, 1_000_000 + round(1e6 * used[0]))

    opened = bundle.open_bundle(slim_bundle)  # with threads, which come next
    monkeypatch.setattr(bench_module, "Conditions", partial(Conditions, root=tmp_path))
    monkeypatch.setattr(energy.threading, "Thread", Unstarted)
    options = BenchOptions(scenario=scenario, batch=2, seconds=10.0)
    result = bench_module.bench(opened, Target(), options, clock=clock, sleep=sleep)
    said = result["energy"]
    assert said["images"] == 2 * len(result["samples_s"])
    assert said["seconds"] == pytest.approx(result["measured_seconds"])
    assert said["idle_watts"] == pytest.approx(1.0)
    assert said["watts"] == pytest.approx(10.0, rel=0.05 if scenario == "throughput" else 1e-6)
    assert result["system"]["cpu"].startswith("11th Gen")
    assert result["temperature_c"]["after"]["coretemp/Package id 0"] == 61.0


class Unstarted:
    """A thread that does not run: time is the clock's alone."""

    def __init__(self, **options: Any) -> None:
        pass

    def start(self) -> None:
        pass

    def join(self) -> None:
        pass
