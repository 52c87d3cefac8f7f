"""Packed bundles: the same bytes each time, and nothing but a whole bundle ever comes out."""

import io
import os
import shutil
import stat
import struct
import zipfile

import pytest
from small_bundle import FACTS, fill, flip, rewrite

from vggdeploy import bundle, limits, packing
from vggdeploy.contracts import Silent
from vggdeploy.errors import BundleError
from vggdeploy.manifest import MANIFEST, PROBES, SIGNATURES, read_manifest


@pytest.fixture
def path(tmp_path):
    bundle.write(tmp_path / "bundle", FACTS, fill, replace=False)
    return tmp_path / "bundle"


@pytest.fixture
def packed(path, tmp_path):
    packing.pack(path, tmp_path / "b.zip")
    return tmp_path / "b.zip"


def entries(file):
    """(entry, content) of an archive."""
    with zipfile.ZipFile(file) as archive:
        return [(entry, archive.read(entry)) for entry in archive.infolist()]


def repack(file, parts):
    """Write (entry or name, content) as an archive, as someone else would."""
    with zipfile.ZipFile(file, "w") as archive:
        for entry, content in parts:
            archive.writestr(entry, content)


def refused(file, tmp_path, words):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(BundleError, match=words) as caught:
        packing.unpack(file, tmp_path / "out")
    assert " -- " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["model.bin", PROBES])
def test_what_changes_while_it_is_packed_is_not_packed(path, tmp_path, monkeypatch, name):
    signatures = bundle.signatures

    def change(path):
        flip(path / name, 1)
        return signatures(path)

    monkeypatch.setattr(bundle, "signatures", change)
    with pytest.raises(BundleError, match=rf"{name} has been altered"):
        packing.pack(path, tmp_path / "b.zip")
    assert not (tmp_path / "b.zip").exists()


def test_what_is_packed_comes_out(path, packed, tmp_path, folder_contents):
    result = packing.unpack(packed, tmp_path / "deep" / "out")
    assert folder_contents(tmp_path / "deep" / "out") == folder_contents(path)
    opened = bundle.open_bundle(tmp_path / "deep" / "out")
    assert result["digest"] == opened.manifest["digest"]
    assert result["bytes"] == sum((path / name).stat().st_size for name in result["files"])


def test_the_same_bundle_gives_the_same_bytes(path, packed, tmp_path):
    for file in path.iterdir():
        os.utime(file, (1, 1))
        file.chmod(0o600)
    mask = os.umask(0o077)
    try:
        packing.pack(path, tmp_path / "again.zip")
    finally:
        os.umask(mask)
    assert (tmp_path / "again.zip").read_bytes() == packed.read_bytes()


def test_the_manifest_comes_first_and_the_rest_is_sorted(packed):
    names = [entry.filename for entry, _ in entries(packed)]
    assert names[0] == MANIFEST
    assert names[1:] == sorted(names[1:])
    for entry, _ in entries(packed):
        assert entry.date_time == (1980, 1, 1, 0, 0, 0)
        assert entry.external_attr >> 16 == stat.S_IFREG | 0o644


def test_what_does_not_shrink_is_stored(tmp_path):
    def fill_both(work):
        fill(work)
        (work / "model.bin").write_bytes(os.urandom(2 << 20))
        (work / "model.xml").write_bytes(bytes(2 << 20))

    bundle.write(tmp_path / "bundle", FACTS, fill_both, replace=False)
    packing.pack(tmp_path / "bundle", tmp_path / "b.zip")
    kinds = {entry.filename: entry.compress_type for entry, _ in entries(tmp_path / "b.zip")}
    assert kinds["model.bin"] == zipfile.ZIP_STORED
    assert kinds["model.xml"] == zipfile.ZIP_DEFLATED


def test_a_damaged_bundle_is_not_packed(path, tmp_path):
    flip(path / "model.bin", 0)
    with pytest.raises(BundleError, match=r"model\.bin has been altered"):
        packing.pack(path, tmp_path / "b.zip")
    assert not (tmp_path / "b.zip").exists()


@pytest.mark.parametrize("content", [b"-----BEGIN PRIVATE KEY-----\n", b"{}", b"[" * 60_000])
def test_signatures_that_are_none_are_not_packed(path, tmp_path, content):
    """A secret in their place would be passed on."""
    (path / SIGNATURES).write_bytes(content)
    with pytest.raises(BundleError, match=r"the signatures of .* cannot be read"):
        packing.pack(path, tmp_path / "b.zip")
    assert not (tmp_path / "b.zip").exists()


def test_signatures_that_are_none_are_not_unpacked(path, tmp_path):
    """Nothing could be signed or packed then; what was packed elsewhere may hold them."""
    forged = tmp_path / "forged.zip"
    with zipfile.ZipFile(forged, "w") as file:
        for each in [path / MANIFEST, *sorted(set(path.iterdir()) - {path / MANIFEST})]:
            file.write(each, each.name)
        file.writestr(SIGNATURES, b"garbage")
    with pytest.raises(BundleError, match=r"the signatures of packed bundle .* cannot be read"):
        packing.unpack(forged, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_bundle_gives_way_to_force_alone(packed, tmp_path):
    packing.unpack(packed, tmp_path / "out")
    with pytest.raises(BundleError, match="holds another bundle"):
        packing.unpack(packed, tmp_path / "out")
    (tmp_path / "out" / "model.bin").unlink()
    packing.unpack(packed, tmp_path / "out", force=True)
    bundle.open_bundle(tmp_path / "out")


class Meanwhile(Silent):
    """Another bundle comes to a place while this one is unpacked there."""

    def __init__(self, other, place):
        self.other, self.place = other, place

    def track(self, items, total, label):
        if not self.place.exists():
            shutil.copytree(self.other, self.place)
        yield from items


def test_what_came_meanwhile_gives_way_to_force_alone(path, packed, tmp_path, folder_contents):
    out = tmp_path / "out"
    rewrite(path, build={"key": "k2"})
    with pytest.raises(BundleError, match="holds another bundle"):
        packing.unpack(packed, out, reporter=Meanwhile(path, out))
    assert folder_contents(out) == folder_contents(path)
    shutil.rmtree(out)
    result = packing.unpack(packed, out, force=True, reporter=Meanwhile(path, out))
    assert bundle.open_bundle(out).manifest["digest"] == result["digest"]


def test_nobody_else_reads_what_is_half_there(packed, tmp_path, monkeypatch):
    seen = []
    real = packing.Packed.pieces

    def pieces(self, name, *rest):
        (work,) = tmp_path.glob(".out~*")
        seen.append(stat.S_IMODE(work.stat().st_mode))
        yield from real(self, name, *rest)

    monkeypatch.setattr(packing.Packed, "pieces", pieces)
    packing.unpack(packed, tmp_path / "out")
    assert set(seen) == {0o700}


# What a forger can do to an archive. Everything else in it is as it was.

NAMES = [
    "../evil", "/etc/evil", "C:\\evil", "C:/evil", "..\\evil", "sub/model.bin", "evil\0.txt",
    "sub/", ".hidden", "model.bin.", "Model.bin",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_the_manifest_does_not_list_is_refused(packed, tmp_path, name):
    entry = zipfile.ZipInfo("x")
    entry.filename = name
    repack(packed, [*entries(packed), (entry, b"")])
    # What follows a null byte is of one of its names alone.
    words = "its manifest does not list: got |has another name too"
    refused(packed, tmp_path, words)


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "sub/evil", "..", "C:evil", "a\\b"])
def test_a_manifest_that_lists_such_a_name_is_refused(path, packed, tmp_path, name):
    files = {**read_manifest(path)["files"], name: {"size": 4, "sha256": "0" * 64}}
    rewrite(path, files=files)
    manifest = (path / MANIFEST).read_bytes()
    head, *rest = entries(packed)
    repack(packed, [(head[0].filename, manifest), *rest, (name, b"evil")])
    refused(packed, tmp_path, "is no file of a build")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFDIR])
@pytest.mark.parametrize("name", ["model.bin", MANIFEST])
def test_links_and_special_files_are_refused(packed, tmp_path, kind, name):
    parts = entries(packed)
    for entry, _ in parts:
        if entry.filename == name:
            entry.external_attr = (kind | 0o777) << 16
    repack(packed, parts)
    refused(packed, tmp_path, "got a link or a special file")


def test_a_name_twice_is_refused(packed, tmp_path):
    with pytest.warns(UserWarning, match="Duplicate"):
        repack(packed, [*entries(packed), entries(packed)[-1]])
    refused(packed, tmp_path, "is repeated: got 2 of it")


@pytest.mark.parametrize("name", ["model.bin", MANIFEST])
def test_a_file_that_is_missing_is_refused(packed, tmp_path, name):
    repack(packed, [part for part in entries(packed) if part[0].filename != name])
    refused(packed, tmp_path, "missing: got no|does not begin with a manifest: got '")


def test_an_archive_that_does_not_begin_with_its_manifest_is_refused(packed, tmp_path):
    head, *rest = entries(packed)
    repack(packed, [*rest, head])
    refused(packed, tmp_path, "does not begin with a manifest")


def test_a_bundle_is_not_packed_into_itself(path):
    before = sorted(each.name for each in path.iterdir())
    with pytest.raises(BundleError, match="is inside of the bundle"):
        packing.pack(path, path / "packed.zip")
    assert sorted(each.name for each in path.iterdir()) == before


def test_a_link_that_leads_in_a_circle_is_no_bundle(tmp_path):
    (tmp_path / "a").symlink_to("a")
    with pytest.raises(BundleError, match="is no bundle"):
        packing.pack(tmp_path / "a", tmp_path / "packed.zip")


def patch(file, name, offset, value, form):
    """Overwrite a field of an entry in the archive's directory."""
    content = bytearray(file.read_bytes())
    at = content.rindex(b"PK\1\2", 0, content.rindex(name.encode()))
    struct.pack_into(form, content, at + offset, value)
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["model.bin", MANIFEST])
@pytest.mark.parametrize("flag", [0x01, 0x40])
def test_an_encrypted_entry_is_refused(packed, tmp_path, name, flag):
    patch(packed, name, 8, flag, "<H")
    refused(packed, tmp_path, "got an encrypted one")


@pytest.mark.parametrize(
    "more", [{"comment": b"more"}, {"extra": struct.pack("<HH4s", 0x7075, 4, b"more")}]
)
def test_what_an_entry_carries_besides_its_file_is_refused(packed, tmp_path, more):
    parts = entries(packed)
    for key, value in more.items():
        setattr(parts[1][0], key, value)
    repack(packed, parts)
    refused(packed, tmp_path, "is more than a file|has another name too|cannot be read")


def test_another_compression_is_refused(packed, tmp_path):
    parts = entries(packed)
    for entry, _ in parts:
        entry.compress_type = zipfile.ZIP_LZMA
    repack(packed, parts)
    refused(packed, tmp_path, "stored or deflated")


@pytest.mark.parametrize("size", [0, 255, 257, 1 << 31])
def test_a_declared_size_that_is_not_the_manifests_is_refused(packed, tmp_path, size):
    patch(packed, "model.bin", 24, size, "<L")
    refused(packed, tmp_path, r"model\.bin has been altered")


def test_more_bytes_than_declared_are_not_written(packed, tmp_path):
    """The entry says 256 bytes, as the manifest does, and inflates to a mebibyte."""
    parts = [
        (entry, bytes(1 << 20) if entry.filename == "model.bin" else content)
        for entry, content in entries(packed)
    ]
    repack(packed, parts)
    patch(packed, "model.bin", 24, 256, "<L")
    refused(packed, tmp_path, r"model\.bin|Bad CRC")


def test_a_manifest_that_is_too_large_is_not_read(packed, tmp_path):
    _, *rest = entries(packed)
    repack(packed, [(MANIFEST, bytes((1 << 20) + 1)), *rest])
    refused(packed, tmp_path, "its manifest is too large: got 1,048,577 bytes")


def test_signatures_that_are_too_large_are_not_read(packed, tmp_path):
    repack(packed, [*entries(packed), (SIGNATURES, bytes((1 << 16) + 1))])
    refused(packed, tmp_path, r"signature\.json is too large")


def test_a_bomb_is_refused_by_its_ratio(tmp_path, monkeypatch):
    """Nor is it made: what is packed can be unpacked."""

    def fill_zeros(work):
        fill(work)
        (work / "model.bin").write_bytes(bytes(4 << 20))

    bundle.write(tmp_path / "bundle", FACTS, fill_zeros, replace=False)
    with pytest.raises(BundleError, match=r"grow too much .*: got 4,19.* -- copy its folder"):
        packing.pack(tmp_path / "bundle", tmp_path / "b.zip")
    assert not (tmp_path / "b.zip").exists()
    with monkeypatch.context() as patched:
        patched.setattr(limits, "PACKED_RATIO", 1100)
        packing.pack(tmp_path / "bundle", tmp_path / "b.zip")
    refused(tmp_path / "b.zip", tmp_path, "it is unpacked: got 4,19")


def test_files_that_are_too_large_together_are_refused(path, packed, tmp_path, monkeypatch):
    """Each is small enough: the largest has 500 bytes or so."""
    total = sum(said["size"] for said in read_manifest(path)["files"].values())
    monkeypatch.setattr(limits, "BUNDLE_BYTES", total)
    bundle.open_bundle(path)
    packing.pack(path, tmp_path / "again.zip")
    packing.unpack(packed, tmp_path / "at-the-limit")
    monkeypatch.setattr(limits, "BUNDLE_BYTES", total - 1)
    words = f"its files are too large: got {total:,} bytes, expected {total - 1:,} at most"
    refused(packed, tmp_path, words)
    for use in (
        lambda: bundle.open_bundle(path),
        lambda: packing.pack(path, tmp_path / "again.zip"),
        lambda: bundle.write(tmp_path / "new", FACTS, fill, replace=False),
    ):
        with pytest.raises(BundleError, match=words):
            use()
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["model.bin", "model.xml", PROBES])
def test_another_content_of_the_same_size_is_refused(packed, tmp_path, name):
    parts = [
        (entry, bytes(len(content)) if entry.filename == name else content)
        for entry, content in entries(packed)
    ]
    repack(packed, parts)
    refused(packed, tmp_path, f"{name} has been altered")


def test_entries_that_overlap_are_refused(packed, tmp_path):
    """Several entries of one stored content: together more than the archive has."""
    patch(packed, "probes.npz", 20, 1 << 16, "<L")
    refused(packed, tmp_path, "cannot be read")


@pytest.mark.parametrize("flips", range(7))
def test_no_flipped_bit_comes_through(path, packed, tmp_path, flips, folder_contents):
    """Either it is refused, or it changed nothing that comes out."""
    whole = packed.read_bytes()
    out = tmp_path / "out"
    for place in range(flips, len(whole), 7):
        content = bytearray(whole)
        content[place] ^= 1 << (place % 8)
        packed.write_bytes(content)
        try:
            packing.unpack(packed, out, force=True)
        except BundleError:
            assert not out.exists()
        else:
            assert folder_contents(out) == folder_contents(path)
            for file in out.iterdir():
                file.unlink()
            out.rmdir()


@pytest.mark.parametrize("cut", [0, 1, 21, 22, 100, -1])
def test_a_file_that_is_cut_short_is_refused(packed, tmp_path, cut):
    packed.write_bytes(packed.read_bytes()[:cut])
    refused(packed, tmp_path, "cannot be read")


@pytest.mark.parametrize(("front", "behind"), [(b"x", b""), (b"", b"x"), (b"MZ" * 99, b"")])
def test_an_archive_with_more_around_it_is_refused(packed, tmp_path, front, behind):
    packed.write_bytes(front + packed.read_bytes() + behind)
    refused(packed, tmp_path, "cannot be read")


def moved(content, by, at=0):
    """An archive with `by` in it at `at`, whose offsets count that, as ``zip -A`` mends them."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        start, offsets = archive.start_dir, [e.header_offset for e in archive.infolist()]
    made = bytearray(content[:at] + by + content[at:])
    place = start + len(by)
    for offset in offsets:
        place = made.index(b"PK\1\2", place)
        struct.pack_into("<L", made, place + 42, offset + (len(by) if offset >= at else 0))
        place += 1
    struct.pack_into("<L", made, len(made) - 6, start + len(by))
    return bytes(made)


def test_bytes_in_front_that_the_offsets_count_are_refused(packed, tmp_path):
    content = packed.read_bytes()
    packed.write_bytes(moved(content, b""))
    packing.unpack(packed, tmp_path / "whole")
    packed.write_bytes(moved(content, b"MZ" * 99))
    assert entries(packed)[0][0].header_offset == 198  # zipfile reads it
    refused(packed, tmp_path, "cannot be read: got bytes before 'manifest.json'")


@pytest.mark.parametrize("place", [1, 3, -1])
def test_bytes_between_entries_are_refused(packed, tmp_path, place):
    with zipfile.ZipFile(packed) as archive:
        places = [entry.header_offset for entry in archive.infolist()]
        at = places[place] if place > 0 else archive.start_dir
    packed.write_bytes(moved(packed.read_bytes(), b"hidden", at))
    with zipfile.ZipFile(packed) as archive:
        assert archive.testzip() is None
    refused(packed, tmp_path, "cannot be read: got bytes before")


def test_a_comment_is_refused(packed, tmp_path):
    with zipfile.ZipFile(packed, "a") as archive:
        archive.comment = b"hello"
    refused(packed, tmp_path, "cannot be read")


def test_a_second_directory_is_refused(packed, tmp_path):
    """zipfile believes a zip64 record before the one that is looked at first."""
    with zipfile.ZipFile(packed) as archive:
        start = archive.start_dir
    content = packed.read_bytes()
    count = len(entries(packed))
    length = len(content) - 22 - start
    record = struct.pack(
        "<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, length, start
    ) + struct.pack("<4sLQL", b"PK\6\7", 0, len(content) - 22, 1)
    packed.write_bytes(content[:-22] + record + content[-22:])
    refused(packed, tmp_path, "zip64|plain zip")


def test_too_many_entries_are_not_even_listed(packed, tmp_path):
    repack(packed, [*entries(packed), *((f"f{index}", b"") for index in range(100))])
    refused(packed, tmp_path, "entries of .* bytes, more than 66")


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\5\6" + bytes(18)])
def test_what_is_no_archive_is_refused(tmp_path, content):
    (tmp_path / "b.zip").write_bytes(content)
    refused(tmp_path / "b.zip", tmp_path, "cannot be read|does not begin")


def test_a_place_without_a_file_is_refused(tmp_path):
    refused(tmp_path / "none.zip", tmp_path, "is no packed bundle")
    refused(tmp_path, tmp_path, "is no packed bundle")


def test_an_open_zip_is_one_archive_to_its_ends():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a", b"1")
    assert limits.open_zip(stream, 1).namelist() == ["a"]
    with pytest.raises(limits.OverLimitError):
        limits.open_zip(stream, 0)
