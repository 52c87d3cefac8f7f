"""Where Q/DQ pairs go: which tensors are quantized, and which reads of them see the result.

Every convolution with constant weights reads 8 bits, and so does every matrix product unless the
dialect wants its inputs in float; but for those that are to stay in high precision. Between a ReLU and the next of these there may be operators that only move
or select values; the pair goes in front of them, so that a max pool runs on 8 bits and the next
layer reuses its scale with no second quantize. Nothing is quantized on the way out: the scores stay
as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vggdeploy import graphs, signs
from vggdeploy.config import nearest
from vggdeploy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    import onnx_ir as ir

    from vggdeploy.graphs import WeightedNode

_MOVES = ("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity")
"""Operators whose outputs are values of their first input, so that a scale passes through."""

_ACTIVATIONS = ("Relu", "LeakyRelu", "PRelu", "Elu", "Sigmoid", "Tanh")
"""Operators whose output is worth 8 bits: what follows them has no other arithmetic of its own."""


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

    @property
    def of_image(self) -> bool:
        """Whether no weighted node stands between the network's input and the tensor."""
        known, left = set[int](), [self.value]
        while left:
            maker = left.pop().producer()
            if maker is None or id(maker) in known:
                continue
            if maker.op_type in graphs.WEIGHTED:
                return False
            known.add(id(maker))
            left += [value for value in maker.inputs if value is not None]
        return True

    @property
    def pair(self) -> tuple[ir.Value, tuple[tuple[ir.Node, int], ...]]:
        """The tensor that the pair is put behind, and the reads that see it.

        In front of a Transpose that gives this tensor to nobody else, such as that of an NHWC
        image: a scale for the whole tensor passes through, and 8 bits are moved in place of 16 or
        32. OpenVINO moves a pair there by itself, but not one in float16 behind float32.
        """
        value, reads = self.value, self.reads
        while len(value.uses()) == len(reads) and not value.is_graph_output():
            maker = value.producer()
            if maker is None or maker.domain or maker.op_type != "Transpose":
                break
            source = maker.inputs[0]
            assert source is not None
            value, reads = source, ((maker, 0),)
        return value, reads

    @property
    def seen(self) -> ir.Value:
        """What is observed for it: the tensor itself, or a max pool of it where nothing else is
        read, for what the pool drops need not be represented."""
        value, reads = self.value, list(self.reads)
        while len(reads) == 1 and reads[0][0].op_type == "MaxPool":
            value = reads[0][0].outputs[0]
            reads = list(value.uses())
        return value


@dataclass(frozen=True)
class Placement:
    """Everything that will be quantized, and what will not.

    Attributes:
        points: activations, in order of first use.
        weighted: the nodes whose weights are quantized.
        left: (node, reason) of weighted operators that stay in high precision.
        kept: those of them that could be quantized and were asked to stay.
        tensors: `points` as they are with nothing kept, and with all that reads them: what channels
            are rescaled by, which changes no function. So kept layers take their share of it in
            float, and the others' integers do not depend on what is kept. What is not quantized
            gains nothing by it, and the weights that read it would lose.
    """

    points: tuple[Point, ...]
    weighted: tuple[WeightedNode, ...]
    left: tuple[tuple[str, str], ...]
    kept: tuple[WeightedNode, ...]
    tensors: tuple[Point, ...]


def place(
    model: ir.Model, *, matrices: bool = True, keep: Collection[str] = frozenset()
) -> Placement:
    """Decide where the pairs go. The model is not changed.

    Args:
        model: a float graph.
        matrices: whether matrix products read 8 bits; else only convolutions do.
        keep: names (`WeightedNode.name`) of layers that stay in high precision: they read and
            hold floats, whatever others read of the same tensor.

    Raises:
        ConfigError: for a name in `keep` that no layer has.
    """
    reads: dict[str, list[tuple[ir.Node, int]]] = {}
    values: dict[str, ir.Value] = {}
    chosen: list[WeightedNode] = []
    left: list[tuple[str, str]] = []
    kept: list[WeightedNode] = []
    behind: dict[tuple[ir.Node, int], WeightedNode] = {}
    constant = {id(found.node): found for found in graphs.weighted(model)}

    def reads_integers(found: WeightedNode) -> bool:
        return found.name not in keep and (matrices or found.convolution)

    _require_known(keep, (found.name for found in constant.values()))
    for node in model.graph:
        label = str(node.name or node.outputs[0].name)
        if node.op_type == "BatchNormalization" and not node.domain:
            left.append((label, "BatchNorm behind nothing that it could be folded into"))
        if node.domain or node.op_type not in graphs.WEIGHTED:
            continue
        if id(node) not in constant:
            left.append((label, _not_weighted(node)))
            continue
        if reason := _unusual(node):
            left.append((label, reason))
            continue
        found = constant[id(node)]
        if found.name in keep:
            kept.append(found)
            left.append((found.name, "kept in high precision"))
        else:
            chosen.append(found)
        value, read = _origin(node)
        values[str(value.name)] = value
        behind[read] = found
        into = reads.setdefault(str(value.name), [])
        if read not in into:
            into.append(read)
    tensors = tuple(
        Point(values[name], signs.nonnegative(values[name]), tuple(into))
        for name, into in reads.items()
        if matrices or any(behind[read].convolution for read in into)
    )
    quantized = (
        replace(point, reads=tuple(read for read in point.reads if reads_integers(behind[read])))
        for point in tensors
    )
    points = tuple(point for point in quantized if point.reads)
    return Placement(points, tuple(chosen), tuple(left), tuple(kept), tensors)


def _require_known(keep: Iterable[str], names: Iterable[str]) -> None:
    known = list(dict.fromkeys(names))
    for name in sorted(keep):
        if name not in known:
            raise ConfigError(
                "there is no such layer to keep in high precision",
                got=repr(name),
                expected=nearest(name, known, 3),
                fix="mend the name; 'vggdeploy budget' lists a network's",
            )


def scale_sources(model: ir.Model, known: Collection[str]) -> dict[str, str]:
    """Tensors that share the scale of a known one, each with the name of that one.

    A max pool and an operator that only moves values commute with rounding and clipping, since
    these are monotonic, so such a node's input and output have one scale. So does a ReLU, whose
    input may take its output's scale: what is clipped of it below zero is zero behind. A tensor
    takes the scale of what is read from it only where nothing else reads it.

    Args:
        model: the float graph, its nodes in order of execution.
        known: names of the tensors with a scale; none of them is in the result.

    Returns:
        The tensor whose scale it is, by tensor, in order of execution.
    """
    found = {name: name for name in known}
    nodes = [node for node in model.graph if not node.domain and node.inputs and node.outputs]
    for node in nodes:
        source, result = node.inputs[0], str(node.outputs[0].name)
        if node.op_type in _MOVES and source is not None and source.name in found:
            found.setdefault(result, found[str(source.name)])
    for node in reversed(nodes):
        source, result = node.inputs[0], str(node.outputs[0].name)
        if node.op_type not in (*_MOVES, "Relu") or source is None or result not in found:
            continue
        if len(source.uses()) == 1 and not source.is_graph_output():
            found.setdefault(str(source.name), found[result])
    outputs = [value for node in model.graph for value in node.outputs]
    names = [str(value.name) for value in (*model.graph.inputs, *outputs)]
    return {name: found[name] for name in names if name in found and name not in known}


def _origin(node: ir.Node) -> tuple[ir.Value, tuple[ir.Node, int]]:
    """The tensor to quantize for a weighted node, and the read that is to see it.

    Walks up through operators that only move values; if that leads to an activation such as ReLU,
    the pair goes there, else right in front of the node.
    """
    value, read = node.inputs[0], (node, 0)
    assert value is not None
    near = value, read
    while True:
        maker = value.producer()
        if maker is None or maker.domain:
            return near
        if maker.op_type in _ACTIVATIONS or signs.clips_at_zero(maker):
            return value, read
        if not _moves(maker) or maker.inputs[0] is None or len(value.uses()) > 1:
            return near
        value, read = maker.inputs[0], (maker, 0)


def _moves(node: ir.Node) -> bool:
    """Whether a node's outputs are values of its first input, or zeros, which any scale has."""
    return node.op_type in _MOVES or (node.op_type == "Pad" and signs.pads_zeros(node))


def _not_weighted(node: ir.Node) -> str:
    weight = node.inputs[1]
    if weight is None or weight.const_value is None:
        return "its weights are not constant"
    return "its weights are no matrix"


def _unusual(node: ir.Node) -> str:
    """Why a weighted node cannot be quantized; empty when it can."""
    if node.op_type == "Gemm" and (
        graphs.attribute(node, "alpha", 1.0) != 1.0
        or graphs.attribute(node, "beta", 1.0) != 1.0
        or graphs.attribute(node, "transA", 0)
    ):
        return "Gemm with alpha, beta or transA"
    return ""
