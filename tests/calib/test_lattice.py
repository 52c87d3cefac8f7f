"""A first layer that reads the pixels its input was made from."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import float64
import numpy as np
import onnx
import pytest
from engines import ENGINES
from onnx import TensorProto, helper, numpy_helper

from vggdeploy import graphs, preprocess, targets
from vggdeploy.calib import CalibrationTable, place, quantize, wanted_layers
from vggdeploy.calib.lattice import lattice
from vggdeploy.calib.table import TensorRange
from vggdeploy.contracts import DIALECTS, GraphTarget, RunOptions

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

SIDE = 12
HOW = preprocess.Preprocess(
    size=(SIDE, SIDE), resize="stretch", scale=1 / 255, mean=(0.4, 0.6, 0.2), std=(0.25, 0.2, 0.3)
)
"""Its zeros are the pixels 102, 153 and 51, so that padding is exact too."""

TABLE = CalibrationTable(
    {"image": TensorRange(-3.0, 4.0, {"int8": 4.0}, "minmax")}, {"preprocess": HOW.to_json()}
)


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Writes a graph of one convolution over an image, and a ReLU."""

    def written(
        *,
        channels_last: bool = False,
        second: bool = False,
        shared: bool = False,
        ahead: str = "",
        **attributes: Any,
    ) -> Path:
        rng = np.random.default_rng(1)
        shape: Sequence[Any] = ("N", SIDE, SIDE, 3) if channels_last else ("N", 3, SIDE, SIDE)
        groups = attributes.get("group", 1)
        weight = rng.normal(0, 0.3, (6, 3 // groups, 3, 3)).astype(np.float32)
        nodes, source = [], "image"
        if channels_last:
            nodes.append(helper.make_node("Transpose", [source], ["chw"], "chw", perm=[0, 3, 1, 2]))
            source = "chw"
        if ahead:
            nodes.append(helper.make_node(ahead, [source], ["ahead"], "ahead"))
            source = "ahead"
        attributes = {"pads": [1, 2, 0, 1]} | attributes
        nodes += [
            helper.make_node("Conv", [source, "c.weight", "c.bias"], ["c"], "c", **attributes),
            helper.make_node("Relu", ["c"], ["scores"], "r"),
        ]
        outputs = ["scores"]
        given = [
            numpy_helper.from_array(weight, "c.weight"),
            numpy_helper.from_array(rng.normal(size=6).astype(np.float32), "c.bias"),
        ]
        if second or shared:
            read = source
            if shared:
                nodes.append(helper.make_node("Neg", [source], ["neg"], "neg"))
                read = "neg"
            own = "c.weight" if shared else "d.weight"
            nodes.append(helper.make_node("Conv", [read, own], ["other"], "d"))
            if second:
                given.append(numpy_helper.from_array(weight, own))
            outputs.append("other")
        graph = helper.make_graph(
            nodes, "g", [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 6, None, None])
             for name in outputs], given,
        )  # fmt: skip
        opset = [helper.make_opsetid("", 17)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=8)
        onnx.save(onnx.shape_inference.infer_shapes(model), tmp_path / "float.onnx")
        return tmp_path / "float.onnx"

    return written


def pixels(layout: str = "nchw") -> NDArray[np.float32]:
    """Two images of every value there is, preprocessed."""
    drawn = np.random.default_rng(2).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)
    return replace(HOW, layout=layout).arithmetic(drawn)  # type: ignore[arg-type]


def table(how: preprocess.Preprocess = HOW) -> CalibrationTable:
    name = "chw" if how.layout == "nhwc" else "image"
    return CalibrationTable({name: TABLE.tensors["image"]}, {"preprocess": how.to_json()})


def with_its_weights(source: Path, made: Path, factors: NDArray[np.float64]) -> onnx.ModelProto:
    """The float graph, with the weights that the quantized one stands for."""
    model, quantized = onnx.load(source), onnx.load(made)
    held = {each.name: numpy_helper.to_array(each) for each in quantized.graph.initializer}
    integers, scales = held["c.weight.quantized"], held["c.weight.scale"]
    weight = integers * scales.reshape(-1, 1, 1, 1).astype(np.float64) * factors.reshape(-1, 1, 1)
    (place,) = (each for each in model.graph.initializer if each.name == "c.weight")
    place.CopyFrom(numpy_helper.from_array(weight.astype(np.float32), "c.weight"))
    return model


@pytest.mark.parametrize("engine", ["onnxruntime", "onnxruntime optimized", "openvino float"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("pads", [[1, 2, 0, 1], [0, 0, 0, 0]])
def test_an_image_is_quantized_without_an_error(
    write: Any, tmp_path: Path, layout: str, pads: list[int], engine: str
) -> None:
    source = write(channels_last=layout == "nhwc", pads=pads)
    how = replace(HOW, layout=layout)  # type: ignore[arg-type]
    quantize(source, table(how), DIALECTS["openvino"], tmp_path / "made.onnx")
    made = tmp_path / "made.onnx"
    factors = np.array(HOW.std) / HOW.scale
    image = pixels(layout)
    meant = float64.Graph(with_its_weights(source, made, factors))
    found = float64.Graph(onnx.load(made))
    expected = meant.run(image)["scores"]
    np.testing.assert_allclose(found.run(image)["scores"], expected, atol=2e-5)
    outputs = ENGINES[engine].run(made, image, ())
    np.testing.assert_allclose(outputs["scores"], expected, atol=1e-4)


def test_openvino_multiplies_the_pixels_in_8_bits(write: Any, tmp_path: Path) -> None:
    source = write()
    quantize(source, TABLE, DIALECTS["openvino"], tmp_path / "made.onnx")
    image = pixels()[:1]
    target = targets.get("ov-int8")
    assert isinstance(target, GraphTarget)
    with target.open_graph(tmp_path / "made.onnx", (), RunOptions(profile=True)) as runner:
        found = runner.infer(image)["scores"].copy()
        rows = runner.layer_times()
    expected = float64.Graph(onnx.load(tmp_path / "made.onnx")).run(image)["scores"]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    (convolution,) = (row for row in rows if row.kind == "Convolution")
    assert convolution.precision.lower() in ("u8", "i8")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"auto_pad": "SAME_UPPER", "pads": [0, 0, 0, 0]}, {}),
        ({"group": 3}, {}),
        ({"second": True}, {}),
        ({"second": True, "channels_last": True}, {"layout": "nhwc"}),
        ({"shared": True}, {}),
        ({"ahead": "Neg"}, {}),
        ({"channels_last": True}, {}),  # and the table says that they come first
        ({}, {"mean": (-0.1, 0.5, 0.5)}),
        ({}, {"mean": (0.5, 1.5, 0.5)}),
    ],
)
def test_what_reads_no_plain_pixels_is_left_as_it_is(
    write: Any, changes: dict[str, Any], words: dict[str, Any]
) -> None:
    placement = place(graphs.read(write(**changes)))
    assert lattice(placement, table(replace(HOW, **words)), DIALECTS["openvino"]) is None


def test_it_takes_a_dialect_a_table_and_a_layer_that_is_quantized(write: Any) -> None:
    path = write()
    whole = place(graphs.read(path))
    found = lattice(whole, TABLE, DIALECTS["openvino"])
    assert found is not None
    assert found.layer.name == "c"
    np.testing.assert_allclose(found.offsets, [102, 153, 51], rtol=1e-6)
    assert lattice(whole, TABLE, DIALECTS["tensorrt"]) is None
    assert lattice(whole, replace(TABLE, source={}), DIALECTS["openvino"]) is None
    kept = place(graphs.read(path), keep={"c"})
    assert lattice(kept, TABLE, DIALECTS["openvino"]) is None


def test_weights_are_rounded_for_pixels_as_they_are(write: Any) -> None:
    """Multiplied, and not quantized: they are integers but for the mean."""
    placement = place(graphs.read(write()))
    (pixels_read,) = wanted_layers(placement, TABLE, DIALECTS["openvino"])
    assert pixels_read.scale is None
    np.testing.assert_allclose(pixels_read.factors, np.array(HOW.std) * 255, rtol=1e-6)
    (plain,) = wanted_layers(placement, TABLE, DIALECTS["tensorrt"])
    assert plain.scale == pytest.approx(4 / 127, rel=1e-3)
    assert plain.factors is None
