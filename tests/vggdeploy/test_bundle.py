"""The bundle: written whole, and refused when anything about it is not what the build wrote."""

import json
import shutil

import numpy as np
import pytest

from vggdeploy import bundle, digests, preprocess
from vggdeploy.bundle import Probes
from vggdeploy.errors import BundleError

FACTS = {
    "target": "ov-int8",
    "model": {"arch": "vgg16"},
    "engine": ["model.xml", "model.bin"],
    "input": {"shape": [None, 3, 224, 224]},
    "output": {"shape": [None, 10]},
    "preprocess": preprocess.PRESETS["imagenet"].to_json(),
    "build": {"key": "k1"},
}
PROBES = Probes(
    np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3),
    np.linspace(-1, 1, 20, dtype=np.float32).reshape(2, 10),
    np.array([3, 7]),
)
FILES = ["calibration.json", "layers.json", "model.bin", "model.onnx", "model.xml", "probes.npz"]


def fill(work):
    (work / "model.xml").write_text("<net/>")
    (work / "model.bin").write_bytes(bytes(range(256)))
    (work / bundle.GRAPH).write_bytes(b"graph")
    (work / bundle.CALIBRATION).write_text("{}")
    (work / bundle.LAYERS).write_text('{"layers": [{"name": "features.0"}]}')
    PROBES.save(work / bundle.PROBES)


@pytest.fixture
def path(tmp_path):
    bundle.write(tmp_path / "out", FACTS, fill, replace=False)
    return tmp_path / "out"


def rewrite(path, **changes):
    """Change the manifest and sign it again, as a careful forger would."""
    manifest = json.loads((path / bundle.MANIFEST).read_text())
    manifest.update(changes)
    manifest.pop("digest")
    manifest["digest"] = digests.sha256_json(manifest)
    (path / bundle.MANIFEST).write_text(bundle.spelling(manifest))


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_what_is_written_is_read(path):
    opened = bundle.open_bundle(path)
    assert opened.target == "ov-int8"
    assert opened.preprocess == preprocess.PRESETS["imagenet"]
    assert opened.engine == (path / "model.xml", path / "model.bin")
    assert opened.engine_bytes == 6 + 256
    assert opened.budget()["layers"] == [{"name": "features.0"}]
    assert sorted(opened.manifest["files"]) == FILES
    probes = opened.probes()
    for name in ("images", "reference", "labels"):
        array = getattr(probes, name)
        assert array.dtype == getattr(PROBES, name).dtype
        assert np.array_equal(array, getattr(PROBES, name))


def test_the_same_build_writes_the_same_bytes(path, tmp_path):
    bundle.write(tmp_path / "again", FACTS, fill, replace=False)
    for name in [*FILES, bundle.MANIFEST]:
        assert (path / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


@pytest.mark.parametrize("place", [0, 2, -1])
@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_in_any_file_is_found(path, name, place):
    if (path / name).stat().st_size <= place:
        place = 1
    flip(path / name, place)
    with pytest.raises(BundleError, match=f"{name} has been altered"):
        bundle.open_bundle(path)


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_grown_or_gone_is_found(path, name):
    whole = (path / name).read_bytes()
    for content in (whole[:-1], whole + b"\0", b""):
        (path / name).write_bytes(content)
        with pytest.raises(BundleError, match=f"{name} has been altered: got {len(content):,} by"):
            bundle.open_bundle(path)
    (path / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        bundle.open_bundle(path)
    (path / name).mkdir()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        bundle.open_bundle(path)


def test_one_flipped_bit_anywhere_in_the_manifest_is_found(path):
    file = path / bundle.MANIFEST
    whole = file.read_bytes()
    for place in range(len(whole)):
        content = bytearray(whole)
        content[place] ^= 1 << (place % 8)
        file.write_bytes(content)
        with pytest.raises(BundleError):
            bundle.open_bundle(path)
    file.write_bytes(whole)
    bundle.open_bundle(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"ov-int8"', '"ov-fp32"'),
        ('"size": 256', '"size": 257'),
        ('"size": 256', '"size": NaN'),
        ('"size": 256', '"size": Infinity'),
        ('"key": "k1"', '"key": "k2"'),
        ('"target":', '"aim":'),
    ],
)
def test_an_edited_manifest_is_found(path, old, new):
    file = path / bundle.MANIFEST
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    with pytest.raises(BundleError, match=r"manifest\.json"):
        bundle.open_bundle(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("1e-05", "1E-05"),
        ("\\u00e9", "\\u00E9"),
        ("\n", "\r\n"),
        (": ", ":  "),
        ("1e-05", "0.1e-4"),
    ],
)
def test_another_spelling_of_the_same_is_found(tmp_path, old, new):
    """One bit may make it, and no digest of what was parsed tells."""
    path = tmp_path / "out"
    bundle.write(path, {**FACTS, "share": 1e-05, "name": "é"}, fill, replace=False)
    file = path / bundle.MANIFEST
    said = file.read_bytes()
    assert old.encode() in said
    file.write_bytes(said.replace(old.encode(), new.encode(), 1))
    with pytest.raises(BundleError, match="has been altered"):
        bundle.open_bundle(path)


@pytest.mark.parametrize(
    ("part", "wrong"),
    [
        ("target", 3), ("model", []), ("engine", "model.bin"), ("engine", [["model.bin"]]), ("engine", [3]),
        ("input", {}), ("input", {"shape": 3}), ("output", {"shape": [None, -1]}),
        ("output", {"shape": [None, True]}), ("files", []), ("files", {"model.bin": 3}),
        ("files", {"model.bin": {"size": "3", "sha256": ""}}), ("build", {"key": "k1", "engine": [1]}),
        ("recipe", [1]), ("preprocess", None),
    ],
)  # fmt: skip
def test_a_manifest_of_another_form_is_refused_though_it_is_signed(path, part, wrong):
    rewrite(path, **{part: wrong})
    with pytest.raises(BundleError, match=f"{part} of another form"):
        bundle.open_bundle(path)


@pytest.mark.parametrize("number", ["1e999", "-1e999"])
def test_a_number_that_is_none_is_refused(path, number):
    file = path / bundle.MANIFEST
    file.write_text(file.read_text().replace('"size": 256', f'"size": {number}'))
    with pytest.raises(BundleError, match="no finite number"):
        bundle.open_bundle(path)


@pytest.mark.parametrize("schema", [0, 2, None, "1"])
def test_another_schema_is_refused(path, schema):
    rewrite(path, schema=schema)
    with pytest.raises(BundleError, match=r"of another schema.*expected 1"):
        bundle.open_bundle(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '"bundle"', "\x00"])
def test_a_manifest_that_is_none_is_refused(path, text):
    (path / bundle.MANIFEST).write_text(text)
    with pytest.raises(BundleError):
        bundle.open_bundle(path)


def test_a_place_without_a_bundle_is_refused(path, tmp_path):
    (path / bundle.MANIFEST).unlink()
    (tmp_path / "file").write_text("")
    for place in (path, tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(BundleError, match="is no bundle"):
            bundle.open_bundle(place)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/hostname", "sub/secret", "sub/../secret", ".."]
)
def test_a_path_that_leads_outside_is_refused(path, name):
    (path / "sub").mkdir()
    for place in (path.parent, path, path / "sub"):
        (place / "secret").write_text("x")
    said = {"sha256": digests.sha256_file(path / "secret"), "size": 1}
    files = json.loads((path / bundle.MANIFEST).read_text())["files"]
    rewrite(path, files={**files, name: said})
    with pytest.raises(BundleError, match=r"points outside of it|is missing"):
        bundle.open_bundle(path)


def test_a_link_is_refused(path, tmp_path):
    (path / "model.bin").rename(tmp_path / "model.bin")
    (path / "model.bin").symlink_to(tmp_path / "model.bin")
    with pytest.raises(BundleError, match=r"'model\.bin' points outside"):
        bundle.open_bundle(path)


@pytest.mark.parametrize("name", ["model.bin", bundle.PROBES])
def test_a_file_that_would_be_read_unchecked_is_refused(path, name):
    files = json.loads((path / bundle.MANIFEST).read_text())["files"]
    files.pop(name)
    rewrite(path, files=files)
    with pytest.raises(BundleError, match=name):
        bundle.open_bundle(path)


def test_a_failure_while_filling_leaves_nothing(tmp_path):
    def fail(work):
        fill(work)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        bundle.write(tmp_path / "out", FACTS, fail, replace=False)
    assert list(tmp_path.iterdir()) == []


def test_a_place_holds_the_bundle_of_its_key(path, tmp_path):
    for force in (False, True):
        assert bundle.holds(path, "k1", force=force) is True
        assert bundle.holds(tmp_path / "free", "k1", force=force) is False


def test_another_bundle_gives_way_only_to_force(path):
    with pytest.raises(BundleError, match=r"holds a bundle built from other inputs.*--force"):
        bundle.holds(path, "k2", force=False)
    assert bundle.holds(path, "k2", force=True) is False


def test_a_damaged_bundle_of_the_same_key_counts_as_room(path):
    flip(path / "model.bin", 0)
    assert bundle.holds(path, "k1", force=False) is False
    with pytest.raises(BundleError, match="other inputs"):
        bundle.holds(path, "k2", force=False)


@pytest.mark.parametrize("force", [False, True])
def test_what_is_no_bundle_never_gives_way(tmp_path, force):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").write_text("dear")
    (tmp_path / "file").write_text("dear")
    for name in ("photos", "file"):
        with pytest.raises(BundleError, match="exists and is no bundle"):
            bundle.holds(tmp_path / name, "k1", force=force)


def test_an_older_bundle_needs_force(path):
    rewrite(path, schema=0)
    with pytest.raises(BundleError, match="other inputs"):
        bundle.holds(path, "k1", force=False)
    assert bundle.holds(path, "k1", force=True) is False


def test_a_bundle_can_be_moved(path, tmp_path):
    shutil.copytree(path, tmp_path / "device" / "b")
    assert bundle.open_bundle(tmp_path / "device" / "b").probes().images.shape == (2, 4, 4, 3)
