"""Edits of an OpenVINO graph between reading and compiling."""

from __future__ import annotations

from typing import Any


def free_weights(model: Any) -> None:
    """Put constants in place of the shapes of constants. The model is edited.

    When OpenVINO sets the batch (``Model.reshape``), it makes the shape of what goes into a matrix
    product depend on the shape of the weights. Dequantized weights that are read twice, by the
    product and for their shape, are no longer seen as compressed: the plugin would unfold their 4
    bits to 32. Shapes of activations stay, for they change with the batch.
    """
    import numpy as np
    from openvino import opset13 as ops

    constant: set[str] = set()
    shapes = []
    for operation in model.get_ordered_ops():
        sources = [port.get_source_output().get_node() for port in operation.inputs()]
        kind = operation.get_type_name()
        if kind != "Constant" and not sources:
            continue
        if all(source.get_name() in constant for source in sources):
            constant.add(operation.get_name())
            if kind == "ShapeOf":
                shapes.append(operation)
    for operation in shapes:
        sides = np.array(list(operation.input(0).get_shape()))
        known = ops.constant(sides, operation.output(0).get_element_type())
        known.set_friendly_name(operation.get_friendly_name())
        for port in operation.output(0).get_target_inputs():
            port.replace_source_output(known.output(0))
