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

from vggdeploy import atomic, forms, gates, results
from vggdeploy.errors import ConfigError, ResultError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    Result = dict[str, Any]

KIND = "baseline"
KINDS = ("verify", "bench")
"""Of the results that it holds of a target, at most one each."""

_ENTRY = {"digest": str, "results": [{"kind": lambda kind: kind in KINDS}]}


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
    if not isinstance(found.get("history"), list):
        raise _damaged(path, "no history")
    for target, entry in targets.items():
        if (wrong := forms.misfit(entry, _ENTRY)) is not None:
            raise _damaged(path, f"targets.{target}: {wrong}")
        for result in entry["results"]:
            if (result.get("target"), result.get("digest")) != (target, entry["digest"]):
                raise _damaged(path, f"targets.{target}: a {result['kind']} of another bundle")
    return found


def _damaged(path: Path, got: str) -> ResultError:
    return ResultError(
        f"baseline {path} is damaged",
        got=got,
        expected="what 'vggdeploy baseline' wrote",
        fix="take it from version control, or remove it and run 'vggdeploy baseline'",
    )


def results_of(path: Path, target: str) -> list[Result] | None:
    """The results of a target in a baseline; None where it has none.

    Raises:
        ResultError: when the file is no baseline.
    """
    entry = read(path)["targets"].get(target)
    return None if entry is None else list(entry["results"])


def update(path: Path, paths: Sequence[Path], reason: str) -> dict[str, Any]:
    """Put results in the place of what a baseline holds of their target, and say why. What it holds
    of the same bundle and another kind stays.

    Args:
        path: of the baseline, which need not be there yet.
        paths: results of ``verify``, ``bench`` or ``run`` of one bundle.
        reason: why these are what later results are held against.

    Returns:
        what was written, with ``target``, ``path``, ``replaced`` (the digest before, or None) and
        ``dropped`` (the kinds of results that it held of another bundle and no longer has).

    Raises:
        ConfigError: without a reason.
        ResultError: for results that have no figures, of several bundles, or that a gate would not
            pass: interrupted, unstable, or of other images than were asked for.
    """
    if not reason.strip():
        raise ConfigError(
            "a baseline needs a reason",
            got="none",
            expected="why these results are what others are held against",
            fix="give --reason 'why'",
        )
    given = gates.by_kind([results.read(each) for each in paths])
    kept = [given[kind] for kind in KINDS if kind in given]
    if not kept:
        raise ResultError(
            "there is nothing to hold others against",
            got=f"results of {', '.join(given) or 'no kind'}",
            expected="results of verify or bench, or of run",
            fix="give one",
        )
    for expected, doubt in _doubts(given):
        raise ResultError(
            "the results are none to hold others against",
            got=doubt,
            expected=expected,
            fix="verify or measure again, and give that result",
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
    entry = {
        "digest": digests.pop(),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "reason": " ".join(reason.split()),
    }
    # What another update of the file writes meanwhile must not be lost.
    with atomic.alone(path):
        said: dict[str, Any] = read(path) if path.exists() else {"targets": {}, "history": []}
        held = said["targets"].get(target, {})
        before = held.get("digest")
        others = [
            result
            for result in held.get("results", ())
            if result["kind"] not in {each["kind"] for each in kept}
        ]
        # Of the same bundle they go on; of another one they say nothing of this.
        stay = others if before == entry["digest"] else []
        every = sorted([*kept, *stay], key=lambda result: KINDS.index(result["kind"]))
        targets = {**said["targets"], target: {**entry, "results": every}}
        written = {
            "kind": KIND,
            "schema": results.SCHEMA,
            "targets": dict(sorted(targets.items())),
            "history": [*said["history"], {"target": target, **entry}],
        }
        atomic.write_text(path, json.dumps(written, indent=1) + "\n")
    return {
        "kind": "baseline-update",
        "path": str(path),
        "target": target,
        "replaced": before,
        "dropped": [] if stay else [result["kind"] for result in others],
        **entry,
    }


def _doubts(given: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """What a gate trusts, and what of these results is not that."""
    bench, verify = given.get("bench", {}), given.get("verify", {})
    if bench.get("partial"):
        yield "a whole measurement", "one that was interrupted"
    if reasons := bench.get("unstable_because"):
        first = reasons[0] if isinstance(reasons, list) else reasons
        yield "a stable measurement", f"an unstable one: {first}"
    if note := verify.get("note"):
        yield "a verification of what it was asked to judge", str(note)
