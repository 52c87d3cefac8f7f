"""The bundle: written whole, and refused when anything about it is not what the build wrote."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_bundle import BUDGET, FACTS, PROBES, fill, flip, rewrite

from vggdeploy import bundle, digests, manifest, preprocess
from vggdeploy.errors import BundleError

FILES = ["calibration.json", "layers.json", "model.bin", "model.onnx", "model.xml", "probes.npz"]


@pytest.fixture
def path(tmp_path):
    bundle.write(tmp_path / "out", FACTS, fill, replace=False)
    return tmp_path / "out"


def test_what_is_written_is_read(path):
    opened = bundle.open_bundle(path)
    assert opened.target == "ov-int8"
    assert opened.preprocess == preprocess.PRESETS["imagenet"]
    assert opened.engine == (path / "model.xml", path / "model.bin")
    assert opened.engine_bytes == 6 + 256
    assert opened.budget() == BUDGET
    assert sorted(opened.manifest["files"]) == FILES
    probes = opened.probes()
    for name in ("images", "reference", "labels"):
        array = getattr(probes, name)
        assert array.dtype == getattr(PROBES, name).dtype
        assert np.array_equal(array, getattr(PROBES, name))


@pytest.mark.parametrize(("size", "turns"), [(1, [[0], [1]]), (2, [[0, 1]]), (3, [[0, 1, 0]])])
def test_probes_in_batches_start_over_where_they_run_out(path, size, turns):
    opened = bundle.open_bundle(path)
    expected = [opened.batch(PROBES.images[turn]) for turn in turns]
    np.testing.assert_array_equal(opened.probe_batches(size), expected)


def test_the_batches_of_an_engine(path):
    assert bundle.open_bundle(path).batches is None
    rewrite(path, build={"key": "k1", "engine": {"batches": [2, 4, 8]}})
    assert bundle.open_bundle(path).batches == (2, 4, 8)


def test_the_same_build_writes_the_same_bytes(path, tmp_path):
    bundle.write(tmp_path / "again", FACTS, fill, replace=False)
    for name in [*FILES, manifest.MANIFEST]:
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
    file = path / manifest.MANIFEST
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
    file = path / manifest.MANIFEST
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
    file = path / manifest.MANIFEST
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
    with pytest.raises(
        BundleError,
        match=rf"a part of it is wrong: got {part}",
    ):
        bundle.open_bundle(path)


@pytest.mark.parametrize("number", ["1e999", "-1e999"])
def test_a_number_that_is_none_is_refused(path, number):
    file = path / manifest.MANIFEST
    file.write_text(file.read_text().replace('"size": 256', f'"size": {number}'))
    with pytest.raises(BundleError, match=r"cannot be read.*1e999 is no JSON"):
        bundle.open_bundle(path)


@pytest.mark.parametrize("schema", [0, 2, None, "1"])
def test_another_schema_is_refused(path, schema):
    rewrite(path, schema=schema)
    with pytest.raises(BundleError, match=r"of another schema.*expected 1"):
        bundle.open_bundle(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '"bundle"', "\x00"])
def test_a_manifest_that_is_none_is_refused(path, text):
    (path / manifest.MANIFEST).write_text(text)
    with pytest.raises(BundleError):
        bundle.open_bundle(path)


def test_a_place_without_a_bundle_is_refused(path, tmp_path):
    (path / manifest.MANIFEST).unlink()
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
    files = json.loads((path / manifest.MANIFEST).read_text())["files"]
    rewrite(path, files={**files, name: said})
    with pytest.raises(BundleError, match=r"is no file of a build"):
        bundle.open_bundle(path)


def test_a_link_is_refused(path, tmp_path):
    (path / "model.bin").rename(tmp_path / "model.bin")
    (path / "model.bin").symlink_to(tmp_path / "model.bin")
    with pytest.raises(BundleError, match=r"model\.bin points outside of it: got a symbolic link"):
        bundle.open_bundle(path)


@pytest.mark.parametrize("name", ["model.bin", manifest.PROBES])
def test_a_file_that_would_be_read_unchecked_is_refused(path, name):
    files = json.loads((path / manifest.MANIFEST).read_text())["files"]
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
    with pytest.raises(BundleError, match=r"of another version: got .*is of another schema"):
        bundle.holds(path, "k1", force=False)
    assert bundle.holds(path, "k1", force=True) is False


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "cannot be read"), (b"{}", "is of another schema"), (None, "has been altered")],
)
def test_a_bundle_whose_manifest_is_damaged_is_said_to_be_and_needs_force(path, content, said):
    file = path / manifest.MANIFEST
    file.write_bytes(file.read_bytes() + b" " if content is None else content)
    with pytest.raises(BundleError, match=f"holds a damaged bundle.*{said}.*--force"):
        bundle.holds(path, "k1", force=False)
    assert bundle.holds(path, "k1", force=True) is False


def test_a_bundle_can_be_moved(path, tmp_path):
    shutil.copytree(path, tmp_path / "device" / "b")
    assert bundle.open_bundle(tmp_path / "device" / "b").probes().images.shape == (2, 4, 4, 3)


SHA = "0" * 64


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"files": []}, r"got files \[\]"),
        ({"files": {"a": 1}}, r"got files\['a'\] 1"),
        ({"files": {"a": {"size": 1}}}, r"\['a'\]\.sha256 left out"),
        ({"files": {"a": {"size": -1, "sha256": SHA}}}, r"\['a'\]\.size -1"),
        ({"files": {"a": {"size": True, "sha256": SHA}}}, r"\['a'\]\.size True"),
        ({"files": {"a": {"size": 1, "sha256": "0"}}}, r"\['a'\]\.sha256 '0'"),
        ({"files": {"a.json": {"size": 1 << 40, "sha256": SHA}}}, "too large: got 1,099"),
        ({"files": {"model.bin": {"size": 1 << 40, "sha256": SHA}}}, "too large"),
        ({"files": {"probes.npz": {"size": 1 << 31, "sha256": SHA}}}, "probes.npz is too large"),
        ({"files": {f"f{i}": {"size": 1, "sha256": SHA} for i in range(65)}}, "too many files"),
        ({"files": {n: {"size": 1, "sha256": SHA} for n in ("a", "A")}}, "capitals"),
        ({"files": {"Manifest.json": {"size": 1, "sha256": SHA}}}, "is no file of a build"),
        ({"files": {"signature.json": {"size": 1, "sha256": SHA}}}, "is no file of a build"),
        ({"files": {"tuned.json": {"size": 1, "sha256": SHA}}}, "is no file of a build"),
        ({"engine": "model.xml"}, "got engine 'model.xml'"),
        ({"engine": [["model.xml"]]}, r"got engine\[0\]"),
        ({"engine": ["../model.xml"]}, "no digest"),
        ({"build": None}, "got build None"),
        ({"build": {"key": ["k"]}}, r"got build\.key"),
        ({"build": {"kept": [1]}}, r"got build\.kept\[0\] 1"),
        ({"build": {"engine": {"batches": [1, 8]}}}, r"got build\.engine\.batches \[1, 8\]"),
        ({"build": {"engine": {"batches": [0, 1, 8]}}}, r"got build\.engine\.batches"),
        ({"build": {"engine": {"batches": "1, 1, 8"}}}, r"got build\.engine\.batches"),
        ({"tool": "x"}, "got tool 'x'"),
        ({"host": ["x"]}, "got host"),
        ({"device": 5}, "got device 5"),
        ({"output": {"shape": []}}, r"got output\.shape \[\]"),
        ({"model": "x" * 1000}, r"got model 'x{12}\.\.\.x{13}',"),
    ],
)
def test_a_forged_manifest_is_refused(path, changes, words):
    """Whoever forges one can give it a digest that holds: what it says is looked at, too."""
    rewrite(path, **changes)
    with pytest.raises(BundleError, match=words) as caught:
        bundle.open_bundle(path)
    assert " -- " in str(caught.value)


def test_a_bundle_that_says_it_was_not_tuned_is_opened(path):
    file = path / manifest.MANIFEST
    file.write_text(manifest.spelling({**json.loads(file.read_text()), manifest.TUNED: None}))
    assert manifest.files(bundle.open_bundle(path).manifest).keys() == set(FILES)


def test_an_endless_manifest_is_read_no_further_than_its_limit(path):
    (path / manifest.MANIFEST).write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(BundleError, match="more than 1,048,576 bytes"):
        bundle.open_bundle(path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"schema": 1, "a": 1e999}'])
def test_a_manifest_that_breaks_a_parser_is_refused(path, text):
    (path / manifest.MANIFEST).write_text(text)
    with pytest.raises(BundleError, match="cannot be read"):
        bundle.open_bundle(path)


def test_a_bundle_gives_way_to_another_with_force_alone(path, tmp_path):
    bundle.refuse_taken(tmp_path / "free", force=False)
    bundle.refuse_taken(path, force=True)
    with pytest.raises(BundleError, match=r"holds another bundle.*--force"):
        bundle.refuse_taken(path, force=False)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").write_text("dear")
    with pytest.raises(BundleError, match="is no bundle"):
        bundle.refuse_taken(tmp_path / "photos", force=True)


@pytest.mark.parametrize("choices", [None, {}, [5], ["x"]])
def test_choices_of_another_form_are_refused(path, choices):
    """Nobody's key is asked for what tuning adds."""
    said = manifest.read_manifest(path)
    tuned = {"choices": choices, "files": {manifest.TABLE: {"size": 1, "sha256": SHA}}}
    tuned["digest"] = manifest.tuned_digest(said["digest"], tuned)
    (path / manifest.MANIFEST).write_text(manifest.spelling({**said, manifest.TUNED: tuned}))
    with pytest.raises(BundleError, match=r"a part of it is wrong: got tuned\.choices"):
        bundle.open_bundle(path)


def unreadable(monkeypatch, name):
    """Let no file of this name be opened, as if it were another user's."""
    real = Path.open

    def refuse(self, *arguments, **options):
        if self.name == name:
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)


@pytest.mark.parametrize("name", ["model.bin", manifest.MANIFEST])
def test_a_file_that_cannot_be_read_is_named(path, monkeypatch, name):
    unreadable(monkeypatch, name)
    with pytest.raises(BundleError, match=rf"{name} cannot be read: got .*Permission denied"):
        bundle.open_bundle(path)


def test_a_file_that_cannot_be_read_to_its_end_is_an_error_of_the_bundle(path, monkeypatch):
    def fail(file):
        raise OSError(5, "Input/output error", str(file))

    monkeypatch.setattr(digests, "sha256_file", fail)
    with pytest.raises(BundleError, match=r"cannot be read: got .*Input/output error"):
        bundle.open_bundle(path)


def test_a_file_of_another_size_is_not_hashed(path, monkeypatch):
    """It may have no end."""
    hashed = []
    real = digests.sha256_file
    monkeypatch.setattr(
        digests, "sha256_file", lambda file: (hashed.append(file.name), real(file))[1]
    )
    (path / "model.bin").write_bytes(b"x")
    with pytest.raises(
        BundleError, match=r"model\.bin has been altered: got 1 bytes, expected 256"
    ):
        bundle.open_bundle(path)
    assert sorted(hashed) == sorted(set(FILES) - {"model.bin"})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"total": {}}, "total.params left out"),
        ({"total": None}, "total None"),
        ({"layers": [{**BUDGET["layers"][0], "macs": "9"}]}, r"layers\[0\]\.macs '9'"),
        ({"layers": [{**BUDGET["layers"][0], "macs": 10**400}]}, r"layers\[0\]\.macs 1000"),
        ({"layers": [{**BUDGET["layers"][0], "output": 3}]}, r"layers\[0\]\.output 3"),
        ({"layers": [{**BUDGET["layers"][0], "weights": {}}]}, r"layers\[0\]\.weights \{\}"),
        ({"layers": [{**BUDGET["layers"][0], "inputs": 0}]}, r"layers\[0\]\.inputs 0"),
        ({"batch": 0}, "batch 0"),
        ({"nodes": []}, r"nodes \[\]"),
        ({"engine_layers": [{"name": "x"}]}, r"engine_layers\[0\]\.budget left out"),
    ],
)
def test_a_budget_of_another_form_is_refused(tmp_path, change, words):
    def fill_other(work):
        fill(work)
        (work / manifest.LAYERS).write_text(json.dumps({**BUDGET, **change}))

    made = bundle.write(tmp_path / "b", FACTS, fill_other, replace=False)
    with pytest.raises(BundleError, match=rf"layers\.json is not what a build writes: got {words}"):
        made.budget()


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"a": NaN}', "[" * 100_000, "\xff"])
def test_a_budget_that_is_none_is_refused(tmp_path, text):
    def fill_other(work):
        fill(work)
        (work / manifest.LAYERS).write_text(text, encoding="latin-1")

    made = bundle.write(tmp_path / "b", FACTS, fill_other, replace=False)
    with pytest.raises(BundleError, match=r"layers\.json is not what a build writes"):
        made.budget()


def test_a_file_that_was_not_checked_is_not_read(path):
    (path / "network.json").write_text("{}")
    opened = bundle.open_bundle(path)
    with pytest.raises(
        BundleError, match=r"holds no network\.json: got .*, expected network\.json"
    ):
        opened.read_json("network.json", dict)
