"""What a bundle says of itself, in its folder and packed, while nothing of it is run or written."""

import json
import platform
import zipfile
from dataclasses import asdict
from pathlib import Path

import pytest
from small_bundle import FACTS, fill, flip, rewrite

from vggdeploy import bundle, compiling, digests, inspection, packing, tuning
from vggdeploy.cli import main
from vggdeploy.contracts import Settings, TrtOptions
from vggdeploy.errors import BundleError
from vggdeploy.manifest import CALIBRATION, LAYERS, MANIFEST, files, read_manifest

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


def test_the_host_that_built_it_is_told(path, capsys):
    assert main(["bundle", "inspect", str(path)]) == 0
    host = f"on {platform.system()} ({platform.machine()}), Python {platform.python_version()}"
    assert host in " ".join(capsys.readouterr().err.split())


def test_everything_is_shown(path, place, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    result = inspection.inspect(place)
    assert sorted(tmp_path.rglob("*")) == before
    manifest = read_manifest(path)
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
        name: (path / name).stat().st_size for name in files(manifest)
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


@pytest.mark.parametrize("name", ["model.bin", CALIBRATION, "tuned.json"])
def test_what_does_not_hold_is_shown_and_then_refused(path, name, capsys, tmp_path):
    flip(path / name, 0)
    (path / LAYERS).unlink()
    assert main(["bundle", "inspect", str(path), "--json", str(tmp_path / "r.json")]) == 2
    said = capsys.readouterr().err
    assert "altered" in said
    assert "error: " in said
    result = json.loads((tmp_path / "r.json").read_text())
    states = {file["name"]: file["state"] for file in result["files"]}
    assert [n for n, state in states.items() if state != "whole"] == sorted([name, LAYERS])
    assert (states[name], states[LAYERS]) == ("altered", "missing")
    assert result["whole"] is False
    assert (result["calibration"] is None) == (name == CALIBRATION)


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


def test_a_link_is_shown_and_not_followed(path, tmp_path):
    (path / "model.bin").rename(tmp_path / "model.bin")
    (path / "model.bin").symlink_to(tmp_path / "model.bin")
    result = inspection.inspect(path)
    assert {f["name"]: f["state"] for f in result["files"]}["model.bin"] == "link"
    with pytest.raises(BundleError, match=r"model\.bin points outside of it"):
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
    with pytest.raises(BundleError, match=r"the signature of .* does not hold"):
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


def test_another_size_is_altered_and_not_hashed(path, monkeypatch):
    """A file that claims the right digest, and one that has no end."""
    said = json.loads((path / MANIFEST).read_text())["files"]
    rewrite(path, files={**said, "model.bin": {**said["model.bin"], "size": 255}})
    with (path / CALIBRATION).open("r+b") as file:
        file.truncate(1 << 33)
    hashed = []
    real = digests.sha256_file
    monkeypatch.setattr(
        digests, "sha256_file", lambda file: (hashed.append(file.name), real(file))[1]
    )
    result = inspection.inspect(path)
    seen = {file["name"]: (file["state"], file["got"]) for file in result["files"]}
    assert seen["model.bin"] == ("altered", "256 bytes")
    assert seen[CALIBRATION] == ("altered", f"{1 << 33:,} bytes")
    assert not {"model.bin", CALIBRATION} & set(hashed)
    assert (result["whole"], result["calibration"]) == (False, None)
    with pytest.raises(BundleError, match=r"calibration\.json has been altered: got 8,589"):
        inspection.require(result)


def test_what_cannot_be_read_is_shown(path, monkeypatch):
    real = Path.open

    def refuse(self, *arguments, **options):
        if self.name == "model.bin":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    result = inspection.inspect(path)
    assert {f["name"]: f["state"] for f in result["files"]}["model.bin"] == "unreadable"
    with pytest.raises(BundleError, match=r"model\.bin cannot be read: got .*Permission denied"):
        inspection.require(result)


ANYTHING = [None, True, 5, "x", "[/]", "\x1b[2J", [], [1], {}, {"x": {"y": [None]}}]


@pytest.mark.parametrize("key", ["target", "precision", "model", "input", "output", "preprocess", "recipe",
                                 "build", "device", "tool", "host", "portable", "calibration"])  # fmt: skip
def test_a_manifest_is_shown_or_refused_whatever_it_says(path, key, capsys):
    for value in ANYTHING:
        rewrite(path, **{key: value})
        assert main(["bundle", "inspect", str(path)]) in (0, 2)
        said = capsys.readouterr().err
        assert "this is a bug" not in said
        assert "\x1b" not in said


@pytest.mark.parametrize("key", ["backend", "kept", "engine", "key", "cpu_isa", "sparsity"])
def test_a_build_is_shown_or_refused_whatever_it_says(path, key, capsys):
    for value in ANYTHING:
        rewrite(path, build={**BUILD, key: value})
        assert main(["bundle", "inspect", str(path)]) in (0, 2)
        said = capsys.readouterr().err
        assert "this is a bug" not in said
        assert "\x1b" not in said


def test_a_name_does_not_paint_over_a_verdict(path, capsys):
    rewrite(path, model={"name": "vgg16\x1b[3A\x1b[2Kdigest  trusted"})
    assert main(["bundle", "inspect", str(path)]) == 0
    assert "vgg16�[3A�[2Kdigest  trusted" in " ".join(capsys.readouterr().err.split("\n"))
