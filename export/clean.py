"""Clean an ONNX graph, check it, and take in graphs that were made elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vggdeploy import graphs
from vggdeploy.errors import ModelError, missing_package
from vggdeploy.export.fold import fold_batchnorm

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir

OLDEST_OPSET = 13
"""The first with per-channel QuantizeLinear and DequantizeLinear."""


def clean(model: ir.Model) -> ir.Model:
    """Remove what does nothing and what is not the network: exporter notes, identities, dropout,
    1x1 average pools, unused nodes, and BatchNorm, folded into its convolution. The model is edited and returned."""
    import onnx_ir.passes.common as passes

    for node in list(model.graph):
        if _does_nothing(node):
            source, result = node.inputs[0], node.outputs[0]
            assert source is not None
            if result.is_graph_output():
                continue
            result.replace_all_uses_with(source)
            model.graph.remove(node, safe=True)
    for step in (
        passes.RemoveInitializersFromInputsPass(),
        passes.LiftConstantsToInitializersPass(),
        passes.IdentityEliminationPass(),
    ):
        step(model)
    fold_batchnorm(model)
    passes.RemoveUnusedNodesPass()(model)
    passes.ClearMetadataAndDocStringPass()(model)
    # Notes on values and on the model itself, which that pass leaves: where the code lay, above
    # all, which is nobody's business and would make the same graph differ from machine to machine.
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    values += [value for node in model.graph for value in node.outputs]
    for value in values:
        value.doc_string = None
        value.metadata_props.clear()
    model.doc_string = None
    model.metadata_props.clear()
    model.producer_name, model.producer_version = "vggdeploy", None
    return model


def _does_nothing(node: ir.Node) -> bool:
    if node.domain:
        return False
    if node.op_type in ("Identity", "Dropout"):
        return not any(output.uses() for output in node.outputs[1:])
    if node.op_type == "AveragePool":
        sides = (
            tuple(graphs.attribute(node, "kernel_shape", ())),
            tuple(graphs.attribute(node, "strides", ())),
            tuple(graphs.attribute(node, "pads", ())),
        )
        return set(sides[0]) == {1} and set(sides[1]) <= {1} and set(sides[2]) <= {0}
    return False


def adopt(source: Path, out_dir: Path) -> Path:
    """Take in a foreign ONNX file: checked, cleaned, shapes inferred, written as ``model.onnx``.

    Raises:
        ModelError: naming the first operator that ONNX does not know, or whatever else is wrong.
    """
    import onnx_ir.passes.common as passes

    model = graphs.read(source)
    _known_operators(model, source)
    _finite_weights(model, source)
    clean(model)
    with graphs.quiet("onnx_ir"):
        passes.ShapeInferencePass()(model)
    graphs.signature(model)
    if not any(graphs.weighted(model)):
        if any(node.op_type == "QuantizeLinear" for node in model.graph):
            raise ModelError(
                f"ONNX file {source} is quantized already",
                expected="an FP32 graph",
                fix="give the graph that it was quantized from",
            )
        raise ModelError(
            f"ONNX file {source} has no convolution or matrix product with constant weights",
            expected="a VGG-like network",
            fix="export it with its weights inside",
        )
    path = out_dir / "model.onnx"
    graphs.write(model, path, external=True)
    graphs.check(path)
    return path


def _finite_weights(model: ir.Model, source: Path) -> None:
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or not tensor.dtype.is_floating_point():
            continue
        if not np.isfinite(tensor.numpy()).all():
            raise ModelError(
                f"ONNX file {source}: tensor {name!r} holds NaN or infinity",
                expected="finite weights",
                fix="export the model again",
            )


def _known_operators(model: ir.Model, source: Path) -> None:
    try:
        import onnx.defs
    except ImportError as error:
        raise missing_package("onnx", "export", "an ONNX graph") from error
    opset = model.graph.opset_imports.get("", 0)
    if not OLDEST_OPSET <= opset <= onnx.defs.onnx_opset_version():
        raise ModelError(
            f"ONNX file {source} is of another opset",
            got=opset,
            expected=f"{OLDEST_OPSET} to {onnx.defs.onnx_opset_version()}",
            fix="convert it with onnx.version_converter, or export it again",
        )
    for node in model.graph:
        if node.domain or not onnx.defs.has(node.op_type, opset, ""):
            raise ModelError(
                f"ONNX file {source}: unsupported operator "
                f"{(node.domain + '.') if node.domain else ''}{node.op_type} "
                f"at node {node.name or node.outputs[0].name!r}",
                expected=f"operators of ONNX's own opset {opset}",
                fix="export the model without custom operators",
            )
