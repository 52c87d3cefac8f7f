"""Layers kept in high precision: what they read and hold, and that the network's function stays."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import float64
import numpy as np
import pytest

from vggdeploy import graphs, parity
from vggdeploy.calib import CalibrationTable, Statistics, calibrate, links, place, quantize
from vggdeploy.calib.histogram import Histogram
from vggdeploy.calib.table import Rescaled
from vggdeploy.contracts import DIALECTS
from vggdeploy.errors import ConfigError

onnx = pytest.importorskip("onnx")
numpy_helper = pytest.importorskip("onnx.numpy_helper")

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from vggdeploy.contracts import Dialect

LAYERS = ("c0", "c1", "c2", "f0", "f1")
IMAGES = np.random.default_rng(5).standard_normal((3, 3, 32, 32)).astype(np.float32)


EVERYTHING = replace(DIALECTS["openvino"], matrix=None)
"""Inputs of products are quantized, and so rescaled, as those of convolutions."""


@pytest.fixture(scope="module")
def small(small_graph: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three convolutions and two matrix products."""
    path = tmp_path_factory.mktemp("keep") / "small.onnx"
    onnx.save(small_graph(), path)
    return path


@pytest.fixture(scope="module")
def table(small: Path) -> CalibrationTable:
    """A table that rescales every tensor that can be: factors of 1 to 8, ranges to match."""
    placement = place(graphs.read(small))
    values = float64.Graph(onnx.load(small)).run(IMAGES)
    seen = {}
    for point in placement.points:
        seen[point.name] = Histogram()
        seen[point.name].add(values[point.name].astype(np.float32))
    signs = {point.name: point.nonnegative for point in placement.points}
    plain = calibrate(Statistics(len(IMAGES), seen), signs, "minmax", {})
    tensors = dict(plain.tensors)
    for name, link in links(placement).items():
        if link.maker is None:
            continue
        factors = np.geomspace(1, 8, link.channels)
        largest = np.abs(values[name]).max((0, *range(2, values[name].ndim)))
        amax = float((largest * factors).max())
        scaled = Rescaled(tuple(factors.tolist()), {"int8": amax, "uint8": amax})
        tensors[name] = replace(tensors[name], rescaled=scaled)
    made = replace(plain, tensors=tensors)
    rescaled = [name for name, tensor in tensors.items() if tensor.rescaled]
    assert rescaled == ["c0.relu", "c1.relu", "c2.relu", "f0.relu"]
    return made


def written(
    small: Path,
    table: CalibrationTable,
    out: Path,
    keep: Collection[str] = (),
    dialect: Dialect = EVERYTHING,
) -> Any:
    quantize(small, table, dialect, out, keep=keep)
    return onnx.load(out)


def weights(model: Any) -> dict[str, np.ndarray]:
    """Each layer's weights as the graph has them, dequantized where they are integers, in the
    layer's own order."""
    held = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in held:
            integers, scale = held[node.input[0]], held[node.input[1]]
            held[node.output[0]] = integers * scale.reshape(-1, *(1,) * (integers.ndim - 1))
    return {
        node.name: held[node.input[1]]
        for node in model.graph.node
        if node.op_type in ("Conv", "Gemm")
    }


def biases(model: Any) -> dict[str, np.ndarray]:
    held = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer}
    return {
        node.name: held[node.input[2]]
        for node in model.graph.node
        if node.op_type in ("Conv", "Gemm") and len(node.input) > 2
    }


def test_a_kept_layer_reads_and_holds_floats(
    small: Path, table: CalibrationTable, tmp_path: Path
) -> None:
    done = quantize(small, table, DIALECTS["tensorrt"], tmp_path / "out.onnx", keep={"c1", "f1"})
    assert done.weights == ("c0", "c2", "f0")
    assert done.left == (("c1", "kept in high precision"), ("f1", "kept in high precision"))
    assert done.activations == ("image", "c1.relu", "c2.relu")
    model = onnx.load(tmp_path / "out.onnx")
    makers = {output: node.op_type for node in model.graph.node for output in node.output}
    reads = {node.name: node.input[:2] for node in model.graph.node if node.name in LAYERS}
    for name in LAYERS:
        image, weight = (makers.get(value) for value in reads[name])
        kept = name in ("c1", "f1")
        assert (weight is None) == kept
        assert (image in ("DequantizeLinear", "MaxPool", "Reshape")) == (not kept)


def test_the_float_function_is_preserved(
    small: Path, table: CalibrationTable, tmp_path: Path
) -> None:
    base = written(small, table, tmp_path / "base.onnx", LAYERS)
    assert not [node for node in base.graph.node if "Linear" in node.op_type]
    before, after = weights(onnx.load(small)), weights(base)
    # It was rescaled, or this would show nothing.
    assert all(np.abs(after[name] / before[name] - 1).max() > 0.8 for name in ("c0", "c1", "f0"))
    expected = float64.Graph(onnx.load(small)).run(IMAGES)["scores"]
    found = float64.Graph(base).run(IMAGES)["scores"]
    # Weights and biases are float32: rounding of 6e-8 each, some hundred of them in a sum.
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("keep", [("c0",), ("c1",), ("c2",), ("f0",), ("c0", "c2"), ("c1", "f0")])
def test_factors_do_not_depend_on_what_is_kept(
    small: Path, table: CalibrationTable, tmp_path: Path, keep: tuple[str, ...]
) -> None:
    base = written(small, table, tmp_path / "base.onnx", LAYERS)
    whole = written(small, table, tmp_path / "whole.onnx")
    mixed = written(small, table, tmp_path / "mixed.onnx", keep)
    for name in LAYERS:
        own = weights(base if name in keep else whole)[name]
        np.testing.assert_array_equal(weights(mixed)[name], own)
    for name, bias in biases(mixed).items():
        np.testing.assert_array_equal(bias, biases(base)[name])
    reference = float64.Graph(onnx.load(small)).run(IMAGES)["scores"]
    found = float64.Graph(mixed).run(IMAGES)["scores"]
    # Factors of up to 8 that were applied on one side alone would leave nothing but noise.
    assert parity.sqnr_db(reference, found).mean() > 20


@pytest.mark.parametrize("dialect", ["openvino-w4", "tensorrt"])
def test_other_dialects_keep_layers_too(
    small: Path, table: CalibrationTable, tmp_path: Path, dialect: str
) -> None:
    model = written(small, table, tmp_path / "out.onnx", {"c1", "f0"}, DIALECTS[dialect])
    makers = {output: node.op_type for node in model.graph.node for output in node.output}
    held = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    kinds = onnx.TensorProto
    for node in model.graph.node:
        if node.name in ("c1", "f0"):
            wide = kinds.FLOAT16 if dialect == "tensorrt" else kinds.FLOAT
            assert held[node.input[1]] == wide
        elif node.name in LAYERS:
            assert makers[node.input[1]] in ("DequantizeLinear", "Cast")
    reference = float64.Graph(onnx.load(small)).run(IMAGES)["scores"]
    found = float64.Graph(model).run(IMAGES)["scores"]
    assert parity.sqnr_db(reference, found).mean() > 15


def test_only_the_quantized_reader_of_a_tensor_sees_the_pair(tmp_path: Path) -> None:
    helper = onnx.helper
    rng = np.random.default_rng(2)

    def floats(name: str, *shape: int) -> Any:
        return numpy_helper.from_array(rng.normal(0, 0.3, shape).astype(np.float32), name)

    conv = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["image", "a.weight"], ["a"], "a", **conv),
        helper.make_node("Relu", ["a"], ["t"]),
        helper.make_node("Conv", ["t", "b.weight"], ["b"], "b", **conv),
        helper.make_node("Conv", ["t", "c.weight"], ["c"], "c", **conv),
        helper.make_node("Add", ["b", "c"], ["sum"]),
        helper.make_node("GlobalAveragePool", ["sum"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["scores"]),
    ]
    kind = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "fork",
        [helper.make_tensor_value_info("image", kind, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("scores", kind, ["N", 4])],
        [floats("a.weight", 6, 3, 3, 3), floats("b.weight", 4, 6, 3, 3), floats("c.weight", 4, 6, 3, 3)],
    )  # fmt: skip
    model = onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    )
    onnx.save(model, tmp_path / "fork.onnx")
    image = rng.standard_normal((2, 3, 8, 8)).astype(np.float32)
    values = float64.Graph(model).run(image)
    placement = place(graphs.read(tmp_path / "fork.onnx"))
    (link,) = (link for name, link in links(placement).items() if name == "t")
    assert link.maker is not None
    seen = {point.name: Histogram() for point in placement.points}
    for name, histogram in seen.items():
        histogram.add(values[name].astype(np.float32))
    signs = {point.name: point.nonnegative for point in placement.points}
    table = calibrate(Statistics(1, seen), signs, "minmax", {})
    factors = np.array([1, 2, 4, 8, 16, 32.0])
    amax = float((values["t"].max((0, 2, 3)) * factors).max())
    scaled = Rescaled(tuple(factors.tolist()), {"int8": amax, "uint8": amax})
    table = replace(table, tensors={**table.tensors, "t": replace(table.tensors["t"], rescaled=scaled)})  # fmt: skip
    quantize(
        tmp_path / "fork.onnx", table, DIALECTS["openvino"], tmp_path / "out.onnx", keep={"a", "b"}
    )
    mixed = onnx.load(tmp_path / "out.onnx")
    makers = {output: node.op_type for node in mixed.graph.node for output in node.output}
    reads = {
        node.name: makers[node.input[0]] for node in mixed.graph.node if node.name in ("b", "c")
    }
    assert reads == {"b": "Relu", "c": "DequantizeLinear"}
    found = float64.Graph(mixed).run(image)
    # What reads the float tensor gets the very same from it, factors and all.
    np.testing.assert_allclose(
        found["t"], values["t"] * factors[:, None, None], rtol=1e-5, atol=1e-5
    )
    assert parity.sqnr_db(values["scores"], found["scores"]).mean() > 15


def test_an_unknown_layer_is_named_with_its_nearest(small: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"no such layer .*got 'cO1', expected perhaps 'c1'"
    ) as caught:
        place(graphs.read(small), keep={"c1", "cO1"})
    assert len(str(caught.value).splitlines()) == 1


def test_weights_shared_with_the_source(
    small_graph: Callable[..., Any], table: CalibrationTable, tmp_path: Path
) -> None:
    """A variant that points to the weights of the graph it was made from computes the same."""
    onnx.save(small_graph(), tmp_path / "small.onnx")
    base = tmp_path / "base.onnx"
    quantize(
        tmp_path / "small.onnx", table, DIALECTS["openvino"], base, keep=LAYERS, weights="beside"
    )
    assert (tmp_path / "base.onnx.data").stat().st_size > 80_000
    applied = table.applied()
    assert not any(tensor.rescaled for tensor in applied.tensors.values())
    variant, whole = tmp_path / "variant.onnx", tmp_path / "whole.onnx"
    keep = {"c0", "c2", "f0", "f1"}
    quantize(base, applied, DIALECTS["openvino"], variant, keep=keep, weights="shared")
    quantize(tmp_path / "small.onnx", table, DIALECTS["openvino"], whole, keep=keep)
    assert variant.stat().st_size < whole.stat().st_size / 4
    expected = float64.Graph(onnx.load(whole)).run(IMAGES)["scores"]
    found = float64.Graph(onnx.load(variant)).run(IMAGES)["scores"]
    np.testing.assert_array_equal(found, expected)


def test_what_was_done_is_json(small: Path, table: CalibrationTable, tmp_path: Path) -> None:
    done = quantize(small, table, DIALECTS["openvino"], tmp_path / "out.onnx", keep={"f0"})
    assert json.loads(json.dumps(done.left)) == [["f0", "kept in high precision"]]
