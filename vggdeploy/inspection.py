"""What a bundle says of itself, shown without running, parsing or deserializing an engine.

A packed bundle is read where it lies: its files are hashed as they are inflated, and nothing is
written.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from vggdeploy import bundle, digests, limits, packing, signing
from vggdeploy.calib import CalibrationTable
from vggdeploy.contracts import Silent
from vggdeploy.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from vggdeploy.contracts import Reporter
    from vggdeploy.packing import Packed

_SHOWN = (
    "target", "precision", "portable", "digest", "compiled_from", "model", "input", "output",
    "preprocess", "engine", "recipe", "build", "device", "tool", "host",
)  # fmt: skip
"""Parts of a manifest that are shown as they are; None where a bundle has none."""

_SOURCE = ("images", "seed", "precision", "images_sha256", "trt_cache", "sparsity")
"""What is shown of what a calibration table was made from; its model and preprocessing are the
bundle's."""


def inspect(
    path: Path, *, trusted: Path | None = None, reporter: Reporter | None = None
) -> dict[str, Any]:
    """What there is to know of a bundle.

    Args:
        path: its folder, or the file that it is packed into.
        trusted: public keys, which its signatures are held against.
        reporter: told the progress.

    Returns:
        the manifest's own parts, with ``path``, ``packed``, ``bytes`` (as it lies), ``files``
        (``name``, ``size``, ``sha256`` and ``state``: ``whole``, ``altered`` or ``missing``),
        ``whole`` (whether all are), ``signatures`` (``key`` and ``holds``, None where its key is
        not among the `trusted`), ``trusted`` (whether one of them signed it; None where none were
        given), ``calibration`` (None where there is none), ``kept`` (layers in high precision for a
        bound on the drop) and ``tuned`` (what it was tuned to).

    Raises:
        BundleError: when it is no bundle, or its manifest was altered.
        ConfigError, MissingError: as `signing.trusted_keys`.
    """
    reporter = reporter or Silent()
    manifest: Mapping[str, Any]
    if path.is_dir():
        manifest, signatures = bundle.read_manifest(path), bundle.signatures(path)
        states = _states(path, manifest)
        table = path / bundle.CALIBRATION
        content = (
            limits.read(table, limits.JSON_BYTES)
            if states.get(bundle.CALIBRATION) == "whole"
            else None
        )
        size = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    else:
        with packing.opened(path) as packed:
            manifest, signatures = packed.manifest, packed.signatures
            states, content = _packed_states(packed, reporter)
        size = path.stat().st_size
    where = f"bundle {path}"
    keys = signing.trusted_keys(trusted) if trusted is not None else {}
    digest = str(manifest["digest"])
    signed = [
        {"key": each.key, "holds": signing.holds(each, digest, keys) if keys else None}
        for each in signing.parse(signatures, where)
    ]
    return {
        "kind": "inspect",
        "path": str(path),
        "packed": not path.is_dir(),
        "bytes": size,
        **{key: manifest.get(key) for key in _SHOWN},
        "files": [
            {"name": name, **said, "state": states[name]}
            for name, said in sorted(bundle.files(manifest).items())
        ],
        "whole": set(states.values()) <= {"whole"},
        "signatures": signed,
        "trusted": any(each["holds"] for each in signed) if keys else None,
        "calibration": _calibration(content, f"{where}: {bundle.CALIBRATION}"),
        "kept": manifest["build"].get("kept") or [],
        "tuned": (manifest.get(bundle.TUNED) or {}).get("choices", []),
    }


def require(result: Mapping[str, Any]) -> None:
    """Refuse a bundle that is not whole, or not signed by a trusted key where there are any.

    Args:
        result: as `inspect` gave it.

    Raises:
        BundleError: naming the first file.
    """
    for file in result["files"]:
        if file["state"] != "whole":
            raise BundleError(
                f"bundle {result['path']}: {file['name']} is {file['state']}",
                got=f"{file['name']}, {file['state']}",
                expected="every file as its manifest lists it",
                fix="build it again, or copy it again",
            )
    if result["trusted"] is False:
        wrong = any(each["holds"] is False for each in result["signatures"])
        raise BundleError(
            f"bundle {result['path']} is "
            + ("signed wrongly" if wrong else "signed by no trusted key"),
            got=", ".join(f"{each['key'][:16]}..." for each in result["signatures"])
            or "no signature",
            expected="a signature of its digest by a trusted key",
            fix="do not use it; get a signed bundle from its builder",
        )


def _states(path: Path, manifest: Mapping[str, Any]) -> dict[str, str]:
    listed = bundle.files(manifest)
    there = [
        path / name for name in listed if (path / name).is_file() and not (path / name).is_symlink()
    ]
    found = digests.sha256_files(there)
    states = {}
    for name, said in listed.items():
        sha256 = found.get(path / name)
        states[name] = (
            "missing" if sha256 is None else "whole" if sha256 == said["sha256"] else "altered"
        )
    return states


def _packed_states(packed: Packed, reporter: Reporter) -> tuple[dict[str, str], bytes | None]:
    """The state of each file of a packed bundle, and the content of its calibration table."""
    states, table = {}, None
    for name, said in bundle.files(packed.manifest).items():
        digest, held = hashlib.sha256(), b""
        for piece in packed.pieces(name, reporter, "reading"):
            digest.update(piece)
            if name == bundle.CALIBRATION:
                held += piece
        whole = digest.hexdigest() == said["sha256"]
        states[name] = "whole" if whole else "altered"
        if whole and name == bundle.CALIBRATION:
            table = held
    return states, table


def _calibration(content: bytes | None, where: str) -> dict[str, Any] | None:
    if content is None:
        return None
    table = CalibrationTable.parse(content, where)
    said = {key: table.source[key] for key in _SOURCE if key in table.source}
    return {"method": table.method, "tensors": len(table.tensors), **said}
