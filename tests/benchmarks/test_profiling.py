"""Layers of the slim network, profiled by OpenVINO for real, and what a fake says."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from vggdeploy import bundle, targets
from vggdeploy.benchmarks import peak, profiling
from vggdeploy.contracts import LayerTime, Probe, RunOptions, Silent
from vggdeploy.errors import RunnerError
from vggdeploy.machine import caches
from vggdeploy.roofline import REST, Peaks

if TYPE_CHECKING:
    from pathlib import Path

HIGH = Peaks({"int8": 1e15, "fp32": 1e15}, 1e15, None)
"""What no machine attains, so that no layer beats it however fast it is."""


@pytest.fixture(autouse=True)
def two_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "ROUNDS", 2)
    monkeypatch.setattr(peak, "SECONDS", 0.0)


class Kept:
    """A target whose runners' layer times are kept, and whose probes are few."""

    def __init__(self, target: Any) -> None:
        self.target, self.precision = target, target.precision
        self.told: list[list[LayerTime]] = []

    def probes(self, options: Any) -> list[Probe]:
        # A small one of each roof serves: what they measure is not what is tested here.
        found = self.target.probes(options)
        return [next(p for p in found if p.macs), next(p for p in found if p.bytes)]

    def open(self, opened: Any, options: Any) -> Any:
        runner = self.target.open(opened, options)
        inner, told = runner.layer_times, self.told

        def layer_times() -> list[LayerTime]:
            told.append(inner())
            return told[-1]

        runner.layer_times = layer_times
        return runner


@pytest.fixture
def profiled(slim_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    opened = bundle.open_bundle(slim_bundle)
    target = Kept(targets.get(opened.target))
    pixels = opened.probes().images[:2]

    def run(peaks: Peaks | None = None, batch: int = 1) -> tuple[dict[str, Any], Any]:
        if peaks is not None:
            monkeypatch.setattr(
                peak, "measure",
                lambda probes, reporter, between, *rest: [between(), between(), peaks][2],
            )  # fmt: skip
        found = profiling.layers(
            opened, target, RunOptions(batch=batch), [opened.batch(pixels[:batch])], Silent()
        )
        return found.budget, target.told[profiling.WARMUP_QUERIES :]

    return run


def test_every_layer_of_the_budget_is_found(profiled: Any, slim_bundle: Path) -> None:
    said, told = profiled(HIGH)
    listed = bundle.open_bundle(slim_bundle).budget()["layers"]
    by_name = {row["name"]: row for row in said["layers"]}
    assert list(by_name) == [*(layer["name"] for layer in listed), REST]
    # Average pooling of 7x7 to 7x7 changes nothing, and is not exported.
    assert [name for name, row in by_name.items() if not row["engine_layers"]] == ["avgpool"]
    assert said["profile"]["unmatched"] == []
    assert len(told) == said["profile"]["queries"] == 2 * profiling.QUERIES
    for layer in listed:
        row = by_name[layer["name"]]
        assert row["macs"] == layer["macs"]
        kinds = {time.kind for time in told[0] if time.name in row["engine_layers"]}
        expected = {"conv": {"Convolution"}, "maxpool": {"MaxPool"}, "avgpool": set()}
        assert kinds == expected.get(layer["kind"], {"FullyConnectedCompressed"}) or (
            layer["kind"] == "linear" and all("FullyConnected" in kind for kind in kinds)
        )


def test_every_engine_layer_is_in_one_row_and_only_executed_ones_are(profiled: Any) -> None:
    said, told = profiled(HIGH)
    listed = Counter(name for row in said["layers"] for name in row["engine_layers"])
    for query in told:
        assert Counter(time.name for time in query) == listed
    # These are in the profile too, as not run.
    kinds = {time.kind for query in told for time in query}
    assert not kinds & {"Parameter", "Result", "Constant", "FakeQuantize", "Reshape"}
    assert all(row["seconds"] > 0 for row in said["layers"] if row["macs"])


def test_rows_add_up_to_each_querys_profile(profiled: Any) -> None:
    said, told = profiled(HIGH)
    rows = {row["name"]: row for row in said["layers"]}
    assert said["profile"]["seconds"] == pytest.approx(sum(r["seconds"] for r in rows.values()))
    assert sum(row["share"] for row in rows.values()) == pytest.approx(1.0)
    # A row's seconds are its median, so between the least and the most of the queries' totals.
    totals = [sum(time.seconds for time in query) for query in told]
    of_row = [
        [sum(t.seconds for t in query if t.name in row["engine_layers"]) for query in told]
        for row in rows.values()
    ]
    for index, total in enumerate(totals):
        assert sum(seconds[index] for seconds in of_row) == pytest.approx(total, rel=1e-9)


def test_a_batch_multiplies_macs_and_not_weights(profiled: Any) -> None:
    one, _ = profiled(HIGH)
    two, _ = profiled(HIGH, batch=2)
    for single, double in zip(one["layers"], two["layers"], strict=True):
        assert double["macs"] == 2 * single["macs"]
        assert double["weight_bytes"] == single["weight_bytes"]
        assert double["activation_bytes"] == 2 * single["activation_bytes"]


def test_nodes_are_those_of_the_runtime_model(slim_bundle: Path, profiled: Any) -> None:
    """A convolution's engine layer is also what was fused into it, and a reorder nobody's."""
    _, told = profiled(HIGH)
    nodes = bundle.open_bundle(slim_bundle).budget()["nodes"]
    convolutions = [time for time in told[0] if time.kind == "Convolution"]
    assert len(convolutions) == 13
    named = [name for name in nodes if name.startswith("features") and "conv" in nodes[name]]
    for time, layer in zip(convolutions, named, strict=True):
        assert nodes[layer] in time.nodes
        assert len(time.nodes) > 1
    assert {time.nodes for time in told[0] if time.kind == "Reorder"} == {()}


def test_a_device_that_shows_no_runtime_model(
    slim_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = bundle.open_bundle(slim_bundle)
    with targets.get(opened.target).open(opened, RunOptions(profile=True)) as runner:

        def refuse() -> Any:
            raise RuntimeError("not implemented")

        monkeypatch.setattr(runner, "executed_layers", refuse)
        runner.infer(opened.batch(opened.probes().images[:1]))
        assert all(time.nodes == (time.name,) for time in runner.layer_times())


def test_precisions_are_the_kernels(profiled: Any) -> None:
    said, _ = profiled(HIGH)
    by_kind = {row["kind"]: row["precision"] for row in said["layers"]}
    assert by_kind["conv"] == "int8"
    assert by_kind["linear"] in ("fp32", "int8")  # with VNNI, dynamically quantized


def test_a_peak_that_is_too_low_is_found_out(profiled: Any) -> None:
    assert profiled(HIGH)[0]["peak_check"] == {"ok": True, "beaten_by": []}
    low, _ = profiled(Peaks({"int8": 1.0, "fp32": 1.0}, 1.0, None))
    check = low["peak_check"]
    assert not check["ok"]
    assert {beaten["name"] for beaten in check["beaten_by"]} == {
        row["name"] for row in low["layers"] if row["macs"] or row["bytes"]
    }
    assert {beaten["roof"] for beaten in check["beaten_by"]} == {"compute", "memory"}
    json.dumps(low, allow_nan=False)


def test_a_beaten_peak_is_measured_on(profiled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What profiling tells the probes: whether the layers so far are bounded by what was found."""
    low, told = Peaks({"int8": 1.0, "fp32": 1.0}, 1.0, None), []

    def measure(
        probes: Any, reporter: Any, between: Any, clock: Any, cache: Any, enough: Any
    ) -> Peaks:
        between()
        told.extend([enough(low), enough(HIGH)])
        return HIGH

    monkeypatch.setattr(peak, "measure", measure)
    assert profiled()[0]["peak_check"]["ok"]
    assert told == [False, True]


def test_measured_for_real(profiled: Any) -> None:
    said, _ = profiled()
    assert said["peak_from"] == "measured"
    assert said["roofline"]["macs_per_s"]["int8"] > 1e8
    assert said["roofline"]["bytes_per_s"] > 1e8
    assert len(said["roofline"]["points"]) == 16
    json.dumps(said, allow_nan=False)


def test_a_backend_that_does_not_tell(slim_bundle: Path, clock: Any, timed: Any) -> None:
    class Mute:
        precision = "int8"

        def open(self, opened: Any, options: Any) -> Any:
            assert options.profile
            assert options.goal == "latency"
            return timed(clock, [1.0])

        def probes(self, options: Any) -> list[Probe]:
            return [
                Probe("a", timed(clock, [0.5]), macs=1000, precision="int8"),
                Probe("b", timed(clock, [0.25]), bytes=1000),
            ]

    opened = bundle.open_bundle(slim_bundle)
    batch = timed(clock, [1.0]).input
    found = profiling.layers(
        opened, Mute(), RunOptions(goal="throughput"), [np.zeros(batch.shape, np.float32)],
        Silent(), clock,
    )  # fmt: skip
    assert (found.device.macs_per_s, found.device.bytes_per_s) == (2000.0, 4000.0)
    assert found.budget == {
        "peak_from": "measured", "layers": [], "roofline": None, "peak_check": None, "profile": None
    }  # fmt: skip


@pytest.mark.parametrize(("device", "cache"), [("CPU", 77), ("GPU.0", None)])
def test_the_cpus_cache_is_the_cpus(
    slim_bundle: Path, clock: Any, timed: Any, monkeypatch: pytest.MonkeyPatch,
    device: str, cache: int | None,
) -> None:  # fmt: skip
    monkeypatch.setattr(caches, "last_level_bytes", lambda: 77)

    class Telling(timed):  # type: ignore[misc]
        def layer_times(self) -> list[LayerTime]:
            return [LayerTime("x", (), "Convolution", "I8", 0.5)]

    class Fake:
        precision = "int8"

        def open(self, opened: Any, options: Any) -> Any:
            return Telling(clock, [1.0])

        def probes(self, options: Any) -> list[Probe]:
            return [Probe("a", timed(clock, [0.5]), macs=1000, precision="int8")]

    opened = bundle.open_bundle(slim_bundle)
    batch = np.zeros(timed(clock, [1.0]).input.shape, np.float32)
    found = profiling.layers(opened, Fake(), RunOptions(device), [batch], Silent(), clock).budget
    assert found["roofline"]["cache_bytes"] == cache
    assert found["layers"][-1]["name"] == REST
    # None of the network's layers was found, and that is said.
    assert len(found["profile"]["unmatched"]) == 16


def test_what_was_not_timed_cannot_be_told(slim_bundle: Path) -> None:
    opened = bundle.open_bundle(slim_bundle)
    target = targets.get(opened.target)
    runner = target.open(opened, RunOptions(profile=True))
    with pytest.raises(RunnerError, match="not timed"):
        runner.layer_times()
    with target.open(opened, RunOptions()) as runner:
        runner.infer(opened.batch(opened.probes().images[:1]))
        with pytest.raises(RunnerError, match="not timed"):
            runner.layer_times()
