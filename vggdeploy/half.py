"""Half precision: values and whole graphs carried from float32 to float16."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vggdeploy import graphs
from vggdeploy.errors import CalibrationError

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray


def narrow(values: NDArray[np.floating], dtype: str, what: str) -> NDArray[Any]:
    """Cast to a high-precision type, which may be a narrower one.

    Raises:
        CalibrationError: when a value is too large for it.
    """
    with np.errstate(over="ignore"):
        cast = values.astype(dtype)
    if not np.isfinite(cast).all():
        raise CalibrationError(
            f"{what} does not fit {dtype}",
            got=f"{np.abs(values).max():g}",
            expected=f"{float(np.finfo(dtype).max):g} at most",
            fix="rescale the network, or build for another target",
        )
    return cast


_LARGEST = float(np.finfo(np.float16).max)

_FLOAT32 = {("Resize", 2)}
"""Inputs that ONNX has in float32 alone, whatever the operator computes in: (operator, index)."""

_BOUNDS = {("Clip", 1), ("Clip", 2), ("Pad", 2), ("Min", 0), ("Min", 1), ("Max", 0), ("Max", 1)}
"""Inputs that may be as large as numbers get, be they float32 or float16: to bound nothing, or to
be what a max pool never chooses."""


def to_float16(model: ir.Model) -> None:
    """Carry everything that is float32 in float16, but for the graph's own input and output, which
    are cast. Bounds beyond the range of float16 are set to its ends. Edited in place; the graph is
    left to be sorted.

    Raises:
        CalibrationError: when a weight is too large for float16.
    """
    import onnx_ir

    graph = model.graph
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        uses = {(node.op_type, index) for node, index in value.uses()}
        if tensor is not None and tensor.dtype == onnx_ir.DataType.FLOAT and not uses & _FLOAT32:
            content = tensor.numpy()
            if uses <= _BOUNDS:
                content = np.asarray(content.clip(-_LARGEST, _LARGEST))
            carried = narrow(content, "float16", name)
            value.const_value = onnx_ir.tensor(carried, name=name)
            value.type = onnx_ir.TensorType(onnx_ir.DataType.FLOAT16)
    for node in graph:
        target = node.attributes.get("to")
        if node.op_type == "Cast" and target and target.value == onnx_ir.DataType.FLOAT:
            node.attributes["to"] = onnx_ir.AttrInt64("to", onnx_ir.DataType.FLOAT16)
        if node.op_type == "ConstantOfShape":
            filler = graphs.attribute(node, "value", onnx_ir.tensor(np.zeros(1, np.float32)))
            if filler.dtype == onnx_ir.DataType.FLOAT:
                carried = narrow(filler.numpy(), "float16", graphs.label(node))
                node.attributes["value"] = onnx_ir.AttrTensor("value", onnx_ir.tensor(carried))
        for value in node.outputs:
            if value.dtype == onnx_ir.DataType.FLOAT and not value.is_graph_output():
                value.type = onnx_ir.TensorType(onnx_ir.DataType.FLOAT16)
    half = onnx_ir.TensorType(onnx_ir.DataType.FLOAT16)
    (image,) = (v for v in graph.inputs if v.name not in graph.initializers)
    readers = list(image.uses())
    narrow_image = graphs.append(
        graph,
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
    scores.name = graphs.tensor_name(graph, f"{name}.float16")
    graph.outputs[0] = graphs.append(
        graph, "Cast", [scores], name, like=scores, to=onnx_ir.DataType.FLOAT.value
    )
    scores.type = half
