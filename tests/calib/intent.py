"""What quantization intends: a float graph whose tensors and weights are rounded in place.

It is made from the float graph, the calibration table and the dialect, with no Q/DQ node in it, so
it knows nothing of how `quantize` writes a graph, only of what the dialect promises: types and
their ranges, one scale a tensor, one scale an output channel, biases in high precision.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import float64
import numpy as np

if TYPE_CHECKING:
    from networks import Built
    from numpy.typing import NDArray

    from vggdeploy.calib import CalibrationTable
    from vggdeploy.contracts import Dialect

    Array = NDArray[Any]

WEIGHTED = ("Conv", "Gemm", "MatMul")


def weighted(graph: float64.Graph) -> list[float64.Node]:
    """The nodes whose weights are quantized."""
    return [node for node in graph.nodes if node.operator in WEIGHTED]


def quantizers(graph: float64.Graph) -> list[float64.Node]:
    """The QuantizeLinear nodes."""
    return [node for node in graph.nodes if node.operator == "QuantizeLinear"]


def meant(
    built: Built, table: CalibrationTable, dialect: Dialect, weights: list[Array], image: Array
) -> tuple[list[Array], Array]:
    """The integers of every point, and the scores, in float64.

    Args:
        built: the float network and where it is to be quantized.
        table: thresholds.
        dialect: types.
        weights: what the weights of the weighted nodes became, in order; how they were rounded is
            a choice that `weight_faults` judges.
        image: what to feed.
    """
    graph = float64.Graph(built.model)
    integers: list[Array] = []

    def rounded(point: Any) -> Any:
        kind = dialect.activation(point.nonnegative)
        entry = table.tensors[point.name]
        thresholds = entry.rescaled.thresholds if entry.rescaled else entry.thresholds
        scale = in_precision(thresholds[kind.dtype] / kind.qmax, dialect)

        def edit(x: Array) -> Array:
            integers.append(np.clip(np.rint(x / scale), kind.qmin, kind.qmax))
            fake: Array = integers[-1] * scale
            return fake

        return edit

    edits = {point.name: rounded(point) for point in built.points(dialect)}
    for node, weight in zip(weighted(graph), weights, strict=True):
        edits[node.inputs[1]] = lambda _, weight=weight: weight
    outputs, _ = _factors(built, table, dialect)
    for name in graph.constants:
        if name.endswith(".bias"):
            factors = outputs.get(name.removesuffix(".bias"), 1.0)
            edits[name] = lambda bias, factors=factors: in_precision(
                bias * factors, dialect, smallest=False
            )
    return integers, graph.run(image, edits)[graph.output]


def _factors(
    built: Built, table: CalibrationTable, dialect: Dialect
) -> tuple[dict[str, Array], dict[str, Array]]:
    """What a layer's outputs are multiplied by, and what its inputs, by its name: for tensors that
    the dialect quantizes."""
    outputs, inputs = {}, {}
    quantized = {point.name for point in built.points(dialect)}
    for link in built.rescalable:
        entry = table.tensors[link.point].rescaled
        if entry is not None and link.point in quantized:
            outputs[link.maker] = np.array(entry.factors)
            inputs[link.reader] = np.repeat(entry.factors, link.places)
    return outputs, inputs


def weight_faults(
    built: Built, table: CalibrationTable, dialect: Dialect, quantized: float64.Graph
) -> list[str]:
    """What is wrong with the quantized weights: integers out of range, a scale that is not the
    channel's largest magnitude over the largest integer, a value more than half a step off."""
    faults = []
    outputs, inputs = _factors(built, table, dialect)
    plain = float64.Graph(built.model)
    values = quantized.run(built.image)
    makers = {node.output: node for node in quantized.nodes}
    layers = zip(weighted(plain), weighted(quantized), built.tensors, strict=True)
    for before, after, point in layers:
        qmax = point.weights(dialect).qmax
        weight = plain.constants[before.inputs[1]]
        axis = 0 if before.operator == "Conv" or before.attributes.get("transB", 0) else 1
        for place, factors in ((axis, outputs), (1 - axis, {n: 1 / f for n, f in inputs.items()})):
            own = np.asarray(factors.get(before.inputs[1].removesuffix(".weight"), 1.0))
            sides = [1] * weight.ndim
            sides[place] = own.size
            weight = weight * own.reshape(sides)
        over = tuple(place for place in range(weight.ndim) if place != axis)
        amax = np.abs(weight).max(over, keepdims=True)
        step = in_precision(amax / qmax, dialect)
        step[amax == 0] = 1
        maker = makers[after.inputs[1]]
        integers, scales = (quantized.constants[name] for name in maker.inputs[:2])
        if np.abs(integers).max() > qmax:
            faults.append(f"{before.output}: an integer beyond {qmax}")
        # The quotient is rounded in float32 before it is narrowed.
        if not np.allclose(scales, step.ravel(), rtol=1e-6, atol=0):
            faults.append(f"{before.output}: scales are not amax / {qmax}")
        if (np.abs(values[after.inputs[1]] - weight) > step * (0.5 + 1e-5)).any():
            faults.append(f"{before.output}: a weight more than half a step off")
    return faults


def in_precision(values: Any, dialect: Dialect, smallest: bool = True) -> Array:
    """Rounded to the dialect's high precision, and a scale to be a normal number of it."""
    limits = np.finfo(dialect.high_precision)
    floor = float(limits.tiny) if smallest else -np.inf
    return np.maximum(values, floor).astype(dialect.high_precision).astype(np.float64)
