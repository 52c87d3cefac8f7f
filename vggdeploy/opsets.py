"""ONNX operator sets: a graph carried to a newer one, its meaning kept.

Between two versions most operators only learn new types. Those that changed how they are written,
or what they mean, are rewritten here; the source is ONNX's own change log (docs/Changelog.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vggdeploy import graphs
from vggdeploy.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir

OLDEST = 11
"""The oldest opset that is taken. Below it Clip, Pad and Slice are written in other ways."""

PER_CHANNEL = 13
"""The first with per-channel QuantizeLinear and DequantizeLinear."""

FLOAT16_SCALES = 19
"""The first whose QuantizeLinear and DequantizeLinear take float16 scales."""

BLOCK_SCALES = 21
"""The first with 4-bit integers, and with a scale for each block of a DequantizeLinear."""


def upgrade(model: ir.Model, version: int) -> None:
    """Carry a graph to opset `version` (21 at most), if it is older. Edited in place.

    Shapes are needed where a Softmax of opset 12 or older is not over the last axis.

    Raises:
        ModelError: naming an operator that cannot be carried over.
    """
    old = model.graph.opset_imports.get("", 0)
    if old >= version:
        return
    for node in list(model.graph):
        for since, operators, rewrite in _CHANGES:
            if old < since <= version and node.op_type in operators and not node.domain:
                rewrite(model.graph, node)
    model.graph.opset_imports[""] = version


def _softmax(graph: ir.Graph, node: ir.Node) -> None:
    """Up to opset 12 the axes from `axis` on (1 by default) are one; from 13 on `axis` is one."""
    import onnx_ir

    source, result = node.inputs[0], node.outputs[0]
    assert source is not None
    axis = int(graphs.attribute(node, "axis", 1))
    rank = len(source.shape) if source.shape is not None else None
    if rank is None:
        raise _stuck(node, "its input has no known rank")
    axis = axis + rank if axis < 0 else axis
    shape = list(source.shape or ())
    # Axes of one element behind or between make no difference.
    wide = [index for index in range(axis, rank) if shape[index] != 1]
    if len(wide) <= 1:
        node.attributes["axis"] = onnx_ir.AttrInt64("axis", wide[0] if wide else rank - 1)
        return
    sides = [side if isinstance(side, int) else None for side in shape]
    if any(side is None for side in sides[1:]):
        raise _stuck(node, "its input has no fixed shape")
    flat = onnx_ir.node("Flatten", [source], {"axis": axis}, name=f"{result.name}.flatten")
    flat.outputs[0].name = f"{result.name}.flat"
    graph.insert_before(node, flat)
    node.replace_input_with(0, flat.outputs[0])
    node.attributes["axis"] = onnx_ir.AttrInt64("axis", -1)
    target = graphs.constant(
        graph,
        f"{result.name}.shape",
        np.array([-1, *[int(side or 1) for side in sides[1:]]], np.int64),
    )
    back = onnx_ir.node("Reshape", [result, target], name=f"{result.name}.reshape")
    back.outputs[0].shape, back.outputs[0].type = result.shape, result.type
    graphs.insert_behind(graph, node, back)


def _axes_become_an_input(name: str) -> Callable[[ir.Graph, ir.Node], None]:
    def rewrite(graph: ir.Graph, node: ir.Node) -> None:
        if name not in node.attributes:
            return
        values = [int(value) for value in node.attributes.pop(name).value]
        node.resize_inputs(2)
        node.replace_input_with(
            1, graphs.constant(graph, f"{node.outputs[0].name}.{name}", np.array(values, np.int64))
        )

    return rewrite


def _split_counts_outputs(graph: ir.Graph, node: ir.Node) -> None:
    import onnx_ir

    if len(node.inputs) < 2 or node.inputs[1] is None:
        node.attributes["num_outputs"] = onnx_ir.AttrInt64("num_outputs", len(node.outputs))


def _drops_nothing(graph: ir.Graph, node: ir.Node) -> None:
    """Before opset 12 Dropout had its ratio as attribute; at inference it has no effect."""
    node.attributes.pop("ratio", None)


def _one_output(graph: ir.Graph, node: ir.Node) -> None:
    if len(node.outputs) > 1:
        raise _stuck(node, "it is in training mode")


_REDUCTIONS = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSumSquare",
)  # fmt: skip

_CHANGES: tuple[tuple[int, tuple[str, ...], Callable[[ir.Graph, ir.Node], None]], ...] = (
    (12, ("Dropout",), _drops_nothing),
    (13, ("Softmax", "LogSoftmax", "Hardmax"), _softmax),
    (13, ("Squeeze", "Unsqueeze", "ReduceSum"), _axes_become_an_input("axes")),
    (13, ("Split",), _axes_become_an_input("split")),
    (14, ("BatchNormalization",), _one_output),
    (18, _REDUCTIONS, _axes_become_an_input("axes")),
    (18, ("Split",), _split_counts_outputs),
)
"""(first opset with it, operators, rewrite) of everything that changed but for its types."""


def _stuck(node: ir.Node, why: str) -> ModelError:
    return ModelError(
        f"{graphs.label(node)} cannot be carried to a newer opset",
        got=why,
        expected="a graph for inference, of known shapes",
        fix="convert the model with onnx.version_converter, or export it with opset 13 or newer",
    )
