"""Where Q/DQ pairs go, and which layers stay as they are."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from chains import Chain

from vggdeploy import graphs
from vggdeploy.calib import CalibrationTable, place, quantize
from vggdeploy.calib.rounding import weight_types
from vggdeploy.calib.table import TensorRange
from vggdeploy.contracts import CPU_WEIGHTS, DIALECTS
from vggdeploy.errors import CalibrationError

onnx = pytest.importorskip("onnx")
helper, numpy_helper = pytest.importorskip("onnx.helper"), pytest.importorskip("onnx.numpy_helper")

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def table_for(path: Path) -> CalibrationTable:
    ranges = TensorRange(0.0, 2.0, {"int8": 2.0, "uint8": 2.0}, "minmax")
    names = [point.name for point in place(graphs.read(path)).points]
    return CalibrationTable(dict.fromkeys(names, ranges), {})


def quantized(path: Path, dialect: str = "openvino") -> tuple[Any, Any]:
    out = path.with_name(f"{dialect}.onnx")
    done = quantize(path, table_for(path), DIALECTS[dialect], out)
    return onnx.load(out), done


def makers(model: Any) -> dict[str, Any]:
    return {output: node for node in model.graph.node for output in node.output}


def tensors(model: Any) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def floats(name: str, *shape: int) -> Any:
    values = np.random.default_rng(len(name)).standard_normal(shape).astype(np.float32)
    return numpy_helper.from_array(values, name)


def saved(tmp_path: Path, nodes: list[Any], weights: list[Any], classes: int = 4) -> Path:
    """A graph of `nodes` from image [N, 3, 8, 8] to scores [N, classes], shapes inferred."""
    kind = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("image", kind, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("scores", kind, ["N", classes])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path = tmp_path / "float.onnx"
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


@pytest.fixture
def slim_places(slim_onnx: Path, tmp_path: Path) -> Callable[[str], Any]:
    """The exported slim VGG16 with its Q/DQ pairs, by dialect."""

    def make(dialect: str) -> Any:
        out = tmp_path / "quantized.onnx"
        quantize(slim_onnx, table_for(slim_onnx), DIALECTS[dialect], out)
        return onnx.load(out)

    return make


@pytest.mark.parametrize("dialect", ["openvino", "tensorrt"])
def test_vgg_has_a_pair_before_each_pool_and_none_behind(
    slim_places: Callable[[str], Any], dialect: str
) -> None:
    model = slim_places(dialect)
    made = makers(model)
    floats = DIALECTS[dialect].matrix is not None  # read by matrix products
    counts = dict.fromkeys(("QuantizeLinear", "MaxPool", "Conv", "Gemm"), 0)
    for node in model.graph.node:
        if node.op_type not in counts:
            continue
        counts[node.op_type] += 1
        if node.op_type == "QuantizeLinear":
            # 8 bits are made of the image and of what a ReLU gives, never of a pool's output.
            maker = made.get(node.input[0])
            assert maker is None or maker.op_type in ("Relu", "Cast")
        elif node.op_type == "MaxPool":
            last = counts["MaxPool"] == 5
            float_pool = "Relu" if floats and last else "DequantizeLinear"
            assert made[node.input[0]].op_type == float_pool
        else:
            before = made[node.input[0]]
            while before.op_type in ("Reshape", "MaxPool"):
                before = made[before.input[0]]
            wide = node.op_type == "Gemm" and floats
            assert before.op_type == ("Relu" if wide else "DequantizeLinear")
            assert made[node.input[1]].op_type == "DequantizeLinear"
    # The image, and each ReLU: twelve between convolutions, three in front of products.
    pairs = 13 if floats else 16
    assert counts == {"QuantizeLinear": pairs, "MaxPool": 5, "Conv": 13, "Gemm": 3}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_scores_are_not_quantized(slim_places: Callable[[str], Any], dialect: str) -> None:
    model = slim_places(dialect)
    maker = makers(model)[model.graph.output[0].name]
    while maker.op_type == "Cast":
        maker = makers(model)[maker.input[0]]
    assert maker.op_type == "Gemm"


@pytest.mark.parametrize(("dialect", "after_relu"), [("openvino", "uint8"), ("tensorrt", "int8")])
def test_types_are_the_dialects(
    slim_places: Callable[[str], Any], dialect: str, after_relu: str
) -> None:
    model = slim_places(dialect)
    made, values = makers(model), tensors(model)
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            zero = values[node.input[2]]
            relu = node.input[0] in made and made[node.input[0]].op_type == "Relu"
            assert zero == 0
            assert zero.dtype == (after_relu if relu else "int8")
            assert values[node.input[1]].dtype == DIALECTS[dialect].high_precision
        elif node.op_type == "DequantizeLinear" and node.input[0] in values:
            weight, scale = values[node.input[0]], values[node.input[1]]
            assert weight.dtype == np.int8
            assert weight.min() >= -127
            assert scale.shape == (weight.shape[0],)
            (axis,) = (a.i for a in node.attribute if a.name == "axis")
            assert axis == 0
            assert len(node.input) == 2 or not values[node.input[2]].any()


def test_bias_stays_and_a_missing_one_is_no_trouble(
    small_graph: Callable[..., Any], tmp_path: Path
) -> None:
    onnx.save(small_graph(), tmp_path / "float.onnx")
    model, done = quantized(tmp_path / "float.onnx")
    assert done.weights == ("c0", "c1", "c2", "f0", "f1")
    assert done.left == ()
    convs = {n.output[0]: n for n in model.graph.node if n.op_type == "Conv"}
    assert len(convs["c2"].input) == 2
    assert convs["c1"].input[2] == "c1.bias"
    assert tensors(model)["c1.bias"].dtype == np.float32
    assert "c1.weight" not in tensors(model)


@pytest.mark.parametrize(
    ("dialect", "tops"),
    [
        ("openvino", {"c0": 64, "c1": 127, "f0": 127}),
        ("openvino-w4", {"c0": 64, "c1": 127, "f0": 127}),
        ("openvino avx2", {"c0": 64, "c1": 64, "f0": 127}),
        ("openvino-w4 avx2", {"c0": 64, "c1": 64, "f0": 127}),
        ("tensorrt", {"c0": 127, "c1": 127, "f0": 127}),
    ],
)
def test_bits_of_weights(dialect: str, tops: dict[str, int], tmp_path: Path) -> None:
    """Seven where sums would saturate: of the image, and on a CPU without VNNI of all convolutions,
    signed or not; never where floats are read. No group divides six inputs."""
    name, _, cpu = dialect.partition(" ")
    chosen = DIALECTS[name]
    chosen = replace(chosen, weight=CPU_WEIGHTS[cpu]) if cpu else chosen
    chain = Chain().conv("c0", 6, 3).node("Tanh", "t0").conv("c1", 6, 6).relu("r1")
    chain.node("GlobalAveragePool", "mean").reshape("flat", 6).gemm("f0", 4, 6, rows=True)
    placement = place(graphs.read(chain.save(tmp_path / "float.onnx")), matrices=not chosen.matrix)
    types = weight_types(placement, chosen)
    assert {name: types[f"{name}.weight"].qmax for name in tops} == tops


def test_what_stands_behind_no_layer_is_of_the_image(tmp_path: Path) -> None:
    """Behind arithmetic and transposes too; not behind a layer, even without a ReLU."""
    chain = Chain().node("Mul", "scaled", "image").conv("c0", 6, 3).conv("c1", 6, 6).relu("r0")
    path = (
        chain.conv("c2", 4, 6)
        .node("GlobalAveragePool", "mean")
        .reshape("flat", 4)
        .save(tmp_path / "float.onnx")
    )
    points = {point.name: point.of_image for point in place(graphs.read(path)).points}
    assert points == {"scaled": True, "c0": False, "r0": False}


def test_weights_that_are_not_constant_are_left_and_listed(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["c"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["w2"], ["computed"]),
        helper.make_node("Conv", ["c", "computed"], ["d"], "second"),
        helper.make_node("Flatten", ["d"], ["scores"]),
    ]
    path = saved(tmp_path, nodes, [floats("w", 3, 3, 3, 3), floats("w2", 4, 3, 8, 8)])
    model, done = quantized(path)
    assert done.weights == ("w",)
    assert done.activations == ("image",)
    assert done.left == (("second", "its weights are not constant"),)
    second = makers(model)["d"]
    assert list(second.input) == ["c", "computed"]
    onnx.checker.check_model(model, full_check=True)


def test_gemm_that_is_no_plain_product_is_left_and_listed(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w"], ["g"], "first", transB=1),
        helper.make_node("Gemm", ["g", "w2"], ["scores"], "second", alpha=0.5),
    ]
    path = saved(tmp_path, nodes, [floats("w", 6, 192), floats("w2", 6, 4)])
    _, done = quantized(path)
    assert done.weights == ("w",)
    assert done.left == (("second", "Gemm with alpha, beta or transA"),)


def test_shared_weights_are_quantized_once(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["d"]),
        helper.make_node("Flatten", ["d"], ["scores"]),
    ]
    model, _ = quantized(saved(tmp_path, nodes, [floats("w", 3, 3, 3, 3)], classes=3))
    made = makers(model)
    assert made["a"].input[1] == made["c"].input[1]
    assert sum(value.dtype == np.int8 and value.ndim == 4 for value in tensors(model).values()) == 1
    assert "w" not in tensors(model)


@pytest.mark.parametrize("operator", ["MatMul", "Gemm"])
def test_columns_are_channels_where_the_product_is_not_transposed(
    tmp_path: Path, operator: str
) -> None:
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node(operator, ["flat", "w"], ["scores"], "product"),
    ]
    model, done = quantized(saved(tmp_path, nodes, [floats("w", 192, 4)]))
    assert done.weights == ("w",)
    node = makers(model)[makers(model)["scores"].input[1]]
    assert node.op_type == "DequantizeLinear"
    assert [a.i for a in node.attribute if a.name == "axis"] == [1]
    assert tensors(model)[node.input[1]].shape == (4,)


def test_residual_reads_stay_in_float_where_a_pool_is_read_twice(tmp_path: Path) -> None:
    """A pool whose output is used elsewhere too is not moved to 8 bits."""
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MaxPool", ["b"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c", "p"], ["sum"]),
        helper.make_node("GlobalAveragePool", ["sum"], ["d"]),
        helper.make_node("Flatten", ["d"], ["scores"]),
    ]
    model, done = quantized(saved(tmp_path, nodes, [floats("w", 3, 3, 3, 3)], classes=3))
    made = makers(model)
    assert done.activations == ("image", "p")
    assert list(made["p"].input) == ["b"]
    assert list(made["sum"].input) == ["c", "p"]
    assert made[made["c"].input[0]].op_type == "DequantizeLinear"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_tensors_of_the_graph_keep_their_names(dialect: str, tmp_path: Path) -> None:
    """Though they are called as the product would call its own."""
    chain = Chain().conv("c0", 6, 3).relu("r0").conv("r0.scale", 6, 6).relu("r0.quantized")
    chain = chain.conv("image.scale", 6, 6).relu("c0.weight.dequantized")
    chain.node("GlobalAveragePool", "mean").reshape("flat", 6).gemm("f0", 4, 6, rows=True)
    path = chain.save(tmp_path / "float.onnx")
    made, _ = quantized(path, dialect)
    onnx.checker.check_model(made, full_check=True)
    assert [value.name for value in made.graph.output] == ["scores"]
    outputs = [name for node in made.graph.node for name in node.output]
    assert len(set(outputs)) == len(outputs)
    assert {"r0", "r0.scale", "r0.quantized", "image.scale", "c0.weight.dequantized"} <= set(
        outputs
    )


def test_tensor_that_the_table_lacks_is_named(
    small_graph: Callable[..., Any], tmp_path: Path
) -> None:
    onnx.save(small_graph(), tmp_path / "float.onnx")
    table = table_for(tmp_path / "float.onnx")
    short = {name: entry for name, entry in table.tensors.items() if name != "c1.relu"}
    with pytest.raises(CalibrationError, match=r"'c1\.relu'"):
        quantize(
            tmp_path / "float.onnx",
            CalibrationTable(short, {}),
            DIALECTS["openvino"],
            tmp_path / "out.onnx",
        )
    assert not (tmp_path / "out.onnx").exists()


def test_what_a_pool_drops_is_not_observed(slim_onnx: Path) -> None:
    """Behind each ReLU that only a pool reads, the pool's output stands for it."""
    graph = graphs.read(slim_onnx)
    seen = {point.name: point.seen for point in place(graph).points}
    pools = [node for node in graph.graph if node.op_type == "MaxPool"]
    assert len(pools) == 5
    behind = {str(node.inputs[0].name): str(node.outputs[0].name) for node in pools}
    for name, value in seen.items():
        assert str(value.name) == behind.get(name, name)
    assert set(behind) <= set(seen)


def test_two_pools_in_a_row_and_a_second_reader(tmp_path: Path) -> None:
    pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
    nodes = [
        helper.make_node("Conv", ["image", "w0"], ["c0"]),
        helper.make_node("Relu", ["c0"], ["r0"]),
        helper.make_node("MaxPool", ["r0"], ["p0"], **pool),
        helper.make_node("MaxPool", ["p0"], ["p1"], **pool),
        helper.make_node("Conv", ["p1", "w1"], ["c1"]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Flatten", ["r1"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w2"], ["scores"]),
    ]
    weights = [floats("w0", 5, 3, 1, 1), floats("w1", 4, 5, 1, 1), floats("w2", 16, 4)]
    path = saved(tmp_path, nodes, weights)
    seen = {point.name: str(point.seen.name) for point in place(graphs.read(path)).points}
    assert seen == {"image": "image", "r0": "p1", "r1": "r1"}
    # A convolution that reads the ReLU itself needs all of it.
    nodes[4:5] = [
        helper.make_node("Conv", ["r0", "w3"], ["c3"], strides=[4, 4]),
        helper.make_node("Conv", ["p1", "w1"], ["c4"]),
        helper.make_node("Add", ["c3", "c4"], ["c1"]),
    ]
    path = saved(tmp_path, nodes, [*weights, floats("w3", 4, 5, 1, 1)])
    seen = {point.name: str(point.seen.name) for point in place(graphs.read(path)).points}
    assert seen["r0"] == "r0"
