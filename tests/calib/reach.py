"""What float32 arithmetic can make of a Q/DQ graph: an interval for every element.

An engine that computes what the graph means rounds on the way, so a value that lies on the edge
between two steps of the next quantization may go to either. Here each tensor has a lowest and a
highest value that rounding in float32, in any order of summation, can lead to, found by carrying
bounds beside the exact values. What an engine gives must lie between them: the same integer nearly
everywhere, one of two neighbours at an edge, and scores to float32's rounding.

Where an engine shows its integers, each layer is judged on the integers that the engine itself had
(`seen`), so that one step does not excuse the next. Where it does not, the bounds go on through
the layers.

Bounds: N. Higham, "Accuracy and Stability of Numerical Algorithms", 2nd edition, 3.1: a sum of n
products in any order is within ``n u / (1 - n u)`` of the sum of their magnitudes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import float64
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Array = NDArray[Any]

UNIT = 2.0**-24
"""Half a unit in the last place of float32, as a share of the value."""

SPARE = 8
"""Roundings beside those of the sum: both dequantizations, scales folded into one, the bias."""

MONOTONE = (
    "Cast", "Flatten", "GlobalMaxPool", "Identity", "MaxPool", "Relu", "Reshape", "Squeeze",
    "Transpose", "Unsqueeze",
)  # fmt: skip
"""Operators that choose or clip and do not round."""


@dataclass(frozen=True)
class Interval:
    """Lowest and highest values of a tensor, of its shape."""

    low: Array
    high: Array

    @property
    def middle(self) -> Array:
        return (self.low + self.high) / 2

    @property
    def radius(self) -> Array:
        return (self.high - self.low) / 2

    @property
    def magnitude(self) -> Array:
        return np.maximum(np.abs(self.low), np.abs(self.high))

    def widened(self, by: Array) -> Interval:
        return Interval(self.low - by, self.high + by)

    def misses(self, found: Array) -> Array:
        """Where `found` lies outside."""
        return (found < self.low) | (found > self.high) | ~np.isfinite(found)

    def half(self) -> Interval:
        """Both ends rounded to float16, which keeps their order."""
        return Interval(
            *(end.astype(np.float16).astype(np.float64) for end in (self.low, self.high))
        )


Rounds = Callable[["float64.Graph", "float64.Node"], bool]
"""Whether an engine rounds a tensor to the float16 that the graph declares: one without float16
arithmetic carries most of them in float32, which is nearer to what is meant."""


def nowhere(graph: float64.Graph, node: float64.Node) -> bool:
    """All is carried in float32."""
    return False


def weights(graph: float64.Graph, node: float64.Node) -> bool:
    """What is made of constants alone, once."""
    return all(name in graph.constants for name in node.inputs)


def weights_and_quantized(graph: float64.Graph, node: float64.Node) -> bool:
    """Also what QuantizeLinear reads."""
    return weights(graph, node) or any(
        reader.operator == "QuantizeLinear" and node.output in reader.inputs
        for reader in graph.nodes
    )


def all_but_products(graph: float64.Graph, node: float64.Node) -> bool:
    """Also what DequantizeLinear makes of activations; sums and scores are not."""
    return weights_and_quantized(graph, node) or node.operator == "DequantizeLinear"


def reach(
    graph: float64.Graph,
    image: Array,
    seen: Mapping[str, Array] | None = None,
    rounds: Rounds = nowhere,
    integer_bias: bool = False,
) -> dict[str, Interval]:
    """The interval of every tensor that a node makes.

    Args:
        graph: the Q/DQ graph.
        image: what is fed.
        seen: the integers that an engine showed, by name; later nodes read these.
        rounds: which float16 tensors the engine rounds to float16.
        integer_bias: whether the engine rounds biases to the step of its int32 sums, the product
            of both scales.
    """
    values = {name: Interval(array, array) for name, array in graph.constants.items()}
    fed = float64.widen(image)
    values[graph.input] = Interval(fed, fed)
    found = {}
    for node in graph.nodes:
        inputs = [values[name] if name else None for name in node.inputs]
        out = _node(graph, node, inputs)
        if integer_bias:
            out = out.widened(_bias_step(graph, node, out.low.ndim) / 2)
        if graph.types[node.output] == "FLOAT16" and rounds(graph, node):
            out = out.half()
        found[node.output] = values[node.output] = out
        if seen and node.output in seen:
            given = float64.widen(seen[node.output])
            values[node.output] = Interval(given, given)
    return found


def _node(graph: float64.Graph, node: float64.Node, inputs: list[Any]) -> Interval:
    first = inputs[0]

    def of(*arrays: Any) -> Array:
        return graph.apply(node, arrays)

    if node.operator in MONOTONE:
        rest = [value.low for value in inputs[1:]]
        return Interval(of(first.low, *rest), of(first.high, *rest))
    if node.operator == "QuantizeLinear":
        rest = [value.low for value in inputs[1:]]
        scale = float64.spread(rest[0], first.low.shape, node.attributes)
        slack = _division_slack(first, scale) * scale
        return Interval(of(first.low - slack, *rest), of(first.high + slack, *rest))
    if node.operator == "DequantizeLinear":
        rest = [value.low for value in inputs[1:]]
        exact = Interval(of(first.low, *rest), of(first.high, *rest))
        # 8 bits times the 11 of a float16 scale are held by float32 as they are.
        held = all((end == end.astype(np.float32)).all() for end in (exact.low, exact.high))
        return exact if held else exact.widened(UNIT * exact.magnitude)
    if node.operator == "Add":
        exact = Interval(*(of(*(getattr(v, end) for v in inputs)) for end in ("low", "high")))
        return exact.widened(UNIT * exact.magnitude)
    if node.operator in ("AveragePool", "GlobalAveragePool"):
        exact = Interval(of(first.low), of(first.high))
        kernel = node.attributes.get("kernel_shape", first.low.shape[2:])
        return exact.widened((np.prod(kernel) + 2) * UNIT * of(first.magnitude))
    if node.operator in ("Conv", "Gemm", "MatMul"):
        return _product(node, of, *inputs)
    raise NotImplementedError(node.operator)


def _product(
    node: float64.Node, of: Callable[..., Array], x: Interval, weight: Interval, *bias: Interval
) -> Interval:
    """A sum of products of two intervals, in float32."""
    if node.attributes.get("alpha", 1.0) != 1 or node.attributes.get("beta", 1.0) != 1:
        raise NotImplementedError("Gemm with alpha or beta")
    outputs = weight.low.shape[0 if _rows_are_outputs(node) else 1]
    products = weight.low.size // outputs
    middle = of(x.middle, weight.middle, *(b.middle for b in bias))
    uncertain = of(x.radius, weight.magnitude) + of(np.abs(x.middle), weight.radius)
    rounding = of(x.magnitude, weight.magnitude, *(b.magnitude for b in bias))
    by = uncertain + (products + SPARE) * UNIT * rounding
    return Interval(middle - by, middle + by)


def _rows_are_outputs(node: float64.Node) -> bool:
    return node.operator == "Conv" or bool(node.attributes.get("transB", 0))


def _division_slack(x: Interval, scale: Array) -> Array:
    """Steps by which a float32 division by the scale may be off.

    Engines multiply by the reciprocal, or shift the range to begin at 0 and back again, which
    rounds at the size of the whole range. A power of two and a coarse grid make all of that exact:
    there a tie is a tie for everyone.
    """
    steps = x.low / scale
    coarse = (steps * 1024 == np.rint(steps * 1024)) & (np.abs(steps) < 1024)
    exact = (x.low == x.high) & (np.frexp(scale)[0] == 0.5) & coarse
    return np.where(exact, 0.0, 4 * UNIT * (np.minimum(np.abs(steps), 512) + 256))


def _bias_step(graph: float64.Graph, node: float64.Node, rank: int) -> Array:
    """The product of the scales of both operands, for each output channel; 0 without a bias."""
    makers = {maker.output: maker for maker in graph.nodes}
    product = node
    if node.operator == "Add" and makers[node.inputs[0]].operator == "MatMul":
        product = makers[node.inputs[0]]  # an optimizer makes one Gemm of both
    elif node.operator not in ("Conv", "Gemm") or len(node.inputs) < 3:
        return np.zeros(())
    scales = []
    for name in product.inputs[:2]:
        maker = makers[name]
        while maker.operator != "DequantizeLinear":
            maker = makers[maker.inputs[0]]
        scales.append(graph.constants[maker.inputs[1]])
    return (scales[0] * scales[1]).reshape([-1 if axis == 1 else 1 for axis in range(rank)])
