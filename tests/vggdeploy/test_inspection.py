"""What a bundle says of itself, in its folder and packed, while nothing of it is run or written."""

import json
import zipfile
from dataclasses import asdict

import pytest
from small_bundle import FACTS, fill, flip, rewrite

from vggdeploy import bundle, compiling, inspection, packing, tuning
from vggdeploy.cli import main
from vggdeploy.contracts import Settings, TrtOptions
from vggdeploy.errors import BundleError

PLACE = tuning.Place("CPU", "Some CPU", 2)
CHOICE = tuning.Choice("latency", 1, Settings(streams=1), PLACE, "openvino 1")
BUILD = {"key": "k1", "backend": "openvino 1", "kept": ["features.0", "classifier.6"]}


@pytest.fixture
def path(tmp_path):
    facts = {
        **FACTS,
        "precision": "int8",
        "portable": False,
        "build": BUILD,
        compiling.RECIPE: compiling.recipe(TrtOptions(workspace_bytes=123)),
        "device": {"name": "Some GPU"},
    }
    bundle.write(tmp_path / "bundle", facts, fill, replace=False)
    tuning.record(bundle.open_bundle(tmp_path / "bundle"), CHOICE, {"kind": "tune"})
    return tmp_path / "bundle"


@pytest.fixture(params=["folder", "packed"])
def place(request, path, tmp_path):
    if request.param == "folder":
        return path
    packing.pack(path, tmp_path / "b.zip")
    return tmp_path / "b.zip"


def test_everything_is_shown(path, place, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    result = inspection.inspect(place)
    assert sorted(tmp_path.rglob("*")) == before
    manifest = bundle.read_manifest(path)
    for key in ("target", "precision", "digest", "model", "input", "output", "preprocess", "tool",
                "host", "build", "recipe", "device", "engine", "portable"):  # fmt: skip
        assert result[key] == manifest[key], key
    assert result["packed"] == place.is_file()
    assert result["kept"] == BUILD["kept"]
    assert result["tuned"] == [asdict(CHOICE)]
    assert result["calibration"] == {
        "method": "mse", "tensors": 1, "images": 3, "seed": 5, "images_sha256": "c0ffee",
    }  # fmt: skip
    assert {file["name"]: file["size"] for file in result["files"]} == {
        name: (path / name).stat().st_size for name in bundle.files(manifest)
    }
    assert {file["state"] for file in result["files"]} == {"whole"}
    assert (result["whole"], result["signatures"], result["trusted"]) == (True, [], None)
    size = (
        place.stat().st_size if place.is_file() else sum(f.stat().st_size for f in path.iterdir())
    )
    assert result["bytes"] == size


def test_a_person_sees_it(place, capsys, monkeypatch):
    monkeypatch.setattr("vggdeploy.bundle_commands.terminal.console.width", 200)
    assert main(["bundle", "inspect", str(place)]) == 0
    said = capsys.readouterr().err
    for words in (
        "ov-int8, engine model.xml, model.bin", "features.0, classifier.6", "streams 1",
        "method mse, tensors 1, images 3", "workspace_bytes 123", "openvino 1", "Some GPU",
        "[N, 3, 224, 224]", "calibration.json", "whole", "signed",
    ):  # fmt: skip
        assert words in said, words
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["model.bin", bundle.CALIBRATION, "tuned.json"])
def test_what_does_not_hold_is_shown_and_then_refused(path, name, capsys, tmp_path):
    flip(path / name, 0)
    (path / bundle.LAYERS).unlink()
    assert main(["bundle", "inspect", str(path), "--json", str(tmp_path / "r.json")]) == 2
    said = capsys.readouterr().err
    assert "altered" in said
    assert "error: " in said
    result = json.loads((tmp_path / "r.json").read_text())
    states = {file["name"]: file["state"] for file in result["files"]}
    assert [n for n, state in states.items() if state != "whole"] == sorted([name, bundle.LAYERS])
    assert (states[name], states[bundle.LAYERS]) == ("altered", "missing")
    assert result["whole"] is False
    assert (result["calibration"] is None) == (name == bundle.CALIBRATION)


def test_an_altered_file_in_a_packed_bundle_is_shown(path, tmp_path):
    """Another content of the same size."""
    packing.pack(path, tmp_path / "b.zip")
    with (
        zipfile.ZipFile(tmp_path / "b.zip") as old,
        zipfile.ZipFile(tmp_path / "c.zip", "w") as new,
    ):
        for name in old.namelist():
            new.writestr(name, b"<bad/>" if name == "model.xml" else old.read(name))
    states = {f["name"]: f["state"] for f in inspection.inspect(tmp_path / "c.zip")["files"]}
    assert {name for name, state in states.items() if state == "altered"} == {"model.xml"}


def test_a_link_counts_as_missing(path, tmp_path):
    (path / "model.bin").rename(tmp_path / "model.bin")
    (path / "model.bin").symlink_to(tmp_path / "model.bin")
    result = inspection.inspect(path)
    assert {f["name"]: f["state"] for f in result["files"]}["model.bin"] == "missing"
    with pytest.raises(BundleError, match=r"model\.bin is missing"):
        inspection.require(result)


def test_signatures_are_shown(path, tmp_path, capsys):
    pytest.importorskip("cryptography")
    from vggdeploy import signing

    for name in ("builder", "stranger"):
        signing.generate(tmp_path / name)
        bundle.sign(path, tmp_path / name)
    packing.pack(path, tmp_path / "b.zip")
    for place in (path, tmp_path / "b.zip"):
        unchecked = inspection.inspect(place)
        assert unchecked["trusted"] is None
        assert [each["holds"] for each in unchecked["signatures"]] == [None, None]
        inspection.require(unchecked)
        result = inspection.inspect(place, trusted=tmp_path / "builder.pub")
        assert result["trusted"] is True
        assert sorted(str(each["holds"]) for each in result["signatures"]) == ["None", "True"]
        inspection.require(result)
    signing.generate(tmp_path / "third")
    result = inspection.inspect(path, trusted=tmp_path / "third.pub")
    assert result["trusted"] is False
    with pytest.raises(BundleError, match="signed by no trusted key"):
        inspection.require(result)
    rewrite(path, target="ov-fp32")
    result = inspection.inspect(path, trusted=tmp_path / "builder.pub")
    with pytest.raises(BundleError, match="signed wrongly"):
        inspection.require(result)
    arguments = ["bundle", "inspect", str(path), "--trusted-keys", str(tmp_path / "builder.pub")]
    assert main(arguments) == 2
    assert "WRONG" in capsys.readouterr().err


def test_what_is_no_bundle_is_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    for place in ("folder", "file", "nowhere"):
        with pytest.raises(BundleError):
            inspection.inspect(tmp_path / place)
