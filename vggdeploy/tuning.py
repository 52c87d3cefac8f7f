"""What tuning found, in the bundle: the settings that are used, and the table of what was tried.

::

    manifest.json    "tuned": {"choices": [...], "files": {"tuned.json": ...}, "digest": ...}
    tuned.json       of each choice the run that it came from, as ``tune --json`` gives it

A choice is for one goal, on one device of one machine; a bundle that goes to several machines can be
tuned on each. The manifest's own digest stays what it was, since an engine computes the same however
it is run: what was verified before tuning is of the same bundle as what is measured after it, and
what was signed stays signed. The digest of ``tuned`` covers the rest.
"""

from __future__ import annotations

import json
import os
import shutil
import typing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from vggdeploy import atomic, bundle, digests
from vggdeploy.contracts import Settings
from vggdeploy.errors import BundleError
from vggdeploy.manifest import (
    MANIFEST,
    SCHEMA,
    SIGNATURES,
    TABLE,
    TUNED,
    spelling,
    tuned_digest,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from vggdeploy.bundle import Bundle


@dataclass(frozen=True)
class Place:
    """Where something was tuned: what its settings depend on.

    Attributes:
        device: the backend's own name, as ``--device`` takes it.
        cpu: model name.
        cores: CPUs that the process may run on.
        accelerator: name of the GPU, where the target asks its driver; empty elsewhere.
    """

    device: str
    cpu: str
    cores: int
    accelerator: str = ""

    def __str__(self) -> str:
        return ", ".join(filter(None, (self.cpu, f"{self.cores} cores", self.accelerator)))


def place(device: str, system: Mapping[str, Any], facts: Mapping[str, Any]) -> Place:
    """This place.

    Args:
        device: the backend's own name.
        system: as `machine.system` says it.
        facts: as `Target.device_facts` says them.
    """
    return Place(device, str(system["cpu"]), int(system["cores"]), str(facts.get("name") or ""))


@dataclass(frozen=True)
class Choice:
    """What tuning chose.

    Attributes:
        goal: ``latency`` or ``throughput``.
        batch: images a query.
        place: where.
        backend: the version that it was tuned with.
        bound_s: on the 99th percentile of latency; None without one.
    """

    goal: str
    batch: int
    settings: Settings
    place: Place
    backend: str
    bound_s: float | None = None


def choices(opened: Bundle) -> list[Choice]:
    """What a bundle was tuned to; nothing when it was not.

    Raises:
        BundleError: when it is not what this version writes.
    """
    said = (opened.manifest.get(TUNED) or {}).get("choices", [])
    try:
        return [
            _typed(Choice(**{**each, "settings": _typed(Settings(**each["settings"])),
                             "place": _typed(Place(**each["place"]))}))
            for each in said
        ]  # fmt: skip
    except (TypeError, KeyError) as error:
        raise BundleError(
            f"bundle {opened.path} was tuned by another version",
            got=error,
            expected="choices that this version writes",
            fix="tune it again with this version",
        ) from error


_Part = TypeVar("_Part", Choice, Settings, Place)


def _typed(part: _Part) -> _Part:
    """`part`, its fields known to be of the types that they are declared with.

    Raises:
        TypeError: naming the first that is not.
    """
    for name, kind in typing.get_type_hints(type(part)).items():
        value = getattr(part, name)
        # A bool is an int to isinstance, and an int does for a float.
        kinds = typing.get_args(kind) or (kind,)
        if type(value) not in kinds and not (float in kinds and type(value) is int):
            raise TypeError(f"{name} {value!r}"[:80])
    return part


def choose(
    opened: Bundle, goal: str, here: Place, backend: str, batch: int | None = None
) -> tuple[Choice | None, tuple[str, ...]]:
    """The choice to use here, and what to know about it.

    Args:
        goal: ``latency`` or ``throughput``.
        here: this place.
        backend: the version that is installed.
        batch: images a query, where that is asked for; a choice for another is not used.
    """
    of_goal = [
        each for each in choices(opened) if each.goal == goal and each.place.device == here.device
    ]
    found = next((each for each in of_goal if each.place == here), None)
    again = f"'vggdeploy tune {opened.path} --goal {goal}' tunes it for this one"
    if found is None:
        cautions = [
            f"tuned for {goal} on another machine ({each.place}) than this one ({here}): the "
            f"backend's own settings are used; {again}"
            for each in of_goal[:1]
        ]
        return None, tuple(cautions)
    if batch not in (None, found.batch):
        return None, (
            f"tuned for {goal} at batch {found.batch}, not {batch}: the backend's own settings are "
            "used",
        )
    if found.backend != backend:
        return found, (f"tuned with {found.backend}, and this is {backend}: tune it again",)
    return found, ()


def record(opened: Bundle, choice: Choice, run: Mapping[str, Any]) -> Bundle:
    """Put a choice and its run into the bundle, in the place of those of its goal and place.

    The folder is written anew beside itself and renamed, so it is never half there, while no other
    process can replace it; its large files are linked, not copied, where the file system can.

    Raises:
        BundleError: when the bundle was replaced in the meantime, or its runs cannot be read.
        ConfigError: when the place cannot be written.
    """
    path = opened.path.resolve()  # what a link points to is replaced, not the link
    with atomic.successor(path) as work:
        now = bundle.require_unchanged(bundle.Bundle(path, opened.manifest))
        kept = bundle.Bundle(path, now)
        known = {_key(each): asdict(each) for each in choices(kept)}
        runs = _runs(kept)
        known[_key(choice)], runs[_key(choice)] = asdict(choice), dict(run)
        signed = (path / SIGNATURES).is_file()
        for name in (*now["files"], *([SIGNATURES] if signed else [])):
            _link(path / name, work / name)
        table = {"schema": SCHEMA, "runs": [runs[key] for key in known if key in runs]}
        (work / TABLE).write_text(json.dumps(table, indent=1, allow_nan=False))
        tuned: dict[str, Any] = {
            "choices": list(known.values()),
            "files": {
                TABLE: {
                    "sha256": digests.sha256_file(work / TABLE),
                    "size": (work / TABLE).stat().st_size,
                }
            },
        }
        tuned["digest"] = tuned_digest(now["digest"], tuned)
        manifest = {**now, TUNED: tuned}
        (work / MANIFEST).write_text(spelling(manifest), encoding="utf-8")
    return bundle.Bundle(path, manifest)


def _key(choice: Choice) -> tuple[str, Place]:
    return choice.goal, choice.place


def _runs(opened: Bundle) -> dict[tuple[str, Place], dict[str, Any]]:
    """The runs that `opened`'s choices came from.

    Raises:
        BundleError: when there is not one for each choice.
    """
    found = choices(opened)
    if not found:
        return {}
    runs = opened.read_json(TABLE, {"runs": [dict]})["runs"]
    if len(runs) != len(found):
        raise BundleError(
            f"bundle {opened.path} was tuned by another version",
            got=f"{len(runs)} runs in {TABLE}",
            expected=f"one for each of {len(found)} choices",
            fix="build or compile it again, and tune that",
        )
    return dict(zip(map(_key, found), runs, strict=True))


def _link(source: Path, copy: Path) -> None:
    try:
        os.link(source, copy)
    except OSError:  # a file system without links
        shutil.copyfile(source, copy)
