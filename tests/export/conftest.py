"""Graphs as other exporters write them, with all their quirks, from one set of plain weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

FLOAT, INT64 = 1, 7  # onnx.TensorProto's
NHWC, NCHW = [0, 2, 3, 1], [0, 3, 1, 2]

VGG16 = (4, 4, "M", 4, 8, "M", 8, 8, 8, "M", 8, 16, 16, "M", 16, 16, 16, "M")
"""VGG16's thirteen convolutions and five pools, a thirtieth of the width."""


@dataclass(frozen=True)
class Plain:
    """A VGG network as numbers: ``c0.weight`` [out, in, 3, 3], ..., ``f0.weight`` [out, in], ...

    `features` holds widths and "M" for pools; `f0` reads channels first.
    """

    features: Sequence[int | str]
    size: int
    tensors: Mapping[str, np.ndarray]

    @property
    def classes(self) -> int:
        return self.tensors[f"f{self.products - 1}.bias"].size

    @property
    def products(self) -> int:
        return sum(name.startswith("f") and name.endswith(".bias") for name in self.tensors)

    @property
    def last(self) -> tuple[int, int]:
        """Channels and side of what the first product reads."""
        channels = [width for width in self.features if width != "M"][-1]
        return int(channels), self.size >> list(self.features).count("M")


@dataclass
class Writer:
    """Collects nodes and weights; every method gives the name of what it made."""

    nodes: list[Any] = field(default_factory=list)
    weights: list[Any] = field(default_factory=list)

    def weight(self, name: str, content: Any) -> str:
        from onnx import numpy_helper

        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(content), name))
        return name

    def node(self, operator: str, inputs: Sequence[str], out: str = "", **attributes: Any) -> str:
        from onnx import helper

        out = out or f"{operator}_{len(self.nodes)}:0"
        name = out.removesuffix(":0")
        self.nodes.append(helper.make_node(operator, list(inputs), [out], name, **attributes))
        return out

    def sizes(self, name: str, *values: int) -> str:
        return self.weight(name, np.array(values, np.int64))

    def model(self, image: tuple[str, Any], scores: tuple[str, Any], opset: int) -> Any:
        from onnx import helper

        graph = helper.make_graph(
            self.nodes,
            "graph",
            [helper.make_tensor_value_info(image[0], FLOAT, image[1])],
            [helper.make_tensor_value_info(scores[0], FLOAT, scores[1])],
            self.weights,
        )
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8
        )


def tf2onnx(plain: Plain) -> Any:
    """NHWC; padding by rule; BatchNorm's leftovers in three spellings; weights behind Transpose and Identity; the
    flattened shape computed in int32; MatMul and Add; Softmax. Opset 13."""
    w, rng = Writer(), np.random.default_rng(11)
    x = w.node("Transpose", ["input_1:0"], perm=NCHW)
    index = 0
    for width in plain.features:
        if width == "M":
            x = w.node("MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2], auto_pad="VALID")
            continue
        weight, bias = (plain.tensors[f"c{index}.{part}"] for part in ("weight", "bias"))
        base = f"block_conv{index}"
        scale = rng.uniform(0.5, 2, len(bias)).astype(np.float32)
        kind = index % 3
        if kind != 1:  # what is multiplied afterwards is divided out of the weights
            weight = weight / scale.reshape(-1, 1, 1, 1)
        if kind == 0:
            stored = w.weight(f"{base}/kernel:0", weight.transpose(2, 3, 1, 0))
            kernel = w.node("Transpose", [stored], perm=[3, 2, 0, 1])
        else:
            kernel = w.node("Identity", [w.weight(f"{base}/kernel:0", weight)])
        if kind == 2:
            # A bias of the convolution's own, and a division.
            shift = rng.normal(0, 1, len(bias)).astype(np.float32)
            own = w.weight(f"{base}/bias:0", bias / scale + shift)
            x = w.node("Conv", [x, kernel, own], pads=[1, 1, 1, 1])
            x = w.node("Sub", [x, w.weight(f"{base}/mean", shift.reshape(-1, 1, 1))])
            x = w.node("Div", [x, w.weight(f"{base}/dev", (1 / scale).reshape(-1, 1, 1))])
            x = w.node("Relu", [x])
        else:
            x = w.node("Conv", [x, kernel], auto_pad="SAME_UPPER")
        if kind == 0:
            x = w.node("Mul", [w.weight(f"{base}/scale", scale.reshape(1, -1, 1, 1)), x])
            x = w.node("Add", [x, w.weight(f"{base}/shift", bias.reshape(1, -1, 1, 1))])
            x = w.node("Relu", [x])
        elif kind == 1:
            x = w.node("Transpose", [x], perm=NHWC)
            x = w.node("Add", [x, w.weight(f"{base}/bias:0", bias)])
            x = w.node("Relu", [x])
            x = w.node("Transpose", [x], perm=NCHW)
        index += 1
    x = w.node("Transpose", [x], perm=NHWC)
    sides = w.node("Cast", [w.node("Shape", [x])], to=6)
    ends = [w.sizes("starts", 0), w.sizes("ends", 1), w.sizes("axes", 0)]
    batch = w.node("Squeeze", [w.node("Slice", [sides, *ends]), w.sizes("squeezed", 0)])
    batch = w.node("Unsqueeze", [batch, w.sizes("unsqueezed", 0)])
    target = w.node("Concat", [batch, w.weight("rest", np.array([-1], np.int32))], axis=0)
    x = w.node("Reshape", [x, w.node("Cast", [target], to=INT64)])
    channels, side = plain.last
    for product in range(plain.products):
        weight, bias = (plain.tensors[f"f{product}.{part}"] for part in ("weight", "bias"))
        if product == 0:
            weight = weight.reshape(-1, channels, side, side).transpose(0, 2, 3, 1)
            weight = weight.reshape(len(bias), -1)
        x = w.node("MatMul", [x, w.weight(f"fc{product}/kernel:0", weight.T)])
        x = w.node("Add", [x, w.weight(f"fc{product}/bias:0", bias)])
        if product < plain.products - 1:
            x = w.node("Relu", [x])
    w.node("Softmax", [x], "Identity:0", axis=-1)
    return w.model(
        ("input_1:0", ["unk__123", plain.size, plain.size, 3]),
        ("Identity:0", ["unk__124", plain.classes]),
        13,
    )


def torch_old(plain: Plain) -> Any:
    """NCHW of a fixed opset 11: weights among the inputs, Dropout with a ratio, Shape, Gather,
    Unsqueeze and Concat in front of a Reshape, Gemm with transB, Softmax of two axes or more."""
    from onnx import helper, numpy_helper

    w = Writer()
    x, index = "input.1", 0
    for width in plain.features:
        if width == "M":
            x = w.node("MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2], pads=[0, 0, 0, 0])
            continue
        weight, bias = (w.weight(f"features.{index}.{part}", plain.tensors[f"c{index}.{part}"])
                        for part in ("weight", "bias"))  # fmt: skip
        x = w.node("Relu", [w.node("Conv", [x, weight, bias], pads=[1, 1, 1, 1])])
        index += 1
    x = w.node("AveragePool", [x], kernel_shape=[1, 1], strides=[1, 1])
    zero = numpy_helper.from_array(np.array(0, np.int64))
    w.nodes.append(helper.make_node("Constant", [], ["zero"], value=zero))
    batch = w.node("Gather", [w.node("Shape", [x]), "zero"], axis=0)
    batch = w.node("Unsqueeze", [batch], axes=[0])
    x = w.node("Reshape", [x, w.node("Concat", [batch, w.sizes("rest", -1)], axis=0)])
    for product in range(plain.products):
        weight, bias = (w.weight(f"classifier.{product}.{part}", plain.tensors[f"f{product}.{part}"])
                        for part in ("weight", "bias"))  # fmt: skip
        last = product == plain.products - 1
        x = w.node("Gemm", [x, weight, bias], transB=1)
        if not last:
            x = w.node("Dropout", [w.node("Relu", [x])], ratio=0.5)
    w.node("Softmax", [x], "output", axis=1)
    model = w.model(
        ("input.1", ["batch_size", 3, plain.size, plain.size]), ("output", None), 11
    )  # no shape at all for the output
    for tensor in w.weights:
        info = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        model.graph.input.append(info)
    return model


def keras(plain: Plain) -> Any:
    """NHWC of a batch called "?": Pad, in both orders, in front of a Conv without padding and of pools,
    ReLU6, the mean over NHWC's own axes, one product; no Softmax. Opset 15."""
    w = Writer()
    x = w.node("Transpose", ["image"], perm=NCHW)
    index = 0
    around = w.sizes("around", 0, 0, 1, 1, 0, 0, 1, 1)
    amid = w.sizes("amid", 0, 1, 1, 0, 0, 1, 1, 0)
    nothing = w.weight("nothing", np.float32(0))
    bounds = nothing, w.weight("six", np.float32(6))
    for width in plain.features:
        if width == "M":
            x = w.node("Pad", [x, around, nothing])
            x = w.node("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2])
            continue
        weight, bias = (w.weight(f"conv{index}.{part}", plain.tensors[f"c{index}.{part}"])
                        for part in ("weight", "bias"))  # fmt: skip
        if index % 2:
            x = w.node("Pad", [w.node("Transpose", [x], perm=NHWC), amid], mode="constant")
            x = w.node("Transpose", [x], perm=NCHW)
        else:
            x = w.node("Pad", [x, around], mode="constant")
        x = w.node("Conv", [x, weight, bias], auto_pad="VALID")
        x = w.node("Clip", [x, *bounds]) if index % 2 else w.node("Relu", [x])
        index += 1
    x = w.node("Transpose", [x], perm=NHWC)
    x = w.node("ReduceMean", [x], axes=[1, 2], keepdims=0)
    last = plain.products - 1
    weight = plain.tensors[f"f{last}.weight"]
    channels = plain.last[0]
    weight = np.resize(weight, (len(weight), channels)) / 2
    x = w.node("MatMul", [x, w.weight("top/kernel", weight.T)])
    w.node("Add", [w.weight("top/bias", plain.tensors[f"f{last}.bias"]), x], "scores")
    return w.model(
        ("image", ["?", plain.size, plain.size, 3]), ("scores", ["?", plain.classes]), 15
    )


STYLES: dict[str, Callable[[Plain], Any]] = {
    "tf2onnx": tf2onnx,
    "torch_old": torch_old,
    "keras": keras,
}


def random_plain(
    features: Sequence[int | str] = VGG16, size: int = 64, classes: int = 10, seed: int = 3
) -> Plain:
    """Random weights of He's variance, so that activations keep theirs."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}

    def layer(name: str, *shape: int) -> None:
        spread = np.sqrt(2 / np.prod(shape[1:]))
        tensors[f"{name}.weight"] = rng.normal(0, spread, shape).astype(np.float32)
        tensors[f"{name}.bias"] = rng.normal(0, 0.1, shape[0]).astype(np.float32)

    before = 3
    for index, width in enumerate(width for width in features if width != "M"):
        layer(f"c{index}", int(width), before, 3, 3)
        before = int(width)
    side = size >> list(features).count("M")
    widths = [before * side * side, 24, 24, classes]
    for index in range(3):
        layer(f"f{index}", widths[index + 1], widths[index])
    return Plain(features, size, tensors)


@pytest.fixture(scope="session")
def plain_network() -> type[Plain]:
    """The class of networks that `foreign` writes."""
    return Plain


@pytest.fixture(scope="session")
def foreign() -> Callable[..., Any]:
    """Makes an onnx.ModelProto in a style of `STYLES`, of a small random VGG16 or another one."""
    pytest.importorskip("onnx")

    def make(style: str, plain: Plain | None = None, **changes: Any) -> Any:
        return STYLES[style](plain or random_plain(**changes))

    return make


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Writes a model, weights inside or in a file beside it, and gives its place."""
    onnx = pytest.importorskip("onnx")

    def write(model: Any, *, external: bool = False) -> Path:
        folder = tmp_path / "in"
        folder.mkdir(exist_ok=True)
        path = folder / "foreign.onnx"
        beside = {"save_as_external_data": True, "location": "weights.bin"} if external else {}
        copy = onnx.ModelProto()  # which saving may change
        copy.CopyFrom(model)
        onnx.save(copy, path, **beside)
        return path

    return write


@pytest.fixture
def taken(tmp_path: Path, save: Callable[..., Path]) -> Callable[..., Path]:
    """Writes a model and takes it in."""
    from vggdeploy.export import adopt

    def take(model: Any, **how: Any) -> Path:
        (tmp_path / "out").mkdir(exist_ok=True)
        return adopt(save(model, **how), tmp_path / "out")

    return take
