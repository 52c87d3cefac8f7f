"""The layers of a graph: what each costs, and what its node and its tensor are called."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from vggdeploy import graphs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_ir as ir


def rows(model: ir.Model) -> list[dict[str, Any]]:
    """The budget of a graph: of each layer with weights its ``name``, ``kind`` (``conv`` or
    ``linear``), ``output`` (the shape for one image), ``inputs`` (that an output is made of),
    ``params``, ``weights`` (the parameters that are no biases), ``macs`` and ``receptive_field``,
    which is None.

    A weighted operator's MACs for one image are its weights times the output positions that each
    is used at.
    """
    found = []
    for each in graphs.weighted(model):
        output = graphs.static_shape(each.node.outputs[0]) or ()
        tensor = each.weight.const_value
        assert tensor is not None
        sides: Any = tensor.shape
        shape = [int(side) for side in sides]
        weights = math.prod(shape)
        spread = output[2:] if each.convolution else output[1:-1]
        positions = math.prod(side or 1 for side in spread)
        bias = each.node.inputs[2] if len(each.node.inputs) > 2 else None
        offset = bias.const_value if bias is not None else None
        found.append(
            {
                "name": each.name,
                "kind": "conv" if each.convolution else "linear",
                "output": [side or 1 for side in output[1:]],
                "inputs": weights // shape[each.channel_axis],
                "params": weights + (offset.size if offset is not None else 0),
                "weights": weights,
                "macs": weights * positions,
                "receptive_field": None,
            }
        )
    return found


def nodes(model: ir.Model, layers: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The name of the node of each layer of a budget, in a float or a quantized graph.

    Layers with weights are found by the names of these, pools by their order.

    Args:
        model: the graph.
        layers: the budget's, with ``name`` and, where they are not only those with weights,
            ``kind``.
    """
    found: dict[str, str] = {}
    pools: dict[str, list[str]] = {"maxpool": [], "avgpool": []}
    for node in model.graph:
        if node.domain:
            continue
        name = str(node.name or node.outputs[0].name)
        if node.op_type in graphs.WEIGHTED:
            value = node.inputs[1]
            while value is not None and (producer := value.producer()) is not None:
                value = producer.inputs[0]  # through DequantizeLinear and Cast
            if value is not None:
                found[str(value.name).removesuffix(".quantized").removesuffix(".weight")] = name
        elif node.op_type == "MaxPool":
            pools["maxpool"].append(name)
        elif node.op_type in ("AveragePool", "GlobalAveragePool"):
            pools["avgpool"].append(name)
    for kind, there in pools.items():
        named = [str(layer["name"]) for layer in layers if layer.get("kind") == kind]
        if len(named) == len(there):
            found.update(zip(named, there, strict=True))
    names = [str(layer["name"]) for layer in layers]
    return {name: found[name] for name in names if name in found}


def tensors(model: ir.Model, nodes: Mapping[str, str]) -> dict[str, str]:
    """The name of the tensor that each layer's node writes, for `nodes` of the same graph."""
    written = {str(node.name): str(node.outputs[0].name) for node in model.graph}
    return {layer: written.get(node, node) for layer, node in nodes.items()}
