"""Networks that take an image's pixels as they are, uint8 ``[N, H, W, 3]``, and preprocess them.

The host is spared the arithmetic, and a quarter of the bytes go to the device. What is done is
`Preprocess.arithmetic`: resizing and cropping stay with the host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vggdeploy import graphs
from vggdeploy.contracts import TensorSpec
from vggdeploy.errors import ConfigError

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    from vggdeploy.contracts import Target
    from vggdeploy.preprocess import Preprocess

FLOAT, PIXELS = "float", "uint8-nhwc"
FORMS = (FLOAT, PIXELS)
"""What ``--input-format`` takes."""


def asked(form: str, target: Target, dla: int | None = None) -> bool:
    """Whether a build's network shall take pixels.

    Raises:
        ConfigError: for an unknown form, or pixels where only floats are taken.
    """
    if form not in FORMS:
        raise ConfigError(
            "unknown input format",
            got=repr(form),
            expected="one of " + ", ".join(FORMS),
            fix="choose one with --input-format",
        )
    if form == FLOAT:
        return False
    if not target.takes_pixels:
        raise ConfigError(
            f"{target.name} takes floats alone",
            got=f"--input-format {form}",
            expected="--input-format float",
            fix="drop it, or build for an OpenVINO or a TensorRT target",
        )
    if dla is not None:
        raise ConfigError(
            "a DLA core is built for from the float graph, whose calibration cache has no scales "
            "for what comes before the network",
            got=f"--input-format {form} and --dla {dla}",
            expected="either alone",
            fix="drop one of them",
        )
    return True


def spec(taken: TensorSpec, preprocess: Preprocess) -> TensorSpec:
    """The input of a network that took `taken` and takes pixels now."""
    return TensorSpec(taken.name, (None, *preprocess.size, 3), "uint8")


def constants(
    preprocess: Preprocess, dtype: str = "float64"
) -> tuple[NDArray[Any] | None, NDArray[Any] | None]:
    """What a pixel becomes, ``(pixel - offset) * factor``: both ``[3]``, in the order of
    ``preprocess.channels``; None where it changes nothing.

    In this order float16 serves: an offset below 128 is within 1/32 of a pixel, the difference is
    exact up to 128, and only the product is rounded. The other way around, what is rounded is the
    larger number that the offset is then taken from.

    Raises:
        ConfigError: when one of them does not fit `dtype`.
    """
    std, mean = np.array(preprocess.std), np.array(preprocess.mean)
    offset, factor = mean / preprocess.scale, preprocess.scale / std
    limits = np.finfo(dtype)
    fit = (np.abs(offset) <= limits.max) & (factor >= limits.tiny) & (factor <= limits.max)
    if not fit.all():
        worst = int(np.argmin(fit))
        raise ConfigError(
            f"the preprocessing does not fit {dtype}, which the network computes it in",
            got=f"pixels less {offset[worst]:g}, times {factor[worst]:g}",
            expected=f"numbers of {limits.tiny:g} to {limits.max:g}",
            fix="drop --input-format, or build for another target",
        )
    return (
        offset.astype(dtype) if offset.any() else None,
        factor.astype(dtype) if (factor != 1).any() else None,
    )


def take(model: ir.Model, preprocess: Preprocess, dtype: str) -> None:
    """Let a graph take pixels: Cast, the order of channels, Sub, Mul and Transpose in front of it.

    The input keeps its name. Edited in place, and sorted.

    Args:
        model: a graph that takes float32, as `half.to_float16` leaves it where that was applied.
        preprocess: what its images go through.
        dtype: ``float32`` or ``float16``: what the graph computes in.

    Raises:
        ConfigError: as `constants`.
    """
    import onnx_ir

    offset, factor = constants(preprocess, dtype)
    graph, kind = model.graph, onnx_ir.DataType.from_numpy(np.dtype(dtype))
    image, _ = graphs.ports(model)
    name, network = str(image.name), image.shape
    assert network is not None
    readers = _readers(graph, image, kind)
    image.type = onnx_ir.TensorType(onnx_ir.DataType.UINT8)
    image.shape = onnx_ir.Shape([network[0], *preprocess.size, 3])

    def then(operator: str, inputs: list[ir.Value], what: str, **attributes: Any) -> ir.Value:
        label = f"{name}.{what}"
        made = graphs.append(graph, operator, inputs, label, like=image, **attributes)
        made.type = onnx_ir.TensorType(kind)
        return made

    # TensorRT does nothing with 8 unsigned bits but cast them (DataType.UINT8 of its reference).
    value = then("Cast", [image], dtype, to=kind.value)
    if preprocess.channels == "bgr":
        turned = graphs.constant(graph, f"{name}.order", np.array([2, 1, 0], np.int64))
        value = then("Gather", [value, turned], "bgr", axis=3)
    if offset is not None:
        taken = graphs.constant(graph, f"{name}.offset", offset)
        value = then("Sub", [value, taken], "centred")
    if factor is not None:
        times = graphs.constant(graph, f"{name}.factor", factor)
        value = then("Mul", [value, times], "normal")
    if preprocess.layout == "nchw":
        value = then("Transpose", [value], "nchw", perm=[0, 3, 1, 2])
        value.shape = network
    for node, index in readers:
        node.replace_input_with(index, value)
    graph.sort()


def _readers(graph: ir.Graph, image: ir.Value, kind: ir.DataType) -> list[tuple[ir.Node, int]]:
    """What reads the image; a Cast of it to `kind` goes, and what reads that stands for it."""
    found = []
    for node, index in list(image.uses()):
        to = node.attributes.get("to")
        if node.op_type != "Cast" or to is None or to.value != kind:
            found.append((node, index))
            continue
        found += list(node.outputs[0].uses())
        node.replace_input_with(0, None)
        graph.remove(node)
    return found
