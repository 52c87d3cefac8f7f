"""What the Q/DQ graph computes: its definition in float64, OpenVINO's engine, ONNX's evaluator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from vggdeploy import graphs, parity, targets
from vggdeploy.calib import CalibrationTable, Statistics, calibrate, place, quantize
from vggdeploy.calib.histogram import Histogram
from vggdeploy.calib.table import TensorRange
from vggdeploy.contracts import DIALECTS, RunOptions
from vggdeploy.errors import CalibrationError

onnx = pytest.importorskip("onnx")
numpy_helper = pytest.importorskip("onnx.numpy_helper")
reference = pytest.importorskip("onnx.reference")

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

IMAGES = np.random.default_rng(11).standard_normal((4, 3, 32, 32)).astype(np.float32)


def convolve(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """3x3, stride 1, one pixel of zeros around: [N, C, H, W] with [D, C, 3, 3]."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    return np.einsum("nchwij,dcij->ndhw", windows, weight)


def evaluate(model: Any, image: np.ndarray) -> dict[str, np.ndarray]:
    """Every tensor of a graph in float64, each operator as ONNX's specification defines it."""
    values: dict[str, Any] = {
        t.name: numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer
    }
    kinds = {t.name: numpy_helper.to_array(t).dtype for t in model.graph.initializer}
    values["image"] = image.astype(np.float64)
    for node in model.graph.node:
        x, *rest = (values[name] for name in node.input)
        if node.op_type == "QuantizeLinear":
            limits = np.iinfo(kinds[node.input[2]])
            y = np.clip(np.rint(x / rest[0]) + rest[1], limits.min, limits.max)
        elif node.op_type == "DequantizeLinear":
            axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
            scale = rest[0]
            if scale.ndim:
                scale = scale.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
            y = (x - (rest[1] if len(rest) > 1 else 0)) * scale
        elif node.op_type == "Conv":
            y = convolve(x, rest[0])
            if len(rest) > 1:
                y = y + rest[1].reshape(-1, 1, 1)
        elif node.op_type == "Relu":
            y = np.maximum(x, 0)
        elif node.op_type == "MaxPool":
            n, c, h, w = x.shape
            y = x.reshape(n, c, h // 2, 2, w // 2, 2).max((3, 5))
        elif node.op_type == "Reshape":
            y = x.reshape(rest[0].astype(int))
        elif node.op_type == "Gemm":
            y = x @ rest[0].T + rest[1]
        else:
            raise AssertionError(node.op_type)
        values[node.output[0]] = y
    return values


@pytest.fixture
def float_path(small_graph: Callable[..., Any], tmp_path: Path) -> Path:
    onnx.save(small_graph(), tmp_path / "float.onnx")
    return tmp_path / "float.onnx"


@pytest.fixture
def table(float_path: Path) -> CalibrationTable:
    """Calibrated on the images themselves, observed in the float64 evaluation."""
    points = place(graphs.read(float_path)).points
    values = evaluate(onnx.load(float_path), IMAGES)
    seen = {}
    for point in points:
        seen[point.name] = Histogram()
        seen[point.name].add(values[point.name].astype(np.float32))
    return calibrate(
        Statistics(len(IMAGES), seen), {p.name: p.nonnegative for p in points}, "mse", {}
    )


@pytest.fixture(autouse=True)
def float_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU with VNNI would quantize what matrix products read, which no graph says."""
    from vggdeploy.targets import openvino

    monkeypatch.setattr(openvino, "_DYNAMIC_GROUPS", dict.fromkeys(openvino._DYNAMIC_GROUPS, 0))


def scores_of(path: Path, images: np.ndarray, target: str = "ov-int8") -> np.ndarray:
    pytest.importorskip("openvino")
    runner = targets.get(target).open_graph(path, (), RunOptions(batch=len(images)))
    with runner:
        return runner.scores(images).copy()


def test_evaluation_here_is_right(float_path: Path) -> None:
    """The float64 evaluation of the float graph is OpenVINO's, to float32's rounding."""
    mine = evaluate(onnx.load(float_path), IMAGES)["scores"]
    np.testing.assert_allclose(scores_of(float_path, IMAGES, "ov-fp32"), mine, rtol=0, atol=2e-5)


@pytest.fixture
def exact_products() -> None:
    """Skips where the CPU adds two 8-bit products in 16 bits and saturates: x86 without VNNI.

    There, 255 * 127 twice is cut to 32,767, by hardware and in every library.
    """
    ov = pytest.importorskip("openvino")
    from openvino import opset13 as ops

    image = ops.parameter([1, 64, 8, 8], np.float32)
    steps = ops.fake_quantize(image, *(np.float32(v) for v in (0, 255, 0, 255)), 256)
    weight = ops.convert(ops.constant(np.full((64, 64, 3, 3), 127, np.int8)), "f32")
    scaled = ops.multiply(weight, ops.constant(np.full((64, 1, 1, 1), 0.5, np.float32)))
    out = ops.convolution(steps, scaled, [1, 1], [0, 0], [0, 0], [1, 1])
    model = ov.Model([out.output(0)], [image], "saturation")
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = float(compiled(np.full((1, 64, 8, 8), 255, np.float32))[0].max())
    if found < 0.99 * 64 * 9 * 255 * 127 * 0.5:
        pytest.skip("this CPU's 8-bit products saturate at 16 bits")


def compare(path: Path, float_path: Path) -> None:
    """The engine is what the graph means, far more nearly than the graph is the float network."""
    meant = evaluate(onnx.load(path), IMAGES)["scores"]
    engine = scores_of(path, IMAGES)
    plain = evaluate(onnx.load(float_path), IMAGES)["scores"]
    # The engine rescales in float32: a value that lies on the edge between two steps may go to the
    # other, here and there. That must be far below the noise of quantization itself: 15 dB.
    noise = float(parity.sqnr_db(plain, meant).mean())
    assert noise > 25
    assert float(parity.sqnr_db(meant, engine).mean()) > noise + 15
    assert (meant.argmax(1) == engine.argmax(1)).all()


def test_openvino_reads_what_the_graph_means(
    float_path: Path, table: CalibrationTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same roundings in float arithmetic, which no CPU saturates."""
    pytest.importorskip("openvino")
    from vggdeploy.targets.openvino import OpenVINO

    usual = OpenVINO.configuration
    monkeypatch.setattr(
        OpenVINO,
        "configuration",
        lambda self, options: {**usual(self, options), "LP_TRANSFORMS_MODE": "NO"},
    )
    quantize(float_path, table, DIALECTS["openvino"], tmp_path / "quantized.onnx")
    compare(tmp_path / "quantized.onnx", float_path)


@pytest.mark.usefixtures("exact_products")
def test_openvino_computes_what_the_graph_means(
    float_path: Path, table: CalibrationTable, tmp_path: Path
) -> None:
    """With integers."""
    quantize(float_path, table, DIALECTS["openvino"], tmp_path / "quantized.onnx")
    compare(tmp_path / "quantized.onnx", float_path)


def test_integers_are_within_half_a_step_of_the_float_tensors(
    float_path: Path, table: CalibrationTable, tmp_path: Path
) -> None:
    """On the input, which no earlier rounding has touched."""
    out = tmp_path / "quantized.onnx"
    quantize(float_path, table, DIALECTS["openvino"], out)
    values = evaluate(onnx.load(out), IMAGES)
    step = table.tensors["image"].thresholds["int8"] / 127
    inside = np.abs(IMAGES) <= table.tensors["image"].thresholds["int8"]
    off = np.abs(values["image.dequantized"] - IMAGES)
    assert (off[inside] <= step / 2 * (1 + 1e-6)).all()
    assert inside.mean() > 0.99


def test_uint8_after_relu_beats_int8(
    float_path: Path, table: CalibrationTable, tmp_path: Path
) -> None:
    """Twice the levels: about 6 dB on the activations' share of the noise."""
    plain = evaluate(onnx.load(float_path), IMAGES)["scores"]
    found = {}
    for name in ("openvino", "tensorrt"):
        quantize(float_path, table, DIALECTS[name], tmp_path / f"{name}.onnx")
        model = onnx.load(tmp_path / f"{name}.onnx")
        if name == "tensorrt":
            found[name] = reference.ReferenceEvaluator(model).run(None, {"image": IMAGES})[0]
        else:
            found[name] = evaluate(model, IMAGES)["scores"]
    gain = parity.sqnr_db(plain, found["openvino"]) - parity.sqnr_db(plain, found["tensorrt"])
    assert gain.mean() > 1


def test_tensorrt_graph_passes_the_checker_and_is_near_to_fp32(
    float_path: Path, table: CalibrationTable, tmp_path: Path
) -> None:
    out = tmp_path / "quantized.onnx"
    quantize(float_path, table, DIALECTS["tensorrt"], out)
    onnx.checker.check_model(str(out), full_check=True)
    model = onnx.load(out)
    evaluator = reference.ReferenceEvaluator(model)
    found = evaluator.run(None, {"image": IMAGES})[0]
    plain = evaluate(onnx.load(float_path), IMAGES)["scores"]
    assert found.dtype == np.float32
    # 127 levels with nearest rounding in five layers: 8 bits give some 35 dB a layer at these
    # widths, and float16's 11 bits of significand are no limit beside that.
    assert float(parity.sqnr_db(plain, found).mean()) > 20
    assert (plain.argmax(1) == found.argmax(1)).all()


def test_tensorrt_graph_has_float32_at_its_ends_alone(
    float_path: Path, table: CalibrationTable, tmp_path: Path
) -> None:
    """A scale or bias of float32 would leave an FP32 layer behind."""
    out = tmp_path / "quantized.onnx"
    quantize(float_path, table, DIALECTS["tensorrt"], out)
    model = onnx.load(out)
    kind = onnx.TensorProto
    assert {t.data_type for t in model.graph.initializer} == {kind.FLOAT16, kind.INT8, kind.INT64}
    assert model.opset_import[0].version >= 19
    ports = (*model.graph.input, *model.graph.output)
    ends = [(port.name, port.type.tensor_type.elem_type) for port in ports]
    assert ends == [("image", kind.FLOAT), ("scores", kind.FLOAT)]
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    inside = {v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    assert kind.FLOAT not in inside


@pytest.mark.parametrize("name", ["c1.weight", "c1.bias"])
def test_what_float16_cannot_hold_is_named(
    float_path: Path, table: CalibrationTable, tmp_path: Path, name: str
) -> None:
    """A weight's scale is too large from 127 * 65504 on, a bias from 65520."""
    model = onnx.load(float_path)
    (tensor,) = (t for t in model.graph.initializer if t.name == name)
    values = numpy_helper.to_array(tensor).copy()
    values.reshape(-1)[0] = 1e7
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    onnx.save(model, float_path)
    with pytest.raises(CalibrationError, match=rf"{name}.*float16"):
        quantize(float_path, table, DIALECTS["tensorrt"], tmp_path / "out.onnx")


def test_range_that_float16_cannot_hold_is_named(
    float_path: Path, table: CalibrationTable, tmp_path: Path
) -> None:
    wide = TensorRange(0.0, 1e8, {"int8": 1e8, "uint8": 1e8}, "minmax")
    wider = CalibrationTable({**table.tensors, "c1.relu": wide}, {})
    with pytest.raises(CalibrationError, match=r"c1\.relu.*float16"):
        quantize(float_path, wider, DIALECTS["tensorrt"], tmp_path / "out.onnx")


def test_same_table_same_bytes(float_path: Path, table: CalibrationTable, tmp_path: Path) -> None:
    for dialect in DIALECTS.values():
        for name in ("a.onnx", "b.onnx"):
            quantize(float_path, table, dialect, tmp_path / name)
        assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
