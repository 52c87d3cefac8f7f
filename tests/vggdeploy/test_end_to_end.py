"""The full network: VGG16 of the demo, 15.47 GMAC, from weights to a verdict."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from vggdeploy import bundle, cache, targets, topology
from vggdeploy.cli import main
from vggdeploy.contracts import RunOptions

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow
pytest.importorskip("openvino")
pytest.importorskip("torch")
pytest.importorskip("sklearn")

ENGINE_BYTES = 139.5e6
"""138.4 M parameters at a byte each, four for a bias or a scale, and the graph's description."""


@pytest.fixture(scope="module")
def outcome(
    tmp_path_factory: pytest.TempPathFactory, digits_folder: Path, heldout_folder: Path
) -> dict[str, Any]:
    """What `run` says and where it left the bundle, in a cache of its own: it takes a gigabyte."""
    folder = tmp_path_factory.mktemp("full")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VGGDEPLOY_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        code = main(
            ["run", "--target", "ov-int8", "--weights", "demo",
             "--calib-data", str(digits_folder), "--calib-images", "16",
             "--data", str(heldout_folder), "--out", "bundle", "--seconds", "2",
             "--min-agreement", "0.8", "--max-engine-bytes", str(ENGINE_BYTES),
             "--json", "result.json"]
        )  # fmt: skip
        result: dict[str, Any] = json.loads((folder / "result.json").read_text())
        result["code"] = code
        result["cache_bytes"] = cache.Cache().size()
    result["path"] = folder / "bundle"
    return result


def test_gate_passes(outcome: dict[str, Any]) -> None:
    assert outcome["gate"]["verdict"] == "pass"
    assert outcome["code"] == 0


def test_engine_is_a_quarter_of_the_network(outcome: dict[str, Any]) -> None:
    assert outcome["build"]["engine_bytes"] <= ENGINE_BYTES
    assert outcome["build"]["engine_bytes"] > topology.total_params(topology.vgg())
    assert outcome["build"]["left_in_high_precision"] == []


def test_decisions_are_the_references(outcome: dict[str, Any]) -> None:
    judged = outcome["verify"]
    assert judged["judged"] == "data"
    assert judged["note"] == ""
    assert judged["parity"]["n"] == 24
    # The network is sure of nearly every digit (its scores lie several units apart), so 8 bits
    # change none of these 24; a CPU that saturates (x86 without VNNI) may lose one.
    assert judged["parity"]["top1_agreement"] >= 23 / 24
    assert judged["parity"]["cosine_min"] > 0.99
    # 99% of digits it has not seen: two of 24 wrong has a chance of one in forty.
    assert judged["accuracy"]["top1"] >= 22 / 24
    assert abs(judged["accuracy"]["drop"]) <= 1 / 24


def test_budget_is_the_papers(outcome: dict[str, Any]) -> None:
    judged = outcome["bench"]["budget"]
    assert judged["macs"] == 15_470_264_320
    floors = {kind: judged[f"{kind}_floor_s"] for kind in ("compute", "memory")}
    # A CPU with VNNI or AMX may multiply as fast as it reads the 138 MB of weights.
    assert judged["bound"] == max(floors, key=lambda kind: floors[kind])
    # A CPU that does a tenth of what its own convolutions do runs something else than 8 bits.
    assert 0.1 < judged["utilisation"] < 2


def test_executed_graph_is_8_bits_with_no_quantize_between(outcome: dict[str, Any]) -> None:
    runner = targets.get("ov-int8").open(bundle.open_bundle(outcome["path"]), RunOptions())
    with runner:
        layers = runner.executed_layers()
    counts = Counter(layer["type"] for layer in layers)
    assert (counts["Convolution"], counts["Pooling"], counts["FullyConnected"]) == (13, 5, 3)
    heavy = [layer for layer in layers if layer["type"] in ("Convolution", "FullyConnected")]
    assert {layer["precision"] for layer in heavy} <= {"u8", "i8"}
    pools = [layer["precision"] for layer in layers if layer["type"] == "Pooling"]
    assert pools[:4] == ["u8"] * 4
    assert not [layer for layer in layers if "uantize" in layer["type"]]


def test_cache_holds_what_the_next_build_needs_and_no_more(outcome: dict[str, Any]) -> None:
    # The float graph (553 MB); the rounded weights, the quantized graph and the engine (139 MB each).
    assert 0.95e9 < outcome["cache_bytes"] < 1.0e9
