"""Two results compared: the ratio, its interval, the verdict, and what is refused."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest

from vggdeploy.benchmarks import against, comparison
from vggdeploy.benchmarks.options import BenchOptions
from vggdeploy.benchmarks.scenarios import Samples, Stop
from vggdeploy.errors import ConfigError, ResultError

SYSTEM = {"cpu": "Some CPU", "cores": 2, "libraries": {"openvino": "1.2"}}


def result(samples: Any, **changes: Any) -> dict[str, Any]:
    samples = [float(value) for value in samples]
    return {
        "schema": 1,
        "kind": "bench",
        "bundle": "bundles/a",
        "target": "ov-int8",
        "digest": "d" * 64,
        "scenario": "latency",
        "batch": 1,
        "model": {"name": "vgg16", "sha256": "1"},
        "latency_s": {"p50": float(np.median(samples))},
        "samples_s": samples,
        "started_s": [0.0] * len(samples),
        "throughput_ips": 10.0,
        "budget": {"macs": 1000},
        "unstable_because": [],
        "partial": False,
        "system": SYSTEM,
        **changes,
    }


def noisy(center: float, seed: int, count: int = 200, spread: float = 0.05) -> Any:
    return center * np.exp(spread * np.random.default_rng(seed).standard_normal(count))


def test_faster_and_slower_are_of_the_first() -> None:
    fast, slow = result(noisy(0.09, 1)), result(noisy(0.1, 2))
    found = comparison.compare(fast, slow)
    assert found["verdict"] == "faster"
    assert found["metric"] == "latency"
    assert found["ratio"] == fast["latency_s"]["p50"] / slow["latency_s"]["p50"]
    low, high = found["ci95"]
    assert low < found["ratio"] < high < 1
    assert (found["paired"], found["cautions"]) == (False, [])
    assert comparison.words(found).startswith("A is faster than B: its median latency is 0.9")
    assert f"95%: {low:.3f} to {high:.3f}" in comparison.words(found)
    other = comparison.compare(slow, fast)
    assert other["verdict"] == "slower"
    assert other["ratio"] == pytest.approx(1 / found["ratio"])


def test_no_difference_is_shown_by_chance() -> None:
    found = comparison.compare(result(noisy(0.1, 3)), result(noisy(0.1, 4)))
    assert found["verdict"] == "no difference shown"
    assert found["ci95"][0] < 1 < found["ci95"][1]
    assert comparison.words(found).startswith("no difference shown: A's median latency is ")


def test_too_few_samples_show_nothing() -> None:
    found = comparison.compare(result([0.1] * 5), result([0.2] * 5))
    assert (found["verdict"], found["ci95"], found["ratio"]) == ("no difference shown", None, 0.5)
    assert "too few samples" in comparison.words(found)


def test_pairs_see_what_drift_hides() -> None:
    drift = np.linspace(1, 1.6, 300)
    a, b = result(0.098 * drift), result(0.1 * drift)
    assert comparison.compare(a, b, paired=True)["verdict"] == "faster"
    assert comparison.compare(a, b)["verdict"] == "no difference shown"


def queued(rate: float, seed: int, count: int = 400) -> dict[str, Any]:
    """A throughput run whose queries end one after the other."""
    seconds = np.exp(0.1 * np.random.default_rng(seed).standard_normal(count)) / rate
    ends = np.cumsum(seconds)
    latencies = np.full(count, 0.5)
    return result(
        latencies, scenario="throughput", started_s=list(ends - latencies), throughput_ips=rate,
    )  # fmt: skip


def test_throughput_is_compared_by_its_rates() -> None:
    found = comparison.compare(queued(22.0, 1), queued(20.0, 2))
    assert (found["metric"], found["ratio"]) == ("throughput", 1.1)
    assert found["verdict"] == "faster"
    low, high = found["ci95"]
    # The mean of 400 values of 10% has a deviation of 0.5%, a ratio of two 0.7%, its interval 2.8%.
    assert 0.02 < high - low < 0.045
    assert low < 1.1 < high
    assert (found["a"]["images_per_s"], found["b"]["images_per_s"]) == (22.0, 20.0)
    assert comparison.compare(queued(20.0, 3), queued(20.0, 4))["verdict"] == "no difference shown"
    assert comparison.compare(queued(18.0, 3), queued(20.0, 4))["verdict"] == "slower"


def test_throughput_that_does_not_say_when_shows_nothing() -> None:
    a, b = queued(30.0, 1), queued(20.0, 2)
    a["started_s"] = []
    found = comparison.compare(a, b)
    assert (found["ratio"], found["ci95"]) == (1.5, None)
    assert found["verdict"] == "no difference shown"


def test_stretches_are_of_as_many_queries_each() -> None:
    ends = np.arange(1, 92) * 0.5
    found = comparison.stretches(result(np.full(91, 0.2), started_s=list(ends - 0.2)))
    assert found == pytest.approx([0.5] * 30)
    assert comparison.stretches(result([0.1])) == [1.0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scenario": "server"}, "different scenario: got latency and server"),
        ({"batch": 8}, "different batch: got 1 and 8"),
        ({"model": {"name": "vgg11"}}, "different model: got vgg16 and vgg11"),
        ({"budget": {"macs": 2000}}, "multiply-accumulates: got 1,000 and 2,000"),
        ({"model": None}, "different model: got vgg16 and nothing"),
        ({"device": {"device": "GPU"}}, "different device: got nothing and GPU"),
    ],
)
def test_what_is_not_comparable_is_named_with_both_values(
    change: dict[str, Any], said: str
) -> None:
    with pytest.raises(ResultError, match=said):
        comparison.compare(result([0.1] * 9), result([0.1] * 9, **change))


def test_other_weights_of_the_network_are_comparable() -> None:
    other = result([0.1] * 9, model={"name": "vgg16", "sha256": "2"}, target="ov-fp32")
    assert comparison.compare(result([0.1] * 9), other)["verdict"] == "no difference shown"


def test_other_machines_are_refused_unless_allowed() -> None:
    other = copy.deepcopy(result([0.1] * 9))
    other["system"]["cpu"] = "Other CPU"
    with pytest.raises(ResultError, match=r"CPU model.*Some CPU.*Other CPU"):
        comparison.compare(result([0.1] * 9), other)
    found = comparison.compare(result([0.1] * 9), other, across_machines=True)
    assert any("Other CPU" in caution for caution in found["cautions"])


def served(rate: float, *, found: bool, bound: float | None = None) -> dict[str, Any]:
    server = {"rate": rate, "found": found, "p99_bound_s": bound}
    return result([0.1] * 9, scenario="server", server=server)


def test_servers_are_compared_under_one_rate_of_arrivals() -> None:
    found = comparison.compare(served(5.0, found=False), served(5.0, found=False, bound=0.2))
    assert (found["metric"], found["ratio"]) == ("latency", 1.0)
    with pytest.raises(ResultError, match=r"different arrivals a second: got 5.0 and 20.0"):
        comparison.compare(served(5.0, found=False), served(20.0, found=False))


def test_rates_that_were_found_are_what_is_compared() -> None:
    a, b = (served(rate, found=True, bound=0.2) for rate in (5.0, 20.0))
    found = comparison.compare(a, b)
    assert (found["metric"], found["ratio"], found["ci95"]) == ("rate", 0.25, None)
    assert found["verdict"] == "no difference shown"
    assert (found["a"]["queries_per_s"], found["b"]["queries_per_s"]) == (5.0, 20.0)
    assert comparison.words(found) == (
        "no difference shown: A's rate of arrivals is 0.250 times B's (found by trials, which have "
        "no interval: bench both with one --rate)"
    )
    assert comparison.rates_apart(a, b) == (5.0, 20.0)
    assert comparison.rates_apart(a, a) is None
    assert comparison.rates_apart(served(5.0, found=False), served(5.0, found=False)) is None
    with pytest.raises(ResultError, match=r"different bounds .*: got 0.2 and 0.3"):
        comparison.compare(a, served(5.0, found=True, bound=0.3))
    with pytest.raises(ResultError, match="different ways to the arrivals: got found and given"):
        comparison.compare(a, served(5.0, found=False))


def test_another_device_is_a_caution_where_machines_may_differ() -> None:
    a, b = (result([0.1] * 9, device={"device": name}) for name in ("CPU", "GPU"))
    found = comparison.compare(a, b, across_machines=True)
    assert found["cautions"] == ["different devices: CPU and GPU"]


def test_doubts_come_along() -> None:
    bad = result([0.1] * 9, unstable_because=["a busy CPU"], partial=True)
    cautions = comparison.compare(result([0.1] * 9), bad)["cautions"]
    assert cautions == ["the second: a busy CPU", "the second was interrupted"]


def test_the_measurement_of_a_run_is_taken() -> None:
    run = {"schema": 1, "kind": "run", "bench": result([0.1] * 9)}
    assert comparison.compare(run, result([0.1] * 9))["ratio"] == 1


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"kind": "verify"}, "the second result holds no measurement: got a result of 'verify'"),
        ({"kind": "run", "bench": None}, "a run that measured nothing"),
        ({**result([0.1] * 9), "samples_s": None}, "the second result is wrong"),
        ({**result([0.1] * 9), "samples_s": ["x"] * 9}, "the second result is wrong"),
        ({k: v for k, v in result([0.1] * 9).items() if k != "unstable_because"}, "no usable"),
    ],
)
def test_what_is_no_measurement_is_refused(bad: dict[str, Any], said: str) -> None:
    with pytest.raises(ResultError, match=said):
        comparison.compare(result([0.1] * 9), bad)


def test_queries_take_turns_and_the_order_alternates(clock: Any, timed: Any) -> None:
    asked: list[str] = []

    class Told(timed):  # type: ignore[misc]
        def _infer(self, batch: Any) -> Any:
            asked.append(self.name)
            return super()._infer(batch)

    runners = [Told(clock, [0.25]), Told(clock, [0.5])]
    for runner, name in zip(runners, "ab", strict=True):
        runner.name = name
        runner.__enter__()
    batches = [[np.zeros((1, 3, 4, 4), np.float32)]] * 2
    first, second = against.interleaved(runners, batches, Stop(3.0), clock)
    # Each has three seconds of its own, in pairs of three quarters.
    assert "".join(asked) == "abba" * 4
    assert (first.seconds, second.seconds) == ([0.25] * 8, [0.5] * 8)
    assert first.started[0] < second.started[0]
    assert first.started[1] > second.started[1]
    assert first.measured_seconds == second.measured_seconds == 6.0
    assert not first.partial


@pytest.mark.parametrize("at", [6, 7, 8, 9])
def test_an_interruption_keeps_whole_pairs(clock: Any, timed: Any, at: int) -> None:
    made = itertools.count(1)

    class Interrupted(timed):  # type: ignore[misc]
        def _infer(self, batch: Any) -> Any:
            if next(made) == at:
                raise KeyboardInterrupt
            return super()._infer(batch)

    runners = [Interrupted(clock, [0.25]) for _ in range(2)]
    for runner in runners:
        runner.__enter__()
    batches = [[np.zeros((1, 3, 4, 4), np.float32)]] * 2
    found = against.interleaved(runners, batches, Stop(30.0), clock)
    assert [len(each.seconds) for each in found] == [(at - 1) // 2] * 2
    assert [len(each.started) for each in found] == [(at - 1) // 2] * 2
    assert all(each.partial for each in found)


def test_an_interruption_between_the_two_of_a_pair_drops_it(
    clock: Any, timed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, made = Samples.add, itertools.count(1)

    def add(self: Samples, started: float, ended: float) -> None:
        if next(made) == 6:
            raise KeyboardInterrupt
        whole(self, started, ended)

    monkeypatch.setattr(Samples, "add", add)
    runners = [timed(clock, [0.25]) for _ in range(2)]
    for runner in runners:
        runner.__enter__()
    batches = [[np.zeros((1, 3, 4, 4), np.float32)]] * 2
    found = against.interleaved(runners, batches, Stop(30.0), clock)
    assert [len(each.seconds) for each in found] == [2, 2]
    assert [len(each.started) for each in found] == [2, 2]


@pytest.mark.parametrize("scenario", ["throughput", "server"])
def test_overlapping_queries_have_no_turns(scenario: Any) -> None:
    with pytest.raises(ConfigError, match="query by query"):
        against.check(BenchOptions(scenario=scenario))
    with pytest.raises(ConfigError, match="got --mlperf"):
        against.check(BenchOptions(mlperf=True))
    against.check(BenchOptions(scenario="multistream"))
