"""Quantization: weights to integers, and QuantizeLinear and DequantizeLinear into the graph.

Only explicit Q/DQ is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vggdeploy import graphs, opsets
from vggdeploy.calib.placement import place
from vggdeploy.calib.rounding import Rounded, round_to_nearest
from vggdeploy.calib.weights import Factors, activation_scale, narrow, rescaled, rescaling

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    import onnx_ir as ir
    from numpy.typing import NDArray

    from vggdeploy.calib.placement import Point
    from vggdeploy.calib.table import CalibrationTable
    from vggdeploy.contracts import Dialect
    from vggdeploy.graphs import WeightedNode


@dataclass(frozen=True)
class Quantized:
    """What was done.

    Attributes:
        weights: names of the layers whose weights are integers now.
        activations: names of the tensors with a Q/DQ pair.
        left: (node, reason) of layers that stay in high precision.
    """

    weights: tuple[str, ...]
    activations: tuple[str, ...]
    left: tuple[tuple[str, str], ...]


def quantize(
    source: Path,
    table: CalibrationTable,
    dialect: Dialect,
    out: Path,
    rounded: Mapping[str, Rounded] | None = None,
    keep: Collection[str] = frozenset(),
    *,
    weights: Literal["inside", "beside", "shared"] = "inside",
) -> Quantized:
    """Write the Q/DQ form of an FP32 graph.

    Args:
        source: the FP32 graph, weights beside it.
        table: a threshold for every tensor that `place` chooses.
        dialect: types and high precision.
        out: the file to write.
        rounded: weights that are rounded already, by name; the others are rounded to nearest.
            They fit whatever is kept.
        keep: names of layers that stay in high precision, see `place`.
        weights: ``inside`` the file; in a file ``beside`` it; or, where they are in a file beside
            `source` and do not change, ``shared`` with it: then `out` is in its folder.

    Raises:
        ConfigError: for a name in `keep` that no layer has.
        CalibrationError: when the table lacks a tensor, or a value does not fit the dialect.
        ModelError: when the result does not pass ONNX's checker.
    """
    model = graphs.read(source)
    placement = place(model, matrices=dialect.matrix is None, keep=keep)
    factors = rescaling(placement, table)
    for point in placement.points:
        _insert_pair(model, point, table, dialect)
    done: dict[str, ir.Value] = {}
    for found in placement.weighted:
        name = str(found.weight.name)
        own, moved = (rounded or {}).get(name), factors.get(name, Factors())
        if name not in done:
            done[name] = _dequantized(model, found, dialect, moved, own)
        found.node.replace_input_with(1, done[name])
        _set_bias(model, found, moved, own)
        if not found.weight.uses():
            model.graph.initializers.pop(name)
    for found in placement.kept:
        _rescale(model, found, factors.get(str(found.weight.name), Factors()))
    if dialect.high_precision == "float16":
        _to_float16(model)
        opsets.upgrade(model, opsets.FLOAT16_SCALES)
    if dialect.matrix is not None:
        opsets.upgrade(model, opsets.BLOCK_SCALES)
        # The first IR version that knows 4-bit integers.
        model.ir_version = max(model.ir_version, 10)
    model.graph.sort()
    if weights == "shared":
        graphs.write_sharing(model, out)
    else:
        graphs.write(model, out, external=weights == "beside")
    graphs.check(out)
    return Quantized(
        tuple(found.name for found in placement.weighted),
        tuple(point.name for point in placement.points),
        placement.left,
    )


def _dequantized(
    model: ir.Model,
    found: WeightedNode,
    dialect: Dialect,
    factors: Factors,
    rounded: Rounded | None,
) -> ir.Value:
    """What stands for a layer's float weights: integers, and their scales."""
    import onnx_ir

    name = str(found.weight.name)
    if rounded is None:
        rounded = round_to_nearest(found, dialect, factors)
    assert found.weight.const_value is not None
    shape = found.weight.const_value.numpy().shape
    # Rows are outputs; where the graph has them as columns, integers and scales are turned.
    turned = found.channel_axis == 1
    integers: NDArray[Any] = rounded.integers.T if turned else rounded.integers
    integers = np.ascontiguousarray(integers).reshape(shape)
    scales, group = rounded.scales, rounded.group
    attributes = {"axis": found.channel_axis}
    if group:
        assert dialect.matrix is not None
        integers = integers.astype(onnx_ir.DataType[dialect.matrix.dtype.upper()].numpy())
        scales = np.ascontiguousarray(scales.T) if turned else scales
        attributes = {"axis": 1 - found.channel_axis, "block_size": group}
    value = _append(
        model,
        "DequantizeLinear",
        [
            _constant(model, f"{name}.quantized", integers),
            _constant(model, f"{name}.scale", scales),
        ],
        f"{name}.dequantized",
        like=found.weight,
        **attributes,
    )
    if scales.dtype == dialect.high_precision:
        return value
    value.type = onnx_ir.TensorType(onnx_ir.DataType.from_numpy(scales.dtype))
    wide = onnx_ir.DataType.FLOAT.value
    return _append(model, "Cast", [value], f"{name}.float32", like=found.weight, to=wide)


def _rescale(model: ir.Model, found: WeightedNode, factors: Factors) -> None:
    """Give a layer that stays in float the weights and the bias of its rescaled channels."""
    import onnx_ir

    if factors.outputs is None and factors.inputs is None:
        return
    old = found.weight
    assert old.const_value is not None
    rows = rescaled(found, factors)
    turned = rows.T if found.channel_axis == 1 else rows
    array = np.ascontiguousarray(turned).reshape(old.const_value.numpy().shape)
    # Nothing else reads the weights of a layer that is rescaled, see `channels`.
    old.const_value = onnx_ir.tensor(array, name=old.name)
    _set_bias(model, found, factors, None)


def _set_bias(
    model: ir.Model, found: WeightedNode, factors: Factors, rounded: Rounded | None
) -> None:
    """Give a layer the bias of its rescaled channels, and what rounding corrects it by."""
    correction = rounded.bias if rounded else None
    if factors.outputs is None and correction is None:
        return
    old = found.node.inputs[2] if len(found.node.inputs) > 2 else None
    if old is None and correction is None:
        return
    rows = graphs.rows(found).shape[0]
    bias = np.zeros(rows, np.float32)
    if old is not None:
        assert old.const_value is not None
        bias = bias + old.const_value.numpy().reshape(-1)
    if factors.outputs is not None:
        bias = bias * factors.outputs
    if correction is not None:
        bias = bias + correction
    found.node.resize_inputs(3)
    found.node.replace_input_with(2, None)
    if old is not None and not old.uses():
        model.graph.initializers.pop(str(old.name))
    name = str(old.name) if old is not None else f"{found.name}.bias"
    found.node.replace_input_with(2, _constant(model, name, bias.astype(np.float32)))


def _insert_pair(model: ir.Model, point: Point, table: CalibrationTable, dialect: Dialect) -> None:
    import onnx_ir

    kind = dialect.activation(point.nonnegative)
    parameters = [
        _constant(model, f"{point.name}.scale", activation_scale(point, table, dialect)),
        _constant(model, f"{point.name}.zero_point", np.array(0, kind.dtype)),
    ]
    quantized = _append(
        model,
        "QuantizeLinear",
        [point.value, *parameters],
        f"{point.name}.quantized",
        like=point.value,
    )
    quantized.type = onnx_ir.TensorType(onnx_ir.DataType[kind.dtype.upper()])
    dequantized = _append(
        model,
        "DequantizeLinear",
        [quantized, *parameters],
        f"{point.name}.dequantized",
        like=point.value,
    )
    for node, index in point.reads:
        node.replace_input_with(index, dequantized)


def _append(
    model: ir.Model,
    operator: str,
    inputs: list[ir.Value],
    output: str,
    like: ir.Value,
    **attributes: int,
) -> ir.Value:
    """A new node's output, with shape and type of `like`. The graph is sorted at the end."""
    import onnx_ir

    taken, name = {node.name for node in model.graph}, output
    while name in taken:  # a foreign graph may have a node of that name
        name += "_"
    node = onnx_ir.node(operator, inputs, attributes, name=name)
    value = node.outputs[0]
    value.name = output
    value.shape, value.type = like.shape, like.type
    model.graph.append(node)
    return value


def _constant(model: ir.Model, name: str, array: NDArray[Any]) -> ir.Value:
    import onnx_ir

    while name in model.graph.initializers:  # a foreign graph may have a tensor of that name
        name += "_"
    tensor = onnx_ir.tensor(array, name=name)
    value = onnx_ir.val(name, const_value=tensor)
    model.graph.register_initializer(value)
    return value


def _to_float16(model: ir.Model) -> None:
    """Carry everything that is float32 in float16, but for the graph's own input and output."""
    import onnx_ir

    graph = model.graph
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None and tensor.dtype == onnx_ir.DataType.FLOAT:
            carried = narrow(tensor.numpy(), "float16", name)
            value.const_value = onnx_ir.tensor(carried, name=name)
            value.type = onnx_ir.TensorType(onnx_ir.DataType.FLOAT16)
    for node in graph:
        target = node.attributes.get("to")
        if node.op_type == "Cast" and target and target.value == onnx_ir.DataType.FLOAT:
            node.attributes["to"] = onnx_ir.AttrInt64("to", onnx_ir.DataType.FLOAT16)
        for value in node.outputs:
            if value.dtype == onnx_ir.DataType.FLOAT and not value.is_graph_output():
                value.type = onnx_ir.TensorType(onnx_ir.DataType.FLOAT16)
    half = onnx_ir.TensorType(onnx_ir.DataType.FLOAT16)
    (image,) = (v for v in graph.inputs if v.name not in graph.initializers)
    readers = list(image.uses())
    narrow_image = _append(
        model,
        "Cast",
        [image],
        f"{image.name}.float16",
        like=image,
        to=onnx_ir.DataType.FLOAT16.value,
    )
    narrow_image.type = half
    for node, index in readers:
        node.replace_input_with(index, narrow_image)
    (scores,) = graph.outputs
    name = str(scores.name)
    scores.name = f"{name}.float16"
    graph.outputs[0] = _append(
        model, "Cast", [scores], name, like=scores, to=onnx_ir.DataType.FLOAT.value
    )
    scores.type = half
