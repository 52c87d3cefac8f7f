"""Edits of an OpenVINO graph between reading and compiling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vggdeploy import pixels
from vggdeploy.targets import openvino_module

if TYPE_CHECKING:
    from vggdeploy.preprocess import Preprocess


def number(model: Any) -> None:
    """Number what has no name. The model is edited.

    OpenVINO numbers it through the whole process; numbered through the model, the same graph gives
    the same bytes.
    """
    for index, operation in enumerate(model.get_ordered_ops()):
        if operation.get_friendly_name() == operation.get_name():
            operation.set_friendly_name(f"{operation.get_type_name()}_{index}")


def take_pixels(model: Any, preprocess: Preprocess) -> None:
    """Let a model that takes float32 images take uint8 pixels ``[N, H, W, 3]``. The model is edited.

    Raises:
        ConfigError: when the preprocessing does not fit float32.
    """
    ov = openvino_module.load()
    offset, factor = pixels.constants(preprocess, "float32")
    known = {operation.get_friendly_name() for operation in model.get_ordered_ops()}
    converter = ov.preprocess.PrePostProcessor(model)
    image = converter.input()
    image.tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
    image.model().set_layout(ov.Layout(preprocess.layout.upper()))
    steps = image.preprocess().convert_element_type(ov.Type.f32)
    if preprocess.channels == "bgr":
        steps.reverse_channels()
    if offset is not None:
        steps.mean(offset.tolist())
    if factor is not None:
        steps.scale((1 / factor).tolist())
    converter.build()
    # What was folded on the way has the name of what it was folded from.
    for index, operation in enumerate(model.get_ordered_ops()):
        if operation.get_friendly_name() not in known:
            operation.set_friendly_name(f"pixels/{operation.get_type_name()}_{index}")


def free_weights(model: Any) -> None:
    """Put constants in place of the shapes of constants. The model is edited.

    When OpenVINO sets the batch (``Model.reshape``), it makes the shape of what goes into a matrix
    product depend on the shape of the weights. Dequantized weights that are read twice, by the
    product and for their shape, are no longer seen as compressed: the plugin would unfold their 4
    bits to 32. Shapes of activations stay, for they change with the batch.
    """
    import numpy as np

    ops = openvino_module.load().opset13
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


def widen(model: Any) -> None:
    """Carry what is float16 in float32. The model is edited.

    OpenVINO's CPU plugin computes it in float32 as well, but first multiplies constants out in
    float16: the weights of a DequantizeLinear, and the range of a QuantizeLinear. That moves values
    over the edge of an 8-bit step, which the graph as it is defined does not.
    """
    import numpy as np

    ov = openvino_module.load()
    ops = ov.opset13
    for operation in model.get_ordered_ops():
        kind = operation.get_type_name()
        if kind not in ("Constant", "Convert") or operation.get_element_type() != ov.Type.f16:
            continue
        if kind == "Constant":
            wide = ops.constant(operation.get_data().astype(np.float32))
        else:
            wide = ops.convert(operation.input(0).get_source_output(), "f32")
        wide.set_friendly_name(operation.get_friendly_name())
        for port in operation.output(0).get_target_inputs():
            port.replace_source_output(wide.output(0))
    model.validate_nodes_and_infer_types()
