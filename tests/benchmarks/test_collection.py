"""Collection at several image counts, beside NNCF."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vggdeploy import cli, results
from vggdeploy.benchmarks import collection
from vggdeploy.benchmarks.children import Outcome
from vggdeploy.benchmarks.collection import Measured
from vggdeploy.dataset import scan
from vggdeploy.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["64,256,512"], [64, 256, 512]),
        (["64", "256"], [64, 256]),
        (["8,", "9"], [8, 9]),
        (["64", "8", "64"], [64, 8]),
    ],
)
def test_counts(words: list[str], found: list[int]) -> None:
    assert collection.counts(words) == found


@pytest.mark.parametrize("words", [[""], ["0"], ["-3"], ["8", "many"], ["1.5"]])
def test_no_counts(words: list[str]) -> None:
    with pytest.raises(ConfigError, match="--images"):
        collection.counts(words)


def test_images_are_repeated_in_turn(digits_folder: Path, tmp_path: Path) -> None:
    few = scan(digits_folder).choose(3, seed=0)
    collection.repeated(few, 7, tmp_path / "many")
    many = scan(tmp_path / "many")
    assert [sample.path.resolve() for sample in many.samples] == [
        few.samples[index % 3].path.resolve() for index in range(7)
    ]


def test_a_row_in_the_table_and_in_json() -> None:
    row = Measured(
        64,
        Outcome(collect_seconds=12.25, seconds=13.0, peak_bytes=1_500_000_000),
        Outcome(error="it fell"),
    )
    assert collection.cells(row) == ("64", "12.2", "1.50", "", "", "")
    said = row.to_json()
    assert said["ours"]["collect_seconds"] == 12.25
    assert said["nncf"]["note"] == "failed: it fell"


def test_for_real(foreign: list[str], digits_folder: Path, tmp_path: Path) -> None:
    for package in ("openvino", "nncf"):
        pytest.importorskip(package)
    out = tmp_path / "collection.json"
    flags = [*foreign, "--calib-data", str(digits_folder), "--json", str(out)]
    # There are 48 images: of 60, twelve come twice.
    assert cli.main(["--images", "8", "60", *flags], program=collection.app) == 0
    rows = results.read(out)["rows"]
    assert [row["images"] for row in rows] == [8, 60]
    for row in rows:
        for made in (row["ours"], row["nncf"]):
            assert made["note"] == ""
            assert 0 < made["collect_seconds"] <= made["seconds"] < 60
            assert 30e6 < made["peak_bytes"] < 3e9
