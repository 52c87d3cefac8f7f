"""Shapes of a whole graph, and what is computed from them.

Exporters compute a Reshape's target from the image's own shape, so that any batch fits. The graph
is walked twice, for two sizes of the batch, by ONNX's own inference one operator at a time: what
comes out the same both times is constant, what comes out as the batch is the batch. That takes any
chain of Shape, Gather, Slice, Cast, Concat and whatever else, without a rule for each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from vggdeploy import graphs
from vggdeploy.errors import ModelError
from vggdeploy.export import constants

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir
    from numpy.typing import NDArray

    Dims = tuple[int | None, ...]

BATCH = "batch"
"""What the batch is called in a graph that was taken in."""

_SIZES = (97, 101)
"""Two primes: no layer's width, and no product of widths, passes for them."""


@dataclass
class _Seen:
    """One walk: types of all tensors, and the contents of those that are small and known."""

    types: dict[str, onnx.TypeProto] = field(default_factory=dict)
    contents: dict[str, NDArray[Any]] = field(default_factory=dict)

    def dims(self, value: ir.Value | None) -> Dims | None:
        """A tensor's shape, None for a side that is not known; None where nothing is."""
        proto = self.types.get(str(value.name)) if value is not None else None
        if proto is None or not proto.tensor_type.HasField("shape"):
            return None
        return tuple(
            side.dim_value if side.HasField("dim_value") else None
            for side in proto.tensor_type.shape.dim
        )


def infer(model: ir.Model) -> None:
    """Give every tensor its shape, the batch left open, and make constant what a shape decides.

    The model, sorted, with one image batch as its input, is edited in place.

    Raises:
        ModelError: naming the first node whose inputs do not fit it, or when the batch is fixed
            inside of the graph.
    """
    image, _ = graphs.ports(model)
    _free_batch(model, image)
    first, second = (_walk(model, image, size) for size in _SIZES)
    for node in list(model.graph):
        if node.op_type == "Reshape" and not node.domain:
            _settle_reshape(model, node, first, second)
        for value in node.outputs:
            _settle(model, value, first, second)
    for value in (image, *(value for node in model.graph for value in node.outputs)):
        _annotate(value, first, second)
    for value in model.graph.outputs:
        sides = value.shape
        if sides is not None and len(sides) and isinstance(sides[0], int):
            raise ModelError(
                f"the batch of output {value.name!r} is fixed inside of the graph",
                got=str(list(sides)),
                expected="scores for as many images as go in",
                fix="export the model with a dynamic batch",
            )


def _free_batch(model: ir.Model, image: ir.Value) -> None:
    """Open the batch: of the input, and of Reshape targets that were computed for a fixed one."""
    import onnx_ir

    if image.shape is None or not len(image.shape):
        return
    fixed = image.shape[0]
    if isinstance(fixed, int) and fixed > 0:
        seen = _walk(model, image, fixed)
        for node in model.graph:
            if node.op_type != "Reshape" or node.domain:
                continue
            target = constants.array(node.inputs[1])
            before, after = seen.dims(node.inputs[0]), seen.dims(node.outputs[0])
            if (
                target is None
                or not before
                or not after
                or None in before + after
                or not fixed == before[0] == after[0] == target[0]
            ):
                continue
            opened = np.array([-1, *after[1:]], np.int64)
            name = f"{node.outputs[0].name}.shape"
            node.replace_input_with(1, graphs.constant(model.graph, name, opened))
    image.shape = onnx_ir.Shape([BATCH, *list(image.shape)[1:]])


def _walk(model: ir.Model, image: ir.Value, batch: int) -> _Seen:
    """Infer every shape for a batch of `batch` images, node by node."""
    import onnx
    import onnx_ir
    from onnx import helper, numpy_helper

    graph = model.graph
    opset = graph.opset_imports.get("", 0)
    imports = [helper.make_opsetid("", opset)]
    seen = _Seen()
    kind = int(image.dtype or onnx_ir.DataType.FLOAT)
    sides = None
    if image.shape is not None:
        sides = [side if isinstance(side, int) and side > 0 else None for side in image.shape]
        sides[:1] = [batch]
    seen.types[str(image.name)] = helper.make_tensor_type_proto(kind, sides)
    for name, value in graph.initializers.items():
        tensor = value.const_value
        if tensor is None:
            continue
        proto = helper.make_tensor_type_proto(int(tensor.dtype), list(tensor.shape.numpy()))
        seen.types[name] = proto
        if tensor.size <= constants.SMALL:
            seen.contents[name] = tensor.numpy()
    for node in graph:
        proto = onnx_ir.serde.serialize_node(node)
        whole = constants.can_evaluate(node)
        names = [name for name in proto.input if name]
        if whole and not all(name in seen.types for name in names):
            continue
        types = {name: seen.types[name] for name in names} if whole else seen.types
        data = {
            name: numpy_helper.from_array(seen.contents[name])
            for name in names
            if name in seen.contents
        }
        try:
            schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
            found = onnx.shape_inference.infer_node_outputs(
                schema, proto, types, data, opset_imports=imports
            )
        except Exception as error:  # onnx raises errors of several kinds
            if not whole:
                continue  # a graph inside of a node reads what is outside: its outputs stay unknown
            raise ModelError(
                f"node {graphs.label(node)} does not fit its inputs",
                got=" ".join(str(error).split()),
                expected="shapes that go together at any batch",
                fix="export the model again, with a dynamic batch",
            ) from error
        seen.types.update(found)
        if whole:
            _evaluate(node, opset, seen)
    return seen


def _evaluate(node: ir.Node, opset: int, seen: _Seen) -> None:
    """Compute a node that makes something small of what is known."""
    made = seen.dims(node.outputs[0])
    if made is None or None in made or math.prod(s or 0 for s in made) > constants.SMALL:
        return
    if node.op_type in ("Shape", "Size"):
        sides = seen.dims(node.inputs[0])
        if sides is None or None in sides:
            return
        # A tensor of that shape that takes no memory.
        given: list[Any] = [np.broadcast_to(np.float32(0), [side or 0 for side in sides])]
    else:
        names = [None if value is None else str(value.name) for value in node.inputs]
        if not names or any(name is not None and name not in seen.contents for name in names):
            return
        given = [None if name is None else seen.contents[name] for name in names]
    results = constants.evaluate(node, opset, given)
    for value, result in zip(node.outputs, results or (), strict=False):
        seen.contents[str(value.name)] = result


def _settle(model: ir.Model, value: ir.Value, first: _Seen, second: _Seen) -> None:
    """Make a tensor an initializer if it holds the same at both sizes of the batch."""
    name = str(value.name)
    one, other = first.contents.get(name), second.contents.get(name)
    if one is None or other is None or value.is_graph_output():
        return
    if one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind == "f"):
        constants.become_constant(model.graph, value, one)


def _settle_reshape(model: ir.Model, node: ir.Node, first: _Seen, second: _Seen) -> None:
    """Give a Reshape a constant target: -1 for the one side that goes with the batch."""
    if constants.array(node.inputs[1]) is not None:
        return
    one, other = first.dims(node.outputs[0]), second.dims(node.outputs[0])
    if one is None or other is None or len(one) != len(other) or None in one + other:
        return
    target = [a if a == b else -1 for a, b in zip(one, other, strict=True)]
    if target.count(-1) > 1:
        return
    name = f"{node.outputs[0].name}.shape"
    settled = graphs.constant(model.graph, name, np.array(target, np.int64))
    node.replace_input_with(1, settled)


def _annotate(value: ir.Value, first: _Seen, second: _Seen) -> None:
    """Note type and shape, where they are known, in the graph."""
    import onnx_ir

    one, other = first.dims(value), second.dims(value)
    if one is None or other is None or len(one) != len(other):
        return
    sides: list[int | str | None] = []
    for a, b in zip(one, other, strict=True):
        fixed = a if a == b else None
        sides.append(BATCH if (a, b) == _SIZES else fixed)
    if value.is_graph_output() and value.shape is not None and len(value.shape) == len(sides):
        # What inference cannot tell, the file may say.
        said = list(value.shape)
        sides = [
            told if side is None and isinstance(told, int) else side
            for side, told in zip(sides, said, strict=True)
        ]
    value.shape = onnx_ir.Shape(sides)
    kind = first.types[str(value.name)].tensor_type.elem_type
    value.type = onnx_ir.TensorType(onnx_ir.DataType(kind))
