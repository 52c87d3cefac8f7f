"""Memory: what a process has taken, and what a calibration that keeps every activation would."""

from __future__ import annotations

import math
import resource
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vggdeploy import machine
from vggdeploy.errors import MissingError

if TYPE_CHECKING:
    from pathlib import Path

_RSS_UNIT = 1 if sys.platform == "darwin" else 1024
"""getrusage counts bytes on macOS and kibibytes elsewhere."""

_SHARE = 0.8
"""Of the available memory, how much a calibration may plan with."""

_PROCESS_BYTES = 500_000_000
"""The interpreter with onnxruntime and what its preparation imports: 0.33 GB before any work."""

_MODEL_COPIES = 4
"""As protobuf, augmented on its way to the disk, and in the session. VGG16 (0.55 GB) was measured
to take 3.7 GB with 8 images, 6.4 GB with 32 and 10.8 GB with 64, where this plans with 3.8, 7.2 and
11.7 GB."""


@dataclass(frozen=True)
class Activations:
    """The float tensors of a graph for one image.

    Attributes:
        input: the name of the graph's input.
        total: bytes of all.
        largest: bytes of the largest one.
    """

    input: str
    total: int
    largest: int


def activations(onnx: Path) -> Activations:
    """The activations of an ONNX graph whose shapes have been inferred; an unknown side is 1."""
    import onnx as onnx_package

    graph = onnx_package.load(onnx, load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    floats = (onnx_package.TensorProto.FLOAT, onnx_package.TensorProto.FLOAT16)
    sizes = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if value.name not in weights and kind.elem_type in floats:
            width = onnx_package.helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize
            sizes[value.name] = width * math.prod(side.dim_value or 1 for side in kind.shape.dim)
    name = next(value.name for value in graph.input if value.name not in weights)
    return Activations(name, sum(sizes.values()), max(sizes.values()))


def affordable(
    wanted: int, kept: Activations, model_bytes: int, available_bytes: int | None
) -> tuple[int, str]:
    """How many images a calibration can take that keeps all their activations.

    It holds every activation of every image, then two more copies of the largest tensor's (the
    images put together, and the same flattened), besides the process itself and a few copies of
    the model.

    Args:
        wanted: how many there are to take.
        kept: of the graph that is calibrated.
        model_bytes: its file.
        available_bytes: free memory; None where the machine does not tell.

    Returns:
        The number of images, and why it is less than `wanted`; empty where it is not.

    Raises:
        MissingError: when there is not memory enough for one.
    """
    if available_bytes is None:
        return wanted, ""
    each = kept.total + 2 * kept.largest
    fixed = _PROCESS_BYTES + _MODEL_COPIES * model_bytes
    count = int((_SHARE * available_bytes - fixed) // each)
    if count >= wanted:
        return wanted, ""
    if count < 1:
        raise MissingError(
            "there is not enough memory to calibrate on a single image",
            got=f"{available_bytes / 1e9:.1f} GB available",
            expected=f"{(fixed + each) / _SHARE / 1e9:.1f} GB",
            fix="close other programs, or leave this competitor out with --only",
        )
    return count, (
        f"it keeps all activations, {each / 1e6:.0f} MB an image, and "
        f"{available_bytes / 1e9:.1f} GB were available"
    )


def peak() -> int:
    """This process's peak resident memory, in bytes.

    From Linux's own high-water mark where there is one: what getrusage says of a process holds
    the peak of the process that started it, too.
    """
    return machine.resident() or _largest(resource.RUSAGE_SELF)


def peak_of_children() -> int:
    """The peak resident memory of the largest process that this one has started and waited for, in
    bytes."""
    return _largest(resource.RUSAGE_CHILDREN)


def _largest(who: int) -> int:
    return resource.getrusage(who).ru_maxrss * _RSS_UNIT
