"""A bundle in one file, to carry to a device: a zip archive with the manifest first.

The same bundle gives the same bytes: names are sorted, times and modes are fixed, and what deflate
makes smaller is deflated (by another build of zlib it may come to other bytes). An archive is
believed in nothing: its manifest says what is in it, an entry that the manifest does not name is
refused, and so is what does not end up with the manifest's size and digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import stat
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vggdeploy import atomic, bundle, limits, signing
from vggdeploy.contracts import Silent
from vggdeploy.errors import BundleError
from vggdeploy.manifest import MANIFEST, SIGNATURES, files, listed, parse_manifest, spelling

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from vggdeploy.contracts import Reporter
    from vggdeploy.manifest import Listed

_CHUNK = 1 << 20
_SAMPLES, _SAMPLE_BYTES = 16, 1 << 16
"""Pieces of a large file, evenly spread, that tell whether it is worth to deflate it."""

_WORTH = 0.97
"""What deflate must bring a file down to: less is not worth the time to inflate it."""

# The earliest time that a zip archive can say.
_TIME = (1980, 1, 1, 0, 0, 0)
_UNIX = 3
_MODE = stat.S_IFREG | 0o644
_ENCRYPTED = 0x41
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)

_DAMAGED = (
    OSError, EOFError, ValueError, LookupError, RuntimeError, NotImplementedError, struct.error,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What zipfile raises for archives that are damaged or of kinds that it does not read."""


@dataclass(frozen=True)
class Packed:
    """A packed bundle that is open: known to hold what its manifest lists, of those sizes.

    Attributes:
        path: the file.
        manifest: as `manifest.parse_manifest` gives it.
        heads: the content of what it says of itself: its manifest, and its signatures where it has
            any.
        archive: the file's reader.
    """

    path: Path
    manifest: Mapping[str, Any]
    heads: Mapping[str, bytes]
    archive: zipfile.ZipFile

    @property
    def signatures(self) -> bytes | None:
        """The content of its signatures; None where it has none."""
        return self.heads.get(SIGNATURES)

    def pieces(self, name: str, reporter: Reporter, label: str) -> Iterator[bytes]:
        """The content of a file in it, piece by piece, never more than its declared size.

        Raises:
            BundleError: when it cannot be read.
        """
        with _damage(self.path), self.archive.open(name) as entry:
            pieces = iter(lambda: entry.read(_CHUNK), b"")
            count = _pieces(self.archive.getinfo(name).file_size)
            yield from reporter.track(pieces, count, f"{label} {name}")

    def copy(
        self, said: Listed, write: Callable[[bytes], object], reporter: Reporter, label: str
    ) -> Listed:
        """Copy a file in it, hashed on the way.

        Args:
            said: the file, as the manifest lists it.
            write: takes the content, piece by piece.
            reporter: told the progress.
            label: what is done.

        Returns:
            `said`, beside what there is.

        Raises:
            BundleError: when it cannot be read.
        """
        digest, size = hashlib.sha256(), 0
        for piece in self.pieces(said.name, reporter, label):
            write(piece)
            digest.update(piece)
            size += len(piece)
        return said.compared(size, digest.hexdigest())


def pack(path: Path, out: Path, *, reporter: Reporter | None = None) -> dict[str, Any]:
    """Pack the bundle at `path` into the file `out`, once it is known to be whole.

    Args:
        path: the bundle.
        out: the file, which is replaced.
        reporter: told the progress.

    Returns:
        ``packed``, ``bundle``, ``target``, ``digest``, ``files``, ``bytes`` (of all files) and
        ``packed_bytes``.

    Raises:
        BundleError: when it is damaged, changes meanwhile, its signatures are none, or it shrinks
            by more than a packed bundle may grow.
    """
    reporter = reporter or Silent()
    if Path(os.path.realpath(path)) in Path(os.path.realpath(out)).parents:
        raise BundleError(
            f"{out} is inside of the bundle",
            got=f"a place in {path}",
            expected="one outside: a bundle holds what its manifest lists alone",
            fix="choose another place with --out",
        )
    opened, where = bundle.open_bundle(path), f"bundle {path}"
    heads = {MANIFEST: spelling(opened.manifest).encode()}
    if (signed := bundle.signatures(path)) is not None:
        heads[SIGNATURES] = signed
    signing.parse(signed, where)
    inside = sorted(listed(opened.manifest), key=lambda each: each.name)
    with atomic.file(out) as stream:
        with zipfile.ZipFile(stream, "w", allowZip64=False) as archive:
            for name, content in heads.items():
                archive.writestr(_entry(name, len(content), content), content)
            for each in inside:
                file, digest = path / each.name, hashlib.sha256()
                entry = _entry(each.name, each.size, _sample(file, each.size))
                with file.open("rb") as source, archive.open(entry, "w") as to:
                    pieces = iter(lambda: source.read(_CHUNK), b"")
                    for piece in reporter.track(pieces, _pieces(each.size), f"packing {each.name}"):
                        to.write(piece)
                        digest.update(piece)
                # Another command may have changed it since it was opened.
                each.compared(entry.file_size, digest.hexdigest()).require(where)
        _require_dense(where, archive.infolist(), "copy its folder")
    return {
        "kind": "pack",
        "packed": str(out),
        "bundle": str(path),
        "target": opened.target,
        "digest": opened.manifest["digest"],
        "files": [*heads, *(each.name for each in inside)],
        "bytes": sum(map(len, heads.values())) + sum(each.size for each in inside),
        "packed_bytes": out.stat().st_size,
    }


def unpack(
    file: Path,
    out: Path,
    *,
    force: bool = False,
    trusted: Path | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Unpack a bundle into the folder `out`, which appears whole or not at all.

    Args:
        file: what `pack` made.
        out: the bundle's folder.
        force: whether another bundle there gives way.
        trusted: public keys, one of which must have signed it, before anything is unpacked.
        reporter: told the progress.

    Returns:
        ``bundle``, ``packed``, ``target``, ``digest``, ``files`` and ``bytes``.

    Raises:
        BundleError: when the file is no packed bundle, holds anything that its manifest does not
            list, is damaged or not of the `trusted`, or `out` is taken.
    """
    reporter = reporter or Silent()

    def gives_way() -> bool:
        bundle.refuse_taken(out, force=force)
        return True

    gives_way()
    atomic.require_writable(out)
    with opened(file) as packed:
        manifest, where = packed.manifest, f"packed bundle {file}"
        if trusted is not None:
            signing.require(manifest, packed.signatures, trusted, where)
        signing.parse(packed.signatures, where)
        with atomic.folder(out, replace=gives_way) as work:
            for name, content in packed.heads.items():
                (work / name).write_bytes(content)
            for each in listed(manifest):
                with (work / each.name).open("xb") as copy:
                    found = packed.copy(each, copy.write, reporter, "unpacking")
                found.require(where)
    return {
        "kind": "unpack",
        "bundle": str(out),
        "packed": str(file),
        "target": manifest["target"],
        "digest": manifest["digest"],
        "files": sorted(files(manifest)),
        "bytes": sum(each.size for each in listed(manifest)),
    }


@contextlib.contextmanager
def opened(file: Path) -> Iterator[Packed]:
    """Open a packed bundle and check what it declares, before any file of it is read.

    Raises:
        BundleError: when it is missing, no packed bundle, or declares what cannot be.
    """
    if not file.is_file():
        raise BundleError(
            f"{file} is no packed bundle",
            got="no file",
            expected="a file that 'vggdeploy bundle pack' made",
            fix="check the path",
        )
    with contextlib.ExitStack() as stack:
        with _damage(file):
            stream = stack.enter_context(file.open("rb"))
            archive = stack.enter_context(limits.open_zip(stream, limits.BUNDLE_FILES + 2))
            entries = archive.infolist()
            heads = {MANIFEST: _manifest(file, archive, entries)}
            manifest = parse_manifest(heads[MANIFEST], f"{file}: {MANIFEST}")
            _require_listed(file, entries, manifest)
            if SIGNATURES in archive.namelist():
                heads[SIGNATURES] = archive.read(SIGNATURES)
        yield Packed(file, manifest, heads, archive)


def _manifest(file: Path, archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo]) -> bytes:
    if not entries or entries[0].orig_filename != MANIFEST:
        first = repr(entries[0].orig_filename) if entries else "nothing in it"
        raise _refused(file, "it does not begin with a manifest", first, MANIFEST)
    _require_plain(file, entries[0])
    if entries[0].file_size > limits.MANIFEST_BYTES:
        raise _refused(
            file,
            "its manifest is too large",
            f"{entries[0].file_size:,} bytes",
            f"{limits.MANIFEST_BYTES:,} at most",
        )
    return archive.read(entries[0])


def _require_listed(
    file: Path, entries: list[zipfile.ZipInfo], manifest: Mapping[str, Any]
) -> None:
    """Make sure that an archive has what its manifest lists, once and of the listed sizes."""
    names = [entry.orig_filename for entry in entries]
    wanted = {each.name: each for each in listed(manifest)}
    for name in names:
        if name not in {MANIFEST, SIGNATURES, *wanted}:
            raise _refused(
                file, "it has what its manifest does not list", repr(name), "what that lists alone"
            )
        if names.count(name) > 1:
            raise _refused(file, f"{name} is repeated", f"{names.count(name)} of it", "each once")
    for name in wanted:
        if name not in names:
            raise _refused(file, "a file is missing", f"no {name}", "every file of its manifest")
    for entry in entries:
        _require_plain(file, entry)
        name, size = entry.orig_filename, entry.file_size
        if name in wanted:
            wanted[name].compared(size, wanted[name].sha256).require(f"packed bundle {file}")
        if name == SIGNATURES and size > limits.SIGNATURES_BYTES:
            raise _refused(
                file, f"{name} is too large", size, f"{limits.SIGNATURES_BYTES:,} bytes at most"
            )
    _require_dense(f"packed bundle {file}", entries, "do not use this file")


def _require_dense(where: str, entries: Sequence[zipfile.ZipInfo], fix: str) -> None:
    """Make sure that an archive does not grow by more than a packed bundle may."""
    total = sum(entry.file_size for entry in entries)
    packed = sum(entry.compress_size for entry in entries)
    if total > limits.PACKED_RATIO * packed:
        raise BundleError(
            f"{where} would grow too much where it is unpacked",
            got=f"{total:,} bytes of {packed:,}",
            expected=f"{limits.PACKED_RATIO} times at most",
            fix=fix,
        )


def _require_plain(file: Path, entry: zipfile.ZipInfo) -> None:
    """Make sure that an entry is a plain file."""
    name, kind = repr(entry.orig_filename), stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        raise _refused(file, f"{name} is no plain file", "a link or a special file", "plain files")
    if entry.flag_bits & _ENCRYPTED:
        raise _refused(file, f"{name} is no plain file", "an encrypted one", "plain files")
    if entry.extra or entry.comment:
        raise _refused(file, f"{name} is more than a file", "a comment or extra fields", "neither")
    if entry.compress_type not in _METHODS:
        raise _refused(
            file, f"{name} is packed in another way", entry.compress_type, "stored or deflated"
        )


def _refused(file: Path, what: str, got: object, expected: str) -> BundleError:
    return BundleError(
        f"packed bundle {file}: {what}",
        got=got,
        expected=expected,
        fix="do not use this file; pack or copy it again",
    )


@contextlib.contextmanager
def _damage(file: Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGED as error:
        raise BundleError(
            f"packed bundle {file} cannot be read",
            got=str(error) or type(error).__name__,
            expected="a file that 'vggdeploy bundle pack' made",
            fix="pack or copy it again",
        ) from error


def _entry(name: str, size: int, sample: bytes) -> zipfile.ZipInfo:
    """An entry of an archive, deflated where a sample of it says that this is worth the time."""
    entry = zipfile.ZipInfo(name, _TIME)
    entry.create_system, entry.external_attr = _UNIX, _MODE << 16
    dense = len(zlib.compress(sample)) < _WORTH * len(sample)
    entry.compress_type = zipfile.ZIP_DEFLATED if dense else zipfile.ZIP_STORED
    entry.file_size = size
    return entry


def _sample(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        if size <= _SAMPLES * _SAMPLE_BYTES:
            return file.read(size)
        sample = b""
        for index in range(_SAMPLES):
            file.seek(index * (size - _SAMPLE_BYTES) // (_SAMPLES - 1))
            sample += file.read(_SAMPLE_BYTES)
        return sample


def _pieces(size: int) -> int:
    return math.ceil(size / _CHUNK)
