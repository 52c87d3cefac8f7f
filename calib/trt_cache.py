"""TensorRT's calibration cache, written and read.

TensorRT up to 10 quantizes a float graph by itself from this file (``trtexec --int8 --calib``), and
its DLA takes 8 bits in no other way. It is text::

    TRT-100300-EntropyCalibration2
    image: 3caa54fc

that is, TensorRT's version and the kind of calibrator, then a line a tensor: its name, and the
float32 scale (``threshold / 127``) in up to eight hexadecimal digits, big-endian.
A cache says nothing of the network, the images or the range of a tensor.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vggdeploy import atomic
from vggdeploy.calib.placement import scale_sources
from vggdeploy.calib.table import CalibrationTable, TensorRange
from vggdeploy.contracts import INT8, UINT8
from vggdeploy.errors import CalibrationError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import onnx_ir as ir

    from vggdeploy.calib.placement import Point

DEFAULT_VERSION = "10.3.0"
"""JetPack 6's, whose DLA needs the cache. TensorRT 10 refuses 8's and the other way round
("Calibration table does not match calibrator algorithm type")."""

METHOD = "trt-cache"
"""What a table says of thresholds that came out of a cache."""

# EntropyCalibration2 is what DLA requires and trtexec expects.
_CALIBRATORS = (
    "EntropyCalibration2",
    "EntropyCalibration",
    "MinMaxCalibration",
    "LegacyCalibration",
)
_HEADER = re.compile(rf"TRT-\d+-(?:{'|'.join(_CALIBRATORS)})")
_HEXADECIMAL = re.compile(r"[0-9A-Fa-f]{1,8}")
_SMALLEST = float(np.finfo(np.float32).tiny)
_SHOWN = 3


@dataclass(frozen=True)
class Entry:
    """A tensor's scale, 0 where TensorRT saw nothing but zeros, and the line it stands in."""

    scale: float
    line: int


@dataclass(frozen=True)
class TrtCache:
    """A cache as it was read.

    Attributes:
        where: the file, for errors.
        header: its first line.
        entries: by tensor, in the file's order.
    """

    where: str
    header: str
    entries: Mapping[str, Entry]

    def table(self, points: Sequence[Point], sha256: str) -> CalibrationTable:
        """A calibration table for the tensors that a graph quantizes; other entries are counted.

        A tensor that is never negative has the same clipping threshold in 255 steps as in 127. Its
        range is not known, nor are the model and the preprocessing: the table says null.

        Args:
            points: what `placement.place` chose.
            sha256: the file's digest, recorded in the table.

        Raises:
            CalibrationError: when a tensor has no entry, or the scale 0.
        """
        missing = [point.name for point in points if point.name not in self.entries]
        if missing:
            raise self._mismatch(missing, len(points))
        tensors = {}
        for point in points:
            entry = self.entries[point.name]
            if entry.scale == 0:
                raise CalibrationError(
                    f"{self.where}, line {entry.line}: the scale of tensor {point.name!r} is wrong",
                    got="0",
                    expected="above 0, since the tensor is quantized",
                    fix="calibrate again on images that this tensor answers to",
                )
            threshold = entry.scale * INT8.qmax
            kinds = (INT8, UINT8) if point.nonnegative else (INT8,)
            thresholds: dict[str, float] = {kind.dtype: threshold for kind in kinds}
            tensors[point.name] = TensorRange(None, None, thresholds, METHOD)
        source = {
            "model": None,
            "preprocess": None,
            "trt_cache": {
                "sha256": sha256,
                "header": self.header,
                "entries": len(self.entries),
                "ignored": len(self.entries) - len(tensors),
            },
        }
        return CalibrationTable(tensors, source)

    def _mismatch(self, missing: Sequence[str], wanted: int) -> CalibrationError:
        if len(missing) > wanted // 2:
            return CalibrationError(
                f"{self.where} is a calibration cache for another network, or for another export "
                f"of this one: it has {wanted - len(missing)} of the {wanted} tensors that are "
                "quantized",
                got=f"entries such as {_names(list(self.entries))}",
                expected=f"such as {_names(missing)}",
                fix="calibrate the graph that 'vggdeploy export' writes",
            )
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        return CalibrationError(
            f"{self.where} has no scale for tensor {missing[0]!r}{more}",
            got=f"scales for {wanted - len(missing)}",
            expected=f"one for each of the {wanted} tensors that are quantized",
            fix="calibrate the graph that 'vggdeploy export' writes",
        )


def parse(content: bytes, where: str) -> TrtCache:
    """Read a cache.

    Args:
        content: the file, UTF-8.
        where: what errors call the file.

    Raises:
        CalibrationError: with the number of the line that is no entry, names a tensor again, or
            has a scale that is negative, NaN or infinite.
    """
    again = "write or copy the cache again"
    if not content.strip():
        raise CalibrationError(
            f"{where} is empty",
            got="no text",
            expected="a TensorRT calibration cache",
            fix=again,
        )
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise CalibrationError(
            f"{where} is a binary file",
            got="bytes that are no text",
            expected="a TensorRT calibration cache, text",
            fix=again,
        )
    # Not splitlines: a tensor's name may hold what Unicode calls the end of a line.
    first, *rest = (line.rstrip() for line in text.split("\n"))
    if not _HEADER.fullmatch(first):
        raise CalibrationError(
            f"{where}, line 1 is not the header of a TensorRT calibration cache",
            got=repr(first[:60]),
            expected=f"TRT-<version>- and one of {', '.join(_CALIBRATORS)}",
            fix=again,
        )
    entries: dict[str, Entry] = {}
    for number, line in enumerate(rest, start=2):
        if not line:
            continue
        name, scale = _entry(line, f"{where}, line {number}")
        if name in entries:
            raise CalibrationError(
                f"{where}, line {number}: tensor {name!r} again",
                got=f"an entry in line {entries[name].line} too",
                expected="one",
                fix=again,
            )
        entries[name] = Entry(scale, number)
    if not entries:
        raise CalibrationError(
            f"{where} has a header and no tensor",
            got="a header alone",
            expected="a line a tensor below it",
            fix=again,
        )
    return TrtCache(where, first, entries)


def _entry(line: str, where: str) -> tuple[str, float]:
    # At the last one: names hold colons ("input_1:0") and blanks ("(Unnamed Layer* 3) [Scale]").
    name, _, digits = line.rpartition(": ")
    if not name or not _HEXADECIMAL.fullmatch(digits):
        raise CalibrationError(
            f"{where} is no entry of a calibration cache",
            got=repr(line[:60]),
            expected="a tensor, ': ' and the scale in up to 8 hexadecimal digits",
            fix="write or copy the cache again",
        )
    (scale,) = struct.unpack(">f", int(digits, 16).to_bytes(4, "big"))
    if not 0 <= scale < float("inf"):
        raise CalibrationError(
            f"{where}: the scale of tensor {name!r} cannot be",
            got=f"{digits} ({scale:g})",
            expected="a finite number above 0",
            fix="write the cache again: each scale is a big-endian float32",
        )
    return name, scale


def save(
    path: Path, table: CalibrationTable, model: ir.Model, version: str = DEFAULT_VERSION
) -> None:
    """Write a table as a cache for the float graph `model`, to be used with that graph.

    It has every tensor of the table, and those that carry the scale of one
    (`placement.scale_sources`). What else TensorRT might run in 8 bits, the scores above all, has
    no scale and stays in high precision, as in the Q/DQ graph.

    Args:
        path: the file.
        table: with a threshold for int8 for each tensor.
        model: the graph that the table was made for.
        version: of the TensorRT that shall read it, such as ``"10.3.0"``.

    Raises:
        CalibrationError: when a scale does not fit float32, or a name does not fit a line.
        ConfigError: for a version that reads no such cache.
    """
    # The float graph's channels are not rescaled.
    scales = {name: table.scale(name, INT8, rescaled=False) for name in table.tensors}
    for name, source in scale_sources(model, tuple(scales)).items():
        scales[name] = scales[source]
    lines = [f"TRT-{version_digits(version)}-{_CALIBRATORS[0]}"]
    lines += [f"{_writable(name)}: {_digits(scale, name)}" for name, scale in scales.items()]
    atomic.write_text(path, "\n".join(lines) + "\n")


def version_digits(version: str) -> str:
    """TensorRT's version as its header has it: 100300 for 10.3.0, 8601 for 8.6.1
    (``NV_TENSORRT_VERSION`` in its NvInfer.h, which changed its base with 10).

    Raises:
        ConfigError: when it is no version of TensorRT 8 or 10.
    """
    parts = version.split(".")
    if not (2 <= len(parts) <= 4 and all(re.fullmatch("[0-9]{1,2}", part) for part in parts)) or (
        int(parts[0]) not in (8, 10)
    ):
        raise ConfigError(
            "no calibration cache can be written for this version of TensorRT",
            got=repr(version),
            expected="8.x or 10.x, such as 8.6.1 or 10.3.0; 11 reads none",
            fix="give --trt-version what 'trtexec --version' says on the device",
        )
    major, minor, patch = (int(part) for part in (*parts, "0")[:3])
    return str(major * (1_000 if major < 10 else 10_000) + minor * 100 + patch)


def _digits(scale: float, name: str) -> str:
    with np.errstate(over="ignore"):
        narrow = np.float32(max(scale, _SMALLEST))
    if not np.isfinite(narrow):
        raise CalibrationError(
            f"the scale of tensor {name!r} does not fit float32",
            got=f"{scale:g}",
            expected=f"{float(np.finfo(np.float32).max):g} at most",
            fix="rescale the network",
        )
    return struct.pack(">f", float(narrow)).hex()


def _writable(name: str) -> str:
    if not name.strip() or "\n" in name or "\0" in name:
        raise CalibrationError(
            "a calibration cache cannot hold the name of a tensor",
            got=repr(name),
            expected="a name in one line",
            fix="rename the tensor in the graph, or leave out --emit-trt-cache",
        )
    return name


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    return shown + (", ..." if len(names) > _SHOWN else "")
