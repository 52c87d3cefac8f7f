"""Portable bundles: built with no TensorRT, judged by emulation, compiled on the device."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import float64
import numpy as np
import pytest
from small_bundle import rewrite

from vggdeploy import bundle, compiling, pipeline
from vggdeploy.cli import main
from vggdeploy.contracts import Availability, TrtOptions
from vggdeploy.errors import BundleError, ConfigError, MissingError, ModelError
from vggdeploy.manifest import WRITTEN
from vggdeploy.targets.tensorrt import TensorRT
from vggdeploy.verification import verify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Capture = pytest.CaptureFixture[str]
    Options = Callable[..., pipeline.BuildOptions]

onnx = pytest.importorskip("onnx")
pytest.importorskip("openvino")
pytest.importorskip("torch")

GONE = Availability(False, "TensorRT is hidden", "pip install tensorrt")


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without TensorRT, whatever is installed on this one."""
    monkeypatch.setattr(TensorRT, "availability", lambda self: GONE)
    monkeypatch.setattr(TensorRT, "runs_on", lambda self, device: GONE)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which TensorRT says that it runs."""
    monkeypatch.setattr(TensorRT, "availability", lambda self: Availability(True))
    monkeypatch.setattr(TensorRT, "runs_on", lambda self, device: Availability(True))


@pytest.fixture(scope="module")
def portable(tiny: Options, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A portable trt-int8 bundle of the tiny network. Tests read it and leave it as it is."""
    out = tmp_path_factory.mktemp("portable") / "int8"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TensorRT, "availability", lambda self: GONE)
        pipeline.build(tiny(target="trt-int8", portable=True, out=out))
    return out


@pytest.fixture
def copied(portable: Path, tmp_path: Path) -> Path:
    shutil.copytree(portable, tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture
def dla(portable: Path, tmp_path: Path) -> Path:
    """The portable bundle, to be compiled for a DLA core."""
    opened = bundle.open_bundle(portable)
    facts = {k: v for k, v in opened.manifest.items() if k not in WRITTEN}
    facts["recipe"] = {**facts["recipe"], "dla_core": 0}

    def fill(work: Path) -> None:
        for name in opened.manifest["files"]:
            shutil.copyfile(portable / name, work / name)

    return bundle.write(tmp_path / "dla", facts, fill, replace=False).path


def refused(capsys: Capture, *arguments: Any, code: int) -> str:
    """Runs a command that must fail with one line, and gives that line."""
    assert main([str(word) for word in arguments]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return " ".join(err.split())


def test_bundle_holds_all_that_the_device_needs(portable: Path) -> None:
    opened = bundle.open_bundle(portable)
    assert sorted(opened.manifest["files"]) == [
        "calibration.cache", "calibration.json", "layers.json", "model.onnx", "probes.npz"
    ]  # fmt: skip
    assert (opened.manifest["engine"], opened.manifest["portable"]) == ([], True)
    assert (opened.compiled, opened.engine_bytes) == (False, 0)
    assert opened.manifest["build"]["backend"] is None
    assert (portable / "calibration.cache").read_text().startswith("TRT-100300-Entropy")
    assert opened.manifest["recipe"] == compiling.recipe(TrtOptions())


def test_graph_is_typed_for_tensorrt(portable: Path) -> None:
    """Nothing but the network's own input and output is float32."""
    graph = onnx.load(portable / "model.onnx").graph
    kinds = {onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in graph.initializer}
    assert kinds - {"INT64", "BOOL"} == {"INT8", "FLOAT16"}
    counts = [node.op_type for node in graph.node]
    # VGG11: eight convolutions, five pools, three products; pools share a pair with what follows.
    assert (counts.count("Conv"), counts.count("Gemm"), counts.count("Cast")) == (8, 3, 2)
    assert counts.count("QuantizeLinear") == 8 + 3


def test_tensorrt_8_gets_float32_scales(tiny: Options, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    pipeline.build(tiny(target="trt-int8", portable=True, trt_version="8.6.1", out=out))
    graph = onnx.load(out / "model.onnx").graph
    kinds = {onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in graph.initializer}
    assert kinds - {"INT64", "BOOL"} == {"INT8", "FLOAT"}
    assert (out / "calibration.cache").read_text().startswith("TRT-8601-")


def test_dla_gets_the_float_graph_and_the_cache(tiny: Options, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    options = tiny(target="trt-int8", portable=True, dla=1, max_batch=1, out=out)
    pipeline.build(options)
    graph = onnx.load(out / "model.onnx", load_external_data=False).graph
    assert not [node for node in graph.node if node.op_type == "QuantizeLinear"]
    manifest = bundle.open_bundle(out).manifest
    assert {"calibration.cache", "model.onnx.data"} <= set(manifest["files"])
    assert (manifest["recipe"]["dla_core"], manifest["recipe"]["max_batch"]) == (1, 1)


def test_build_says_what_is_left_to_do(
    tiny: Options, portable: Path, capsys: Capture, tmp_path: Path
) -> None:
    options = tiny()
    arguments = [
        "build", "--target", "trt-int8", "--portable", "--weights", options.weights,
        "--preprocess", options.preprocess, "--calib-data", options.calib_data,
        "--calib-images", "16", "--out", tmp_path / "bundle", "--json", "-",
    ]  # fmt: skip
    assert main([str(word) for word in arguments]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert (result["compiled"], result["portable"], result["engine_bytes"]) == (False, True, 0)
    assert "compile" not in [stage["name"] for stage in result["stages"]]
    assert f"'vggdeploy compile {tmp_path / 'bundle'}' makes it on the device" in err
    assert "TensorRT calibration cache" not in err
    assert result["trt_cache"] == str(tmp_path / "bundle/calibration.cache")


def test_same_inputs_same_portable_bundle(
    tiny: Options, copied: Path, folder_contents: Any
) -> None:
    before = folder_contents(copied)
    assert pipeline.build(tiny(target="trt-int8", portable=True, out=copied))["unchanged"] is True
    assert folder_contents(copied) == before


@pytest.mark.parametrize("target", ["trt-fp32", "trt-fp16"])
def test_float_graph_goes_with_its_weights(tiny: Options, target: str, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    result = pipeline.build(tiny(target=target, portable=True, out=out))
    assert result["trt_cache"] is None
    files = set(bundle.open_bundle(out).manifest["files"])
    assert {"model.onnx", "layers.json", "probes.npz"} <= files
    assert not files & {"calibration.json", "calibration.cache"}
    found = verify(out)
    assert found["execution"] == "emulated"
    # float32 in another order of sums, or weights of float16's 11 bits in 11 layers.
    assert found["parity"]["sqnr_db"] > (90 if target == "trt-fp32" else 50)
    assert found["parity"]["top1_agreement"] == 1


def test_without_the_flag_tensorrt_is_asked_for(tiny: Options, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="TensorRT is hidden"):
        pipeline.build(tiny(target="trt-int8", out=tmp_path / "bundle"))
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("target", ["ov-int8", "torch-fp32"])
def test_what_compiles_when_opened_is_not_portable(
    tiny: Options, target: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"--portable.*trt-fp32, trt-fp16, trt-int8"):
        pipeline.build(tiny(target=target, portable=True, out=tmp_path / "bundle"))


def test_no_engine_and_no_graph_is_no_bundle(portable: Path, tmp_path: Path) -> None:
    opened = bundle.open_bundle(portable)

    def fill(work: Path) -> None:
        for name in ("probes.npz", "layers.json"):
            shutil.copyfile(portable / name, work / name)

    facts = {k: v for k, v in opened.manifest.items() if k not in WRITTEN}
    with pytest.raises(BundleError, match=r"no digest of model\.onnx"):
        bundle.write(tmp_path / "bundle", facts, fill, replace=False)


# Emulation


def test_emulation_is_the_graph_as_it_is_defined(
    small_graph: Callable[..., Any], digits_folder: Path, tmp_path: Path
) -> None:
    """Against the same graph in float64, each operator from its definition."""
    onnx.save(small_graph(), tmp_path / "foreign.onnx")
    (tmp_path / "recipe.toml").write_text('size = [32, 32]\nresize = "stretch"\n')
    options = pipeline.BuildOptions(
        target="trt-int8", portable=True, model=tmp_path / "foreign.onnx", calib_images=16,
        preprocess=str(tmp_path / "recipe.toml"), calib_data=str(digits_folder),
        out=tmp_path / "bundle",
    )  # fmt: skip
    pipeline.build(options)
    found = verify(tmp_path / "bundle")["parity"]
    opened = bundle.open_bundle(tmp_path / "bundle")
    graph = float64.Graph(onnx.load(opened.graph))
    images = opened.preprocess.arithmetic(opened.probes().images)
    meant = np.concatenate([graph.run(image[None])[graph.output] for image in images])
    reference = opened.probes().reference.astype(np.float64)
    sqnr = 10 * np.log10((reference**2).sum(1) / ((reference - meant) ** 2).sum(1))
    # float32 in place of float64: some value in a million lies so near to the edge of a step that it
    # falls on the other side. Constants in float16 would cost a decibel here.
    assert found["sqnr_db"] == pytest.approx(sqnr.mean(), abs=0.05)
    assert found["max_abs"] == pytest.approx(np.abs(reference - meant).max(), rel=0.01)
    assert found["top1_agreement"] == (meant.argmax(1) == reference.argmax(1)).mean()


def test_verify_says_emulated_and_why(portable: Path, capsys: Capture) -> None:
    assert main(["verify", str(portable), "--json", "-"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert (result["execution"], result["compiled"]) == ("emulated", False)
    assert result["digest"] == bundle.open_bundle(portable).manifest["digest"]
    assert "(probes, emulated)" in err
    (caution,) = result["cautions"]
    assert "TensorRT is hidden" in caution
    assert f"vggdeploy compile {portable}" in caution


def test_native_forbids_emulation(portable: Path, capsys: Capture) -> None:
    line = refused(capsys, "verify", portable, "--native", code=3)
    assert "TensorRT is hidden" in line
    assert "pip install tensorrt" in line
    assert "TensorRT is hidden" in refused(capsys, "gate", portable, "--native", code=3)


def test_bench_never_emulates(portable: Path, capsys: Capture) -> None:
    line = refused(capsys, "bench", portable, code=3)
    assert "never an emulation" in line
    assert "pip install tensorrt" in line


@pytest.mark.parametrize("command", ["verify", "bench", "gate"])
@pytest.mark.usefixtures("gpu")
def test_on_a_device_it_asks_to_be_compiled(portable: Path, command: str, capsys: Capture) -> None:
    line = refused(capsys, command, portable, code=3)
    assert "no engine yet" in line
    assert f"-- vggdeploy compile {portable}" in line


def test_without_openvino_both_ways_out_are_said(
    portable: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    from vggdeploy.targets.openvino import OpenVINO

    missing = Availability(False, "no openvino", "pip install 'vggdeploy[openvino]'")
    monkeypatch.setattr(OpenVINO, "availability", lambda self: missing)
    line = refused(capsys, "verify", portable, code=3)
    assert "pip install tensorrt, or: pip install 'vggdeploy[openvino]'" in line


def test_altered_graph_is_refused_before_it_is_emulated(copied: Path, capsys: Capture) -> None:
    content = bytearray((copied / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (copied / "model.onnx").write_bytes(content)
    assert "model.onnx has been altered" in refused(capsys, "verify", copied, code=2)
    assert "model.onnx has been altered" in refused(capsys, "compile", copied, code=2)


def test_what_dla_quantizes_cannot_be_emulated(dla: Path, capsys: Capture) -> None:
    assert "DLA quantizes by itself" in refused(capsys, "verify", dla, code=3)


def test_gate_on_a_bundle_says_emulated(portable: Path, capsys: Capture) -> None:
    bounds = ["--min-agreement", "0.5", "--max-engine-bytes", "1e9"]
    assert main(["gate", str(portable), *bounds, "--json", "-"]) == 1
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert (result["verdict"], result["execution"]) == ("inconclusive", "emulated")
    agreement, size = result["criteria"]
    assert (agreement["verdict"], agreement["execution"]) == ("pass", "emulated")
    assert (size["verdict"], size["execution"], size["value"]) == ("inconclusive", "", None)
    assert "no engine yet" in size["note"]
    assert "pass (emulated)" in err
    assert "inconclusive (emulated)" not in err
    assert "verdict: INCONCLUSIVE (emulated)" in err


@pytest.mark.parametrize(
    ("bounds", "code", "verdict"),
    [(["--min-agreement", "0.5"], 0, "pass"), (["--max-p99", "1"], 1, "inconclusive")],
)
def test_run_judges_accuracy_and_leaves_speed(
    tiny: Options, portable: Path, tmp_path: Path, capsys: Capture, bounds: list[str],
    code: int, verdict: str,
) -> None:  # fmt: skip
    options = tiny()
    arguments = [
        "run", "--target", "trt-int8", "--portable", "--weights", options.weights,
        "--preprocess", options.preprocess, "--calib-data", options.calib_data,
        "--calib-images", "16", "--out", tmp_path / "bundle", *bounds,
        "--json", tmp_path / "run.json",
    ]  # fmt: skip
    assert main([str(word) for word in arguments]) == code
    err = capsys.readouterr().err
    assert "verified by emulation and not benched" in err
    assert "TensorRT is hidden" in err
    assert f"verdict: {verdict.upper()} (emulated)" in err
    result = json.loads((tmp_path / "run.json").read_text())
    assert result["verify"]["execution"] == "emulated"
    assert result["bench"] is None
    assert "TensorRT is hidden" in result["not_benched"]
    # A gate takes the run's result as it is.
    assert main(["gate", str(tmp_path / "run.json"), *bounds]) == code


def test_run_settles_what_cannot_be_before_it_builds(
    tiny: Options, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = ["run", "--target", "trt-int8", "--out", tmp_path / "bundle"]
    assert "TensorRT is hidden" in refused(capsys, *start, code=3)
    assert "TensorRT is hidden" in refused(capsys, *start, "--portable", "--native", code=3)
    monkeypatch.setattr(TensorRT, "availability", lambda self: Availability(True))
    monkeypatch.setattr(TensorRT, "runs_on", lambda self, device: Availability(True))
    assert "drop it, or build without run" in refused(capsys, *start, "--portable", code=2)
    assert not (tmp_path / "bundle").exists()


def test_doctor_says_what_can_be_emulated(capsys: Capture) -> None:
    assert main(["doctor", "--json", "-"]) == 0
    out, err = capsys.readouterr()
    said = json.loads(out)["targets"]
    assert said["trt-int8"]["emulated"] is True
    assert said["ov-int8"]["emulated"] is False
    assert [line for line in err.splitlines() if line.startswith("trt-int8") and "emulated" in line]


# Compiling, with a backend that writes what it was given


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch, gpu: None) -> list[Any]:
    """TensorRT that records its calls, and whose engine is the graph's size in text."""
    calls: list[Any] = []

    def compile_(self: Any, onnx: Path, options: Any, out_dir: Path) -> tuple[Path, ...]:
        calls.append((onnx, options.tensorrt))
        (out_dir / "model.engine").write_text(f"{onnx.stat().st_size}")
        return (out_dir / "model.engine",)

    facts = {"flavour": "rtx", "layers": [{"name": "conv + relu", "nodes": []}]}
    monkeypatch.setattr(TensorRT, "compile", compile_)
    monkeypatch.setattr(TensorRT, "prepare", lambda self, options: {})
    monkeypatch.setattr(TensorRT, "facts", lambda self, work: dict(facts))
    monkeypatch.setattr(TensorRT, "version", lambda self: "tensorrt 10.3.0")
    monkeypatch.setattr(
        TensorRT, "device_facts", lambda self, device: {"name": "Orin", "multiprocessors": 16}
    )
    return calls


def test_compiling_makes_the_engine_in_place(
    copied: Path, backend: list[Any], capsys: Capture
) -> None:
    before = bundle.open_bundle(copied).manifest
    assert main(["compile", str(copied), "--json", "-"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    opened = bundle.open_bundle(copied)
    assert opened.engine == (copied / "model.engine",)
    size = (copied / "model.onnx").stat().st_size
    assert (copied / "model.engine").read_text() == str(size)
    assert opened.compiled
    manifest = opened.manifest
    assert manifest["build"]["backend"] == "tensorrt 10.3.0"
    assert manifest["build"]["engine"] == {"flavour": "rtx"}
    assert manifest["build"]["key"] == before["build"]["key"]
    assert manifest["device"] == {"name": "Orin", "multiprocessors": 16}
    assert manifest["compiled_from"] == before["digest"] != manifest["digest"]
    assert manifest["portable"] is True
    assert result["engine_bytes"] == len(str(size))
    assert result["digest"] == manifest["digest"]
    assert "tensorrt 10.3.0 for Orin" in err
    assert opened.budget()["engine_layers"][0]["name"] == "conv + relu"
    # All that was there is there still.
    same = set(before["files"]) - {"layers.json"}
    assert {k: manifest["files"][k] for k in same} == {k: before["files"][k] for k in same}
    assert sorted(path.name for path in copied.parent.iterdir()) == ["bundle"]


def test_compiling_follows_the_recipe_but_for_what_is_asked(
    copied: Path, backend: list[Any]
) -> None:
    compiling.compile_bundle(copied)
    compiling.compile_bundle(copied, changes={"max_batch": 8, "opt_batch": 4, "flavour": None})
    graph, first = backend[0]
    assert graph.name == "model.onnx"
    assert first == TrtOptions()
    assert backend[1][1] == TrtOptions(max_batch=8, opt_batch=4)
    assert bundle.open_bundle(copied).manifest["recipe"]["max_batch"] == 8
    # Once more: the last recipe is the bundle's own.
    compiling.compile_bundle(copied)
    assert backend[2][1] == TrtOptions(max_batch=8, opt_batch=4)


def test_what_a_link_points_to_is_compiled(
    copied: Path, backend: list[Any], tmp_path: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(copied, target_is_directory=True)
    assert compiling.compile_bundle(link)["bundle"] == str(link)
    assert link.is_symlink()
    assert bundle.open_bundle(copied).compiled


def test_recipe_goes_through_json(portable: Path) -> None:
    options = TrtOptions(
        flavour="rtx", compute_capabilities=("7.5", "8.6"), workspace_bytes=1 << 30
    )
    said = json.loads(json.dumps(compiling.recipe(options)))
    manifest = {"target": "trt-int8", "recipe": said}
    assert compiling.options_of(manifest, {}) == options
    other = compiling.options_of(manifest, {"flavour": "tensorrt"})
    assert (other.flavour, other.compute_capabilities) == ("tensorrt", ())
    with pytest.raises(BundleError, match=r"of another version.*warp"):
        compiling.options_of({"target": "trt-int8", "recipe": {**said, "warp": 9}}, {})
    with pytest.raises(ConfigError, match="--max-batch 0"):
        compiling.options_of(manifest, {"max_batch": 0})


def test_compiling_elsewhere_leaves_the_first(
    copied: Path, backend: list[Any], folder_contents: Any, tmp_path: Path, capsys: Capture
) -> None:
    before = folder_contents(copied)
    compiling.compile_bundle(copied, out=tmp_path / "orin")
    assert folder_contents(copied) == before
    assert bundle.open_bundle(tmp_path / "orin").compiled
    again = ["compile", copied, "--out", tmp_path / "orin"]
    assert "--force" in refused(capsys, *again, code=2)
    assert main([str(word) for word in (*again, "--force")]) == 0
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("mine")
    taken = ["compile", copied, "--out", tmp_path / "home", "--force"]
    assert "is no bundle" in refused(capsys, *taken, code=2)
    assert (tmp_path / "home" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("in_place", [True, False])
def test_what_came_while_it_compiled_is_left_alone(
    copied: Path, portable: Path, backend: list[Any], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path, in_place: bool,
) -> None:  # fmt: skip
    out, compile_ = copied if in_place else tmp_path / "orin", TensorRT.compile

    def slow(self: Any, onnx: Path, options: Any, out_dir: Path) -> tuple[Path, ...]:
        if in_place:
            rewrite(copied, portable=False)
        else:
            shutil.copytree(portable, out)
        return compile_(self, onnx, options, out_dir)

    monkeypatch.setattr(TensorRT, "compile", slow)
    with pytest.raises(BundleError, match="in the meantime" if in_place else "another bundle"):
        compiling.compile_bundle(copied, out=None if in_place else out)
    assert not bundle.open_bundle(out).compiled


@pytest.mark.parametrize("name", ["model.onnx", "layers.json", "probes.npz"])
def test_what_was_changed_after_it_was_checked_is_not_compiled(
    copied: Path, backend: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    """Its manifest would vouch for it, and the device would sign that."""

    def change(self: Any, options: Any) -> dict[str, Any]:
        content = (copied / name).read_bytes()
        (copied / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        return {}

    monkeypatch.setattr(TensorRT, "prepare", change)
    with pytest.raises(BundleError, match=rf"bundle .*{name}"):
        compiling.compile_bundle(copied, out=tmp_path / "orin")
    assert backend == []
    assert not (tmp_path / "orin").exists()


def test_what_is_signed_is_compiled_and_the_engine_is_signed_by_its_device(
    copied: Path, backend: list[Any], tmp_path: Path, capsys: Capture
) -> None:
    pytest.importorskip("cryptography")
    for name in ("builder", "device"):
        assert main(["bundle", "keygen", "--out", str(tmp_path / "keys" / name)]) == 0
    builder, device = tmp_path / "keys" / "builder.pub", tmp_path / "keys" / "device.pub"
    again = ["compile", copied, "--out", tmp_path / "orin", "--trusted-keys"]
    assert "is not signed" in refused(capsys, *again, builder, code=2)
    assert backend == []
    assert main(["bundle", "sign", str(copied), "--key", str(builder.with_suffix(""))]) == 0
    assert "no trusted key" in refused(capsys, *again, device, code=2)
    assert backend == []
    assert main([str(word) for word in (*again, builder)]) == 0
    assert len(backend) == 1
    bundle.open_bundle(copied, builder)
    with pytest.raises(BundleError, match=r"is not signed.*where it was compiled"):
        bundle.open_bundle(tmp_path / "orin", tmp_path / "keys")
    assert (
        main(["bundle", "sign", str(tmp_path / "orin"), "--key", str(device.with_suffix(""))]) == 0
    )
    bundle.open_bundle(tmp_path / "orin", tmp_path / "keys")
    with pytest.raises(BundleError, match="no trusted key"):
        bundle.open_bundle(tmp_path / "orin", builder)


def test_compiling_that_fails_leaves_the_bundle(
    copied: Path, backend: list[Any], monkeypatch: pytest.MonkeyPatch, folder_contents: Any
) -> None:
    def fails(self: Any, onnx: Path, options: Any, out_dir: Path) -> tuple[Path, ...]:
        (out_dir / "model.engine").write_text("half")
        raise ModelError("TensorRT does not take it", got=1, expected=2, fix="mend it")

    monkeypatch.setattr(TensorRT, "compile", fails)
    before = folder_contents(copied)
    with pytest.raises(ModelError):
        compiling.compile_bundle(copied)
    assert folder_contents(copied) == before
    assert sorted(path.name for path in copied.parent.iterdir()) == ["bundle"]


def test_compiling_needs_the_backend(copied: Path, capsys: Capture) -> None:
    line = refused(capsys, "compile", copied, code=3)
    assert "got TensorRT is hidden, expected what" in line
    assert line.rstrip().endswith("-- pip install tensorrt")


def test_what_compiles_when_opened_needs_no_compiling(tiny_bundle: Path, capsys: Capture) -> None:
    assert "needs no compiling" in refused(capsys, "compile", tiny_bundle, code=2)


def test_the_calibration_cache_is_for_dla_alone(
    dla: Path, copied: Path, backend: list[Any]
) -> None:
    compiling.compile_bundle(dla)
    compiling.compile_bundle(copied)
    (graph, for_dla), (_, for_gpu) = backend
    # A copy of its own, as the graph is.
    assert (for_dla.dla_core, for_dla.calibration_cache) == (
        0,
        graph.with_name("calibration.cache"),
    )
    assert graph.parent != dla
    assert (for_gpu.dla_core, for_gpu.calibration_cache) == (None, None)
