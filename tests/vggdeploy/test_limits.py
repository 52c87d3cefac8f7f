"""Limits: no file makes a reader take memory for more than it holds."""

import io
import json
import re
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from small_bundle import FACTS, fill

from vggdeploy import bundle, calibration_file, checkpoints, config, limits, preprocess, results
from vggdeploy.calib import CalibrationTable
from vggdeploy.errors import (
    BundleError,
    CalibrationError,
    ConfigError,
    ResultError,
    VggdeployError,
    WeightsError,
)
from vggdeploy.manifest import PROBES


def grow(path, size, start=b""):
    """A file of `size` bytes that takes no room on the disk."""
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size)
    return path


def test_a_file_at_its_limit_is_read_and_one_beyond_is_not(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"12345")
    assert limits.read(path, 5) == b"12345"
    with pytest.raises(limits.OverLimitError, match="more than 4 bytes"):
        limits.read(path, 4)


READERS = {
    "result": (lambda p: results.read(p), limits.RESULT_BYTES, ResultError, b"{"),
    "table": (lambda p: CalibrationTable.load(p), limits.JSON_BYTES, CalibrationError, b"{"),
    "given table": (lambda p: calibration_file.read(p), limits.JSON_BYTES, CalibrationError, b"{"),
    "cache": (
        lambda p: calibration_file.read(p),
        limits.TRT_CACHE_BYTES,
        CalibrationError,
        b"TRT-100300-EntropyCalibration2\n",
    ),
    "recipe": (lambda p: preprocess.load(str(p)), limits.TOML_BYTES, ConfigError, b""),
    "settings": (lambda p: config.load(p.parent), limits.TOML_BYTES, ConfigError, b""),
}


@pytest.mark.parametrize("kind", READERS)
def test_a_file_that_is_too_large_is_refused(tmp_path, kind):
    read, most, error, start = READERS[kind]
    path = tmp_path / ("vggdeploy.toml" if kind == "settings" else "f.toml")
    grow(path, most + 1, start)
    with pytest.raises(error, match=f"(more than {most:,} bytes)") as caught:
        read(path)
    assert " -- " in str(caught.value)
    # At the limit it is read, and refused for what it holds.
    grow(path, most, start)
    with pytest.raises(error) as caught:
        read(path)
    assert "more than" not in str(caught.value)


@pytest.mark.parametrize("kind", ["result", "table", "recipe", "settings"])
def test_a_file_that_is_nested_too_deep_is_refused(tmp_path, kind):
    read, _, error, _ = READERS[kind]
    path = tmp_path / ("vggdeploy.toml" if kind == "settings" else "f.toml")
    path.write_text("a = " * (kind in ("recipe", "settings")) + "[" * 100_000)
    with pytest.raises(error):
        read(path)


# Arrays.


def npz(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)


def npy(array, shape=None, version=(1, 0), descr=None):
    """An array as .npy, which may declare another shape and another type."""
    stream = io.BytesIO()
    header = np.lib.format.header_data_from_array_1_0(array)
    header |= {"shape": shape or array.shape, "descr": descr or header["descr"]}
    write = {
        (1, 0): np.lib.format.write_array_header_1_0,
        (2, 0): np.lib.format.write_array_header_2_0,
    }
    write[version](stream, header)
    return stream.getvalue() + array.tobytes()


ONE = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_arrays_come_back(tmp_path, version):
    npz(tmp_path / "a.npz", {"a": npy(ONE, version=version), "empty": npy(ONE[:0])})
    found = limits.arrays(tmp_path / "a.npz")
    assert np.array_equal(found["a"], ONE)
    assert found["empty"].shape == (0, 3)
    np.savez(tmp_path / "b.npz", x=ONE, names=np.array(["a", "bc"]))
    assert limits.arrays(tmp_path / "b.npz")["names"].tolist() == ["a", "bc"]


@pytest.mark.parametrize(
    "member",
    [
        npy(ONE, shape=(1 << 40, 3)),
        npy(ONE, shape=(1 << 62, 1 << 62)),
        npy(ONE, shape=(2, 4)),
        npy(ONE, shape=(2, 2)),
        npy(ONE, shape=(-2, -3)),
        npy(ONE, descr="<f8"),
        npy(np.zeros(3), descr="|O"),
        npy(ONE)[:-1],
        npy(ONE) + b"\0",
        npy(ONE)[:20],
        b"",
        b"\x93NUMPY\x03\x00" + npy(ONE, version=(2, 0))[8:],
        b"\x93NUMPY\x02\x00" + struct.pack("<L", 1 << 31) + b"{",
    ],
)
def test_an_array_that_declares_something_else_is_refused(tmp_path, member, monkeypatch):
    """Before numpy comes to it: it takes memory for what a header declares."""
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("numpy read it"))
    npz(tmp_path / "a.npz", {"a": member})
    with pytest.raises((ValueError, EOFError)):
        limits.arrays(tmp_path / "a.npz")


def test_compressed_arrays_are_refused(tmp_path):
    npz(tmp_path / "a.npz", {"a": npy(np.zeros(1 << 20))}, zipfile.ZIP_DEFLATED)
    with pytest.raises(limits.OverLimitError, match=r"a\.npy is compressed"):
        limits.arrays(tmp_path / "a.npz")


def test_a_member_that_declares_more_than_the_file_is_refused(tmp_path):
    npz(tmp_path / "a.npz", {"a": npy(ONE)})
    content = bytearray((tmp_path / "a.npz").read_bytes())
    at = content.rindex(b"PK\1\2")
    struct.pack_into("<LL", content, at + 20, 1 << 30, 1 << 30)
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(zipfile.BadZipFile, match="an entry that runs into it"):
        limits.arrays(tmp_path / "a.npz")


def nested(path, depth):
    """An .npz file of members inside of each other, that all end with the innermost one's bytes."""
    body, members = npy(np.zeros(1 << 10)), []
    for number in range(depth):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr(zipfile.ZipInfo(f"{number}.npy"), body)
            length = archive.start_dir
        member, head = stream.getvalue()[:length], bytearray(stream.getvalue()[length:-22])
        members.insert(0, (head, length))
        body = npy(np.zeros(0), shape=(length,), descr="|u1") + member
    for head, length in members:
        struct.pack_into("<L", head, 42, len(member) - length)
    directory = b"".join(bytes(head) for head, _ in members)
    end = (b"PK\5\6", 0, 0, depth, depth, len(directory), len(member), 0)
    path.write_bytes(member + directory + struct.pack("<4s4H2LH", *end))


def test_members_that_share_their_bytes_are_refused(tmp_path, monkeypatch):
    """A file of some bytes would take memory for them many times over. Not every version of Python
    notices by itself."""
    nested(tmp_path / "one.npz", 1)
    assert limits.arrays(tmp_path / "one.npz")["0"].shape == (1 << 10,)
    nested(tmp_path / "many.npz", 40)
    with zipfile.ZipFile(tmp_path / "many.npz") as archive:
        held = sum(entry.file_size for entry in archive.infolist())
    assert held > 20 * (tmp_path / "many.npz").stat().st_size
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("numpy read it"))
    with pytest.raises(zipfile.BadZipFile, match="or of two entries"):
        limits.arrays(tmp_path / "many.npz")


def test_probes_that_declare_too_much_are_named(tmp_path):
    def fill_wrong(work):
        fill(work)
        npz(work / PROBES, {"images": npy(ONE, shape=(1 << 50,)), "reference": npy(ONE)})

    bundle.write(tmp_path / "b", FACTS, fill_wrong, replace=False)
    with pytest.raises(BundleError, match=r"probes\.npz cannot be read.*declares 4,5"):
        bundle.open_bundle(tmp_path / "b").probes()


# Checkpoints.


def safetensors(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def said(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.fixture
def no_library(monkeypatch):
    """The library is not reached."""
    library = pytest.importorskip("safetensors")
    pytest.importorskip("safetensors.torch")
    monkeypatch.setattr(library, "safe_open", lambda *_, **__: pytest.fail("it was read"))
    monkeypatch.setattr("safetensors.torch.load_file", lambda *_: pytest.fail("it was read"))


@pytest.mark.parametrize(
    ("header", "length", "words"),
    [
        (b"", (8 << 20) + 1, "a header of 8,388,609 bytes"),
        (b"", 1 << 63, "a header of"),
        (b"{}", 100, "cannot be read"),
        (b"[]", None, "cannot be read"),
        (b"[" * 100_000, None, "cannot be read"),
        ({f"t{i}": 0 for i in range((1 << 16) + 1)}, None, "65,537 tensors"),
        ({"a": said([1 << 60], 0, 16)}, None, "tensor 'a' of 4,6"),
        ({"a": said([1 << 40, 1 << 40], 0, 16)}, None, "tensor 'a'"),
        ({"a": said([4], 0, 12)}, None, "tensor 'a' of 16 bytes at 0 to 12 of 16"),
        ({"a": said([4], 4, 20)}, None, "tensor 'a' of 16 bytes at 4 to 20 of 16"),
        ({"a": said([4], 16, 0)}, None, "tensor 'a'"),
        ({"a": said([-2, -2], 0, 16)}, None, "sizes of tensor 'a'"),
        ({"a": said([4], -16, 0)}, None, "sizes of tensor 'a'"),
        ({"a": said([4.0], 0, 16)}, None, "sizes of tensor 'a'"),
        ({"a": said([1] * 65, 0, 4)}, None, "sizes of tensor 'a'"),
        ({"a": said([1 << 31, 1 << 62, ".."], 0, 16)}, None, "sizes of tensor 'a'"),
        ({"a": said([1 << 37, "."], 0, 16)}, None, "sizes of tensor 'a'"),
        ({"a": said([4], 0, 16, "X9")}, None, "X9"),
        ({"a": {"dtype": "F32"}}, None, "data_offsets"),
    ],
)
def test_a_safetensors_header_that_declares_too_much_is_refused(
    tmp_path, no_library, header, length, words
):
    path = safetensors(tmp_path / "w.safetensors", header, bytes(16), length)
    for read in (checkpoints.read, checkpoints.metadata):
        with pytest.raises(WeightsError, match=words) as caught:
            read(path)
        assert " -- " in str(caught.value)


def test_a_whole_safetensors_file_is_read(tmp_path):
    pytest.importorskip("safetensors")
    header = {"a": said([4], 0, 16), "__metadata__": {"x": "y"}}
    path = safetensors(tmp_path / "w.safetensors", header, bytes(16))
    assert checkpoints.read(path)["a"].tolist() == [0, 0, 0, 0]


def test_a_checkpoint_that_inflates_is_refused(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    path = tmp_path / "w.pth"
    torch.save({"a": torch.zeros(1 << 16)}, path)
    assert checkpoints.read(path)["a"].shape == (1 << 16,)
    with zipfile.ZipFile(path) as old:
        parts = [(entry.filename, old.read(entry)) for entry in old.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in parts:
            new.writestr(name, content)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch read it"))
    with pytest.raises(WeightsError, match=r"parts of .* bytes in a file of"):
        checkpoints.read(path)


def test_a_checkpoint_of_more_parts_than_a_network_has_is_not_opened(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    path = tmp_path / "w.pth"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(9):
            archive.writestr(str(number), b"")
    monkeypatch.setattr(limits, "TENSORS", 4)
    monkeypatch.setattr(zipfile, "ZipFile", lambda *_: pytest.fail("its directory was read"))
    with pytest.raises(WeightsError, match=r"9 entries of 423 bytes, more than 8"):
        checkpoints.read(path)


def test_an_entry_of_two_names_is_refused(tmp_path):
    """What is checked by the one may be read by the other: zipfile ends a name at a null byte, and
    since Python 3.12 takes another one from the field 0x7075."""
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("one_two", b"")
    path.write_bytes(path.read_bytes().replace(b"one_two", b"one\0two"))
    with path.open("rb") as file, pytest.raises(zipfile.BadZipFile, match="has another name too"):
        limits.open_zip(file, 4)


def test_every_limit_has_its_reason():
    """A number without one is a number that nobody can change."""
    text = Path(limits.__file__).read_text()
    names = re.findall(r"^([A-Z][A-Z0-9_]+) = .*$", text, re.MULTILINE)
    assert len(names) > 10
    assert re.findall(r'^([A-Z][A-Z0-9_]+) = .*\n"""', text, re.MULTILINE) == names


def test_an_over_limit_is_never_shown_as_it_is():
    assert not issubclass(limits.OverLimitError, VggdeployError)
    assert issubclass(limits.OverLimitError, ValueError)
