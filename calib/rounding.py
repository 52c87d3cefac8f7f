"""Every layer's weights rounded: to nearest, or with second-order information where it is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vggdeploy import graphs
from vggdeploy.calib import second_order
from vggdeploy.calib.covariance import Wanted, wanted
from vggdeploy.calib.groups import fitting_group, group_scales, round_groups
from vggdeploy.calib.second_order import round_by_covariance, round_by_samples
from vggdeploy.calib.weights import Factors, channel_scales, rescaled, rescaling, round_weights

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


def round_to_nearest(found: WeightedNode, dialect: Dialect, factors: Factors) -> Rounded:
    """Round a layer's weights to the nearest steps.

    A matrix product without a group that divides its inputs has int8 weights, one scale a channel,
    whatever its dialect.
    """
    rows, group = graphs.rows(found), _group(found, dialect)
    if group:
        assert dialect.matrix is not None
        integers, scales = round_groups(rows, dialect.matrix, group)
    else:
        integers, scales = round_weights(
            rows, 0, dialect.weight, dialect.high_precision, str(found.weight.name), factors
        )
    return Rounded(integers, scales)


def wanted_layers(placement: Placement, table: CalibrationTable, dialect: Dialect) -> list[Wanted]:
    """What second-order rounding needs to know of each layer that it can round."""
    factors = rescaling(placement, table)
    found = []
    for node, point in _inputs(placement):
        source = node.node.inputs[0]
        assert source is not None
        kind = dialect.activation(point.nonnegative) if point else None
        scale = table.tensors[point.name].scale(kind) if point and kind else None
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
    factors = rescaling(placement, table)
    nodes = {str(node.weight.name): node for node in placement.weighted}
    names = [name for name in nodes if name in moments]
    return {
        name: _round_layer(
            nodes[name], dialect, factors.get(name, Factors()), moments.pop(name), how
        )
        for name in reporter.track(names, len(names), "rounding weights")
    }


def _round_layer(
    found: WeightedNode, dialect: Dialect, factors: Factors, moments: Moments, how: SecondOrder
) -> Rounded:
    rows, group = graphs.rows(found), _group(found, dialect)
    kind: Any = dialect.weight
    if group and dialect.matrix is not None:
        kind = dialect.matrix
        energy = None
        if moments.samples is not None:
            energy = np.square(moments.samples).mean(0)
        scales = group_scales(rows, kind, group, energy)
    else:
        name = str(found.weight.name)
        scales = channel_scales(rows, kind, dialect.high_precision, name, factors)
    limits = (kind.qmin, kind.qmax)
    if moments.samples is not None:
        integers = round_by_samples(
            rows,
            scales,
            moments.samples,
            limits,
            divisors=factors.columns(rows.shape[1]),
            damping=how.damping,
            order=how.order,
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
        )
    made = Rounded(integers, scales)
    if not how.bias_correction or found.node.op_type == "MatMul":
        return made
    steps = np.repeat(
        scales.reshape(len(scales), -1).astype(np.float64),
        integers.shape[1] // (scales.size // len(scales)),
        axis=1,
    )
    bias = rescaled(found, factors) @ moments.exact - (integers * steps) @ moments.quantized
    return Rounded(integers, scales, bias.astype(np.float32))


def _group(found: WeightedNode, dialect: Dialect) -> int | None:
    if found.convolution or dialect.matrix is None:
        return None
    return fitting_group(graphs.rows(found).shape[1], dialect.matrix.group)


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
    with np.load(path, allow_pickle=False) as file:
        return {
            str(name): Rounded(
                file[f"integers{index}"],
                file[f"scales{index}"],
                file.get(f"bias{index}"),
            )
            for index, name in enumerate(file["names"])
        }
