"""The comparisons of `test_meaning` reject a graph that is wrong in one thing.

Each way to tamper with a Q/DQ graph is a mistake that a quantizer can make. The graph that was
tampered with is run, and judged by the one that was not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import engines
import float64
import intent
import numpy as np
import pytest
from networks import FORMS, Layer, Network, quantized

onnx, helper = pytest.importorskip("onnx"), pytest.importorskip("onnx.helper")
numpy_helper = pytest.importorskip("onnx.numpy_helper")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

if TYPE_CHECKING:
    from collections.abc import Callable

    from vggdeploy.contracts import Dialect

NETWORK = Network(
    # As many inputs as outputs, so that a wrong axis fits.
    convolutions=(Layer(8), Layer(8, pool="2"), Layer(8)),
    connected=(Layer(16), Layer(16, form="MatMul"), Layer(16)),
    # With powers of two every other pixel of the image is a tie.
    ranges="powers of two",
    seed=4,
)


def constant(model: Any, name: str) -> np.ndarray:
    (tensor,) = (t for t in model.graph.initializer if t.name == name)
    return numpy_helper.to_array(tensor)


def replace_constant(model: Any, name: str, array: np.ndarray) -> None:
    (tensor,) = (t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(array, name))


def maker(model: Any, output: str) -> Any:
    (node,) = (n for n in model.graph.node if output in n.output)
    return node


def wrong_zero_point(model: Any, dialect: Dialect) -> None:
    """Added when quantizing, not taken off again."""
    node = maker(model, "c0.relu.quantized")
    one = np.ones((), constant(model, node.input[2]).dtype)
    model.graph.initializer.append(numpy_helper.from_array(one, "one"))
    node.input[2] = "one"


def zero_point_taken_off_alone(model: Any, dialect: Dialect) -> None:
    node = maker(model, "c1.relu.dequantized")
    one = np.ones((), constant(model, node.input[2]).dtype)
    model.graph.initializer.append(numpy_helper.from_array(one, "one"))
    node.input[2] = "one"


def zero_point_both_ways(model: Any, dialect: Dialect) -> None:
    """Changes no value but where it saturates."""
    for name in ("c1.relu.quantized", "c1.relu.dequantized"):
        zero = maker(model, name).input[2]
    replace_constant(model, zero, np.full((), 1, constant(model, zero).dtype))


def wrong_axis(model: Any, dialect: Dialect) -> None:
    (axis,) = (a for a in maker(model, "c1.weight.dequantized").attribute if a.name == "axis")
    axis.i = 1 - axis.i


def wrong_axis_of_a_product(model: Any, dialect: Dialect) -> None:
    (axis,) = (a for a in maker(model, "f1.weight.dequantized").attribute if a.name == "axis")
    axis.i = 1 - axis.i


def half_up(model: Any, dialect: Dialect) -> None:
    """The image is rounded with floor(x + 1/2)."""
    node = maker(model, "image.quantized")
    kind = onnx.TensorProto.FLOAT
    place = list(model.graph.node).index(node)
    source, scale = node.input[:2]
    model.graph.node.remove(node)
    for name, value in (("half", 0.5), ("lowest", -128), ("highest", 127)):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    steps = [
        helper.make_node("Cast", [source], ["x32"], "to32", to=kind),
        helper.make_node("Cast", [scale], ["s32"], "scale32", to=kind),
        helper.make_node("Div", ["x32", "s32"], ["steps"], "divide"),
        helper.make_node("Add", ["steps", "half"], ["raised"], "raise"),
        helper.make_node("Floor", ["raised"], ["whole"], "floor"),
        helper.make_node("Clip", ["whole", "lowest", "highest"], ["clipped"], "clip"),
        helper.make_node(
            "Cast", ["clipped"], ["image.quantized"], "narrow", to=onnx.TensorProto.INT8
        ),
    ]
    for step in reversed(steps):
        model.graph.node.insert(place, step)


def wide_range(model: Any, dialect: Dialect) -> None:
    """Weights use the lowest integer too: amax / (qmax + 1), from -qmax - 1 on."""
    for name in ("c0.weight", "c1.weight"):
        scales = constant(model, f"{name}.scale").astype(np.float64)
        integers = constant(model, f"{name}.quantized")
        weights, top = integers * scales.reshape(-1, 1, 1, 1), int(np.abs(integers).max())
        wider = (scales * top / (top + 1)).astype(dialect.high_precision)
        steps = np.rint(weights / wider.astype(np.float64).reshape(-1, 1, 1, 1))
        replace_constant(model, f"{name}.scale", wider)
        replace_constant(model, f"{name}.quantized", np.clip(steps, -top - 1, top).astype(np.int8))


def weights_beyond_the_narrow_range(model: Any, dialect: Dialect) -> None:
    """The least of it: each channel's lowest weight of the last layer one step lower."""
    weights = constant(model, "f2.weight.quantized").copy()
    weights[weights == weights.min()] -= 1
    replace_constant(model, "f2.weight.quantized", weights)


def other_types_scale(model: Any, dialect: Dialect) -> None:
    """255 where it should be 127, or the other way."""
    unsigned = dialect.nonnegative.dtype == "uint8"
    scale = constant(model, "c0.relu.scale")
    factor = 255 / 127 if unsigned else 127 / 255
    replace_constant(model, "c0.relu.scale", (scale * factor).astype(scale.dtype))


def missing_bias(model: Any, dialect: Dialect) -> None:
    del maker(model, "c1").input[2:]


def unsigned_for_signed(model: Any, dialect: Dialect) -> None:
    """The image, of both signs, as uint8."""
    zero = maker(model, "image.quantized").input[2]
    replace_constant(model, zero, np.zeros((), np.uint8))
    del model.graph.value_info[:]  # inferred anew


def signed_for_unsigned(model: Any, dialect: Dialect) -> None:
    """What is never negative as int8, its scale left as it is."""
    zero = maker(model, "c1.relu.quantized").input[2]
    if constant(model, zero).dtype != np.uint8:
        pytest.skip("this dialect has no uint8")
    replace_constant(model, zero, np.zeros((), np.int8))
    del model.graph.value_info[:]


MISTAKES: list[Callable[[Any, Dialect], None]] = [
    wrong_zero_point,
    zero_point_taken_off_alone,
    zero_point_both_ways,
    wrong_axis,
    wrong_axis_of_a_product,
    half_up,
    wide_range,
    weights_beyond_the_narrow_range,
    other_types_scale,
    missing_bias,
    unsigned_for_signed,
    signed_for_unsigned,
]


@pytest.mark.parametrize(("name", "form"), engines.RUNS)
def test_engines_agree_where_nothing_is_wrong(name: str, form: str) -> None:
    engine = engines.exact(name, form)
    with quantized(NETWORK, FORMS[form]) as case:
        verdict = engines.hold(engine, case.path, case.built.image, case.graph)
        assert verdict.wrong == {}


@pytest.mark.parametrize(("name", "form"), engines.RUNS)
@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_engine_on_a_wrong_graph_is_rejected(
    mistake: Callable[[Any, Dialect], None], name: str, form: str
) -> None:
    engine = engines.exact(name, form)
    if mistake is zero_point_both_ways and not engine.shows:
        pytest.skip("the integers are others, the scores are the same")
    with quantized(NETWORK, FORMS[form]) as case:
        model = onnx.load(case.path)
        mistake(model, FORMS[form])
        wrong = case.path.with_name("wrong.onnx")
        onnx.save(model, wrong)
        verdict = engines.hold(engine, wrong, case.built.image, case.graph)
        assert verdict.wrong != {}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_wrong_graph_is_not_what_was_intended(
    mistake: Callable[[Any, Dialect], None], form: str
) -> None:
    dialect = FORMS[form]
    with quantized(NETWORK, dialect) as case:
        model = onnx.load(case.path)
        mistake(model, dialect)
        graph = float64.Graph(model)
        values = graph.run(case.built.image)
        weights = [values[node.inputs[1]] for node in intent.weighted(graph)]
        integers, scores = intent.meant(case.built, case.table, dialect, weights, case.built.image)
        names = [node.output for node in intent.quantizers(case.graph)]
        as_meant = [np.array_equal(values[n], i) for n, i in zip(names, integers, strict=True)]
        same_scores = np.allclose(values["scores"], scores, rtol=1e-10, atol=1e-12)
        faults = intent.weight_faults(case.built, case.table, dialect, graph)
        assert faults or not all(as_meant) or not same_scores
