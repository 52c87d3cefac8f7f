"""Layers against their floors, with made-up profiles whose figures are worked out by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vggdeploy import budget, topology
from vggdeploy.contracts import LayerTime
from vggdeploy.roofline import (
    REST,
    Layer,
    Owners,
    Peaks,
    chart,
    layers,
    peak_check,
    precision_class,
    rows,
    to_json,
)

LAYERS = [
    Layer("conv", "conv", 8000, 100.0, 60.0),
    Layer("pool", "maxpool", 0, 0.0, 40.0),
    Layer("gone", "avgpool", 0, 0.0, 20.0),
    Layer("fc", "linear", 1000, 1000.0, 10.0),
]
SAID = {"nodes": {"conv": "n/conv", "pool": "n/pool", "fc": "n/fc"}, "tensors": {"fc": "scores"}}
PEAKS = Peaks({"int8": 1000.0, "fp32": 500.0}, 200.0, cache_bytes=50)


def time(name: str, seconds: float, *nodes: str, precision: str = "I8") -> LayerTime:
    return LayerTime(name, nodes, "kind", precision, seconds)


QUERY = [
    time("reorder", 1.0, precision="f32"),
    time("c", 16.0, "n/conv/WithoutBiases", "Multiply_7", "n/relu"),
    time("p", 2.0, "n/pool"),
    time("matrix", 10.0, "scores", precision="f32"),
    time("reorder", 3.0, precision="f32"),
]


def found(queries: Any = (QUERY,), peaks: Peaks = PEAKS, said: Any = None) -> dict[str, Any]:
    made = rows(LAYERS, Owners(said or SAID), queries, peaks, "int8")
    return {row.name: row for row in made}


def test_each_layer_has_its_row_in_order_and_the_rest_one_of_its_own() -> None:
    assert list(found()) == ["conv", "pool", "gone", "fc", REST]
    assert {name: row.engine_layers for name, row in found().items()} == {
        "conv": ("c",), "pool": ("p",), "gone": (), "fc": ("matrix",), REST: ("reorder", "reorder")
    }  # fmt: skip


def test_rows_add_up_to_the_profile() -> None:
    made = found()
    assert sum(row.seconds for row in made.values()) == sum(time.seconds for time in QUERY) == 32.0
    assert made[REST].seconds == 4.0
    assert sum(row.share for row in made.values()) == 1.0
    assert made["conv"].share == 0.5


def test_a_layer_bound_by_arithmetic() -> None:
    row = found()["conv"]
    # 8000 MACs at 1000 a second; 100 bytes of weights and 60 - 50 of activations at 200.
    assert (row.compute_floor_s, row.memory_floor_s) == (8.0, 0.55)
    assert (row.floor_s, row.bound, row.of_floor) == (8.0, "compute", 2.0)
    assert (row.achieved_macs_per_s, row.utilisation, row.precision) == (500.0, 0.5, "int8")
    assert row.intensity == 8000 / 110


def test_a_layer_bound_by_its_weights() -> None:
    row = found()["fc"]
    # 1000 MACs at fp32's 500 a second; 1000 bytes at 200. Its activations fit the cache.
    assert (row.compute_floor_s, row.memory_floor_s) == (2.0, 5.0)
    assert (row.floor_s, row.bound, row.of_floor) == (5.0, "memory", 2.0)
    assert (row.bytes, row.achieved_bytes_per_s) == (1000.0, 100.0)
    assert (row.utilisation, row.precision) == (0.2, "fp32")


def test_what_stays_in_the_cache_costs_nothing() -> None:
    pool = found()["pool"]
    assert (pool.bytes, pool.floor_s, pool.of_floor, pool.bound) == (0.0, 0.0, None, None)
    assert pool.intensity is None
    # 1100 bytes of weights fit: they are there from the query before.
    whole = found(peaks=Peaks(PEAKS.macs_per_s, 200.0, cache_bytes=1100))
    assert [row.bytes for row in whole.values()] == [0.0] * 5
    assert (whole["fc"].memory_floor_s, whole["fc"].bound) == (0.0, "compute")
    assert whole["fc"].intensity is None
    # One byte less, and they are read again.
    tight = found(peaks=Peaks(PEAKS.macs_per_s, 200.0, cache_bytes=1099))
    assert (tight["conv"].bytes, tight["fc"].bytes) == (100.0, 1000.0)


def test_without_a_known_cache_activations_are_taken_to_fit_and_weights_not() -> None:
    made = found(peaks=Peaks(PEAKS.macs_per_s, 200.0))
    assert [row.bytes for row in made.values()] == [100.0, 0.0, 0.0, 1000.0, 0.0]


def test_without_a_known_bandwidth_there_is_no_memory_floor() -> None:
    made = found(peaks=Peaks(PEAKS.macs_per_s, 0.0))
    assert all(row.memory_floor_s is None for row in made.values())
    assert (made["fc"].floor_s, made["fc"].bound) == (2.0, "compute")


def test_a_layer_that_is_not_executed_has_neither_time_nor_floor() -> None:
    row = found(peaks=Peaks({"int8": 1.0}, 1.0, cache_bytes=0))["gone"]
    assert (row.seconds, row.floor_s, row.of_floor, row.bound, row.precision) == (
        0.0, 0.0, None, None, None
    )  # fmt: skip


def test_seconds_are_the_median_of_queries() -> None:
    queries = [
        [time("c", c, "n/conv"), time("r", r)] for c, r in ((3.0, 1.0), (1.0, 9.0), (2.0, 2.0))
    ]
    made = found(queries)
    assert (made["conv"].seconds, made[REST].seconds) == (2.0, 2.0)
    assert made["conv"].share == 0.5


def test_layers_in_one_engine_layer_are_one_row() -> None:
    query = [time("c+p", 18.0, "n/conv", "n/pool"), time("m", 2.0, "n/fc")]
    made = found([query])
    assert list(made) == ["conv + pool", "gone", "fc"]
    row = made["conv + pool"]
    assert (row.kind, row.macs, row.seconds) == ("conv + maxpool", 8000, 18.0)
    # What is between them need not be written: the larger of 60 and 40 bytes is certain.
    assert (row.weight_bytes, row.activation_bytes) == (100.0, 60.0)


def test_a_layer_in_several_engine_layers_is_their_sum() -> None:
    query = [time("a", 1.0, "n/conv", precision="f32"), time("b", 2.0, "n/conv/2")]
    row = found([query])["conv"]
    assert (row.seconds, row.engine_layers, row.precision) == (3.0, ("a", "b"), "int8")


def test_what_the_build_said_of_the_engine_goes_before_names() -> None:
    said = {
        **SAID,
        "engine_layers": [{"name": "c", "budget": ["fc"]}, {"name": "p", "budget": []}],
    }
    owners = Owners(said)
    assert owners.of(time("c", 1.0, "n/conv")) == ("fc",)
    assert owners.of(time("p", 1.0, "n/pool")) == ("pool",)
    assert owners.of(time("other", 1.0, "n/conv", "n/fc", "n/conv/x")) == ("conv", "fc")


def test_the_longest_name_owns() -> None:
    owners = Owners({"nodes": {"outer": "block", "inner": "block/conv"}})
    assert owners.of(time("x", 1.0, "block/conv/WithoutBiases")) == ("inner",)
    assert owners.of(time("x", 1.0, "block/other")) == ("outer",)
    assert owners.of(time("x", 1.0, "blocks")) == ()
    assert owners.of(time("x", 1.0)) == ()


def test_a_nodes_own_name_goes_before_a_tensors() -> None:
    owners = Owners({"nodes": {"a": "conv"}, "tensors": {"b": "conv", "c": "only"}})
    assert owners.of(time("x", 1.0, "conv")) == ("a",)
    assert owners.of(time("x", 1.0, "only")) == ("c",)


def test_an_old_bundle_knows_no_owners() -> None:
    assert not Owners({"layers": []}).known
    assert Owners(SAID).known


@pytest.mark.parametrize(
    ("said", "expected"),
    [("I8", "int8"), ("u8", "int8"), ("Half", "fp16"), ("Float", "fp32"), ("BF16", "bf16"),
     ("FP8", None), ("", None)],
)  # fmt: skip
def test_backends_names_of_precisions(said: str, expected: str | None) -> None:
    assert precision_class(said) == expected


def test_an_unknown_precision_is_held_against_the_highest_peak() -> None:
    query = [time("c", 1.0, "n/conv", precision="FP8")]
    row = found([query])["conv"]
    assert (row.precision, row.peak_macs_per_s) == ("FP8", 1000.0)
    # What is not said is the target's.
    assert found([[time("c", 1.0, "n/conv", precision="")]])["conv"].precision == "int8"


def test_peaks_bound_every_layer() -> None:
    made = found().values()
    assert peak_check(made) == {"ok": True, "beaten_by": []}


def test_a_layer_at_its_peak_does_not_beat_it() -> None:
    made = found([[time("c", 8.0, "n/conv"), time("m", 5.0, "n/fc", precision="f32")]])
    assert (made["conv"].of_floor, made["fc"].of_floor) == (1.0, 1.0)
    assert peak_check(made.values())["ok"]


def test_a_peak_that_is_too_low_is_found_out() -> None:
    low = Peaks({"int8": 499.0, "fp32": 500.0}, 200.0, cache_bytes=50)
    check = peak_check(found(peaks=low).values())
    assert check == {
        "ok": False,
        "beaten_by": [{"name": "conv", "roof": "compute", "achieved": 500.0, "peak": 499.0}],
    }
    assert found(peaks=low)["conv"].utilisation == 500 / 499


def test_a_bandwidth_that_is_too_low_is_found_out() -> None:
    low = Peaks(PEAKS.macs_per_s, 99.0, cache_bytes=50)
    (beaten,) = peak_check(found(peaks=low).values())["beaten_by"]
    assert (beaten["name"], beaten["roof"], beaten["achieved"]) == ("fc", "memory", 100.0)
    assert beaten["peak"] == pytest.approx(99.0, rel=1e-12)


def test_the_chart_agrees_with_the_rows() -> None:
    made = list(found().values())
    said = chart(made, PEAKS)
    assert (said["macs_per_s"], said["bytes_per_s"]) == ({"int8": 1000.0, "fp32": 500.0}, 200.0)
    assert [point["name"] for point in said["points"]] == ["conv", "fc"]
    for point, row in zip(said["points"], (made[0], made[3]), strict=True):
        roof = min(said["macs_per_s"][point["precision"]], point["intensity"] * said["bytes_per_s"])
        # How far a point is below its roof is how far its layer is above its floor.
        assert roof / point["macs_per_s"] == pytest.approx(row.of_floor, rel=1e-12)
    json.dumps([said, to_json(made)], allow_nan=False)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_networks_layers_for_a_batch(batch: int) -> None:
    said = budget.budget(topology.vgg(), "int8").to_json()
    known = {layer.name: layer for layer in layers(said, "int8", batch)}
    conv, fc = known["features.2"], known["classifier.0"]
    assert (conv.kind, conv.macs) == ("conv", batch * 1_849_688_064)
    assert conv.activation_bytes == batch * 2 * 64 * 224 * 224
    # Read once a batch.
    assert fc.weight_bytes == 25_088 * 4096 + 4 * 4096


def test_a_graphs_layers_have_kinds_and_bytes() -> None:
    listed = [
        {"name": "a", "output": [8, 4, 4], "params": 80, "macs": 1152},
        {"name": "b", "output": [10], "params": 40, "macs": 30},
    ]
    said = budget.from_rows("graph", listed, "int8-w4", ["b"])
    made = layers(said, "int8-w4", 2, ["b"])
    assert [(layer.kind, layer.macs, layer.weight_bytes) for layer in made] == [
        ("conv", 2304, 80.0), ("linear", 60, 160.0)
    ]  # fmt: skip


def test_peaks_of_a_whole_network() -> None:
    peaks = Peaks({"int8": 9.0, "fp32": 4.0}, 2.0)
    assert peaks.device("int8-w4") == budget.Device(9.0, 2.0)
    assert peaks.device("fp32") == budget.Device(4.0, 2.0)
    # A float16 target that the CPU computes in float32 was measured as that.
    assert Peaks({"fp32": 4.0}, 2.0).device("fp16") == budget.Device(4.0, 2.0)
