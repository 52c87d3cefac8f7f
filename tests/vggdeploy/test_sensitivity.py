"""Layers ranked by the damage that each does alone: the figures, the table, the chart."""

from __future__ import annotations

import importlib.util
import json
import xml.etree.ElementTree as ElementTree
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from vggdeploy import (
    calib,
    calibrating,
    console,
    graphs,
    inputs,
    parity,
    pipeline,
    plots,
    sensitivity,
)
from vggdeploy.cli import main
from vggdeploy.contracts import Silent
from vggdeploy.errors import ConfigError, MissingError, ModelError
from vggdeploy.terminal import Terminal, bar

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Options = Callable[..., pipeline.BuildOptions]

pytest.importorskip("openvino")
pytest.importorskip("torch")

LAYERS = {
    "features.0", "features.3", "features.6", "features.8", "features.11", "features.13",
    "features.16", "features.18", "classifier.0", "classifier.3", "classifier.6",
}  # fmt: skip


@pytest.fixture(scope="module")
def ranked(spoilt: Options, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The spoilt network's layers, on 8 of its 16 calibration images."""
    out = tmp_path_factory.mktemp("ranked") / "table.json"
    return pipeline.calibrate(spoilt(out=out, sensitivity_images=8), rank=True)


def test_the_spoilt_layer_is_the_worst(ranked: dict[str, Any]) -> None:
    layers = ranked["layers"]
    assert ranked["kind"] == "sensitivity"
    assert ranked["target"] == "ov-int8"
    assert ranked["sensitivity_images"] == 8
    assert ranked["calibration_images"] == 16
    assert {layer["name"] for layer in layers} == LAYERS
    assert layers[0]["name"] == "features.8"
    assert layers[0]["sqnr_db"] < layers[1]["sqnr_db"] - 10
    assert layers[0]["agreement"] < min(layer["agreement"] for layer in layers[1:])
    assert [layer["sqnr_db"] for layer in layers] == sorted(layer["sqnr_db"] for layer in layers)
    assert json.loads(json.dumps(ranked, allow_nan=False)) == ranked


def test_macs_and_weights_are_the_networks(ranked: dict[str, Any]) -> None:
    layers = {layer["name"]: layer for layer in ranked["layers"]}
    # 8 channels in and out, 3x3, on a map of 16x16.
    assert layers["features.8"]["macs"] == 16 * 16 * 8 * 8 * 9
    assert layers["classifier.6"]["macs"] == 128 * 10
    assert sum(layer["weight_share"] for layer in layers.values()) == pytest.approx(1)
    # 784 x 128 weights and 128 biases, of 127,424 in all.
    assert layers["classifier.0"]["weight_share"] == pytest.approx(0.7886, abs=1e-3)


def test_figures_are_those_of_a_graph_quantized_by_itself(
    spoilt: Options, ranked: dict[str, Any], tmp_path: Path
) -> None:
    """A layer's figures again, from a graph of its own that shares nothing."""
    options = spoilt(out=tmp_path / "table.json", sensitivity_images=8)
    dialect = sensitivity.dialect(options)
    job = calibrating.Calibration(options, Silent())
    graph = job.export()
    table = job.calibrate(graph, job.collect(graph))
    name = "features.13"
    others = {found.name for found in graphs.weighted(graphs.read(graph.path / "model.onnx"))}
    calib.quantize(
        graph.path / "model.onnx",
        calibrating.load_table(table),
        dialect,
        tmp_path / "alone.onnx",
        keep=others - {name},
    )
    images = list(job.ranking.pixels(job.source.preprocess))
    reference, found = (
        np.concatenate(list(sensitivity.float_scores(path, images, job.source.preprocess)))
        for path in (graph.path / "model.onnx", tmp_path / "alone.onnx")
    )
    close = parity.parity(reference, found)
    (said,) = (layer for layer in ranked["layers"] if layer["name"] == name)
    assert said["sqnr_db"] == pytest.approx(close.sqnr_db, abs=1e-3)
    assert said["agreement"] == close.top1_agreement


def test_second_time_nothing_runs(
    spoilt: Options, ranked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vggdeploy.targets.openvino.OpenVINO.open_graph", None)
    options = spoilt(out=tmp_path / "table.json", sensitivity_images=8)
    again = pipeline.calibrate(options, rank=True)
    assert again["layers"] == ranked["layers"]
    assert all(stage["cached"] for stage in again["stages"])
    with pytest.raises(TypeError, match="not callable"):
        pipeline.calibrate(spoilt(out=tmp_path / "other.json", sensitivity_images=7), rank=True)


def test_no_scratch_is_kept(spoilt: Options, ranked: dict[str, Any], tmp_path: Path) -> None:
    options = spoilt(out=tmp_path / "table.json", sensitivity_images=8)
    job = calibrating.Calibration(options, Silent())
    graph = job.export()
    table = job.calibrate(graph, job.collect(graph))
    entry = sensitivity.stage(job, graph, table, None, sensitivity.dialect(options))
    assert entry.cached
    assert sorted(path.name for path in entry.path.iterdir()) == ["entry.json", "sensitivity.json"]


def test_scores_that_are_not_finite_are_an_error(
    small_graph: Callable[..., Any], tmp_path: Path
) -> None:
    import onnx

    model = small_graph()
    for tensor in model.graph.initializer:
        if tensor.name == "f1.bias":
            tensor.CopyFrom(
                onnx.numpy_helper.from_array(np.full(10, np.nan, np.float32), "f1.bias")
            )
    onnx.save(model, tmp_path / "nan.onnx")
    options = pipeline.BuildOptions()
    recipe = inputs.resolve(options).preprocess
    with pytest.raises(ModelError, match=r"nan\.onnx gives NaN"):
        list(
            sensitivity.float_scores(
                tmp_path / "nan.onnx", [np.zeros((32, 32, 3), np.uint8)], recipe
            )
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": "ov-fp32"}, "ov-fp32, which quantizes none"),
        ({"sensitivity_images": 0}, "--sensitivity-images is wrong: got 0"),
    ],
)
def test_what_cannot_be_ranked(
    tiny: Options, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        pipeline.calibrate(tiny(out=tmp_path / "table.json", **changes), rank=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("share", "drawn"),
    [(0, ""), (1, "█" * 20), (0.5, "█" * 10), (1 / 160, "▏"), (7 / 160, "▉"), (3, "█" * 20)],
)
def test_bars(share: float, drawn: str) -> None:
    assert bar(share) == drawn


def test_the_table_is_sorted_and_has_bars(
    ranked: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    console.show_sensitivity(Terminal(), ranked)
    lines = capsys.readouterr().err.splitlines()
    assert "ov-int8, 8 calibration images" in lines[0]
    rows = [line.split() for line in lines[2:]]
    assert [row[0] for row in rows] == [layer["name"] for layer in ranked["layers"]]
    assert rows[0][1] == "█" * 20
    assert all("█" * 20 not in line for line in lines[3:])


def test_command(
    tiny: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    options = tiny()
    flags = [
        "calibrate", "--weights", options.weights, "--preprocess", options.preprocess,
        "--calib-data", options.calib_data, "--calib-images", "16", "--out", "table.json",
        "--weight-rounding", "nearest",
    ]  # fmt: skip
    assert main([*flags, "--plot", "chart.svg"]) == 2
    assert "--plot shows what --sensitivity finds" in " ".join(capsys.readouterr().err.split())
    assert main([*flags, "--sensitivity", "--sensitivity-images", "4", "--json", "-"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert result["kind"] == "sensitivity"
    assert {"name", "sqnr_db", "agreement", "macs", "weight_share"} == set(result["layers"][0])
    assert "wrote table.json" in err
    assert "features.18" in err
    assert (tmp_path / "table.json").is_file()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("chart.pdf", r"\.pdf.*\.svg or \.png"),
        ("chart", r"ending ''"),
        ("there.svg", "exists"),
        ("nowhere/chart.svg", "no folder"),
    ],
)
def test_charts_that_cannot_be_written(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "there.svg").write_text("mine")
    with pytest.raises(ConfigError, match=message):
        plots.check(tmp_path / name, force=False)
    assert (tmp_path / "there.svg").read_text() == "mine"


def test_a_chart_without_matplotlib_is_refused_before_any_work(
    tiny: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "matplotlib" else found(name)
    )
    with pytest.raises(MissingError, match=r"matplotlib.*pip install 'vggdeploy\[report\]'"):
        pipeline.calibrate(tiny(out=tmp_path / "t.json"), rank=True, plot=tmp_path / "chart.svg")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", [".svg", ".png"])
def test_chart(ranked: dict[str, Any], tmp_path: Path, ending: str) -> None:
    pytest.importorskip("matplotlib")
    paths = [tmp_path / f"{name}{ending}" for name in ("one", "two")]
    for path in paths:
        plots.sensitivity(ranked, path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    if ending == ".png":
        assert paths[0].read_bytes().startswith(b"\x89PNG")
        return
    nodes = [node for node in ElementTree.parse(paths[0]).iter() if node.tag.endswith("text")]
    text = [node.text for node in nodes]
    heights = {node.text: float(node.get("y", "nan")) for node in nodes if node.text in LAYERS}
    # SVG counts downwards: the most damaging layer is on top.
    assert sorted(heights, key=heights.__getitem__) == [layer["name"] for layer in ranked["layers"]]
    assert any("dB" in str(word) for word in text)
