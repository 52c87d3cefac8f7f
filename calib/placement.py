"""Where Q/DQ pairs go: which tensors are quantized, and which reads of them see the result.

Every convolution and matrix product with constant weights reads 8 bits. Between a ReLU and the
next of these there may be operators that only move or select values; the pair goes in front of
them, so that a max pool runs on 8 bits and the next layer reuses its scale with no second
quantize. Nothing is quantized on the way out: the scores stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vggdeploy import graphs

if TYPE_CHECKING:
    import onnx_ir as ir

    from vggdeploy.graphs import WeightedNode

_MOVES = ("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity")
"""Operators whose outputs are values of their first input, so that a scale passes through."""

_KEEPS_SIGN = (*_MOVES, "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Dropout")
"""Operators that make nothing negative of what is not."""

_NONNEGATIVE = ("Relu", "Sigmoid", "Softmax")


@dataclass(frozen=True)
class Point:
    """A tensor that is quantized.

    Attributes:
        value: the tensor.
        nonnegative: whether the graph makes sure that it is never below 0.
        reads: (node, input index) of every read that sees the quantized tensor.
    """

    value: ir.Value
    nonnegative: bool
    reads: tuple[tuple[ir.Node, int], ...]

    @property
    def name(self) -> str:
        return str(self.value.name)


@dataclass(frozen=True)
class Placement:
    """Everything that will be quantized, and what will not.

    Attributes:
        points: activations, in order of first use.
        weighted: the nodes whose weights are quantized.
        left: (node, reason) of weighted operators that stay in high precision.
    """

    points: tuple[Point, ...]
    weighted: tuple[WeightedNode, ...]
    left: tuple[tuple[str, str], ...]


def place(model: ir.Model, *, matrices: bool = True) -> Placement:
    """Decide where the pairs go. The model is not changed.

    Args:
        model: a float graph.
        matrices: whether matrix products read 8 bits; else only convolutions do, and what stands
            in front of a product gets no pair on its account.
    """
    reads: dict[str, list[tuple[ir.Node, int]]] = {}
    values: dict[str, ir.Value] = {}
    chosen: list[WeightedNode] = []
    left: list[tuple[str, str]] = []
    constant = {id(found.node): found for found in graphs.weighted(model)}
    for node in model.graph:
        if node.domain or node.op_type not in graphs.WEIGHTED:
            continue
        label = str(node.name or node.outputs[0].name)
        if id(node) not in constant:
            left.append((label, "its weights are not constant"))
            continue
        if reason := _unusual(node):
            left.append((label, reason))
            continue
        found = constant[id(node)]
        chosen.append(found)
        if not matrices and not found.convolution:
            continue
        value, read = _origin(node)
        values[str(value.name)] = value
        into = reads.setdefault(str(value.name), [])
        if read not in into:
            into.append(read)
    points = tuple(
        Point(values[name], _nonnegative(values[name]), tuple(into)) for name, into in reads.items()
    )
    return Placement(points, tuple(chosen), tuple(left))


def _origin(node: ir.Node) -> tuple[ir.Value, tuple[ir.Node, int]]:
    """The tensor to quantize for a weighted node, and the read that is to see it.

    Walks up through operators that only move values; if that leads to a ReLU, the pair goes there,
    else right in front of the node.
    """
    value, read = node.inputs[0], (node, 0)
    assert value is not None
    near = value, read
    while True:
        maker = value.producer()
        if maker is None or maker.domain:
            return near
        if maker.op_type == "Relu":
            return value, read
        if maker.op_type not in _MOVES or maker.inputs[0] is None or len(value.uses()) > 1:
            return near
        value, read = maker.inputs[0], (maker, 0)


def _nonnegative(value: ir.Value) -> bool:
    maker = value.producer()
    while maker is not None and not maker.domain:
        if maker.op_type in _NONNEGATIVE:
            return True
        source = maker.inputs[0] if maker.inputs else None
        if maker.op_type not in _KEEPS_SIGN or source is None:
            return False
        maker = source.producer()
    return False


def _unusual(node: ir.Node) -> str:
    """Why a weighted node cannot be quantized; empty when it can."""
    if node.op_type == "Gemm" and (
        graphs.attribute(node, "alpha", 1.0) != 1.0
        or graphs.attribute(node, "beta", 1.0) != 1.0
        or graphs.attribute(node, "transA", 0)
    ):
        return "Gemm with alpha, beta or transA"
    return ""
