"""ONNX files: read, described and written, with weights left memory-mapped.

Everything that reads or edits a graph goes through onnx-ir, whose tensors stay in the file until
they are needed. onnx_ir is imported where it is used.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vggdeploy import atomic, limits
from vggdeploy.contracts import TensorSpec
from vggdeploy.errors import ModelError, missing_package

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path

    import onnx_ir as ir
    from numpy.typing import NDArray

WEIGHTED = ("Conv", "Gemm", "MatMul")
"""Operators whose multiply-accumulates are counted and that INT8 runs."""


def read(path: Path) -> ir.Model:
    """Load a graph; weights in external files stay memory-mapped.

    Raises:
        ModelError: when the file is missing, is no ONNX, or points outside its own folder.
        MissingError: when onnx-ir is not installed.
    """
    try:
        import onnx_ir
    except ImportError as error:
        raise missing_package("onnx_ir", "export", "an ONNX graph") from error
    if not path.is_file():
        raise ModelError(
            f"ONNX file {path} {'is no file' if path.exists() else 'does not exist'}",
            got="a folder" if path.is_dir() else "nothing there",
            expected="an ONNX graph",
            fix="check the path",
        )
    if path.stat().st_size > limits.ONNX_BYTES:
        raise _too_much(path, f"{path.stat().st_size:,} bytes", f"{limits.ONNX_BYTES:,}")
    try:
        model = onnx_ir.load(path)
        parts = 0
        for parts, tensor in enumerate(_parts(model), start=1):
            if parts > limits.ONNX_PARTS:
                raise _too_much(path, "more nodes and tensors", f"{limits.ONNX_PARTS:,}")
            if tensor is not None:
                _check_tensor(path, tensor)
    except ModelError:
        raise
    except Exception as error:  # protobuf, onnx-ir and numpy each have errors of their own
        raise ModelError(
            f"ONNX file {path} cannot be read",
            got=str(error).split("\n")[0] or type(error).__name__,
            expected="a whole ONNX model",
            fix="export or copy it again",
        ) from error
    if not len(model.graph):
        raise ModelError(
            f"ONNX file {path} holds no node",
            got="an empty graph",
            expected="a network",
            fix="export or copy it again",
        )
    return model


def _too_much(path: Path, got: str, most: str) -> ModelError:
    return ModelError(
        f"ONNX file {path} is too large",
        got=got,
        expected=f"{most} at most",
        fix="give the graph of one network, with large weights in a file beside it",
    )


_NUMBERS = (
    "float_data", "int32_data", "int64_data", "double_data", "uint64_data",
)  # fmt: skip
"""Where a tensor's elements are that has no raw bytes; strings are onnx-ir's own kind."""


def _check_tensor(path: Path, tensor: ir.TensorProtocol) -> None:
    """Make sure that a tensor has the bytes that it declares, before any memory is taken for it."""
    import onnx_ir

    shape: Any = tensor.shape
    sides = [int(side) for side in shape]
    elements = math.prod(sides)
    if min(sides, default=0) < 0 or elements > limits.ELEMENTS:
        raise ModelError(
            f"ONNX file {path}: tensor {tensor.name!r} declares what cannot be",
            got=f"{sides}, {elements:,} elements",
            expected=f"{limits.ELEMENTS:,} at most",
            fix="do not use this file",
        )
    if isinstance(tensor, onnx_ir.ExternalTensor):
        _check_external(path, tensor)
    elif isinstance(tensor, onnx_ir.TensorProtoTensor):
        proto = tensor.raw
        bytes_, numbers = len(proto.raw_data), sum(len(getattr(proto, key)) for key in _NUMBERS)
        # Two of four bits, or none of none, lie in one number.
        if bytes_ != tensor.nbytes if bytes_ else elements > 2 * numbers:
            raise ModelError(
                f"ONNX file {path}: tensor {tensor.name!r} does not have what it declares",
                got=f"{bytes_:,} bytes" if bytes_ else f"{numbers:,} numbers",
                expected=f"{tensor.nbytes:,} bytes, {elements:,} elements",
                fix="export or copy it again",
            )


def _check_external(path: Path, tensor: ir.ExternalTensor) -> None:
    folder = path.parent.resolve()
    location = (folder / tensor.location).resolve()
    if not location.is_relative_to(folder):
        raise ModelError(
            f"ONNX file {path}: tensor {tensor.name!r} lies outside of its folder",
            got=tensor.location,
            expected="a path inside of it",
            fix="do not use this file",
        )
    offset, length = tensor.offset or 0, tensor.length or tensor.nbytes
    if offset < 0 or length != tensor.nbytes:
        raise ModelError(
            f"ONNX file {path}: tensor {tensor.name!r} does not lie where it says",
            got=f"{length:,} bytes at {offset:,} of {tensor.location}",
            expected=f"{tensor.nbytes:,} bytes",
            fix="export the model again",
        )
    tensor.base_dir = path.parent
    end = offset + length
    if not location.is_file() or location.stat().st_size < end:
        raise ModelError(
            f"ONNX file {path}: the data of tensor {tensor.name!r} is missing or cut short",
            got=f"{location.stat().st_size if location.is_file() else 0:,} bytes in "
            f"{tensor.location}",
            expected=f"{end:,} or more",
            fix="copy the .data file along with the .onnx file",
        )


def data_files(path: Path, model: ir.Model) -> list[Path]:
    """The files beside `path` that hold its weights, sorted."""
    return sorted({path.parent / tensor.location for tensor in _external_tensors(model)})


def _external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """Every tensor that lies in another file."""
    import onnx_ir

    for tensor in _parts(model):
        if isinstance(tensor, onnx_ir.ExternalTensor):
            yield tensor


def _parts(model: ir.Model) -> Iterator[ir.TensorProtocol | None]:
    """Every tensor of a model, and None for every node: of the graph, of those inside of it, and of
    its functions."""
    import onnx_ir

    for graph in model.graphs():
        for value in graph.initializers.values():
            yield value.const_value
    bodies: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for node in itertools.chain.from_iterable(body.all_nodes() for body in bodies):
        yield None
        for attribute in node.attributes.values():
            if attribute.type is onnx_ir.AttributeType.TENSOR:
                yield attribute.value
            elif attribute.type is onnx_ir.AttributeType.TENSORS:
                yield from attribute.value


def write(model: ir.Model, path: Path, *, external: bool) -> None:
    """Save a graph; `external` puts the weights into ``<name>.data`` beside it.

    Raises:
        MissingError: when the disk is full.
    """
    import onnx_ir

    if external:
        # numpy writes them, which says what the system said of a full disk in words of its own,
        # and nothing of what was left to be written when the file was closed.
        try:
            onnx_ir.save(model, path, external_data=f"{path.name}.data")
            for tensor in _external_tensors(onnx_ir.load(path)):
                _check_external(path, tensor)
        except (ModelError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise atomic.no_space(path) from error
    else:
        onnx_ir.external_data.load_to_model(model)
        onnx_ir.save(model, path)


def write_sharing(model: ir.Model, path: Path) -> None:
    """Save a graph in the folder that it was read from; weights that lie in a file there stay in
    that file, and the graph points to it."""
    import onnx_ir

    onnx_ir.save(model, path)


@contextlib.contextmanager
def quiet(logger: str) -> Iterator[None]:
    """Without a library's warnings and log lines: what matters is said by an error of ours."""
    log = logging.getLogger(logger)
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def check(path: Path) -> None:
    """Pass a file through ONNX's own checker, weights left where they are.

    Raises:
        ModelError: with the checker's first line.
    """
    try:
        import onnx
    except ImportError as error:
        raise missing_package("onnx", "export", "an ONNX graph") from error
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # the checker and shape inference have errors of their own
        raise ModelError(
            f"ONNX graph {path.name} does not pass ONNX's checker",
            got=str(error).split("\n")[0],
            expected="a valid graph",
            fix="export the model again",
        ) from error


@dataclass(frozen=True)
class Signature:
    """What a graph takes and gives. None in a shape stands for the batch."""

    input: TensorSpec
    output: TensorSpec


def ports(model: ir.Model) -> tuple[ir.Value, ir.Value]:
    """The one input and the one output.

    Raises:
        ModelError: for none or several.
    """
    inputs = images(model)
    for name, found in (("input", inputs), ("output", model.graph.outputs)):
        if len(found) != 1:
            raise ModelError(
                f"the graph has {len(found)} {name}s",
                got=", ".join(str(v.name) for v in found) or "none",
                expected="one",
                fix="cut the graph to a classifier of one image batch",
            )
    return inputs[0], model.graph.outputs[0]


def signature(model: ir.Model) -> Signature:
    """What an image classifier takes and gives.

    Raises:
        ModelError: for several inputs or outputs, an input that is no image batch, or unknown
            shapes.
    """
    _, scores = ports(model)
    return Signature(image_input(model), _spec(scores, 2, "[batch, classes] out"))


def image_input(model: ir.Model) -> TensorSpec:
    """The one input, which is an image batch, NCHW or NHWC.

    Raises:
        ModelError: when it is none.
    """
    image, _ = ports(model)
    spec = _spec(image, 4, "[batch, channels, height, width] or [batch, height, width, channels]")
    if 3 not in (spec.shape[1], spec.shape[3]):
        raise ModelError(
            f"input {spec.name!r} is no RGB image",
            got=spec,
            expected="3 channels",
            fix="cut the graph to a classifier of one image batch",
        )
    return spec


def _spec(value: ir.Value, rank: int, expected: str) -> TensorSpec:
    shape = static_shape(value)
    if shape is None or len(shape) != rank or any(not side or side < 0 for side in shape[1:]):
        raise ModelError(
            f"tensor {value.name!r} has no usable shape",
            got="none" if shape is None else f"[{', '.join(map(_side, shape))}]",
            expected=f"{expected}, all but the batch fixed",
            fix="export the model with fixed image sizes",
        )
    if value.dtype is not None and value.dtype.name != "FLOAT":
        raise ModelError(
            f"tensor {value.name!r} is of another type",
            got=value.dtype.name.lower(),
            expected="float32",
            fix="cut the graph to a classifier of one float32 image batch",
        )
    return TensorSpec(str(value.name), (None, *shape[1:]))


def _side(side: int | None) -> str:
    return "?" if side is None else str(side)


def images(model: ir.Model) -> list[ir.Value]:
    """The graph's inputs but for weights, which old files list among them."""
    return [v for v in model.graph.inputs if v.name not in model.graph.initializers]


def static_shape(value: ir.Value) -> tuple[int | None, ...] | None:
    """A value's shape with None for what is not fixed; None where there is none."""
    if value.shape is None:
        return None
    return tuple(side if isinstance(side, int) else None for side in value.shape)


@dataclass(frozen=True)
class WeightedNode:
    """A convolution or matrix product with constant weights.

    Attributes:
        weight: the initializer.
        channel_axis: the axis of `weight` that runs over output channels.
    """

    node: ir.Node
    weight: ir.Value
    channel_axis: int

    @property
    def name(self) -> str:
        """The weight's name without its ending: ``features.0`` for ``features.0.weight``."""
        return str(self.weight.name).removesuffix(".weight")

    @property
    def convolution(self) -> bool:
        """Whether it is a convolution, not a matrix product."""
        return self.node.op_type == "Conv"

    @property
    def plain(self) -> bool:
        """Whether it is a convolution of two dimensions, not in groups, whose padding is given in
        numbers, or is none."""
        assert self.weight.const_value is not None
        return (
            self.convolution
            and len(self.weight.const_value.shape) == 4
            and attribute(self.node, "group", 1) == 1
            and attribute(self.node, "auto_pad", "NOTSET") in ("NOTSET", "VALID")
        )


def weighted(model: ir.Model) -> Iterator[WeightedNode]:
    """Every node whose multiply-accumulates have constant weights, in order."""
    for node in model.graph:
        if node.domain or node.op_type not in WEIGHTED:
            continue
        weight = node.inputs[1]
        if weight is None or weight.const_value is None:
            continue
        rank = len(weight.const_value.shape)
        if node.op_type == "MatMul" and rank != 2:
            continue
        yield WeightedNode(node, weight, 0 if _rows_are_outputs(node) else 1)


def rows(found: WeightedNode) -> NDArray[np.float32]:
    """The weights as ``[outputs, inputs]``, a view; a convolution's inputs are those of one output
    position, channel by channel."""
    assert found.weight.const_value is not None
    array: NDArray[np.float32] = found.weight.const_value.numpy()
    return array.reshape(len(array), -1) if found.channel_axis == 0 else array.T


def _rows_are_outputs(node: ir.Node) -> bool:
    return node.op_type == "Conv" or bool(attribute(node, "transB", 0))


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """An attribute's value, or the operator's default."""
    return node.attributes[name].value if name in node.attributes else default


def label(node: ir.Node) -> str:
    """What messages call a node."""
    return f"{node.op_type} {str(node.name or node.outputs[0].name)!r}"


def tensor_name(graph: ir.Graph, name: str) -> str:
    """`name` or, where a tensor of a foreign graph has it already, the like."""
    outputs = {value.name for node in graph for value in node.outputs}
    return _free(name, outputs | {value.name for value in graph.inputs} | set(graph.initializers))


def node_name(graph: ir.Graph, name: str) -> str:
    """`name` or, where a node of a foreign graph has it already, the like."""
    return _free(name, {node.name for node in graph})


def _free(name: str, taken: Collection[str | None]) -> str:
    while name in taken:
        name += "_"
    return name


def constant(graph: ir.Graph, name: str, content: NDArray[Any]) -> ir.Value:
    """A new initializer, under `name` if that is free."""
    import onnx_ir

    name = tensor_name(graph, name)
    tensor = onnx_ir.tensor(np.ascontiguousarray(content).reshape(content.shape), name=name)
    made = onnx_ir.val(name, const_value=tensor)
    graph.register_initializer(made)
    return made


def append(
    graph: ir.Graph,
    operator: str,
    inputs: Sequence[ir.Value],
    output: str,
    like: ir.Value,
    **attributes: int,
) -> ir.Value:
    """A new node's output, with shape and type of `like`; node and output are called `output`, if
    that is free. The graph is left to be sorted."""
    import onnx_ir

    node = onnx_ir.node(operator, list(inputs), attributes, name=node_name(graph, output))
    value = node.outputs[0]
    value.name = tensor_name(graph, output)
    value.shape, value.type = like.shape, like.type
    graph.append(node)
    return value


def bypass(graph: ir.Graph, node: ir.Node) -> bool:
    """Let what reads a node's first output read its first input, and remove the node.

    False, and nothing done, where the graph's output would be its input or a weight.
    """
    source, result = node.inputs[0], node.outputs[0]
    assert source is not None
    if result.is_graph_output():
        if source.producer() is None or source.is_graph_output():
            return False
        _hand_over(graph, result, source)
    result.replace_all_uses_with(source)
    graph.remove(node, safe=True)
    return True


def insert_behind(graph: ir.Graph, node: ir.Node, behind: ir.Node) -> None:
    """Put `behind`, which reads the first output of `node`, in front of all its other readers."""
    result, last = node.outputs[0], behind.outputs[0]
    for reader, index in list(result.uses()):
        if reader is not behind:
            reader.replace_input_with(index, last)
    last.name = f"{result.name}.{behind.op_type.lower()}"
    graph.insert_after(node, behind)
    if result.is_graph_output():
        _hand_over(graph, result, last)


def _hand_over(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Make `new` the graph's output in place of `old`, under its name."""
    graph.outputs[list(graph.outputs).index(old)] = new
    name = str(old.name)
    old.name, new.name = f"{name}.before", name
    new.shape, new.type = old.shape, old.type


def scalar(node: ir.Node, index: int) -> float | None:
    """A node's input of one constant element; None where it is missing or something else."""
    value = node.inputs[index] if len(node.inputs) > index else None
    tensor = value.const_value if value is not None else None
    return float(tensor.numpy().item()) if tensor is not None and tensor.size == 1 else None
