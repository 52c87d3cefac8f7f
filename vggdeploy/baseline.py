"""The baseline: results that a gate takes ratios to, in one committed file, with why they are there.

::

    {"kind": "baseline", "schema": 1,
     "targets": {"ov-int8": {"digest", "date", "reason", "results": [...]}},
     "history": [{"target", "digest", "date", "reason"}, ...]}

``results`` are those of ``verify`` and ``bench`` as they were, samples and all: an interval of a
ratio needs both sides' samples.
"""

from __future__ import annotations

import datetime
import json
from typing import TYPE_CHECKING, Any

from vggdeploy import atomic, gates, results
from vggdeploy.errors import ConfigError, ResultError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    Result = dict[str, Any]

KIND = "baseline"


def read(path: Path) -> dict[str, Any]:
    """The baseline in a file.

    Raises:
        ResultError: when it is missing, unreadable or no baseline.
    """
    found = results.read(path)
    targets = found.get("targets")
    if found["kind"] != KIND or not isinstance(targets, dict):
        raise ResultError(
            f"{path} is no baseline",
            got=f"a result of kind {found['kind']!r}",
            expected="a file that 'vggdeploy baseline' wrote",
            fix="check the path",
        )
    for target, entry in targets.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("results"), list):
            raise ResultError(
                f"baseline {path} is damaged",
                got=f"no results of {target}",
                expected="results of verify or bench",
                fix="write it again with 'vggdeploy baseline', or take it from version control",
            )
    return found


def results_of(path: Path, target: str) -> list[Result] | None:
    """The results of a target in a baseline; None where it has none.

    Raises:
        ResultError: when the file is no baseline.
    """
    entry = read(path)["targets"].get(target)
    return None if entry is None else list(entry["results"])


def update(path: Path, paths: Sequence[Path], reason: str) -> dict[str, Any]:
    """Put results in the place of what a baseline holds of their target, and say why.

    Args:
        path: of the baseline, which need not be there yet.
        paths: results of ``verify``, ``bench`` or ``run`` of one bundle.
        reason: why these are what later results are held against.

    Returns:
        what was written, with ``target``, ``path`` and ``replaced`` (the digest before, or None).

    Raises:
        ConfigError: without a reason.
        ResultError: for results that have no figures, of several bundles, or that were
            interrupted.
    """
    if not reason.strip():
        raise ConfigError(
            "a baseline needs a reason",
            got="none",
            expected="why these results are what others are held against",
            fix="give --reason 'why'",
        )
    given = gates.by_kind([results.read(each) for each in paths])
    kept = [given[kind] for kind in ("verify", "bench") if kind in given]
    if not kept:
        raise ResultError(
            "there is nothing to hold others against",
            got=f"results of {', '.join(given) or 'no kind'}",
            expected="results of verify or bench, or of run",
            fix="give one",
        )
    if given.get("bench", {}).get("partial"):
        raise ResultError(
            "the measurement was interrupted",
            got="a partial result of bench",
            expected="a whole one to hold others against",
            fix="measure again",
        )
    digests = {str(result.get("digest")) for result in kept}
    target = gates.target_of(kept)
    if len(digests) != 1 or not target:
        raise ResultError(
            "the results are of different bundles",
            got=" and ".join(f"{digest[:16]}..." for digest in sorted(digests)),
            expected="one bundle",
            fix="verify and bench the same bundle",
        )
    said: dict[str, Any] = read(path) if path.exists() else {"kind": KIND, "targets": {}}
    entry = {
        "digest": digests.pop(),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "reason": " ".join(reason.split()),
    }
    before = said["targets"].get(target, {}).get("digest")
    targets = {**said["targets"], target: {**entry, "results": kept}}
    written = {
        "kind": KIND,
        "schema": results.SCHEMA,
        "targets": dict(sorted(targets.items())),
        "history": [*said.get("history", []), {"target": target, **entry}],
    }
    atomic.write_text(path, json.dumps(written, indent=1) + "\n")
    return {
        "kind": "baseline-update",
        "path": str(path),
        "target": target,
        "replaced": before,
        **entry,
    }
