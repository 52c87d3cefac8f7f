"""The image's own steps: a first layer that reads the pixels that its input was made from.

An input ``x = (pixel * scale - mean) / std`` has 256 values a channel. Rounded to a scale of its
own it gets an error where there need be none, and one that counts: a first layer looks for edges,
which natural images have little of and rounding noise is full of. So the input is turned back into
pixels, ``x * factor + offset``, which are integers without rounding; the factors go into the
weights that read them and the offsets into the bias, once the zeros around the image are put there
before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from vggdeploy import graphs, preprocess
from vggdeploy.contracts import UINT8

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    from vggdeploy.calib.placement import Placement, Point
    from vggdeploy.calib.rounding import Rounded
    from vggdeploy.calib.table import CalibrationTable
    from vggdeploy.contracts import Dialect
    from vggdeploy.graphs import WeightedNode

PIXEL = np.ones((), np.float32)
"""The scale of pixels."""


@dataclass(frozen=True)
class Lattice:
    """How a network's input becomes the pixels that it was made from.

    Attributes:
        point: the input.
        layer: the one convolution that reads it.
        factors: float32 ``[channels]``: ``std / scale``.
        offsets: float32 ``[channels]``: ``mean / scale``, the pixel of a zero, 0 to 255.
    """

    point: Point
    layer: WeightedNode
    factors: NDArray[np.float32]
    offsets: NDArray[np.float32]

    def compensated(self, rounded: Rounded) -> Rounded:
        """The layer's rounded weights with a bias for the offsets: exact for these integers, so
        that no error of the weights comes in with them."""
        places = rounded.integers.shape[1] // len(self.offsets)
        each = np.repeat(self.offsets.astype(np.float64), places)
        bias = -(rounded.integers @ each * rounded.scales).astype(np.float32)
        return replace(rounded, bias=bias if rounded.bias is None else rounded.bias + bias)

    def pixels(self, model: ir.Model) -> ir.Value:
        """The pixels, in float, with the layer's padding around them, which it no longer has."""
        import onnx_ir

        node, name = self.layer.node, self.point.name
        value = node.inputs[0]
        assert value is not None
        pads = list(graphs.attribute(node, "pads", (0, 0, 0, 0)))
        if any(pads):
            around = np.array([0, 0, *pads[:2], 0, 0, *pads[2:]], np.int64)
            given = [
                graphs.constant(model.graph, f"{name}.pads", around),
                graphs.constant(model.graph, f"{name}.zero", np.zeros((), np.float32)),
            ]
            bare, shape = value, graphs.static_shape(value)
            value = graphs.append(model.graph, "Pad", [bare, *given], f"{name}.padded", like=bare)
            if shape is not None:
                wider = (around[:4] + around[4:]).tolist()
                value.shape = onnx_ir.Shape(
                    [side and side + more for side, more in zip(shape, wider, strict=True)]
                )
            node.attributes["pads"] = onnx_ir.AttrInt64s("pads", [0] * 4)
        for operator, content in (("Mul", self.factors), ("Add", self.offsets)):
            there = f"{name}.{operator.lower()}"
            each = graphs.constant(model.graph, there, content.reshape(1, -1, 1, 1))
            value = graphs.append(
                model.graph, operator, [value, each], f"{there}.result", like=value
            )
        return value


def lattice(placement: Placement, table: CalibrationTable, dialect: Dialect) -> Lattice | None:
    """How the first layer reads pixels; None where it cannot: where the dialect does not want it,
    where the table does not say how the input is made, or where anything but one plain convolution
    reads it, at once or behind a transpose of channels.

    Raises:
        ConfigError: where the table's preprocessing is none.
    """
    said: Any = table.source.get("preprocess")
    if not dialect.pixels or not isinstance(said, dict):
        return None
    how = preprocess.from_mapping(said, where="the calibration table's preprocess")
    factors = np.array(how.std, np.float32) / np.float32(how.scale)
    offsets = np.array(how.mean, np.float32) / np.float32(how.scale)
    if not ((offsets >= 0).all() and (offsets <= UINT8.qmax).all()):
        return None  # no pixel stands for the zeros around the image
    layers = {id(found.node): found for found in placement.weighted}
    for point in placement.points:
        (node, index), *others = point.reads
        found = layers.get(id(node))
        if found is None or others or index or point.nonnegative:
            continue
        if _reads_image(point.value, how.layout) and found.plain and len(found.weight.uses()) == 1:
            return Lattice(point, found, factors, offsets)
    return None


def _reads_image(value: ir.Value, layout: str) -> bool:
    """Whether a tensor is the network's input, its channels along axis 1."""
    maker = value.producer()
    if layout == "nhwc":
        if maker is None or maker.domain or maker.op_type != "Transpose":
            return False
        if list(graphs.attribute(maker, "perm", ())) != [0, 3, 1, 2]:
            return False
        source = maker.inputs[0]
        assert source is not None
        value, maker = source, source.producer()
    return maker is None and value.is_graph_input()
