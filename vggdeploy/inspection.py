"""What a bundle says of itself, shown without running, parsing or deserializing an engine.

A packed bundle is read where it lies: its files are hashed as they are inflated, and nothing is
written.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vggdeploy import bundle, limits, packing, signing, tuning
from vggdeploy.calib import CalibrationTable
from vggdeploy.contracts import Silent
from vggdeploy.errors import BundleError
from vggdeploy.manifest import CALIBRATION, Listed, examine, listed, read_manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
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
        (``name``, ``size`` and ``sha256`` as listed, ``state``: ``whole``, ``altered``,
        ``missing``, ``link`` or ``unreadable``, and ``got``, what there is in words), ``whole``
        (whether all are), ``signatures`` (``key`` and ``holds``, None where its key is not among
        the `trusted`), ``keys`` (ids of the `trusted`), ``trusted`` (whether one of them signed it;
        None where none were given), ``calibration`` (None where there is none), ``kept`` (layers in
        high precision for a bound on the drop) and ``tuned`` (what it was tuned to).

    Raises:
        BundleError: when it is no bundle, or its manifest was altered.
        CalibrationError: when its calibration is none.
        ConfigError, MissingError: as `signing.trusted_keys`.
    """
    reporter = reporter or Silent()
    manifest: Mapping[str, Any]
    if path.is_dir():
        manifest, signatures = read_manifest(path), bundle.signatures(path)
        seen, content, size = _lying(path, manifest)
    else:
        with packing.opened(path) as packed:
            manifest, signatures = packed.manifest, packed.signatures
            seen, content = _packed(packed, reporter)
        size = path.stat().st_size
    where = f"bundle {path}"
    keys = signing.trusted_keys(trusted) if trusted is not None else {}
    signed = signing.held(signatures, manifest["digest"], keys, where)
    return {
        "kind": "inspect",
        "path": str(path),
        "packed": not path.is_dir(),
        "bytes": size,
        **{key: manifest.get(key) for key in _SHOWN},
        "files": [asdict(each) for each in sorted(seen, key=lambda each: each.name)],
        "whole": all(each.state == "whole" for each in seen),
        "signatures": [{"key": key, "holds": holds} for key, holds in signed.items()],
        "keys": sorted(keys),
        "trusted": any(signed.values()) if keys else None,
        "calibration": _calibration(content, f"{where}: {CALIBRATION}"),
        "kept": manifest["build"].get("kept") or [],
        "tuned": [asdict(each) for each in tuning.choices(bundle.Bundle(path, manifest))],
    }


def require(result: Mapping[str, Any]) -> None:
    """Refuse a bundle that is not whole, or not signed by a trusted key where there are any.

    Args:
        result: as `inspect` gave it.

    Raises:
        BundleError: naming the first file.
    """
    where = f"bundle {result['path']}"
    for file in result["files"]:
        Listed(**file).require(where)
    if result["keys"]:
        said = {each["key"]: each["holds"] for each in result["signatures"]}
        signing.require_held(said, result["keys"], result, where)


def _lying(path: Path, manifest: Mapping[str, Any]) -> tuple[list[Listed], bytes | None, int]:
    """What there is of each file of a bundle's folder, the content of its calibration table, and the
    size of the folder."""
    seen = examine(path, manifest)
    whole = any(each.name == CALIBRATION and each.state == "whole" for each in seen)
    try:
        content = limits.read(path / CALIBRATION, limits.JSON_BYTES) if whole else None
        size = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    except (OSError, limits.OverLimitError) as error:
        raise BundleError(
            f"bundle {path} cannot be read",
            got=error,
            expected="a folder whose files can be read",
            fix="check its permissions",
        ) from error
    return seen, content, size


def _packed(packed: Packed, reporter: Reporter) -> tuple[list[Listed], bytes | None]:
    """What there is of each file of a packed bundle, and the content of its calibration table."""
    seen, table = [], bytearray()
    for each in listed(packed.manifest):
        write: Callable[[bytes], object] = table.extend if each.name == CALIBRATION else len
        seen.append(packed.copy(each, write, reporter, "reading"))
    whole = any(each.name == CALIBRATION and each.state == "whole" for each in seen)
    return seen, bytes(table) if whole else None


def _calibration(content: bytes | None, where: str) -> dict[str, Any] | None:
    if content is None:
        return None
    table = CalibrationTable.parse(content, where)
    said = {key: table.source[key] for key in _SOURCE if key in table.source}
    return {"method": table.method, "tensors": len(table.tensors), **said}
