"""Older operator sets carried to newer ones: ONNX's own reference computes the same of both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from vggdeploy import opsets
from vggdeploy.errors import ModelError

onnx = pytest.importorskip("onnx")
onnx_ir = pytest.importorskip("onnx_ir")
helper = pytest.importorskip("onnx.helper")
reference = pytest.importorskip("onnx.reference")

if TYPE_CHECKING:
    from collections.abc import Sequence

X = np.random.default_rng(0).standard_normal((2, 1, 4, 3)).astype(np.float32)


def model(
    operator: str, opset: int, outputs: int = 1, image: np.ndarray = X, **attributes: Any
) -> Any:
    names = [f"y{index}" for index in range(outputs)]
    kind = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node(operator, ["x"], names, **attributes)],
        "one",
        [helper.make_tensor_value_info("x", kind, ["N", *image.shape[1:]])],
        [helper.make_tensor_value_info(name, kind, None) for name in names],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def upgraded(source: Any, version: int) -> Any:
    read = onnx_ir.from_proto(source)
    opsets.upgrade(read, version)
    result = onnx_ir.to_proto(read)
    onnx.shape_inference.infer_shapes(result, check_type=True, strict_mode=True)
    assert result.opset_import[0].version == version
    return result


def outputs(source: Any, image: np.ndarray = X) -> Sequence[np.ndarray]:
    found: Sequence[np.ndarray] = reference.ReferenceEvaluator(source).run(None, {"x": image})
    return found


@pytest.mark.parametrize("version", [13, 19])
@pytest.mark.parametrize(
    ("operator", "opset", "attributes"),
    [
        ("Squeeze", 11, {"axes": [1]}),
        ("Squeeze", 12, {}),
        ("Unsqueeze", 11, {"axes": [0, 5]}),
        ("ReduceSum", 11, {"axes": [2, 3], "keepdims": 0}),
        ("ReduceSum", 12, {}),
        ("ReduceMean", 11, {"axes": [-1]}),
        ("ReduceMax", 13, {"axes": [2], "keepdims": 0}),
        ("Split", 11, {"split": [1, 3], "axis": 2, "outputs": 2}),
        ("Split", 13, {"axis": 2, "outputs": 2}),
        ("Relu", 11, {}),
    ],
)
def test_means_the_same(
    operator: str, opset: int, attributes: dict[str, Any], version: int
) -> None:
    old = model(operator, opset, **attributes)
    for was, now in zip(outputs(old), outputs(upgraded(old, version)), strict=True):
        np.testing.assert_array_equal(was, now)


@pytest.mark.parametrize("axis", [None, 0, 1, 2, 3, -1, -2])
@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("image", [X, X[..., :1]], ids=["two sides", "one side"])
def test_softmax_over_what_used_to_be_one_axis(
    operator: str, axis: int | None, image: np.ndarray
) -> None:
    old = model(operator, 12, image=image, **({} if axis is None else {"axis": axis}))
    (found,) = outputs(upgraded(old, 13), image)
    first = 1 if axis is None else axis % 4
    flat = image.reshape(int(np.prod(image.shape[:first])), -1).astype(np.float64)
    grown = np.exp(flat - flat.max(1, keepdims=True))
    expected = (grown / grown.sum(1, keepdims=True)).reshape(image.shape)
    if operator == "LogSoftmax":
        expected = np.log(expected)
    # float32 keeps seven digits.
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_newer_graph_stays_as_it_is() -> None:
    read = onnx_ir.from_proto(model("Relu", 21))
    opsets.upgrade(read, 19)
    assert read.graph.opset_imports[""] == 21


def test_softmax_of_unknown_rank_is_refused() -> None:
    old = model("Softmax", 12)
    old.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(ModelError, match=r"Softmax 'y0' cannot be carried.*known rank"):
        opsets.upgrade(onnx_ir.from_proto(old), 13)
