"""Which weights read a channel of a quantized tensor, and which make it.

Layers that stay in high precision count too: a tensor's link does not depend on what is kept.
Followed through the operators that only move values, by moving the channels' numbers along.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vggdeploy import graphs

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    from vggdeploy.calib.placement import Placement, Point
    from vggdeploy.graphs import WeightedNode


@dataclass(frozen=True)
class Reader:
    """A weighted node behind a quantized tensor.

    Attributes:
        channel: int ``[inputs]``, for each input channel of a convolution, or each input of a
            matrix product, the channel of the tensor that it is.
    """

    found: WeightedNode
    channel: NDArray[np.intp]


@dataclass(frozen=True)
class Link:
    """A quantized tensor with channels: what reads it, and what makes it.

    Attributes:
        channels: how many it has, along axis 1.
        readers: every weighted node that reads it.
        maker: the weighted node in front of its ReLU, where a factor for a channel can be moved
            from that node's output to what reads the channel: ``relu(a x) = a relu(x)`` for
            ``a > 0``, and so does a max pool. None where it cannot.
    """

    channels: int
    readers: tuple[Reader, ...]
    maker: WeightedNode | None

    @property
    def products(self) -> bool:
        """Whether matrix products alone read it."""
        return not any(reader.found.convolution for reader in self.readers)

    def gains(self) -> NDArray[np.float64]:
        """How much of a channel's squared error arrives in the readers' outputs, ``[channels]``:
        the sum of the squared weights that read it, for errors that do not know each other."""
        total = np.zeros(self.channels)
        for reader in self.readers:
            weight = graphs.rows(reader.found)
            # einsum squares and adds without a copy of what may be 411 MB; in float64, since the
            # square of a large float32 is none.
            energy = np.einsum("ij,ij->j", weight, weight, dtype=np.float64)
            energy = energy.reshape(len(reader.channel), -1).sum(1)
            total += np.bincount(reader.channel, energy, self.channels)
        return total


def links(placement: Placement) -> dict[str, Link]:
    """The link of every quantized map ``[N, C, H, W]`` and vector ``[N, C]`` that can be followed,
    by tensor."""
    found = {id(node.node): node for node in (*placement.weighted, *placement.kept)}
    made = ((point, _link(point, found)) for point in placement.tensors)
    return {point.name: link for point, link in made if link is not None}


def _link(point: Point, found: dict[int, WeightedNode]) -> Link | None:
    shape = graphs.static_shape(point.value)
    if shape is None or len(shape) not in (2, 4) or None in shape[1:]:
        return None
    channels, *area = (int(side or 0) for side in shape[1:])
    numbers = np.arange(channels).reshape(1, channels, *(1 for _ in area))
    numbers = np.broadcast_to(numbers, (1, channels, *area))
    readers = []
    for node, index in point.reads:
        reader = _follow(node, index, numbers, found)
        if reader is None:
            return None
        readers.append(reader)
    return Link(channels, tuple(readers), _maker(point, readers, found))


def _follow(
    node: ir.Node, index: int, numbers: NDArray[np.intp], found: dict[int, WeightedNode]
) -> Reader | None:
    """The weighted node that a read leads to; None where the way is not a plain one."""
    while id(node) not in found:
        output = node.outputs[0]
        moved = _moved(node, numbers)
        if index != 0 or moved is None or len(output.uses()) != 1 or output.is_graph_output():
            return None
        numbers = moved
        node, index = next(iter(output.uses()))
    reader = found[id(node)]
    if not reader.convolution:
        return Reader(reader, numbers.reshape(-1)) if numbers.ndim == 2 else None
    first = numbers[0, :, 0, 0] if numbers.ndim == 4 else None
    if first is None or (numbers[0] != first[:, None, None]).any():
        return None
    return Reader(reader, first) if graphs.attribute(reader.node, "group", 1) == 1 else None


def _moved(node: ir.Node, numbers: NDArray[np.intp]) -> NDArray[np.intp] | None:
    """The channels' numbers behind an operator that moves values."""
    shape = graphs.static_shape(node.outputs[0])
    if node.domain or shape is None or None in shape[1:]:
        return None
    sides = (1, *(int(side or 0) for side in shape[1:]))
    if node.op_type in ("MaxPool", "Pad"):
        if numbers.ndim != 4 or sides[1] != numbers.shape[1]:
            return None
        first = numbers[:, :, :1, :1]
        return np.broadcast_to(first, sides) if (numbers == first).all() else None
    if node.op_type == "Transpose":
        order = graphs.attribute(node, "perm", tuple(reversed(range(numbers.ndim))))
        return numbers.transpose(tuple(order)) if order[0] == 0 else None
    if node.op_type in ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"):
        return numbers.reshape(sides) if numbers.size == np.prod(sides) else None
    return None


def _maker(
    point: Point, readers: list[Reader], found: dict[int, WeightedNode]
) -> WeightedNode | None:
    relu = point.value.producer()
    before = relu.inputs[0] if relu is not None and relu.op_type == "Relu" else None
    maker = before.producer() if before is not None else None
    weighted = found.get(id(maker)) if maker is not None else None
    if (
        before is None
        or weighted is None
        or len(before.uses()) != 1
        or before.is_graph_output()
        or point.value.is_graph_output()
        or len(point.value.uses()) != len(point.reads)
        or not _along_channels(weighted, point.value)
    ):
        return None
    own = [weighted, *(reader.found for reader in readers)]
    constants = [weighted.weight, *weighted.node.inputs[2:3], *(r.found.weight for r in readers)]
    plain = all(value is None or len(value.uses()) == 1 for value in constants)
    bias = weighted.node.inputs[2] if len(weighted.node.inputs) > 2 else None
    known = bias is None or bias.const_value is not None
    return weighted if plain and known and len({id(n.node) for n in own}) == len(own) else None


def _along_channels(found: WeightedNode, result: ir.Value) -> bool:
    """Whether a node's outputs lie along axis 1 of its result: a matrix product's lie along the
    last one."""
    shape = graphs.static_shape(result)
    return found.convolution or (shape is not None and len(shape) == 2)
