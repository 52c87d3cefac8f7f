"""Over random VGG-like networks: a Q/DQ graph is what its dialect promises, and engines compute it.

Three things are held against each other. What quantization intends, from the float graph and the
table (`intent`); what the graph written means, in float64 (`float64`); and what onnxruntime and
OpenVINO make of it, to within the rounding of float32 arithmetic (`reach`).
"""

from __future__ import annotations

from dataclasses import replace

import engines
import intent
import numpy as np
import pytest
from hypothesis import assume, given, settings
from networks import FORMS, TURNED, Network, networks, quantized

from vggdeploy.contracts import DIALECTS

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

MOVES = ("MaxPool", "Flatten", "Reshape")


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=40)
@given(network=networks())
def test_graph_means_what_was_intended(form: str, network: Network) -> None:
    """Exactly: the same integers at every point, and scores to float64's rounding."""
    with quantized(network, FORMS[form]) as case:
        assert intent.weight_faults(case.built, case.table, FORMS[form], case.graph) == []
        values = case.graph.run(case.built.image)
        weights = [values[node.inputs[1]] for node in intent.weighted(case.graph)]
        integers, scores = intent.meant(
            case.built, case.table, FORMS[form], weights, case.built.image
        )
        pairs = intent.quantizers(case.graph)
        points = case.built.points(FORMS[form])
        assert [node.inputs[0].removesuffix(".float16") for node in pairs] == [
            "image" if point.name == TURNED else point.name for point in points
        ]
        for node, point, mine in zip(pairs, points, integers, strict=True):
            found = values[node.output]
            turned = found.transpose(0, 3, 1, 2) if point.name == TURNED else found
            np.testing.assert_array_equal(turned, mine)
        np.testing.assert_allclose(values["scores"], scores, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("name", "form"), engines.RUNS)
@settings(max_examples=15)
@given(network=networks())
def test_engine_computes_what_the_graph_means(name: str, form: str, network: Network) -> None:
    """Every integer and every score lies where float32's rounding can take it."""
    engine = engines.exact(name, form)
    assume(not (name.startswith("openvino") and network.skips_moved_values))
    with quantized(network, FORMS[form]) as case:
        verdict = engines.hold(engine, case.path, case.built.image, case.graph)
        assert verdict.wrong == {}
        if engine.shows and not engine.integer_bias:
            # A comparison that lets everything pass would be none.
            assert verdict.widest <= 1
            assert verdict.undecided < 0.15


@settings(max_examples=40)
@given(network=networks())
def test_both_dialects_quantize_the_same_places(network: Network) -> None:
    """But for matrix products, whose inputs one of them leaves in float."""
    places = {}
    for name in ("openvino", "tensorrt"):
        with quantized(network, replace(DIALECTS[name], matrix=None)) as case:
            nodes = [node for node in case.graph.nodes if node.operator != "Cast"]
            places[name] = [
                (node.operator, [value.removesuffix(".float16") for value in node.inputs])
                for node in nodes
            ]
    assert places["openvino"] == places["tensorrt"]


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=25)
@given(network=networks())
def test_pair_stands_before_a_pool_and_none_behind(form: str, network: Network) -> None:
    with quantized(network, FORMS[form]) as case:
        makers = {node.output: node for node in case.graph.nodes}
        readers = {name: node for node in case.graph.nodes for name in node.inputs}
        for node in case.graph.nodes:
            if node.operator != "MaxPool":
                continue
            eight_bits = makers[node.inputs[0]].operator == "DequantizeLinear"
            assert eight_bits == (node.output in case.built.pools(FORMS[form]))
            if eight_bits:
                after = readers[node.output]
                while after.operator in MOVES:
                    after = readers[after.output]
                assert after.operator in intent.WEIGHTED


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=25)
@given(network=networks())
def test_scores_are_not_quantized(form: str, network: Network) -> None:
    with quantized(network, FORMS[form]) as case:
        makers = {node.output: node for node in case.graph.nodes}
        last = makers["scores"]
        last = makers[last.inputs[0]] if last.operator == "Cast" else last
        assert last.operator in ("Gemm", "MatMul", "Add")
        assert all(last.output not in node.inputs for node in intent.quantizers(case.graph))


@settings(max_examples=25)
@given(network=networks())
def test_no_two_nodes_have_one_name(network: Network) -> None:
    """The scores' node is named after its output, as many exporters have it; the Cast that gives
    the scores in a float16 graph must be named otherwise."""
    import onnx

    for dialect in DIALECTS.values():
        with quantized(network, dialect) as case:
            names = [node.name for node in onnx.load(case.path).graph.node]
            assert len(set(names)) == len(names)
