"""A calibration that is given as a file, in place of one made from images.

It is a table that ``vggdeploy calibrate`` wrote, or a TensorRT calibration cache; the content tells
which. What the file says of its model and preprocessing is held against the build's own, before any
long work; what it does not say is said in the build's cautions.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vggdeploy import limits
from vggdeploy.calib import CalibrationTable, methods, trt_cache
from vggdeploy.errors import CalibrationError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from vggdeploy.calib.placement import Point
    from vggdeploy.calib.trt_cache import TrtCache
    from vggdeploy.inputs import BuildOptions
    from vggdeploy.sources import Source

_HEAD = 4096
"""Bytes that tell the kind of file: a wrong one may be as large as a network."""


@dataclass(frozen=True)
class CalibrationFile:
    """A file that ``--calibration`` named, read but for the tensors' names unchecked.

    Attributes:
        path: as it was given.
        sha256: of its content.
        content: a table of ours, or TensorRT's cache.
    """

    path: Path
    sha256: str
    content: CalibrationTable | TrtCache

    def require_same(self, source: Source) -> None:
        """Make sure that it is of this network and its preprocessing, as far as it says.

        Raises:
            CalibrationError: naming what differs.
        """
        if not isinstance(self.content, CalibrationTable):
            return
        said, own = self._part("model"), source.identity()
        if said is not None and said.get("sha256") != own["sha256"]:
            raise CalibrationError(
                f"calibration table {self.path} was made for another model",
                got=f"SHA-256 {str(said.get('sha256'))[:16]}...",
                expected=f"{own['sha256'][:16]}...",
                fix="calibrate this model, or build the table's own",
            )
        recipe = self._part("preprocess")
        if recipe is not None:
            self._refuse(recipe, source.preprocess.to_json(), "preprocessing", "--preprocess")
        if said is not None:
            self._refuse(said, own, "network", "--weights, --arch and --preprocess")

    def _part(self, key: str) -> Mapping[str, Any] | None:
        assert isinstance(self.content, CalibrationTable)
        said = self.content.source.get(key)
        if said is None or isinstance(said, dict):
            return said
        raise CalibrationError(
            f"calibration table {self.path} cannot be read",
            got=f"{key} {said!r}",
            expected="what 'vggdeploy calibrate' writes",
            fix="calibrate again",
        )

    def _refuse(
        self, said: Mapping[str, Any], own: Mapping[str, Any], what: str, flag: str
    ) -> None:
        keys = sorted(said.keys() | own.keys())
        differs = [key for key in keys if said.get(key) != own.get(key)]
        if differs:
            raise CalibrationError(
                f"calibration table {self.path} was made with another {what}",
                got=", ".join(f"{key} {said.get(key)}" for key in differs),
                expected=", ".join(f"{key} {own.get(key)}" for key in differs),
                fix=f"give the {flag} of the table, or calibrate again",
            )

    def table(self, points: Sequence[Point]) -> CalibrationTable:
        """The table, known to hold every tensor that the graph quantizes.

        Raises:
            CalibrationError: naming a tensor that it lacks.
        """
        if not isinstance(self.content, CalibrationTable):
            return self.content.table(points, self.sha256)
        for point in points:
            if point.name not in self.content.tensors:
                raise CalibrationError(
                    f"calibration table {self.path} has no entry for tensor {point.name!r}",
                    got=f"{len(self.content.tensors)} other tensors",
                    expected="a table made from this model",
                    fix="calibrate again",
                )
        return self.content


def given(options: BuildOptions, source: Source) -> CalibrationFile | None:
    """The file that ``--calibration`` names, read and held against the network; None without one.

    Raises:
        ConfigError: for another method than the file has been made with.
        CalibrationError: when it cannot be read, or is of another network or preprocessing.
    """
    if options.calibration is None:
        return None
    if options.method != methods.DEFAULT:
        raise ConfigError(
            "--method does not go with --calibration",
            got=f"--method {options.method} and --calibration {options.calibration}",
            expected="either alone",
            fix="drop one of them, or its setting: a calibration's method was chosen when it was "
            "made",
        )
    found = read(options.calibration.expanduser())
    found.require_same(source)
    return found


def refuse(options: BuildOptions) -> None:
    """Refuse the options of a calibration where the target has none.

    Raises:
        ConfigError: naming the flag.
    """
    for flag, value in (
        ("--calibration", options.calibration),
        ("--emit-trt-cache", options.emit_trt_cache),
    ):
        if value:
            raise ConfigError(
                f"{flag} makes no difference to {options.target}",
                got="a target that is not calibrated",
                expected="an INT8 target",
                fix="drop it, or its setting, or choose another --target",
            )


def read(path: Path) -> CalibrationFile:
    """Read a table or a cache, whichever it is.

    Raises:
        CalibrationError: when it is neither, or damaged.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_HEAD)
            head = content.lstrip()
            most = limits.JSON_BYTES if head.startswith(b"{") else limits.TRT_CACHE_BYTES
            if head.startswith((b"{", b"TRT-")):
                content += file.read(most)
    except FileNotFoundError as error:
        raise CalibrationError(
            f"calibration {path} does not exist",
            got="nothing there",
            expected="a calibration table, or TensorRT's calibration cache",
            fix="check the path",
        ) from error
    except OSError as error:
        raise CalibrationError(
            f"calibration {path} cannot be read",
            got=error.strerror,
            expected="a calibration table, or TensorRT's calibration cache",
            fix="check the path",
        ) from error
    if len(content) > most:
        raise CalibrationError(
            f"calibration {path} is too large",
            got=f"more than {most:,} bytes",
            expected="a table or a cache of one network",
            fix="check the path",
        )
    sha256 = hashlib.sha256(content).hexdigest()
    if head.startswith(b"{"):
        return CalibrationFile(path, sha256, CalibrationTable.parse(content, str(path)))
    if head.startswith(b"TRT-") or not head:
        return CalibrationFile(path, sha256, trt_cache.parse(content, f"calibration {path}"))
    first = head.split(b"\n")[0].rstrip()[:40].decode("utf-8", "replace")
    raise CalibrationError(
        f"{path} is no calibration",
        got="a binary file" if b"\0" in head else f"line 1 is {first!r}",
        expected="a table that 'vggdeploy calibrate' wrote, or a TensorRT calibration cache with "
        "'TRT-<version>-EntropyCalibration2' in line 1",
        fix="give --calibration one of these",
    )


def cautions(
    table: CalibrationTable | None, path: Path | None, sparsity: str | None = None
) -> list[str]:
    """What a given table could not be checked for, and that it is of dense weights where the build
    has weights of a `sparsity`, or the other way; empty for one made from images."""
    if table is None or path is None:
        return []
    return [*_unchecked(table, path), *_other_weights(table, path, sparsity)]


def _other_weights(table: CalibrationTable, path: Path, sparsity: str | None) -> list[str]:
    said = table.source.get("sparsity")
    if said == sparsity:
        return []
    return [
        f"calibration {path} is of {said or 'dense'} weights and the build's are "
        f"{sparsity or 'dense'}: its thresholds are another network's, calibrate anew for the best"
    ]


def _unchecked(table: CalibrationTable, path: Path) -> list[str]:
    parts = (("model", "digest of the model"), ("preprocess", "preprocessing"))
    unknown = [label for key, label in parts if table.source.get(key) is None]
    if not unknown:
        return []
    line = (
        f"calibration {path} carries no {' and no '.join(unknown)}: that could not be checked, "
        "only the names of its tensors"
    )
    cache = table.source.get("trt_cache")
    if isinstance(cache, dict) and {"ignored", "entries"} <= cache.keys():
        line += (
            f"; {cache['ignored']} of the {cache['entries']} entries of TensorRT's cache are for "
            "tensors that are not quantized here, and were ignored"
        )
    return [line]
