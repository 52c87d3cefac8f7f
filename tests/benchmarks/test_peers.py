"""The comparison: who takes part, what is judged, the table, the result; and all of it for real on
a network of a few layers."""

from __future__ import annotations

import io
import itertools
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from rich.console import Console

from vggdeploy import cli, results, sources
from vggdeploy.benchmarks import children, judging, peers, rows
from vggdeploy.benchmarks.children import Outcome
from vggdeploy.benchmarks.rows import Row
from vggdeploy.cache import Cache, Entry
from vggdeploy.contracts import Runner, TensorSpec
from vggdeploy.dataset import scan
from vggdeploy.errors import ConfigError
from vggdeploy.preprocess import PRESETS
from vggdeploy.terminal import Terminal

if TYPE_CHECKING:
    from pathlib import Path

ROWS = [
    Row(
        "ov-int8", 64, 31.25, 12.5, 1_990_000_000, 138_660_000, (0.25, 0.5, 0.75), (), 30.66, 0.99,
        12.04, 0.875,
    ),
    Row("tensorrt-dialect", 64, sqnr_db=26.4, agreement=0.97),
    Row("nncf", 64, 20.0, 15.0, 10**9, 138_600_000, (0.5, 0.5, 0.5), (), 26.9, 0.98, 26.8, 0.98),
    Row("ort-entropy", 24, 48.0, None, 10**10, 138_500_000, (0.5,), (0.125,), 26.9, 0.98, 12.0, 0.5,
        ("Relu_1",), "24 images: memory"),
    Row("ort-minmax", note="failed: out of memory"),
]  # fmt: skip


def shown(width: int, saturates: bool = False) -> str:
    console = Console(width=width, record=True, force_terminal=True, file=io.StringIO())
    rows.show(Terminal(console), ROWS, 50, saturates)
    return console.export_text()


@pytest.mark.parametrize("width", [80, 100, 140])
def test_every_figure_is_shown_whole(width: int) -> None:
    text = shown(width)
    lines = text.splitlines()
    table = [line for line in lines if line.startswith(tuple(row.name + " " for row in ROWS))]
    assert len(table) == len(ROWS) * (1 if width >= 92 else 2)
    assert max(map(len, table)) <= width
    ours = " ".join(line for line in table if line.startswith("ov-int8")).split()
    for figure in ("64", "31.2", "12.5", "1.99", "138.7", "500.0", "30.66", "12.04", "0.9900", "0.8750"):  # fmt: skip
        assert figure in ours
    assert "125.0" in " ".join(line for line in table if line.startswith("ort-entropy"))
    assert "ort-minmax: failed: out of memory" in text
    assert "ort-entropy: 24 images: memory" in text
    assert "50 images that none was calibrated on" in text
    assert "ort-entropy: executes FakeQuantize by itself: 1" in text


def test_saturation_is_said_where_it_is() -> None:
    assert "no VNNI" in shown(120, saturates=True)
    assert "no VNNI" not in shown(120)


def test_ratio_is_of_medians_and_of_pairs() -> None:
    (said,) = rows.ratios(ROWS)
    assert said == "latency of ov-int8 / nncf: 1.000 (median of 3 pairs 1.000)"
    slow = replace(ROWS[0], samples_s=(0.25, 0.75, 1.0))
    assert rows.ratios([slow, ROWS[2]])[0].endswith("1.500 (median of 3 pairs 1.500)")
    assert rows.ratios(ROWS[:2]) == []


def test_a_row_in_json() -> None:
    said = ROWS[3].to_json()
    assert {
        "name", "seconds", "collect_seconds", "peak_bytes", "engine_bytes", "samples_s", "median_s",
        "sqnr_db", "agreement", "sqnr_db_here", "images", "note",
    } <= set(said)  # fmt: skip
    assert said["median_s"] == 0.5
    assert said["own_median_s"] == 0.125
    assert ROWS[4].to_json()["median_s"] is None
    assert json.loads(json.dumps(said, allow_nan=False))["requantized"] == ["Relu_1"]


def test_a_failed_child_is_a_row() -> None:
    row = rows.first_row("nncf", Outcome(error="it fell"))
    assert row == Row("nncf", note="failed: it fell")
    assert row.failed
    assert not rows.first_row("nncf", Outcome(note="fine")).failed


@pytest.mark.parametrize(
    ("only", "target", "foreign", "names"),
    [
        ("", None, False, list(peers.COMPETITORS)),
        ("", None, True, [name for name in peers.COMPETITORS if name != "ov-int8-w4"]),
        ("ort-minmax, nncf", None, True, ["nncf", "ort-minmax"]),
        ("ov-int8-w4", None, True, ["ov-int8-w4"]),
        ("ov-int8-w4,nncf", "ov-int8-w4", False, ["ov-int8-w4", "nncf"]),
    ],
)
def test_who_takes_part(only: str, target: str | None, foreign: bool, names: list[str]) -> None:
    assert peers.chosen(only, target, foreign) == names


@pytest.mark.parametrize(
    ("only", "target", "flag"),
    [("nobody", None, "--only"), ("nncf,", None, "--only"), ("", "torch-fp32", "--target"),
     ("ov-int8-w4", "ov-int8", "--only")],
)  # fmt: skip
def test_who_is_unknown(only: str, target: str | None, flag: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown {flag}"):
        peers.chosen(only, target, False)


def test_judged_as_defined_and_as_it_runs_here(
    digits_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    reference = np.array([[[3.0], [4.0]], [[4.0], [3.0]]], np.float32)  # features of two images
    np.save(tmp_path / sources.SCORES, reference)
    entry = Entry(tmp_path, "", cached=True)
    monkeypatch.setattr(sources, "scores", lambda *arguments: entry)
    asked: list[tuple[str, str]] = []

    def scores(target: Any, graph: Path, *others: Any) -> Any:
        asked.append((target.name, graph.name))
        flat = reference.reshape(2, 2)
        # An error of 0.5 in 5 is 20 dB; the other way round is another largest output.
        return flat + np.eye(2) / 2 if target.name == "ov-fp32" else flat[:, ::-1]

    monkeypatch.setattr(judging, "scores", scores)
    source = sources.Source(None, tmp_path, "", PRESETS["unit"])
    judge = peers.Judge(source, scan(digits_folder), Cache(tmp_path), Terminal())
    made = Outcome("model.onnx", "model.xml")
    row = judge.judge(Row("ov-int8-w4"), made)
    assert asked == [("ov-fp32", "model.onnx"), ("ov-int8-w4", "model.xml")]
    assert (row.sqnr_db, row.agreement) == (pytest.approx(20), 1.0)
    assert (row.sqnr_db_here, row.agreement_here) == (pytest.approx(10 * np.log10(12.5)), 0.0)
    judge.judge(Row("ort-minmax"), replace(made, engine="model.onnx"))
    assert asked[3] == ("ov-int8", "model.onnx")
    graph_alone = judge.judge(Row("tensorrt-dialect"), replace(made, engine=""))
    assert len(asked) == 5
    assert (graph_alone.sqnr_db, graph_alone.sqnr_db_here) == (pytest.approx(20), None)


class Told(Runner):
    """Writes down that it was asked."""

    def __init__(self, name: str, into: list[str]) -> None:
        super().__init__()
        self.name = name
        self.input = TensorSpec("image", (1, 2))
        self.outputs = (TensorSpec("scores", (1, 2)),)
        self._into = into

    def _start(self) -> None: ...

    def _stop(self) -> None: ...

    def _infer(self, batch: Any) -> Any:
        self._into.append(self.name)
        return {"scores": batch}


def test_engines_take_turns_and_each_follows_each() -> None:
    asked: list[str] = []
    runners = [Told(name, asked) for name in "abc"]
    for runner in runners:
        runner.__enter__()
    samples = judging.interleave(runners, np.zeros((1, 2), np.float32), 13)
    assert [len(times) for times in samples] == [13, 13, 13]
    turns = ["".join(asked[start : start + 3]) for start in range(0, len(asked), 3)]
    assert len(turns) == 13 + judging.WARMUP
    assert all(sorted(turn) == list("abc") for turn in turns)
    assert {turn[0] for turn in turns} == set("abc")
    followed = {a + b for turn in turns for a, b in itertools.pairwise(turn)}
    assert followed == {a + b for a in "abc" for b in "abc" if a != b}
    assert judging.interleave([], np.zeros((1, 2), np.float32), 3) == []


def run(*flags: str) -> int:
    return cli.main(list(flags), program=peers.app)


def test_for_real(foreign: list[str], digits_folder: Path, tmp_path: Path) -> None:
    for package in ("openvino", "nncf", "onnxruntime"):
        pytest.importorskip(package)
    out = tmp_path / "peers.json"
    flags = ("--calib-data", str(digits_folder), "--calib-images", "12", "--images", "16")
    flags = (*flags, "--ort-images", "5", "--runs", "3", "--json", str(out))
    only = ("--only", "ov-int8,tensorrt-dialect,nncf,ort-minmax,ort-entropy")
    assert run(*foreign, *flags, *only) == 0
    said = results.read(out)
    assert (said["kind"], said["judged_images"], said["calibration_images"]) == ("peers", 16, 12)
    assert said["system"]["peers"]["nncf"]
    found = {row["name"]: row for row in said["rows"]}
    assert list(found) == only[1].split(",")
    for name, row in found.items():
        assert not row["note"].startswith("failed"), row
        # Eight bits of a few layers, random weights: far from the float network's own 144 dB.
        assert 20 < row["sqnr_db"] < 60
        assert row["agreement"] >= 0.75
        if name == "tensorrt-dialect":
            assert row["sqnr_db_here"] is row["seconds"] is row["median_s"] is None
            continue
        assert row["sqnr_db_here"] > 5
        assert 0 < row["seconds"] < 120
        assert 50e6 < row["peak_bytes"] < 3e9
        # A byte a weight: 26,824 of them, then scales, biases and the graph.
        assert 26_000 < row["engine_bytes"] < 250_000
        assert len(row["samples_s"]) == 3
        assert bool(row["own_samples_s"]) == name.startswith("ort")
    assert found["ov-int8"]["sqnr_db"] > found["nncf"]["sqnr_db"]
    assert found["ort-entropy"]["images"] == 5
    assert "5 images" in found["ort-entropy"]["note"]
    assert {found[name]["images"] for name in found if name != "ort-entropy"} == {12}
    for name in ("ov-int8", "nncf"):
        assert 0 < found[name]["collect_seconds"] < found[name]["seconds"]


def test_one_that_fails_is_a_row_and_all_that_fail_an_exit_code(
    foreign: list[str], digits_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    own = children.spawn

    def spawn(job: children.Job, cache: Path) -> Outcome:
        return Outcome(error="it fell") if job.name == "nncf" else own(job, cache)

    monkeypatch.setattr(children, "spawn", spawn)
    monkeypatch.setattr(peers.competitors, "require", lambda name: None)
    flags = (*foreign, "--calib-data", str(digits_folder), "--calib-images", "4", "--images", "4")
    one, both = tmp_path / "one.json", tmp_path / "both.json"
    assert run(*flags, "--runs", "1", "--only", "nncf", "--json", str(one)) == 1
    assert run(*flags, "--runs", "1", "--only", "nncf,ov-int8", "--json", str(both)) == 0
    assert results.read(one)["rows"][0]["note"] == "failed: it fell"
    (fell, stands) = sorted(results.read(both)["rows"], key=lambda row: row["name"])
    assert fell["note"] == "failed: it fell"
    assert stands["sqnr_db"] > 20


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--only", "nobody"], 2, "unknown --only: got 'nobody'"),
        (["--cpu-isa", "z80"], 2, "unknown CPU: got 'z80'"),
        (["--model", "x.onnx", "--weights", "y.pth"], 2, "does not go with --model"),
    ],
)
def test_user_errors_are_a_line(
    flags: list[str], code: int, said: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers.competitors, "require", lambda name: None)
    assert run(*flags) == code
    printed = capsys.readouterr().err
    assert said in printed
    assert "Traceback" not in printed


def test_what_is_missing_is_said_before_any_work(
    foreign: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from vggdeploy import errors

    monkeypatch.setattr(
        errors.importlib.util, "find_spec", lambda name: None if name == "nncf" else object()
    )
    assert run(*foreign, "--only", "nncf") == 3
    assert "vggdeploy[openvino,peers]" in capsys.readouterr().err
