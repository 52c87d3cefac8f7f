"""The machine as a person reads it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import machines
import pytest
from nvml_double import Nvml
from rich.console import Console

from vggdeploy import bench_table, console, doctor, machine, machine_table
from vggdeploy.targets.openvino import OpenVINO
from vggdeploy.terminal import Terminal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def no_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)


def rows(root: Path) -> dict[str, str]:
    found = machine_table.rows(machine.system(root))
    assert len(dict(found)) == len(found)
    return dict(found)


def test_laptop(tmp_path: Path) -> None:
    said = rows(machines.laptop(tmp_path))
    assert said.pop("system").startswith("Linux") or sys.platform != "linux"
    assert said == {
        "CPU": "11th Gen Intel(R) Core(TM) i7-1165G7 @ 2.80GHz, 8 cores, 4 physical",
        "8- and 16-bit instructions": "avx2, avx512f, avx512_vnni",
        "clock": "3.20 GHz now, 0.40 GHz to 4.70 GHz",
        "governor": "powersave, turbo on, SMT on",
        "microcode": "0xb8",
        "memory": "15.4 GiB",
        "limits": "cpuset 0-7",
        "load": "0.50 0.25 0.10",
    }


def test_server(tmp_path: Path) -> None:
    said = rows(machines.server(tmp_path))
    assert said["CPU"] == "AMD EPYC 9354, 3 cores of 4"
    assert said["clock"] == "3.25 GHz now, 1.50 GHz to 3.80 GHz, held to 3.25 GHz"
    assert said["limits"] == "none"


def test_container(tmp_path: Path) -> None:
    said = rows(machines.container(tmp_path))
    assert said["limits"] == "1.5 CPUs, 2.0 GiB, cpuset 0-1,8 (in podman)"
    assert said["CPU"].endswith("3 cores of 16, 8 physical, a virtual machine")


def test_jetson(tmp_path: Path) -> None:
    root = machines.jetson(tmp_path)
    assert rows(root)["Jetson"] == (
        "NVIDIA Jetson Orin Nano Developer Kit, JetPack 6.2+b77, L4T 36.4.3, power mode 15W, "
        "GPU 0.31 GHz to 0.62 GHz"
    )
    assert "board" not in rows(root)
    (root / "etc/nvpmodel.conf").unlink()
    assert "power mode number 2" in rows(root)["Jetson"]


def test_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml({}, {"ClockInfo": None}))
    said = rows(tmp_path)
    assert said["GPU 0"] == ("NVIDIA L4, 24.0 GiB, driver 550.54.15, 2.04 GHz (1.59 GHz now), 72 W")
    assert said["GPU 1"] == "NVIDIA L4, 24.0 GiB, driver 550.54.15, 2.04 GHz, 72 W"


def test_an_empty_root(tmp_path: Path) -> None:
    said = rows(tmp_path)
    assert said["governor"] == "not told, turbo not told, SMT not told"
    for key in ("clock", "memory", "limits", "load"):
        assert said[key] == "not told"


def test_a_system_of_another_version_is_shown(tmp_path: Path) -> None:
    """Results from before had only these."""
    old = {"cpu": "x", "isa": [], "cores": 2, "memory_bytes": None, "system": "L", "python": "3"}
    assert ("clock", "not told") in machine_table.rows(old)


def test_the_hottest_sensor() -> None:
    assert machine_table.heat({"a": 40.0, "b": 61.25}) == "61.2 °C (b, of 2 sensors)"
    assert machine_table.heat({"a": 40.0}) == "40.0 °C (a)"
    assert machine_table.heat({}) == "not told"
    assert machine_table.warming({"a": 40.0, "b": 50.0}, {"a": 70.0, "b": 60.0, "c": 90.0}) == (
        "40.0 to 70.0 °C (a)"
    )
    assert machine_table.warming({}, {"a": 1.0}) == ""


ENERGY = {
    "joules_per_image": 5.0, "watts": 25.0, "idle_watts": 4.0, "idle_seconds": 1.0,
    "net_joules_per_image": 4.2, "source": "RAPL, package-0", "seconds": 4.0, "images": 20,
}  # fmt: skip


def test_energy() -> None:
    assert machine_table.energy(ENERGY) == (
        "5 J an image at 25.0 W, 4.2 J above the 4.0 W of idle (RAPL, package-0)"
    )
    alone = {**ENERGY, "net_joules_per_image": None, "idle_watts": None}
    assert machine_table.energy(alone) == "5 J an image at 25.0 W (RAPL, package-0)"


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    yield Terminal(Console(record=True, width=120, force_terminal=False, stderr=True))


@pytest.mark.parametrize("told", [True, False])
def test_a_bench_shows_its_energy_or_why_not(terminal: Terminal, told: bool) -> None:
    result: dict[str, Any] = {
        "batch": 1, "latency_s": {"p50": 0.1, "p90": 0.1, "p99": 0.1}, "samples_s": [0.1],
        "throughput_ips": 10.0, "throughput_requests": 1, "throughput_by_batch": [], "scenario": "latency",
        "unstable_because": [], "advice": [], "mlperf": None, "server": None, "partial": False,
        "ci95": dict.fromkeys(("p50", "p90", "p99")), "early_stopping": {}, "measured_seconds": 1.0,
        "warmup": {"steady": True, "queries": 3},
        "budget": {"compute_floor_s": 0.1, "memory_floor_s": 0.1, "peak_bytes_per_s": 1e9,
                   "macs": 10**9, "achieved_macs_per_s": 1e10, "peak_macs_per_s": 1e10,
                   "utilisation": 1.0, "bound": "compute", "peak_from": "measured", "peak_check": None},
        "system": {"cpu": "x", "cores": 2},
        "energy": ENERGY if told else None, "energy_note": "" if told else "this machine is silent",
        "temperature_c": {"before": {"a": 40.0}, "after": {"a": 70.0}},
    }  # fmt: skip
    bench_table.show_bench(terminal, result)
    said = terminal.console.export_text()
    assert ("5 J an image" in said) is told
    assert ("this machine is silent" in said) is not told
    assert "40.0 to 70.0 °C (a)" in said


def test_doctor_shows_the_machine(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    said = doctor.doctor()
    assert said["power"]["source"] or said["power"]["reason"]
    assert set(said["system"]) == set(machine.system())
    console.show_doctor(
        terminal,
        {**said, "temperature_c": {"a": 40.0}, "power": {"source": "RAPL, x", "reason": None}},
    )
    text = terminal.console.export_text()
    for line in ("governor", "40.0 °C (a)", "RAPL, x", "nvidia-ml-py"):
        assert line in text


# What OpenVINO says of a device, which decides whether the CPU's package has it


@pytest.mark.parametrize(
    ("device", "kind", "facts"),
    [
        ("GPU", "Type.INTEGRATED", {"integrated": True}),
        ("GPU.1", "Type.DISCRETE", {"integrated": False}),
        ("NPU", "Type.INTEGRATED", {"integrated": True}),
        ("GPU", None, {}),
        ("AUTO", "Type.INTEGRATED", {}),
        ("CPU", "Type.INTEGRATED", {}),
    ],
)
def test_openvino_says_what_is_integrated(
    monkeypatch: pytest.MonkeyPatch, device: str, kind: str | None, facts: dict[str, Any]
) -> None:
    openvino = pytest.importorskip("openvino")

    class Core:
        def get_property(self, name: str, key: str) -> str:
            assert (name, key) == (device, "DEVICE_TYPE")
            if kind is None:
                raise RuntimeError("no such device")
            return kind

    # The property is a real one.
    assert str(openvino.Core().get_property("CPU", "DEVICE_TYPE")) == "Type.INTEGRATED"
    monkeypatch.setattr(openvino, "Core", Core)
    assert OpenVINO.device_facts(OpenVINO.__new__(OpenVINO), device) == facts
