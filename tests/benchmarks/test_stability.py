"""Reasons not to trust a figure: each with its number, and a command."""

from __future__ import annotations

import numpy as np
import pytest

from vggdeploy.benchmarks import stability
from vggdeploy.benchmarks.stability import Diagnosis
from vggdeploy.benchmarks.warmup import Warmup
from vggdeploy.benchmarks.watch import Window
from vggdeploy.machine import limits


def test_steady_samples_are_stable() -> None:
    rng = np.random.default_rng(0)
    assert stability.of_samples(list(1 + 0.02 * rng.standard_normal(300))) == Diagnosis()
    assert stability.of_samples([1.0] * 30) == Diagnosis()


@pytest.mark.parametrize("count", [1, 2, 29])
def test_few_samples(count: int) -> None:
    found = stability.of_samples([1.0] * count)
    assert found.reasons == (f"{count} samples are few: measure longer",)
    assert found.advice == ("--queries 30",)


def test_few_samples_tell_neither_drift_nor_spread() -> None:
    for values in ([1.0, 2.0, 9.0], [1.0] * 20 + [2.0] * 9):
        (reason,) = stability.of_samples(values).reasons
        assert reason.endswith("samples are few: measure longer")


@pytest.mark.parametrize("slow", [0, 1, 2])
def test_a_slow_third_is_drift(slow: int) -> None:
    values = [1.0] * 90
    values[slow * 30 : slow * 30 + 30] = [1.2] * 30
    found = stability.of_samples(values)
    (reason,) = found.reasons
    assert reason.startswith("drift: a third of the run had a median of 1.2 s and another 1 s")
    assert found.advice


def test_a_tenth_more_is_no_drift() -> None:
    assert stability.of_samples([1.0] * 60 + [1.09] * 30) == Diagnosis()


def test_spread_is_told_with_its_figure() -> None:
    # Every seventh query is slow: in each third alike, so it is no drift.
    values = [1.5 if index % 7 == 0 else 1.0 for index in range(210)]
    (reason,) = stability.of_samples(values).reasons
    assert reason == "variation: the 90th percentile is 1.50 times the median"
    assert stability.of_samples(values, waiting=True) == Diagnosis()


def test_reasons_are_added_up_and_commands_are_not_repeated() -> None:
    found = stability.of_samples([1.0] * 60 + [2.0] * 30) + stability.of_machine(
        Window(10.0, others=0.5)
    )
    assert [reason.split(":")[0] for reason in found.reasons] == [
        "drift",
        "variation",
        "a busy CPU",
    ]
    assert len(set(found.advice)) == len(found.advice) == 3


@pytest.mark.parametrize(("percent", "needed"), [(50, 6), (90, 36), (99, 368)])
def test_too_few_for_a_percentile(percent: int, needed: int) -> None:
    assert stability.of_percentile(needed, percent) == Diagnosis()
    found = stability.of_percentile(needed - 1, percent)
    assert f"the {percent}th percentile, which takes {needed}" in found.reasons[0]
    assert found.advice == (f"--queries {needed}",)


def test_a_precision_that_was_not_reached() -> None:
    values = [float(1 + 37 * v % 101) for v in range(100)]  # 1 to 100 but for one, mixed
    assert stability.of_precision(values, None) == Diagnosis()
    assert stability.of_precision(values, 0.21) == Diagnosis()
    (reason,) = stability.of_precision(values, 0.2).reasons
    assert reason == "the median is known to within 21.00%, not the 20.00% asked for"
    assert "not known" in stability.of_precision([1.0], 0.2).reasons[0]


def test_warm_up_that_did_not_settle() -> None:
    assert stability.of_warmup(Warmup(9, 1.0, steady=True)) == Diagnosis()
    (reason,) = stability.of_warmup(Warmup(12, 30.0, steady=False)).reasons
    assert "12 queries in 30.0 s did not settle" in reason


def test_what_other_processes_did() -> None:
    found = stability.of_machine(Window(10.0, others=0.051))
    assert found.reasons == ("a busy CPU: other processes had 5% of its time",)
    assert found.advice


@pytest.mark.parametrize(
    "window", [Window(10.0), Window(10.0, others=0.05), Window(0.4, others=0.9)]
)
def test_a_quiet_machine(window: Window) -> None:
    assert stability.of_machine(window) == Diagnosis()


def test_what_held_the_machine_back() -> None:
    assert stability.of_throttling([]) == Diagnosis()
    quota = f"{limits.HELD_UP}, 7 times"
    found = stability.of_throttling(["the cores' clock fell from 3.00 to 2.40 GHz", quota])
    assert found.reasons == ("throttling: the cores' clock fell from 3.00 to 2.40 GHz", quota)
    assert "sensors" in found.advice
    assert "docker update --cpus 0 CONTAINER" in found.advice


def test_arrivals_that_pile_up_and_a_bound_that_is_missed() -> None:
    assert stability.of_server(9.0, 10.0, 0.2, 0.2) == Diagnosis()
    assert stability.of_server(9.0, 10.0, 0.2, None) == Diagnosis()
    (reason,) = stability.of_server(11.0, 10.0, 0.2, None).reasons
    assert "11 queries a second arrive and at most 10 can end" in reason
    found = stability.of_server(9.0, 10.0, 0.21, 0.2)
    assert "0.21 s, is above the bound of 0.2 s" in found.reasons[0]
    assert found.advice == ("--rate 8.1",)


def test_what_loadgen_does_not_call_valid() -> None:
    assert stability.of_loadgen({"result": "VALID", "because": [], "full": False}) == Diagnosis()
    said = {"result": "INVALID", "because": ["Performance constraints satisfied"], "full": False}
    found = stability.of_loadgen(said)
    assert found.reasons == (
        "LoadGen calls the run INVALID (Performance constraints satisfied: NO)",
    )
    assert found.advice == ("--full",)
    assert stability.of_loadgen({**said, "full": True}).advice == ()
    # One that was interrupted has no more to say.
    (reason,) = stability.of_loadgen({"result": "INVALID", "full": False}).reasons
    assert reason == "LoadGen calls the run INVALID"
