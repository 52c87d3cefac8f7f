"""What tuning found, in the bundle: written whole, guarded by a digest, used on its machine alone."""

from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from vggdeploy import atomic, bundle, digests, tuning
from vggdeploy.contracts import Settings
from vggdeploy.errors import BundleError, ConfigError
from vggdeploy.manifest import WRITTEN, spelling, tuned_digest
from vggdeploy.tuning import Choice, Place

if TYPE_CHECKING:
    from pathlib import Path

HERE = Place("CPU", "Some CPU", 8)
CHOICE = Choice("latency", 1, Settings(1, 4, False), HERE, "openvino 1.2")
RUN = {"goal": "latency", "tried": [{"batch": 1}]}


@pytest.fixture
def opened(tiny_bundle: Path, tmp_path: Path) -> Any:
    shutil.copytree(tiny_bundle, tmp_path / "tiny")
    return bundle.open_bundle(tmp_path / "tiny")


def manifest(path: Path) -> Any:
    return json.loads((path / "manifest.json").read_text())


def test_a_choice_is_kept_and_the_bundle_is_the_same(opened: Any, folder_contents: Any) -> None:
    before = folder_contents(opened.path)
    made = tuning.record(opened, CHOICE, RUN)
    after = folder_contents(opened.path)
    assert set(after) == {*before, "tuned.json"}
    assert {name for name in before if before[name] != after[name]} == {"manifest.json"}
    assert json.loads(after["tuned.json"]) == {"schema": 1, "runs": [RUN]}
    assert tuning.choices(made) == [CHOICE]
    assert made.manifest["digest"] == opened.manifest["digest"]
    kept = {key: value for key, value in made.manifest.items() if key != "tuned"}
    assert kept == opened.manifest
    assert tuning.choices(opened) == []
    # Nothing is left beside it.
    assert [each.name for each in opened.path.parent.iterdir()] == ["tiny"]


def test_choices_of_other_goals_and_places_stay(opened: Any) -> None:
    other = replace(CHOICE, place=replace(HERE, cores=4), batch=1)
    many = replace(CHOICE, goal="throughput", batch=8, bound_s=0.5)
    again = replace(CHOICE, settings=Settings(1, 2, True))
    for number, each in enumerate((CHOICE, other, many, again)):
        opened = tuning.record(opened, each, {"number": number})
    assert tuning.choices(opened) == [again, other, many]
    runs = json.loads((opened.path / "tuned.json").read_text())["runs"]
    assert [run["number"] for run in runs] == [3, 1, 2]


@pytest.mark.parametrize("first", ["tunes", "replaces"])
def test_what_another_process_does_meanwhile_comes_after_it(
    opened: Any, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(CHOICE, goal="throughput")
    link, meanwhile = tuning._link, []

    def tune() -> None:
        tuning.record(opened, other, RUN)

    def replace_it() -> None:
        with atomic.folder(opened.path, replace=True) as work:
            (work / "new.txt").write_text("whole")

    def slow(source: Path, copy: Path) -> None:
        if not meanwhile:
            meanwhile.append(pool.submit(tune if first == "tunes" else replace_it))
            wait(meanwhile, timeout=0.3)
        link(source, copy)

    monkeypatch.setattr(tuning, "_link", slow)
    with ThreadPoolExecutor() as pool:
        tuning.record(opened, CHOICE, RUN)
    meanwhile[0].result()
    if first == "tunes":
        assert tuning.choices(bundle.open_bundle(opened.path)) == [CHOICE, other]
    else:
        assert [each.name for each in opened.path.iterdir()] == ["new.txt"]


def test_a_bundle_that_was_opened_before_is_no_obstacle(opened: Any) -> None:
    """Two goals are tuned one after the other, from one look at the bundle."""
    tuning.record(opened, CHOICE, RUN)
    made = tuning.record(opened, replace(CHOICE, goal="throughput"), RUN)
    assert [each.goal for each in tuning.choices(made)] == ["latency", "throughput"]


def test_it_verifies_afterwards(opened: Any) -> None:
    pytest.importorskip("openvino")
    from vggdeploy import verification

    before = verification.verify(opened.path)
    tuning.record(opened, CHOICE, RUN)
    after = verification.verify(opened.path)
    assert after["digest"] == before["digest"]
    assert after["parity"] == before["parity"]


@pytest.mark.parametrize("damage", ["table", "choice", "digest", "no table", "transplanted"])
def test_damage_is_found(opened: Any, damage: str, tmp_path: Path) -> None:
    made = tuning.record(opened, CHOICE, RUN)
    path, said = made.path, manifest(made.path)
    if damage == "table":
        (path / "tuned.json").write_text((path / "tuned.json").read_text().replace("1", "2", 1))
    elif damage == "no table":
        (path / "tuned.json").unlink()
    elif damage == "choice":
        said["tuned"]["choices"][0]["settings"]["threads"] = 64
    elif damage == "digest":
        said["tuned"]["digest"] = "0" * 64
    else:
        said["tuned"]["digest"] = tuned_digest("another", said["tuned"])
    (path / "manifest.json").write_text(spelling(said))
    with pytest.raises(BundleError, match=r"altered|missing"):
        bundle.open_bundle(path)


def test_the_digest_of_what_was_built_still_covers_the_rest(opened: Any) -> None:
    made = tuning.record(opened, CHOICE, RUN)
    said = manifest(made.path)
    said["precision"] = "fp32"
    (made.path / "manifest.json").write_text(spelling(said))
    with pytest.raises(BundleError, match="altered"):
        bundle.open_bundle(made.path)


def test_a_bundle_of_an_older_version_opens(opened: Any) -> None:
    said = manifest(opened.path)
    assert "tuned" not in said
    own = digests.sha256_json({key: value for key, value in said.items() if key != "digest"})
    assert said["digest"] == own


def test_what_a_link_points_to_is_replaced(opened: Any, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(opened.path, target_is_directory=True)
    tuning.record(bundle.open_bundle(link), CHOICE, RUN)
    assert link.is_symlink()
    assert tuning.choices(bundle.open_bundle(opened.path)) == [CHOICE]


def test_a_replaced_bundle_is_left_alone(opened: Any) -> None:
    said = manifest(opened.path)
    said["precision"] = "fp32"
    said["digest"] = digests.sha256_json({k: v for k, v in said.items() if k != "digest"})
    (opened.path / "manifest.json").write_text(spelling(said))
    with pytest.raises(BundleError, match="replaced in the meantime"):
        tuning.record(opened, CHOICE, RUN)
    assert "tuned" not in manifest(opened.path)


def test_a_failure_on_the_way_leaves_it_whole(
    opened: Any, folder_contents: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = folder_contents(opened.path)

    def full(source: Path, copy: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tuning.os, "link", full)
    monkeypatch.setattr(tuning.shutil, "copyfile", full)
    with pytest.raises(Exception, match="no space left"):
        tuning.record(opened, CHOICE, RUN)
    assert folder_contents(opened.path) == before
    assert [each.name for each in opened.path.parent.iterdir()] == ["tiny"]


def test_large_files_are_linked_and_copied_where_that_fails(
    opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    inode = (opened.path / "model.bin").stat().st_ino
    tuning.record(opened, CHOICE, RUN)
    assert (opened.path / "model.bin").stat().st_ino == inode

    def refused(source: Path, copy: Path) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    tuning.record(opened, CHOICE, RUN)
    assert (opened.path / "model.bin").stat().st_ino != inode
    bundle.open_bundle(opened.path)


def test_a_place_that_cannot_be_written_is_said_before(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        atomic.require_writable(tmp_path / "file" / "bundle")
    atomic.require_writable(tmp_path / "bundle")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_what_is_compiled_anew_has_not_been_tuned(opened: Any, tmp_path: Path) -> None:
    made = tuning.record(opened, CHOICE, RUN)
    kept = {key: value for key, value in made.manifest.items() if key not in WRITTEN}

    def fill(work: Path) -> None:
        for name in made.manifest["files"]:
            shutil.copyfile(made.path / name, work / name)

    again = bundle.write(tmp_path / "again", kept, fill, replace=False)
    assert tuning.choices(again) == []


def forged(path: Path, table: Any) -> None:
    """Put another table into a tuned bundle, with digests that hold: nobody's key is asked for it."""
    (path / "tuned.json").write_text(json.dumps(table))
    said = manifest(path)
    said["tuned"]["files"]["tuned.json"] = {
        "sha256": digests.sha256_file(path / "tuned.json"),
        "size": (path / "tuned.json").stat().st_size,
    }
    said["tuned"]["digest"] = tuned_digest(said["digest"], said["tuned"])
    (path / "manifest.json").write_text(spelling(said))


@pytest.mark.parametrize("table", [{}, [], None, {"runs": 3}, {"runs": [3]}, {"runs": []}])
def test_a_table_of_another_form_is_refused(opened: Any, table: Any) -> None:
    made = tuning.record(opened, CHOICE, RUN)
    forged(made.path, table)
    again = bundle.open_bundle(made.path)
    with pytest.raises(BundleError, match=r"tuned\.json"):
        tuning.record(again, CHOICE, RUN)


def test_a_bundle_that_says_it_was_not_tuned_is_tuned(opened: Any) -> None:
    (opened.path / "manifest.json").write_text(spelling({**manifest(opened.path), "tuned": None}))
    made = tuning.record(bundle.open_bundle(opened.path), CHOICE, RUN)
    assert tuning.choices(made) == [CHOICE]


class TestChoosing:
    @pytest.fixture
    def made(self, opened: Any) -> Any:
        return tuning.record(opened, CHOICE, RUN)

    def test_here_it_is_used(self, made: Any) -> None:
        assert tuning.choose(made, "latency", HERE, "openvino 1.2") == (CHOICE, ())
        assert tuning.choose(made, "latency", HERE, "openvino 1.2", 1) == (CHOICE, ())

    def test_another_goal_or_device_is_not_its_business(self, made: Any) -> None:
        assert tuning.choose(made, "throughput", HERE, "openvino 1.2") == (None, ())
        gpu = replace(HERE, device="GPU")
        assert tuning.choose(made, "latency", gpu, "openvino 1.2") == (None, ())

    @pytest.mark.parametrize(
        "there", [{"cpu": "Other CPU"}, {"cores": 4}, {"accelerator": "Some GPU"}]
    )
    def test_another_machine_is_said(self, made: Any, there: dict[str, Any]) -> None:
        found, (caution,) = tuning.choose(made, "latency", replace(HERE, **there), "openvino 1.2")
        assert found is None
        assert "tuned for latency on another machine (Some CPU, 8 cores) than this one" in caution
        assert str(next(iter(there.values()))) in caution
        assert f"vggdeploy tune {made.path} --goal latency" in caution

    def test_another_batch_is_said(self, made: Any) -> None:
        found, (caution,) = tuning.choose(made, "latency", HERE, "openvino 1.2", 4)
        assert found is None
        assert "at batch 1, not 4" in caution

    def test_another_version_is_said_and_the_choice_used(self, made: Any) -> None:
        found, (caution,) = tuning.choose(made, "latency", HERE, "openvino 2.0")
        assert found == CHOICE
        assert caution == "tuned with openvino 1.2, and this is openvino 2.0: tune it again"

    def test_choices_of_another_version_are_named(self, made: Any) -> None:
        said = manifest(made.path)
        said["tuned"]["choices"][0]["colour"] = "red"
        said["tuned"]["digest"] = tuned_digest(said["digest"], said["tuned"])
        (made.path / "manifest.json").write_text(spelling(said))
        with pytest.raises(BundleError, match=r"tuned by another version.*colour"):
            tuning.choices(bundle.open_bundle(made.path))


def test_a_place_is_said_by_its_machine() -> None:
    system = {"cpu": "Some CPU", "cores": 8, "memory_bytes": 1}
    assert tuning.place("CPU", system, {}) == HERE
    with_gpu = tuning.place("CUDA:0", system, {"name": "Some GPU"})
    assert str(with_gpu) == "Some CPU, 8 cores, Some GPU"
