"""Take in graphs that were made elsewhere: checked, understood, brought into the form of our own."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np

from vggdeploy import graphs, opsets
from vggdeploy.errors import ModelError, VggdeployError, missing_package
from vggdeploy.export import constants, shapes
from vggdeploy.export.clean import clean, tidy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import onnx_ir as ir

    from vggdeploy.graphs import Signature

_QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger",
              "MatMulInteger")  # fmt: skip
_QUANTIZED_PREFIXES = ("QLinear", "QGemm", "QAttention")


def inspect(source: Path) -> Signature:
    """What a foreign graph takes and gives, its shapes inferred. Its weights are not read.

    Raises:
        ModelError: when `adopt` would not take it, as far as can be seen without the weights.
    """
    with _taking_in(source):
        return graphs.signature(_load(source))


def adopt(source: Path, out_dir: Path) -> Path:
    """Take in a foreign ONNX file: checked, constants folded, shapes inferred, cleaned, its affine
    maps folded, written as ``model.onnx``, which computes what `source` does.

    Floats of 16 and 64 bits become float32, opsets older than 13 become 13.

    Raises:
        ModelError: naming the first operator that ONNX does not know, or whatever else is wrong.
    """
    with _taking_in(source):
        model = _load(source)
        _require_finite(model, source)
        constants.fold_constants(model)
        opsets.upgrade(model, opsets.PER_CHANNEL)
        clean(model)
        model.graph.sort()
        shapes.infer(model)
        graphs.signature(model)
        if not any(graphs.weighted(model)):
            raise ModelError(
                f"ONNX file {source} has no convolution or matrix product with constant weights",
                got=f"{len(model.graph)} other nodes",
                expected="a VGG-like network",
                fix="export it with its weights inside",
            )
        path = out_dir / "model.onnx"
        graphs.write(model, path, external=True)
    graphs.check(path)
    return path


@contextlib.contextmanager
def _taking_in(source: Path) -> Iterator[None]:
    """Map what onnx-ir, onnx and numpy say of a graph that contradicts itself."""
    try:
        yield
    except (VggdeployError, OSError):  # the latter of writing
        raise
    except Exception as error:  # each of them has errors of its own
        raise ModelError(
            f"ONNX file {source} cannot be taken in",
            got=str(error).split("\n")[0] or type(error).__name__,
            expected="a graph that is sound",
            fix="export or copy it again",
        ) from error


def _load(source: Path) -> ir.Model:
    """Read a foreign graph, refuse what cannot be taken in, and settle its shapes."""
    import onnx_ir.passes.common as passes

    model = graphs.read(source)
    if model.functions:
        passes.InlinePass()(model)
    _require_float(model, source)
    _known_operators(model, source)
    tidy(model)
    constants.widen_floats(model)
    graphs.image_input(model)
    _require_inference(model, source)
    constants.fold_constants(model, constants.SMALL)
    model.graph.sort()
    shapes.infer(model)
    return model


def _require_float(model: ir.Model, source: Path) -> None:
    for node in model.graph.all_nodes():
        if node.op_type in _QUANTIZED or node.op_type.startswith(_QUANTIZED_PREFIXES):
            raise ModelError(
                f"ONNX file {source} is quantized already",
                got=graphs.label(node),
                expected="a float graph",
                fix="give the graph that it was quantized from",
            )


def _require_inference(model: ir.Model, source: Path) -> None:
    """Dropout and BatchNorm in training mode compute something else than the network will."""
    for node in model.graph:
        flag = node.op_type == "Dropout" and len(node.inputs) > 2 and graphs.scalar(node, 2)
        if flag or graphs.attribute(node, "training_mode", 0):
            raise ModelError(
                f"ONNX file {source}: {graphs.label(node)} is in training mode",
                got="a graph for training",
                expected="a graph for inference",
                fix="export it in evaluation mode (model.eval() in torch)",
            )


def _require_finite(model: ir.Model, source: Path) -> None:
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or not tensor.dtype.is_floating_point():
            continue
        # A single infinity is a bound, of a Clip or of a Pad in front of a max pool.
        content = tensor.numpy()
        if np.isnan(content).any() or (content.size > 1 and not np.isfinite(content).all()):
            raise ModelError(
                f"ONNX file {source}: tensor {name!r} holds NaN or infinity",
                got=f"{np.count_nonzero(~np.isfinite(content)):,} such elements",
                expected="finite weights",
                fix="export the model again",
            )


def _known_operators(model: ir.Model, source: Path) -> None:
    try:
        import onnx.defs
    except ImportError as error:
        raise missing_package("onnx", "export", "an ONNX graph") from error
    opset = model.graph.opset_imports.get("", 0)
    if not opsets.OLDEST <= opset <= onnx.defs.onnx_opset_version():
        raise ModelError(
            f"ONNX file {source} is of another opset",
            got=opset,
            expected=f"{opsets.OLDEST} to {onnx.defs.onnx_opset_version()}",
            fix="convert it with onnx.version_converter, or export it again",
        )
    for node in model.graph.all_nodes():
        if node.domain or not onnx.defs.has(node.op_type, opset, ""):
            raise ModelError(
                f"ONNX file {source}: unsupported operator at node "
                f"{node.name or node.outputs[0].name!r}",
                got=f"{node.domain + '.' if node.domain else ''}{node.op_type}",
                expected=f"operators of ONNX's own opset {opset}",
                fix="export the model without custom operators",
            )
