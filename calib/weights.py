"""Weights as a quantized graph has them: rescaled with their channels, then rounded to nearest.

Scales are rounded to the dialect's high-precision type first and the integers are computed with
the rounded scale, so that what the engine multiplies back is what was meant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vggdeploy import graphs
from vggdeploy.calib.channels import links
from vggdeploy.calib.lattice import lattice
from vggdeploy.errors import CalibrationError
from vggdeploy.half import narrow

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from vggdeploy.calib.placement import Placement, Point
    from vggdeploy.calib.table import CalibrationTable
    from vggdeploy.contracts import Dialect, IntegerType
    from vggdeploy.graphs import WeightedNode

_BLOCK_ELEMENTS = 1 << 23
"""Weights are rounded 32 MiB at a time: the largest layer has 411 MB of them."""

SMALLEST_SCALE = {
    "float32": float(np.finfo(np.float32).tiny),
    "float16": float(np.finfo(np.float16).tiny),
}
"""Normal numbers only: a subnormal scale loses bits, and backends flush it to zero."""


@dataclass(frozen=True)
class Factors:
    """What rescaled channels do to a layer: its outputs are multiplied, its inputs divided.

    Attributes:
        outputs: ``[outputs]``; None for 1.
        inputs: ``[input channels]`` of a convolution, ``[inputs]`` of a matrix product; None for 1.
    """

    outputs: NDArray[np.float32] | None = None
    inputs: NDArray[np.float32] | None = None

    def columns(self, inputs: int) -> NDArray[np.float32] | None:
        """The divisor of each column of the layer's ``[outputs, inputs]`` weights."""
        if self.inputs is None:
            return None
        return np.repeat(self.inputs, inputs // len(self.inputs))

    def before(self, scales: NDArray[Any]) -> NDArray[Any]:
        """Scales ``[outputs, ...]`` of the rescaled weights, as those of weights whose outputs are
        not yet multiplied: the integers are the same."""
        if self.outputs is None:
            return scales
        return scales / self.outputs.reshape(-1, *(1,) * (scales.ndim - 1))


def rescaling(
    placement: Placement, table: CalibrationTable, dialect: Dialect
) -> dict[str, Factors]:
    """What the table's rescaled channels do to the layers of a graph, by the weight's name; to
    those that stay in high precision as well, so that the network's function stays as it is. And
    what reading pixels does to the first.

    Raises:
        CalibrationError: when a tensor of the graph cannot be rescaled as the table has it.
    """
    outputs: dict[str, NDArray[np.float32]] = {}
    inputs: dict[str, NDArray[np.float32]] = {}
    known = links(placement)
    for point in placement.tensors:
        entry = table.tensors.get(point.name)
        if entry is None or entry.rescaled is None:
            continue
        link, factors = known.get(point.name), np.array(entry.rescaled.factors, np.float32)
        if link is None or link.maker is None or link.channels != len(factors):
            raise CalibrationError(
                f"tensor {point.name!r} cannot be rescaled as the calibration table has it",
                got=f"{len(factors)} factors",
                expected="a table made from this model"
                if link is None or link.maker is None
                else f"{link.channels} factors",
                fix="calibrate again",
            )
        outputs[str(link.maker.weight.name)] = factors
        for reader in link.readers:
            inputs[str(reader.found.weight.name)] = factors[reader.channel]
    if (image := lattice(placement, table, dialect)) is not None:
        inputs[str(image.layer.weight.name)] = image.factors
    return {name: Factors(outputs.get(name), inputs.get(name)) for name in {**outputs, **inputs}}


def rescaled(found: WeightedNode, factors: Factors) -> NDArray[np.float32]:
    """A layer's float weights ``[outputs, inputs]`` once its channels are rescaled."""
    rows = graphs.rows(found)
    columns = factors.columns(rows.shape[1])
    if columns is not None:
        rows = rows / columns
    return rows if factors.outputs is None else rows * factors.outputs[:, None]


def activation_scale(point: Point, table: CalibrationTable, dialect: Dialect) -> NDArray[Any]:
    """The quantization step of an activation, a scalar of the type that it is stored in.

    Raises:
        CalibrationError: when the table lacks it, or it does not fit that type.
    """
    scale = table.scale(point.name, dialect.activation(point.nonnegative))
    kept = np.array(max(scale, SMALLEST_SCALE[dialect.high_precision]))
    return narrow(kept, dialect.high_precision, f"the scale of tensor {point.name!r}")


def round_weights(
    weight: NDArray[np.floating],
    axis: int,
    kind: IntegerType,
    scale_dtype: str,
    name: str = "the weights",
    factors: Factors | None = None,
) -> tuple[NDArray[np.int8], NDArray[Any]]:
    """Round weights to the nearest step, half to even, one scale a channel: ``amax / qmax``.

    Args:
        weight: float, any shape.
        axis: the axis that runs over channels.
        kind: int8, narrow range.
        scale_dtype: ``"float32"`` or ``"float16"``.
        name: what errors call the weights.
        factors: what the weights are rescaled by first.

    Returns:
        int8 of the shape of `weight`, and scales ``[channels]`` of `scale_dtype`. A channel of
        zeros has the scale 1.

    Raises:
        CalibrationError: when a scale does not fit `scale_dtype`.
    """
    quantized = np.empty(weight.shape, np.int8)
    into = np.moveaxis(quantized, axis, 0)
    scales = np.empty(weight.shape[axis], scale_dtype)
    for part, block in _blocks(np.moveaxis(weight, axis, 0), factors or Factors()):
        scales[part] = _scales(block, kind, scale_dtype, name)
        wide = scales[part].astype(np.float32).reshape(-1, *(1,) * (block.ndim - 1))
        into[part] = np.clip(np.rint(block / wide), kind.qmin, kind.qmax)
    return quantized, scales


def channel_scales(
    rows: NDArray[np.floating],
    kind: IntegerType,
    scale_dtype: str,
    name: str,
    factors: Factors,
) -> NDArray[Any]:
    """The scales of `round_weights` alone, of ``[outputs, inputs]``."""
    parts = _blocks(rows, factors)
    return np.concatenate([_scales(block, kind, scale_dtype, name) for _, block in parts])


def _scales(
    block: NDArray[np.float32], kind: IntegerType, scale_dtype: str, name: str
) -> NDArray[Any]:
    amax = np.abs(block).max(axis=tuple(range(1, block.ndim)), initial=0)
    wanted = np.maximum(amax / kind.qmax, SMALLEST_SCALE[scale_dtype])
    scale = narrow(wanted, scale_dtype, f"the scale of a channel of {name}")
    scale[amax == 0] = 1
    return scale


def _blocks(
    rows: NDArray[np.floating], factors: Factors
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Rescaled weights, some rows at a time."""
    columns = factors.columns(rows[0].size)
    step = max(1, _BLOCK_ELEMENTS // max(1, rows[0].size))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        block = np.asarray(rows[part], np.float32)
        if columns is not None:
            block = block / columns.reshape(block.shape[1:])
        if factors.outputs is not None:
            block = block * factors.outputs[part].reshape(-1, *(1,) * (block.ndim - 1))
        yield part, block
