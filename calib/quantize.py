"""Quantization: weights to integers, and QuantizeLinear and DequantizeLinear into the graph.

Only explicit Q/DQ is written. Scales are rounded to the dialect's high-precision type first and
the integers are computed with the rounded scale, so that what the engine multiplies back is what
was meant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vggdeploy import graphs, opsets
from vggdeploy.calib.groups import fitting_group, round_groups
from vggdeploy.calib.placement import place
from vggdeploy.errors import CalibrationError

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir
    from numpy.typing import NDArray

    from vggdeploy.calib.placement import Point
    from vggdeploy.calib.table import CalibrationTable
    from vggdeploy.contracts import Dialect, GroupedType, IntegerType
    from vggdeploy.graphs import WeightedNode

_BLOCK_ELEMENTS = 1 << 23
"""Weights are rounded 32 MiB at a time: the largest layer has 411 MB of them."""

_SMALLEST_SCALE = {
    "float32": float(np.finfo(np.float32).tiny),
    "float16": float(np.finfo(np.float16).tiny),
}
"""Normal numbers only: a subnormal scale loses bits, and backends flush it to zero."""


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


def quantize(source: Path, table: CalibrationTable, dialect: Dialect, out: Path) -> Quantized:
    """Write the Q/DQ form of an FP32 graph.

    Args:
        source: the FP32 graph, weights beside it.
        table: a threshold for every tensor that `place` chooses.
        dialect: types and high precision.
        out: the file to write, weights inside.

    Raises:
        CalibrationError: when the table lacks a tensor, or a value does not fit the dialect.
        ModelError: when the result does not pass ONNX's checker.
    """
    model = graphs.read(source)
    placement = place(model, matrices=dialect.matrix is None)
    for point in placement.points:
        _insert_pair(model, point, table, dialect)
    done: dict[str, ir.Value] = {}
    for found in placement.weighted:
        _quantize_weight(model, found, dialect, done)
    if dialect.high_precision == "float16":
        _to_float16(model)
        opsets.upgrade(model, opsets.FLOAT16_SCALES)
    if dialect.matrix is not None:
        opsets.upgrade(model, opsets.BLOCK_SCALES)
        # The first IR version that knows 4-bit integers.
        model.ir_version = max(model.ir_version, 10)
    model.graph.sort()
    graphs.write(model, out, external=False)
    graphs.check(out)
    return Quantized(
        tuple(found.name for found in placement.weighted),
        tuple(point.name for point in placement.points),
        placement.left,
    )


def round_weights(
    weight: NDArray[np.floating],
    axis: int,
    kind: IntegerType,
    scale_dtype: str,
    name: str = "the weights",
) -> tuple[NDArray[np.int8], NDArray[Any]]:
    """Round weights to the nearest step, half to even, one scale a channel: ``amax / qmax``.

    Args:
        weight: float, any shape.
        axis: the axis that runs over channels.
        kind: int8, narrow range.
        scale_dtype: ``"float32"`` or ``"float16"``.
        name: what errors call the weights.

    Returns:
        int8 of the shape of `weight`, and scales ``[channels]`` of `scale_dtype`. A channel of
        zeros has the scale 1.

    Raises:
        CalibrationError: when a scale does not fit `scale_dtype`.
    """
    channels = weight.shape[axis]
    scales = np.ones(channels, scale_dtype)
    quantized = np.empty(weight.shape, np.int8)
    rows, into = np.moveaxis(weight, axis, 0), np.moveaxis(quantized, axis, 0)
    step = max(1, _BLOCK_ELEMENTS * channels // weight.size)
    for start in range(0, channels, step):
        block = np.asarray(rows[start : start + step], np.float32)
        over = tuple(range(1, block.ndim))
        amax = np.abs(block).max(axis=over, initial=0)
        wanted = np.maximum(amax / kind.qmax, _SMALLEST_SCALE[scale_dtype])
        scale = _narrow(wanted, scale_dtype, f"the scale of a channel of {name}")
        scale[amax == 0] = 1
        wide = scale.astype(np.float32).reshape(-1, *(1,) * len(over))
        into[start : start + step] = np.clip(np.rint(block / wide), kind.qmin, kind.qmax)
        scales[start : start + step] = scale
    return quantized, scales


def _narrow(values: NDArray[np.floating], dtype: str, what: str) -> NDArray[Any]:
    """Cast to a dialect's high-precision type.

    Raises:
        CalibrationError: when a value is too large for it.
    """
    with np.errstate(over="ignore"):
        narrow = values.astype(dtype)
    if not np.isfinite(narrow).all():
        raise CalibrationError(
            f"{what} does not fit {dtype}",
            got=f"{np.abs(values).max():g}",
            expected=f"{float(np.finfo(dtype).max):g} at most",
            fix="rescale the network, or build for another target",
        )
    return narrow


def _quantize_weight(
    model: ir.Model, found: WeightedNode, dialect: Dialect, done: dict[str, ir.Value]
) -> None:
    """Put integer weights and a DequantizeLinear in place of a float weight.

    A matrix product without a group that divides its inputs has int8 weights, one scale a channel,
    whatever its dialect.
    """
    name = str(found.weight.name)
    tensor = found.weight.const_value
    assert tensor is not None
    kind = None if found.convolution else dialect.matrix
    columns = tensor.numpy().shape[1 - found.channel_axis]
    group = fitting_group(columns, kind.group) if kind else None
    if name not in done and kind and group:
        done[name] = _group_weight(model, found, kind, group, dialect)
    elif name not in done:
        integers, scales = round_weights(
            tensor.numpy(), found.channel_axis, dialect.weight, dialect.high_precision, name
        )
        inputs = [
            _constant(model, f"{name}.quantized", integers),
            _constant(model, f"{name}.scale", scales),
        ]
        done[name] = _append(
            model,
            "DequantizeLinear",
            inputs,
            f"{name}.dequantized",
            like=found.weight,
            axis=found.channel_axis,
        )
    found.node.replace_input_with(1, done[name])
    if not found.weight.uses():
        model.graph.initializers.pop(name)


def _group_weight(
    model: ir.Model, found: WeightedNode, kind: GroupedType, group: int, dialect: Dialect
) -> ir.Value:
    """Weights of a matrix product in groups of `group` inputs: what stands for the float ones."""
    import onnx_ir

    name = str(found.weight.name)
    tensor = found.weight.const_value
    assert tensor is not None
    inputs_axis = 1 - found.channel_axis
    integers, scales = round_groups(np.moveaxis(tensor.numpy(), inputs_axis, 1), kind, group)
    narrow = onnx_ir.DataType[kind.dtype.upper()].numpy()
    parts = [
        _constant(model, f"{name}.quantized", np.moveaxis(integers, 1, inputs_axis).astype(narrow)),
        _constant(
            model, f"{name}.scale", np.ascontiguousarray(np.moveaxis(scales, 1, inputs_axis))
        ),
    ]
    dequantized = _append(
        model,
        "DequantizeLinear",
        parts,
        f"{name}.dequantized",
        like=found.weight,
        axis=inputs_axis,
        block_size=group,
    )
    if scales.dtype == dialect.high_precision:
        return dequantized
    dequantized.type = onnx_ir.TensorType(onnx_ir.DataType.from_numpy(scales.dtype))
    wide = onnx_ir.DataType.FLOAT
    return _append(
        model, "Cast", [dequantized], f"{name}.float32", like=found.weight, to=wide.value
    )


def _insert_pair(model: ir.Model, point: Point, table: CalibrationTable, dialect: Dialect) -> None:
    import onnx_ir

    if point.name not in table.tensors:
        raise CalibrationError(
            f"the calibration table has no entry for tensor {point.name!r}",
            expected="a table made from this model",
            fix="calibrate again",
        )
    kind = dialect.activation(point.nonnegative)
    smallest = _SMALLEST_SCALE[dialect.high_precision]
    scale = max(table.tensors[point.name].scale(kind), smallest)
    parameters = [
        _constant(
            model,
            f"{point.name}.scale",
            _narrow(np.array(scale), dialect.high_precision, f"the scale of tensor {point.name!r}"),
        ),
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
            narrow = _narrow(tensor.numpy(), "float16", name)
            value.const_value = onnx_ir.tensor(narrow, name=name)
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
