"""The bundle: one folder with an engine, what it was made from, and what proves it.

::

    manifest.json      what it is, and the digest and size of every other file
    model.xml, .bin    OpenVINO's engine (other targets have their own files)
    model.engine       TensorRT's
    model.onnx         the graph that the engine is compiled from (INT8 and TensorRT targets)
    model.onnx.data    its weights, where they are not inside (float graphs)
    calibration.json   the calibration table (INT8 targets)
    calibration.cache  the table as a TensorRT calibration cache (where asked for)
    probes.npz         probe images with the reference's outputs, and labels where known
    layers.json        the budget, layer by layer; with TensorRT the engine's layers too
    tuned.json         what tuning tried, once it was tuned

A portable bundle has no engine yet: ``vggdeploy compile`` makes it from the graph, on the device.

Digests are checked before anything is parsed or deserialized: an engine is code.
"""

from __future__ import annotations

import json
import math
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import vggdeploy
from vggdeploy import atomic, cache, digests, preprocess
from vggdeploy.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from vggdeploy.contracts import Batch
    from vggdeploy.preprocess import Preprocess

SCHEMA = 1
MANIFEST = "manifest.json"
PROBES = "probes.npz"
LAYERS = "layers.json"
CALIBRATION = "calibration.json"
TRT_CACHE = "calibration.cache"
GRAPH = "model.onnx"
TUNED = "tuned"
TABLE = "tuned.json"

WRITTEN = ("schema", "tool", "host", "files", "digest", TUNED)
"""Parts of a manifest that are not a build's own: `write` adds them, and `tuning` the last, which is
of one engine."""


@dataclass(frozen=True)
class Probes:
    """Images that judge an engine without a dataset.

    Attributes:
        images: uint8 ``[N, H, W, 3]``.
        reference: the reference's scores, float32 ``[N, classes]``.
        labels: int64 ``[N]``, or None.
    """

    images: NDArray[np.uint8]
    reference: NDArray[np.float32]
    labels: NDArray[np.int64] | None

    def save(self, path: Path) -> None:
        """Write as .npz, without pickles."""
        arrays: dict[str, Any] = {"images": self.images, "reference": self.reference}
        if self.labels is not None:
            arrays["labels"] = self.labels
        np.savez(path, **arrays)

    @classmethod
    def load(cls, path: Path) -> Probes:
        """Read from .npz.

        Raises:
            BundleError: when the arrays are not those that `save` writes.
        """
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                labels = file.get("labels")
                probes = cls(file["images"], file["reference"], labels)
        except (
            Exception
        ) as error:  # zipfile, zlib, tokenize and numpy each have errors of their own
            raise BundleError(
                f"{path} cannot be read", got=error, fix="build the bundle again"
            ) from error
        if not probes._fit():
            held = (probes.images, probes.reference, probes.labels)
            raise BundleError(
                f"{path} does not hold probes",
                got=", ".join(
                    f"{each.dtype} {list(each.shape)}"
                    if isinstance(each, np.ndarray)
                    else str(each)
                    for each in held
                ),
                expected="images, as many outputs and, where there are any, as many labels",
                fix="build the bundle again",
            )
        return probes

    def _fit(self) -> bool:
        """Whether the arrays are of the types and shapes that they should be."""
        held = (
            (self.images, "uint8", 4),
            (self.reference, "float32", 2),
            (self.labels, "int64", 1),
        )
        return all(
            isinstance(each, np.ndarray)
            and each.dtype == dtype
            and each.ndim == rank
            and len(each) == len(self.images)
            for each, dtype, rank in held
            if each is not None
        )


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files have been checked against their digests."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def target(self) -> str:
        """The name of the target it was built for."""
        return str(self.manifest["target"])

    @property
    def preprocess(self) -> Preprocess:
        """The preprocessing that its network was trained with."""
        return preprocess.from_mapping(self.manifest["preprocess"], where=str(self.path / MANIFEST))

    @property
    def engine(self) -> tuple[Path, ...]:
        """The engine's files."""
        return tuple(self.path / name for name in self.manifest["engine"])

    @property
    def compiled(self) -> bool:
        """Whether there is an engine; a portable bundle has none until it is compiled."""
        return bool(self.manifest["engine"])

    @property
    def graph(self) -> Path:
        """The graph that the engine is compiled from.

        Raises:
            BundleError: when this bundle holds none.
        """
        if GRAPH not in self.manifest["files"]:
            raise BundleError(
                f"bundle {self.path} holds no graph",
                expected=f"{GRAPH}, which the engine is compiled from",
                fix="build it again with this version",
            )
        return self.path / GRAPH

    @property
    def engine_bytes(self) -> int:
        """Size of the engine's files together."""
        return sum(self.manifest["files"][name]["size"] for name in self.manifest["engine"])

    def batch(self, pixels: NDArray[np.uint8]) -> Batch:
        """What its engine takes for uint8 ``[N, H, W, 3]`` pixels: these, or float32 images."""
        if self.manifest["input"].get("dtype") == "uint8":
            return np.ascontiguousarray(pixels)
        return self.preprocess.arithmetic(pixels)

    def probes(self) -> Probes:
        """The probe images and the reference's outputs."""
        return Probes.load(self.path / PROBES)

    def budget(self) -> dict[str, Any]:
        """The network's budget, in the form of `budget.Budget.to_json`."""
        said: dict[str, Any] = json.loads((self.path / LAYERS).read_text(encoding="utf-8"))
        return said


_REQUIRED: Mapping[str, type] = {
    "schema": int,
    "target": str,
    "model": dict,
    "engine": list,
    "input": dict,
    "output": dict,
    "preprocess": dict,
    "files": dict,
    "build": dict,
    "digest": str,
}


def open_bundle(path: Path) -> Bundle:
    """Open a bundle and check every file against the manifest.

    Raises:
        BundleError: when it is missing, of another schema, incomplete or altered.
    """
    manifest = read_manifest(path)
    again = "build it again, or copy it again"
    needed = manifest["engine"] or [GRAPH]
    for name in (*needed, PROBES, LAYERS):
        if name not in manifest["files"]:
            raise BundleError(
                f"bundle {path}: {MANIFEST} has no digest of {name}",
                expected="a digest of every file that is read",
                fix=again,
            )
    for name, said in {**manifest["files"], **manifest.get(TUNED, {}).get("files", {})}.items():
        file = path / name
        if Path(name).name != name or file.is_symlink():
            raise BundleError(
                f"bundle {path}: {name!r} points outside of it",
                expected="plain files",
                fix="do not use this bundle",
            )
        if not file.is_file():
            raise BundleError(f"bundle {path}: {name} is missing", fix=again)
        if file.stat().st_size != said["size"] or digests.sha256_file(file) != said["sha256"]:
            raise BundleError(
                f"bundle {path}: {name} has been altered",
                got=f"{file.stat().st_size:,} bytes of another digest",
                expected=f"{said['size']:,} bytes with SHA-256 {said['sha256'][:16]}...",
                fix=again,
            )
    return Bundle(path, manifest)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a bundle, checked against its own digest but not against the files.

    Raises:
        BundleError: when it is missing, unreadable, of another schema or altered.
    """
    file = path / MANIFEST
    try:
        content = file.read_bytes()
        manifest = json.loads(
            content.decode("utf-8"), parse_constant=_refuse_constant, parse_float=_finite
        )
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(
            f"{path} is no bundle",
            got=f"no {MANIFEST}",
            expected="a folder that 'vggdeploy build' made",
            fix="check the path",
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(
            f"{file} cannot be read", got=error, fix="build the bundle again"
        ) from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        got = manifest.get("schema") if isinstance(manifest, dict) else type(manifest).__name__
        raise BundleError(
            f"bundle {path} is of another schema",
            got=got,
            expected=SCHEMA,
            fix="build it again with this version",
        )
    missing = [key for key in _REQUIRED if key not in manifest]
    if (
        missing
        or content != spelling(manifest).encode()
        or manifest["digest"] != _self_digest(manifest)
        or not _tuned_is_whole(manifest)
    ):
        raise BundleError(
            f"{file} has been altered",
            got=f"no {missing[0]}" if missing else "another digest or spelling",
            expected="the manifest that the build wrote",
            fix="build or copy the bundle again",
        )
    wrong = _wrong_part(manifest)
    if wrong is not None:
        raise BundleError(
            f"{file} is not what a build writes",
            got=f"{wrong} of another form",
            fix="do not use this bundle",
        )
    return manifest


def _wrong_part(manifest: Mapping[str, Any]) -> str | None:
    """The first part that has not the form that `write` gives it, which a digest does not tell
    where it is a forger's; None where there is none."""
    for key, kind in _REQUIRED.items():
        if not isinstance(manifest[key], kind):
            return key
    for key in ("input", "output"):
        shape = manifest[key].get("shape")
        if not isinstance(shape, list) or not all(
            side is None or (type(side) is int and side > 0) for side in shape
        ):
            return key
    if not all(isinstance(name, str) for name in manifest["engine"]):
        return "engine"
    for part, said in (
        ("build", manifest["build"].get("engine")),
        ("recipe", manifest.get("recipe")),
    ):
        if not isinstance(said or {}, dict):
            return part
    tuned = manifest.get(TUNED, {"files": {}})
    for part, files in (("files", manifest["files"]), (TUNED, tuned.get("files"))):
        if not isinstance(files, dict) or not all(map(_describes, files.values())):
            return part
    return None


def _describes(said: Any) -> bool:
    return (
        isinstance(said, dict)
        and type(said.get("size")) is int
        and isinstance(said.get("sha256"), str)
    )


def spelling(manifest: Mapping[str, Any]) -> str:
    """A manifest as it is written, to the byte: digests do not see how JSON is spelt."""
    return json.dumps(manifest, indent=1, allow_nan=False)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no finite number")
    return number


def _self_digest(manifest: Mapping[str, Any]) -> str:
    """The digest of what was built. What tuning found is not in it: that decides how an engine is
    run on one machine and not what it computes, so what was verified before stays of this bundle.
    """
    return digests.sha256_json({k: v for k, v in manifest.items() if k not in ("digest", TUNED)})


def tuned_digest(digest: str, tuned: Mapping[str, Any]) -> str:
    """The digest of what tuning found for the bundle of a digest."""
    said = {key: value for key, value in tuned.items() if key != "digest"}
    return digests.sha256_json({"bundle": digest, TUNED: said})


def _tuned_is_whole(manifest: Mapping[str, Any]) -> bool:
    tuned = manifest.get(TUNED)
    if tuned is None:
        return True
    return isinstance(tuned, dict) and tuned.get("digest") == tuned_digest(
        manifest["digest"], tuned
    )


def write(
    path: Path,
    facts: Mapping[str, Any],
    fill: Callable[[Path], Mapping[str, Any] | None],
    *,
    replace: bool | Callable[[], bool],
) -> Bundle:
    """Write a bundle: `fill` puts its files into the folder it is given, the manifest follows.

    Args:
        path: where the bundle shall be.
        facts: the manifest's own part; files, schema, tool and host are added here.
        fill: writes every file but the manifest; what it returns is added to `facts`.
        replace: whether what is there already gives way, see `atomic.folder`.
    """
    with atomic.folder(path, replace=replace) as work:
        found = fill(work) or {}
        manifest: dict[str, Any] = {
            "schema": SCHEMA,
            **facts,
            **found,
            "tool": {"name": "vggdeploy", "version": vggdeploy.__version__},
            "host": {
                "machine": platform.machine(),
                "system": platform.system(),
                "python": platform.python_version(),
            },
            "files": cache.describe(work),
        }
        manifest["digest"] = _self_digest(manifest)
        (work / MANIFEST).write_text(spelling(manifest), encoding="utf-8")
    return open_bundle(path)


def holds(path: Path, key: str, *, force: bool) -> bool:
    """Whether `path` holds the whole bundle that was built from `key`; False where there is room.

    A damaged bundle of the same key counts as room: building it again loses nothing.

    Raises:
        BundleError: when something else is there, and it is no bundle or `force` is not given.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return False
    if not (path / MANIFEST).is_file():
        raise BundleError(f"{path} exists and is no bundle", fix="choose another place with --out")
    try:
        same = read_manifest(path)["build"]["key"] == key
    except BundleError:
        same = False
    if not same:
        if not force:
            raise BundleError(
                f"{path} holds a bundle built from other inputs",
                expected="a place that is free",
                fix="give --force to replace it, or choose another --out",
            )
        return False
    try:
        open_bundle(path)
    except BundleError:
        return False
    return True
