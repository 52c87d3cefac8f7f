"""Engines that TensorRT for RTX really builds, on a machine with no GPU."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from vggdeploy import (
    bundle,
    calib,
    cli,
    compiling,
    console,
    digests,
    graphs,
    half,
    pipeline,
    targets,
)
from vggdeploy.contracts import DIALECTS, CompileOptions, RunOptions, TrtOptions
from vggdeploy.errors import ConfigError, MissingError, ModelError
from vggdeploy.manifest import CALIBRATION, GRAPH
from vggdeploy.targets import nvidia, trt_api
from vggdeploy.terminal import Terminal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vggdeploy.bundle import Bundle
    from vggdeploy.targets.trt_api import Api, BuiltEngine

    Options = Callable[..., pipeline.BuildOptions]

if not trt_api.flavours()["rtx"].ok:
    pytest.skip("needs TensorRT for RTX: pip install 'tensorrt-rtx-cu13'", allow_module_level=True)

CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
NAMES = ("trt-fp32", "trt-fp16", "trt-int8")
WEIGHTED = 16
"""Layers with weights of VGG16."""


@pytest.fixture(scope="module")
def rtx() -> Api:
    return trt_api.load("rtx")


@pytest.fixture(scope="module")
def built(slim: Options, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    """A bundle of the slim demo network for a target, built once."""
    made: dict[str, Bundle] = {}

    def build(name: str) -> Bundle:
        if name not in made:
            out = tmp_path_factory.mktemp("trt") / name
            pipeline.build(slim(target=name, flavour="rtx", out=out))
            made[name] = bundle.open_bundle(out)
        return made[name]

    return build


@pytest.fixture(scope="module")
def taking_pixels(
    slim: Options, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Bundle]:
    """The same, of a network that takes uint8 pixels."""
    made: dict[str, Bundle] = {}

    def build(name: str) -> Bundle:
        if name not in made:
            out = tmp_path_factory.mktemp("pixels") / name
            options = slim(target=name, flavour="rtx", input_format="uint8-nhwc", out=out)
            pipeline.build(options)
            made[name] = bundle.open_bundle(out)
        return made[name]

    return build


def compiled(api: Api, found: Bundle, **options: Any) -> BuiltEngine:
    return api.build(found.path / GRAPH, TrtOptions(**options))


def types(model: Any) -> dict[str, set[str]]:
    """The types of weights, and of what operators with weights read and give."""
    found: dict[str, set[str]] = {"weights": set(), "inputs": set(), "outputs": set()}
    for value in model.graph.initializers.values():
        found["weights"].add(value.const_value.dtype.name)
    for node in model.graph:
        if node.op_type in graphs.WEIGHTED:
            found["outputs"].add(node.outputs[0].dtype.name)
            found["inputs"] |= {(value.const_value or value).dtype.name for value in node.inputs}
    return found


# --- what a bundle holds


@pytest.mark.parametrize("name", NAMES)
def test_a_bundle_holds_the_engine_and_what_it_was_compiled_from(
    name: str, built: Callable[[str], Bundle]
) -> None:
    found = built(name)
    assert found.manifest["engine"] == ["model.engine"]
    assert found.manifest["build"]["backend"].startswith("tensorrt_rtx 1.")
    expected = {"model.engine", "model.onnx", "probes.npz", "layers.json"}
    if name == "trt-fp32":
        expected.add("model.onnx.data")
    if name == "trt-int8":
        expected.add("calibration.json")
    assert set(found.manifest["files"]) == expected
    graphs.check(found.path / GRAPH)
    facts = found.manifest["build"]["engine"]
    assert facts["flavour"] == "rtx"
    assert facts["batches"] == [1, 1, 32]
    assert facts["typed"] is True
    assert facts["timing_cache"] is None  # nothing is timed ahead of time
    assert "layers" not in facts


def test_graphs_are_typed_as_they_shall_run(built: Callable[[str], Bundle]) -> None:
    single = types(graphs.read(built("trt-fp32").path / GRAPH))
    assert "FLOAT16" not in set().union(*single.values())
    for name in ("trt-fp16", "trt-int8"):
        model = graphs.read(built(name).path / GRAPH)
        found = types(model)
        assert "FLOAT" not in set().union(*found.values()), name
        assert found["inputs"] == found["outputs"] == {"FLOAT16"}
        # Outside the network is as it was.
        signature = graphs.signature(model)
        assert (signature.input.dtype, signature.output.dtype) == ("float32", "float32")
    assert "INT8" in found["weights"]


@pytest.mark.parametrize(("name", "reads"), [("trt-fp16", "Half"), ("trt-int8", "Int8")])
def test_every_weighted_layer_of_the_engine_reads_its_type(
    name: str, reads: str, built: Callable[[str], Bundle]
) -> None:
    """By the builder's own account of the engine: nothing fell back to FP32."""
    said = built(name).budget()
    weighted = [row["name"] for row in said["layers"] if row["kind"] in ("conv", "linear")]
    computing = {
        layer: tuple(tensor["type"] for tensor in engine["inputs"][:1])
        for engine in said["engine_layers"]
        # What computes; a "kgen" is pointwise.
        if engine["type"] in ("correlation", "gemm", "runtime_fusion")
        for layer in engine["budget"]
    }
    assert len(weighted) == WEIGHTED
    assert {computing.get(layer) for layer in weighted} == {(reads,)}


def test_every_layer_of_the_budget_is_found_in_the_engine(built: Callable[[str], Bundle]) -> None:
    said = built("trt-int8").budget()
    rows = {row["name"] for row in said["layers"]}
    found = {layer for engine in said["engine_layers"] for layer in engine["budget"]}
    # 7x7 positions pooled to 7x7: the exporter leaves that out.
    assert found == rows - {"avgpool"}
    assert set(said["nodes"]) == found


def test_half_precision_computes_the_same(small_graph: Callable[..., Any], tmp_path: Path) -> None:
    """The graph in float16, executed as it is defined, against the float graph."""
    pytest.importorskip("openvino")
    import onnx

    onnx.save(small_graph(), tmp_path / "exact.onnx")
    model = graphs.read(tmp_path / "exact.onnx")
    half.to_float16(model)
    model.graph.sort()
    graphs.write(model, tmp_path / "narrow.onnx", external=False)
    graphs.check(tmp_path / "narrow.onnx")
    images = np.random.default_rng(0).normal(size=(4, 3, 32, 32)).astype(np.float32)
    scores = []
    for name in ("exact.onnx", "narrow.onnx"):
        with targets.get("ov-fp32").open_graph(tmp_path / name, (), RunOptions(batch=4)) as runner:
            scores.append(runner.scores(images).copy())
    error = np.linalg.norm(scores[0] - scores[1]) / np.linalg.norm(scores[0])
    # Weights are rounded to 11 bits, 2^-12 each at most, and so are activations where the engine
    # follows the graph: five layers of errors that are independent.
    assert 1e-5 < error < 2**-10
    assert (scores[0].argmax(1) == scores[1].argmax(1)).all()


def test_a_weight_too_large_for_half_precision_is_named(
    small_graph: Callable[..., Any], tmp_path: Path
) -> None:
    import onnx
    from onnx import numpy_helper

    made = small_graph()
    (large,) = (t for t in made.graph.initializer if t.name == "f1.weight")
    values = numpy_helper.to_array(large).copy()
    values[0, 0] = 1e5
    large.CopyFrom(numpy_helper.from_array(values, "f1.weight"))
    onnx.save(made, tmp_path / "large.onnx")
    model = graphs.read(tmp_path / "large.onnx")
    with pytest.raises(Exception, match=r"f1\.weight does not fit float16: got 100000"):
        half.to_float16(model)


# --- compute capabilities, batches, sizes


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", ["trt-fp16", "trt-int8"])
def test_every_compute_capability_builds(
    name: str, capability: str, rtx: Api, built: Callable[[str], Bundle]
) -> None:
    """For 7.5 the builder has no FP32 matrix product: a graph that left one would not build."""
    assert capability in rtx.compute_capabilities
    found = compiled(rtx, built(name), compute_capabilities=(capability,))
    assert len(found.plan) > 2e6  # a byte a weight


def test_a_matrix_product_in_fp32_is_refused_for_turing(
    rtx: Api, built: Callable[[str], Bundle]
) -> None:
    with pytest.raises(ModelError, match=r"FP32 GEMM is not supported.*trt-fp16 or trt-int8"):
        compiled(rtx, built("trt-fp32"), compute_capabilities=("7.5",))
    assert compiled(rtx, built("trt-fp32"), compute_capabilities=("8.6", "12.0")).plan


def test_a_quantized_graph_with_float32_scales_would_be_refused_for_turing(
    rtx: Api, slim_onnx: Path, built: Callable[[str], Bundle], tmp_path: Path
) -> None:
    """The canary sings: the same quantization with one type wider is caught."""
    import dataclasses

    table = calib.CalibrationTable.load(built("trt-int8").path / CALIBRATION)
    wide = dataclasses.replace(DIALECTS["tensorrt"], high_precision="float32")
    calib.quantize(slim_onnx, table, wide, tmp_path / "wide.onnx")
    with pytest.raises(ModelError, match="FP32 GEMM"):
        rtx.build(tmp_path / "wide.onnx", TrtOptions(compute_capabilities=("7.5",)))


def test_several_compute_capabilities_in_one_engine(
    rtx: Api, built: Callable[[str], Bundle]
) -> None:
    one = compiled(rtx, built("trt-int8"), compute_capabilities=("7.5",))
    every = compiled(rtx, built("trt-int8"), compute_capabilities=CAPABILITIES)
    # The weights are there once.
    assert len(every.plan) < len(one.plan) + 1e6


@pytest.mark.parametrize("batches", [(1, 1, 1), (4, 4, 4), (1, 8, 32)])
@pytest.mark.parametrize("name", NAMES)
def test_static_and_dynamic_batches_build(
    name: str, batches: tuple[int, int, int], rtx: Api, built: Callable[[str], Bundle]
) -> None:
    least, tuned, most = batches
    found = compiled(rtx, built(name), min_batch=least, opt_batch=tuned, max_batch=most)
    assert found.batches == batches


# --- uint8 pixels


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", ["trt-fp16", "trt-int8"])
def test_pixels_are_taken_for_every_compute_capability(
    name: str, capability: str, rtx: Api, taking_pixels: Callable[[str], Bundle]
) -> None:
    """7.5 among them: what comes before the network leaves no FP32 either."""
    found = compiled(rtx, taking_pixels(name), compute_capabilities=(capability,))
    assert len(found.plan) > 2e6


@pytest.mark.parametrize("batches", [(1, 1, 1), (4, 4, 4), (1, 8, 32)])
@pytest.mark.parametrize("name", NAMES)
def test_pixels_are_taken_in_static_and_dynamic_batches(
    name: str, batches: tuple[int, int, int], rtx: Api, taking_pixels: Callable[[str], Bundle]
) -> None:
    least, tuned, most = batches
    found = compiled(rtx, taking_pixels(name), min_batch=least, opt_batch=tuned, max_batch=most)
    assert found.batches == batches


@pytest.mark.parametrize("name", NAMES)
def test_an_engine_reads_pixels_and_computes_as_ever(
    name: str, built: Callable[[str], Bundle], taking_pixels: Callable[[str], Bundle]
) -> None:
    """By the builder's own account: uint8 goes in, and what has weights reads what it always did."""
    plain, found = built(name), taking_pixels(name)
    assert found.manifest["input"] == {
        "name": plain.manifest["input"]["name"], "shape": [None, 224, 224, 3], "dtype": "uint8"
    }  # fmt: skip
    read: list[set[str]] = []
    weighted: list[dict[str, str]] = []
    for opened in (plain, found):
        engine = opened.budget()["engine_layers"]
        tensors = [tensor for layer in engine for tensor in layer["inputs"]]
        read.append({tensor["type"] for tensor in tensors if tensor["name"] == "image"})
        weighted.append(
            {
                row: layer["inputs"][0]["type"]
                for layer in engine
                if layer["type"] in ("correlation", "gemm", "runtime_fusion")
                for row in layer["budget"]
            }
        )
    assert read == [{"Float"}, {"UInt8"}]
    assert weighted[0] == weighted[1] != {}


def test_a_portable_bundle_of_pixels_is_compiled_as_it_is(slim: Options, tmp_path: Path) -> None:
    options = slim(
        target="trt-int8", portable=True, input_format="uint8-nhwc", out=tmp_path / "bundle"
    )
    pipeline.build(options)
    before = bundle.open_bundle(tmp_path / "bundle")
    changes = {"flavour": "rtx", "compute_capability": ["7.5", "12.0"]}
    compiling.compile_bundle(tmp_path / "bundle", changes=changes)
    after = bundle.open_bundle(tmp_path / "bundle")
    assert after.compiled
    assert after.manifest["input"] == before.manifest["input"]
    assert after.manifest["input"]["dtype"] == "uint8"


@pytest.mark.parametrize("name", NAMES)
def test_two_builds_of_the_same_are_the_same(
    name: str, rtx: Api, built: Callable[[str], Bundle]
) -> None:
    first, second = (compiled(rtx, built(name)) for _ in range(2))
    assert len(first.plan) == len(second.plan)
    assert first.layers is not None
    kinds = [
        [(layer["type"], layer["nodes"]) for layer in found.layers or ()]
        for found in (first, second)
    ]
    assert kinds[0] == kinds[1]


def test_engines_are_as_small_as_their_types(built: Callable[[str], Bundle]) -> None:
    sizes = {name: built(name).engine_bytes for name in NAMES}
    params = built("trt-fp32").budget()["total"]["params"]
    # What is not weights, kernels above all, is some 3 MB whatever the network.
    for name, width in zip(NAMES, (4, 2, 1), strict=True):
        assert width * params <= sizes[name] <= width * params + 4e6, name


# --- flags, settings and errors


def test_flags_reach_the_manifest_and_the_terminal(
    slim: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = {
        "target": "trt-fp16", "out": tmp_path / "bundle", "min_batch": 1, "opt_batch": 8,
        "max_batch": 16, "compute_capability": ["8.6", "7.5", "8.6"], "workspace": 1 << 28,
        "optimization_level": 3,
    }  # fmt: skip
    result = pipeline.build(slim(**wanted))
    facts = bundle.open_bundle(tmp_path / "bundle").manifest["build"]["engine"]
    assert result["batches"] == facts["batches"] == [1, 8, 16]
    assert facts["compute_capabilities"] == ["8.6", "7.5"]
    assert facts["workspace_bytes"] == 1 << 28
    assert facts["optimization_level"] == 3
    console.show_build(Terminal(), result)
    assert "batches 1, 8, 16" in capsys.readouterr().err
    again = pipeline.build(slim(**wanted))
    assert again["unchanged"]
    other = pipeline.build(slim(**{**wanted, "max_batch": 24, "force": True}))
    cached = {stage["name"]: stage["cached"] for stage in other["stages"]}
    assert not other["unchanged"]
    assert cached["half"] and not cached["compile"]


def test_the_command_line_builds_an_engine(
    slim: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = slim()
    out, said = tmp_path / "bundle", tmp_path / "build.json"
    flags = [
        "--weights",
        base.weights,
        "--calib-data",
        str(base.calib_data),
        "--calib-images",
        "16",
    ]
    flags += ["--target", "trt-int8", "--flavour", "rtx", "--compute-capability", "7.5"]
    flags += ["--compute-capability", "12.0", "--max-batch", "4", "--out", str(out)]
    assert cli.main(["build", *flags, "--json", str(said)]) == 0
    result = json.loads(said.read_text())
    assert result["batches"] == [1, 1, 4]
    facts = bundle.open_bundle(out).manifest["build"]["engine"]
    assert facts["compute_capabilities"] == ["7.5", "12.0"]
    assert "batches 1, 1, 4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"compute_capability": ["9.0"]}, r"compute capability: got 9\.0.*one of 7\.5, 8\.0, 8\.6"),
        ({"compute_capability": ["sm86"]}, r"--compute-capability is wrong: got 'sm86'"),
        ({"min_batch": 8, "max_batch": 4}, r"--min-batch 8, --opt-batch 8, --max-batch 4"),
        ({"opt_batch": 0}, r"out of order: got --min-batch 1, --opt-batch 0"),
        ({"workspace": 0}, r"--workspace is wrong: got 0"),
        ({"optimization_level": 6}, r"--optimization-level is wrong: got 6, expected 0 to 5"),
        ({"dla": 0, "max_batch": 1}, r"cannot build for DLA.*--dla 0"),
        ({"dla": -1}, r"--dla is wrong"),
        ({"flavour": "trt"}, r"unknown flavour of TensorRT: got 'trt'"),
        ({"max_drop": 0.1, "target": "trt-fp16"}, r"--max-drop keeps layers"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(
    slim: Options, tmp_path: Path, changes: dict[str, Any], said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("vggdeploy.calibrating.Job.stage", None)
    options = {"target": "trt-int8", "flavour": "rtx", "out": tmp_path / "bundle", **changes}
    with pytest.raises(ConfigError, match=said):
        pipeline.build(slim(**options))


@pytest.mark.parametrize(
    ("field", "value", "flag"),
    [
        ("flavour", "rtx", "--flavour"),
        ("min_batch", 1, "--min-batch"),
        ("opt_batch", 1, "--opt-batch"),
        ("max_batch", 1, "--max-batch"),
        ("workspace", 1, "--workspace"),
        ("optimization_level", 0, "--optimization-level"),
        ("compute_capability", ["8.6"], "--compute-capability"),
        ("dla", 0, "--dla"),
    ],
)
def test_tensorrts_flags_are_refused_for_other_targets(
    tiny: Options, tmp_path: Path, field: str, value: Any, flag: str
) -> None:
    with pytest.raises(ConfigError, match=f"{flag} makes no difference to ov-fp32"):
        pipeline.build(tiny(target="ov-fp32", out=tmp_path / "bundle", **{field: value}))


def test_cpu_isa_is_refused_for_tensorrt(tiny: Options, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="--cpu-isa makes no difference to trt-int8: got --cpu-isa avx2"
    ):
        pipeline.build(tiny(target="trt-int8", out=tmp_path / "bundle", cpu_isa="avx2"))


def test_a_graph_that_the_parser_does_not_take(
    rtx: Api, small_graph: Callable[..., Any], tmp_path: Path
) -> None:
    import onnx

    made = small_graph()
    for node in made.graph.node:
        if node.op_type == "Relu":
            node.op_type, node.domain = "Mystery", "nowhere"
    made.opset_import.append(onnx.helper.make_opsetid("nowhere", 1))
    onnx.save(made, tmp_path / "strange.onnx")
    with pytest.raises(ModelError, match=r"does not take strange\.onnx.*Mystery") as caught:
        rtx.build(tmp_path / "strange.onnx", TrtOptions())
    assert "\n" not in str(caught.value)
    assert str(caught.value).count("Mystery") >= 4  # each of them is named


def test_a_fixed_batch_is_taken_as_it_is(
    rtx: Api, small_graph: Callable[..., Any], tmp_path: Path
) -> None:
    import onnx

    made = small_graph()
    for value in (made.graph.input[0], made.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    del made.graph.value_info[:]
    onnx.save(made, tmp_path / "fixed.onnx")
    assert rtx.build(tmp_path / "fixed.onnx", TrtOptions()).batches == (4, 4, 4)
    with pytest.raises(ConfigError, match="batches of 4 alone"):
        rtx.build(tmp_path / "fixed.onnx", TrtOptions(max_batch=2))


# --- no GPU


@pytest.mark.skipif(bool(nvidia.gpus()), reason="there is a GPU")
def test_without_a_gpu_an_engine_is_not_loaded(rtx: Api, built: Callable[[str], Bundle]) -> None:
    found = built("trt-int8")
    with pytest.raises(MissingError, match=r"cannot load an engine on this machine.*driver"):
        rtx.deserialize((found.path / "model.engine").read_bytes())
    with pytest.raises(MissingError, match="no NVIDIA GPU") as caught:
        targets.get("trt-int8").open(found, RunOptions())
    assert caught.value.exit_code == 3


def test_what_is_no_engine_is_no_engine(rtx: Api) -> None:
    with pytest.raises(ModelError, match="does not load the engine"):
        rtx.deserialize(b"\0" * 4096)


# --- the full network


@pytest.mark.slow
def test_the_full_network_is_small_and_quick_to_build(tmp_path: Path) -> None:
    """The engine of 138 M weights in 145 MB at most; how long it took is told, not judged."""
    options = pipeline.BuildOptions(
        target="trt-int8", flavour="rtx", calib_images=8, weight_rounding="nearest",
        out=tmp_path / "bundle",
    )  # fmt: skip
    result = pipeline.build(options)
    assert 138e6 < result["engine_bytes"] <= 145e6
    target = targets.get("trt-int8")
    for capability in CAPABILITIES:
        chosen = TrtOptions(flavour="rtx", compute_capabilities=(capability,))
        start = time.perf_counter()
        (engine,) = target.compile(
            tmp_path / "bundle" / GRAPH, CompileOptions(tensorrt=chosen), tmp_path
        )
        print(f"{capability}: {time.perf_counter() - start:.2f} s, {engine.stat().st_size:,} bytes")
        assert engine.stat().st_size <= 145e6


def test_the_timing_cache_is_of_this_gpu_and_version(
    rtx: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vggdeploy.targets import tensorrt

    first = tensorrt.timing_path(rtx)
    monkeypatch.setattr(nvidia, "gpus", lambda: (nvidia.Gpu("NVIDIA T4", "7.5"),))
    second = tensorrt.timing_path(rtx)
    monkeypatch.setattr(rtx, "version", "1.8.0")
    assert len({first, second, tensorrt.timing_path(rtx)}) == 3
    assert digests.sha256_json([]) not in first.name


_FORGOTTEN_BUILDERS = """
import gc, sys
from pathlib import Path
from vggdeploy.contracts import TrtOptions
from vggdeploy.errors import VggdeployError
from vggdeploy.targets import trt_api, trt_log

plain = trt_log.log

def collecting(module):
    made = plain(module)

    class Log(type(made)):
        def log(self, severity, text):
            if gc.isenabled():  # as any line of Python may
                gc.collect()
            super().log(severity, text)

    return Log()

def forget():
    ring = [api.made(api.module.Builder, plain(api.module))]
    ring.append(ring)

trt_log.log = collecting
api = trt_api.load("rtx")
gc.set_threshold(10**6)
forget()
plan = api.build(Path(sys.argv[1]), TrtOptions()).plan
forget()
try:
    api.deserialize(plan)
except VggdeployError:  # there is no GPU
    pass
print("done")
"""


def test_builders_that_were_forgotten_do_not_stop_the_next(
    small_graph: Any, tmp_path: Path
) -> None:
    import onnx

    # TensorRT logs with a lock held, and a collection set off there would wait for it.
    onnx.save(small_graph(), tmp_path / "small.onnx")
    ran = subprocess.run(
        [sys.executable, "-c", _FORGOTTEN_BUILDERS, str(tmp_path / "small.onnx")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.stdout == "done\n", ran.stderr
