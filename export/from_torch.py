"""Export the reference module to ONNX with torch's dynamo exporter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vggdeploy import graphs, reference
from vggdeploy.errors import missing_package
from vggdeploy.export.clean import clean

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from vggdeploy.topology import Network

INPUT, OUTPUT = "image", "logits"


def export(module: torch.nn.Module, network: Network, out_dir: Path) -> Path:
    """Write ``model.onnx`` and ``model.onnx.data``: input ``image`` [batch, 3, H, W], float32,
    output ``logits`` [batch, classes].

    BatchNorm is folded into the module's convolutions on the way. Weights go from the module's own
    storage to the file, without a copy of the whole model in between.

    Raises:
        MissingError: when torch or its exporter's packages are not installed.
        ModelError: when the exported graph does not pass ONNX's checker.
    """
    try:
        import onnxscript  # noqa: F401  # torch's exporter imports it late, with a longer error
        import torch
    except ImportError as error:
        raise missing_package(error.name or "onnxscript", "export", "the ONNX export") from error

    reference.fold_batchnorm(module)
    # Two images, since a batch of one would be taken for a constant.
    example = torch.zeros(2, *network.input)
    with graphs.quiet("torch.onnx"):
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            verbose=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    assert program is not None
    path = out_dir / "model.onnx"
    graphs.write(clean(program.model), path, external=True)
    # The exporter's own caches outlive the program; without this they would keep the weights too.
    for value in program.model.graph.initializers.values():
        value.const_value = None
    graphs.check(path)
    return path
