"""What accidents leave: killed, refused or damaged at any write, nothing half-written is taken for
whole, and the next run makes it good.

A stage is made to fail alone: in the cache is all that a build needs but its entry. Each test goes
through every write point of a stage (see `doomed`), of which a first run gives the list.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from doomed import Doomed

from vggdeploy import digests

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytest.importorskip("openvino")
pytest.importorskip("onnx")
if not hasattr(os, "fork"):
    pytest.skip("jobs are forked", allow_module_level=True)

STAGES = {
    "ov-int8": ("export", "collect", "calibrate", "round", "quantize", "compile", "reference"),
    "trt-int8": ("prune", "pixels"),
    "trt-fp16": ("half",),
}
"""By the target of the build that has them; none is there twice."""

OPTIONS: dict[str, dict[str, Any]] = {
    "ov-int8": {},
    "trt-int8": {"portable": True, "sparsity": "2:4", "input_format": "uint8-nhwc"},
    "trt-fp16": {"portable": True},
}

AT_ONCE = 4
"""Jobs that run side by side."""

MAKING = ("open", "os.mkdir", "os.rename", "os.link")
"""Write points that take space."""

RANDOM = re.compile(r"(?<=~)[0-9a-f]{16}|(?<=\.data\.)\w{8}")
"""Parts of names, of ours and of onnx-ir's."""

PLACES = ("bundle", "graph", "table.json", "table.cache", "result.json")


@dataclass(frozen=True)
class Case:
    """A job and what is there before it.

    Attributes:
        name: of the test.
        job: a function of `doomed`.
        missing: what the cache and the place lack of what the job leaves.
        arguments: of the job.
        before: jobs that come first, and their arguments.
    """

    name: str
    job: str
    missing: tuple[str, ...]
    arguments: dict[str, Any] = field(default_factory=dict)
    before: tuple[tuple[str, dict[str, Any]], ...] = ()

    def __str__(self) -> str:
        return self.name


def _cases() -> Iterator[Case]:
    for target, stages in STAGES.items():
        arguments = {"target": target, **OPTIONS[target]}
        for stage in stages:
            yield Case(stage, "build", (f"cache/{stage}",), arguments)
    plain = {"target": "ov-int8"}
    yield Case("bundle", "build", ("place",), plain)
    other = {**plain, "method": "minmax"}
    both = (("build", other), ("build", plain))  # their stages are in the cache
    yield Case("bundle in place of another", "build", (), other, both)
    yield Case("exported graph", "export", ("place",))
    yield Case("table", "calibrate", ("place",))
    both = (("calibrate", {"seed": 1}), ("calibrate", {}))
    yield Case("table in place of another", "calibrate", (), {"seed": 1}, both)
    tuned = (("build", plain), ("record", {"goal": "latency"}))
    yield Case("tuning", "record", (), {"goal": "throughput"}, tuned)
    yield Case("result", "result", (), {"text": "new"}, (("result", {"text": "old" * 5000}),))


CASES = list(_cases())


@pytest.fixture(scope="module")
def doomed() -> Iterator[Doomed]:
    with Doomed() as process:
        yield process


@pytest.fixture(scope="module")
def network(
    small_graph: Callable[..., Any], digits_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Options that every job of a network takes."""
    import onnx

    folder = tmp_path_factory.mktemp("small")
    onnx.save(small_graph(), folder / "small.onnx")
    (folder / "small.toml").write_text('size = [32, 32]\nresize = "stretch"\n')
    (folder / "images").mkdir()
    for file in sorted(digits_folder.rglob("*.png"))[:8]:
        shutil.copy(file, folder / "images")
    return {
        "model": str(folder / "small.onnx"),
        "preprocess": str(folder / "small.toml"),
        "calib_data": str(folder / "images"),
        "calib_images": 4,
        "calib_precision": "fp32",
    }


class Scene:
    """A case's folder before the job, and what the job is known to leave there."""

    def __init__(self, case: Case, doomed: Doomed, network: dict[str, Any], folder: Path) -> None:
        self.case, self.doomed, self.network, self.folder = case, doomed, network, folder
        self.before, self.after = folder / "before", folder / "after"
        (self.before / "place").mkdir(parents=True)
        for job, arguments in case.before:
            self._do(job, self.before, arguments)
        shutil.copytree(self.before, self.after)
        self.made = self._do(case.job, self.after, case.arguments)
        if case.missing:
            shutil.rmtree(self.before)
            shutil.copytree(self.after, self.before)
        for part in case.missing:
            shutil.rmtree(self.before / part)
        (self.before / "place").mkdir(exist_ok=True)
        self.healed: set[str] = set()
        (reply,) = self.attempt([{}])
        self.points: list[str] = reply["points"]

    def _do(self, job: str, root: Path, arguments: dict[str, Any]) -> Any:
        (reply,) = self.doomed.run([self._request(job, root, arguments)])
        assert "made" in reply, reply
        return reply["made"]

    def _request(self, job: str, root: Path, arguments: dict[str, Any]) -> dict[str, Any]:
        whole = {**self.network, **arguments} if job not in ("record", "result") else arguments
        return {"job": job, "root": str(root), "arguments": whole}

    def again(self, root: Path) -> dict[str, Any]:
        """The job in `root`, as `Doomed.run` takes it."""
        return self._request(self.case.job, root, self.case.arguments)

    def copy(self, number: int) -> Path:
        """A fresh copy of the folder."""
        root = self.folder / f"root{number}"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(self.before, root)
        return root

    def attempt(self, hows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The job once for each of `hows`, each in a copy of the folder; and what they replied,
        with the ``litter`` that was left.

        What is left of each is checked to be whole, and to be made good by the next run.
        """
        replies: list[dict[str, Any]] = []
        for first in range(0, len(hows), AT_ONCE):
            part = hows[first : first + AT_ONCE]
            roots = [self.copy(number) for number in range(len(part))]
            pairs = zip(roots, part, strict=True)
            said = self.doomed.run([{**self.again(root), **how} for root, how in pairs])
            replies += [
                {**reply, "litter": litter(root)} for root, reply in zip(roots, said, strict=True)
            ]
            for root, how in zip(roots, part, strict=True):
                self._require_whole(root, how)
            self.require_healing(roots)
        return replies

    def _require_whole(self, root: Path, how: dict[str, Any]) -> None:
        """What is under a final name is whole: the old one or the new one."""
        for entry in root.glob("cache/*/[!.]*"):
            whole = self.after / entry.relative_to(root)
            assert contents(entry) == contents(whole), f"{how}: {entry} is taken and is not whole"
        for name in PLACES:
            found = contents(root / "place" / name)
            either = [contents(each / "place" / name) for each in (self.before, self.after)]
            assert found in either, f"{how}: {name} is half-written"

    def require_healing(self, roots: list[Path]) -> None:
        """The next run leaves what it should, and nothing else."""
        new = {state: root for root in roots if (state := state_of(root)) not in self.healed}
        for root, reply in zip(
            new.values(), self.doomed.run([self.again(root) for root in new.values()]), strict=True
        ):
            assert reply.get("made", {}).get("digest") == self.made.get("digest"), reply
            self._require_whole(root, {})
            for name in PLACES:
                assert contents(root / "place" / name) == contents(self.after / "place" / name)
            assert litter(root) == []
        self.healed |= new.keys()


def state_of(root: Path) -> str:
    """A digest of a folder, whatever the random parts of its names are."""
    return digests.sha256_json(
        sorted(
            [
                RANDOM.sub("", str(file.relative_to(root))),
                file.is_file() and digests.sha256_file(file),
            ]
            for file in root.rglob("*")
        )
    )


def contents(place: Path) -> dict[str, bytes] | None:
    """Every file at a place; None where there is nothing."""
    if place.is_dir():
        return {file.name: file.read_bytes() for file in place.iterdir()}
    return {place.name: place.read_bytes()} if place.exists() else None


def litter(root: Path) -> list[str]:
    return [str(left) for left in root.rglob("*") if left.suffix in (".partial", ".old")]


@pytest.fixture(scope="module", params=CASES, ids=str)
def scene(
    request: pytest.FixtureRequest,
    doomed: Doomed,
    network: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Scene:
    return Scene(request.param, doomed, network, tmp_path_factory.mktemp("scene"))


def test_every_stage_is_among_the_cases(scene: Scene) -> None:
    """A stage that is new has to be put among them."""
    assert scene.points
    if scene.case.job == "build":
        known = {stage for stages in STAGES.values() for stage in stages}
        assert set(scene.made["stages"]) <= {*known, "bundle"}
    for part in scene.case.missing:
        assert any(point.split(" ")[1].startswith(part) for point in scene.points)


def test_killed_at_any_write(scene: Scene) -> None:
    hows = [
        {"fault": fault, "at": at}
        for at, before in enumerate(["", *scene.points[:-1]], start=1)
        for fault in ("killed", "torn")
        # Between two points is what the first of them opened, or a library wrote.
        if fault == "killed" or before.startswith(("open", "os.mkdir"))
    ]
    for how, reply in zip(hows, scene.attempt(hows), strict=True):
        assert reply.get("signal") == signal.SIGKILL, (how, reply)


def test_full_disk_at_any_write(scene: Scene) -> None:
    making = [at for at, point in enumerate(scene.points, start=1) if point.startswith(MAKING)]
    hows = [{"fault": "full", "at": at} for at in making]
    for how, reply in zip(hows, scene.attempt(hows), strict=True):
        require_no_space(reply, how)


def test_full_disk_in_the_midst_of_any_file(scene: Scene) -> None:
    """No file may grow beyond a limit: whoever writes gets a part of it onto the disk."""
    there = {file.relative_to(scene.before) for file in scene.before.rglob("*")}
    sizes = {
        file.stat().st_size
        for file in scene.after.rglob("*")
        if file.is_file() and file.relative_to(scene.after) not in there
    }
    limits = sorted({0, *(size - 1 for size in sizes)})
    hows = [{"limit": limit} for limit in limits]
    for how, reply in zip(hows, scene.attempt(hows), strict=True):
        require_no_space(reply, how)


def require_no_space(reply: dict[str, Any], how: dict[str, Any]) -> None:
    assert "bug" not in reply, f"{how}: {reply['bug']}"
    assert (reply.get("error"), reply.get("exit_code")) == ("MissingError", 3), (how, reply)
    assert "no space left" in reply["said"]
    assert "\n" not in reply["said"]
    assert reply["litter"] == []


def test_a_place_that_cannot_be_written(scene: Scene) -> None:
    """Refused at the first write, and by the modes of every folder."""
    for folder in (scene.before, *scene.before.rglob("*")):
        if folder.is_dir():
            folder.chmod(0o555)
    try:
        (reply,) = scene.doomed.run([{**scene.again(scene.before), "bare": True}])
    finally:
        for folder in (scene.before, *scene.before.rglob("*")):
            if folder.is_dir():
                folder.chmod(0o755)
    for said in (reply, *scene.attempt([{"fault": "denied", "at": 1}])):
        assert "bug" not in said, said["bug"]
        assert (said.get("error"), said.get("exit_code")) == ("ConfigError", 2), said
        assert "cannot be written" in said["said"]


@pytest.fixture(scope="module")
def built(
    doomed: Doomed, network: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Scene:
    """A bundle that is whole, with its cache."""
    case = Case("built", "build", ("place",), {"target": "ov-int8"})
    return Scene(case, doomed, network, tmp_path_factory.mktemp("built"))


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def emptied(content: bytes) -> bytes:
    return b""


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [cut, emptied, flipped])
def test_a_damaged_file_of_the_cache_is_made_anew(
    built: Scene, damage: Callable[[bytes], bytes]
) -> None:
    files = [file for file in sorted(built.before.rglob("cache/*/*/*")) if file.is_file()]
    assert len(files) >= 16
    for first in range(0, len(files), AT_ONCE):
        roots = []
        for file in files[first : first + AT_ONCE]:
            roots.append(built.copy(len(roots)))
            victim = roots[-1] / file.relative_to(built.before)
            victim.write_bytes(damage(victim.read_bytes()))
        built.require_healing(roots)


@pytest.mark.parametrize("moved", [-60 * 365 * 86400, 60 * 365 * 86400])
def test_the_clock_was_moved(built: Scene, moved: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a build ran, and between two of them; files are of before 1970, or of a time to come."""
    (reply,) = built.attempt([{"clock": moved}])
    assert "made" in reply, reply
    times = {file: file.stat() for file in built.before.rglob("*")}
    for file in times:
        os.utime(file, (max(times[file].st_mtime + moved, -(2**31)),) * 2)
    try:
        built.healed.clear()
        (reply,) = built.attempt([{}])
        assert reply["made"]["stages"] == ["bundle"], "the cache is as good as ever"
    finally:
        for file, seen in times.items():
            os.utime(file, ns=(seen.st_atime_ns, seen.st_mtime_ns))


@pytest.mark.parametrize("there", ["nothing", "another", "damaged"])
def test_builds_of_one_bundle_at_once(built: Scene, there: str) -> None:
    root = built.folder / "shared"
    shutil.rmtree(root, ignore_errors=True)
    (root / "place").mkdir(parents=True)
    again = built.again(root)
    if there != "nothing":
        other = {**again["arguments"], **({"method": "minmax"} if there == "another" else {})}
        built.doomed.run([{**again, "arguments": other}])
        if there == "damaged":
            file = root / "place/bundle/model.bin"
            file.write_bytes(flipped(file.read_bytes()))
    for reply in built.doomed.run([again] * 6):
        assert reply.get("made", {}).get("digest") == built.made["digest"], reply
    assert contents(root / "place/bundle") == contents(built.after / "place/bundle")
    assert litter(root) == []
