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

import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import vggdeploy
from vggdeploy import atomic, cache, forms, limits, preprocess, signing
from vggdeploy.errors import BundleError, RunnerError
from vggdeploy.forms import ABSENT
from vggdeploy.manifest import (
    AGAIN,
    GRAPH,
    LAYERS,
    MANIFEST,
    PROBES,
    SCHEMA,
    SIGNATURES,
    examine,
    files,
    load_json,
    read_manifest,
    require_own,
    require_plain,
    self_digest,
    spelling,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from vggdeploy.contracts import Batch
    from vggdeploy.preprocess import Preprocess


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
                "int64 [N] or none; scores that are finite",
                fix="build the bundle again",
            )
        return probes

    def _fit(self) -> bool:
        """Whether the arrays are of their types and shapes, and every score is finite."""
        held = (
            (self.images, "uint8", 4),
            (self.reference, "float32", 2),
            (self.labels, "int64", 1),
        )
        return all(
            each.dtype == dtype and each.ndim == rank and len(each) == len(self.images) > 0
            for each, dtype, rank in held
            if each is not None
        ) and bool(np.isfinite(self.reference).all())


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
        return self.file(GRAPH)

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
        """What its engine takes for uint8 ``[N, H, W, 3]`` pixels: these, or float32 images.

        Raises:
            RunnerError: for anything else.
        """
        given = np.asarray(pixels)
        if given.dtype != np.uint8 or given.ndim != 4 or given.shape[3] != 3:
            raise RunnerError(
                f"bundle {self.path} takes pixels",
                got=f"{given.dtype} {list(given.shape)}",
                expected="uint8 [N, H, W, 3]",
                fix="stack what 'dataset.load(FILE, bundle.preprocess)' reads of image files",
            )
        if self.manifest["input"].get("dtype") == "uint8":
            return np.ascontiguousarray(pixels)
        return self.preprocess.arithmetic(pixels)

    def file(self, name: str) -> Path:
        """A file of it: one that its manifest lists, and that was so checked.

        Raises:
            BundleError: when there is none of that name.
        """
        listed = files(self.manifest)
        if name not in listed:
            raise BundleError(
                f"bundle {self.path} holds no {name}",
                got=", ".join(listed) or "no file",
                expected=f"{name} among its files",
                fix="build it again with this version",
            )
        return self.path / name

    def read_json(self, name: str, form: Any) -> dict[str, Any]:
        """An object in a JSON file of it.

        Args:
            name: the file.
            form: what it must look like, see `forms`.

        Raises:
            BundleError: when it is not there, cannot be read or is of another form: a digest shows
                that a file is whole, and not that a build wrote it.
        """
        path = self.file(name)
        try:
            said: dict[str, Any] = load_json(limits.read(path, limits.JSON_BYTES))
            wrong = forms.misfit(said, form)
        except (OSError, ValueError, RecursionError) as error:
            raise _no_json(path, error) from error
        if wrong is not None:
            raise _no_json(path, wrong)
        return said

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
        """The network's budget, in the form of `budget.Budget.to_json` or `budget.from_rows`, with
        the engine's names of its layers: ``nodes``, ``tensors`` and ``engine_layers``.

        Raises:
            BundleError: as `read_json`.
        """
        return self.read_json(LAYERS, _BUDGET)


_BUDGET = {
    "batch": (ABSENT, forms.positive),
    "total": {"params": forms.count, "macs": forms.count, "weight_bytes": forms.count},
    "layers": [
        {
            "name": str,
            "kind": (ABSENT, str),
            "output": [forms.positive],
            "params": forms.count,
            "weights": (ABSENT, forms.count),
            "inputs": (ABSENT, forms.positive),
            "macs": forms.count,
            "weight_bytes": (ABSENT, forms.count),
            "activation_bytes": (ABSENT, forms.count),
        }
    ],
    "nodes": (ABSENT, {str: str}),
    "tensors": (ABSENT, {str: str}),
    "engine_layers": (ABSENT, None, [{"name": (None, str), "budget": [str]}]),
}
"""What is read of a budget."""


def _no_json(path: Path, got: object) -> BundleError:
    return BundleError(
        f"{path} is not what a build writes",
        got=got,
        expected="JSON as 'vggdeploy build' writes it",
        fix=AGAIN,
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
    manifest, where = read_manifest(path), f"bundle {path}"
    require_own(path / SIGNATURES, where)
    if trusted is not None:
        signing.require(manifest, signatures(path), trusted, where)
    for each in examine(path, manifest):
        each.require(where)
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


def signatures(path: Path) -> bytes | None:
    """The content of a bundle's signatures; None where it has none.

    Raises:
        BundleError: when they cannot be read, or are elsewhere.
    """
    file = path / SIGNATURES
    try:
        require_own(file, f"bundle {path}")
        return limits.read(file, limits.SIGNATURES_BYTES) if file.is_file() else None
    except (OSError, limits.OverLimitError) as error:
        raise BundleError(
            f"{file} cannot be read",
            got=error,
            expected="what 'vggdeploy bundle sign' wrote",
            fix="sign it again",
        ) from error


def sign(path: Path, key: Path) -> dict[str, Any]:
    """Sign a bundle, once it is known to be whole: a signature is added to those that it has, also
    to those that others add meanwhile.

    Args:
        path: its folder.
        key: the file of a private key.

    Returns:
        ``bundle``, ``digest``, ``key`` (the id) and ``signatures``, the ids of all that signed it.

    Raises:
        BundleError: when it is damaged, or another bundle took its place meanwhile.
        ConfigError, MissingError: as `signing.private_key`.
    """
    private = signing.private_key(key)
    opened, where = open_bundle(path), f"bundle {path}"
    # Whoever replaces the folder, or signs too, waits.
    with atomic.alone(path / SIGNATURES):
        digest = str(require_unchanged(opened)["digest"])
        content = signing.add(signatures(path), digest, private, where)
        atomic.write_bytes(path / SIGNATURES, content)
    return {
        "kind": "sign",
        "bundle": str(path),
        "digest": digest,
        "key": signing.key_id(private.public_key()),
        "signatures": [each.key for each in signing.parse(content, where)],
    }


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

    Raises:
        BundleError: when it has more than a bundle may.
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
        manifest["digest"] = self_digest(manifest)
        require_plain(manifest, f"bundle {path}")
        (work / MANIFEST).write_text(spelling(manifest), encoding="utf-8")
    return open_bundle(path)


def holds(path: Path, key: str, *, force: bool) -> bool:
    """Whether `path` holds the whole bundle that was built from `key`; False where there is room.

    A damaged bundle of the same key counts as room: building it again loses nothing.

    Raises:
        BundleError: when something else is there, and it is no bundle or `force` is not given.
    """
    if _free(path):
        return False
    try:
        same = read_manifest(path)["build"].get("key") == key
    except BundleError as error:
        if not force:
            raise _taken(path, "a damaged bundle, or one of another version", error.what) from error
        return False
    if not same:
        if not force:
            raise _taken(path, "a bundle built from other inputs", "another build key")
        return False
    try:
        open_bundle(path)
    except BundleError:
        return False
    return True


def refuse_taken(place: Path, *, force: bool) -> None:
    """Make sure that a bundle may be written to `place`.

    Raises:
        BundleError: when something else is there, and it is no bundle or `force` is not given.
    """
    if not _free(place) and not force:
        raise _taken(place, "another bundle", "a bundle that would be replaced")


def _free(place: Path) -> bool:
    """Whether there is nothing at `place`; False where there is a bundle."""
    with atomic.writing(place):  # of a name that is too long, say
        if not place.exists() or (place.is_dir() and not any(place.iterdir())):
            return True
    if not (place / MANIFEST).is_file():
        raise BundleError(
            f"{place} exists and is no bundle",
            got=f"no {MANIFEST} in it" if place.is_dir() else "a file",
            expected="a free path, or a bundle",
            fix="choose another place with --out",
        )
    return False


def _taken(place: Path, held: str, got: str) -> BundleError:
    return BundleError(
        f"{place} holds {held}",
        got=got,
        expected="a place that is free",
        fix="give --force to replace it, or choose another --out",
    )
