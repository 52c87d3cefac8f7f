"""Small random VGG-like networks, as onnx.ModelProto, and what their quantized form must be."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import float64
import numpy as np
from hypothesis import strategies

from vggdeploy.calib import CalibrationTable, Statistics, calibrate, quantize
from vggdeploy.calib.histogram import Histogram
from vggdeploy.calib.table import Rescaled, TensorRange
from vggdeploy.contracts import CPU_WEIGHTS, DIALECTS, IntegerType

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from vggdeploy.contracts import Dialect

    Array = NDArray[Any]

FORMS = {
    "openvino": DIALECTS["openvino"],
    "openvino avx2": replace(DIALECTS["openvino"], weight=CPU_WEIGHTS["avx2"]),
    "tensorrt": DIALECTS["tensorrt"],
}
"""Every form that a Q/DQ graph is written in."""

IMAGE_STEP = 2.0**-5
"""The image holds multiples of half of it, so that with this scale every other pixel is a tie."""

TURNED = "chw"
"""An image with channels last, transposed: it is quantized in front of the Transpose."""

METHODS = ("minmax", "mse", "percentile")  # entropy chooses as these do, and takes its time
RANGES = (*METHODS, "clipped", "powers of two", "rescaled")
"""How thresholds are chosen: calibrated; six tenths of the largest, so that much saturates; or so
that every scale is a power of two; or of channels that are multiplied by powers of two where they
can be."""


@dataclass(frozen=True)
class Layer:
    """A convolution or a fully connected layer and what follows it.

    Attributes:
        width: output channels.
        form: of a fully connected layer: Gemm with transB, Gemm without, or MatMul.
        kernel, stride, pad: of a convolution.
        pool: behind a convolution.
        relu: whether a ReLU comes before the pool.
        gain: factor of the weights.
        outliers: whether a few weights are twenty times as large.
        dead: whether the last channel's weights are all zero.
    """

    width: int
    form: str = "Gemm transB"
    kernel: int = 3
    stride: int = 1
    pad: int = 1
    pool: str = ""
    relu: bool = True
    bias: bool = True
    gain: float = 1.0
    outliers: bool = False
    dead: bool = False


@dataclass(frozen=True)
class Network:
    """A stack of convolutions, a bridge, and a stack of fully connected layers."""

    convolutions: tuple[Layer, ...]
    connected: tuple[Layer, ...]
    side: int = 8
    bridge: str = "Flatten"
    channels_last: bool = False
    ranges: str = "minmax"
    seed: int = 0

    @property
    def skips_moved_values(self) -> bool:
        """Whether a 1x1 convolution with a stride reads what was moved in 8 bits: an image with
        channels last, or a max pool.

        OpenVINO 2026.4 takes the stride to the front of that and loses its place, with the pair in
        front, where it takes the pair by itself, as with the pair behind; behind a pool most runs
        of one and the same model are wrong, and some are right.
        """
        before = ["turned" if self.channels_last else "", *(c.pool for c in self.convolutions)]
        return any(
            moved and layer.kernel == 1 and layer.stride > 1
            for moved, layer in zip(before, self.convolutions, strict=False)
        )


@dataclass(frozen=True)
class Point:
    """A tensor that must be quantized, whether it can never be negative, whether a matrix product
    reads it, which some dialects leave in float, and whether it is the image, of both signs."""

    name: str
    nonnegative: bool
    product: bool
    image: bool

    def weights(self, dialect: Dialect) -> IntegerType:
        """The type of the weights that read it."""
        if self.product and isinstance(dialect.matrix, IntegerType):
            return dialect.matrix
        return dialect.image_weight if self.image else dialect.weight


@dataclass(frozen=True)
class Rescalable:
    """A ReLU's output whose channels can be multiplied, and the layers on its two sides.

    Attributes:
        point: the tensor.
        maker: the layer whose outputs are multiplied.
        reader: the layer whose inputs are divided.
        channels: of the tensor.
        places: of the reader's inputs that a channel has; 1 in front of a convolution.
    """

    point: str
    maker: str
    reader: str
    channels: int
    places: int


@dataclass(frozen=True)
class Built:
    """A network as a float graph.

    Attributes:
        model: the onnx.ModelProto, image ``[N, 3, side, side]`` or with channels last.
        tensors: the tensors that can be quantized, in order.
        between: outputs of the pools between a ReLU and the next layer with only reshaping beside
            them, and that layer's tensor.
        image: some images, values of both signs.
    """

    model: Any
    tensors: tuple[Point, ...]
    between: tuple[tuple[str, Point], ...]
    image: NDArray[np.float32]
    rescalable: tuple[Rescalable, ...] = ()

    def points(self, dialect: Dialect) -> tuple[Point, ...]:
        """The tensors that must be quantized."""
        return tuple(point for point in self.tensors if not (point.product and dialect.matrix))

    def pools(self, dialect: Dialect) -> set[str]:
        """Outputs of the pools that must run on 8 bits."""
        return {pool for pool, point in self.between if point in self.points(dialect)}


POOLS = {
    "2": {"kernel_shape": [2, 2], "strides": [2, 2]},
    "3 padded": {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    "3 ceil": {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
}


class _Builder:
    """Nodes and weights as they come, the tensor at hand, and where a pair would go for it."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.points: list[Point] = []
        self.between: list[tuple[str, Point]] = []
        self.passed: list[str] = []  # pools since the last activation
        self.at = "image"
        self.relu = ""  # the ReLU's output of which this tensor is a selection
        self.nonnegative = False

    def node(self, operator: str, out: str, *inputs: str, **attributes: Any) -> None:
        from onnx import helper

        self.nodes.append(helper.make_node(operator, [self.at, *inputs], [out], out, **attributes))
        self.at = out

    def constant(self, name: str, array: Array) -> str:
        from onnx import numpy_helper

        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def weighted(self, layer: Layer, name: str, shape: tuple[int, ...]) -> list[str]:
        """The point in front of a layer, and the names of its weight ``[width, ...]`` and bias."""
        point = Point(self.relu or self.at, self.nonnegative, len(shape) == 2, not self.points)
        self.points.append(point)
        self.between += [(pool, point) for pool in self.passed] if self.relu else []
        self.passed = []
        spread = layer.gain * np.sqrt(2 / np.prod(shape[1:]))
        weight = self.rng.normal(0, spread, shape)
        if layer.outliers:
            weight[self.rng.random(shape) < 0.02] *= 20
        if layer.dead:
            weight[-1] = 0
        if layer.form in ("Gemm", "MatMul"):
            weight = weight.T
        bias = self.rng.normal(0, 0.2 * layer.gain, shape[0])
        names = [self.constant(f"{name}.weight", np.ascontiguousarray(weight, np.float32))]
        if layer.bias:
            names.append(self.constant(f"{name}.bias", bias.astype(np.float32)))
        return names

    def activation(self, layer: Layer, name: str) -> None:
        self.relu, self.nonnegative = "", layer.relu
        if layer.relu:
            self.node("Relu", f"{name}.relu")
            self.relu = self.at


def build(network: Network) -> Built:
    """The network with random weights, and what its quantized form must be."""
    import onnx
    from onnx import helper

    rng = np.random.default_rng(network.seed)
    shape = [3, network.side, network.side]
    fed = [*shape[1:], 3] if network.channels_last else shape
    whole = rng.integers(-254, 255, (3, *fed))
    image = (whole * (IMAGE_STEP / 2)).astype(np.float32)
    make = _Builder(rng)
    if network.channels_last:
        make.node("Transpose", TURNED, perm=[0, 3, 1, 2])
    width, side = 3, network.side
    rescalable = []
    for index, layer in enumerate(network.convolutions):
        name = f"c{index}"
        if make.relu:
            rescalable.append(Rescalable(make.relu, f"c{index - 1}", name, width, 1))
        names = make.weighted(layer, name, (layer.width, width, layer.kernel, layer.kernel))
        pad = layer.kernel // 2 if side < 3 else min(layer.pad, layer.kernel // 2)
        make.node("Conv", name, *names, pads=[pad] * 4, strides=[layer.stride] * 2)
        make.activation(layer, name)
        side = (side + 2 * pad - layer.kernel) // layer.stride + 1
        if layer.pool and side > 2:
            make.node("MaxPool", f"{name}.pool", **POOLS[layer.pool])
            make.passed.append(make.at)
            side = {"2": side // 2, "3 padded": (side + 1) // 2, "3 ceil": side // 2}[layer.pool]
        width = layer.width
    if network.bridge == "GlobalAveragePool":
        make.node("GlobalAveragePool", "average")
        make.relu, side = "", 1
    if make.relu:
        before = f"c{len(network.convolutions) - 1}"
        rescalable.append(Rescalable(make.relu, before, "f0", width, side * side))
    if network.bridge == "Reshape":
        size = width * side * side
        make.node("Reshape", "flat", make.constant("shape", np.array([-1, size], np.int64)))
    else:
        make.node("Flatten", "flat")
    width *= side * side
    for index, layer in enumerate(network.connected):
        last = index == len(network.connected) - 1
        name = "scores" if last else f"f{index}"
        weight, *bias = make.weighted(layer, f"f{index}", (layer.width, width))
        if layer.form == "MatMul":
            make.node("MatMul", f"{name}.product" if bias else name, weight)
            if bias:
                make.node("Add", name, *bias)
        else:
            make.node("Gemm", name, weight, *bias, transB=int(layer.form == "Gemm transB"))
        if not last:
            make.activation(layer, name)
        width = layer.width
    kind = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        make.nodes,
        "network",
        [helper.make_tensor_value_info("image", kind, ["N", *fed])],
        [helper.make_tensor_value_info("scores", kind, ["N", width])],
        make.weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    whole_model = onnx.shape_inference.infer_shapes(model)
    return Built(whole_model, tuple(make.points), tuple(make.between), image, tuple(rescalable))


def table_of(built: Built, ranges: str) -> CalibrationTable:
    """A calibration table from the float64 run of the network's own images."""
    values = float64.Graph(built.model).run(built.image)
    amax = {point.name: float(np.abs(values[point.name]).max()) for point in built.tensors}
    if ranges in METHODS and all(amax.values()):
        seen = {}
        for point in built.tensors:
            seen[point.name] = Histogram()
            seen[point.name].add(values[point.name].astype(np.float32))
        signs = {point.name: point.nonnegative for point in built.tensors}
        return calibrate(Statistics(len(built.image), seen), signs, ranges, {})
    tensors = {}
    changes = _changes(built, values) if ranges == "rescaled" else {}
    for point in built.tensors:
        largest = amax[point.name] or 1.0
        thresholds = {}
        for kind, levels in (("int8", 127), ("uint8", 255)):
            power = 2.0 ** np.ceil(np.log2(largest / levels))
            thresholds[kind] = levels * float(power) if "powers" in ranges else 0.6 * largest
        if not point.nonnegative:
            del thresholds["uint8"]
        low = float(values[point.name].min())
        change = changes.get(point.name)
        tensors[point.name] = TensorRange(low, largest, thresholds, ranges, change)
    return CalibrationTable(tensors, {})


def _changes(built: Built, values: dict[str, Array]) -> dict[str, Rescaled]:
    """Powers of two, so that nothing else is rounded for it, and a threshold that clips."""
    rng, found = np.random.default_rng(1), {}
    for link in built.rescalable:
        factors = 2.0 ** rng.integers(0, 5, link.channels)
        amax = np.abs(values[link.point]).max((0, *range(2, values[link.point].ndim))) * factors
        threshold = 0.8 * float(amax.max()) or 1.0
        found[link.point] = Rescaled(
            tuple(factors.tolist()), {"int8": threshold, "uint8": threshold}
        )
    return found


@dataclass(frozen=True)
class Case:
    """A network, its table, and its quantized form in a file."""

    built: Built
    table: CalibrationTable
    path: Path
    graph: float64.Graph


@contextmanager
def quantized(network: Network, dialect: Dialect) -> Iterator[Case]:
    """A network calibrated and quantized, in a folder that is gone afterwards."""
    import onnx

    built = build(network)
    table = table_of(built, network.ranges)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        onnx.save(built.model, path / "float.onnx")
        quantize(path / "float.onnx", table, dialect, path / "quantized.onnx")
        graph = float64.Graph(onnx.load(path / "quantized.onnx"))
        yield Case(built, table, path / "quantized.onnx", graph)


def networks() -> strategies.SearchStrategy[Network]:
    """One to three convolutions, one or two fully connected layers."""
    flags = strategies.booleans()
    mostly = strategies.sampled_from([True, True, True, False])
    common = {
        "relu": mostly,
        "bias": mostly,
        "gain": strategies.sampled_from([1.0, 0.05, 3.0]),
        "outliers": flags,
        "dead": flags,
    }
    convolution = strategies.builds(
        Layer,
        width=strategies.sampled_from([4, 5, 8, 16]),
        kernel=strategies.sampled_from([3, 3, 1]),
        stride=strategies.sampled_from([1, 1, 2]),
        pad=strategies.sampled_from([1, 1, 0]),
        pool=strategies.sampled_from(["", "2", "3 padded", "3 ceil"]),
        **common,
    )
    connected = strategies.builds(
        Layer,
        width=strategies.sampled_from([4, 7, 16]),
        form=strategies.sampled_from(["Gemm transB", "Gemm", "MatMul"]),
        **common,
    )
    return strategies.builds(
        Network,
        convolutions=strategies.lists(convolution, min_size=1, max_size=3).map(tuple),
        connected=strategies.lists(connected, min_size=1, max_size=2).map(tuple),
        side=strategies.sampled_from([16, 20]),
        bridge=strategies.sampled_from(["Flatten", "Reshape", "GlobalAveragePool"]),
        channels_last=flags,
        ranges=strategies.sampled_from(RANGES),
        seed=strategies.integers(0, 2**16),
    )
