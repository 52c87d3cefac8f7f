"""Every layer's weights rounded: to nearest, or with second-order information where it is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vggdeploy import graphs, limits
from vggdeploy.calib import second_order, sparsity
from vggdeploy.calib.covariance import Wanted, wanted
from vggdeploy.calib.groups import group_scales, round_groups
from vggdeploy.calib.lattice import lattice
from vggdeploy.calib.second_order import round_by_covariance, round_by_samples
from vggdeploy.calib.weights import (
    Factors,
    activation_scale,
    channel_scales,
    rescaled,
    rescaling,
    round_weights,
)
from vggdeploy.contracts import INT8_NARROW, IntegerType

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import onnx_ir as ir
    from numpy.typing import NDArray

    from vggdeploy.calib.covariance import Moments
    from vggdeploy.calib.placement import Placement, Point
    from vggdeploy.calib.second_order import Order
    from vggdeploy.calib.table import CalibrationTable
    from vggdeploy.contracts import Dialect, Reporter
    from vggdeploy.graphs import WeightedNode


_ROWS = 256
"""Of weights, that are multiplied out at a time: 51 MB of the largest layer's in float64."""


@dataclass(frozen=True)
class Rounded:
    """A layer's weights in integers.

    Attributes:
        integers: int8 ``[outputs, inputs]``.
        scales: ``[outputs]``, or ``[outputs, groups]``, of the type that they are stored in.
        bias: ``[outputs]``, added to the layer's bias; None for nothing.
    """

    integers: NDArray[np.int8]
    scales: NDArray[Any]
    bias: NDArray[np.float32] | None = None

    @property
    def group(self) -> int | None:
        """Inputs that share a scale; None for a scale an output."""
        return None if self.scales.ndim == 1 else self.integers.shape[1] // self.scales.shape[1]


@dataclass(frozen=True)
class SecondOrder:
    """How weights are rounded with second-order information.

    Attributes:
        damping: see `second_order.DAMPING`.
        order: one of `second_order.ORDERS`.
        bias_correction: whether a layer's bias makes good for the mean error of its outputs.
    """

    damping: float = second_order.DAMPING
    order: Order = "diagonal"
    bias_correction: bool = False


def weight_types(placement: Placement, dialect: Dialect) -> dict[str, IntegerType]:
    """The type of each layer's weights with a scale a channel, by the weight's name: what all its
    readers' inputs allow."""
    types: dict[str, IntegerType] = {}
    for node, point in _inputs(placement):
        name, kind = str(node.weight.name), dialect.weight
        if not node.convolution and dialect.matrix is not None:
            # Read floats, so nothing saturates; with groups, those whose inputs make none.
            kind = dialect.matrix if isinstance(dialect.matrix, IntegerType) else INT8_NARROW
        elif point and not point.nonnegative and point.of_image:
            kind = dialect.image_weight
        types[name] = min(kind, types.get(name, kind), key=lambda kind: kind.qmax)
    return types


def round_to_nearest(
    found: WeightedNode, dialect: Dialect, kind: IntegerType, factors: Factors
) -> Rounded:
    """Round a layer's weights to the nearest steps.

    A matrix product without a group that divides its inputs has weights of `kind`, one scale a
    channel, whatever its dialect.
    """
    rows, group = graphs.rows(found), _group(found, dialect)
    if group:
        assert dialect.grouped is not None
        columns = factors.columns(rows.shape[1])
        integers, scales = round_groups(
            rows, dialect.grouped, group, divisors=columns, multipliers=factors.outputs
        )
    else:
        integers, scales = round_weights(
            rows, 0, kind, dialect.high_precision, str(found.weight.name), factors
        )
    return Rounded(integers, scales)


def wanted_layers(placement: Placement, table: CalibrationTable, dialect: Dialect) -> list[Wanted]:
    """What second-order rounding needs to know of each layer that it can round.

    Weights that several nodes read are none: each node has inputs of its own.
    """
    factors, image = rescaling(placement, table, dialect), lattice(placement, table, dialect)
    found = []
    for node, point in _inputs(placement):
        source = node.node.inputs[0]
        assert source is not None
        if len(node.weight.uses()) > 1:
            continue
        if image is not None and node is image.layer:
            point = None  # pixels are integers as they are
        kind = dialect.activation(point.nonnegative) if point else None
        scale = float(activation_scale(point, table, dialect)) if point else None
        own = factors.get(str(node.weight.name), Factors()).inputs
        layer = wanted(node, source, own, scale, kind)
        if layer is not None:
            found.append(layer)
    return found


def round_layers(
    placement: Placement,
    table: CalibrationTable,
    dialect: Dialect,
    moments: dict[str, Moments],
    how: SecondOrder,
    reporter: Reporter,
) -> dict[str, Rounded]:
    """Round every layer of which moments are known; they are taken out of `moments` one by one,
    so that memory is free again for the next."""
    factors, kinds = rescaling(placement, table, dialect), weight_types(placement, dialect)
    nodes = {str(node.weight.name): node for node in placement.weighted}
    names = [name for name in nodes if name in moments]
    return {
        name: _round_layer(
            nodes[name], dialect, kinds[name], factors.get(name, Factors()), moments.pop(name), how
        )
        for name in reporter.track(names, len(names), "rounding weights")
    }


def _round_layer(
    found: WeightedNode,
    dialect: Dialect,
    kind: IntegerType,
    factors: Factors,
    moments: Moments,
    how: SecondOrder,
) -> Rounded:
    rows, group = graphs.rows(found), _group(found, dialect)
    name = str(found.weight.name)
    limits = (kind.qmin, kind.qmax)
    sparse = sparsity.holds(found)
    if group and dialect.grouped is not None:
        limits = (dialect.grouped.qmin, dialect.grouped.qmax)
        energy = None
        if moments.samples is not None:
            energy = np.square(moments.samples).mean(0)
        columns = factors.columns(rows.shape[1])
        scales = group_scales(rows, dialect.grouped, group, energy, columns, factors.outputs)
    else:
        scales = channel_scales(rows, kind, dialect.high_precision, name, factors)
    if moments.samples is not None:
        integers = round_by_samples(
            rows,
            factors.before(scales),
            moments.samples,
            limits,
            divisors=factors.columns(rows.shape[1]),
            damping=how.damping,
            order=how.order,
            sparse=sparse,
            name=name,
        )
    else:
        assert moments.covariance is not None
        integers = round_by_covariance(
            rescaled(found, factors),
            scales,
            moments.covariance,
            limits,
            damping=how.damping,
            order=how.order,
            sparse=sparse,
            name=name,
        )
    made = Rounded(integers, scales)
    if not how.bias_correction or found.node.op_type == "MatMul":
        return made
    columns = factors.columns(rows.shape[1])
    exact = moments.exact if columns is None else moments.exact / columns
    meant = rows @ exact.astype(np.float32)
    if factors.outputs is not None:
        meant = meant * factors.outputs
    bias = meant - _mean_outputs(made, moments.quantized)
    return Rounded(integers, scales, bias.astype(np.float32))


def _mean_outputs(layer: Rounded, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
    """What rounded weights make of mean inputs, ``[outputs]``: some rows at a time, since the
    largest layer has 103 million weights."""
    groups = layer.scales.astype(np.float64).reshape(len(layer.scales), -1)
    found = np.empty(len(groups))
    for start in range(0, len(groups), _ROWS):
        part = slice(start, start + _ROWS)
        products = (layer.integers[part] * inputs).reshape(*groups[part].shape, -1).sum(-1)
        found[part] = (products * groups[part]).sum(1)
    return found


def _group(found: WeightedNode, dialect: Dialect) -> int | None:
    if found.convolution or dialect.grouped is None:
        return None
    return dialect.grouped.fitting(graphs.rows(found).shape[1])


def _inputs(placement: Placement) -> Iterator[tuple[WeightedNode, Point | None]]:
    """Each weighted node, and the quantized tensor that it reads."""
    points = {id(node): point for point in placement.points for node in _behind(point)}
    for node in placement.weighted:
        yield node, points.get(id(node.node))


def _behind(point: Point) -> Iterator[ir.Node]:
    """The nodes that a point's reads lead to, through operators that move values."""
    for node, _ in point.reads:
        while node.op_type not in graphs.WEIGHTED:
            node = next(iter(node.outputs[0].uses()))[0]
        yield node


def save(rounded: Mapping[str, Rounded], path: Path) -> None:
    """Write as .npz."""
    arrays: dict[str, Any] = {"names": np.array(list(rounded), np.str_)}
    for index, layer in enumerate(rounded.values()):
        arrays |= {f"integers{index}": layer.integers, f"scales{index}": layer.scales}
        if layer.bias is not None:
            arrays[f"bias{index}"] = layer.bias
    np.savez(path, **arrays)


def load(path: Path) -> dict[str, Rounded]:
    """Read what `save` wrote."""
    file = limits.arrays(path)
    return {
        str(name): Rounded(
            file[f"integers{index}"],
            file[f"scales{index}"],
            file.get(f"bias{index}"),
        )
        for index, name in enumerate(file["names"])
    }
