"""What is read from a file that another may have made is limited before memory is taken for it.

Each number is far above what this product or a network of its kind needs, so that nobody meets it
by accident, and far below what would take a machine down. They hold no one who can run code here
already: an engine is code, and what makes one trustworthy is its signature.
"""

from __future__ import annotations

import math
import os
import struct
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import zipfile
    from pathlib import Path

    from numpy.typing import NDArray

MANIFEST_BYTES = 1 << 20
"""Of a bundle's manifest: it has 2 kB, and half a kB for each machine that it was tuned on."""

BUNDLE_FILES = 64
"""In a bundle: a build leaves 12 at most."""

BUNDLE_BYTES = 2_000_000_000
"""Of a bundle's files together: what Python is sure to pack into a zip archive without its extension
to 64 bits. VGG19 in float32, graph and engine, has 1.2 GB."""

PACKED_RATIO = 200
"""Times that a packed bundle may grow: deflate does 1,032 at most, weights that are mostly zeros 5,
and text 20."""

SIGNATURES_BYTES = 1 << 16
"""Of a bundle's signatures: each has 250 bytes."""

KEY_BYTES = 1 << 16
"""Of a file of keys: a public key has 113 bytes, a private one 320."""

JSON_BYTES = 32 << 20
"""Of any other JSON in a bundle, or a calibration table: VGG16's has 0.25 MB, and 8,192 factors for
each of fifty tensors would take 8. Python needs up to ten times as much for what is in it."""

PROBES_BYTES = 1 << 30
"""Of a bundle's probes: 16 images of 224 pixels have 2.4 MB, of 2,048 pixels 200."""

ARRAYS = 1 << 16
"""In an .npz file: statistics have six for each tensor that was observed."""

RESULT_BYTES = 256 << 20
"""Of a result: one of MLPerf's valid length holds some million samples of 40 bytes."""

TOML_BYTES = 1 << 18
"""Of settings or a preprocessing recipe, which people write; a pyproject.toml of 100 kB is a large
one. Python's reader takes a second and 100 MB for as much of nothing but tables."""

TOML_DOTS = 128
"""In a line of it. A key of so many parts takes time and memory of their square, and only a line that
lists a project's dependencies has many dots."""

TRT_CACHE_BYTES = 16 << 20
"""Of a TensorRT calibration cache: a line of some 30 bytes for each tensor."""

SAFETENSORS_HEADER_BYTES = 8 << 20
"""Of the header of a .safetensors file: 100 bytes for each tensor. The format allows 100 MB."""

TENSORS = 1 << 16
"""In a checkpoint: VGG19 with BatchNorm has 114."""

RANK = 64
"""Of a tensor in a checkpoint: NumPy's own limit."""

PICKLED_BYTES = 1 << 10
"""Of a text in a pickled checkpoint: the longest key of VGG19 with BatchNorm has 36. What torch says
of a name that it does not know takes the cube of its length in time."""

ONNX_BYTES = (1 << 31) - 1
"""Of an .onnx file: protobuf's own limit. Larger weights lie beside it."""

ONNX_PARTS = 1 << 16
"""Nodes, tensors and functions of a graph: VGG16's in 8 bits has 300."""

ELEMENTS = 1 << 29
"""Of one tensor, five times the largest weight of VGG: a few bytes can declare any number."""

PIXELS = 89_478_485
"""Of an image: Pillow's own limit, a third of a gibibyte as Pillow holds RGB."""

PLAIN_PIXELS = 1 << 23
"""Of an image that may hold as little as it likes."""

PIXELS_A_BYTE = 1_000
"""Of the file of a larger image. Photographs have 2 to 30; deflate can do 1,032 of one channel, and
lossless WebP any number, of one colour."""

_END = struct.Struct("<4s4H2LH")
_END_MAGIC, _ZIP64_MAGIC, _ZIP64_BYTES = b"PK\x05\x06", b"PK\x06\x07", 20
_LOCAL, _LOCAL_MAGIC = struct.Struct("<4s5H3L2H"), b"PK\x03\x04"
_ENTRY_BYTES = 256
"""Of an entry of an archive's directory, name included."""


class OverLimitError(ValueError):
    """More than a limit allows. Readers map it to an error of their own kind, as they do with what
    is no JSON."""


def read(path: Path, most: int) -> bytes:
    """The content of a file of at most `most` bytes; of an endless one no more than that is read.

    Raises:
        OverLimitError: when there is more.
        OSError: when it cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OverLimitError(f"more than {most:,} bytes")
    return content


def read_text(path: Path, most: int) -> str:
    """`read`, decoded from UTF-8.

    Raises:
        OverLimitError, OSError: as `read`.
        UnicodeDecodeError: when it is no UTF-8.
    """
    return read(path, most).decode("utf-8")


def open_zip(file: BinaryIO, most: int) -> zipfile.ZipFile:
    """Open a zip archive of at most `most` entries that is an archive from its first byte to its
    last: one entry behind the other in the directory's order, then that, no comment and no zip64.

    `zipfile` reads the whole directory at once and believes the last of several, so its size and
    its place are looked at first. No byte belongs to two entries, so stored ones together have no
    more than the file.

    Raises:
        OverLimitError: when there are more entries, or larger ones than a directory needs.
        zipfile.BadZipFile: when it is no such archive.
    """
    import zipfile

    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _END.size - _ZIP64_BYTES))
    if file.read().startswith(_ZIP64_MAGIC):
        raise zipfile.BadZipFile("a zip64 archive")
    disk, first, here, count, length, start, comment = _end(file, most)
    if disk or first or here != count or comment or start + length + _END.size != size:
        raise zipfile.BadZipFile("more than one plain zip archive")
    archive = zipfile.ZipFile(file)
    if len(archive.infolist()) != count:
        raise zipfile.BadZipFile("another number of entries than it says")
    end = 0
    for entry in archive.infolist():
        if entry.filename != entry.orig_filename:
            raise zipfile.BadZipFile(f"{entry.orig_filename!r} has another name too")
        if entry.header_offset != end:
            raise zipfile.BadZipFile(f"bytes before {entry.filename!r}, or of two entries")
        end = _end_of(file, entry)
    if end != start:
        raise zipfile.BadZipFile("bytes before the directory, or an entry that runs into it")
    return archive


def require_entries(file: BinaryIO, most: int) -> None:
    """Make sure that the directory of a zip archive, of any layout but with nothing behind it, is
    one of at most `most` entries, before `zipfile` reads it.

    Raises:
        OverLimitError: when there are more, or larger ones than a directory needs.
        zipfile.BadZipFile: when it does not end as an archive does.
    """
    _end(file, most)


def _end(file: BinaryIO, most: int) -> tuple[int, ...]:
    """What the last bytes of an archive say: the number of this disk and of the directory's, the
    entries here and in all, the bytes and the place of the directory, and the bytes of a comment."""
    import zipfile

    file.seek(max(0, file.seek(0, os.SEEK_END) - _END.size))
    tail = file.read()
    if len(tail) < _END.size or not tail.startswith(_END_MAGIC):
        raise zipfile.BadZipFile("no zip archive, or one that was cut short or added to")
    _, *said = _END.unpack(tail)
    count, length = said[3:5]
    if count > most or length > most * _ENTRY_BYTES:
        raise OverLimitError(f"{count:,} entries of {length:,} bytes, more than {most:,}")
    return tuple(said)


def _end_of(file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Where an entry ends, without a data descriptor behind it: one is only needed where a file is
    written that cannot be sought in (APPNOTE.TXT, 4.3.7 and 4.3.9)."""
    import zipfile

    file.seek(entry.header_offset)
    head = file.read(_LOCAL.size)
    if len(head) < _LOCAL.size or not head.startswith(_LOCAL_MAGIC):
        raise zipfile.BadZipFile(f"no entry where {entry.filename!r} should be")
    *_, name, extra = _LOCAL.unpack(head)
    return entry.header_offset + _LOCAL.size + int(name + extra) + entry.compress_size


def arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file that `numpy.savez` wrote: no pickles, nothing compressed, and each
    known to have the bytes that its header declares before memory is taken for it.

    Raises:
        OverLimitError, ValueError, EOFError, NotImplementedError, zipfile.BadZipFile, OSError:
            when it is none.
    """
    import numpy as np

    with path.open("rb") as file:
        archive = open_zip(file, ARRAYS)
        for entry in archive.infolist():
            _require_array(archive, entry)
        file.seek(0)
        with np.load(file, allow_pickle=False) as held:
            return dict(held)


def _require_array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    import zipfile

    from numpy.lib import format as npy

    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
        raise OverLimitError(f"{entry.filename} is compressed")
    with archive.open(entry) as member:
        version = npy.read_magic(member)
        if version == (1, 0):
            shape, _, dtype = npy.read_array_header_1_0(member)
        elif version == (2, 0):
            shape, _, dtype = npy.read_array_header_2_0(member)
        else:
            raise ValueError(f"{entry.filename} is of version {version} of the format")
        if dtype.hasobject:
            raise ValueError(f"{entry.filename} holds objects")
        declared, there = math.prod(shape) * dtype.itemsize, entry.file_size - member.tell()
        if declared != there or min(shape, default=0) < 0:
            raise OverLimitError(f"{entry.filename} declares {declared:,} bytes and has {there:,}")
