"""Quantization: weights to integers, and QuantizeLinear and DequantizeLinear into the graph.

Only explicit Q/DQ is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vggdeploy import graphs, half, opsets
from vggdeploy.calib.lattice import PIXEL, lattice
from vggdeploy.calib.placement import place
from vggdeploy.calib.rounding import Rounded, round_to_nearest, weight_types
from vggdeploy.calib.weights import Factors, activation_scale, rescaled, rescaling
from vggdeploy.contracts import UINT8

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    import onnx_ir as ir
    from numpy.typing import NDArray

    from vggdeploy.calib.table import CalibrationTable
    from vggdeploy.contracts import Dialect, IntegerType
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
    factors, kinds = rescaling(placement, table, dialect), weight_types(placement, dialect)
    image = lattice(placement, table, dialect)
    for point in placement.points:
        if image is not None and point is image.point:
            _insert_pair(model, point.name, image.pixels(model), point.reads, PIXEL, UINT8)
        else:
            kind = dialect.activation(point.nonnegative)
            scale = activation_scale(point, table, dialect)
            _insert_pair(model, point.name, *point.pair, scale, kind)
    done: dict[str, ir.Value] = {}
    for found in placement.weighted:
        name = str(found.weight.name)
        own, moved = (rounded or {}).get(name), factors.get(name, Factors())
        if name not in done:
            integers = own or round_to_nearest(found, dialect, kinds[name], moved)
            done[name] = _dequantized(model, found, dialect, integers)
            if image is not None and found is image.layer:
                own = image.compensated(integers)
        found.node.replace_input_with(1, done[name])
        _set_bias(model, found, moved, own)
        if not found.weight.uses():
            model.graph.initializers.pop(name)
    for found in placement.kept:
        _rescale(model, found, factors.get(str(found.weight.name), Factors()))
    if dialect.high_precision == "float16":
        half.to_float16(model)
        opsets.upgrade(model, opsets.FLOAT16_SCALES)
    if dialect.grouped is not None:
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
    rounded: Rounded,
) -> ir.Value:
    """What stands for a layer's float weights: integers, and their scales."""
    import onnx_ir

    name = str(found.weight.name)
    assert found.weight.const_value is not None
    shape = found.weight.const_value.numpy().shape
    # Rows are outputs; where the graph has them as columns, integers and scales are turned.
    turned = found.channel_axis == 1
    integers: NDArray[Any] = rounded.integers.T if turned else rounded.integers
    integers = np.ascontiguousarray(integers).reshape(shape)
    scales, group = rounded.scales, rounded.group
    attributes = {"axis": found.channel_axis}
    if group:
        assert dialect.grouped is not None
        integers = integers.astype(onnx_ir.DataType[dialect.grouped.dtype.upper()].numpy())
        scales = np.ascontiguousarray(scales.T) if turned else scales
        attributes = {"axis": 1 - found.channel_axis, "block_size": group}
    value = graphs.append(
        model.graph,
        "DequantizeLinear",
        [
            graphs.constant(model.graph, f"{name}.quantized", integers),
            graphs.constant(model.graph, f"{name}.scale", scales),
        ],
        f"{name}.dequantized",
        like=found.weight,
        **attributes,
    )
    if scales.dtype == dialect.high_precision:
        return value
    value.type = onnx_ir.TensorType(onnx_ir.DataType.from_numpy(scales.dtype))
    wide = onnx_ir.DataType.FLOAT.value
    return graphs.append(
        model.graph, "Cast", [value], f"{name}.float32", like=found.weight, to=wide
    )


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
    found.node.replace_input_with(2, graphs.constant(model.graph, name, bias.astype(np.float32)))


def _insert_pair(
    model: ir.Model,
    name: str,
    value: ir.Value,
    reads: Sequence[tuple[ir.Node, int]],
    scale: NDArray[Any],
    kind: IntegerType,
) -> None:
    """Let `reads` see `value` in integers of `kind`, which are called after `name`."""
    import onnx_ir

    parameters = [
        graphs.constant(model.graph, f"{name}.scale", scale),
        graphs.constant(model.graph, f"{name}.zero_point", np.array(0, kind.dtype)),
    ]
    quantized = graphs.append(
        model.graph, "QuantizeLinear", [value, *parameters], f"{name}.quantized", like=value
    )
    quantized.type = onnx_ir.TensorType(onnx_ir.DataType[kind.dtype.upper()])
    dequantized = graphs.append(
        model.graph, "DequantizeLinear", [quantized, *parameters], f"{name}.dequantized", like=value
    )
    for node, index in reads:
        node.replace_input_with(index, dequantized)
