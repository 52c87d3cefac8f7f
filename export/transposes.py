"""Transposes between NHWC and NCHW, moved towards the output until they meet and cancel.

ONNX's convolutions and pools are NCHW. Exporters of NHWC frameworks put a Transpose in front of
each and one behind, so that what lies between two layers (a bias, a ReLU, a pad) runs in NHWC, out
of the reach of folding and of 8 bits. What works on each element alone does not care for the order
of the axes and changes places with a Transpose; two that undo each other go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vggdeploy import graphs
from vggdeploy.export.constants import array

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

_UNARY = (
    "Relu", "LeakyRelu", "Clip", "Elu", "Selu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh",
    "Softplus", "Softsign", "Abs", "Neg", "Exp", "Sqrt", "Reciprocal", "Identity", "Cast",
)  # fmt: skip

_BINARY = ("Add", "Sub", "Mul", "Div", "PRelu")

_REDUCTIONS = ("ReduceMean", "ReduceMax", "ReduceSum", "ReduceMin")


def sink_transposes(model: ir.Model) -> None:
    """Move every Transpose as far down as elementwise operators let it. Edited in place."""
    moved = True
    while moved:
        moved = False
        for node in list(model.graph):
            if node.op_type == "Transpose" and node.graph is not None:
                moved = _sink(model.graph, node) or moved


def _sink(graph: ir.Graph, node: ir.Node) -> bool:
    """Move one Transpose past what reads it, or merge it; whether anything changed."""
    order = _order(node)
    source, result = node.inputs[0], node.outputs[0]
    if order is None or source is None:
        return False
    if order == sorted(order):
        return graphs.bypass(graph, node)
    if result.is_graph_output():
        return False
    if all(reader.op_type == "Transpose" for reader, _ in result.uses()) and result.uses():
        return _merge(graph, node, order)
    if len(result.uses()) != 1:
        return False
    ((reader, index),) = result.uses()
    if reader.domain or len(reader.outputs) != 1 or reader.outputs[0].is_graph_output():
        return False
    if index == 0 and reader.op_type in _REDUCTIONS:
        return _pass_reduction(graph, node, reader, order)
    if not _permute_operands(graph, reader, index, order):
        return False
    _exchange(graph, node, reader, index, order)
    return True


def _merge(graph: ir.Graph, node: ir.Node, order: list[int]) -> bool:
    """Let every Transpose behind this one do the work of both."""
    import onnx_ir

    merged = False
    for reader, _ in list(node.outputs[0].uses()):
        second = _order(reader)
        if second is None:
            continue
        both = [order[axis] for axis in second]
        reader.attributes["perm"] = onnx_ir.AttrInt64s("perm", both)
        reader.replace_input_with(0, node.inputs[0])
        merged = True
    if not node.outputs[0].uses():
        graph.remove(node, safe=True)
    return merged


def _permute_operands(graph: ir.Graph, reader: ir.Node, index: int, order: list[int]) -> bool:
    """Bring a node's other operands into the order that is in front of the Transpose."""
    if reader.op_type in _UNARY:
        return index == 0
    if reader.op_type == "Pad":
        # A convolution takes over the pad in front of it, unless a Transpose comes between.
        meets = all(after.op_type == "Transpose" for after, _ in reader.outputs[0].uses())
        return index == 0 and meets and _permute_pads(graph, reader, order)
    if reader.op_type not in _BINARY or (reader.op_type == "PRelu" and index):
        return False
    other = reader.inputs[1 - index]
    content = array(other)
    if other is None or content is None or content.ndim > len(order):
        return False
    if content.size > 1:
        aligned = content.reshape((1,) * (len(order) - content.ndim) + content.shape)
        turned = aligned.transpose(np.argsort(order))
        reader.replace_input_with(1 - index, graphs.constant(graph, f"{other.name}.turned", turned))
    return True


def _permute_pads(graph: ir.Graph, pad: ir.Node, order: list[int]) -> bool:
    pads = array(pad.inputs[1]) if len(pad.inputs) > 1 else None
    if pads is None or pads.size != 2 * len(order) or len(pad.inputs) > 3:
        return False
    turned = pads.reshape(2, -1)[:, np.argsort(order)].reshape(-1)
    pad.replace_input_with(1, graphs.constant(graph, f"{pad.inputs[1].name}.turned", turned))  # type: ignore[union-attr]  # just read
    return True


def _pass_reduction(graph: ir.Graph, node: ir.Node, reader: ir.Node, order: list[int]) -> bool:
    """Reduce the axes where they lie in front of the Transpose."""
    import onnx_ir

    given = array(reader.inputs[1]) if len(reader.inputs) > 1 else None
    said = graphs.attribute(reader, "axes", given)
    if said is None:
        return False
    axes = [order[int(axis)] for axis in said]
    if "axes" in reader.attributes:
        reader.attributes["axes"] = onnx_ir.AttrInt64s("axes", sorted(axes))
    else:
        name = f"{reader.outputs[0].name}.axes"
        reader.replace_input_with(1, graphs.constant(graph, name, np.array(sorted(axes), np.int64)))
    if not graphs.attribute(reader, "keepdims", 1):
        left = [axis for axis in order if axis not in axes]
        order = [sorted(left).index(axis) for axis in left]
    _exchange(graph, node, reader, 0, order)
    return True


def _exchange(
    graph: ir.Graph, node: ir.Node, reader: ir.Node, index: int, order: Sequence[int]
) -> None:
    """Put a Transpose behind the one node that reads it."""
    import onnx_ir

    reader.replace_input_with(index, node.inputs[0])
    graph.remove(node, safe=True)
    result = reader.outputs[0]
    result.shape = None  # of another order from here on
    behind = onnx_ir.node("Transpose", [result], {"perm": list(order)}, name=node.name)
    graphs.insert_behind(graph, reader, behind)


def _order(node: ir.Node) -> list[int] | None:
    if node.domain or node.op_type != "Transpose" or "perm" not in node.attributes:
        return None
    return [int(axis) for axis in node.attributes["perm"].value]
