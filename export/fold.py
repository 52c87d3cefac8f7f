"""Fold into convolutions and matrix products what stands around them, in an ONNX graph.

At inference BatchNorm is an affine map of each channel (Jacob et al., "Quantization and Training of
Neural Networks for Efficient Integer-Arithmetic-Only Inference", 2018, section 3.2), and so are
what exporters leave of it: Mul, Add, Sub and Div by a constant of each channel. Folded before
calibration, the ranges seen are those that the engine will have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vggdeploy import graphs
from vggdeploy.errors import ModelError
from vggdeploy.export.constants import array

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    Vector = NDArray[np.float64]

_EPSILON = 1e-5
"""BatchNormalization's own default."""

_BLOCK_ELEMENTS = 1 << 23
"""Weights are multiplied 64 MiB of float64 at a time: the largest layer has 103 million."""


@dataclass(frozen=True)
class _Affine:
    """``y = x * factor + shift``, one of each a channel, in float64."""

    factor: Vector
    shift: Vector

    def then(self, after: _Affine) -> _Affine:
        return _Affine(self.factor * after.factor, self.shift * after.factor + after.shift)


def fold_affine(model: ir.Model) -> None:
    """Fold the affine maps behind every weighted node whose weights are constant.

    A MatMul that gets a bias becomes a Gemm. A map is folded only where nothing else reads what is
    in front of it. The model is edited in place.

    Raises:
        ModelError: when what comes out is NaN or infinite.
    """
    for found in list(graphs.weighted(model)):
        node = found.node
        rank = _rank(node)
        own = _own(node, found, rank)
        if own is None or rank is None:
            continue
        axis = 1 if node.op_type == "Conv" else rank - 1
        whole, chain = own, []
        value = node.outputs[0]
        while len(value.uses()) == 1 and not value.is_graph_output():
            ((reader, index),) = value.uses()
            step = _affine(reader, index, len(own.factor), rank, axis)
            if step is None or (node.op_type == "MatMul" and rank != 2 and step.shift.any()):
                break
            whole = whole.then(step)
            chain.append(reader)
            value = reader.outputs[0]
        plain = node.op_type == "Gemm" and not _scaled(node) and _is_vector(node, len(own.factor))
        if not chain and (node.op_type != "Gemm" or plain):
            continue
        _apply(model.graph, found, whole)
        for reader in reversed(chain):
            _move_to_front(reader)
            graphs.bypass(model.graph, reader)


def _own(node: ir.Node, found: graphs.WeightedNode, rank: int | None) -> _Affine | None:
    """What a node does to its bare product: alpha and the bias; None when that is not constant."""
    tensor = found.weight.const_value
    assert tensor is not None
    channels = int(tensor.shape.numpy()[found.channel_axis])
    ones, zeros = np.ones(channels), np.zeros(channels)
    given = node.inputs[2] if len(node.inputs) > 2 else None
    if given is None:
        shift: Vector | None = zeros
    elif node.op_type == "Conv":
        content = array(given)
        shift = None if content is None else content.astype(np.float64)
    else:
        shift = _per_channel(given, channels, rank or 2, 1)
    if shift is None:
        return None
    if node.op_type != "Gemm":
        return _Affine(ones, shift)
    alpha, beta = (float(graphs.attribute(node, name, 1.0)) for name in ("alpha", "beta"))
    return _Affine(ones * alpha, shift * beta)


def _scaled(node: ir.Node) -> bool:
    return any(graphs.attribute(node, name, 1.0) != 1.0 for name in ("alpha", "beta"))


def _is_vector(node: ir.Node, channels: int) -> bool:
    bias = array(node.inputs[2]) if len(node.inputs) > 2 else None
    return bias is None or bias.shape == (channels,)


def _rank(node: ir.Node) -> int | None:
    """Of a node's output."""
    if node.op_type == "Gemm":
        return 2
    if node.op_type == "Conv":
        tensor = node.inputs[1].const_value if node.inputs[1] is not None else None
        return len(tensor.shape) if tensor is not None else None
    for value in (node.outputs[0], node.inputs[0]):
        if value is not None and value.shape is not None:
            return len(value.shape)
    return None


def _affine(node: ir.Node, index: int, channels: int, rank: int, axis: int) -> _Affine | None:
    """A node as an affine map of each channel of its input `index`; None when it is none."""
    if node.domain or len(node.outputs) > 1:
        return None
    ones, zeros = np.ones(channels), np.zeros(channels)
    if node.op_type == "BatchNormalization":
        if index or axis != 1 or graphs.attribute(node, "training_mode", 0):
            return None
        parameters = [array(value) for value in node.inputs[1:5]]
        if any(found is None for found in parameters):
            return None
        scale, shift, mean, variance = (
            found.astype(np.float64) for found in parameters if found is not None
        )
        with np.errstate(all="ignore"):  # what comes out is judged
            factor = scale / np.sqrt(variance + graphs.attribute(node, "epsilon", _EPSILON))
        return _Affine(factor, shift - mean * factor)
    if node.op_type not in ("Mul", "Div", "Add", "Sub") or (node.op_type == "Div" and index):
        return None
    other = _per_channel(node.inputs[1 - index], channels, rank, axis)
    if other is None:
        return None
    if node.op_type == "Mul":
        return _Affine(other, zeros)
    if node.op_type == "Div":
        with np.errstate(divide="ignore"):
            return _Affine(1 / other, zeros)
    if node.op_type == "Sub":
        return _Affine(ones, -other) if index == 0 else _Affine(-ones, other)
    return _Affine(ones, other)


def _per_channel(value: ir.Value | None, channels: int, rank: int, axis: int) -> Vector | None:
    """A constant as one number a channel: ``[C, 1, 1]`` beside ``[N, C, H, W]``, or one for all."""
    content = array(value)
    if content is None or content.ndim > rank or content.dtype.kind != "f":
        return None
    shape = (1,) * (rank - content.ndim) + content.shape
    if any(side != 1 for at, side in enumerate(shape) if at != axis):
        return None
    if shape[axis] not in (1, channels):
        return None
    spread: Vector = np.broadcast_to(content.reshape(-1).astype(np.float64), channels).copy()
    return spread


def _apply(graph: ir.Graph, found: graphs.WeightedNode, whole: _Affine) -> None:
    """Give a weighted node the weights and the bias that do the whole."""
    node, weight = found.node, found.weight
    tensor = weight.const_value
    assert tensor is not None
    with np.errstate(over="ignore"):
        bias = whole.shift.astype(np.float32)
    if (whole.factor != 1).any():
        scaled = _scale(tensor.numpy(), whole.factor, found.channel_axis)
        _require_finite(node, scaled)
        node.replace_input_with(1, graphs.constant(graph, str(weight.name), scaled))
    _require_finite(node, bias)
    if node.op_type == "MatMul":
        if not bias.any():
            return
        node.op_type = "Gemm"
    for name in ("alpha", "beta"):
        node.attributes.pop(name, None)
    node.resize_inputs(3)
    base = str(weight.name).removesuffix(".weight")
    node.replace_input_with(2, graphs.constant(graph, f"{base}.bias", bias))


def _scale(weight: NDArray[np.floating], factor: Vector, axis: int) -> NDArray[np.float32]:
    scaled = np.empty(weight.shape, np.float32)
    rows, into = np.moveaxis(weight, axis, 0), np.moveaxis(scaled, axis, 0)
    step = max(1, _BLOCK_ELEMENTS * len(factor) // max(weight.size, 1))
    for start in range(0, len(factor), step):
        part = slice(start, start + step)
        column = factor[part].reshape(-1, *(1,) * (weight.ndim - 1))
        with np.errstate(all="ignore"):  # what comes out is judged
            into[part] = rows[part].astype(np.float64) * column
    return scaled


def _require_finite(node: ir.Node, content: NDArray[np.float32]) -> None:
    if not np.isfinite(content).all():
        raise ModelError(
            f"what follows {graphs.label(node)} makes its weights NaN or infinite",
            got=f"{np.count_nonzero(~np.isfinite(content)):,} such weights",
            expected="a BatchNorm with a variance above 0, and no division by 0",
            fix="export the model again",
        )


def _move_to_front(node: ir.Node) -> None:
    """Make the computed operand of ``constant - x`` and its like the first."""
    if node.inputs[0] is not None and node.inputs[0].producer() is None:
        first, second = node.inputs[:2]
        node.replace_input_with(0, second)
        node.replace_input_with(1, first)
