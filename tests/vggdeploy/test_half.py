"""Whole graphs in half precision: what is no weight is carried by what it is for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from vggdeploy import graphs, half
from vggdeploy.errors import CalibrationError

onnx = pytest.importorskip("onnx")
helper = pytest.importorskip("onnx.helper")
numpy_helper = pytest.importorskip("onnx.numpy_helper")
reference = pytest.importorskip("onnx.reference")

if TYPE_CHECKING:
    from pathlib import Path

FLOAT = onnx.TensorProto.FLOAT
FARTHEST = np.finfo(np.float32).max
IMAGES = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)


def save(path: Path, filler: Any = 0.5, factor: float = 2.0) -> Path:
    """Conv, Clip, Pad, MaxPool, Resize, Mul, Add of a constant of a shape, mean, Gemm."""
    rng = np.random.default_rng(1)
    constants = {
        "w": rng.standard_normal((4, 3, 3, 3)).astype(np.float32),
        "low": np.float32(-FARTHEST),
        "high": np.float32(np.inf),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "never": np.float32(-np.inf),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "factor": np.float32(factor),
        "shape": np.array([1, 4, 1, 1]),
        "f": rng.standard_normal((5, 4)).astype(np.float32),
    }
    more = {} if filler is None else {"value": numpy_helper.from_array(np.float32([filler]), "v")}
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["c"], "c"),
        helper.make_node("Clip", ["c", "low", "high"], ["l"], "l"),
        helper.make_node("Pad", ["l", "pads", "never"], ["p"], "p"),
        helper.make_node("MaxPool", ["p"], ["m"], "m", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Resize", ["m", "", "scales"], ["r"], "r", mode="nearest"),
        helper.make_node("Mul", ["r", "factor"], ["t"], "t"),
        helper.make_node("ConstantOfShape", ["shape"], ["o"], "o", **more),
        helper.make_node("Add", ["t", "o"], ["a"], "a"),
        helper.make_node("GlobalAveragePool", ["a"], ["g"], "g"),
        helper.make_node("Flatten", ["g"], ["v"], "v"),
        helper.make_node("Gemm", ["v", "f"], ["scores"], "s", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("scores", FLOAT, ["N", 5])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def narrowed(path: Path) -> Any:
    """The graph at `path` in half precision, once ONNX's checker has passed it."""
    model = graphs.read(path)
    half.to_float16(model)
    model.graph.sort()
    out = path.with_name("half.onnx")
    graphs.write(model, out, external=False)
    graphs.check(out)
    return onnx.load(out)


def run(model: Any) -> np.ndarray:
    scores: np.ndarray = reference.ReferenceEvaluator(model).run(None, {"image": IMAGES})[0]
    return scores


@pytest.mark.parametrize("filler", [0.5, None])
def test_it_computes_the_same(filler: Any, tmp_path: Path) -> None:
    path = save(tmp_path / "float.onnx", filler)
    exact, found = run(onnx.load(path)), run(narrowed(path))
    assert found.dtype == np.float32
    # Eleven bits of each weight and each sum, which a few dozen products share.
    np.testing.assert_allclose(found, exact, rtol=0, atol=2**-8 * np.abs(exact).max())


def test_bounds_end_where_the_type_does_and_sizes_stay(tmp_path: Path) -> None:
    tensors = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in narrowed(save(tmp_path / "float.onnx")).graph.initializer
    }
    assert tensors["scales"].dtype == np.float32
    assert tensors["w"].dtype == np.float16
    ends = [float(tensors[name]) for name in ("low", "high", "never")]
    assert ends == [-65504, 65504, -65504]


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"factor": 1e5}, "factor does not fit"), ({"filler": 1e5}, "'o' does not fit")],
)
def test_what_is_no_bound_has_to_fit(changes: dict[str, float], words: str, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=rf"{words} float16: got 100000"):
        narrowed(save(tmp_path / "float.onnx", **changes))
