"""The attainable peak, with a clock that tells exactly what was told to it, and for real."""

from __future__ import annotations

from typing import Any

import pytest

from vggdeploy.benchmarks import peak
from vggdeploy.contracts import LayerTime, Probe, Silent
from vggdeploy.errors import ConfigError

WARM = [8.0] * peak.WARMUP_QUERIES


@pytest.fixture(autouse=True)
def six_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """One query a turn."""
    monkeypatch.setattr(peak, "ROUNDS", 6)
    monkeypatch.setattr(peak, "SECONDS", 0.0)


def test_the_best_query_of_the_best_probe_of_each_precision(clock: Any, timed: Any) -> None:
    probes = [
        Probe("a", timed(clock, [*WARM, 1.0, 0.25, 1.0]), macs=1000, precision="int8"),
        Probe("b", timed(clock, [*WARM, 0.5]), macs=3000, precision="int8"),
        Probe("c", timed(clock, [*WARM, 2.0]), macs=500, precision="fp32"),
        Probe("d", timed(clock, [0.125, 0.125, 0.5, 0.25, 0.5]), bytes=64),
        Probe("e", timed(clock, [*WARM, 1.0]), bytes=16),
    ]
    found = peak.measure(probes, Silent(), clock=clock, cache_bytes=12345)
    # b: 3000 MACs in 0.5 s beats a: 1000 in 0.25 s. d's first two queries are its warm-up.
    assert found.macs_per_s == {"int8": 6000, "fp32": 250}
    assert found.bytes_per_s == 64 / 0.25
    assert found.cache_bytes == 12345
    assert all(probe.runner.stopped == 1 for probe in probes)  # type: ignore[attr-defined]
    assert peak.peak(probes[:1], "int8", Silent(), clock).macs_per_s == 1000.0


def test_probes_take_turns_with_each_other_and_with_the_callers_work(
    clock: Any, timed: Any
) -> None:
    order: list[str] = []

    class Told(timed):  # type: ignore[misc]
        def _infer(self, batch: Any) -> Any:
            order.append(self.label)
            return super()._infer(batch)

    probes = []
    for label in "ab":
        runner = Told(clock, [1.0])
        runner.label = label
        probes.append(Probe(label, runner, macs=1, precision="fp32"))
    peak.measure(probes, Silent(), lambda: order.append("-"), clock)
    assert "".join(order) == "aabb" + "-ab" * 6


def test_a_turn_lasts_its_time(clock: Any, timed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "SECONDS", 6.0)
    runner = timed(clock, [0.25])
    peak.measure([Probe("a", runner, macs=1, precision="fp32")], Silent(), clock=clock)
    assert len(runner.seen) == peak.WARMUP_QUERIES + 6 * 4


@pytest.mark.parametrize("goal", [2000, 4000, 9000])
def test_probes_go_on_while_they_are_known_to_fall_short(clock: Any, timed: Any, goal: int) -> None:
    """The second attempt's third query is the one that was not disturbed."""
    runner = timed(clock, [*WARM, *[0.5] * 8, 0.25, 0.5])
    asked = []

    def enough(found: Any) -> bool:
        asked.append(found.macs_per_s["fp32"])
        return bool(asked[-1] >= goal)

    probe = Probe("a", runner, macs=1000, precision="fp32")
    found = peak.measure([probe], Silent(), clock=clock, enough=enough)
    expected = [2000, 4000, 4000][: 1 if goal == 2000 else 2 if goal == 4000 else peak.ATTEMPTS]
    assert asked == expected
    assert found.macs_per_s == {"fp32": expected[-1]}
    assert len(runner.seen) == peak.WARMUP_QUERIES + 6 * len(expected)


def test_where_layers_are_timed_the_best_of_those_that_work_counts(clock: Any, timed: Any) -> None:
    class Told(timed):  # type: ignore[misc]
        def layer_times(self) -> list[LayerTime]:
            best = 0.25 if len(self.seen) == 4 else 0.5
            return [
                LayerTime("quantize", (), "Subgraph", "f32", 0.625),
                LayerTime("first", (), "Convolution", "I8", 0.5),
                LayerTime("second", (), "Convolution", "I8", best),
            ]

    probe = Probe("a", Told(clock, [4.0]), macs=1000, precision="fp32")
    found = peak.measure([probe], Silent(), clock=clock)
    # Half of the MACs in a quarter of a second, and in 8 bits as the backend says.
    assert found.macs_per_s == {"int8": 2000.0}


def test_a_gpus_table_has_the_precisions_that_it_has() -> None:
    facts = {
        "name": "GPU", "compute_capability": "8.0", "multiprocessors": 10, "clock_hz": 1e9,
        "memory_clock_hz": 1e6, "memory_bus_bits": 256,
    }  # fmt: skip
    found = peak.rated(facts, "int8")
    assert found.macs_per_s == {"int8": 2048e10, "fp32": 64e10, "fp16": 1024e10}
    assert (found.bytes_per_s, found.cache_bytes) == (64e6, None)
    # Volta's predecessors have no 8 bits.
    old = peak.rated({**facts, "compute_capability": "6.0"}, "fp32")
    assert old.macs_per_s == {"fp32": 64e10, "fp16": 128e10}
    with pytest.raises(ConfigError):
        peak.rated({**facts, "compute_capability": "1.0"}, "fp32")
