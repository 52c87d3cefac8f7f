"""What a measurement can be asked for, and what does not go together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vggdeploy.benchmarks import BenchOptions
from vggdeploy.benchmarks.scenarios import Stop
from vggdeploy.errors import ConfigError


@pytest.mark.parametrize(
    ("options", "stop"),
    [
        ({}, Stop(5.0, 30)),
        ({"seconds": 2.0}, Stop(2.0, 30)),
        ({"precision": 0.01}, Stop(60.0, 30, 0.01)),
        ({"precision": 0.01, "seconds": 9.0, "queries": 100}, Stop(9.0, 100, 0.01)),
    ],
)
def test_when_it_ends(options: dict[str, Any], stop: Stop) -> None:
    chosen = BenchOptions(**options)
    chosen.check()
    assert chosen.stop == stop


@pytest.mark.parametrize(
    ("options", "size", "goal"),
    [
        ({"batch": 4}, 4, "latency"),
        ({"batch": 4, "scenario": "throughput"}, 4, "throughput"),
        ({"scenario": "multistream"}, 8, "latency"),
        ({"scenario": "multistream", "batch": 8}, 8, "latency"),
        ({"scenario": "server", "rate": 3.0}, 1, "throughput"),
        ({"scenario": "server", "p99_bound": 0.1, "mlperf": True, "full": True}, 1, "throughput"),
        ({"mlperf": True, "logs": Path("logs")}, 1, "latency"),
    ],
)
def test_what_a_query_is(options: dict[str, Any], size: int, goal: str) -> None:
    chosen = BenchOptions(**options)
    chosen.check()
    assert (chosen.size, chosen.goal) == (size, goal)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scenario": "offline"}, "unknown scenario: got 'offline', expected latency, throughput"),
        ({"batch": 0}, "the batch is out of range: got 0.* mend --batch"),
        ({"batches": (1, 0)}, "the batch is out of range: got 0.* mend --batches"),
        ({"seconds": float("nan")}, "the time is out of range"),
        ({"queries": 0}, "the number of queries is out of range"),
        ({"precision": 0.0}, "the precision is out of range"),
        ({"precision": 1.0}, "the precision is out of range"),
        ({"scenario": "server", "rate": 0.0}, "the rate is out of range"),
        ({"scenario": "server", "p99_bound": -1.0}, "the bound is out of range"),
        (
            {"scenario": "server", "rate": 1e12},
            r"too many queries would arrive: got 5e\+12, .* for 5 s, expected 10,000,000 at most",
        ),
        ({"scenario": "server", "rate": 9.0, "seconds": 1e9}, "too many queries would arrive"),
        ({"rate": 1.0}, "--rate is of arrivals"),
        ({"p99_bound": 1.0}, "--p99-bound is what --scenario server"),
        ({"scenario": "server"}, "needs a rate, or a bound"),
        ({"scenario": "server", "rate": 1.0, "precision": 0.1}, "--precision is of a loop"),
        ({"scenario": "multistream", "batch": 4}, "has 8 samples"),
        ({"full": True}, "--full and --logs are of --mlperf"),
        ({"logs": Path("logs")}, "--full and --logs are of --mlperf"),
        ({"mlperf": True, "queries": 9}, "LoadGen decides by itself"),
        ({"mlperf": True, "precision": 0.1}, "LoadGen decides by itself"),
        ({"mlperf": True, "scenario": "server", "rate": 1.0}, "is held to a bound"),
        ({"mlperf": True, "batch": 2}, "SingleStream is one sample"),
        (
            {"mlperf": True, "batch": 2, "scenario": "server", "p99_bound": 1.0},
            "Server is one sample",
        ),
    ],
)
def test_what_cannot_be(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        BenchOptions(**options).check()
