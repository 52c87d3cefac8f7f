"""Fold BatchNorm into the convolution in front of it, in an ONNX graph.

At inference BatchNorm is an affine map of each channel (Jacob et al., "Quantization and Training of
Neural Networks for Efficient Integer-Arithmetic-Only Inference", 2018, section 3.2): folded before
calibration, the ranges seen are those that the engine will have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vggdeploy import graphs

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

_EPSILON = 1e-5
"""BatchNormalization's own default."""


def fold_batchnorm(model: ir.Model) -> None:
    """Fold every BatchNormalization whose convolution and parameters are constant and its own."""
    for node in list(model.graph):
        if node.domain or node.op_type != "BatchNormalization":
            continue
        source, result = node.inputs[0], node.outputs[0]
        conv = source.producer() if source is not None else None
        parameters = [_array(value) for value in node.inputs[1:5]]
        if (
            source is None
            or conv is None
            or conv.domain
            or conv.op_type != "Conv"
            or len(source.uses()) > 1
            or source.is_graph_output()
            or result.is_graph_output()
            or graphs.attribute(node, "training_mode", 0)
            or any(found is None for found in parameters)
            or not _fold(model.graph, conv, parameters, graphs.attribute(node, "epsilon", _EPSILON))
        ):
            continue
        result.replace_all_uses_with(source)
        model.graph.remove(node, safe=True)


def _fold(
    graph: ir.Graph, conv: ir.Node, parameters: list[NDArray[np.float64] | None], epsilon: float
) -> bool:
    """Give a convolution new weights and a new bias; False when its own are not constant."""
    import onnx_ir

    scale, shift, mean, variance = (array for array in parameters if array is not None)
    weight = _array(conv.inputs[1])
    bias_value = conv.inputs[2] if len(conv.inputs) > 2 else None
    bias = np.zeros_like(mean) if bias_value is None else _array(bias_value)
    if weight is None or bias is None:
        return False
    factor = scale / np.sqrt(variance + epsilon)
    folded = weight * factor.reshape(-1, *(1,) * (weight.ndim - 1)), (bias - mean) * factor + shift
    base = str(conv.inputs[1].name)  # type: ignore[union-attr]  # an input that was just read
    values = []
    for name, array in zip((base, f"{base}.bias"), folded, strict=True):
        while name in graph.initializers:  # it may have other readers
            name += "_"
        tensor = onnx_ir.tensor(array.astype(np.float32), name=name)
        value = onnx_ir.val(name, const_value=tensor)
        graph.register_initializer(value)
        values.append(value)
    conv.resize_inputs(3)
    conv.replace_input_with(1, values[0])
    conv.replace_input_with(2, values[1])
    return True


def _array(value: ir.Value | None) -> NDArray[np.float64] | None:
    if value is None or value.const_value is None:
        return None
    return value.const_value.numpy().astype(np.float64)
