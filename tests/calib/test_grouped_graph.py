"""Graphs with 4-bit weights in groups: what is written, what it means, what OpenVINO computes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from vggdeploy import graphs, parity, targets
from vggdeploy.calib import CalibrationTable, place, quantize
from vggdeploy.calib.table import TensorRange
from vggdeploy.contracts import DIALECTS, RunOptions
from vggdeploy.opsets import upgrade

onnx = pytest.importorskip("onnx")
helper, numpy_helper = pytest.importorskip("onnx.helper"), pytest.importorskip("onnx.numpy_helper")
reference = pytest.importorskip("onnx.reference")

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DIALECT = DIALECTS["openvino-w4"]
FLOAT = onnx.TensorProto.FLOAT


def quantized(path: Path) -> Any:
    table = dict.fromkeys(
        (point.name for point in place(graphs.read(path)).points),
        TensorRange(-4.0, 4.0, {"int8": 4.0, "uint8": 4.0}, "minmax"),
    )
    out = path.with_name("quantized.onnx")
    quantize(path, CalibrationTable(table, {}), DIALECT, out)
    return onnx.load(out)


def product(tmp_path: Path, kind: str, inputs: int, outputs: int = 24, opset: int = 17) -> Path:
    """Image [N, 3, 1, inputs / 3] flattened into one product: scores [N, outputs]."""
    rows = kind == "Gemm transB"
    rng = np.random.default_rng(inputs)
    weight = rng.standard_normal((outputs, inputs) if rows else (inputs, outputs))
    bias = [numpy_helper.from_array(np.float32(rng.standard_normal(outputs)), "b")]
    gemm = kind != "MatMul"
    attributes = {"transB": 1} if rows else {}
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node(
            kind.split()[0],
            ["flat", "w", "b"] if gemm else ["flat", "w"],
            ["scores"],
            "f",
            **attributes,
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("image", FLOAT, ["N", 3, 1, inputs // 3])],
        [helper.make_tensor_value_info("scores", FLOAT, ["N", outputs])],
        [numpy_helper.from_array(np.float32(weight), "w"), *(bias if gemm else [])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(onnx.shape_inference.infer_shapes(model), tmp_path / "float.onnx")
    return tmp_path / "float.onnx"


def tensors(model: Any) -> dict[str, np.ndarray]:
    return {
        t.name: numpy_helper.to_array(t).astype(np.float64)
        for t in model.graph.initializer
        if t.data_type != onnx.TensorProto.INT64
    }


def types(model: Any) -> dict[str, int]:
    return {t.name: t.data_type for t in model.graph.initializer}


def opened(path: Path, batch: int) -> Any:
    pytest.importorskip("openvino")
    return targets.get("ov-int8-w4").open_graph(path, (), RunOptions(batch=batch))


@pytest.mark.parametrize("kind", ["Gemm transB", "Gemm", "MatMul"])
@pytest.mark.parametrize(("inputs", "group"), [(192, 64), (96, 32), (240, 16)])
def test_product_means_what_its_integers_and_scales_say(
    kind: str, inputs: int, group: int, tmp_path: Path
) -> None:
    path = product(tmp_path, kind, inputs)
    model = quantized(path)
    values = tensors(model)
    axis = 1 if kind == "Gemm transB" else 0
    integers, scales = values["w.quantized"], values["w.scale"]
    assert types(model)["w.quantized"] == onnx.TensorProto.INT4
    assert types(model)["w.scale"] == onnx.TensorProto.FLOAT16
    assert integers.min() == -8
    assert integers.max() == 7
    assert scales.shape[axis] == inputs // group
    meant = integers * np.repeat(scales, group, axis)
    weight = tensors(onnx.load(path))["w"]
    # 20.8 dB is what normal weights have in groups of 64, and more in smaller ones.
    assert 10 * np.log10((weight**2).sum() / ((weight - meant) ** 2).sum()) > 20

    images = np.random.default_rng(0).standard_normal((5, 3, 1, inputs // 3)).astype(np.float32)
    rows = meant if axis == 1 else meant.T
    expected = images.reshape(5, -1).astype(np.float64) @ rows.T + values.get("b", 0)
    evaluator = reference.ReferenceEvaluator(model)
    # ONNX dequantizes in float16, which has 11 bits: 66 dB, and more where signs differ.
    assert parity.sqnr_db(expected, evaluator.run(None, {"image": images})[0]).min() > 60
    with opened(tmp_path / "quantized.onnx", 5) as runner:
        found = runner.scores(images).copy()
        layers = runner.executed_layers()
    # float32, or, where the CPU has VNNI, activations in 8 bits, 32 at a time.
    assert parity.sqnr_db(expected, found).min() > 35
    (layer,) = (layer for layer in layers if layer["type"] == "FullyConnected")
    assert layer["precision"] == "i4"


@pytest.mark.parametrize("inputs", [381, 150, 9])
@pytest.mark.parametrize("kind", ["Gemm transB", "MatMul"])
def test_inputs_that_no_group_divides_have_8_bits_a_channel(
    kind: str, inputs: int, tmp_path: Path
) -> None:
    path = product(tmp_path, kind, inputs)
    model = quantized(path)
    assert types(model)["w.quantized"] == onnx.TensorProto.INT8
    assert tensors(model)["w.scale"].shape == (24,)
    assert not [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    images = np.random.default_rng(0).standard_normal((2, 3, 1, inputs // 3)).astype(np.float32)
    plain = reference.ReferenceEvaluator(onnx.load(path)).run(None, {"image": images})[0]
    with opened(tmp_path / "quantized.onnx", 2) as runner:
        assert parity.sqnr_db(plain, runner.scores(images)).min() > 35


def test_convolutions_read_8_bits_and_products_float(
    small_graph: Callable[..., Any], tmp_path: Path
) -> None:
    onnx.save(small_graph(), tmp_path / "float.onnx")
    model = quantized(tmp_path / "float.onnx")
    onnx.checker.check_model(model, full_check=True)
    made = {output: node for node in model.graph.node for output in node.output}
    pairs = [node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert pairs == ["image", "c0.relu", "c1.relu"]
    assert made["p1"].input[0] == "c2.relu"
    stored = {}
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            maker = made[node.input[1]]
            if maker.op_type == "Cast":
                maker = made[maker.input[0]]
            assert maker.op_type == "DequantizeLinear"
            stored[node.name] = types(model)[maker.input[0]]
        if node.op_type == "Gemm":
            assert node.input[0] in ("flat", "f0.relu")
    eight, four = onnx.TensorProto.INT8, onnx.TensorProto.INT4
    # The last layer's 24 inputs are no multiple of 16.
    assert stored == {"c0": eight, "c1": eight, "c2": eight, "f0": four, "f1": eight}
    assert model.opset_import[0].version == 21
    assert model.ir_version == 10


def test_tensor_read_by_a_convolution_and_a_product_has_a_pair_for_the_first(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(np.float32(rng.standard_normal(shape)), name)
        for name, shape in (("a", (3, 3, 1, 1)), ("w", (192, 4)))
    ]
    nodes = [
        helper.make_node("Relu", ["image"], ["r"]),
        helper.make_node("Conv", ["r", "a"], ["c"]),
        helper.make_node("Add", ["c", "r"], ["sum"]),
        helper.make_node("Flatten", ["r"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["left"]),
        helper.make_node("Flatten", ["sum"], ["flat2"]),
        helper.make_node("MatMul", ["flat2", "w"], ["right"]),
        helper.make_node("Add", ["left", "right"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("image", FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("scores", FLOAT, ["N", 4])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(onnx.shape_inference.infer_shapes(model), tmp_path / "float.onnx")
    model = quantized(tmp_path / "float.onnx")
    reads = {node.output[0]: list(node.input) for node in model.graph.node}
    assert reads["c"][0] == "r.dequantized"
    assert reads["flat"] == ["r"]
    # Shared weights are grouped once.
    assert reads["left"][1] == reads["right"][1]


def test_reductions_survive_the_newer_opset(tmp_path: Path) -> None:
    """Up to opset 17 ReduceMean has its axes as an attribute, from 18 on as an input."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(np.float32(rng.standard_normal(shape)), name)
        for name, shape in (("c", (32, 3, 3, 3)), ("w", (32, 5)))
    ]
    nodes = [
        helper.make_node("Conv", ["image", "c"], ["conv"]),
        helper.make_node("ReduceMean", ["conv"], ["mean"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["mean", "w"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("image", FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("scores", FLOAT, ["N", 5])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path = tmp_path / "float.onnx"
    onnx.save(onnx.shape_inference.infer_shapes(model), path)

    raised = graphs.read(path)
    upgrade(raised, 21)
    graphs.write(raised, tmp_path / "raised.onnx", external=False)
    graphs.check(tmp_path / "raised.onnx")
    images = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)
    before, after = (
        reference.ReferenceEvaluator(onnx.load(file)).run(None, {"image": images})[0]
        for file in (path, tmp_path / "raised.onnx")
    )
    np.testing.assert_array_equal(before, after)
    assert after.shape == (2, 5)

    upgrade(raised, 18)
    assert raised.graph.opset_imports[""] == 21
    with opened_after(path) as runner:
        assert np.isfinite(runner.scores(images)).all()


def opened_after(path: Path) -> Any:
    quantized(path)
    return opened(path.with_name("quantized.onnx"), 2)
