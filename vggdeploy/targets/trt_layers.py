"""What TensorRT's engine inspector tells, held against the network's budget."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")


def parse(text: str) -> list[dict[str, Any]]:
    """The layers of the inspector's JSON, each with ``name``, ``type``, ``tactic``, ``inputs``,
    ``outputs`` (name, shape, type and format of each) and ``nodes``, the ONNX nodes in it.

    An engine without detailed profiling verbosity tells names alone. The engine's own inputs and
    outputs, ``Bindings`` of TensorRT 10 and ``I/O Tensors`` of 11, are not among the layers.
    """
    said = json.loads(text)
    return [_layer(layer) for layer in said.get("Layers", [])]


LISTING = "Layers:"
"""What the builder's own listing of an engine begins with, in its log."""

_LISTED = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<type>[^,]*), Inputs: (?P<inputs>.*?), "
    r"(?:Constants: .*, )?Outputs: (?P<outputs>.*), TacticName: (?P<tactic>[^,]*), "
    r"StreamId: \d+, Metadata:(?P<metadata>.*)"
)
_LISTED_TENSOR = re.compile(
    r"\{ Name: (?P<name>.*?), Dimensions: \[(?P<shape>[^\]]*)\].*?"
    r"(?:Data[tT]ype: (?P<type>\w+), )?Format(?:/Datatype)?: (?P<format>[^}]*?) ?\}"
)


def parse_log(text: str) -> list[dict[str, Any]]:
    """The layers of the listing that the builder logs at detailed profiling verbosity, in the form
    of `parse`: the inspector's words, as text. No engine need be loaded for it."""
    found = []
    for line in text.splitlines():
        if said := _LISTED.match(line.strip()):
            found.append(
                {
                    "name": said["name"],
                    "type": said["type"],
                    "tactic": said["tactic"] or None,
                    "inputs": _listed(said["inputs"]),
                    "outputs": _listed(said["outputs"]),
                    "nodes": _NODE.findall(said["metadata"]),
                }
            )
    return found


def _listed(text: str) -> list[dict[str, Any]]:
    return [
        {
            "name": said["name"],
            "shape": [int(side) for side in said["shape"].split(",") if side],
            "type": said["type"],
            "format": said["format"],
        }
        for said in _LISTED_TENSOR.finditer(text)
    ]


def _layer(said: str | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(said, str):
        return {
            "name": said, "type": None, "tactic": None, "inputs": [], "outputs": [], "nodes": []
        }  # fmt: skip
    return {
        "name": said.get("Name"),
        "type": said.get("LayerType"),
        "tactic": said.get("TacticName"),
        "inputs": [_tensor(tensor) for tensor in said.get("Inputs", [])],
        "outputs": [_tensor(tensor) for tensor in said.get("Outputs", [])],
        "nodes": _NODE.findall(str(said.get("Metadata", ""))),
    }


def _tensor(said: Mapping[str, Any]) -> dict[str, Any]:
    # TensorRT writes both spellings, with the type in "Format" where it has neither: "Int8 NC/32HW32".
    kind = said.get("DataType") or said.get("Datatype")
    layout = said.get("Format") or said.get("Format/Datatype")
    return {
        "name": said.get("Name"),
        "shape": said.get("Dimensions"),
        "type": kind,
        "format": layout,
    }


def assign(layers: Iterable[Mapping[str, Any]], nodes: Mapping[str, str]) -> list[dict[str, Any]]:
    """The engine's layers, each with ``budget``: the budget's layers that run in it.

    Args:
        layers: of `parse`.
        nodes: the name of the ONNX node of each of the budget's layers.
    """
    of_node = {node: layer for layer, node in nodes.items()}
    found = []
    for layer in layers:
        inside = [of_node[node] for node in layer["nodes"] if node in of_node]
        if not layer["nodes"]:
            # Without metadata, a fused layer's name is its nodes' names, joined.
            parts = {part.strip() for part in str(layer["name"]).split(" + ")}
            inside = [of_node[node] for node in of_node if node in parts]
        found.append({**layer, "budget": list(dict.fromkeys(inside))})
    return found
