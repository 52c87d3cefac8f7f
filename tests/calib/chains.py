"""Small chains of layers, written out node by node, for what is followed through a graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SIDE = 8
"""Of the image, ``[N, 3, SIDE, SIDE]``."""


class Chain:
    """Nodes one behind the other, each reading what the last one made."""

    def __init__(self, seed: int = 0, at: str = "image") -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.at = at

    def constant(self, name: str, array: NDArray[Any]) -> str:
        from onnx import numpy_helper

        if name not in [tensor.name for tensor in self.weights]:
            self.weights.append(numpy_helper.from_array(array, name))
        return name

    def floats(self, name: str, *shape: int) -> str:
        spread = np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.2
        return self.constant(name, self.rng.normal(0, spread, shape).astype(np.float32))

    def node(self, operator: str, name: str, *inputs: str, **attributes: Any) -> Chain:
        from onnx import helper

        self.nodes.append(
            helper.make_node(operator, [self.at, *inputs], [name], name, **attributes)
        )
        self.at = name
        return self

    def conv(
        self, name: str, width: int, inputs: int, weight: str = "", bias: bool = True, **more: Any
    ) -> Chain:
        """3x3 with one pixel of padding."""
        names = [self.floats(weight or f"{name}.weight", width, inputs, 3, 3)]
        names += [self.floats(f"{name}.bias", width)] if bias else []
        return self.node("Conv", name, *names, pads=[1, 1, 1, 1], **more)

    def relu(self, name: str) -> Chain:
        return self.node("Relu", name)

    def pool(self, name: str) -> Chain:
        return self.node("MaxPool", name, kernel_shape=[2, 2], strides=[2, 2])

    def reshape(self, name: str, size: int) -> Chain:
        return self.node("Reshape", name, self.constant(f"{name}.shape", np.array([-1, size])))

    def gemm(self, name: str, width: int, inputs: int, *, rows: bool, bias: bool = True) -> Chain:
        shape = (width, inputs) if rows else (inputs, width)
        names = [self.floats(f"{name}.weight", *shape)]
        names += [self.floats(f"{name}.bias", width)] if bias else []
        return self.node("Gemm", name, *names, transB=int(rows))

    def model(self, classes: int) -> Any:
        """The chain from image to scores, shapes inferred."""
        import onnx
        from onnx import helper

        kind = onnx.TensorProto.FLOAT
        self.nodes[-1].output[0] = "scores"
        graph = helper.make_graph(
            self.nodes,
            "chain",
            [helper.make_tensor_value_info("image", kind, ["N", 3, SIDE, SIDE])],
            [helper.make_tensor_value_info("scores", kind, ["N", classes])],
            self.weights,
        )
        opset = [helper.make_opsetid("", 17)]
        return onnx.shape_inference.infer_shapes(
            helper.make_model(graph, opset_imports=opset, ir_version=9)
        )

    def save(self, path: Path, classes: int = 4) -> Path:
        import onnx

        onnx.save(self.model(classes), path)
        return path


def convolutions(bias: bool = True) -> Chain:
    """Conv, Relu, MaxPool, Conv, Relu, mean, Gemm."""
    chain = Chain().conv("c0", 6, 3, bias=bias).relu("r0").pool("p0").conv("c1", 5, 6).relu("r1")
    return _ended(chain, 5)


def flattened(rows: bool, flatten: bool = False) -> Chain:
    """Conv, Relu, MaxPool, Reshape or Flatten, Gemm."""
    chain = Chain(1).conv("c0", 6, 3).relu("r0").pool("p0")
    chain = chain.node("Flatten", "flat") if flatten else chain.reshape("flat", 6 * 16)
    return chain.gemm("f0", 4, 6 * 16, rows=rows)


def channels_last(rows: bool) -> Chain:
    """Conv, Relu, MaxPool, Transpose, Reshape, Gemm, as a graph that was NHWC has it."""
    chain = (
        Chain(2).conv("c0", 6, 3).relu("r0").pool("p0").node("Transpose", "t", perm=[0, 2, 3, 1])
    )
    return chain.reshape("flat", 16 * 6).gemm("f0", 4, 16 * 6, rows=rows)


def long(bias: bool = True) -> Chain:
    """Two convolutions between pools, so that one is rescaled on both its sides, and a Gemm."""
    chain = Chain(3).conv("c0", 6, 3, bias=bias).relu("r0").pool("p0")
    chain = chain.conv("c1", 5, 6, bias=bias).relu("r1").pool("p1").reshape("flat", 5 * 4)
    return chain.gemm("f0", 4, 20, rows=True)


CHAINS = {
    "convolutions": convolutions,
    "no bias": lambda: convolutions(bias=False),
    "reshape, rows": lambda: flattened(rows=True),
    "reshape, columns": lambda: flattened(rows=False),
    "flatten, rows": lambda: flattened(rows=True, flatten=True),
    "channels last, rows": lambda: channels_last(rows=True),
    "channels last, columns": lambda: channels_last(rows=False),
    "long": long,
    "long, no bias": lambda: long(bias=False),
}
"""Chains whose ReLUs behind convolutions can be rescaled, all of them."""


def shared_weight() -> Chain:
    """Two convolutions of one weight."""
    chain = Chain(4).conv("c0", 3, 3, weight="w").relu("r0").conv("c1", 3, 3, weight="w").relu("r1")
    return _ended(chain, 3)


def shared_bias() -> Chain:
    """Two convolutions of one bias."""
    chain = Chain(5)
    bias = chain.floats("b", 3)
    for name in ("c0", "c1"):
        weight = chain.floats(f"{name}.weight", 3, 3, 3, 3)
        chain.node("Conv", name, weight, bias, pads=[1, 1, 1, 1]).relu(f"r{name[1]}")
    return _ended(chain, 3)


def branch(behind: str) -> Chain:
    """A tensor that is read once more, in float: the ReLU's output, or what it reads."""
    chain = Chain(6).conv("c0", 6, 3).relu("r0").conv("c1", 6, 6)
    chain.nodes[-1].input[0] = "r0"
    chain.node("Add", "sum", behind)
    return _ended(chain, 6)


def grouped() -> Chain:
    """A convolution in groups behind the ReLU."""
    chain = Chain(7).conv("c0", 6, 3).relu("r0")
    chain.node("Conv", "c1", chain.floats("c1.weight", 6, 3, 3, 3), pads=[1, 1, 1, 1], group=2)
    return _ended(chain, 6)


def clipped() -> Chain:
    """ReLU6, which a factor does not pass."""
    chain = Chain(8).conv("c0", 6, 3)
    low = chain.constant("low", np.float32(0))
    high = chain.constant("high", np.float32(6))
    return _ended(chain.node("Clip", "r0", low, high).conv("c1", 6, 6), 6)


def positions() -> Chain:
    """A matrix product along the last axis of a map, with as many outputs as the map has rows."""
    chain = Chain(11).conv("c0", 6, 3).relu("r").node("Transpose", "t", perm=[0, 2, 3, 1])
    chain.node("MatMul", "m0", chain.floats("m0.weight", 6, SIDE)).relu("r0")
    return chain.reshape("flat", SIDE**3).gemm("f0", 4, SIDE**3, rows=True)


def two_readers() -> Chain:
    """One ReLU's output read by two convolutions, whose outputs are added."""
    chain = Chain(9).conv("c0", 6, 3).relu("r0").conv("c1", 5, 6)
    chain.at = "r0"
    chain.conv("c2", 5, 6).node("Add", "sum", "c1")
    return _ended(chain, 5)


def product_and_convolution() -> Chain:
    """One ReLU's output read by a convolution and, flat, by a matrix product; outputs are added."""
    chain = Chain(10).conv("c0", 4, 3).relu("r0").conv("c1", 5, 4).relu("r1")
    chain.node("GlobalAveragePool", "mean").reshape("flat", 5).gemm("f0", 4, 5, rows=True)
    chain.at = "r0"
    chain.reshape("beside", 4 * SIDE * SIDE).gemm("f1", 4, 4 * SIDE * SIDE, rows=True)
    return chain.node("Add", "sum", "f0")


def _ended(chain: Chain, width: int) -> Chain:
    chain.node("GlobalAveragePool", "mean").reshape("flat", width)
    return chain.gemm("f0", 4, width, rows=True)
