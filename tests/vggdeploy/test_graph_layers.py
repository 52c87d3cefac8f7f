"""The layers of a graph: what each costs by hand, and what it is called in the graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from vggdeploy import graph_layers, graphs

onnx = pytest.importorskip("onnx")

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def small(small_graph: Callable[..., Any], tmp_path: Path) -> Any:
    onnx.save(small_graph(), tmp_path / "small.onnx")
    return graphs.read(tmp_path / "small.onnx")


def test_rows_are_what_a_hand_counts(small: Any) -> None:
    rows = {row["name"]: row for row in graph_layers.rows(small)}
    assert list(rows) == ["c0", "c1", "c2", "f0", "f1"]
    assert rows["c1"] == {
        "name": "c1",
        "kind": "conv",
        "output": [8, 32, 32],
        "inputs": 8 * 9,
        "weights": 8 * 8 * 9,
        "params": 8 * 8 * 9 + 8,
        "macs": 8 * 8 * 9 * 32 * 32,
        "receptive_field": None,
    }
    # Without a bias.
    assert rows["c2"]["params"] == rows["c2"]["weights"] == 16 * 8 * 9
    assert rows["f0"] == {
        "name": "f0",
        "kind": "linear",
        "output": [24],
        "inputs": 16 * 8 * 8,
        "weights": 24 * 16 * 8 * 8,
        "params": 24 * 16 * 8 * 8 + 24,
        "macs": 24 * 16 * 8 * 8,
        "receptive_field": None,
    }


def test_layers_have_their_nodes_and_tensors(small: Any) -> None:
    layers = [
        *graph_layers.rows(small),
        {"name": "first", "kind": "maxpool"},
        {"name": "second", "kind": "maxpool"},
        {"name": "elsewhere", "kind": "avgpool"},
    ]
    nodes = graph_layers.nodes(small, layers)
    names = {node.outputs[0].name: node.name or node.outputs[0].name for node in small.graph}
    tensors = {"c0": "c0", "c1": "c1", "c2": "c2", "f0": "f0", "f1": "scores",
               "first": "p0", "second": "p1"}  # fmt: skip
    assert nodes == {layer: names[tensor] for layer, tensor in tensors.items()}
    assert graph_layers.tensors(small, nodes) == tensors
