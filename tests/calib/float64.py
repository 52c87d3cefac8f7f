"""ONNX graphs executed in float64, each operator from its definition, in numpy alone.

An independent reference for what a graph means. Values of floating-point types are carried in
float64 whatever type the graph declares, integers in int64. Quantization divides and rounds in
float64 by the scale as it is stored.

Operators: https://onnx.ai/onnx/operators/, opset 13 to 21.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    Array = NDArray[Any]
    Attributes = dict[str, Any]
    Operator = Callable[[Sequence[Any], Attributes], Array]
    Edit = Callable[[Array], Array]

RANGES = {
    "INT4": (-8, 7),
    "UINT4": (0, 15),
    "INT8": (-128, 127),
    "UINT8": (0, 255),
    "INT16": (-32768, 32767),
    "UINT16": (0, 65535),
}
"""What each quantized type saturates at, by ONNX's name of the type."""


class Node:
    """A node with one output, its attributes as Python values."""

    def __init__(self, proto: Any) -> None:
        import onnx

        self.operator: str = proto.op_type
        self.inputs: tuple[str, ...] = tuple(proto.input)
        (self.output,) = proto.output
        self.attributes: Attributes = {
            attribute.name: onnx.helper.get_attribute_value(attribute)
            for attribute in proto.attribute
        }


class Graph:
    """An onnx.ModelProto, ready to be executed.

    Attributes:
        nodes: in order of execution.
        input: name of the one input that is fed.
        output: name of the one output.
        constants: the initializers.
        types: ONNX's name of each tensor's declared element type.
    """

    def __init__(self, model: Any) -> None:
        import onnx

        kind = onnx.TensorProto.DataType.Name
        self.nodes = [Node(proto) for proto in model.graph.node]
        self.constants = {tensor.name: _constant(tensor) for tensor in model.graph.initializer}
        self.types = {tensor.name: kind(tensor.data_type) for tensor in model.graph.initializer}
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
        for value in (*inferred.input, *inferred.value_info, *inferred.output):
            self.types[value.name] = kind(value.type.tensor_type.elem_type)
        (self.input,) = (v.name for v in model.graph.input if v.name not in self.constants)
        (self.output,) = (v.name for v in model.graph.output)

    def run(self, image: Array, edits: Mapping[str, Edit] | None = None) -> dict[str, Array]:
        """Every tensor of the graph, by name.

        Args:
            image: what the input is fed.
            edits: what becomes of tensors, by name, before anything reads them.
        """
        edits = edits or {}
        values = {**self.constants, self.input: widen(image)}
        values = {name: edits[name](v) if name in edits else v for name, v in values.items()}
        for node in self.nodes:
            out = self.apply(node, [values.get(name) for name in node.inputs])
            values[node.output] = edits[node.output](out) if node.output in edits else out
        return values

    def apply(self, node: Node, inputs: Sequence[Array | None]) -> Array:
        """One node's output.

        Args:
            node: one of `nodes`.
            inputs: an array for each of its inputs, None for one that is left out.

        Raises:
            NotImplementedError: for an operator that is not known here.
        """
        if node.operator == "QuantizeLinear":
            return quantize_linear(inputs, node.attributes, self.types[node.output])
        if node.operator == "Cast" and "INT" in self.types[node.output]:
            return np.trunc(inputs[0]).astype(np.int64)  # type: ignore[arg-type]
        if node.operator not in OPERATORS:
            raise NotImplementedError(node.operator)
        return OPERATORS[node.operator](inputs, node.attributes)


def _constant(tensor: Any) -> Array:
    from onnx import numpy_helper

    array = numpy_helper.to_array(tensor)
    # 4-bit integers are a type that numpy does not know the kind of.
    whole = "INT" in array.dtype.name.upper()
    return array.astype(np.int64) if whole else widen(array)


def widen(array: Array) -> Array:
    """Integers as int64, which holds every sum of theirs exactly, all else as float64."""
    return array.astype(np.int64 if array.dtype.kind in "iu" else np.float64)


def spread(parameter: Array, shape: tuple[int, ...], attributes: Attributes) -> Array:
    """Scales or zero points, shaped so that they broadcast to a tensor of `shape`.

    One for the tensor; one for each index along `axis`; or, with `block_size`, one for each block
    of that many elements along `axis`, where `parameter` has the rank of the tensor.
    """
    if parameter.ndim == 0:
        return parameter
    axis = attributes.get("axis", 1) % len(shape)
    if block := attributes.get("block_size", 0):
        # The last block may be cut short.
        return np.take(np.repeat(parameter, block, axis), range(shape[axis]), axis)
    return parameter.reshape([-1 if place == axis else 1 for place in range(len(shape))])


def steps(inputs: Sequence[Any], attributes: Attributes) -> Array:
    """What QuantizeLinear rounds: x / scale."""
    x, scale = inputs[:2]
    quotient: Array = x / spread(scale, x.shape, attributes)
    return quotient


def quantize_linear(inputs: Sequence[Any], attributes: Attributes, kind: str) -> Array:
    """Round half to even, add the zero point, saturate."""
    quotient = steps(inputs, attributes)
    low, high = RANGES[kind]
    # Far beyond every range, so that saturation is left as it is and int64 does not overflow.
    whole = np.rint(np.clip(quotient, -(2**40), 2**40)).astype(np.int64)
    if len(inputs) > 2 and inputs[2] is not None:
        whole = whole + spread(inputs[2], quotient.shape, attributes)
    return np.clip(whole, low, high)


def _dequantize_linear(inputs: Sequence[Any], attributes: Attributes) -> Array:
    q, scale = inputs[:2]
    if len(inputs) > 2 and inputs[2] is not None:
        q = q - spread(inputs[2], q.shape, attributes)
    product: Array = q * spread(scale, q.shape, attributes)
    return product


def _windows(x: Array, attributes: Attributes, kernel: Sequence[int], fill: Any) -> Array:
    """What a sliding window sees, ``[N, C, *outputs, *kernel]``; `fill` outside of the image.

    With `ceil_mode` the last window may hang over the end, unless it would begin behind the image
    and the padding before it.
    """
    rank = len(kernel)
    if attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise NotImplementedError("auto_pad")
    strides = attributes.get("strides", [1] * rank)
    dilations = attributes.get("dilations", [1] * rank)
    pads = attributes.get("pads", [0] * 2 * rank)
    widths, index = [(0, 0), (0, 0)], []
    for axis in range(rank):
        side, stride = x.shape[2 + axis], strides[axis]
        before, after = pads[axis], pads[rank + axis]
        reach = dilations[axis] * (kernel[axis] - 1) + 1
        room = side + before + after - reach
        outputs = room // stride + 1
        if attributes.get("ceil_mode", 0):
            outputs = math.ceil(room / stride) + 1
            outputs -= (outputs - 1) * stride >= side + before
        widths.append((before, max(after, (outputs - 1) * stride + reach - side - before)))
        offsets = np.arange(outputs)[:, None] * stride + np.arange(kernel[axis]) * dilations[axis]
        shape = [1] * 2 * rank
        shape[axis], shape[rank + axis] = offsets.shape
        index.append(offsets.reshape(shape))
    padded = np.pad(x, widths, constant_values=fill)
    return padded[(slice(None), slice(None), *index)]


def _conv(inputs: Sequence[Any], attributes: Attributes) -> Array:
    x, weight, *bias = inputs
    rank = weight.ndim - 2
    groups = attributes.get("group", 1)
    windows = _windows(x, attributes, weight.shape[2:], 0.0)
    parts = [
        np.tensordot(w, k, axes=([1, *range(-rank, 0)], [1, *range(-rank, 0)]))
        for w, k in zip(np.split(windows, groups, 1), np.split(weight, groups, 0), strict=True)
    ]
    out = np.moveaxis(np.concatenate(parts, -1), -1, 1)
    return out + bias[0].reshape(-1, *[1] * rank) if bias and bias[0] is not None else out


def _max_pool(inputs: Sequence[Any], attributes: Attributes) -> Array:
    (x,) = inputs
    kernel = attributes["kernel_shape"]
    fill = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    return _windows(x, attributes, kernel, fill).max(tuple(range(-len(kernel), 0)))


def _average_pool(inputs: Sequence[Any], attributes: Attributes) -> Array:
    """Sums over the image, divided by how much of it, or of it and its padding, is in sight."""
    (x,) = inputs
    kernel = attributes["kernel_shape"]
    rank = len(kernel)
    over = tuple(range(-rank, 0))
    total = _windows(x, attributes, kernel, 0.0).sum(over)
    pads = attributes.get("pads", [0] * 2 * rank)
    seen = np.ones((1, 1, *x.shape[2:]))
    inside = dict(attributes)
    if attributes.get("count_include_pad", 0):
        widths = [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)]
        seen = np.pad(seen, widths, constant_values=1.0)
        inside["pads"] = [0] * 2 * rank
    counts = _windows(seen, inside, kernel, 0.0).sum(over)
    # Without padding of its own, the padded image may have a last window more than the image had.
    return total / counts[(..., *(slice(side) for side in total.shape[2:]))]


def _over_image(reduce: Any) -> Operator:
    return lambda inputs, _: reduce(inputs[0], axis=tuple(range(2, inputs[0].ndim)), keepdims=True)


def _gemm(inputs: Sequence[Any], attributes: Attributes) -> Array:
    a, b, *c = inputs
    a = a.T if attributes.get("transA", 0) else a
    b = b.T if attributes.get("transB", 0) else b
    product: Array = attributes.get("alpha", 1.0) * (a @ b)
    if c and c[0] is not None:
        product = product + attributes.get("beta", 1.0) * c[0]
    return product


def _reshape(inputs: Sequence[Any], attributes: Attributes) -> Array:
    x, target = inputs
    keeps = not attributes.get("allowzero", 0)
    shape = [
        x.shape[place] if side == 0 and keeps else int(side) for place, side in enumerate(target)
    ]
    reshaped: Array = x.reshape(shape)
    return reshaped


def _flatten(inputs: Sequence[Any], attributes: Attributes) -> Array:
    (x,) = inputs
    axis = attributes.get("axis", 1)
    axis += x.ndim if axis < 0 else 0
    flat: Array = x.reshape(math.prod(x.shape[:axis]), -1)
    return flat


def _softmax(inputs: Sequence[Any], attributes: Attributes) -> Array:
    (x,) = inputs
    axis = attributes.get("axis", -1)
    powers = np.exp(x - x.max(axis, keepdims=True))
    shares: Array = powers / powers.sum(axis, keepdims=True)
    return shares


def _pad(inputs: Sequence[Any], _: Attributes) -> Array:
    """With a constant, along every axis."""
    x, pads, value = inputs
    around = list(zip(*np.asarray(pads, int).reshape(2, -1), strict=True))
    padded: Array = np.pad(x, around, constant_values=value)
    return padded


def _squeeze(inputs: Sequence[Any], _: Attributes) -> Array:
    x, *axes = inputs
    squeezed: Array = np.squeeze(x, tuple(map(int, axes[0])) if axes else None)
    return squeezed


OPERATORS: dict[str, Operator] = {
    "Add": lambda inputs, _: inputs[0] + inputs[1],
    "AveragePool": _average_pool,
    "Cast": lambda inputs, _: widen(inputs[0]) * 1.0,
    "Clip": lambda inputs, _: np.clip(*inputs),
    "Conv": _conv,
    "DequantizeLinear": _dequantize_linear,
    "Div": lambda inputs, _: inputs[0] / inputs[1],
    "Flatten": _flatten,
    "Floor": lambda inputs, _: np.floor(inputs[0]),
    "Gemm": _gemm,
    "GlobalAveragePool": _over_image(np.mean),
    "GlobalMaxPool": _over_image(np.max),
    "Identity": lambda inputs, _: inputs[0],
    "MatMul": lambda inputs, _: inputs[0] @ inputs[1],
    "MaxPool": _max_pool,
    "Mul": lambda inputs, _: inputs[0] * inputs[1],
    "Pad": _pad,
    "Relu": lambda inputs, _: np.maximum(inputs[0], 0),
    "Reshape": _reshape,
    "Softmax": _softmax,
    "Squeeze": _squeeze,
    "Transpose": lambda inputs, attributes: np.transpose(inputs[0], attributes.get("perm")),
    "Unsqueeze": lambda inputs, _: np.expand_dims(inputs[0], tuple(map(int, inputs[1]))),
}
"""All but QuantizeLinear and Cast to integers, which must be told their type."""
