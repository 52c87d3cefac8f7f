"""Foreign graphs from the file to a verified bundle, small and in full."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from vggdeploy import (
    bundle,
    pipeline,
    reference,
    sources,
    targets,
    verification,
)
from vggdeploy.contracts import RunOptions
from vggdeploy.errors import ConfigError, ModelError

onnx = pytest.importorskip("onnx")
pytest.importorskip("openvino")

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STYLES = {"tf2onnx": "nhwc", "torch_old": "nchw", "keras": "nhwc"}


def recipe(folder: Path, size: int, layout: str) -> Path:
    path = folder / f"{layout}.toml"
    path.write_text(f'size = [{size}, {size}]\nresize = "stretch"\nlayout = "{layout}"\n')
    return path


@pytest.mark.parametrize("style", STYLES)
def test_builds_and_agrees_with_the_original(
    foreign: Callable[..., Any],
    save: Callable[..., Path],
    digits_folder: Path,
    heldout_folder: Path,
    tmp_path: Path,
    style: str,
) -> None:
    model = foreign(style)
    out = tmp_path / "bundle"
    options = pipeline.BuildOptions(
        model=save(model, external=style == "keras"),
        preprocess=str(recipe(tmp_path, 64, STYLES[style])),
        calib_data=str(digits_folder),
        calib_images=16,
        cpu_isa="avx2",  # the integers that every CPU adds without saturation
        out=out,
    )
    assert pipeline.build(options)["left_in_high_precision"] == []
    said = bundle.open_bundle(out).manifest
    assert said["input"]["name"] == model.graph.input[0].name
    assert said["output"]["name"] == model.graph.output[0].name
    judged = verification.verify(out, data=str(heldout_folder))
    assert (judged["judged"], judged["note"]) == ("data", "")
    # The reference is the file itself, not what became of it. 20 dB and more with weights of 7 bits
    # in sixteen random layers of a few channels; a wrong scale, or a layer lost, leaves less than 10.
    assert judged["parity"]["sqnr_db"] > 15
    with targets.get("ov-int8").open(bundle.open_bundle(out), RunOptions()) as runner:
        layers = runner.executed_layers()
    heavy = [layer for layer in layers if layer["type"] in ("Convolution", "FullyConnected")]
    assert len(heavy) == 13 + (1 if style == "keras" else 3)
    assert {layer["precision"] for layer in heavy} <= {"u8", "i8"}
    rows = json.loads((out / "layers.json").read_text())["layers"]
    assert len(rows) == len(heavy)


@pytest.mark.parametrize("kind", ["float16", "float64"])
def test_reference_runs_a_graph_of_other_floats(
    foreign: Callable[..., Any],
    save: Callable[..., Path],
    heldout_folder: Path,
    digits_folder: Path,
    tmp_path: Path,
    kind: str,
) -> None:
    model = foreign("tf2onnx", features=(4, "M", 8, "M"), size=32)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            content = onnx.numpy_helper.to_array(tensor).astype(kind)
            tensor.CopyFrom(onnx.numpy_helper.from_array(content, tensor.name))
    for port in (*model.graph.input, *model.graph.output):
        code = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind))
        port.type.tensor_type.elem_type = code
    out = tmp_path / "bundle"
    options = pipeline.BuildOptions(
        target="ov-fp32",
        model=save(model),
        preprocess=str(recipe(tmp_path, 32, "nhwc")),
        calib_data=str(digits_folder),
        out=out,
    )
    pipeline.build(options)
    judged = verification.verify(out, data=str(heldout_folder))
    assert judged["judged"] == "data"
    # Both compute in float32; only the order of sums differs.
    assert judged["parity"]["max_abs"] < 1e-3


def test_wrong_layout_is_told_before_any_work(
    foreign: Callable[..., Any], save: Callable[..., Path], tmp_path: Path, digits_folder: Path
) -> None:
    options = pipeline.BuildOptions(
        model=save(foreign("tf2onnx")),
        preprocess=str(recipe(tmp_path, 64, "nchw")),
        calib_data=str(digits_folder),
        out=tmp_path / "bundle",
    )
    with pytest.raises(
        ConfigError, match=r"got images \[3, 64, 64\] \(nchw\), expected \[64, 64, 3\]"
    ):
        pipeline.build(options)


def test_graph_for_a_fixed_batch_of_many_is_no_reference(
    foreign: Callable[..., Any], save: Callable[..., Path], tmp_path: Path, digits_folder: Path
) -> None:
    """Images are run one by one; the adopted graph takes that, the file itself does not."""
    model = foreign("torch_old", features=(4, "M", 8, "M"), size=32)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    pool = next(node for node in model.graph.node if node.op_type == "AveragePool")
    pool.op_type = "Reshape"
    del pool.attribute[:]
    pool.input.append("target")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([4, 8, 8, 8]), "target"))
    options = pipeline.BuildOptions(
        target="ov-fp32",
        model=save(model),
        preprocess=str(recipe(tmp_path, 32, "nchw")),
        calib_data=str(digits_folder),
        out=tmp_path / "bundle",
    )
    with pytest.raises(ModelError, match=r"takes no batch of 1.*dynamic batch"):
        pipeline.build(options)


@pytest.mark.slow
def test_full_vgg16_with_the_quirks_of_tf2onnx(
    foreign: Callable[..., Any],
    plain_network: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The demo network as tf2onnx would have written it: 138 million parameters, NHWC, 224x224."""
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    monkeypatch.setenv("VGGDEPLOY_CACHE", str(tmp_path / "cache"))
    state = reference.load(reference.locate("demo")).state_dict()
    tensors: dict[str, np.ndarray] = {}
    features: list[int | str] = []
    counts = Counter[str]()
    for layer in reference.locate("demo").network.layers:
        if layer.kind == "maxpool":
            features.append("M")
        if layer.kind not in ("conv", "linear"):
            continue
        kind = layer.kind[0].replace("l", "f")
        for part in ("weight", "bias"):
            tensors[f"{kind}{counts[kind]}.{part}"] = state[f"{layer.name}.{part}"].numpy()
        counts[kind] += 1
        if kind == "c":
            features.append(layer.out_channels)
    path = tmp_path / "vgg16_tf.onnx"
    onnx.save(
        foreign("tf2onnx", plain_network(features, 224, tensors)),
        path,
        save_as_external_data=True,
        location="vgg16_tf.weights",
    )
    del state, tensors
    out = tmp_path / "bundle"
    result = pipeline.build(
        pipeline.BuildOptions(
            model=path,
            preprocess=str(recipe(tmp_path, 224, "nhwc")),
            calib_data=sources.DEMO,
            cpu_isa="avx2",
            out=out,
        )
    )
    assert result["left_in_high_precision"] == []
    layers = json.loads((out / "layers.json").read_text())
    assert layers["total"]["macs"] == 15_470_264_320
    assert layers["total"]["params"] == 138_357_544
    judged = verification.verify(out, data=sources.DEMO)
    assert (judged["judged"], judged["parity"]["n"]) == ("data", 400)
    # One of 400: what 8 bits may cost on digits that the network is sure of.
    assert judged["parity"]["top1_agreement"] >= 0.9975
    with targets.get("ov-int8").open(bundle.open_bundle(out), RunOptions()) as runner:
        counts = Counter(layer["type"] for layer in runner.executed_layers())
    assert (counts["Convolution"], counts["Pooling"], counts["FullyConnected"]) == (13, 5, 3)
    assert not [kind for kind in counts if "uantize" in kind and counts[kind] > 1]
