"""Cores that may be used, from laid-out machines, and the settings worth trying on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import machines
import pytest

from vggdeploy.contracts import RunOptions, Settings
from vggdeploy.machine import cores
from vggdeploy.machine.cores import Cores
from vggdeploy.targets import openvino_settings

if TYPE_CHECKING:
    from pathlib import Path


def machine(root: Path, allowed: str, siblings: list[str]) -> Path:
    """CPUs by the threads of their cores."""
    status = {"proc/self/status": f"Cpus_allowed_list:\t{allowed}"}
    return machines.write(
        root,
        {
            f"{machines.CPU}/cpu{cpu}/topology/thread_siblings_list": threads
            for cpu, threads in enumerate(siblings)
        }
        | status,
    )


@pytest.mark.parametrize(
    ("allowed", "found"),
    [("0-5", Cores(6, 3)), ("0,2", Cores(2, 1)), ("1,4", Cores(2, 2))],
)
def test_hyperthreads_count_once(tmp_path: Path, allowed: str, found: Cores) -> None:
    root = machine(tmp_path, allowed, ["0,2", "1,3", "0,2", "1,3", "4-5", "4-5"])
    assert cores.usable(root) == found


def test_cpus_that_say_nothing_are_cores(tmp_path: Path) -> None:
    assert cores.usable(machine(tmp_path, "0-2", [])) == Cores(3, 3)


def test_a_container_has_a_share(tmp_path: Path) -> None:
    machines.write(
        machine(tmp_path, "0-3", []),
        {"proc/self/cgroup": "0::/box", "sys/fs/cgroup/box/cpu.max": "150000 100000"},
    )
    assert cores.usable(tmp_path).quota == 1.5


def test_this_machine_has_cores() -> None:
    here = cores.usable()
    assert 1 <= here.physical <= here.logical


@pytest.mark.parametrize(
    ("goal", "have", "threads"),
    [
        ("latency", Cores(2, 2), [2, 1]),
        ("throughput", Cores(2, 2), [2]),
        ("throughput", Cores(16, 8), [8, 16]),
        ("latency", Cores(16, 8), [8, 16, 4]),
        ("throughput", Cores(16, 8, 2.5), [2, 3, 8, 16]),
        ("latency", Cores(4, 4, 0.5), [1, 4]),
        ("throughput", Cores(4, 4, 8.0), [4]),
        ("latency", Cores(1, 1), [1]),
    ],
)
def test_threads_worth_trying(goal: str, have: Cores, threads: list[int]) -> None:
    assert openvino_settings.thread_counts(goal, have) == threads


def found(precision: str, options: RunOptions, *has: str) -> tuple[Settings, ...]:
    return openvino_settings.candidates(precision, options, Cores(4, 4), has)


def test_streams_share_the_threads_of_a_cpu() -> None:
    options = RunOptions(goal="throughput")
    tried = found("int8", options, "FP32", "INT8")
    assert tried[0] == Settings()
    assert set(tried[1:]) == {
        Settings(streams, 4, pinning) for streams in (1, 2, 4) for pinning in (True, False)
    }
    six = openvino_settings.candidates("int8", options, Cores(6, 6), ())
    assert {each.streams for each in six} == {None, 1, 2, 4, 6}


def test_one_query_has_one_stream() -> None:
    tried = found("int8", RunOptions(), "FP32", "INT8")
    assert tried[0] == Settings()
    assert {(each.streams, each.threads) for each in tried[1:]} == {(1, 4), (1, 2)}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "int8-w4"])
def test_precision_is_the_targets(precision: str) -> None:
    tried = found(precision, RunOptions(), "FP32", "BF16", "FP16", "INT8")
    assert {each.precision for each in tried} == {None}


def test_what_is_left_to_the_device_is_tried_as_fine_as_float16() -> None:
    tried = found("fp16", RunOptions(), "FP32", "BF16", "FP16", "INT8")
    assert tried[0] == Settings()
    assert {each.precision for each in tried} == {None, "f16", "f32"}
    assert {each.precision for each in found("fp16", RunOptions(), "FP32", "BF16")} == {None, "f32"}


@pytest.mark.parametrize(
    ("device", "goal", "streams"),
    [
        ("GPU", "throughput", {None, 1, 2, 4}),
        ("GPU.1", "throughput", {None, 1, 2, 4}),
        ("GPU", "latency", {None}),
        ("NPU", "throughput", {None}),
        ("AUTO", "throughput", {None}),
    ],
)
def test_other_devices_have_streams_alone(device: str, goal: str, streams: set[int | None]) -> None:
    tried = found("int8", RunOptions(device=device, goal=goal))  # type: ignore[arg-type]
    assert {each.streams for each in tried} == streams
    assert {(each.threads, each.pinning, each.precision) for each in tried} == {(None, None, None)}


def test_openvino_takes_every_candidate_on_this_machine() -> None:
    pytest.importorskip("openvino")
    from vggdeploy import targets

    target = targets.get("ov-int8")
    tried = target.candidates(RunOptions(goal="throughput"))
    assert tried[0] == Settings()
    assert len(tried) > 2
    configured = target.configuration(RunOptions(goal="throughput", settings=tried[1]))  # type: ignore[attr-defined]
    assert configured["NUM_STREAMS"] == tried[1].streams
    assert configured["INFERENCE_NUM_THREADS"] == tried[1].threads
    assert configured["ENABLE_CPU_PINNING"] is tried[1].pinning
    assert targets.get("ov-fp32").candidates(RunOptions(device="AUTO")) == (Settings(),)


def test_hyperthreads_are_switched_on_where_they_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("openvino")
    from vggdeploy import targets

    target = targets.get("ov-int8")
    monkeypatch.setattr(cores, "usable", lambda: Cores(8, 4))
    for threads, wanted in ((8, True), (4, False)):
        options = RunOptions(settings=Settings(1, threads))
        assert target.configuration(options)["ENABLE_HYPER_THREADING"] is wanted  # type: ignore[attr-defined]
    monkeypatch.setattr(cores, "usable", lambda: Cores(4, 4))
    assert "ENABLE_HYPER_THREADING" not in target.configuration(options)  # type: ignore[attr-defined]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "int8", "int8-w4"])
@pytest.mark.parametrize("goal", ["latency", "throughput"])
@pytest.mark.parametrize("have", [Cores(1, 1), Cores(6, 3), Cores(16, 8, 2.5), Cores(4, 4, 0.5)])
@pytest.mark.parametrize("device", ["CPU", "GPU", "NPU"])
def test_what_is_tried_is_tunable(precision: str, goal: Any, have: Cores, device: str) -> None:
    options = RunOptions(device=device, goal=goal)
    for each in openvino_settings.candidates(precision, options, have, ("FP16", "FP32", "BF16")):
        assert openvino_settings.tunable(precision, each, have.logical), each


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "int8-w4"])
def test_another_precision_than_the_targets_is_not_tunable(precision: str) -> None:
    """It would be another accuracy than the one that was verified."""
    for hint in ("bf16", "f16", "f32", "", "x"):
        assert not openvino_settings.tunable(precision, Settings(precision=hint), 4)
    assert openvino_settings.tunable("fp16", Settings(precision="f16"), 4)
    assert not openvino_settings.tunable("fp16", Settings(precision="bf16"), 4)


@pytest.mark.parametrize("count", [0, -1, 9, 1 << 40])
def test_more_than_the_cores_is_not_tunable(count: int) -> None:
    assert openvino_settings.tunable("int8", Settings(streams=8, threads=8), 8)
    assert not openvino_settings.tunable("int8", Settings(streams=count), 8)
    assert not openvino_settings.tunable("int8", Settings(threads=count), 8)
