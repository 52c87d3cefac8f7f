"""Graphs of other exporters: taken in, they compute what they did, in the form of our own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from compared import SHORT, assert_same, kinds, nodes_of, run

from vggdeploy import graphs
from vggdeploy.calib import CalibrationTable, place, quantize
from vggdeploy.calib.table import TensorRange
from vggdeploy.contracts import DIALECTS
from vggdeploy.errors import ModelError

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
helper, numpy_helper = pytest.importorskip("onnx.helper"), pytest.importorskip("onnx.numpy_helper")

from vggdeploy.export import constants, inspect  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Foreign = Callable[..., Any]
    Save = Callable[..., Path]

STYLES = ("tf2onnx", "torch_old", "keras")
LAYERS = {
    "tf2onnx": {"Conv": 13, "MaxPool": 5, "Gemm": 3, "Relu": 15, "Transpose": 2, "Reshape": 1,
                "Softmax": 1},
    "torch_old": {"Conv": 13, "MaxPool": 5, "Gemm": 3, "Relu": 15, "Reshape": 1, "Softmax": 1},
    "keras": {"Conv": 13, "MaxPool": 5, "Gemm": 1, "Relu": 7, "Clip": 6, "Transpose": 1,
              "ReduceMean": 1},
}  # fmt: skip
"""What is left of each: nothing but the network, and NHWC at the two ends."""


@pytest.mark.parametrize("style", STYLES)
def test_computes_the_same_with_nothing_but_the_network(
    foreign: Foreign, taken: Callable[..., Path], style: str
) -> None:
    model = foreign(style)
    adopted = taken(model)
    assert kinds(adopted) == LAYERS[style]
    for batch in (1, 3):
        assert_same(model, adopted, batch)
    onnx.checker.check_model(str(adopted), full_check=True)
    for node in graphs.read(adopted).graph:
        sides = node.outputs[0].shape
        assert sides is not None
        assert str(sides[0]) == "batch"
        assert all(isinstance(side, int) for side in sides[1:])


@pytest.mark.parametrize("style", STYLES)
def test_shapes_are_known_before_the_weights_are_read(
    foreign: Foreign, save: Save, style: str
) -> None:
    path = save(foreign(style, classes=7, size=96))
    signature = inspect(path)
    image = (None, 3, 96, 96) if style == "torch_old" else (None, 96, 96, 3)
    assert (signature.input.shape, signature.output.shape) == (image, (None, 7))


@pytest.mark.parametrize("style", STYLES)
def test_weights_in_a_file_beside_it(
    foreign: Foreign, taken: Callable[..., Path], save: Save, style: str
) -> None:
    model = foreign(style)
    assert_same(model, taken(model, external=True))


@pytest.mark.parametrize("side", [1, 2, "unk__7", "?", "", 0], ids=repr)
@pytest.mark.parametrize("style", STYLES)
def test_batch_of_any_name_or_size(
    foreign: Foreign, taken: Callable[..., Path], style: str, side: Any
) -> None:
    model = foreign(style, features=SHORT, size=16)
    for port in (*model.graph.input[:1], *model.graph.output):
        if not port.type.tensor_type.HasField("shape"):
            continue
        first = port.type.tensor_type.shape.dim[0]
        first.Clear()
        if side != "":
            setattr(first, "dim_value" if isinstance(side, int) else "dim_param", side)
    adopted = taken(model)
    for port in (*(found := graphs.read(adopted)).graph.inputs, *found.graph.outputs):
        assert str(port.shape[0]) == "batch"
    assert_same(foreign(style, features=SHORT, size=16), adopted)


@pytest.mark.parametrize("target", [[2, 128], [2, -1], [0, -1], [-1, 128]])
def test_reshape_for_a_fixed_batch_is_opened(
    foreign: Foreign, taken: Callable[..., Path], target: list[int]
) -> None:
    model = foreign("torch_old", features=SHORT, size=16)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    expected = foreign("torch_old", features=SHORT, size=16)
    reshape = next(node for node in model.graph.node if node.op_type == "Reshape")
    model.graph.initializer.append(numpy_helper.from_array(np.array(target), "target"))
    reshape.input[1] = "target"
    assert_same(expected, taken(model), batch=3)


def test_batch_that_stays_fixed_is_refused(foreign: Foreign, taken: Callable[..., Path]) -> None:
    model = foreign("torch_old", features=SHORT, size=16)
    reshape = next(node for node in model.graph.node if node.op_type == "Reshape")
    model.graph.initializer.append(numpy_helper.from_array(np.array([2, -1]), "target"))
    reshape.input[1] = "target"
    with pytest.raises(ModelError, match=r"output.* is fixed inside of the graph: got \[2, 10\]"):
        taken(model)


@pytest.mark.parametrize("kind", ["float16", "float64"])
def test_floats_of_16_and_64_bits_become_float32(
    foreign: Foreign, taken: Callable[..., Path], kind: str
) -> None:
    model = foreign("tf2onnx", features=SHORT, size=16)
    code = {"float16": onnx.TensorProto.FLOAT16, "float64": onnx.TensorProto.DOUBLE}[kind]
    wide = foreign("tf2onnx", features=SHORT, size=16)
    for graph, into in ((model.graph, kind), (wide.graph, "float32")):
        for tensor in graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT:
                content = numpy_helper.to_array(tensor).astype(kind).astype(into)
                tensor.CopyFrom(numpy_helper.from_array(content, tensor.name))
    for port in (*model.graph.input, *model.graph.output):
        port.type.tensor_type.elem_type = code
    # The same weights in float32: the graph's own arithmetic in 16 bits is no measure.
    assert_same(wide, taken(model))


def test_weights_behind_constant_nodes_and_casts(
    foreign: Foreign, taken: Callable[..., Path]
) -> None:
    model = foreign("torch_old", features=SHORT, size=16)
    names = {tensor.name: tensor for tensor in model.graph.initializer}
    for index, name in enumerate(["features.0.weight", "features.1.weight", "classifier.1.weight"]):
        tensor = names[name]
        model.graph.initializer.remove(tensor)
        model.graph.input.remove(next(port for port in model.graph.input if port.name == name))
        content = numpy_helper.to_array(tensor)
        flat = numpy_helper.from_array(content.reshape(-1).astype(np.float64), f"flat{index}")
        shape = numpy_helper.from_array(np.array(content.shape), f"shape{index}")
        for at, node in enumerate([
            helper.make_node("Constant", [], [f"flat{index}"], value=flat),
            helper.make_node("Constant", [], [f"shape{index}"], value=shape),
            helper.make_node("Cast", [f"flat{index}"], [f"cast{index}"], to=1),
            helper.make_node("Reshape", [f"cast{index}", f"shape{index}"], [name]),
        ]):  # fmt: skip
            model.graph.node.insert(at, node)
    adopted = taken(model)
    assert kinds(adopted)["Reshape"] == 1
    assert sum(1 for _ in graphs.weighted(graphs.read(adopted))) == 5
    assert_same(model, adopted)


@pytest.mark.parametrize("shape", [(4, 16, 16), (1, 4, 1, 1), (4, 1, 1), (16,), (1,), ()], ids=str)
@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("first", [False, True])
def test_constants_are_folded_where_they_are_one_a_channel(
    foreign: Foreign, taken: Callable[..., Path], shape: tuple[int, ...], operator: str, first: bool
) -> None:
    """``[16]`` beside ``[N, 4, 16, 16]`` is one a column, which no convolution has."""
    model = foreign("torch_old", features=SHORT, size=16)
    place_of = next(i for i, n in enumerate(model.graph.node) if n.op_type == "Conv")
    conv = model.graph.node[place_of]
    out = conv.output[0]
    conv.output[0] = "conv0"
    content = np.random.default_rng(1).uniform(0.5, 2, shape).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(content, "constant"))
    inputs = ["constant", "conv0"] if first else ["conv0", "constant"]
    model.graph.node.insert(place_of + 1, helper.make_node(operator, inputs, [out]))
    adopted = taken(model)
    folds = shape not in [(4, 16, 16), (16,)] and not (operator == "Div" and first)
    assert (kinds(adopted)[operator] == 0) == folds
    assert_same(model, adopted)


def with_batchnorm(model: Any, behind: str, channels: int) -> None:
    """Puts a BatchNormalization behind the first node of the kind `behind`."""
    rng = np.random.default_rng(5)
    for name, low in (("scale", 0.5), ("shift", -1), ("mean", -1), ("variance", 0.5)):
        values = rng.uniform(low, 2, channels).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, f"bn.{name}"))
    at = next(i for i, node in enumerate(model.graph.node) if node.op_type == behind)
    out = model.graph.node[at].output[0]
    model.graph.node[at].output[0] = "bn.in"
    inputs = ["bn.in", "bn.scale", "bn.shift", "bn.mean", "bn.variance"]
    node = helper.make_node("BatchNormalization", inputs, [out], "bn", epsilon=1e-3)
    model.graph.node.insert(at + 1, node)


@pytest.mark.parametrize(
    ("style", "behind", "channels"),
    [("torch_old", "Conv", 4), ("torch_old", "Gemm", 24), ("tf2onnx", "MatMul", 24)],
)
def test_batchnorm_behind_a_layer_is_folded(
    foreign: Foreign, taken: Callable[..., Path], style: str, behind: str, channels: int
) -> None:
    model = foreign(style, features=SHORT, size=16)
    with_batchnorm(model, behind, channels)
    adopted = taken(model)
    assert "BatchNormalization" not in kinds(adopted)
    assert_same(model, adopted)


def test_batchnorm_behind_a_relu_stays_and_is_listed(
    foreign: Foreign, taken: Callable[..., Path]
) -> None:
    """Its shift would have to be padded along with the image."""
    model = foreign("torch_old", features=SHORT, size=16)
    with_batchnorm(model, "Relu", 4)
    adopted = taken(model)
    assert_same(model, adopted)
    assert [name for name, _ in place(graphs.read(adopted)).left] == ["bn"]


def test_variance_below_zero_is_named(foreign: Foreign, taken: Callable[..., Path]) -> None:
    model = foreign("torch_old", features=SHORT, size=16)
    with_batchnorm(model, "Conv", 4)
    variance = model.graph.initializer[-1]
    variance.CopyFrom(numpy_helper.from_array(np.full(4, -1, np.float32), "bn.variance"))
    with pytest.raises(ModelError, match=r"NaN or infinite.*variance above 0"):
        taken(model)


def test_gemm_with_alpha_and_beta_is_folded(foreign: Foreign, taken: Callable[..., Path]) -> None:
    model = foreign("torch_old", features=SHORT, size=16)
    gemm = nodes_of(model, "Gemm")[1]
    gemm.attribute.extend([helper.make_attribute("alpha", 0.5), helper.make_attribute("beta", 3.0)])
    adopted = taken(model)
    assert_same(model, adopted)
    assert place(graphs.read(adopted)).left == ()


def test_layer_whose_result_is_read_twice_is_not_folded(
    foreign: Foreign, taken: Callable[..., Path]
) -> None:
    model = foreign("torch_old", features=SHORT, size=16)
    relu = nodes_of(model, "Relu")[0]
    conv = relu.input[0]
    at = list(model.graph.node).index(relu)
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "half"))
    model.graph.node.insert(at, helper.make_node("Add", ["halved", conv], ["sum"]))
    model.graph.node.insert(at, helper.make_node("Mul", [conv, "half"], ["halved"]))
    relu.input[0] = "sum"
    adopted = taken(model)
    assert kinds(adopted)["Mul"] == 1
    assert_same(model, adopted)


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1])
def test_softmax_of_old_opsets_keeps_its_meaning(
    foreign: Foreign, taken: Callable[..., Path], axis: int
) -> None:
    """Up to opset 12 the axes from `axis` on are taken as one."""
    model = foreign("torch_old", features=SHORT, size=16)
    at = next(i for i, node in enumerate(model.graph.node) if node.op_type == "AveragePool")
    out = model.graph.node[at].output[0]
    model.graph.node[at].output[0] = "soft.in"
    model.graph.node.insert(
        at + 1, helper.make_node("Softmax", ["soft.in"], ["soft.out"], axis=axis)
    )
    # Enough to be seen behind two layers.
    model.graph.initializer.append(numpy_helper.from_array(np.float32(200), "gain"))
    model.graph.node.insert(at + 2, helper.make_node("Mul", ["soft.out", "gain"], [out]))
    adopted = taken(model)
    assert graphs.read(adopted).graph.opset_imports[""] == 13
    assert_same(model, adopted)


def test_dropout_with_inputs_and_a_mask(foreign: Foreign, taken: Callable[..., Path]) -> None:
    model = foreign("tf2onnx", features=SHORT, size=16)
    relu = nodes_of(model, "Relu")[-1]
    out = relu.output[0]
    relu.output[0] = "before"
    at = list(model.graph.node).index(relu)
    for name, content in (("ratio", np.float32(0.5)), ("training", np.array(False))):
        model.graph.initializer.append(numpy_helper.from_array(content, name))
    inputs = ["before", "ratio", "training"]
    model.graph.node.insert(at + 1, helper.make_node("Dropout", inputs, [out, "mask"], "drop"))
    adopted = taken(model)
    assert "Dropout" not in kinds(adopted)
    assert_same(model, adopted)
    training = next(t for t in model.graph.initializer if t.name == "training")
    training.CopyFrom(numpy_helper.from_array(np.array(True), "training"))
    with pytest.raises(ModelError, match=r"Dropout 'drop' is in training mode.*model\.eval"):
        taken(model)


def logits(scores: np.ndarray) -> np.ndarray:
    """What a Softmax was given, but for a constant; other scores as they are, less their mean."""
    if (scores > 0).all():
        scores = np.log(scores.astype(np.float64))
    return scores - scores.mean(1, keepdims=True)


def table_for(path: Path) -> CalibrationTable:
    """Thresholds from what onnxruntime sees of random images."""
    model = graphs.read(path)
    names = [point.name for point in place(model).points]
    whole = onnx.load(path)
    image = whole.graph.input[0].name
    made = {output for node in whole.graph.node for output in node.output}
    taps = [name for name in names if name in made]
    del whole.graph.output[:]
    whole.graph.output.extend(onnx.ValueInfoProto(name=name) for name in taps)
    session = ort.InferenceSession(whole.SerializeToString())
    sides = session.get_inputs()[0].shape[1:]
    images = np.random.default_rng(0).standard_normal((3, *sides)).astype(np.float32)
    seen = dict(zip(taps, session.run(taps, {image: images}), strict=True)) | {image: images}
    ranges = {}
    for name in names:
        high = float(np.abs(seen[name]).max())
        ranges[name] = TensorRange(0.0, high, {"int8": high, "uint8": high}, "minmax")
    return CalibrationTable(ranges, {})


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("style", STYLES)
def test_quantized_with_one_pair_in_front_of_each_pool(
    foreign: Foreign, taken: Callable[..., Path], tmp_path: Path, style: str, dialect: str
) -> None:
    model = foreign(style)
    adopted = taken(model)
    out = tmp_path / "quantized.onnx"
    done = quantize(adopted, table_for(adopted), DIALECTS[dialect], out)
    products = LAYERS[style]["Gemm"]
    assert done.left == ()
    assert len(done.weights) == 13 + products
    # 4-bit weights of a product go with float activations.
    assert len(done.activations) == 13 + (products if DIALECTS[dialect].matrix is None else 0)
    whole = onnx.load(out)
    made = {output: node for node in whole.graph.node for output in node.output}
    stored = {tensor.name: tensor for tensor in whole.graph.initializer}
    readers: dict[str, set[str]] = {}
    for node in whole.graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    for node in whole.graph.node:
        if node.op_type == "MaxPool":
            # The mean behind the last pool of one style is no layer that would read 8 bits.
            averaged = readers[node.output[0]] & {"ReduceMean", "Transpose"}
            # The last pool's reader, where products read floats.
            floats = DIALECTS[dialect].matrix is not None
            last = floats and not readers[node.output[0]] & {"Conv", "MaxPool"}
            if (style != "keras" or not averaged) and not last:
                assert made[node.input[0]].op_type == "DequantizeLinear"
        elif node.op_type == "QuantizeLinear":
            maker = made.get(node.input[0])
            after = maker.op_type if maker else "image"
            # Never of a pool's output: the next layer has its scale.
            assert after in ("Relu", "Clip", "image", "Cast", "Transpose", "ReduceMean")
            signed = after in ("image", "Cast", "Transpose") or dialect == "tensorrt"
            kind = onnx.TensorProto.INT8 if signed else onnx.TensorProto.UINT8
            assert stored[node.input[2]].data_type == kind
    expected, found = (logits(run(each)) for each in (model, out))
    # 25 to 39 dB, by style and dialect, and 13 with 4-bit random weights; a wrong scale, or a layer
    # lost, leaves less than 10.
    noise = np.square(found - expected).sum() / np.square(expected).sum()
    assert -10 * np.log10(noise) > (20 if DIALECTS[dialect].grouped is None else 11)


def test_reduction_over_named_axes_survives_the_newer_opset_of_float16(
    foreign: Foreign, taken: Callable[..., Path], tmp_path: Path
) -> None:
    """Opset 18 moved the axes from an attribute to an input."""
    adopted = taken(foreign("keras", features=SHORT, size=16))
    out = tmp_path / "quantized.onnx"
    quantize(adopted, table_for(adopted), DIALECTS["tensorrt"], out)
    (node,) = nodes_of(onnx.load(out), "ReduceMean")
    assert (len(node.input), [a.name for a in node.attribute]) == (2, ["keepdims"])


def test_function_of_the_model_is_inlined(foreign: Foreign, taken: Callable[..., Path]) -> None:
    model = foreign("torch_old", features=SHORT, size=16)
    imports = [helper.make_opsetid("", 11)]
    body = [helper.make_node("Relu", ["x"], ["y"])]
    model.functions.append(helper.make_function("own", "Activate", ["x"], ["y"], body, imports))
    model.opset_import.append(helper.make_opsetid("own", 1))
    relu = nodes_of(model, "Relu")[0]
    relu.op_type, relu.domain = "Activate", "own"
    adopted = taken(model)
    assert kinds(adopted)["Relu"] == 4
    assert_same(model, adopted)


@pytest.mark.parametrize("largest", [107, 108])
def test_tensor_of_any_size_is_not_made_at_a_words_notice(
    foreign: Foreign, save: Save, largest: int
) -> None:
    """ConstantOfShape makes weights too, but not more of them than any network has."""
    model = foreign("torch_old", features=SHORT, size=16)
    model.graph.initializer.append(numpy_helper.from_array(np.array([4, 3, 3, 3]), "sides"))
    made = helper.make_node("ConstantOfShape", ["sides"], ["made"])
    model.graph.node.insert(0, made)
    nodes_of(model, "Conv")[0].input[1] = "made"
    read = graphs.read(save(model))
    constants.fold_constants(read, largest)
    stays = any(node.op_type == "ConstantOfShape" for node in read.graph)
    assert stays == (largest < 4 * 3 * 3 * 3)


@pytest.mark.parametrize("alpha", [0.1, None])
def test_activation_in_front_of_a_pool_is_quantized_there(
    foreign: Foreign, taken: Callable[..., Path], alpha: float | None
) -> None:
    """LeakyRelu needs a sign, ReLU6 needs none."""
    model = foreign("torch_old", features=SHORT, size=16)
    relu = nodes_of(model, "Relu")[0]
    if alpha is None:
        relu.op_type = "Clip"
        for name, bound in (("low", 0), ("high", 6)):
            model.graph.initializer.append(numpy_helper.from_array(np.float32(bound), name))
            relu.input.append(name)
    else:
        relu.op_type = "LeakyRelu"
        relu.attribute.append(helper.make_attribute("alpha", alpha))
    adopted = taken(model)
    assert_same(model, adopted)
    point = place(graphs.read(adopted)).points[1]
    assert (point.name, point.nonnegative) == (relu.output[0], alpha is None)
    assert [node.op_type for node, _ in point.reads] == ["MaxPool"]
