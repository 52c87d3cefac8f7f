"""Graphs that cannot be taken in: each named, with what would mend it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from compared import SHORT, nodes_of

from vggdeploy.errors import ModelError

onnx = pytest.importorskip("onnx")
helper, numpy_helper = pytest.importorskip("onnx.helper"), pytest.importorskip("onnx.numpy_helper")

from vggdeploy.export import adopt, inspect  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Foreign = Callable[..., Any]
    Save = Callable[..., Path]


def refused(model: Any, save: Save, tmp_path: Path, words: str) -> None:
    path = save(model)
    for take in (inspect, lambda path: adopt(path, tmp_path)):
        with pytest.raises(ModelError, match=words) as caught:
            take(path)
        assert "\n" not in str(caught.value)
        assert " -- " in str(caught.value)


@pytest.mark.parametrize("operator", ["QuantizeLinear", "DequantizeLinear", "QLinearConv"])
def test_quantized_graph_is_refused(
    foreign: Foreign, save: Save, tmp_path: Path, operator: str
) -> None:
    model = foreign("torch_old", features=SHORT, size=16)
    nodes_of(model, "Relu")[0].op_type = operator
    refused(model, save, tmp_path, "quantized already.*that it was quantized from")


def test_image_of_unknown_size_is_refused(foreign: Foreign, save: Save, tmp_path: Path) -> None:
    model = foreign("tf2onnx", features=SHORT, size=16)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "height"
    words = r"'input_1:0' has no usable shape: got \[\?, \?, 16, 3\].*fixed image sizes"
    refused(model, save, tmp_path, words)


def test_image_of_integers_is_refused(foreign: Foreign, save: Save, tmp_path: Path) -> None:
    model = foreign("tf2onnx", features=SHORT, size=16)
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    refused(model, save, tmp_path, "'input_1:0' is of another type: got uint8, expected float32")


def test_data_of_a_constant_node_outside_of_the_folder_is_refused(
    foreign: Foreign, save: Save, tmp_path: Path
) -> None:
    model = foreign("torch_old", features=SHORT, size=16)
    tensor = onnx.TensorProto(name="secret", data_type=1, dims=[4], data_location=1)
    tensor.external_data.add(key="location", value="../secret")
    (tmp_path / "secret").write_bytes(bytes(16))
    model.graph.node.insert(0, helper.make_node("Constant", [], ["secret"], value=tensor))
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "foreign.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="outside of its folder"):
        inspect(folder / "foreign.onnx")


def test_infinite_weight_is_named(
    foreign: Foreign, taken: Callable[..., Path], tmp_path: Path
) -> None:
    model = foreign("tf2onnx", features=SHORT, size=16)
    tensor = next(t for t in model.graph.initializer if t.name == "fc1/kernel:0")
    content = numpy_helper.to_array(tensor).copy()
    content[0, 0] = np.inf
    tensor.CopyFrom(numpy_helper.from_array(content, tensor.name))
    with pytest.raises(ModelError, match=re.escape("'fc1/kernel:0' holds NaN or infinity")):
        taken(model)
