"""A small float graph, what of it is quantized, and the images that it takes."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from vggdeploy import calib, preprocess

SIDE = 16
RECIPE = preprocess.Preprocess(size=(SIDE, SIDE), resize="stretch")


def graph() -> bytes:
    """A small float graph: convolution, Relu, pool, Flatten, Gemm."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(5)

    def array(name: str, *shape: int) -> Any:
        return numpy_helper.from_array(rng.normal(0, 0.3, shape).astype(np.float32), name)

    made = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "c.weight", "c.bias"], ["c"], "c", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["r"], "r"),
            helper.make_node("MaxPool", ["r"], ["p"], "p", kernel_shape=[2, 2], strides=[2, 2]),
            helper.make_node("Flatten", ["p"], ["f"], "f"),
            helper.make_node("Gemm", ["f", "g.weight", "g.bias"], ["scores"], "g", transB=1),
        ],
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 10])],
        [array("c.weight", 4, 3, 3, 3), array("c.bias", 4), array("g.weight", 10, 4 * 64),
         array("g.bias", 10)],
    )  # fmt: skip
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(onnx.shape_inference.infer_shapes(model).SerializeToString())


@functools.cache
def points() -> Any:
    """What of `graph` is quantized."""
    import onnx_ir

    return calib.place(onnx_ir.from_proto(proto(graph()))).points


def proto(content: bytes) -> Any:
    import onnx

    return onnx.load_from_string(content)
