"""The manifest of a bundle: what the bundle is, and the digest and size of every other file.

It is believed in nothing: it is spelt as it was written, its own digest holds, and what it says of
files and networks is of the form that is relied on, whoever wrote it.
"""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vggdeploy import digests, forms, limits
from vggdeploy.errors import BundleError
from vggdeploy.forms import ABSENT

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

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

WRITTEN = ("schema", "tool", "host", "files", "digest", TUNED)
"""Parts of a manifest that are not a build's own: `bundle.write` adds them, and `tuning` the last,
which is of one engine."""

AGAIN = "build it again, or copy it again"
"""What mends a bundle."""

_SMALLER = "build it of a smaller network"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SHA256 = re.compile(r"[0-9a-f]{64}")

_MOST_BYTES = {PROBES: limits.PROBES_BYTES, TRT_CACHE: limits.TRT_CACHE_BYTES}


def _shape(value: object) -> bool:
    """The sides of a tensor; None is any."""
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(side is None or forms.positive(side) for side in value)
    )


def _digest(value: object) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def _batches(value: object) -> bool:
    """The least, the best and the most images a query of an engine."""
    return isinstance(value, list) and len(value) == 3 and all(map(forms.positive, value))


_FILES = {str: {"size": forms.count, "sha256": _digest}}
_FORM = {
    "target": str,
    "model": dict,
    "engine": [str],
    "input": {"shape": _shape},
    "output": {"shape": _shape},
    "preprocess": dict,
    "files": _FILES,
    "build": {
        "key": (ABSENT, str),
        "engine": (ABSENT, {"batches": (ABSENT, None, _batches)}),
        "kept": (ABSENT, [str]),
    },
    "recipe": (ABSENT, None, dict),
    "tool": (ABSENT, dict),
    "host": (ABSENT, dict),
    "device": (ABSENT, None, dict),
    TUNED: (ABSENT, None, {"choices": [dict], "files": _FILES}),
    "digest": str,
}
"""What is read of a manifest without another look."""


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a bundle, checked against its own digest but not against the files.

    Args:
        path: the bundle's folder.

    Raises:
        BundleError: when it is missing, unreadable, of another schema or altered.
    """
    file = path / MANIFEST
    try:
        require_own(file, f"bundle {path}")
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


def require_own(file: Path, where: str) -> None:
    """Make sure that a file of a bundle is in its folder: where a link points to may be anything.

    Raises:
        BundleError: when it is a link.
    """
    if file.is_symlink():
        raise BundleError(
            f"{where}: {file.name} points outside of it",
            got="a symbolic link",
            expected="plain files in the bundle's folder",
            fix="do not use this bundle",
        )


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
        manifest = load_json(content)
        if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
            got = manifest.get("schema") if isinstance(manifest, dict) else type(manifest).__name__
            raise BundleError(
                f"{where} is of another schema",
                got=got,
                expected=SCHEMA,
                fix="build it again with this version",
            )
        whole = (
            content == spelling(manifest).encode()
            and manifest.get("digest") == self_digest(manifest)
            and _tuned_is_whole(manifest)
        )
    except (ValueError, RecursionError) as error:
        raise _unreadable(where, error) from error
    if not whole:
        raise BundleError(
            f"{where} has been altered",
            got="another digest or spelling",
            expected="the manifest that the build wrote",
            fix="build or copy the bundle again",
        )
    require_plain(manifest, where)
    return manifest


def _unreadable(where: str, error: Exception) -> BundleError:
    return BundleError(
        f"{where} cannot be read",
        got=error,
        expected="the manifest that 'vggdeploy build' wrote",
        fix="build the bundle again",
    )


def load_json(content: bytes) -> Any:
    """JSON as its standard has it: no NaN, no infinity.

    Raises:
        ValueError, RecursionError: when it is none.
    """
    return json.loads(content, parse_float=_finite, parse_constant=_finite)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no JSON")
    return number


def spelling(manifest: Mapping[str, Any]) -> str:
    """A manifest as it is written, to the byte: digests do not see how JSON is spelt."""
    return json.dumps(manifest, indent=1, allow_nan=False)


def files(manifest: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Every file of a bundle but its manifest and its signatures: ``sha256`` and ``size``, by name,
    that of tuning last."""
    return {**manifest["files"], **(manifest.get(TUNED) or {}).get("files", {})}


def require_plain(manifest: Mapping[str, Any], where: str) -> None:
    """Make sure that what a manifest says can be relied on, whoever wrote it.

    Args:
        manifest: the whole of it.
        where: what errors call it.

    Raises:
        BundleError: when a part is of another form, a file is not plainly named or too large, or
            one that is read has no digest.
    """

    def refuse(what: str, got: object, expected: str, fix: str = AGAIN) -> BundleError:
        return BundleError(f"{where}: {what}", got=got, expected=expected, fix=fix)

    if wrong := forms.misfit(manifest, _FORM):
        raise refuse("a part of it is wrong", wrong, "what 'vggdeploy build' writes")
    if (tuned := manifest.get(TUNED)) and [*tuned["files"]] != [TABLE]:
        # No signature covers what tuning adds: it must not stand in for what was built.
        raise refuse("tuning has other files", ", ".join(tuned["files"]) or "none", TABLE)
    held = files(manifest)
    if len(held) > limits.BUNDLE_FILES:
        raise refuse("there are too many files", len(held), f"{limits.BUNDLE_FILES} at most")
    if len({name.casefold() for name in held}) < len(held):
        raise refuse("two files differ in capitals alone", ", ".join(held), "other names")
    for name in manifest["files"]:
        if not _NAME.fullmatch(name) or name.casefold() in (MANIFEST, SIGNATURES, TABLE):
            raise refuse(
                f"{name!r} is no file of a build", "another kind of name", "plain names of its own"
            )
    for name, said in held.items():
        most = limits.JSON_BYTES if name.endswith(".json") else limits.BUNDLE_BYTES
        if said["size"] > (most := _MOST_BYTES.get(name, most)):
            raise refuse(
                f"{name} is too large", f"{said['size']:,} bytes", f"{most:,} at most", _SMALLER
            )
    if (total := sum(said["size"] for said in held.values())) > limits.BUNDLE_BYTES:
        raise refuse(
            "its files are too large",
            f"{total:,} bytes",
            f"{limits.BUNDLE_BYTES:,} at most",
            _SMALLER,
        )
    for name in (*(manifest["engine"] or [GRAPH]), PROBES, LAYERS):
        if name not in manifest["files"]:
            raise refuse(
                f"has no digest of {name}",
                f"those of {', '.join(manifest['files']) or 'no file'}",
                "a digest of every file that is read",
            )


def self_digest(manifest: Mapping[str, Any]) -> str:
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


@dataclass(frozen=True)
class Listed:
    """A file that a manifest lists, and what there is of it.

    Attributes:
        size: in bytes, as listed.
        sha256: as listed.
        state: ``whole``, ``altered``, ``missing``, ``link`` or ``unreadable``.
        got: what there is of it, in words; empty where it is whole.
    """

    name: str
    size: int
    sha256: str
    state: str = "whole"
    got: str = ""

    def compared(self, size: int, sha256: str | None) -> Listed:
        """It, beside the size and the digest of what there is."""
        if (size, sha256) == (self.size, self.sha256):
            return self
        other = " of another digest" if size == self.size else ""
        return replace(self, state="altered", got=f"{size:,} bytes{other}")

    def require(self, where: str) -> None:
        """Make sure that it is whole.

        Args:
            where: what errors call the bundle.

        Raises:
            BundleError: when it is not.
        """
        if self.state != "whole":
            raise BundleError(
                f"{where}: {self.name} {_STATES[self.state]}",
                got=self.got,
                expected=f"{self.size:,} bytes with SHA-256 {self.sha256[:16]}...",
                fix="do not use this bundle" if self.state == "link" else AGAIN,
            )


_STATES = {
    "altered": "has been altered",
    "missing": "is missing",
    "link": "points outside of it",
    "unreadable": "cannot be read",
}


def listed(manifest: Mapping[str, Any]) -> list[Listed]:
    """Every file that a manifest lists, as if it were whole."""
    return [Listed(name, said["size"], said["sha256"]) for name, said in files(manifest).items()]


def examine(path: Path, manifest: Mapping[str, Any]) -> list[Listed]:
    """What there is of every file that the manifest of the bundle at `path` lists. Only what has the
    listed size is hashed.

    Raises:
        BundleError: when a file cannot be read to its end.
    """
    seen = [_looked_at(path / each.name, each) for each in listed(manifest)]
    sized = [path / each.name for each in seen if each.state == "whole"]
    try:
        found = digests.sha256_files(sized)
    except OSError as error:
        raise BundleError(
            f"bundle {path} cannot be read",
            got=error,
            expected="files that can be read to their end",
            fix=AGAIN,
        ) from error
    return [
        each.compared(each.size, found[path / each.name]) if each.state == "whole" else each
        for each in seen
    ]


def _looked_at(file: Path, said: Listed) -> Listed:
    """What is wrong with a file as far as that shows without hashing it."""
    try:
        if file.is_symlink():
            return replace(said, state="link", got="a symbolic link")
        if not file.is_file():
            return replace(
                said, state="missing", got="no plain file" if file.exists() else "no such file"
            )
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
    except OSError as error:
        return replace(said, state="unreadable", got=str(error))
    return said if size == said.size else said.compared(size, None)
