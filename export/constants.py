"""Constant folding: what depends on constants alone is computed once, by ONNX's own reference.

Exporters leave weights behind Identity, Transpose, Reshape and Cast; folded, a convolution's
weights are an initializer, which is what quantization looks for.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from vggdeploy import graphs, limits

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir
    from numpy.typing import NDArray

SMALL = 1024
"""Elements of a tensor that may hold sizes, axes or pads; weights have more."""

GENERATORS = ("ConstantOfShape", "Expand", "Tile", "Range", "Pad", "Resize", "EyeLike", "OneHot")
"""Operators whose output may be larger than all that goes in."""

_RANDOM = (
    "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial",
    "Bernoulli", "Dropout",
)  # fmt: skip


def fold_constants(model: ir.Model, largest: int = limits.ELEMENTS) -> None:
    """Replace every node whose inputs are all constant by its result, as initializer.

    Args:
        model: edited in place.
        largest: elements; a node that reads a larger tensor, or makes one, stays.
    """
    opset = model.graph.opset_imports.get("", 0)
    for node in list(model.graph):
        if not _foldable(node, largest):
            continue
        arrays = [None if value is None else array(value) for value in node.inputs]
        results = evaluate(node, opset, arrays)
        if results is not None:
            for value, result in zip(node.outputs, results, strict=True):
                become_constant(model.graph, value, result)
            model.graph.remove(node, safe=True)


def _foldable(node: ir.Node, largest: int) -> bool:
    if not can_evaluate(node) or not node.inputs:
        return False
    if any(value.is_graph_output() for value in node.outputs):
        return False
    read = 0
    for value in node.inputs:
        if value is None:
            continue
        if value.const_value is None or value.is_graph_input():
            return False
        read += value.const_value.size
    if read > largest:
        return False
    return node.op_type not in GENERATORS or _generated(node) <= largest


def can_evaluate(node: ir.Node) -> bool:
    """Whether a node gives the same result each time and has no graph inside."""
    import onnx_ir

    inside = (onnx_ir.AttributeType.GRAPH, onnx_ir.AttributeType.GRAPHS)
    return (
        not node.domain
        and node.op_type not in _RANDOM
        and not any(attribute.type in inside for attribute in node.attributes.values())
    )


def _generated(node: ir.Node) -> float:
    """How many elements a generator would make: infinitely many where that is not known."""
    if node.op_type == "ConstantOfShape":
        wanted = array(node.inputs[0])
        return math.prod(int(side) for side in wanted) if wanted is not None else math.inf
    sides = graphs.static_shape(node.outputs[0])
    if sides is None or None in sides:
        return math.inf
    return math.prod(side or 0 for side in sides)


def evaluate(
    node: ir.Node, opset: int, arrays: Sequence[NDArray[Any] | None]
) -> list[NDArray[Any]] | None:
    """A node's outputs for given inputs, as ONNX defines them; None where that does not work."""
    import onnx_ir
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    proto = onnx_ir.serde.serialize_node(node)
    feeds = {
        name: value
        for name, value in zip(proto.input, arrays, strict=True)
        if name and value is not None
    }
    try:
        function = helper.make_function(
            "vggdeploy", "once", list(feeds), list(proto.output), [proto],
            [helper.make_opsetid("", opset)],
        )  # fmt: skip
        results = ReferenceEvaluator(function).run(None, feeds, attributes={})
    except Exception:  # the reference lacks it, or the node is wrong: it stays, for others to judge
        return None
    return [np.asarray(result) for result in results]


def array(value: ir.Value | None) -> NDArray[Any] | None:
    """What a constant holds; None for a value that is computed."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return value.const_value.numpy()


def become_constant(graph: ir.Graph, value: ir.Value, result: NDArray[Any]) -> None:
    """Let everything that reads `value` read an initializer of the same name."""
    if value.uses():
        name = str(value.name)
        value.name = f"{name}.computed"
        value.replace_all_uses_with(graphs.constant(graph, name, result))


def widen_floats(model: ir.Model) -> None:
    """Carry float16, bfloat16 and float64 in float32: weights, casts, and the graph's own ports."""
    import onnx_ir

    single = onnx_ir.DataType.FLOAT
    others = {onnx_ir.DataType.FLOAT16, onnx_ir.DataType.BFLOAT16, onnx_ir.DataType.DOUBLE}
    graph = model.graph
    for name, value in graph.initializers.items():
        if value.const_value is not None and value.const_value.dtype in others:
            content = value.const_value.numpy().astype(np.float32)
            value.const_value = onnx_ir.tensor(content, name=name)
            value.type = onnx_ir.TensorType(single)
    for node in graph:
        target = node.attributes.get("to")
        if node.op_type == "Cast" and target and target.value in {int(kind) for kind in others}:
            node.attributes["to"] = onnx_ir.AttrInt64("to", int(single))
        filled = node.attributes.get("value")
        if node.op_type == "ConstantOfShape" and filled and filled.value.dtype in others:
            content = filled.value.numpy().astype(np.float32)
            node.attributes["value"] = onnx_ir.AttrTensor("value", onnx_ir.tensor(content))
        for value in node.outputs:
            if value.dtype in others:
                value.type = onnx_ir.TensorType(single)
    for value in (*graph.inputs, *graph.outputs):
        if value.dtype in others:
            value.type = onnx_ir.TensorType(single)
