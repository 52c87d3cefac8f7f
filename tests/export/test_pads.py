"""Padding by rule becomes numbers, and a Pad the padding of what reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from compared import SHORT, assert_same, kinds, nodes_of, run

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
helper, numpy_helper = pytest.importorskip("onnx.helper"), pytest.importorskip("onnx.numpy_helper")

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RULES = ("SAME_UPPER", "SAME_LOWER", "VALID")


def layer(operator: str, rule: str, kernel: int, stride: int, side: int, **more: Any) -> Any:
    """One layer that pads by rule, and a mean and a product behind it."""
    rng = np.random.default_rng(3)
    weights = {"w": rng.normal(size=(4, 3, kernel, kernel)), "m": rng.normal(size=(4, 5))}
    if operator != "Conv":
        weights["m"] = rng.normal(size=(3, 5))
    own = {"auto_pad": rule, "kernel_shape": [kernel] * 2, "strides": [stride] * 2, **more}
    nodes = [
        helper.make_node(
            operator, ["image", "w"] if operator == "Conv" else ["image"], ["x"], **own
        ),
        # Corners weigh as much as all the rest does, so that a shifted window shows.
        helper.make_node("ReduceMax", ["x"], ["top"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["top", "m"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["N", 3, side, side])],
        [helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, ["N", 5])],
        [
            numpy_helper.from_array(array.astype(np.float32), name)
            for name, array in weights.items()
            if name == "m" or operator == "Conv"
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize(("kernel", "stride", "side"), [
    (3, 1, 8), (2, 1, 8), (4, 1, 7), (3, 2, 8), (3, 2, 7), (2, 2, 7), (2, 3, 8), (5, 3, 9),
])  # fmt: skip
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("operator", ["Conv", "MaxPool", "AveragePool"])
def test_a_rule_is_spelled_out(
    operator: str, rule: str, kernel: int, stride: int, side: int, taken: Callable[..., Path]
) -> None:
    model = layer(operator, rule, kernel, stride, side)
    adopted = taken(model)
    attributes = {a.name: a for a in nodes_of(onnx.load(adopted), operator)[0].attribute}
    assert "auto_pad" not in attributes
    fits = (kernel, stride, side) == (2, 3, 8)  # three windows of two, three apart
    assert any(attributes["pads"].ints) == (rule != "VALID" and not fits)
    assert_same(model, adopted)


@pytest.mark.parametrize(("side", "pads"), [(9, [2, 2, 2, 2]), (2, [2, 2, 2, 2])])
def test_dilation_counts(side: int, pads: list[int], taken: Callable[..., Path]) -> None:
    """Which onnxruntime does not run by rule."""
    adopted = taken(layer("Conv", "SAME_UPPER", 3, 1, side, dilations=[2, 2]))
    (node,) = nodes_of(onnx.load(adopted), "Conv")
    assert {a.name: list(a.ints) for a in node.attribute}["pads"] == pads
    assert run(adopted).shape == (3, 5)


def test_a_rule_beside_ceil_mode_is_left_alone(taken: Callable[..., Path]) -> None:
    """By numbers there would be a window more."""
    adopted = taken(layer("MaxPool", "SAME_UPPER", 1, 2, 6, ceil_mode=1))
    (node,) = nodes_of(onnx.load(adopted), "MaxPool")
    assert "auto_pad" in [a.name for a in node.attribute]


def test_pad_in_front_of_a_pool_with_ceil_mode_stays(
    foreign: Callable[..., Any], taken: Callable[..., Path]
) -> None:
    """A window that begins in the pad counts for a Pad and not for a pool's own padding."""
    model = foreign("keras", features=SHORT, size=16)
    for pool in nodes_of(model, "MaxPool"):
        pool.attribute.append(helper.make_attribute("ceil_mode", 1))
    adopted = taken(model)
    assert kinds(adopted)["Pad"] == len(nodes_of(model, "MaxPool"))
    assert_same(model, adopted)


@pytest.mark.parametrize("signed", [False, True])
def test_pad_in_front_of_a_pool_is_the_pools_where_nothing_is_negative(
    foreign: Callable[..., Any], taken: Callable[..., Path], signed: bool
) -> None:
    model = foreign("keras", features=SHORT, size=16)
    if signed:
        relu = nodes_of(model, "Relu")[0]
        relu.op_type = "Tanh"
    adopted = taken(model)
    assert kinds(adopted)["Pad"] == int(signed)
    assert_same(model, adopted)
