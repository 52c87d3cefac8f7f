"""The float64 executor against ONNX's own evaluator, operator by operator."""

from __future__ import annotations

from typing import Any

import float64
import numpy as np
import pytest

onnx, helper = pytest.importorskip("onnx"), pytest.importorskip("onnx.helper")
numpy_helper = pytest.importorskip("onnx.numpy_helper")
reference = pytest.importorskip("onnx.reference")
TensorProto = onnx.TensorProto

RNG = np.random.default_rng(5)
IMAGE = RNG.standard_normal((2, 4, 7, 9)).astype(np.float32)
MATRIX = RNG.standard_normal((3, 6)).astype(np.float32)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def model_of(
    operator: str,
    x: np.ndarray,
    constants: list[Any],
    attributes: dict[str, Any],
    kind: int = TensorProto.FLOAT,
    opset: int = 21,
) -> Any:
    """One node, `x` fed to its first input, constants to the others."""
    tensors = [
        c if isinstance(c, TensorProto) else numpy_helper.from_array(np.asarray(c), f"k{i}")
        for i, c in enumerate(constants)
    ]
    node = helper.make_node(operator, ["x", *(t.name for t in tensors)], ["y"], **attributes)
    fed = helper.np_dtype_to_tensor_dtype(x.dtype)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", fed, x.shape)],
        [helper.make_tensor_value_info("y", kind, None)],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def both(*args: Any, **kwargs: Any) -> tuple[np.ndarray, np.ndarray]:
    """What ONNX's evaluator makes of a node, and what the executor does."""
    model = model_of(*args, **kwargs)
    x = args[1]
    theirs = reference.ReferenceEvaluator(model).run(None, {"x": x})[0]
    return np.asarray(theirs), float64.Graph(model).run(x)["y"]


@pytest.mark.parametrize(
    ("operator", "x", "constants", "attributes"),
    [
        ("Conv", IMAGE, [normal(5, 4, 3, 3)], {}),
        ("Conv", IMAGE, [normal(5, 4, 3, 2), normal(5)], {"pads": [1, 0, 2, 1]}),
        ("Conv", IMAGE, [normal(5, 4, 3, 3)], {"strides": [2, 3], "pads": [1, 1, 1, 1]}),
        ("Conv", IMAGE, [normal(5, 4, 2, 3)], {"dilations": [2, 3]}),
        ("Conv", IMAGE, [normal(6, 2, 3, 3), normal(6)], {"group": 2}),
        ("Conv", IMAGE, [normal(4, 1, 3, 3)], {"group": 4, "pads": [1, 1, 1, 1]}),
        ("Relu", IMAGE, [], {}),
        ("MaxPool", IMAGE, [], {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("MaxPool", IMAGE, [], {"kernel_shape": [2, 3], "strides": [2, 2], "ceil_mode": 1}),
        ("MaxPool", IMAGE, [], {"kernel_shape": [3, 3], "strides": [2, 1], "pads": [1, 0, 1, 1]}),
        ("MaxPool", IMAGE, [], {"kernel_shape": [3, 2], "dilations": [2, 3]}),
        ("AveragePool", IMAGE, [], {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("AveragePool", IMAGE, [], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
        (
            "AveragePool",
            IMAGE,
            [],
            {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1},
        ),
        ("AveragePool", IMAGE, [], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
        ("GlobalAveragePool", IMAGE, [], {}),
        ("GlobalMaxPool", IMAGE, [], {}),
        ("Gemm", MATRIX, [normal(6, 5)], {}),
        ("Gemm", MATRIX, [normal(5, 6), normal(5)], {"transB": 1}),
        ("Gemm", MATRIX.T, [normal(6, 5), normal(3, 1)], {"transA": 1, "beta": 0.5}),
        ("Gemm", MATRIX, [normal(6, 5), normal(1, 5)], {"alpha": -2.0, "beta": 3.0}),
        ("MatMul", MATRIX, [normal(6, 5)], {}),
        ("Add", IMAGE, [normal(4, 1, 1)], {}),
        ("Mul", IMAGE, [normal(9)], {}),
        ("Div", IMAGE, [np.float32(0.3)], {}),
        ("Floor", IMAGE * 3, [], {}),
        ("Clip", IMAGE, [np.float32(-0.5), np.float32(0.7)], {}),
        ("Reshape", IMAGE, [np.array([2, -1, 9])], {}),
        ("Reshape", IMAGE, [np.array([0, -1])], {}),
        ("Flatten", IMAGE, [], {}),
        ("Flatten", IMAGE, [], {"axis": 0}),
        ("Flatten", IMAGE, [], {"axis": -1}),
        ("Transpose", IMAGE, [], {"perm": [0, 2, 3, 1]}),
        ("Transpose", MATRIX, [], {}),
        ("Softmax", IMAGE, [], {}),
        ("Softmax", IMAGE, [], {"axis": 1}),
        ("Identity", IMAGE, [], {}),
        ("Squeeze", IMAGE[:1, :, :1], [np.array([0, 2])], {}),
        ("Squeeze", IMAGE[:1], [], {}),
        ("Unsqueeze", MATRIX, [np.array([0, 3])], {}),
    ],
)
def test_operator(
    operator: str, x: np.ndarray, constants: list[np.ndarray], attributes: dict[str, Any]
) -> None:
    theirs, mine = both(operator, np.ascontiguousarray(x), constants, attributes)
    assert mine.dtype == np.float64
    assert mine.shape == theirs.shape
    # Theirs is in float32: a sum of up to 36 products of size 1.
    np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=2e-5)


def test_float64_is_carried() -> None:
    """A sum that float32 cannot hold."""
    x = np.array([[1.0, 2.0**-40]], np.float32)
    model = model_of("MatMul", x, [np.ones((2, 1), np.float32)], {})
    assert float64.Graph(model).run(x)["y"][0, 0] == 1 + 2.0**-40


TIES = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 0.4999, 1000, -1000, 0], np.float32)[None]


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16])
@pytest.mark.parametrize("zero", [0, 3])
def test_quantize_linear(dtype: type, zero: int) -> None:
    constants = [np.float32(0.25), np.array(zero, dtype)]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    theirs, mine = both("QuantizeLinear", TIES * 0.25, constants, {}, kind)
    np.testing.assert_array_equal(mine, theirs)


def test_ties_go_to_the_even_neighbour() -> None:
    constants = [np.float32(1), np.array(0, np.int8)]
    _, mine = both("QuantizeLinear", TIES, constants, {}, TensorProto.INT8)
    assert mine[0].tolist() == [-2, -2, 0, 0, 2, 2, 0, 127, -128, 0]


def test_quantize_linear_without_zero_point_is_uint8() -> None:
    theirs, mine = both("QuantizeLinear", TIES, [np.float32(0.5)], {}, TensorProto.UINT8)
    np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("axis", [1, 2, -1])
def test_quantize_linear_per_axis(axis: int) -> None:
    scales = np.linspace(0.01, 0.1, IMAGE.shape[axis]).astype(np.float32)
    zeros = (np.arange(len(scales)) - 2).astype(np.int8)
    theirs, mine = both("QuantizeLinear", IMAGE, [scales, zeros], {"axis": axis}, TensorProto.INT8)
    np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("zero", [0, 7])
def test_dequantize_linear(zero: int) -> None:
    q = RNG.integers(0, 256, (3, 5)).astype(np.uint8)
    theirs, mine = both("DequantizeLinear", q, [np.float32(0.3), np.uint8(zero)], {})
    np.testing.assert_allclose(mine, theirs, rtol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_dequantize_linear_per_axis(axis: int) -> None:
    q = RNG.integers(-128, 128, (4, 5, 6)).astype(np.int8)
    scales = normal(q.shape[axis])
    theirs, mine = both("DequantizeLinear", q, [scales], {"axis": axis})
    np.testing.assert_allclose(mine, theirs, rtol=1e-6)


@pytest.mark.parametrize(("axis", "block", "shape"), [(1, 3, (4, 2)), (0, 2, (2, 6))])
def test_dequantize_linear_in_blocks(axis: int, block: int, shape: tuple[int, int]) -> None:
    q = RNG.integers(-128, 128, (4, 6)).astype(np.int8)
    attributes = {"axis": axis, "block_size": block}
    theirs, mine = both("DequantizeLinear", q, [normal(*shape)], attributes)
    np.testing.assert_allclose(mine, theirs, rtol=1e-6)


def test_last_block_may_be_short() -> None:
    """By hand: blocks of 4 along 6 columns."""
    scales = float64.spread(np.array([[1.0, 2.0]]), (1, 6), {"axis": 1, "block_size": 4})
    assert scales.tolist() == [[1, 1, 1, 1, 2, 2]]


def test_four_bit_weights_in_blocks() -> None:
    q = np.arange(-8, 8).reshape(2, 8)
    scales = np.array([[0.5, 1.0], [2.0, 4.0]], np.float32)
    weights = helper.make_tensor("q", TensorProto.INT4, q.shape, q.ravel())
    node = helper.make_node("DequantizeLinear", ["q", "s"], ["w"], axis=1, block_size=4)
    graph = helper.make_graph(
        [node, helper.make_node("Add", ["x", "w"], ["y"])],
        "four bits",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, q.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, q.shape)],
        [weights, numpy_helper.from_array(scales, "s")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    x = np.zeros(q.shape, np.float32)
    mine = float64.Graph(model).run(x)["y"]
    np.testing.assert_array_equal(mine, q * np.repeat(scales, 4, 1))
    np.testing.assert_array_equal(mine, reference.ReferenceEvaluator(model).run(None, {"x": x})[0])


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE])
def test_cast_between_floats_changes_no_value(kind: int) -> None:
    _, mine = both("Cast", IMAGE, [], {"to": kind}, kind)
    np.testing.assert_array_equal(mine, IMAGE.astype(np.float64))


def test_cast_to_integers_and_back() -> None:
    x = np.array([[-2.7, -0.5, 0.5, 3.9]], np.float32)
    theirs, mine = both("Cast", x, [], {"to": TensorProto.INT8}, TensorProto.INT8)
    np.testing.assert_array_equal(mine, theirs)
    assert mine.dtype == np.int64
    back, again = both(
        "Cast", mine.astype(np.int8), [], {"to": TensorProto.FLOAT}, TensorProto.FLOAT
    )
    np.testing.assert_array_equal(again, back)
    assert again.dtype == np.float64


def test_max_pool_of_integers_stays_integers() -> None:
    q = RNG.integers(-128, 0, (1, 2, 5, 5)).astype(np.int8)
    attributes = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}
    model = model_of("MaxPool", q, [], attributes, TensorProto.INT8)
    mine = float64.Graph(model).run(q)["y"]
    assert mine.dtype == np.int64
    # All below 0: padding with 0 would show.
    assert mine.max() < 0
    np.testing.assert_array_equal(mine, reference.ReferenceEvaluator(model).run(None, {"x": q})[0])


def test_unknown_operator_is_named() -> None:
    with pytest.raises(NotImplementedError, match="Sigmoid"):
        both("Sigmoid", IMAGE, [], {})
