"""Let layers pad by themselves, and by numbers: padding by rule and Pad nodes become their `pads`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vggdeploy import graphs, signs
from vggdeploy.export.constants import array

if TYPE_CHECKING:
    import onnx_ir as ir

_WINDOWED = ("Conv", "MaxPool", "AveragePool")


def spell_out_pads(model: ir.Model) -> None:
    """Replace ``auto_pad`` by the numbers that it stands for, where the image's sides are known.

    Along a side of `size`, ``ceil(size / stride)`` windows of ``dilation * (kernel - 1) + 1`` have
    to fit; of what is missing, SAME_UPPER puts the odd one at the end and SAME_LOWER in front
    (ONNX, "Conv").
    """
    import onnx_ir

    for node in model.graph:
        rule = graphs.attribute(node, "auto_pad", "NOTSET")
        if node.domain or node.op_type not in _WINDOWED or rule == "NOTSET":
            continue
        if graphs.attribute(node, "ceil_mode", 0):  # one window more, with the same numbers
            continue
        kernel = _kernel(node)
        sizes = graphs.static_shape(node.inputs[0]) if node.inputs[0] is not None else None
        if kernel is None or sizes is None or len(sizes) != len(kernel) + 2:
            continue
        ones = [1] * len(kernel)
        begins, ends = [], []
        for size, side, stride, dilation in zip(
            sizes[2:],
            kernel,
            graphs.attribute(node, "strides", ones),
            graphs.attribute(node, "dilations", ones),
            strict=True,
        ):
            missing = 0
            if rule != "VALID":
                if size is None:
                    break
                whole = dilation * (side - 1) + 1
                missing = max(0, (-(-size // stride) - 1) * stride + whole - size)
            first = (missing + 1) // 2 if rule == "SAME_LOWER" else missing // 2
            begins.append(int(first))
            ends.append(int(missing - first))
        if len(begins) == len(kernel):
            node.attributes.pop("auto_pad")
            node.attributes["pads"] = onnx_ir.AttrInt64s("pads", [*begins, *ends])


def _kernel(node: ir.Node) -> list[int] | None:
    """The sides of a node's window, None where they are not known."""
    weight = node.inputs[1] if node.op_type == "Conv" and len(node.inputs) > 1 else None
    sides = graphs.attribute(node, "kernel_shape", None)
    if sides is None and weight is not None:
        shape = graphs.static_shape(weight)
        sides = shape[2:] if shape is not None and None not in shape else None
    return [int(side) for side in sides] if sides else None


def fold_pads(model: ir.Model) -> None:
    """Let convolutions, and max pools of what is never negative, pad by themselves.

    A max pool pads with minus infinity: beside values of 0 and more that is a zero, as long as
    every window holds a value.
    """
    import onnx_ir

    for node in list(model.graph):
        if node.domain or node.op_type not in ("Conv", "MaxPool") or not node.inputs:
            continue
        pad = node.inputs[0].producer() if node.inputs[0] is not None else None
        added = _zero_pads(pad) if pad is not None else None
        if pad is None or added is None or len(node.outputs) > 1:
            continue
        if graphs.attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            continue
        source = pad.inputs[0]
        assert source is not None
        sides = len(added) // 2
        whole = [a + int(b) for a, b in zip(
            added, graphs.attribute(node, "pads", [0] * len(added)), strict=True
        )]  # fmt: skip
        if node.op_type == "MaxPool":
            if graphs.attribute(node, "ceil_mode", 0):  # whose last window may lie in the Pad
                continue
            kernel = [int(side) for side in graphs.attribute(node, "kernel_shape", ())]
            narrow = all(p < kernel[i % sides] for i, p in enumerate(whole))
            own = graphs.attribute(node, "pads", [0] * len(added))
            if not narrow or any(own) or not signs.nonnegative(source):
                continue
        node.attributes.pop("auto_pad", None)
        node.attributes["pads"] = onnx_ir.AttrInt64s("pads", whole)
        node.replace_input_with(0, source)


def _zero_pads(node: ir.Node) -> list[int] | None:
    """Begins, then ends, of a Pad that adds zeros around an image; None for any other node."""
    if node.domain or node.op_type != "Pad" or not signs.pads_zeros(node):
        return None
    pads = array(node.inputs[1]) if len(node.inputs) > 1 else None
    if pads is None or len(node.inputs) > 3 or pads.size < 6 or (pads < 0).any():
        return None
    half = pads.size // 2
    if pads[:2].any() or pads[half : half + 2].any():
        return None
    return [int(side) for side in (*pads[2:half], *pads[half + 2 :])]
