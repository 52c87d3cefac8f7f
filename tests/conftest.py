"""What the tests share: one cache for the session, small networks, small folders of digits."""

from __future__ import annotations

import gc
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import settings

from vggdeploy import checkpoints, dataset, demo, inputs, pipeline, sources, targets, topology
from vggdeploy.cache import Cache
from vggdeploy.contracts import Silent
from vggdeploy.demo import digits
from vggdeploy.targets import openvino_module

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vggdeploy.pipeline import BuildOptions
    from vggdeploy.topology import Network

pytest_plugins = ["pytester"]

openvino_module.silence()  # of the tests' own imports, too

# The same examples every time; no deadline, since a shared machine may pause.
settings.register_profile("vggdeploy", derandomize=True, deadline=None, database=None)
settings.load_profile("vggdeploy")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where TensorRT has none, and say why."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    here = targets.get("trt-int8").runs_on("CPU")
    if not here.ok:
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=f"{here.reason}: {here.fix}"))


@pytest.fixture(scope="session", autouse=True)
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A stage cache for the session, away from the user's own."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VGGDEPLOY_CACHE", str(folder))
        patch.delenv("VGGDEPLOY_CACHE_LIMIT", raising=False)
        yield folder


def _write_digits(split: str, count: int, folder: Path) -> Path:
    """The first `count` digits of a split, as class folders 0 to 9."""
    from PIL import Image

    pixels, labels = digits.split(split)
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
    for index in range(count):
        place = folder / str(labels[index]) / f"{index:04}.png"
        Image.fromarray(pixels[index]).save(place)
    return folder


def _settle() -> None:
    """Take what torch and its exporter hold for good out of the garbage collector's sight: a build
    collects after each stage, and each of those would go through all of it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 labelled training digits: 16 calibrate, 32 are left, for probes and to judge."""
    return _write_digits("training", 48, tmp_path_factory.mktemp("digits") / "training")


@pytest.fixture(scope="session")
def heldout_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 labelled digits that the demo was not trained on; every class is among them."""
    return _write_digits("heldout", 24, tmp_path_factory.mktemp("digits") / "heldout")


@pytest.fixture(scope="session")
def slim(digits_folder: Path) -> Callable[..., BuildOptions]:
    """Options of a build of the slim demo network (an eighth of the width, trained)."""
    base = pipeline.BuildOptions(
        weights=str(demo.CHECKPOINT), calib_data=str(digits_folder), calib_images=16
    )
    return lambda **changes: replace(base, **changes)


@pytest.fixture(scope="session")
def tiny(
    random_weights: Callable[..., Path],
    digits_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., BuildOptions]:
    """Options of a build of a VGG11 with random weights, 1/32 of the width, at 64 pixels: for what
    no accuracy is needed for."""
    folder = tmp_path_factory.mktemp("tiny")
    recipe = 'size = [64, 64]\nresize = "stretch"\nmean = [0, 0, 0]\nstd = [1, 1, 1]\n'
    (folder / "tiny.toml").write_text(recipe)
    network = topology.vgg("vgg11", num_classes=10, input_size=(64, 64), width_divisor=32)
    base = pipeline.BuildOptions(
        weights=str(random_weights(network, folder / "tiny.safetensors")),
        preprocess=str(folder / "tiny.toml"),
        calib_data=str(digits_folder),
        calib_images=16,
    )
    return lambda **changes: replace(base, **changes)


@pytest.fixture(scope="session")
def spoilt(
    tiny: Callable[..., BuildOptions], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., BuildOptions]:
    """Options of a build of the tiny network with one layer that cannot be quantized well,
    ``features.8``.

    Each of its outputs has huge weights for a channel that is always 0, so that they change nothing
    but the step of its other weights. The scores have no mean, so that images differ in their best
    class.
    """
    base = tiny()
    whole = str(base.weights)
    network = topology.vgg("vgg11", num_classes=10, input_size=(64, 64), width_divisor=32)
    held = {key: value.numpy().copy() for key, value in checkpoints.read(Path(whole)).items()}
    held["features.6.bias"][0] = -100
    held["features.8.weight"][:, 0] *= 300
    folder = tmp_path_factory.mktemp("spoilt")

    def save(name: str) -> BuildOptions:
        checkpoints.save(folder / name, held, network, "unit")
        return replace(base, weights=str(folder / name), weight_rounding="nearest")

    source, store = inputs.resolve(save("first.safetensors")), Cache()
    images = dataset.scan(Path(str(base.calib_data)))
    entry = sources.scores(source, images, store, Silent())
    held["classifier.6.bias"] -= np.load(entry.path / sources.SCORES).mean(0)
    made = save("spoilt.safetensors")
    return lambda **changes: replace(made, **changes)


@pytest.fixture(scope="session")
def slim_bundle(slim: Callable[..., BuildOptions], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An ov-int8 bundle of the slim demo network. Tests read it and leave it as it is."""
    pytest.importorskip("openvino")
    out = tmp_path_factory.mktemp("bundle") / "slim"
    pipeline.build(slim(out=out))
    _settle()
    return out


@pytest.fixture(scope="session")
def tiny_bundle(tiny: Callable[..., BuildOptions], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An ov-int8 bundle of the tiny network. Tests read it and leave it as it is."""
    pytest.importorskip("openvino")
    out = tmp_path_factory.mktemp("bundle") / "tiny"
    pipeline.build(tiny(out=out))
    _settle()
    return out


@pytest.fixture(scope="session")
def slim_onnx(slim: Callable[..., BuildOptions], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The slim demo network as a float ONNX graph, weights beside it."""
    out = tmp_path_factory.mktemp("onnx") / "slim"
    return out / pipeline.export_graph(slim(out=out))["onnx"].rsplit(os.sep, 1)[-1]


@pytest.fixture(scope="session")
def random_weights() -> Callable[..., Path]:
    """Writes a checkpoint with random weights (He's variance, so that activations keep theirs)."""

    def make(
        network: Network, path: Path, *, zero_bias: bool = False, preprocess: str = "unit"
    ) -> Path:
        rng = np.random.default_rng(7)
        tensors: dict[str, Any] = {}
        for layer in network.layers:
            width = layer.out_channels
            if layer.kind in ("conv", "linear"):
                shape = (width, layer.in_channels)
                shape += (layer.kernel, layer.kernel) if layer.kind == "conv" else ()
                spread = np.sqrt(2 / np.prod(shape[1:]))
                tensors[f"{layer.name}.weight"] = rng.normal(0, spread, shape)
                tensors[f"{layer.name}.bias"] = rng.normal(0, 0.0 if zero_bias else 0.1, width)
            elif layer.kind == "batchnorm":
                tensors[f"{layer.name}.weight"] = rng.uniform(0.5, 1.5, width)
                tensors[f"{layer.name}.bias"] = rng.normal(0, 0.1, width)
                tensors[f"{layer.name}.running_mean"] = rng.normal(0, 0.1, width)
                tensors[f"{layer.name}.running_var"] = rng.uniform(0.5, 1.5, width)
        single = {key: value.astype(np.float32) for key, value in tensors.items()}
        checkpoints.save(path, single, network, preprocess)
        return path

    return make


@pytest.fixture(scope="session")
def small_graph() -> Callable[..., Any]:
    """Makes a VGG-like onnx.ModelProto of a few layers, image [N, 3, 32, 32], scores [N, 10].

    Two convolutions, pool, a convolution without bias, pool, Reshape, two Gemms with transB=1: all
    that the full network has, in float32 with random weights.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def make(opset: int = 17) -> onnx.ModelProto:
        rng = np.random.default_rng(3)

        def array(name: str, *shape: int) -> onnx.TensorProto:
            spread = np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.1
            return numpy_helper.from_array(rng.normal(0, spread, shape).astype(np.float32), name)

        weights = [
            array("c0.weight", 8, 3, 3, 3),
            array("c0.bias", 8),
            array("c1.weight", 8, 8, 3, 3),
            array("c1.bias", 8),
            array("c2.weight", 16, 8, 3, 3),
            array("f0.weight", 24, 16 * 8 * 8),
            array("f0.bias", 24),
            array("f1.weight", 10, 24),
            array("f1.bias", 10),
            numpy_helper.from_array(np.array([-1, 16 * 8 * 8], np.int64), "shape"),
        ]

        def conv(image: str, name: str, bias: bool = True) -> list[onnx.NodeProto]:
            inputs = [image, f"{name}.weight"] + ([f"{name}.bias"] if bias else [])
            return [
                helper.make_node("Conv", inputs, [name], name, pads=[1, 1, 1, 1]),
                helper.make_node("Relu", [name], [f"{name}.relu"]),
            ]

        def pool(image: str, name: str) -> onnx.NodeProto:
            return helper.make_node("MaxPool", [image], [name], kernel_shape=[2, 2], strides=[2, 2])

        def gemm(vector: str, name: str, out: str) -> onnx.NodeProto:
            inputs = [vector, f"{name}.weight", f"{name}.bias"]
            return helper.make_node("Gemm", inputs, [out], name, transB=1)

        nodes = [
            *conv("image", "c0"),
            *conv("c0.relu", "c1"),
            pool("c1.relu", "p0"),
            *conv("p0", "c2", bias=False),
            pool("c2.relu", "p1"),
            helper.make_node("Reshape", ["p1", "shape"], ["flat"]),
            gemm("flat", "f0", "f0"),
            helper.make_node("Relu", ["f0"], ["f0.relu"]),
            gemm("f0.relu", "f1", "scores"),
        ]
        graph = helper.make_graph(
            nodes,
            "small",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 32, 32])],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 10])],
            weights,
        )
        # IR version 9 is of opset 20's time: every reader here knows it.
        return onnx.shape_inference.infer_shapes(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
        )

    return make


@pytest.fixture
def own_cache(
    tmp_path: Path, shared_cache: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A cache that a test may damage; what torch does, which is slow, is there already."""
    folder = tmp_path / "cache"
    for stage in ("export", "reference"):
        shutil.copytree(shared_cache / stage, folder / stage)
    monkeypatch.setenv("VGGDEPLOY_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def folder_contents() -> Callable[[Path], dict[str, bytes]]:
    """Every file of a folder, by name."""
    return lambda folder: {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
