"""``build --sparsity 2:4``: the pattern in what the engine is compiled from, and its error told."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from rich.console import Console

from vggdeploy import bundle, calibration_file, cli, graphs, pipeline, targets
from vggdeploy.calib import CalibrationTable
from vggdeploy.console import show_build
from vggdeploy.errors import BundleError, ConfigError, ModelError
from vggdeploy.manifest import CALIBRATION, GRAPH
from vggdeploy.targets import trt_api, trt_build
from vggdeploy.terminal import Terminal
from vggdeploy.verification import verify

if TYPE_CHECKING:
    from collections.abc import Callable

    Options = Callable[..., pipeline.BuildOptions]

pytest.importorskip("openvino")

TRT = "trt-fp32, trt-fp16, trt-int8"


def weights_of(path: Path) -> dict[str, np.ndarray]:
    """Every layer's weights as the graph has them, integers or floats, outputs first."""
    model = graphs.read(path / GRAPH)
    found = {}
    for node in model.graph:
        if node.op_type not in graphs.WEIGHTED:
            continue
        value = node.inputs[1]
        while value.producer() is not None:
            value = value.producer().inputs[0]
        name = value.name.removesuffix(".quantized").removesuffix(".weight")
        array = value.const_value.numpy()
        turned = node.op_type == "MatMul" or (
            node.op_type == "Gemm" and not graphs.attribute(node, "transB", 0)
        )
        found[name] = array.T if turned else array
    return found


def fullest_group(weights: np.ndarray) -> int:
    """The most weights that are not 0 of 4 successive inputs, at any output and position."""
    groups = weights.reshape(len(weights), weights.shape[1] // 4, 4, -1)
    return int(np.count_nonzero(groups, axis=2).max())


@pytest.fixture(scope="module")
def made(slim: Options, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The slim network, sparse, as trt-int8: by TensorRT for RTX where that is here."""
    out = tmp_path_factory.mktemp("sparse") / "int8"
    here = trt_api.flavours()["rtx"].ok
    changes = {"flavour": "rtx"} if here else {"portable": True}
    return pipeline.build(slim(target="trt-int8", sparsity="2:4", out=out, **changes))


@pytest.fixture
def path(made: dict[str, Any]) -> Path:
    return Path(made["bundle"])


def test_the_pattern_is_in_the_integers_of_every_sparse_layer(
    made: dict[str, Any], path: Path
) -> None:
    weights = weights_of(path)
    names = [layer["name"] for layer in made["sparsity"]["layers"]]
    assert made["sparsity"]["dense"] == [["features.0", "3 inputs, no multiple of 4"]]
    assert {"features.0", *names} == set(weights)
    assert len(names) == 15
    for name in names:
        assert weights[name].dtype == np.int8
        assert fullest_group(weights[name]) == 2
    assert np.count_nonzero(weights["features.0"]) > 0.9 * weights["features.0"].size


def pruned_graphs(options: pipeline.BuildOptions) -> tuple[Any, Any]:
    """The float graphs of a build, before pruning and after, from the cache."""
    from vggdeploy import building, pruning
    from vggdeploy.contracts import Silent

    job = building.Build(options, Silent())
    before = job.export()
    after = pruning.stage(job, before)
    assert after.cached
    return before, after


def test_zeros_stay_zeros_and_errors_are_those_of_the_weights(
    made: dict[str, Any], path: Path, slim: Options, tmp_path: Path
) -> None:
    before, after = pruned_graphs(
        slim(target="trt-int8", sparsity="2:4", portable=True, out=tmp_path / "none")
    )
    dense, sparse, integers = (weights_of(p) for p in (before.path, after.path, path))
    for layer in made["sparsity"]["layers"]:
        old, new = dense[layer["name"]], sparse[layer["name"]]
        assert fullest_group(new) == 2
        assert not integers[layer["name"]][new == 0].any()
        error = np.linalg.norm(old - new) / np.linalg.norm(old)
        assert layer["weight_error"] == pytest.approx(float(error), rel=1e-4)
        # The two smallest of four normal values are a third of their norm at least.
        assert 0.25 < layer["weight_error"] < 0.6
        assert 0 < layer["output_error"] < 0.1
    np.testing.assert_array_equal(dense["features.0"], sparse["features.0"])
    assert made["sparsity"]["compensated"] is True


def test_the_manifest_says_it(made: dict[str, Any], path: Path) -> None:
    manifest = bundle.open_bundle(path).manifest
    assert manifest["build"]["sparsity"] == made["sparsity"]
    assert manifest["recipe"]["sparse"] is True
    table = CalibrationTable.load(path / CALIBRATION)
    assert table.source["sparsity"] == "2:4"


def test_accuracy_is_judged_against_the_dense_network(path: Path) -> None:
    found = verify(path)
    assert found["parity"]["top1_agreement"] >= 0.95
    # Far from the 45 dB and more of dense weights: it is the network as it was that counts.
    assert 20 < found["parity"]["sqnr_db"] < 45


@pytest.mark.skipif(not trt_api.flavours()["rtx"].ok, reason="needs TensorRT for RTX")
def test_tensorrt_is_told_to_look_for_it(
    made: dict[str, Any], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert made["engine_bytes"] > 1e6
    seen = []
    real = trt_build._profile

    def note(builder: Any, network: Any, config: Any, options: Any) -> Any:
        flag = trt_api.load("rtx").module.BuilderFlag.SPARSE_WEIGHTS
        seen.append((options.sparse, config.get_flag(flag)))
        return real(builder, network, config, options)

    monkeypatch.setattr(trt_build, "_profile", note)
    from vggdeploy import compiling

    compiling.compile_bundle(path, out=path.with_name("again"))
    assert seen == [(True, True)]


@pytest.mark.parametrize("target", ["trt-fp32", "trt-fp16"])
def test_float_targets_take_pruned_floats(target: str, tiny: Options, tmp_path: Path) -> None:
    options = tiny(target=target, sparsity="2:4", portable=True, out=tmp_path / "sparse")
    said = pipeline.build(options)["sparsity"]
    weights = weights_of(tmp_path / "sparse")
    assert [name for name, _ in said["dense"]] == ["features.0", "features.3"]
    for layer in said["layers"]:
        assert weights[layer["name"]].dtype == target.replace("trt-fp", "float")
        assert fullest_group(weights[layer["name"]]) == 2
    assert bundle.open_bundle(tmp_path / "sparse").manifest["build"]["sparsity"] == said


def test_rounding_to_nearest_prunes_by_magnitude_alone(tiny: Options, tmp_path: Path) -> None:
    options = tiny(
        target="trt-int8", sparsity="2:4", portable=True, weight_rounding="nearest",
        out=tmp_path / "plain",
    )  # fmt: skip
    said = pipeline.build(options)["sparsity"]
    assert said["compensated"] is False
    assert {layer["output_error"] for layer in said["layers"]} == {None}
    before, after = pruned_graphs(options)
    dense, sparse = weights_of(before.path), weights_of(after.path)
    for layer in said["layers"]:
        stayed = sparse[layer["name"]] != 0
        np.testing.assert_array_equal(sparse[layer["name"]][stayed], dense[layer["name"]][stayed])
        assert fullest_group(weights_of(tmp_path / "plain")[layer["name"]]) == 2


def test_dense_builds_are_another_bundle(tiny: Options, tmp_path: Path) -> None:
    base = tiny(target="trt-fp16", portable=True, out=tmp_path / "one")
    dense = pipeline.build(base)
    assert dense["sparsity"] is None
    assert bundle.open_bundle(tmp_path / "one").manifest["build"]["sparsity"] is None
    assert fullest_group(weights_of(tmp_path / "one")["classifier.0"]) == 4
    with pytest.raises(BundleError, match="other inputs"):
        pipeline.build(replace(base, sparsity="2:4"))


def test_the_table_that_people_see(made: dict[str, Any]) -> None:
    page = io.StringIO()
    show_build(Terminal(Console(file=page, width=120)), made)
    said = page.getvalue()
    first = made["sparsity"]["layers"][0]
    assert "2:4 sparsity" in said
    assert f"{first['name']}" in said
    assert f"{first['weight_error']:.1%}" in said
    assert f"{first['output_error']:.1%}" in said
    assert "left dense: features.0 (3 inputs, no multiple of 4)" in said


@pytest.mark.parametrize("target", [name for name in targets.REGISTRY if name[:3] != "trt"])
def test_other_targets_name_those_that_take_it(target: str, capsys: Any) -> None:
    assert cli.main(["build", "--target", target, "--sparsity", "2:4"]) == 2
    said = capsys.readouterr().err
    assert f"--sparsity makes no difference to {target}" in said
    assert TRT in said


def test_another_pattern_is_refused(tiny: Options) -> None:
    with pytest.raises(ConfigError, match=r"unknown --sparsity: got '1:4', expected 2:4"):
        pipeline.build(tiny(target="trt-int8", portable=True, sparsity="1:4"))


def test_a_network_that_cannot_have_it_is_refused(tiny: Options, tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def weight(name: str, *shape: int) -> Any:
        rng = np.random.default_rng(0)
        return numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)

    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "c.weight"], ["c"], "c"),
            helper.make_node("GlobalAveragePool", ["c"], ["p"]),
            helper.make_node("Flatten", ["p"], ["f"]),
            helper.make_node("Gemm", ["f", "g.weight"], ["scores"], "g", transB=1),
        ],
        "odd",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 64, 64])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 10])],
        [weight("c.weight", 6, 3, 3, 3), weight("g.weight", 10, 6)],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), tmp_path / "odd.onnx")
    base = tiny()
    options = pipeline.BuildOptions(
        model=tmp_path / "odd.onnx", preprocess=base.preprocess, calib_data=base.calib_data,
        calib_images=8, target="trt-fp16", portable=True, sparsity="2:4", out=tmp_path / "none",
    )  # fmt: skip
    with pytest.raises(ModelError, match=r"no layer .* 2:4 .*c: 3 inputs.*g: 6 inputs"):
        pipeline.build(options)
    assert not (tmp_path / "none").exists()


def test_a_table_of_other_weights_is_said(tmp_path: Path) -> None:
    sparse = CalibrationTable({}, {"sparsity": "2:4", "model": {}, "preprocess": {}})
    dense = CalibrationTable({}, {"model": {}, "preprocess": {}})
    told = calibration_file.cautions
    assert told(sparse, tmp_path, "2:4") == told(dense, tmp_path, None) == []
    assert "is of 2:4 weights and the build's are dense" in told(sparse, tmp_path, None)[0]
    assert "is of dense weights and the build's are 2:4" in told(dense, tmp_path, "2:4")[0]
    assert told(None, None, "2:4") == []
