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
    signature.json     who vouches for it, once it was signed: see `signing`

A portable bundle has no engine yet: ``vggdeploy compile`` makes it from the graph, on the device.

Digests are checked before anything is parsed or deserialized: an engine is code. They show that a
bundle is whole; whose it is, its signatures show.
"""

from __future__ import annotations

import json
import math
import platform
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import vggdeploy
from vggdeploy import atomic, cache, digests, limits, preprocess, signing
from vggdeploy.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

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
SIGNATURES = "signature.json"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_AGAIN = "build it again, or copy it again"

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
            file = limits.arrays(path)
            probes = cls(file["images"], file["reference"], file.get("labels"))
        # zipfile, zlib, tokenize and numpy each have errors of their own.
        except Exception as error:
            raise BundleError(
                f"{path} cannot be read",
                got=error,
                expected="the probes that 'vggdeploy build' wrote",
                fix="build the bundle again",
            ) from error
        if not probes._fit():
            raise BundleError(
                f"{path} does not hold probes",
                got=", ".join(
                    f"{name} {file[name].dtype} {list(file[name].shape)}" for name in file
                ),
                expected="images uint8 [N, H, W, 3], reference float32 [N, classes], and labels "
                "int64 [N] or none",
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
            each.dtype == dtype and each.ndim == rank and len(each) == len(self.images) > 0
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
                got=", ".join(self.manifest["files"]) or "no file",
                expected=f"{GRAPH}, which the engine is compiled from",
                fix="build it again with this version",
            )
        return self.path / GRAPH

    @property
    def engine_bytes(self) -> int:
        """Size of the engine's files together."""
        return sum(self.manifest["files"][name]["size"] for name in self.manifest["engine"])

    @property
    def batches(self) -> tuple[int, int, int] | None:
        """Images of a query, at least, as tuned for and at most, by the optimization profile of a
        TensorRT engine; None where an engine takes any number."""
        said = (self.manifest["build"].get("engine") or {}).get("batches")
        return said and (said[0], said[1], said[2])

    def batch(self, pixels: NDArray[np.uint8]) -> Batch:
        """What its engine takes for uint8 ``[N, H, W, 3]`` pixels: these, or float32 images."""
        if self.manifest["input"].get("dtype") == "uint8":
            return np.ascontiguousarray(pixels)
        return self.preprocess.arithmetic(pixels)

    def probes(self) -> Probes:
        """The probe images and the reference's outputs."""
        return Probes.load(self.path / PROBES)

    def probe_batches(self, size: int) -> list[Batch]:
        """The probes as what its engine takes, 8 batches of `size` images at most; they start over
        where they run out."""
        images = self.probes().images
        count = max(1, min(8, len(images) // size))
        turns = np.arange(count * size).reshape(count, size) % len(images)
        return [self.batch(images[turn]) for turn in turns]

    def budget(self) -> dict[str, Any]:
        """The network's budget, in the form of `budget.Budget.to_json`."""
        said: dict[str, Any] = json.loads(limits.read(self.path / LAYERS, limits.JSON_BYTES))
        return said


_REQUIRED = (
    "schema",
    "target",
    "model",
    "engine",
    "input",
    "output",
    "preprocess",
    "files",
    "build",
    "digest",
)


def open_bundle(path: Path, trusted: Path | None = None) -> Bundle:
    """Open a bundle and check every file against the manifest.

    Args:
        path: its folder.
        trusted: a file or folder of public keys, one of which must have signed it.

    Raises:
        BundleError: when it is missing, of another schema, incomplete or altered, or signed by none
            of the `trusted`.
        ConfigError, MissingError: as `signing.trusted_keys`.
    """
    manifest = read_manifest(path)
    if trusted is not None:
        signing.require(manifest, signatures(path), trusted, f"bundle {path}")
    listed = files(manifest)
    for name, said in listed.items():
        file = path / name
        if file.is_symlink():
            raise BundleError(
                f"bundle {path}: {name!r} points outside of it",
                got="a symbolic link",
                expected="plain files in the bundle's folder",
                fix="do not use this bundle",
            )
        if not file.is_file():
            raise BundleError(
                f"bundle {path}: {name} is missing",
                got="no such file",
                expected="every file that the manifest names",
                fix=_AGAIN,
            )
        if file.stat().st_size != said["size"]:
            raise altered(f"bundle {path}", name, said, file.stat().st_size)
    found = digests.sha256_files([path / name for name in listed])
    for name, said in listed.items():
        if found[path / name] != said["sha256"]:
            raise altered(f"bundle {path}", name, said, said["size"])
    return Bundle(path, manifest)


def require_unchanged(opened: Bundle) -> dict[str, Any]:
    """The manifest at the place of `opened` as it is now, known to be of the same bundle; what
    tuning found may be another.

    Raises:
        BundleError: when another bundle is there, or none.
    """
    now = read_manifest(opened.path)
    if now["digest"] != opened.manifest["digest"]:
        raise BundleError(
            f"bundle {opened.path} was replaced in the meantime",
            got=f"digest {now['digest'][:16]}...",
            expected=f"{opened.manifest['digest'][:16]}...",
            fix="run the command again",
        )
    return now


def altered(where: str, name: str, said: Mapping[str, Any], size: int) -> BundleError:
    """The error for a file that is not what the manifest says.

    Args:
        where: the bundle.
        name: the file.
        said: the manifest's words on it.
        size: what it has, in bytes.
    """
    return BundleError(
        f"{where}: {name} has been altered",
        got=f"{size:,} bytes of another digest",
        expected=f"{said['size']:,} bytes with SHA-256 {said['sha256'][:16]}...",
        fix=_AGAIN,
    )


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a bundle, checked against its own digest but not against the files.

    Raises:
        BundleError: when it is missing, unreadable, of another schema or altered.
    """
    file = path / MANIFEST
    try:
        if not file.is_file():
            raise BundleError(
                f"{path} is no bundle",
                got=f"no {MANIFEST}",
                expected="a folder that 'vggdeploy build' made",
                fix="check the path",
            )
        content = limits.read(file, limits.MANIFEST_BYTES)
    except (OSError, limits.OverLimitError) as error:
        raise _unreadable(str(file), error) from error
    return parse_manifest(content, str(file))


def parse_manifest(content: bytes, where: str) -> dict[str, Any]:
    """A manifest, checked against its own digest: every part that a bundle must have is there, and
    every file is a plain name with a size and a digest.

    Args:
        content: its JSON.
        where: what errors call it.

    Raises:
        BundleError: when it is none, of another schema or altered.
    """
    try:
        manifest = json.loads(content, parse_float=_finite, parse_constant=_finite)
        if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
            got = manifest.get("schema") if isinstance(manifest, dict) else type(manifest).__name__
            raise BundleError(
                f"{where} is of another schema",
                got=got,
                expected=SCHEMA,
                fix="build it again with this version",
            )
        missing = [key for key in _REQUIRED if key not in manifest]
        whole = (
            not missing
            and content == spelling(manifest).encode()
            and manifest["digest"] == _self_digest(manifest)
            and _tuned_is_whole(manifest)
        )
    except (ValueError, RecursionError) as error:
        raise _unreadable(where, error) from error
    if not whole:
        raise BundleError(
            f"{where} has been altered",
            got=f"no {missing[0]}" if missing else "another digest or spelling",
            expected="the manifest that the build wrote",
            fix="build or copy the bundle again",
        )
    _require_plain(manifest, where)
    return manifest


def _unreadable(where: str, error: Exception) -> BundleError:
    return BundleError(
        f"{where} cannot be read",
        got=error,
        expected="the manifest that 'vggdeploy build' wrote",
        fix="build the bundle again",
    )


def spelling(manifest: Mapping[str, Any]) -> str:
    """A manifest as it is written, to the byte: digests do not see how JSON is spelt."""
    return json.dumps(manifest, indent=1, allow_nan=False)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no JSON")
    return number


def files(manifest: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Every file of a bundle but its manifest and its signatures: ``sha256`` and ``size``, by name,
    those of tuning last."""
    return {**manifest["files"], **(manifest.get(TUNED) or {}).get("files", {})}


def signatures(path: Path) -> bytes | None:
    """The content of a bundle's signatures; None where it has none.

    Raises:
        BundleError: when they cannot be read.
    """
    file = path / SIGNATURES
    try:
        return limits.read(file, limits.SIGNATURES_BYTES) if file.is_file() else None
    except (OSError, limits.OverLimitError) as error:
        raise BundleError(
            f"{file} cannot be read",
            got=error,
            expected="what 'vggdeploy bundle sign' wrote",
            fix="sign it again",
        ) from error


def sign(path: Path, key: Path) -> dict[str, Any]:
    """Sign a bundle, once it is known to be whole: a signature is added to those that it has.

    Args:
        path: its folder.
        key: the file of a private key.

    Returns:
        ``bundle``, ``digest``, ``key`` (the id) and ``signatures``, the ids of all that signed it.

    Raises:
        BundleError: when it is damaged.
        ConfigError, MissingError: as `signing.private_key`.
    """
    private = signing.private_key(key)
    digest, where = str(open_bundle(path).manifest["digest"]), f"bundle {path}"
    content = signing.add(signatures(path), digest, private, where)
    atomic.write_bytes(path / SIGNATURES, content)
    return {
        "kind": "sign",
        "bundle": str(path),
        "digest": digest,
        "key": signing.key_id(private.public_key()),
        "signatures": [each.key for each in signing.parse(content, where)],
    }


_MOST_BYTES = {PROBES: limits.PROBES_BYTES, TRT_CACHE: limits.TRT_CACHE_BYTES}


def _require_plain(manifest: Mapping[str, Any], where: str) -> None:
    """Make sure that what a manifest says of files can be relied on, whoever wrote it."""

    def refuse(what: str, got: object, expected: str) -> BundleError:
        return BundleError(f"{where}: {what}", got=got, expected=expected, fix=_AGAIN)

    if not isinstance(manifest["target"], str):
        raise refuse("target is wrong", repr(manifest["target"])[:40], "a name")
    for key in ("model", "input", "output", "preprocess", "build"):
        if not isinstance(manifest[key], dict):
            raise refuse(f"{key} is wrong", repr(manifest[key])[:40], "a table")
    for key, said in (
        ("build", manifest["build"].get("engine")),
        ("recipe", manifest.get("recipe")),
    ):
        if not isinstance(said or {}, dict):
            raise refuse(f"{key} is wrong", repr(said)[:40], "a table")
    batches = (manifest["build"].get("engine") or {}).get("batches")
    if batches is not None and not (
        isinstance(batches, list)
        and len(batches) == 3
        and all(type(size) is int and size > 0 for size in batches)
    ):
        raise refuse("the batches of its engine are wrong", repr(batches)[:40], "three above 0")
    for key in ("input", "output"):
        shape = manifest[key].get("shape")
        if not isinstance(shape, list) or not all(
            side is None or (type(side) is int and side > 0) for side in shape
        ):
            raise refuse(f"the shape of its {key} is wrong", repr(shape)[:40], "sides above 0")
    tuned = (manifest.get(TUNED) or {}).get("files", {})
    if not isinstance(manifest["files"], dict) or not isinstance(tuned, dict):
        raise refuse("files are wrong", "no table", "size and SHA-256 of each file")
    listed = files(manifest)
    if len(listed) > limits.BUNDLE_FILES:
        raise refuse("there are too many files", len(listed), f"{limits.BUNDLE_FILES} at most")
    if len({name.casefold() for name in listed}) < len(listed):
        raise refuse("two files differ in capitals alone", ", ".join(listed), "other names")
    for name, said in listed.items():
        if not _NAME.fullmatch(name) or name.casefold() in (MANIFEST, SIGNATURES):
            raise refuse(f"{name!r} points outside of it", "another kind of name", "plain names")
        size = said.get("size") if isinstance(said, dict) else None
        if type(size) is not int or size < 0 or not _SHA256.fullmatch(str(said.get("sha256"))):
            raise refuse(f"what it says of {name} is wrong", said, "its size and its SHA-256")
        most = limits.JSON_BYTES if name.endswith(".json") else limits.BUNDLE_BYTES
        if size > (most := _MOST_BYTES.get(name, most)):
            raise refuse(f"{name} is too large", f"{size:,} bytes", f"{most:,} at most")
    if not isinstance(manifest["engine"], list):
        raise refuse("its engine is wrong", manifest["engine"], "names of files")
    for name in (*(manifest["engine"] or [GRAPH]), PROBES, LAYERS):
        if not isinstance(name, str) or name not in manifest["files"]:
            named = ", ".join(manifest["files"]) or "no file"
            raise refuse(
                f"has no digest of {name}",
                f"those of {named}",
                "a digest of every file that is read",
            )


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
        raise _no_bundle(path)
    try:
        same = read_manifest(path)["build"]["key"] == key
    except BundleError:
        same = False
    if not same:
        if not force:
            raise BundleError(
                f"{path} holds a bundle built from other inputs",
                got="another build key",
                expected="a place that is free",
                fix="give --force to replace it, or choose another --out",
            )
        return False
    try:
        open_bundle(path)
    except BundleError:
        return False
    return True


def _no_bundle(path: Path) -> BundleError:
    return BundleError(
        f"{path} exists and is no bundle",
        got=f"no {MANIFEST} in it" if path.is_dir() else "a file",
        expected="a free path, or a bundle",
        fix="choose another place with --out",
    )


def refuse_taken(place: Path, *, force: bool) -> None:
    """Make sure that a bundle may be written to `place`.

    Raises:
        BundleError: when something else is there, and it is no bundle or `force` is not given.
    """
    if not place.exists() or (place.is_dir() and not any(place.iterdir())):
        return
    if not (place / MANIFEST).is_file():
        raise _no_bundle(place)
    if not force:
        raise BundleError(
            f"{place} holds another bundle",
            got="a bundle that would be replaced",
            expected="a place that is free",
            fix="give --force to replace it, or choose another --out",
        )
