"""Clean an ONNX graph: what does nothing goes, what can be folded is folded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vggdeploy import graphs
from vggdeploy.export.fold import fold_affine
from vggdeploy.export.pads import fold_pads, spell_out_pads
from vggdeploy.export.transposes import sink_transposes

if TYPE_CHECKING:
    import onnx_ir as ir


def clean(model: ir.Model) -> ir.Model:
    """Remove what does nothing and what is not the network: exporter notes, identities, dropout,
    1x1 average pools, unused nodes, transposes that undo each other; fold BatchNorm and other
    affine maps, and pads. The model is edited and returned."""
    import onnx_ir.passes.common as passes

    tidy(model)
    for node in list(model.graph):
        if _does_nothing(node):
            graphs.bypass(model.graph, node)
    passes.IdentityEliminationPass()(model)
    spell_out_pads(model)
    sink_transposes(model)
    fold_affine(model)
    fold_pads(model)
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


_LONE_INITIALIZERS = 4
"""The first IR version of ONNX that has initializers which are no inputs."""


def tidy(model: ir.Model) -> None:
    """Let every constant be an initializer, and no initializer an input."""
    import onnx_ir.passes.common as passes

    model.ir_version = max(model.ir_version, _LONE_INITIALIZERS)
    passes.RemoveInitializersFromInputsPass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)


def _does_nothing(node: ir.Node) -> bool:
    if node.domain:
        return False
    if node.op_type in ("Identity", "Dropout"):
        return not any(output.uses() for output in node.outputs[1:])
    if node.op_type == "Cast":
        source = node.inputs[0]
        return source is not None and source.dtype == graphs.attribute(node, "to", None)
    if node.op_type == "AveragePool":
        sides = (
            tuple(graphs.attribute(node, "kernel_shape", ())),
            tuple(graphs.attribute(node, "strides", ())),
            tuple(graphs.attribute(node, "pads", ())),
        )
        return set(sides[0]) == {1} and set(sides[1]) <= {1} and set(sides[2]) <= {0}
    return False
