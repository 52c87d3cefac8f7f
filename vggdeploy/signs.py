"""Which tensors of a graph can never be negative, so that they need no sign in 8 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vggdeploy import graphs

if TYPE_CHECKING:
    import onnx_ir as ir

_KEEPS_SIGN = (
    "MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity",
    "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Dropout", "LeakyRelu", "Slice",
    "ReduceMean", "ReduceMax", "ReduceSum",
)  # fmt: skip
"""Operators that make nothing negative of what is not."""

_NONNEGATIVE = ("Relu", "Sigmoid", "Softmax")


def nonnegative(value: ir.Value) -> bool:
    """Whether the graph makes sure that a tensor is never below 0."""
    maker = value.producer()
    while maker is not None and not maker.domain:
        if maker.op_type in _NONNEGATIVE or clips_at_zero(maker):
            return True
        source = maker.inputs[0] if maker.inputs else None
        keeps = maker.op_type in _KEEPS_SIGN or (maker.op_type == "Pad" and pads_zeros(maker))
        if not keeps or source is None:
            return False
        maker = source.producer()
    return False


def clips_at_zero(node: ir.Node) -> bool:
    """Whether a node is a Clip with a bound below that is 0 or more: ReLU6 and its like."""
    if node.op_type != "Clip" or node.domain:
        return False
    low, high = (graphs.scalar(node, index) for index in (1, 2))
    open_above = len(node.inputs) < 3 or node.inputs[2] is None
    return low is not None and low >= 0 and (open_above or (high is not None and high >= 0))


def pads_zeros(node: ir.Node) -> bool:
    """Whether a Pad adds nothing but zeros."""
    if graphs.attribute(node, "mode", "constant") != "constant":
        return False
    given = node.inputs[2] if len(node.inputs) > 2 else None
    return given is None or graphs.scalar(node, 2) == 0
