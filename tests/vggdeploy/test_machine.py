"""The facts of machines that are laid out as files, each read as if it were this one."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import machines
import pytest
from nvml_double import Nvml

from vggdeploy import machine
from vggdeploy.machine import cpu, jetson, limits, nvml

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPUs of the machine that runs the tests are none of theirs."""
    monkeypatch.setitem(sys.modules, "pynvml", None)


@pytest.fixture
def lay(tmp_path: Path) -> Callable[[Callable[[Path], Path]], Path]:
    return lambda make: make(tmp_path)


def test_laptop(lay: Any) -> None:
    said = machine.system(lay(machines.laptop))
    assert said["cpu"] == "11th Gen Intel(R) Core(TM) i7-1165G7 @ 2.80GHz"
    assert said["isa"] == ["avx2", "avx512f", "avx512_vnni"]
    assert (said["cores"], said["logical_cores"], said["physical_cores"]) == (8, 8, 4)
    assert (said["smt"], said["turbo"], said["governor"]) == (True, True, "powersave")
    assert said["frequency_hz"] == {
        "current": 3_200_000_000, "min": 400_000_000, "max": 4_700_000_000,
        "allowed_max": 4_700_000_000,
    }  # fmt: skip
    assert said["microcode"] == "0xb8"
    assert said["memory_bytes"] == 16_111_000 * 1024
    assert said["load_average"] == [0.5, 0.25, 0.1]
    assert said["limits"] == {
        "cgroup": 2, "cpus": None, "memory_bytes": None, "cpuset": "0-7", "container": None,
    }  # fmt: skip
    assert (said["virtual"], said["board"], said["jetson"], said["gpus"]) == (
        False,
        None,
        None,
        None,
    )


def test_server(lay: Any) -> None:
    said = machine.system(lay(machines.server))
    assert (said["cores"], said["logical_cores"], said["physical_cores"]) == (3, 4, 4)
    assert (said["smt"], said["turbo"], said["governor"]) == (False, True, "performance")
    assert said["frequency_hz"]["max"] == 3_800_000_000
    assert said["frequency_hz"]["allowed_max"] == 3_250_000_000


def test_raspberry_pi(lay: Any) -> None:
    said = machine.system(lay(machines.raspberry_pi))
    assert (said["cpu"], said["board"]) == ("Cortex-A76", "Raspberry Pi 5 Model B Rev 1.0")
    assert said["isa"] == ["asimddp"]
    assert (said["logical_cores"], said["physical_cores"], said["smt"]) == (4, 4, False)
    assert said["governor"] == "ondemand"
    assert (said["turbo"], said["microcode"], said["virtual"], said["jetson"]) == (None,) * 4


def test_jetson(lay: Any) -> None:
    said = machine.system(lay(machines.jetson))
    assert said["cpu"] == "Cortex-A78AE"
    assert said["jetson"] == {
        "model": "NVIDIA Jetson Orin Nano Developer Kit", "l4t": "36.4.3", "jetpack": "6.2+b77",
        "power_mode": "15W", "power_mode_id": 2, "gpu_governor": "nvhost_podgov",
        "gpu_hz": {"current": 306_000_000, "min": 306_000_000, "max": 624_750_000},
    }  # fmt: skip


def test_container(lay: Any) -> None:
    said = machine.system(lay(machines.container))
    assert said["limits"] == {
        "cgroup": 2, "cpus": 1.5, "memory_bytes": 2 << 30, "cpuset": "0-1,8", "container": "podman",
    }  # fmt: skip
    assert (said["cores"], said["logical_cores"], said["physical_cores"]) == (3, 16, 8)
    assert said["virtual"] is True
    # No cpufreq in there: the clock that /proc/cpuinfo shows.
    assert said["frequency_hz"]["current"] == 2_400_000_000


def test_container_of_version_1(lay: Any) -> None:
    assert limits.facts(lay(machines.container_v1)) == {
        "cgroup": 1, "cpus": 0.5, "memory_bytes": 1 << 30, "cpuset": "2-3", "container": "docker",
    }  # fmt: skip


def test_no_limit_of_version_1_is_none(lay: Any) -> None:
    root = lay(machines.container_v1)
    base = "sys/fs/cgroup"
    machines.write(root, {f"{base}/cpu,cpuacct/cpu.cfs_quota_us": -1,
                          f"{base}/memory/memory.limit_in_bytes": 9223372036854771712})  # fmt: skip
    said = limits.facts(root)
    assert (said["cpus"], said["memory_bytes"]) == (None, None)


def test_version_2_beside_systemds_own_names(lay: Any) -> None:
    root = lay(machines.container)
    machines.write(root, {"proc/self/cgroup": "1:name=systemd:/\n0::/"})
    assert (limits.facts(root)["cgroup"], limits.facts(root)["cpus"]) == (2, 1.5)


def test_a_group_that_is_not_seen_from_here_is_not_looked_for(lay: Any) -> None:
    root = lay(machines.container)
    machines.write(root, {"proc/self/cgroup": "0::/../other", "sys/fs/other/cpu.max": "1 100000"})
    assert limits.facts(root)["cpus"] == 1.5


def test_what_the_groups_leave_of_the_memory(lay: Any) -> None:
    root = lay(machines.laptop)
    assert limits.available_memory(root) is None
    machines.write(root, {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    5000 kB"})
    assert limits.available_memory(root) == 5_120_000
    around, own = "sys/fs/cgroup/user.slice", "user-1000.slice/session-2.scope"
    machines.write(root, {f"{around}/{own}/memory.max": 4_096_000,
                          f"{around}/{own}/memory.current": 1_096_000})  # fmt: skip
    assert limits.available_memory(root) == 3_000_000
    machines.write(root, {f"{around}/memory.max": 5_000_000, f"{around}/memory.current": 4_500_000})
    assert limits.available_memory(root) == 500_000
    machines.write(root, {f"{around}/memory.current": 5_000_001})
    assert limits.available_memory(root) == 0


def test_what_version_1_leaves_of_the_memory(lay: Any) -> None:
    root = lay(machines.container_v1)
    machines.write(root, {"sys/fs/cgroup/memory/memory.usage_in_bytes": 73_741_824})
    assert limits.available_memory(root) == 1_000_000_000


@pytest.mark.parametrize(
    ("own", "around", "cpus"),
    [("50000 100000", "400000 100000", 0.5), ("max 100000", "400000 100000", 4.0)],
    ids=["own is narrower", "the slice is narrower"],
)
def test_the_narrowest_limit_counts(lay: Any, own: str, around: str, cpus: float) -> None:
    root = lay(machines.laptop)
    slice_ = "sys/fs/cgroup/user.slice"
    machines.write(root, {f"{slice_}/cpu.max": around,
                          f"{slice_}/user-1000.slice/session-2.scope/cpu.max": own})  # fmt: skip
    assert limits.facts(root)["cpus"] == cpus


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ({"proc/self/cgroup": "0::/kubepods/burstable/pod1"}, "kubernetes"),
        ({"proc/self/cgroup": "0::/", ".dockerenv": ""}, "docker"),
        ({"run/systemd/container": "lxc"}, "lxc"),
        ({"proc/self/cgroup": "0::/system.slice/sshd.service"}, None),
    ],
)
def test_whose_container(tmp_path: Path, files: dict[str, str], name: str | None) -> None:
    assert limits.facts(machines.write(tmp_path, files))["container"] == name


def test_an_empty_root_tells_nothing(tmp_path: Path) -> None:
    said = machine.system(tmp_path)
    told = {key for key, value in said.items() if value not in (None, [])}
    # What Python knows by itself, and folders whose every entry is None.
    assert told == {"machine", "system", "python", "libraries", "frequency_hz", "limits"}
    assert set(said["frequency_hz"].values()) == set(said["limits"].values()) == {None}
    assert machine.saturates(tmp_path) is False


def test_nonsense_tells_nothing(tmp_path: Path) -> None:
    machines.write(tmp_path, {
        "proc/cpuinfo": "CPU implementer : yes\nCPU part : 0xzz\ncpu MHz : fast",
        "proc/meminfo": "MemTotal:", "proc/loadavg": "high", "proc/self/status": "Cpus_allowed_list: x",
        "proc/self/cgroup": "nonsense", f"{machines.CPU}/online": "all",
        f"{machines.CPU}/smt/active": "perhaps", "etc/nv_tegra_release": "# R?",
        "var/lib/nvpmodel/status": "pmode:", "var/lib/dpkg/status": b"Package: nvidia-jetpack\n\xff\xfe",
    })  # fmt: skip
    said = machine.system(tmp_path)
    for key in ("cpu", "memory_bytes", "load_average", "cores", "smt"):
        assert said[key] is None, key
    assert said["frequency_hz"]["current"] is None
    # The release file is there, so this is a Jetson, of which nothing is known.
    assert set(map(str, said["jetson"].values())) == {
        "None",
        str(dict.fromkeys(("current", "min", "max"))),
    }


def test_cores_of_two_kinds_are_both_named(lay: Any) -> None:
    root = lay(machines.raspberry_pi)
    info = root / "proc/cpuinfo"
    info.write_text(info.read_text().replace("0xd0b", "0xd05", 1))
    assert cpu.facts(root)["cpu"] == "Cortex-A55 + Cortex-A76"


def test_governors_that_differ_are_all_named(lay: Any) -> None:
    root = lay(machines.laptop)
    machines.write(root, {f"{machines.CPU}/cpu3/cpufreq/scaling_governor": "performance"})
    assert cpu.facts(root)["governor"] == "performance, powersave"


@pytest.mark.parametrize(
    ("files", "turbo"),
    [
        ({"intel_pstate/no_turbo": 1}, False),
        ({"cpufreq/boost": 0}, False),
        ({"cpu0/cpufreq/boost": 1}, True),
        ({}, None),
    ],
)
def test_turbo(tmp_path: Path, files: dict[str, Any], turbo: bool | None) -> None:
    machines.write(tmp_path, {f"{machines.CPU}/{name}": value for name, value in files.items()})
    machines.write(tmp_path, {f"{machines.CPU}/cpu0/cpufreq/scaling_governor": "x"})
    assert cpu.facts(tmp_path)["turbo"] is turbo


@pytest.mark.parametrize(
    ("flags", "saturates"),
    [("sse2 avx2", True), ("avx2 avx_vnni", False), ("avx512_vnni", False), ("amx_int8", False)],
)
def test_x86_without_vnni_saturates(tmp_path: Path, flags: str, saturates: bool) -> None:
    machines.write(tmp_path, {"proc/cpuinfo": machines.x86_cpuinfo(1, "x", flags, "0x1")})
    assert machine.saturates(tmp_path) is saturates


def test_arm_does_not_saturate(lay: Any) -> None:
    assert machine.saturates(lay(machines.raspberry_pi)) is False


def test_this_machine_is_read() -> None:
    said = machine.system()
    assert said["cores"] >= 1
    assert said["cpu"]
    assert json.loads(json.dumps(said, allow_nan=False)) == said


# nvpmodel


def test_nvpmodel_is_asked_where_its_file_is_missing(lay: Any) -> None:
    root = lay(machines.jetson)
    (root / "var/lib/nvpmodel/status").unlink()
    asked: list[Sequence[str]] = []

    def run(words: Sequence[str]) -> str:
        asked.append(words)
        return "NV Power Mode: MAXN\n0\n"

    said = jetson.facts(root, run)
    assert said is not None
    assert (said["power_mode"], said["power_mode_id"]) == ("MAXN", 0)
    assert asked == [["nvpmodel", "-q"]]
    said = jetson.facts(root, lambda words: None)
    assert said is not None
    assert (said["power_mode"], said["power_mode_id"]) == (None, None)


def test_a_program_is_run_without_a_shell_and_not_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    assert jetson.ask([sys.executable, "-c", "print('15W; $HOME')"]) == "15W; $HOME\n"
    assert jetson.ask(["no-such-program-anywhere"]) is None
    assert jetson.ask([sys.executable, "-c", "raise SystemExit(1)"]) is None
    monkeypatch.setattr(jetson, "_SECONDS", 0.01)
    assert jetson.ask([sys.executable, "-c", "import time; time.sleep(60)"]) is None


# NVML, over a double of its module


def test_gpus_are_told_by_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Nvml({}, {"Name": b"NVIDIA H100", "MigMode": [1, 1], "EccMode": [0, 0]})
    monkeypatch.setitem(sys.modules, "pynvml", library)
    first, second = nvml.facts() or []
    assert first == {
        "name": "NVIDIA L4", "pci_bus_id": "0000:01:00.0", "driver": "550.54.15",
        "compute_capability": "8.9", "memory_bytes": 24 << 30,
        "clock_hz": {"sm": 1_590_000_000, "sm_max": 2_040_000_000, "memory": 6_250_000_000,
                     "memory_max": 6_251_000_000},
        "power_limit_w": 72.0, "power_default_w": 75.0, "performance_state": "P0",
        "persistence": True, "ecc": True, "mig": None,
    }  # fmt: skip
    assert (second["name"], second["mig"], second["ecc"]) == ("NVIDIA H100", True, False)
    assert library.open == 0


def test_what_a_gpu_does_not_answer_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    silent: dict[str, Any] = dict.fromkeys(
        ("CudaComputeCapability", "MemoryInfo", "ClockInfo", "MaxClockInfo", "EnforcedPowerLimit",
         "PowerManagementDefaultLimit", "PerformanceState", "PersistenceMode", "EccMode", "bus")
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "pynvml", Nvml({"Name": "Orin (nvgpu)", **silent}))
    (said,) = nvml.facts() or []
    assert said.pop("name") == "Orin (nvgpu)"
    assert said.pop("driver") == "550.54.15"
    assert set(said.pop("clock_hz").values()) == {None}
    assert set(said.values()) == {None}


def test_a_lost_gpu_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml({"lost": True}, {}))
    assert [gpu["pci_bus_id"] for gpu in nvml.facts() or []] == ["0001:01:00.0"]


def test_no_gpu_and_no_driver_are_not_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml())
    assert nvml.facts() == []
    monkeypatch.setitem(sys.modules, "pynvml", Nvml({}, present=False))
    assert nvml.facts() is None


def test_nvml_is_closed_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Nvml({})
    monkeypatch.setitem(sys.modules, "pynvml", library)
    with pytest.raises(ZeroDivisionError), nvml.gpus():
        assert library.open == 1
        raise ZeroDivisionError
    assert library.open == 0


def test_every_function_of_nvml_is_in_the_real_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pynvml")
    real = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    sources = (ROOT / "vggdeploy/machine/nvml.py", ROOT / "benchmarks/power.py")
    used = {name for file in sources for name in re.findall(r"\bnvml[A-Z]\w+", file.read_text())}
    used -= {"nvmlClocksEventReasons", "nvmlClocksThrottleReasons"}  # the types, in a comment
    assert len(used) > 15
    assert [name for name in sorted(used) if not callable(getattr(real, name, None))] == []
    assert (real.NVML_CLOCK_SM, real.NVML_CLOCK_MEM, real.NVML_TEMPERATURE_GPU) == (1, 2, 0)
    assert {
        real.nvmlClocksEventReasonHwSlowdown, real.nvmlClocksEventReasonSwThermalSlowdown,
        real.nvmlClocksEventReasonHwThermalSlowdown, real.nvmlClocksEventReasonHwPowerBrakeSlowdown,
    } == set(nvml.SLOWDOWNS)  # fmt: skip
    # Without a driver the real module says so, and that is all.
    with nvml.gpus() as found:
        assert found is None or isinstance(found, list)
