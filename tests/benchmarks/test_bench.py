"""bench(): a bundle measured on a faked device, and the result that scripts rely on."""

from __future__ import annotations

import io
import json
import math
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from vggdeploy import bundle
from vggdeploy.bench_table import show_bench
from vggdeploy.benchmarks import BenchOptions, bench
from vggdeploy.benchmarks.scenarios import Samples
from vggdeploy.benchmarks.watch import Look
from vggdeploy.contracts import Probe
from vggdeploy.errors import ConfigError
from vggdeploy.terminal import Terminal

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


def quiet() -> Look:
    """A look at a machine that tells nothing."""
    return Look(0.0, None, 0.0, 1)


@pytest.fixture
def measured(slim_bundle: Path, clock: Any, timed: Any) -> Any:
    """Runs bench() over runners that take 1/4 s a query and 1/8 s a result."""

    class Target:
        precision = "int8"
        opened: Any = []  # noqa: RUF012

        def device_facts(self, device: str) -> dict[str, Any]:
            return {}

        def probes(self, options: Any) -> list[Probe]:
            return [
                Probe("conv", timed(clock, [2.0]), macs=4_000_000_000, precision="int8"),
                Probe("matrix", timed(clock, [0.5]), bytes=1_000_000_000),
            ]

        def open(self, opened: Any, options: Any) -> Any:
            self.opened.append(options)
            latency = options.goal == "latency"
            runner = timed(
                clock,
                [0.25 if latency else 0.125],
                batch=options.batch,
                depth=1 if latency else 4,
                shape=(3, 224, 224),
            )
            self.spoil(runner, options)
            return runner

        @staticmethod
        def spoil(runner: Any, options: Any) -> None: ...

    def run(
        spoil: Any = lambda runner, options: None, look: Any = quiet, **options: Any
    ) -> dict[str, Any]:
        Target.opened.clear()
        target = Target()
        target.spoil = spoil  # type: ignore[method-assign]
        chosen = BenchOptions(**{"seconds": 10.0, **options})
        opened = bundle.open_bundle(slim_bundle)

        def sleep(seconds: float) -> None:
            clock.now += seconds

        result = bench(opened, target, chosen, clock=clock, sleep=sleep, look=look)
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
    assert (judged["bound"], judged["peak_from"]) == ("compute", "measured")
    # INT8 weights are a byte each, biases four: the floor's bytes over 1 GB in half a second.
    assert judged["memory_floor_s"] == pytest.approx(judged["bytes"] / 2e9, rel=1e-12)


class Gpu:
    """A target with no networks that show its peak."""

    precision = "int8"

    def __init__(self, runner: Any, capability: str, copies: dict[str, float]) -> None:
        self.runner, self.capability, self.copies = runner, capability, copies

    def probes(self, options: Any) -> list[Probe]:
        return []

    def copy_rates(self, device: str) -> dict[str, float]:
        return self.copies

    def device_facts(self, device: str) -> dict[str, Any]:
        return {
            "name": "GPU", "compute_capability": self.capability, "multiprocessors": 10,
            "clock_hz": 1e9, "memory_clock_hz": 1e6, "memory_bus_bits": 256,
        }  # fmt: skip

    def open(self, opened: Any, options: Any) -> Any:
        return self.runner()


@pytest.mark.parametrize(
    ("capability", "floor"), [("8.0", "memory"), ("8.7", "compute")], ids=["card", "jetson"]
)
def test_where_nothing_shows_the_peak_it_is_the_tables(
    slim_bundle: Path, clock: Any, timed: Any, capability: str, floor: str
) -> None:
    gpu = Gpu(lambda: timed(clock, [0.25], shape=(3, 224, 224)), capability, {})
    found = bench(
        bundle.open_bundle(slim_bundle), gpu, BenchOptions(seconds=1.0), clock=clock, look=quiet
    )
    judged = found["budget"]
    # Both generations multiply 2,048 times a clock and SM in 8 bits.
    assert judged["peak_macs_per_s"] == 2048 * 10 * 1e9
    assert (judged["peak_from"], judged["bound"]) == ("table", floor)
    # 2 * 1 MHz * 32 bytes; a GPU that shares a CPU's memory is not told its clock.
    assert judged["peak_bytes_per_s"] == (64e6 if capability == "8.0" else None)
    assert (judged["memory_floor_s"] is None) == (capability == "8.7")
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("capability", ["8.0", "8.7"], ids=["card", "jetson"])
def test_where_copies_are_measured_the_memorys_floor_is_theirs(
    slim_bundle: Path, clock: Any, timed: Any, capability: str
) -> None:
    copies = {"copy_bytes_per_s": 50e6, "upload_bytes_per_s": 7e6, "download_bytes_per_s": 6e6}
    gpu = Gpu(lambda: timed(clock, [0.25], shape=(3, 224, 224)), capability, copies)
    found = bench(bundle.open_bundle(slim_bundle), gpu, BenchOptions(seconds=1.0), clock=clock)
    judged = found["budget"]
    assert judged["peak_macs_per_s"] == 2048 * 10 * 1e9
    assert judged["peak_bytes_per_s"] == 50e6
    assert judged["memory_floor_s"] == pytest.approx(judged["bytes"] / 50e6)
    assert judged["peak_from"] == "rate by table, bandwidth measured"
    assert copies.items() <= found["device"].items()
    page = io.StringIO()
    show_bench(Terminal(Console(file=page, width=120)), found)
    assert "by its table, memory measured" in page.getvalue()


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
    # Layers are profiled when the samples are in, on an engine of their own.
    assert [(o.device, o.batch, o.goal, o.profile) for o in opened] == [
        ("GPU.1", 2, "latency", False), ("GPU.1", 2, "throughput", False),
        ("GPU.1", 2, "latency", True),
    ]  # fmt: skip


@pytest.mark.parametrize("bad", [{"batch": 0}, {"batch": -1}])
def test_impossible_batch(measured: Any, bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="batch"):
        measured(**bad)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_time(measured: Any, seconds: float) -> None:
    with pytest.raises(ConfigError, match="time"):
        measured(seconds=seconds)


KEYS = {
    "kind", "bundle", "target", "digest", "scenario", "batch", "device", "settings", "latency_s",
    "ci95", "early_stopping", "samples_s", "started_s", "throughput_ips", "throughput_requests",
    "throughput_queries", "throughput_by_batch", "warmup", "measured_seconds", "partial", "budget", "energy",
    "temperature_c", "stable", "unstable_because", "advice", "engine_bytes", "system", "mlperf",
}  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scenario": "throughput"},
        {"scenario": "multistream"},
        {"scenario": "server", "rate": 2.0},
        {"scenario": "server", "p99_bound": 0.5, "seconds": 30.0},
    ],
    ids=lambda options: "-".join(map(str, options.values())) or "latency",
)
def test_every_scenario_has_every_key(measured: Any, options: dict[str, Any]) -> None:
    result = measured(**options)
    assert set(result) >= KEYS
    assert set(result["ci95"]) == {"p50", "p90", "p99"}
    assert set(result["early_stopping"]) == {"p90", "p99"}
    assert set(result["settings"]) == {"streams", "threads", "pinning", "precision"}
    assert set(result["warmup"]) == {"queries", "seconds", "steady"}
    assert result["budget"]["layers"] == []
    assert result["budget"]["peak_check"] is None
    assert len(result["samples_s"]) == len(result["started_s"])
    assert result["started_s"][0] == 0.0
    assert result["partial"] is False
    assert json.loads(json.dumps({k: v for k, v in result.items() if k != "opened"}))


def test_intervals_are_of_the_samples(measured: Any) -> None:
    result = measured()
    assert result["ci95"] == {"p50": [0.25, 0.25], "p90": [0.25, 0.25], "p99": None}
    assert result["early_stopping"] == {"p90": None, "p99": None}  # 64 and 662 are the fewest
    assert result["started_s"] == [0.25 * k for k in range(40)]
    assert result["measured_seconds"] == 10.0
    result = measured(queries=662)
    assert result["ci95"]["p99"] == [0.25, 0.25]
    assert result["early_stopping"] == {"p90": 0.25, "p99": 0.25}


def test_throughput_is_measured_in_the_queue(measured: Any) -> None:
    result = measured(scenario="throughput", batch=2)
    assert result["throughput_ips"] == 16.0
    assert result["samples_s"] == [0.5] * 80  # four are in flight
    assert (result["throughput_requests"], result["throughput_queries"]) == (4, 80)
    assert [o.goal for o in result["opened"]] == ["throughput", "latency"]  # its layers
    assert result["budget"]["achieved_macs_per_s"] == pytest.approx(16 * by_hand())


def test_the_queue_beside_latency_says_its_own_length(measured: Any) -> None:
    result = measured(queries=400)
    assert (len(result["samples_s"]), result["throughput_queries"]) == (400, 80)
    assert measured(seconds=20.0)["throughput_queries"] == 160


def test_multistream_has_eight_samples_a_query(measured: Any) -> None:
    result = measured(scenario="multistream")
    assert (result["batch"], result["throughput_ips"]) == (8, 32.0)
    assert [(o.batch, o.goal) for o in result["opened"]] == [(8, "latency")] * 2  # its layers
    assert result["budget"]["macs"] == 8 * by_hand()
    # Its figure is the 99th percentile, which 40 samples do not show.
    assert result["unstable_because"] == [
        "40 samples are too few for the 99th percentile, which takes 368"
    ]
    assert result["advice"] == [
        f"vggdeploy bench {result['bundle']} --scenario multistream --seconds 10 --no-tuned "
        "--queries 368"
    ]
    assert measured(scenario="multistream", queries=368)["stable"]


def test_server_at_a_rate(measured: Any) -> None:
    result = measured(scenario="server", rate=4.0, queries=400)
    assert result["server"]["capacity"] == 8.0
    assert (result["server"]["rate"], result["server"]["found"]) == (4.0, False)
    assert result["server"]["tried"] == []
    assert len(result["samples_s"]) == 400
    assert min(result["samples_s"]) == pytest.approx(0.125)
    assert max(result["samples_s"]) > 0.25  # some had to wait
    # 400 arrivals at 4 a second: three deviations of their sum are 15%.
    assert result["throughput_ips"] == pytest.approx(4.0, rel=0.15)
    assert result["stable"], result["unstable_because"]


def test_server_finds_the_highest_rate_and_measures_at_it(measured: Any) -> None:
    result = measured(scenario="server", p99_bound=0.5, seconds=20.0)
    server = result["server"]
    assert server["found"]
    assert 1.0 < server["rate"] < 8.0
    assert server["tried"][0] == {"rate": 8.0, "p99": None, "holds": False}
    held = [trial for trial in server["tried"] if trial["holds"]]
    assert server["rate"] == max(trial["rate"] for trial in held)
    assert all(trial["p99"] <= 0.5 for trial in held)
    assert len(result["samples_s"]) >= 20 * server["rate"]


def test_more_arrivals_than_can_end_are_told(measured: Any) -> None:
    result = measured(scenario="server", rate=16.0, queries=400)
    assert any("at most 8 can end" in reason for reason in result["unstable_because"])
    again = "--scenario server --seconds 10 --queries 400 --no-tuned --rate 6.4"
    assert f"vggdeploy bench {result['bundle']} {again}" in result["advice"]


@pytest.mark.parametrize("mlperf", [False, True])
def test_a_rate_that_would_take_minutes_is_refused_once_the_capacity_is_known(
    measured: Any, monkeypatch: pytest.MonkeyPatch, mlperf: bool
) -> None:
    monkeypatch.setattr("vggdeploy.benchmarks.mlperf.available", lambda logs: None)
    bound = {"mlperf": True, "p99_bound": 1.0} if mlperf else {}
    with pytest.raises(ConfigError, match=r"--rate is far above .*got 1000 .*expected 16 at most"):
        measured(scenario="server", rate=1000.0, **bound)


def test_more_arrivals_than_a_schedule_holds_are_refused(measured: Any) -> None:
    with pytest.raises(ConfigError, match="too many queries would arrive"):
        measured(scenario="server", p99_bound=0.5, seconds=1e9)


def test_what_loadgen_calls_invalid_is_unstable(
    measured: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = Samples([0.25] * 40, [0.25 * turn for turn in range(40)], 0.0, 10.0)
    said = {"result": "INVALID", "because": ["Early stopping satisfied"], "full": False}
    monkeypatch.setattr("vggdeploy.benchmarks.mlperf.available", lambda logs: None)
    monkeypatch.setattr("vggdeploy.benchmarks.mlperf.run", lambda *_: (samples, said))
    result = measured(mlperf=True)
    assert result["unstable_because"] == [
        "LoadGen calls the run INVALID (Early stopping satisfied: NO)"
    ]
    said["result"] = "VALID"
    assert measured(mlperf=True)["stable"]


def test_throughput_by_batch(measured: Any) -> None:
    result = measured(batches=(1, 2, 4))
    assert result["throughput_by_batch"] == [
        {"batch": size, "images_per_s": size / 0.125} for size in (1, 2, 4)
    ]
    assert result["throughput_ips"] == 8.0
    goals = [(o.batch, o.goal) for o in result["opened"]]
    assert goals == [
        (1, "latency"), (1, "throughput"), (2, "throughput"), (4, "throughput"),
        (1, "latency"),  # its layers
    ]  # fmt: skip


def test_a_precision_ends_early_or_is_said_to_be_missed(measured: Any) -> None:
    assert len(measured(precision=0.01)["samples_s"]) == 30

    def uneven(runner: Any, options: Any) -> None:
        import itertools

        runner._left = itertools.cycle([0.25, 0.3125])

    result = measured(spoil=uneven, precision=0.01, seconds=20.0)
    assert result["measured_seconds"] == pytest.approx(20.0, abs=0.32)
    assert any("not the 1.00% asked for" in reason for reason in result["unstable_because"])


def test_a_busy_neighbour_makes_it_unstable(measured: Any) -> None:
    looks = iter([Look(0.0, 100.0, 50.0, 2), Look(10.0, 115.0, 60.0, 2)])
    result = measured(look=lambda: next(looks))
    assert result["stable"] is False
    assert result["unstable_because"] == ["a busy CPU: other processes had 25% of its time"]
    assert result["advice"] == ["ps -eo pid,pcpu,comm --sort=-pcpu | head"]
    assert result["others_share"] == 0.25


def interrupt(goal: str, after: int) -> Any:
    """Ctrl-C at a query of a runner that was opened for `goal`."""

    def spoil(runner: Any, options: Any) -> None:
        if options.goal != goal:
            return
        whole = runner._infer

        def infer(batch: Any) -> Any:
            if len(runner.seen) == after:
                raise KeyboardInterrupt
            return whole(batch)

        runner._infer = infer

    return spoil


def test_ctrl_c_keeps_the_samples_so_far(measured: Any) -> None:
    result = measured(spoil=interrupt("latency", 9 + 12))  # nine warmed up
    assert result["partial"] is True
    assert result["samples_s"] == [0.25] * 12
    assert [o.goal for o in result["opened"]] == ["latency"], "nothing is begun after it"
    assert result["throughput_ips"] is None
    judged = result["budget"]
    assert judged["achieved_macs_per_s"] == by_hand() / 0.25
    nothing = ("peak_macs_per_s", "utilisation", "compute_floor_s", "memory_floor_s", "bound")
    assert all(judged[key] is None for key in nothing)
    assert json.loads(
        json.dumps({k: v for k, v in result.items() if k != "opened"}, allow_nan=False)
    )


def test_ctrl_c_after_the_latency_keeps_all_of_it(measured: Any) -> None:
    result = measured(spoil=interrupt("throughput", 40))
    assert result["partial"] is True
    assert result["samples_s"] == [0.25] * 40
    assert result["throughput_ips"] == 8.0  # of what had ended
    assert result["budget"]["utilisation"] is None


def test_ctrl_c_before_the_first_sample_is_ctrl_c(measured: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        measured(spoil=interrupt("latency", 9))
    with pytest.raises(KeyboardInterrupt):
        measured(spoil=interrupt("latency", 3))
    with pytest.raises(KeyboardInterrupt):
        measured(spoil=interrupt("throughput", 20), scenario="server", rate=1.0)
