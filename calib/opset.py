"""A newer opset for a graph, where quantization needs an operator's newer form."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

_AXES_AS_INPUT = 18
"""The opset from which on reductions take their axes as an input (ReduceSum did from 13 on)."""

_REDUCTIONS = (
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSumSquare",
)


def raise_opset(model: ir.Model, least: int) -> None:
    """Carry a graph of opset 13 or newer over to opset `least`; a newer one is left as it is.

    Of what an image classifier is made of, reductions alone are written otherwise between 13 and
    21; what else should be is found by ONNX's checker, which every written graph passes.
    """
    import onnx_ir

    before = model.graph.opset_imports[""]
    if before >= least:
        return
    model.graph.opset_imports[""] = least
    if not before < _AXES_AS_INPUT <= least:
        return
    for node in model.graph:
        if node.domain or node.op_type not in _REDUCTIONS or "axes" not in node.attributes:
            continue
        axes = node.attributes.pop("axes").as_ints()
        name = f"{node.outputs[0].name}.axes"
        tensor = onnx_ir.tensor(np.array(axes, np.int64), name=name)
        value = onnx_ir.val(name, const_value=tensor)
        model.graph.register_initializer(value)
        node.resize_inputs(2)
        node.replace_input_with(1, value)
