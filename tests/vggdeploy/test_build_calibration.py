"""A calibration that a build is given, and the TensorRT calibration cache that it leaves."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vggdeploy import bundle, calib, pipeline
from vggdeploy.calib import trt_cache
from vggdeploy.cli import main
from vggdeploy.errors import BundleError, CalibrationError, ConfigError
from vggdeploy.manifest import CALIBRATION

if TYPE_CHECKING:
    from collections.abc import Callable

    Options = Callable[..., pipeline.BuildOptions]

pytest.importorskip("openvino")
pytest.importorskip("torch")

TENSORS = ["image", "relu", *(f"relu_{place}" for place in range(1, 7)), "view", "relu_8", "relu_9"]
"""What the tiny VGG11 quantizes. Its last pool is followed by an average, which is quantized in
place of it."""

STAGES = ["export", "calibration", "round", "quantize", "compile", "reference", "bundle"]


@pytest.fixture
def no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever observes activations or chooses thresholds, fails."""
    monkeypatch.delattr("vggdeploy.calib.collect")
    monkeypatch.delattr("vggdeploy.calib.calibrate")


@pytest.fixture
def no_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """What can be told before any long work, must be."""
    monkeypatch.delattr("vggdeploy.calibrating.Job.export")


@pytest.fixture
def edited(tiny_bundle: Path, tmp_path: Path) -> Callable[..., Path]:
    """The tiny network's own table as a file of its own, after an edit."""

    def make(edit: Callable[[dict[str, Any]], Any], name: str = "table.json") -> Path:
        said = json.loads((tiny_bundle / CALIBRATION).read_text())
        edit(said)
        (tmp_path / name).write_text(json.dumps(said))
        return tmp_path / name

    return make


@pytest.fixture(scope="module")
def with_cache(tiny: Options, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A bundle of the tiny network with a TensorRT calibration cache, and what its build said."""
    out = tmp_path_factory.mktemp("with_cache") / "bundle"
    return out, pipeline.build(tiny(out=out, emit_trt_cache=True))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_own_table_gives_the_same_engine(
    tiny: Options,
    tiny_bundle: Path,
    tmp_path: Path,
    no_collection: None,
    folder_contents: Any,
) -> None:
    table = tiny_bundle / CALIBRATION
    result = pipeline.build(tiny(calibration=table, out=tmp_path / "bundle"))
    assert [stage["name"] for stage in result["stages"]] == STAGES
    given, made = folder_contents(tmp_path / "bundle"), folder_contents(tiny_bundle)
    assert given.pop("manifest.json") != made.pop("manifest.json")
    assert given == made  # the probes too
    assert result["calibration_images"] == 16
    assert not [caution for caution in result["cautions"] if "calibration" in caution]
    manifest = bundle.open_bundle(tmp_path / "bundle").manifest
    assert manifest["build"]["calibration_file"] == sha256(table)
    assert manifest["build"]["method"] == "auto"
    assert bundle.open_bundle(tiny_bundle).manifest["build"]["calibration_file"] is None


def test_another_file_is_another_bundle(
    tiny: Options, tiny_bundle: Path, edited: Callable[..., Path], tmp_path: Path
) -> None:
    def widen(said: dict[str, Any]) -> None:
        entry = said["tensors"]["relu"]
        entry.get("rescaled", entry)["threshold"]["uint8"] *= 2

    out = tmp_path / "bundle"
    pipeline.build(tiny(calibration=tiny_bundle / CALIBRATION, out=out))
    again = pipeline.build(tiny(calibration=tiny_bundle / CALIBRATION, out=out))
    assert again["unchanged"] is True
    with pytest.raises(BundleError, match="other inputs"):
        pipeline.build(tiny(calibration=edited(widen), out=out))
    with pytest.raises(BundleError, match="other inputs"):
        pipeline.build(tiny(out=out))
    before = (out / "model.bin").read_bytes()
    result = pipeline.build(tiny(calibration=edited(widen), out=out, force=True))
    assert {s["name"]: s["cached"] for s in result["stages"]} == {
        "export": True, "calibration": False, "round": False, "quantize": False,
        "compile": False, "reference": True, "bundle": False,
    }  # fmt: skip
    assert (out / "model.bin").read_bytes() != before


@pytest.mark.parametrize(
    ("key", "said"),
    [("sha256", "another model: got SHA-256 "), ("arch", "another network: got arch ")],
)
def test_table_of_another_model_is_refused(
    tiny: Options,
    tiny_bundle: Path,
    edited: Callable[..., Path],
    tmp_path: Path,
    no_stage: None,
    key: str,
    said: str,
) -> None:
    own = json.loads((tiny_bundle / CALIBRATION).read_text())["source"]["model"][key]
    path = edited(lambda said: said["source"]["model"].update({key: "0123456789abcdef" * 4}))
    with pytest.raises(CalibrationError, match=f"{said}.*calibrate") as caught:
        pipeline.build(tiny(calibration=path, out=tmp_path / "bundle"))
    assert "0123456789abcdef" in str(caught.value)
    assert own[:16] in str(caught.value)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("mean = [0.5, 0, 0]\nstd = [1, 1, 1]\nsize = [64, 64]", r"got mean \[0.0, 0.0, 0.0\]"),
        ("mean = [0, 0, 0]\nstd = [1, 1, 1]\nsize = [96, 96]", r"got size \[64, 64\]"),
    ],
)
def test_table_of_another_preprocessing_is_refused(
    tiny: Options, tiny_bundle: Path, tmp_path: Path, no_stage: None, recipe: str, said: str
) -> None:
    (tmp_path / "other.toml").write_text(f'resize = "stretch"\n{recipe}\n')
    options = tiny(
        calibration=tiny_bundle / CALIBRATION,
        preprocess=str(tmp_path / "other.toml"),
        out=tmp_path / "bundle",
    )
    with pytest.raises(CalibrationError, match=rf"another preprocessing: {said}, expected"):
        pipeline.build(options)


def test_table_that_lacks_a_tensor_is_refused(
    tiny: Options, edited: Callable[..., Path], tmp_path: Path
) -> None:
    path = edited(lambda said: said["tensors"].pop("relu_4"))
    with pytest.raises(CalibrationError, match=r"table\.json has no entry for tensor 'relu_4'"):
        pipeline.build(tiny(calibration=path, out=tmp_path / "bundle"))


@pytest.mark.parametrize("part", ["model", "preprocess"])
def test_table_with_a_source_that_cannot_be_is_refused(
    tiny: Options, edited: Callable[..., Path], tmp_path: Path, part: str
) -> None:
    path = edited(lambda said: said["source"].update({part: "mine"}))
    with pytest.raises(CalibrationError, match=rf"cannot be read: got {part} 'mine'"):
        pipeline.build(tiny(calibration=path, out=tmp_path / "bundle"))


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (["model"], "carries no digest of the model: "),
        (["preprocess"], "carries no preprocessing: "),
        (["model", "preprocess"], "carries no digest of the model and no preprocessing: "),
    ],
)
def test_what_a_table_does_not_say_is_said(
    tiny: Options, edited: Callable[..., Path], tmp_path: Path, parts: list[str], said: str
) -> None:
    path = edited(lambda table: [table["source"].pop(part) for part in parts])
    result = pipeline.build(tiny(calibration=path, out=tmp_path / "bundle"))
    assert f"calibration {path} {said}" in result["cautions"][0]


# --- TensorRT's cache


def test_a_bundle_holds_the_cache(tiny_bundle: Path, with_cache: Any) -> None:
    out, result = with_cache
    path = out / "calibration.cache"
    assert result["trt_cache"] == str(path)
    assert bundle.open_bundle(out).manifest["files"][path.name]["sha256"] == sha256(path)
    cache = trt_cache.parse(path.read_bytes(), "")
    assert cache.header == "TRT-100300-EntropyCalibration2"
    table = calib.CalibrationTable.load(tiny_bundle / CALIBRATION)
    assert [*table.tensors] == TENSORS
    assert [*cache.entries][: len(TENSORS)] == TENSORS
    for name, tensor in table.tensors.items():
        assert cache.entries[name].scale == pytest.approx(tensor.thresholds["int8"] / 127, rel=1e-7)
    # Seven convolutions, two products, four pools, and the average; neither the scores nor what
    # only the average reads.
    assert len(cache.entries) == len(TENSORS) + 14


def test_a_damaged_cache_is_noticed(tiny: Options, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    pipeline.build(tiny(out=out, emit_trt_cache=True))
    (out / "calibration.cache").write_text("TRT-8601-EntropyCalibration2\n")
    with pytest.raises(BundleError, match=r"calibration\.cache has been altered"):
        bundle.open_bundle(out)


def test_the_flag_and_the_version_are_part_of_the_bundle(tiny: Options, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    assert pipeline.build(tiny(out=out))["trt_cache"] is None
    assert not (out / "calibration.cache").exists()
    assert pipeline.build(tiny(out=out, trt_version="8.6.1"))["unchanged"] is True
    with pytest.raises(BundleError, match="other inputs"):
        pipeline.build(tiny(out=out, emit_trt_cache=True))
    pipeline.build(tiny(out=out, emit_trt_cache=True, force=True))
    result = pipeline.build(tiny(out=out, emit_trt_cache=True, trt_version="8.6.1", force=True))
    assert result["unchanged"] is False
    assert (out / "calibration.cache").read_text().startswith("TRT-8601-Ent")


def test_a_build_from_a_cache(
    tiny: Options, with_cache: Any, tiny_bundle: Path, tmp_path: Path, no_collection: None
) -> None:
    cache, out = with_cache[0] / "calibration.cache", tmp_path / "bundle"
    result = pipeline.build(tiny(calibration=cache, out=out))
    assert [stage["name"] for stage in result["stages"]] == STAGES
    assert result["calibration_images"] is None
    (caution,) = (line for line in result["cautions"] if "calibration" in line)
    assert caution.startswith(f"calibration {cache} carries no digest of the model and no prepro")
    assert "14 of the 25 entries" in caution
    said = json.loads((out / CALIBRATION).read_text())
    assert said["tensors"].keys() == set(TENSORS)
    entry = said["tensors"]["relu_3"]
    assert (entry["range"], entry["method"]) == (None, "trt-cache")
    assert entry["threshold"]["int8"] == entry["threshold"]["uint8"]
    assert said["source"]["trt_cache"]["sha256"] == sha256(cache)
    manifest = bundle.open_bundle(out).manifest
    assert manifest["build"]["method"] == "trt-cache"
    assert manifest["build"]["calibration_file"] == sha256(cache)
    # The table that was made of it knows no more than the cache did.
    again = pipeline.build(tiny(calibration=out / CALIBRATION, out=tmp_path / "again"))
    assert any("carries no digest of the model" in line for line in again["cautions"])


def test_a_cache_for_another_network_is_refused(tiny: Options, tmp_path: Path) -> None:
    path = tmp_path / "other.cache"
    path.write_text("TRT-8601-MinMaxCalibration\ndata: 3c010a14\nconv1: 3c010a14\n")
    with pytest.raises(CalibrationError, match=r"other\.cache is a calibration cache for another"):
        pipeline.build(tiny(calibration=path, out=tmp_path / "bundle"))


def test_calibrate_leaves_a_cache_beside_its_table(
    tiny: Options, with_cache: Any, tmp_path: Path
) -> None:
    options = tiny(out=tmp_path / "made.json", emit_trt_cache=True)
    result = pipeline.calibrate(options)
    assert result["trt_cache"] == str(tmp_path / "made.cache")
    made = (tmp_path / "made.cache").read_bytes()
    assert made == (with_cache[0] / "calibration.cache").read_bytes()
    (tmp_path / "made.json").unlink()
    with pytest.raises(
        ConfigError, match=r"made\.cache exists: got a file, expected a free path -- give --force"
    ):
        pipeline.calibrate(options)
    assert not (tmp_path / "made.json").exists()
    assert pipeline.calibrate(tiny(out=tmp_path / "alone.json"))["trt_cache"] is None
    assert not (tmp_path / "alone.cache").exists()
    with pytest.raises(ConfigError, match="table and TensorRT cache at once"):
        pipeline.calibrate(tiny(out=tmp_path / "x.cache", emit_trt_cache=True))


# --- flags and files that cannot be


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target": "ov-fp32", "emit_trt_cache": True}, "--emit-trt-cache makes no difference"),
        ({"target": "ov-fp32", "calibration": Path("x")}, "--calibration makes no difference to"),
        ({"calibration": Path("x"), "method": "minmax"}, "--method does not go with --calibration"),
        ({"emit_trt_cache": True, "trt_version": "11.0"}, "this version of TensorRT: got '11"),
    ],
)
def test_flags_that_do_not_go_together(
    tiny: Options, tmp_path: Path, no_stage: None, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        pipeline.build(tiny(out=tmp_path / "bundle", **changes))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "does not exist"),
        ("folder", "cannot be read: got Is a directory"),
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"PK\x03\x04" + bytes(9000), "is no calibration: got a binary file"),
        (b"image,3.5\n", "is no calibration: got line 1 is 'image,3.5'"),
        (b"{}", "cannot be read"),
        (b'{"schema": 1, "kind": "build"}', "cannot be read"),
        (
            b"TRT-8601-EntropyCalibration2\n" + b"image: 3c010a14\n" * 2,
            "line 3: tensor 'image' again",
        ),
        (b"TRT-8601-EntropyCalibration2\nimage: -1\n", "line 2 is no entry"),
        (b"TRT-8601-EntropyCalibration2\n" + bytes(9000), "is a binary file"),
    ],
)
def test_a_file_that_is_no_calibration_is_one_line(
    tiny: Options,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    no_stage: None,
    content: bytes | str | None,
    said: str,
) -> None:
    path = tmp_path / "given"
    if content == "folder":
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    options = tiny()
    arguments = ["--weights", options.weights, "--preprocess", options.preprocess]
    arguments += ["--calib-data", options.calib_data, "--out", str(tmp_path / "bundle")]
    assert main(["build", *arguments, "--calibration", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    line = " ".join(err.split())
    assert "error:" in line
    assert said in line
    assert str(path) in line
    assert "bug" not in line
    assert not (tmp_path / "bundle").exists()


def test_a_long_file_is_read_whole(
    tiny: Options, edited: Callable[..., Path], tmp_path: Path
) -> None:
    """Past the head that its kind is told by."""
    path = edited(lambda said: said["source"].update({"note": "x" * 10_000}))
    pipeline.build(tiny(calibration=path, out=tmp_path / "bundle"))
    manifest = bundle.open_bundle(tmp_path / "bundle").manifest
    assert manifest["build"]["calibration_file"] == sha256(path)


def test_a_run_says_it_once(
    tiny: Options,
    with_cache: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vggdeploy.benchmarks.peak.SECONDS", 0.01)
    options = tiny()
    arguments = ["--weights", options.weights, "--preprocess", options.preprocess]
    arguments += ["--calib-data", options.calib_data, "--calib-images", "16", "--seconds", "0.05"]
    arguments += ["--calibration", str(with_cache[0] / "calibration.cache"), "--emit-trt-cache"]
    assert main(["run", *arguments, "--out", str(tmp_path / "b"), "--max-engine-bytes", "1e9"]) == 0
    line = " ".join(capsys.readouterr().err.split())
    assert line.count("carries no digest") == 1
    assert line.count("this CPU has no VNNI") <= 1
    assert (tmp_path / "b" / "calibration.cache").is_file()
