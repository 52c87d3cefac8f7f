"""Networks that take uint8 pixels: the graph, the engine, and what they compute."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from vggdeploy import (
    benching,
    bundle,
    execution,
    graphs,
    half,
    parity,
    pipeline,
    pixels,
    preprocess,
    targets,
)
from vggdeploy.benchmarks import BenchOptions
from vggdeploy.cli import main
from vggdeploy.contracts import Availability, CompileOptions, RunOptions, Silent, TensorSpec
from vggdeploy.errors import ConfigError, MissingError, RunnerError
from vggdeploy.manifest import CALIBRATION, GRAPH
from vggdeploy.preprocess import PRESETS, Preprocess
from vggdeploy.targets.tensorrt import TensorRT
from vggdeploy.verification import verify

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Capture = pytest.CaptureFixture[str]
    Options = Callable[..., pipeline.BuildOptions]

onnx = pytest.importorskip("onnx")
pytest.importorskip("openvino")

PIXELS = "uint8-nhwc"

# Of a network of 32x32 pixels: nothing to subtract, other channels first, and all there is.
RECIPES = {
    "unit": replace(PRESETS["unit"], size=(32, 32), resize="stretch"),
    "caffe": replace(PRESETS["caffe"], size=(32, 32), resize="stretch"),
    "imagenet": replace(PRESETS["imagenet"], size=(32, 32), resize="stretch"),
    "all": Preprocess((32, 32), "stretch", channels="bgr"),
}
STEPS = {
    "unit": ["Cast", "Mul", "Transpose"],
    "caffe": ["Cast", "Gather", "Sub", "Transpose"],
    "imagenet": ["Cast", "Sub", "Mul", "Transpose"],
    "all": ["Cast", "Gather", "Sub", "Mul", "Transpose"],
}

IMAGES = np.random.default_rng(2).integers(0, 256, (6, 32, 32, 3), np.uint8)


@pytest.fixture
def plain(small_graph: Callable[..., Any], tmp_path: Path) -> Path:
    """The small network in floats."""
    onnx.save(small_graph(), tmp_path / "plain.onnx")
    return tmp_path / "plain.onnx"


@pytest.fixture
def nhwc(small_graph: Callable[..., Any], tmp_path: Path) -> Path:
    """The small network with a Transpose in front, for images with their channels last."""
    model = small_graph()
    turn = onnx.helper.make_node("Transpose", ["image"], ["turned"], "turn", perm=[0, 3, 1, 2])
    for node in model.graph.node:
        node.input[:] = ["turned" if name == "image" else name for name in node.input]
    model.graph.node.insert(0, turn)
    for index, side in enumerate((32, 32, 3), start=1):
        model.graph.input[0].type.tensor_type.shape.dim[index].dim_value = side
    onnx.save(onnx.shape_inference.infer_shapes(model), tmp_path / "nhwc.onnx")
    return tmp_path / "nhwc.onnx"


def taking(path: Path, recipe: Preprocess, dtype: str = "float32") -> Path:
    """The graph at `path`, taking pixels, in a file."""
    model = graphs.read(path)
    if dtype == "float16":
        half.to_float16(model)
        model.graph.sort()
    pixels.take(model, recipe, dtype)
    out = path.with_name(f"pixels.{dtype}.onnx")
    graphs.write(model, out, external=False)
    graphs.check(out)
    return out


def run(path: Path, batch: np.ndarray) -> np.ndarray:
    options = RunOptions(batch=len(batch))
    with targets.get("ov-fp32").open_graph(path, (), options) as runner:
        return runner.scores(batch).copy()


def head(path: Path) -> list[Any]:
    """The nodes between the input and the network's first layer, in order."""
    found, at = [], "image"
    nodes = onnx.load(path).graph.node
    while True:
        (node,) = (node for node in nodes if at in node.input)
        if node.op_type in ("Conv", "QuantizeLinear"):
            return found
        found.append(node)
        (at,) = node.output


# The arithmetic


@pytest.mark.parametrize("name", RECIPES)
def test_constants_are_the_preprocessings(name: str) -> None:
    """In float64, against the definition."""
    recipe = RECIPES[name]
    offset, factor = pixels.constants(recipe)
    values = np.arange(256.0)[:, None] - (0 if offset is None else offset)
    values = values * (1 if factor is None else factor)
    meant = (np.arange(256.0)[:, None] * recipe.scale - recipe.mean) / np.array(recipe.std)
    np.testing.assert_allclose(values, meant, rtol=0, atol=1e-12 * np.abs(meant).max())
    assert (offset is None, factor is None) == (name == "unit", name == "caffe")


@pytest.mark.parametrize("name", ["imagenet", "caffe", "unit", "demo"])
def test_half_precision_is_as_near_as_a_cast_of_the_result(name: str) -> None:
    """In float16 throughout, as TensorRT computes it.

    Beside the largest result: the offset is off by 2^-5 of 131 pixels, the difference by 2^-4, the
    factor by 2^-11 of itself and the product by 2^-11: two roundings of 2^-10 in all, where a cast of
    the exact result is half of one. 8 bits take steps of 2^-7.
    """
    recipe = PRESETS[name]
    offset, factor = pixels.constants(recipe, "float16")
    values = np.arange(256, dtype=np.float16)[:, None] * np.ones(3, np.float16)
    values = values if offset is None else values - offset
    values = values if factor is None else values * factor
    assert values.dtype == np.float16
    meant = (np.arange(256.0)[:, None] * recipe.scale - recipe.mean) / np.array(recipe.std)
    largest = np.abs(meant).max()
    assert np.abs(values - meant).max() < 2 * 2.0**-10 * largest
    assert np.sqrt(((values - meant) ** 2).mean()) < largest / 127 / 16


@pytest.mark.parametrize(
    ("changes", "dtype", "said"),
    [
        ({"scale": 1e-6, "mean": (0.1, 0.1, 0.1)}, "float16", "pixels less 100000, times"),
        ({"scale": 1.0, "std": (1.0, 1e6, 1.0)}, "float16", "times 1e-06"),
        ({"scale": 1e6, "std": (1.0, 1.0, 1.0)}, "float16", r"times 1e\+06"),
    ],
)
def test_what_half_precision_cannot_hold_is_refused(
    changes: dict[str, Any], dtype: str, said: str
) -> None:
    recipe = replace(PRESETS["imagenet"], **changes)
    with pytest.raises(ConfigError, match=f"does not fit {dtype}.*{said}.*--input-format"):
        pixels.constants(recipe, dtype)
    pixels.constants(recipe, "float32")


# The graph


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_graph_does_what_the_host_did(plain: Path, name: str, dtype: str) -> None:
    recipe = RECIPES[name]
    path = taking(plain, recipe, dtype)
    assert [node.op_type for node in head(path)] == STEPS[name]
    found, wanted = run(path, IMAGES), run(plain, recipe.arithmetic(IMAGES))
    # float32 rounds otherwise; in float16 there are also weights of 11 bits in five layers.
    assert parity.sqnr_db(wanted, found).min() > (100 if dtype == "float32" else 50)
    # The order of channels matters to it.
    assert parity.sqnr_db(wanted, run(path, IMAGES[..., ::-1].copy())).max() < 40


def test_input_is_pixels_and_keeps_its_name(plain: Path) -> None:
    image = onnx.load(taking(plain, RECIPES["all"])).graph.input[0]
    kind = image.type.tensor_type
    assert (image.name, kind.elem_type) == ("image", onnx.TensorProto.UINT8)
    assert kind.shape.dim[0].dim_param == "N"
    assert [side.dim_value for side in kind.shape.dim[1:]] == [32, 32, 3]


def test_half_precision_has_no_float32_on_the_way(plain: Path) -> None:
    """One Cast, from pixels to float16, and one at the scores."""
    model = onnx.load(taking(plain, RECIPES["all"], "float16"))
    casts = [node for node in model.graph.node if node.op_type == "Cast"]
    half_, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    assert [node.attribute[0].i for node in casts] == [half_, single]
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    assert kinds == {half_, onnx.TensorProto.INT64}


def test_nhwc_network_is_not_turned(nhwc: Path) -> None:
    recipe = replace(RECIPES["all"], layout="nhwc")
    path = taking(nhwc, recipe)
    assert [node.op_type for node in head(path)] == ["Cast", "Gather", "Sub", "Mul", "Transpose"]
    assert head(path)[-1].name == "turn"  # its own
    wanted = run(nhwc, recipe.arithmetic(IMAGES))
    assert parity.sqnr_db(wanted, run(path, IMAGES)).min() > 100


@pytest.mark.parametrize("taken", ["image.float32", "image.offset", "image.normal", "image.nchw"])
def test_names_that_a_graph_has_already_stay(
    small_graph: Callable[..., Any], tmp_path: Path, taken: str
) -> None:
    model = small_graph()
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [taken if name == "c0" else name for name in names]
    del model.graph.value_info[:]
    onnx.save(onnx.shape_inference.infer_shapes(model), tmp_path / "named.onnx")
    path = taking(tmp_path / "named.onnx", RECIPES["all"])
    assert taken in {name for node in onnx.load(path).graph.node for name in node.output}
    wanted = run(tmp_path / "named.onnx", RECIPES["all"].arithmetic(IMAGES))
    assert parity.sqnr_db(wanted, run(path, IMAGES)).min() > 100


# OpenVINO's engine


@pytest.mark.parametrize("name", RECIPES)
def test_openvino_preprocesses_by_itself(plain: Path, name: str, tmp_path: Path) -> None:
    recipe = RECIPES[name]
    target = targets.get("ov-fp32")
    path, _ = target.compile(plain, CompileOptions(pixels=recipe), tmp_path)
    found, wanted = run(path, IMAGES), run(plain, recipe.arithmetic(IMAGES))
    assert parity.sqnr_db(wanted, found).min() > 100
    assert parity.sqnr_db(wanted, run(path, IMAGES[..., ::-1].copy())).max() < 40


def test_openvino_takes_an_nhwc_networks_pixels(nhwc: Path, tmp_path: Path) -> None:
    recipe = replace(RECIPES["all"], layout="nhwc")
    path, _ = targets.get("ov-fp32").compile(nhwc, CompileOptions(pixels=recipe), tmp_path)
    wanted = run(nhwc, recipe.arithmetic(IMAGES))
    assert parity.sqnr_db(wanted, run(path, IMAGES)).min() > 100


def test_openvinos_engine_is_the_same_each_time(plain: Path, tmp_path: Path) -> None:
    made = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        options = CompileOptions(pixels=RECIPES["all"])
        files = targets.get("ov-int8").compile(plain, options, tmp_path / name)
        made.append([file.read_bytes() for file in files])
    assert made[0] == made[1]


@pytest.mark.parametrize("goal", ["latency", "throughput"])
def test_runner_takes_pixels_and_nothing_else(plain: Path, tmp_path: Path, goal: Any) -> None:
    target = targets.get("ov-fp32")
    path, _ = target.compile(plain, CompileOptions(pixels=RECIPES["all"]), tmp_path)
    with target.open_graph(path, (), RunOptions(batch=2, goal=goal)) as runner:
        assert runner.input == TensorSpec("image", (2, 32, 32, 3), "uint8")
        with pytest.raises(
            RunnerError, match=r"got float32 \[2, 3, 32, 32\].*uint8 \[2, 32, 32, 3\]"
        ):
            runner.infer(RECIPES["all"].arithmetic(IMAGES[:2]))
        with pytest.raises(RunnerError, match="the image's own pixels"):
            runner.infer(IMAGES[:1])
        one = [runner.scores(IMAGES[i : i + 2]).copy() for i in (0, 2, 4)]
        many = [
            out["scores"].copy() for out in runner.infer_many([IMAGES[:2], IMAGES[2:4], IMAGES[4:]])
        ]
        ended: list[np.ndarray] = []
        runner.start(IMAGES[:2], lambda outputs: ended.append(outputs["scores"].copy()))
        runner.drain()
    np.testing.assert_array_equal(one, many)
    np.testing.assert_array_equal(ended[0], one[0])


# Bundles


@pytest.fixture(scope="module")
def both(
    tiny: Options, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, Path]]:
    """Bundles of the tiny network for a target, with floats and with pixels; TensorRT's are
    portable."""
    made: dict[str, tuple[Path, Path]] = {}

    def build(target: str) -> tuple[Path, Path]:
        if target not in made:
            folder = tmp_path_factory.mktemp("both")
            made[target] = folder / "float", folder / PIXELS
            for out in made[target]:
                portable = target.startswith("trt")
                options = tiny(target=target, portable=portable, input_format=out.name, out=out)
                pipeline.build(options)
        return made[target]

    return build


def emulated(path: Path) -> np.ndarray:
    """The scores of a bundle's probes, as it is executed here."""
    opened = bundle.open_bundle(path)
    images = opened.probes().images
    options = RunOptions(batch=len(images))
    with execution.choose(opened, "CPU").open(opened, options) as runner:
        return runner.scores(opened.batch(images)).copy()


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without TensorRT, whatever is installed on this one."""
    gone = Availability(False, "TensorRT is hidden", "pip install tensorrt")
    monkeypatch.setattr(TensorRT, "availability", lambda self: gone)
    monkeypatch.setattr(TensorRT, "runs_on", lambda self, device: gone)


FLOORS = {
    "ov-fp32": 100, "ov-fp16": 35, "ov-int8": 45, "ov-int8-w4": 45,
    "trt-fp32": 100, "trt-fp16": 50, "trt-int8": 30,
}  # fmt: skip
"""Least SQNR between both forms: the engines' arithmetic, 10 dB and more above what quantizing this
network's random weights costs; a value of TensorRT's image in 20 falls on another step of 8 bits.
A CPU may compute ov-fp16 in float16, where each layer's sums are rounded."""


@pytest.mark.parametrize("target", FLOORS)
@pytest.mark.usefixtures("bare")
def test_both_forms_score_alike(both: Callable[[str], Any], target: str) -> None:
    plain, taking_pixels = both(target)
    wanted, found = emulated(plain), emulated(taking_pixels)
    assert parity.sqnr_db(wanted, found).min() > FLOORS[target]
    assert (wanted.argmax(1) == found.argmax(1)).all()
    assert (
        verify(taking_pixels)["parity"]["top1_agreement"]
        == verify(plain)["parity"]["top1_agreement"]
    )


@pytest.mark.parametrize("target", ["ov-int8", "trt-int8"])
@pytest.mark.usefixtures("bare")
def test_calibration_is_the_same(both: Callable[[str], Any], target: str) -> None:
    tables = [(path / CALIBRATION).read_bytes() for path in both(target)]
    assert tables[0] == tables[1]
    one, two = (bundle.open_bundle(path) for path in both(target))
    assert one.manifest["build"]["key"] != two.manifest["build"]["key"]
    layers = [found.budget()["nodes"] if target == "trt-int8" else None for found in (one, two)]
    assert layers[0] == layers[1]


@pytest.mark.parametrize("target", ["ov-int8", "trt-int8"])
@pytest.mark.usefixtures("bare")
def test_manifest_says_what_is_taken(both: Callable[[str], Any], target: str) -> None:
    plain, taking_pixels = (bundle.open_bundle(path) for path in both(target))
    said = taking_pixels.manifest["input"]
    assert said == {
        "name": plain.manifest["input"]["name"], "shape": [None, 64, 64, 3], "dtype": "uint8"
    }  # fmt: skip
    images = taking_pixels.probes().images
    assert taking_pixels.batch(images) is images
    assert taking_pixels.batch(images[:, ::-1]).flags.c_contiguous
    assert plain.batch(images).dtype == np.float32


@pytest.mark.usefixtures("bare")
def test_graph_of_a_bundle_is_typed_to_the_first_pair(both: Callable[[str], Any]) -> None:
    model = onnx.load(both("trt-int8")[1] / GRAPH)
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    steps = head(both("trt-int8")[1] / GRAPH)
    assert [node.op_type for node in steps] == ["Cast", "Mul", "Transpose"]
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    names = {onnx.TensorProto.DataType.Name(kind) for kind in kinds}
    assert names - {"INT64", "BOOL"} == {"INT8", "FLOAT16"}


@pytest.mark.usefixtures("bare")
def test_tensorrt_8_computes_it_in_float32(tiny: Options, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    options = tiny(
        target="trt-int8", portable=True, trt_version="8.6.1", input_format=PIXELS, out=out
    )
    pipeline.build(options)
    (cast, *_) = head(out / GRAPH)
    assert cast.attribute[0].i == onnx.TensorProto.FLOAT
    assert verify(out)["parity"]["sqnr_db"] > 10


@pytest.mark.usefixtures("bare")
def test_same_again_is_unchanged_and_the_other_form_is_another_bundle(
    tiny: Options, both: Callable[[str], Any]
) -> None:
    out = both("trt-int8")[1]
    options = tiny(target="trt-int8", portable=True, input_format=PIXELS, out=out)
    assert pipeline.build(options)["unchanged"] is True
    with pytest.raises(Exception, match="built from other inputs"):
        pipeline.build(replace(options, input_format="float"))


def test_bench_measures_it(both: Callable[[str], Any], capsys: Capture) -> None:
    path = both("ov-int8")[1]
    words = ["bench", str(path), "--seconds", "0.01", "--batch", "2", "--json", "-"]
    assert main(words) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["batch"] == 2
    assert result["throughput_ips"] > 0


def test_the_command_line_builds_it(tiny: Options, tmp_path: Path, capsys: Capture) -> None:
    options = tiny()
    words = [
        "build", "--target", "ov-int8", "--weights", options.weights, "--preprocess",
        options.preprocess, "--calib-data", options.calib_data, "--calib-images", "16",
        "--input-format", PIXELS, "--out", tmp_path / "bundle",
    ]  # fmt: skip
    assert main([str(word) for word in words]) == 0
    opened = bundle.open_bundle(tmp_path / "bundle")
    assert opened.manifest["input"]["dtype"] == "uint8"
    assert "takes uint8 [N, 64, 64, 3]" in " ".join(capsys.readouterr().err.split())


# Foreign networks


@pytest.mark.parametrize("form", ["float", PIXELS])
@pytest.mark.usefixtures("bare")
def test_nhwc_network_for_tensorrt_is_quantized_before_it_is_turned(
    nhwc: Path, digits_folder: Path, tmp_path: Path, form: str
) -> None:
    """8 bits are moved, and OpenVINO compiles the graph as it stands, float16 and all."""
    import openvino as ov

    (tmp_path / "recipe.toml").write_text('size = [32, 32]\nresize = "stretch"\nlayout = "nhwc"\n')
    out = tmp_path / "bundle"
    options = pipeline.BuildOptions(
        target="trt-int8", portable=True, model=nhwc, preprocess=str(tmp_path / "recipe.toml"),
        calib_data=str(digits_folder), calib_images=16, input_format=form, out=out,
    )  # fmt: skip
    pipeline.build(options)
    nodes = onnx.load(out / GRAPH).graph.node
    (turn,) = (node for node in nodes if node.op_type == "Transpose")
    (before,) = (node for node in nodes if turn.input[0] in node.output)
    assert before.op_type == "DequantizeLinear"
    core = ov.Core()
    model = core.read_model(out / GRAPH)
    core.compile_model(model, "CPU", {"LP_TRANSFORMS_MODE": "NO"})
    result = verify(out)
    assert result["execution"] == "emulated"
    assert result["parity"]["sqnr_db"] > 25


# What is refused


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target": "torch-fp32"}, r"torch-fp32 takes floats alone: got --input-format uint8-nhwc"),
        (
            {"target": "ov-int8", "input_format": "uint8"},
            r"unknown input format: got 'uint8', expected one of float, uint8-nhwc",
        ),
        (
            {"target": "trt-int8", "portable": True, "dla": 0, "max_batch": 1},
            r"--input-format uint8-nhwc and --dla 0",
        ),
    ],
)
def test_what_takes_floats_alone_says_so_before_any_work(
    tiny: Options, tmp_path: Path, changes: dict[str, Any], said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("vggdeploy.calibrating.Job.stage", None)
    options = {"input_format": PIXELS, "out": tmp_path / "bundle", **changes}
    with pytest.raises(ConfigError, match=said) as caught:
        pipeline.build(tiny(**options))
    assert "\n" not in str(caught.value)


def test_a_preprocessing_beyond_half_precision_is_refused_before_any_work(
    tiny: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "recipe.toml"
    said = asdict(preprocess.load(str(tiny().preprocess)))
    recipe.write_text(
        f'size = {list(said["size"])}\nresize = "stretch"\nscale = 1e-6\nmean = [1, 1, 1]\n'
    )
    monkeypatch.setattr("vggdeploy.calibrating.Job.stage", None)
    options = tiny(
        target="trt-fp16", portable=True, preprocess=str(recipe), input_format=PIXELS,
        out=tmp_path / "bundle",
    )  # fmt: skip
    with pytest.raises(ConfigError, match="does not fit float16"):
        pipeline.build(options)


def test_a_graph_that_takes_pixels_already_is_no_source(plain: Path, digits_folder: Path) -> None:
    from vggdeploy.errors import ModelError

    options = pipeline.BuildOptions(
        model=taking(plain, RECIPES["all"]), calib_data=str(digits_folder)
    )
    with pytest.raises(ModelError, match=r"got uint8, expected float32"):
        pipeline.build(options)


@pytest.mark.usefixtures("bare")
def test_bench_of_a_portable_one_never_emulates(both: Callable[[str], Any]) -> None:
    with pytest.raises(MissingError, match="never an emulation"):
        benching.bench(both("trt-int8")[1], BenchOptions(seconds=0.1), Silent())
