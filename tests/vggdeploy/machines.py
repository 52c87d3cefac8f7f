"""Machines laid out as files: /proc, /sys, /etc and /var as the kernel and the vendors write them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

CPU = "sys/devices/system/cpu"


def write(root: Path, files: dict[str, Any]) -> Path:
    """Files below `root`, each with a newline behind it, as sysfs ends them."""
    for name, value in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(value if isinstance(value, bytes) else f"{value}\n".encode())
    return root


def per_cpu(count: int, files: dict[str, Any]) -> dict[str, Any]:
    return {f"{CPU}/cpu{n}/{name}": value for n in range(count) for name, value in files.items()}


def x86_cpuinfo(count: int, model: str, flags: str, microcode: str, mhz: float = 2400.0) -> str:
    """Two threads a core, in one package."""
    return "\n\n".join(
        f"processor\t: {n}\nvendor_id\t: x\nmodel name\t: {model}\nmicrocode\t: {microcode}\n"
        f"cpu MHz\t\t: {mhz:.3f}\nphysical id\t: 0\ncore id\t\t: {n // 2}\nflags\t\t: {flags}"
        for n in range(count)
    )


def laptop(root: Path) -> Path:
    """An Intel laptop: four cores with two threads, cpufreq, coretemp, RAPL with all its domains."""
    rapl = "sys/class/powercap/intel-rapl:0"
    return write(
        root,
        {
            "proc/cpuinfo": x86_cpuinfo(
                8, "11th Gen Intel(R) Core(TM) i7-1165G7 @ 2.80GHz",
                "fpu sse2 avx2 avx512f avx512_vnni", "0xb8",
            ),
            "proc/meminfo": "MemTotal:       16111000 kB\nMemFree:   100 kB",
            "proc/loadavg": "0.50 0.25 0.10 1/1200 4242",
            "proc/self/status": "Name:\tpython\nCpus_allowed:\tff\nCpus_allowed_list:\t0-7",
            "proc/self/cgroup": "0::/user.slice/user-1000.slice/session-2.scope",
            "sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory",
            "sys/fs/cgroup/cpuset.cpus.effective": "0-7",
            "sys/fs/cgroup/user.slice/cpu.max": "max 100000",
            "sys/fs/cgroup/user.slice/memory.max": "max",
            f"{CPU}/online": "0-7",
            f"{CPU}/smt/active": 1,
            f"{CPU}/intel_pstate/no_turbo": 0,
            **per_cpu(8, {
                "cpufreq/scaling_governor": "powersave",
                "cpufreq/scaling_cur_freq": 3200000,
                "cpufreq/cpuinfo_min_freq": 400000,
                "cpufreq/cpuinfo_max_freq": 4700000,
                "cpufreq/scaling_max_freq": 4700000,
                "thermal_throttle/core_throttle_count": 3,
                "thermal_throttle/package_throttle_count": 7,
            }),
            **{f"{CPU}/cpu{n}/topology/thread_siblings_list": f"{n % 4},{n % 4 + 4}" for n in range(8)},
            "sys/class/hwmon/hwmon0/name": "nvme",
            "sys/class/hwmon/hwmon0/temp1_input": 38850,
            "sys/class/hwmon/hwmon0/temp1_label": "Composite",
            "sys/class/hwmon/hwmon4/name": "coretemp",
            "sys/class/hwmon/hwmon4/temp1_input": 61000,
            "sys/class/hwmon/hwmon4/temp1_label": "Package id 0",
            "sys/class/hwmon/hwmon4/temp2_input": 59000,
            "sys/class/thermal/thermal_zone0/type": "x86_pkg_temp",
            "sys/class/thermal/thermal_zone0/temp": 61000,
            "sys/class/thermal/thermal_zone1/type": "INT3400",
            "sys/class/thermal/thermal_zone1/temp": -273000,
            "sys/class/thermal/cooling_device0/type": "Processor",
            "sys/class/thermal/cooling_device0/cur_state": 0,
            "sys/class/thermal/cooling_device1/type": "Fan",
            "sys/class/thermal/cooling_device1/cur_state": 3,
            f"{rapl}/name": "package-0",
            f"{rapl}/energy_uj": 1_000_000,
            f"{rapl}/max_energy_range_uj": 262_143_328_850,
            f"{rapl}:0/name": "core",
            f"{rapl}:0/energy_uj": 500_000,
            f"{rapl}:0/max_energy_range_uj": 262_143_328_850,
            "sys/class/powercap/intel-rapl:1/name": "psys",
            "sys/class/powercap/intel-rapl:1/energy_uj": 9_000_000,
            "sys/class/powercap/intel-rapl:1/max_energy_range_uj": 262_143_328_850,
            "sys/class/powercap/intel-rapl-mmio:0/name": "package-0",
            "sys/class/powercap/intel-rapl-mmio:0/energy_uj": 1_000_000,
        },
    )  # fmt: skip


def server(root: Path) -> Path:
    """An AMD server: two packages of two cores, SMT off, boost on, a core offline, RAPL twice."""
    zones = {}
    for package in (0, 1):
        zone = f"sys/class/powercap/intel-rapl:{package}"
        zones |= {
            f"{zone}/name": f"package-{package}",
            f"{zone}/energy_uj": 65_532_000_000 - 500_000 * package,
            f"{zone}/max_energy_range_uj": 65_532_610_987,
            f"{zone}:0/name": "core",
            f"{zone}:0/energy_uj": 5,
        }
    return write(
        root,
        {
            "proc/cpuinfo": x86_cpuinfo(4, "AMD EPYC 9354", "sse2 avx2 avx512_vnni", "0xa101144"),
            "proc/meminfo": "MemTotal:       527000000 kB",
            "proc/loadavg": "12.00 11.00 10.00 3/4000 77",
            "proc/self/cgroup": "0::/",
            "proc/self/status": "Cpus_allowed_list:\t0-2",
            f"{CPU}/online": "0-3",
            f"{CPU}/smt/active": 0,
            f"{CPU}/cpufreq/boost": 1,
            **per_cpu(5, {"cpufreq/scaling_governor": "performance",
                          "cpufreq/scaling_cur_freq": 3250000,
                          "cpufreq/cpuinfo_min_freq": 1500000,
                          "cpufreq/cpuinfo_max_freq": 3800000,
                          "cpufreq/scaling_max_freq": 3250000}),
            **{f"{CPU}/cpu{n}/topology/thread_siblings_list": n for n in range(5)},
            "sys/class/hwmon/hwmon2/name": "k10temp",
            "sys/class/hwmon/hwmon2/temp1_input": 48125,
            "sys/class/hwmon/hwmon2/temp1_label": "Tctl",
            "sys/class/hwmon/hwmon10/name": "k10temp",
            "sys/class/hwmon/hwmon10/temp1_input": 51000,
            "sys/class/hwmon/hwmon10/temp1_label": "Tctl",
            **zones,
        },
    )  # fmt: skip


def raspberry_pi(root: Path) -> Path:
    """A Raspberry Pi 5: no model name, a board's name, the firmware's throttling, no power."""
    cores = "\n\n".join(
        f"processor\t: {n}\nBogoMIPS\t: 108.00\n"
        "Features\t: fp asimd evtstrm aes asimdhp cpuid asimdrdm lrcpc dcpop asimddp\n"
        "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x4\nCPU part\t: 0xd0b\n"
        "CPU revision\t: 1"
        for n in range(4)
    )
    return write(
        root,
        {
            "proc/cpuinfo": f"{cores}\n\nRevision\t: d04170\nModel\t: Raspberry Pi 5 Model B Rev 1.0",
            "proc/device-tree/model": b"Raspberry Pi 5 Model B Rev 1.0\0",
            "proc/device-tree/compatible": b"raspberrypi,5-model-b\0brcm,bcm2712\0",
            "proc/meminfo": "MemTotal:        8244864 kB",
            "proc/loadavg": "0.00 0.01 0.05 1/200 9",
            **per_cpu(4, {"cpufreq/scaling_governor": "ondemand",
                          "cpufreq/scaling_cur_freq": 1500000,
                          "cpufreq/cpuinfo_min_freq": 1500000,
                          "cpufreq/cpuinfo_max_freq": 2400000,
                          "cpufreq/scaling_max_freq": 2400000}),
            **{f"{CPU}/cpu{n}/topology/thread_siblings_list": n for n in range(4)},
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
            "sys/class/thermal/thermal_zone0/temp": 49350,
            "sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled": "0",
            "sys/class/hwmon/hwmon1/name": "rpi_volt",
            "sys/class/hwmon/hwmon1/in0_lcrit_alarm": 0,
        },
    )  # fmt: skip


NVPMODEL = """\
# comments
< POWER_MODEL ID=0 NAME=MAXN_SUPER >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=2 NAME=15W >
CPU_ONLINE CORE_0 1
"""
DPKG = """\
Package: nvidia-l4t-core
Version: 36.4.3-20250107174145

Package: nvidia-jetpack-dev
Version: 9.9

Package: nvidia-jetpack
Status: install ok installed
Version: 6.2+b77

Package: zlib1g
Version: 1.2
"""


def jetson(root: Path) -> Path:
    """A Jetson Orin Nano with JetPack 6: an INA3221 under hwmon, over-current counters, devfreq."""
    cores = "\n\n".join(
        f"processor\t: {n}\nmodel name\t: ARMv8 Processor rev 1 (v8l)\n"
        "Features\t: fp asimd asimddp\nCPU implementer\t: 0x41\nCPU part\t: 0xd42"
        for n in range(6)
    )
    ina = "sys/class/hwmon/hwmon1"
    rails = {}
    for number, (name, millivolts, milliamperes) in enumerate(
        [("VDD_IN", 5000, 1200), ("VDD_CPU_GPU_CV", 5000, 300), ("VDD_SOC", 5000, 200)], start=1
    ):
        rails |= {
            f"{ina}/in{number}_label": name,
            f"{ina}/in{number}_input": millivolts,
            f"{ina}/curr{number}_input": milliamperes,
        }
    return write(
        root,
        {
            "proc/cpuinfo": cores,
            "proc/meminfo": "MemTotal:        7800000 kB",
            "proc/device-tree/model": b"NVIDIA Jetson Orin Nano Developer Kit\0",
            "proc/device-tree/compatible": b"nvidia,p3768-0000+p3767-0005\0nvidia,tegra234\0",
            "etc/nv_tegra_release": (
                "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: x"
            ),
            "etc/nvpmodel.conf": NVPMODEL,
            "var/lib/nvpmodel/status": "pmode:0002",
            "var/lib/dpkg/status": DPKG,
            "sys/class/devfreq/15340000.vic/cur_freq": 1,
            "sys/class/devfreq/17000000.gpu/cur_freq": 306000000,
            "sys/class/devfreq/17000000.gpu/min_freq": 306000000,
            "sys/class/devfreq/17000000.gpu/max_freq": 624750000,
            "sys/class/devfreq/17000000.gpu/governor": "nvhost_podgov",
            **per_cpu(6, {"cpufreq/scaling_governor": "schedutil",
                          "cpufreq/scaling_cur_freq": 1510400,
                          "cpufreq/cpuinfo_min_freq": 115200,
                          "cpufreq/cpuinfo_max_freq": 1510400,
                          "cpufreq/scaling_max_freq": 1510400}),
            f"{ina}/name": "ina3221",
            **rails,
            f"{ina}/in7_label": "sum of shunt voltages",
            "sys/class/hwmon/hwmon2/name": "soctherm_oc",
            "sys/class/hwmon/hwmon2/oc1_event_cnt": 0,
            "sys/class/hwmon/hwmon2/oc3_event_cnt": 2,
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
            "sys/class/thermal/thermal_zone0/temp": 47156,
            "sys/class/thermal/thermal_zone1/type": "cv0-thermal",
            "sys/class/thermal/thermal_zone1/temp": -256000,
            "sys/class/thermal/thermal_zone8/type": "tj-thermal",
            "sys/class/thermal/thermal_zone8/temp": 48000,
            "sys/class/thermal/cooling_device0/type": "pwm-fan",
            "sys/class/thermal/cooling_device0/cur_state": 2,
            "sys/class/thermal/cooling_device1/type": "cpu-throttle-alert",
            "sys/class/thermal/cooling_device1/cur_state": 0,
        },
    )  # fmt: skip


def container(root: Path) -> Path:
    """A container with limits under version 2, seen from within: its group is the root."""
    return write(
        root,
        {
            "proc/cpuinfo": x86_cpuinfo(16, "Intel(R) Xeon(R)", "sse2 avx2 hypervisor", "0x1"),
            "proc/meminfo": "MemTotal:       65000000 kB",
            "proc/self/status": "Cpus_allowed_list:\t0-1,8",
            "proc/self/cgroup": "0::/",
            "sys/fs/cgroup/cpu.max": "150000 100000",
            "sys/fs/cgroup/memory.max": 2147483648,
            "sys/fs/cgroup/cpu.stat": "nr_periods 9\nnr_throttled 4",
            "sys/fs/cgroup/cpuset.cpus.effective": "0-1,8",
            "run/.containerenv": "",
        },
    )


def container_v1(root: Path) -> Path:
    """A Docker container under version 1, whose path is the host's and not seen within."""
    inside = "/docker/0123456789abcdef"
    return write(
        root,
        {
            "proc/self/cgroup": (
                f"9:name=systemd:{inside}\n4:memory:{inside}\n3:cpuset:{inside}\n"
                f"1:cpu,cpuacct:{inside}\n0::/system.slice"
            ),
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": 50000,
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": 100000,
            "sys/fs/cgroup/memory/memory.limit_in_bytes": 1073741824,
            "sys/fs/cgroup/cpuset/cpuset.effective_cpus": "2-3",
        },
    )
