"""Results of different machines, and what is said of them."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import machines
import pytest

from vggdeploy import gates, machine, pipeline
from vggdeploy.cli import main
from vggdeploy.contracts import Silent
from vggdeploy.errors import ResultError
from vggdeploy.policy import Policies, Policy

if TYPE_CHECKING:
    from pathlib import Path

GPU = {
    "name": "NVIDIA L4", "driver": "550.54.15", "compute_capability": "8.9", "mig": None,
    "power_limit_w": 72.0, "memory_bytes": 24 << 30, "ecc": True,
}  # fmt: skip


@pytest.fixture
def result(tmp_path: Path) -> dict[str, Any]:
    system = machine.system(machines.jetson(tmp_path))
    system["gpus"] = [dict(GPU)]
    system["libraries"] |= {"openvino": "2026.4.1", "tensorrt": "10.3.0", "torch": None}
    return {"kind": "bench", "target": "trt-int8", "digest": "d", "system": system}


def changed(result: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    other = copy.deepcopy(result)
    inner: Any = other["system"]
    *folders, last = path.split(".")
    for key in folders:
        inner = inner[int(key) if isinstance(inner, list) else key]
    inner[last] = value
    return other


def test_one_machine_is_one(result: dict[str, Any]) -> None:
    other = copy.deepcopy(result)
    other["system"] |= {"load_average": [9.0, 9.0, 9.0], "python": "3.12.1"}
    other["system"]["frequency_hz"]["current"] = 1
    other["system"]["jetson"]["gpu_hz"]["current"] = 1
    assert machine.require_same(result, other, across_machines=False) == ()
    assert machine.require_same(result["system"], other["system"], across_machines=False) == ()


@pytest.mark.parametrize(
    ("path", "value", "key", "values"),
    [
        ("cpu", "Cortex-A76", "CPU model", "'Cortex-A78AE' and 'Cortex-A76'"),
        ("isa", [], "ISA", "asimddp and none"),
        ("cores", 4, "cores", "6 and 4"),
        ("physical_cores", 3, "physical cores", "not told and 3"),
        ("governor", None, "governor", "'schedutil' and not told"),
        ("turbo", False, "turbo", "not told and off"),
        ("smt", True, "SMT", "not told and on"),
        ("microcode", "0x1", "microcode", "not told and '0x1'"),
        ("frequency_hz.allowed_max", 10**9, "highest allowed clock",
         "1,510,400,000 and 1,000,000,000"),
        ("memory_bytes", 10**9, "memory", "7,987,200,000 and 1,000,000,000"),
        ("limits.cpus", 1.5, "CPU limit", "not told and 1.5"),
        ("limits.memory_bytes", 1 << 30, "memory limit", "not told and 1,073,741,824"),
        ("jetson.model", "Orin NX", "Jetson", "and 'Orin NX'"),
        ("jetson.jetpack", "6.1", "JetPack", "'6.2+b77' and '6.1'"),
        ("jetson.l4t", "36.4.0", "Jetson Linux", "'36.4.3' and '36.4.0'"),
        ("jetson.power_mode", "MAXN", "power mode", "'15W' and 'MAXN'"),
        ("jetson.gpu_hz.min", 624_750_000, "GPU clock, lowest", "306,000,000 and 624,750,000"),
        ("gpus", [], "GPUs", "'NVIDIA L4' and 'none'"),
        ("gpus.0.name", "NVIDIA T4", "GPU 0 name", "'NVIDIA L4' and 'NVIDIA T4'"),
        ("gpus.0.driver", "560.1", "GPU 0 driver", "'550.54.15' and '560.1'"),
        ("gpus.0.power_limit_w", 40.0, "GPU 0 power limit w", "72.0 and 40.0"),
        ("libraries.tensorrt", "10.7.0", "tensorrt", "'10.3.0' and '10.7.0'"),
        ("system", "Linux 7", "kernel", "and 'Linux 7'"),
    ],
)  # fmt: skip
def test_a_difference_is_refused_by_its_name(
    result: dict[str, Any], path: str, value: Any, key: str, values: str
) -> None:
    other = changed(result, path, value)
    with pytest.raises(ResultError) as caught:
        machine.require_same(result, other, across_machines=False)
    said = str(caught.value)
    assert said.startswith(f"the results are of different machines or settings: {key}: got ")
    assert values in said
    assert "--across-machines" in said
    (caution,) = machine.require_same(result, other, across_machines=True)
    assert caution.startswith(f"different machines or settings, {key}: ")
    assert values in caution


def test_every_difference_is_in_the_message(result: dict[str, Any]) -> None:
    other = changed(changed(result, "cpu", "x"), "governor", "performance")
    with pytest.raises(ResultError, match=r"CPU model: .*also governor: 'schedutil' and 'perfo"):
        machine.require_same(result, other, across_machines=False)


def test_a_kernels_own_memory_may_change(result: dict[str, Any]) -> None:
    size = result["system"]["memory_bytes"]
    for share, same in ((0.99, True), (0.97, False)):
        other = changed(result, "memory_bytes", round(size * share))
        assert (machine.differences(result, other) == ()) is same


@pytest.mark.parametrize(
    ("targets", "library", "counts"),
    [
        (("ov-int8", "ov-int8"), "openvino", True),
        (("ov-int8", "ov-int8"), "tensorrt", False),
        (("ov-int8", "trt-int8"), "tensorrt", True),
        (("torch-fp32", "torch-fp32"), "torch", True),
        (("torch-fp32", "torch-fp32"), "openvino", False),
        ((None, None), "torch", True),
        (("ov-int8", "ov-int8"), "scikit-learn", False),
    ],
)
def test_only_the_targets_libraries_count(
    result: dict[str, Any], targets: tuple[str | None, str | None], library: str, counts: bool
) -> None:
    other = changed(result, f"libraries.{library}", "0.0")
    result["target"], other["target"] = targets
    assert [found.key for found in machine.differences(result, other)] == [library] * counts


def test_a_gpu_does_not_count_for_a_cpu(result: dict[str, Any]) -> None:
    other = changed(result, "gpus", None)
    result["target"] = other["target"] = "ov-int8"
    assert machine.differences(result, other) == ()


def test_settings_do_not_count_where_nothing_is_timed(result: dict[str, Any]) -> None:
    set_otherwise = changed(changed(result, "governor", "x"), "gpus.0.power_limit_w", 40.0)
    assert machine.require_same(result, set_otherwise, across_machines=False, speed=False) == ()
    other = changed(result, "gpus.0.driver", "560.1")
    with pytest.raises(ResultError, match="driver"):
        machine.require_same(result, other, across_machines=False, speed=False)


@pytest.mark.parametrize(
    "lame", [{"kind": "bench"}, {"kind": "bench", "system": {}}, {"system": 3}]
)
def test_a_result_that_does_not_say_its_machine_is_of_another(
    result: dict[str, Any], lame: dict[str, Any]
) -> None:
    for pair in ((result, lame), (lame, result), (lame, lame)):
        with pytest.raises(ResultError, match=r"machine: got .*not told"):
            machine.require_same(*pair, across_machines=False)
        assert len(machine.require_same(*pair, across_machines=True)) == 1


def test_a_run_is_of_the_machine_that_measured(result: dict[str, Any]) -> None:
    run = {"kind": "run", "bench": result, "verify": None}
    assert machine.differences(run, result) == ()
    other = {"kind": "run", "bench": None, "verify": changed(result, "cpu", "x")}
    assert [found.key for found in machine.differences(run, other)] == ["CPU model"]
    openvino = changed(result, "libraries.tensorrt", "0")
    assert [
        found.key for found in machine.differences(run, {"kind": "run", "bench": openvino})
    ] == ["tensorrt"]


# The gate


@pytest.fixture
def pair(result: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A verification and a measurement, of one machine."""
    verify = {
        **copy.deepcopy(result), "kind": "verify", "execution": "native", "note": "",
        "judged": "probes", "engine_bytes": 1, "accuracy": None,
        "parity": {"n": 400, "top1_agreement": 1.0, "cosine_min": 1.0, "sqnr_db": 30.0},
    }  # fmt: skip
    bench = {
        **result, "unstable_because": [], "samples_s": [0.1] * 100, "measured_seconds": 10.0,
        "engine_bytes": 1, "latency_s": {"p50": 0.1, "p99": 0.1}, "throughput_ips": 10.0,
        "budget": {"utilisation": 0.5}, "partial": False,
    }  # fmt: skip
    return verify, bench


BOUNDS = Policy(min_agreement=0.99, max_p50=0.2)


def test_gate_refuses_two_machines(pair: Any) -> None:
    verify, bench = pair
    assert gates.judge(pair, BOUNDS).verdict == "pass"
    other = changed(verify, "cpu", "EPYC")
    with pytest.raises(ResultError, match=r"CPU model: got 'EPYC' and 'Cortex-A78AE'"):
        gates.judge([other, bench], BOUNDS)
    found = gates.judge([other, bench], BOUNDS, across_machines=True)
    assert found.verdict == "pass"
    assert found.cautions == (
        "different machines or settings, CPU model: 'EPYC' and 'Cortex-A78AE'",
    )
    assert found.to_json()["cautions"] == found.cautions


def test_gate_takes_another_governor_and_an_emulation_elsewhere(pair: Any) -> None:
    verify, bench = pair
    assert gates.judge([changed(verify, "governor", "performance"), bench], BOUNDS).cautions == ()
    emulated = {**changed(verify, "cpu", "EPYC"), "execution": "emulated"}
    assert gates.judge([emulated, bench], BOUNDS).cautions == ()


def test_the_flag_reaches_the_gate(
    pair: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verify, bench = pair
    paths = []
    for kind, said in (("verify", changed(verify, "cpu", "EPYC")), ("bench", bench)):
        paths.append(tmp_path / f"{kind}.json")
        paths[-1].write_text(json.dumps({"schema": 1, **said}))
    words = ["gate", *map(str, paths), "--min-agreement", "0.99", "--max-p50", "0.2"]
    assert main(words) == 2
    assert "CPU model: got 'EPYC' and 'Cortex-A78AE'" in capsys.readouterr().err
    assert main([*words, "--across-machines"]) == 0
    assert "different machines or settings, CPU model" in capsys.readouterr().err
    with pytest.raises(ResultError):
        pipeline.gate(
            paths, Policies({"min_agreement": 0.99}), data=None, reference=None, device="CPU", reporter=Silent()
        )  # fmt: skip
