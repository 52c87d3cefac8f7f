"""bench(): a bundle measured on a faked device, and the result that scripts rely on."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest

from vggdeploy import bundle
from vggdeploy.benchmarks import BenchOptions, bench
from vggdeploy.contracts import Probe
from vggdeploy.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


def by_hand() -> int:
    """VGG16 with every width divided by 8, at 224 pixels, counted from its table."""
    macs, channels, side = 0, 3, 224
    for step in (8, 8, 0, 16, 16, 0, 32, 32, 32, 0, 64, 64, 64, 0, 64, 64, 64, 0):
        if step:
            macs += step * channels * 9 * side**2
            channels = step
        else:
            side //= 2
    return macs + 64 * 49 * 512 + 512 * 512 + 512 * 1000


@pytest.fixture
def measured(slim_bundle: Path, clock: Any, timed: Any) -> Any:
    """Runs bench() over runners that take 1/4 s a query and 1/8 s a result."""

    class Target:
        opened: Any = []  # noqa: RUF012

        def probes(self, options: Any) -> list[Probe]:
            return [
                Probe("conv", timed(clock, [2.0]), macs=4_000_000_000),
                Probe("matrix", timed(clock, [0.5]), bytes=1_000_000_000),
            ]

        def open(self, opened: Any, options: Any) -> Any:
            self.opened.append(options)
            latency = options.goal == "latency"
            return timed(
                clock,
                [0.25 if latency else 0.125],
                batch=options.batch,
                depth=1 if latency else 4,
                shape=(3, 224, 224),
            )

    def run(**options: Any) -> dict[str, Any]:
        Target.opened.clear()
        chosen = BenchOptions(**{"seconds": 10.0, **options})
        result = bench(bundle.open_bundle(slim_bundle), Target(), chosen, clock=clock)
        result["opened"] = list(Target.opened)
        return result

    return run


@pytest.mark.parametrize("batch", [1, 3])
def test_figures_are_exact(measured: Any, batch: int) -> None:
    result = measured(batch=batch)
    assert result["samples_s"] == [0.25] * 40
    assert result["latency_s"] == dict.fromkeys(("p50", "p90", "p99", "mean", "min", "max"), 0.25)
    assert result["throughput_ips"] == batch / 0.125
    assert result["batch"] == batch
    judged = result["budget"]
    assert judged["macs"] == batch * by_hand()
    assert judged["achieved_macs_per_s"] == batch * by_hand() / 0.25
    assert judged["peak_macs_per_s"] == 2e9
    assert judged["utilisation"] == pytest.approx(batch * by_hand() / 0.25 / 2e9, rel=1e-12)
    assert judged["compute_floor_s"] == pytest.approx(batch * by_hand() / 2e9, rel=1e-12)
    assert judged["bound"] == "compute"
    # INT8 weights are a byte each, biases four: the floor's bytes over 1 GB in half a second.
    assert judged["memory_floor_s"] == pytest.approx(judged["bytes"] / 2e9, rel=1e-12)


def test_bytes_are_the_weights(measured: Any) -> None:
    engine = measured()["engine_bytes"]
    # The engine is the weights, their scales, and a description of the graph.
    assert 0.85 * engine < measured()["budget"]["bytes"] < engine


def test_every_name_that_scripts_rely_on(measured: Any) -> None:
    result = measured()
    assert {
        "kind", "scenario", "batch", "latency_s", "samples_s", "throughput_ips", "budget",
        "stable", "system",
    } <= set(result)  # fmt: skip
    assert set(result["latency_s"]) == {"p50", "p90", "p99", "mean", "min", "max"}
    assert {
        "macs", "achieved_macs_per_s", "peak_macs_per_s", "utilisation", "compute_floor_s",
        "memory_floor_s", "bound",
    } <= set(result["budget"])  # fmt: skip
    assert result["kind"] == "bench"
    assert result["scenario"] == "latency"
    assert result["stable"] is True
    assert result["unstable_because"] == []
    assert isinstance(result["budget"]["macs"], int)
    assert {"cpu", "cores", "memory_bytes", "python", "libraries"} <= set(result["system"])


def floats(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [x for part in value.values() for x in floats(part)]
    if isinstance(value, list | tuple):
        return [x for part in value for x in floats(part)]
    return [value] if isinstance(value, float) else []


def test_result_is_json_with_finite_figures(measured: Any) -> None:
    result = measured()
    del result["opened"]
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert all(math.isfinite(figure) for figure in floats(result))
    assert len(floats(result)) > 50


def test_latency_and_throughput_are_asked_for_by_name(measured: Any) -> None:
    opened = measured(batch=2, device="GPU.1")["opened"]
    assert [(o.device, o.batch, o.goal) for o in opened] == [
        ("GPU.1", 2, "latency"), ("GPU.1", 2, "throughput")
    ]  # fmt: skip


@pytest.mark.parametrize("bad", [{"batch": 0}, {"batch": -1}])
def test_impossible_batch(measured: Any, bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="batch"):
        measured(**bad)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_time(measured: Any, seconds: float) -> None:
    with pytest.raises(ConfigError, match="time"):
        measured(seconds=seconds)
