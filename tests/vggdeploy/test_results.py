"""Result files: versioned, whole, never over another."""

import itertools
import json
import math

import pytest
from small_bundle import FACTS, fill

from vggdeploy import bundle, gates, results
from vggdeploy.benchmarks import comparison
from vggdeploy.errors import ConfigError, ResultError


def test_a_result_is_read_back(tmp_path):
    path = tmp_path / "r.json"
    results.write({"kind": "bench", "latency_s": {"p50": 0.1}}, str(path))
    assert results.read(path) == {"schema": 1, "kind": "bench", "latency_s": {"p50": 0.1}}
    assert path.read_text().endswith("}\n")
    assert [file.name for file in tmp_path.iterdir()] == ["r.json"]


def test_a_dash_is_standard_output_and_nothing_else_goes_there(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    results.refuse_overwrite("-", force=False)
    results.write({"kind": "budget"}, "-")
    assert json.loads(capsys.readouterr().out) == {"schema": 1, "kind": "budget"}
    results.refuse_overwrite(None, force=False)
    results.write({"kind": "budget"}, None)
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_json_is_never_written(tmp_path):
    path = tmp_path / "r.json"
    with pytest.raises(ValueError, match="JSON"):
        results.write({"kind": "verify", "sqnr_db": float("inf")}, str(path))
    assert list(tmp_path.iterdir()) == []


def test_another_result_is_not_written_over(tmp_path):
    path = tmp_path / "r.json"
    path.write_text("dear")
    with pytest.raises(
        ConfigError, match=r"r\.json exists: got a file, expected a free path -- give --force"
    ):
        results.refuse_overwrite(str(path), force=False)
    results.refuse_overwrite(str(path), force=True)
    assert path.read_text() == "dear"


def test_a_place_that_cannot_be_written_is_said_before_the_work(tmp_path):
    results.refuse_overwrite(str(tmp_path / "r.json"), force=False)
    assert list(tmp_path.iterdir()) == [], "asking leaves nothing behind"
    with pytest.raises(ConfigError, match=r"cannot be written: got no folder .*nowhere"):
        results.refuse_overwrite(str(tmp_path / "nowhere" / "r.json"), force=False)
    with pytest.raises(ConfigError, match="cannot be written: got a folder"):
        results.refuse_overwrite(str(tmp_path), force=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        results.refuse_overwrite(str(tmp_path / "file" / "r.json"), force=False)


def test_a_result_is_not_written_over_what_the_command_makes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"--json and --out are one file: got same\.json"):
        results.refuse_overwrite("same.json", force=True, out=tmp_path / "same.json")
    results.refuse_overwrite("same.json", force=False, out=tmp_path / "other.json")


def test_a_relative_path_is_taken_from_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results.refuse_overwrite("r.json", force=False)
    results.write({"kind": "gate"}, "r.json")
    assert results.read(tmp_path / "r.json")["kind"] == "gate"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be read"),
        (b"{", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"[]", "is no result"),
        (b"3", "is no result"),
        (b"{}", "is no result"),
        (b'{"schema": 1}', "is no result"),
        (b'{"kind": "bench"}', "of another schema: got nothing, expected 1"),
        (b'{"kind": "bench", "schema": 2}', "of another schema: got 2, expected 1"),
    ],
)
def test_a_file_of_anything_else_is_refused(tmp_path, content, said):
    path = tmp_path / "r.json"
    path.write_bytes(content)
    with pytest.raises(ResultError, match=said):
        results.read(path)


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ResultError, match=r"r\.json does not exist"):
        results.read(tmp_path / "r.json")
    with pytest.raises(ResultError, match="cannot be read"):
        results.read(tmp_path)


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"samples_s": [0.1, -1]}, r"samples_s\[1\] -1"),
        ({"samples_s": [1e308]}, r"samples_s\[0\] 1e\+308"),
        ({"samples_s": [10**400]}, r"samples_s\[0\] 10+"),
        ({"samples_s": [True]}, r"samples_s\[0\] True"),
        ({"samples_s": 0.1}, "samples_s 0.1"),
        ({"parity": {"n": -1}}, "parity.n -1"),
        ({"parity": {"n": True}}, "parity.n True"),
        ({"parity": {"sqnr_ci95": [1]}}, r"parity.sqnr_ci95 \[1\]"),
        ({"parity": {"sqnr_ci95": [80, 10]}}, r"parity.sqnr_ci95 \[80, 10\]"),
        ({"parity": {"sqnr_ci95": [1, math.inf]}}, r"parity.sqnr_ci95 \[1, inf\]"),
        ({"accuracy": {"n": 1e308}}, r"accuracy.n 1e\+308"),
    ],
)
def test_what_cannot_be_is_judged_by_nobody(changes, wrong):
    kind = "bench" if "samples_s" in changes else "verify"
    with pytest.raises(ResultError, match=f"a result of {kind} is wrong: got {wrong}"):
        gates.by_kind([{"kind": kind, **changes}])
    if kind == "bench":
        with pytest.raises(ResultError, match=f"the first result is wrong: got {wrong}"):
            comparison.compare({"kind": kind, **changes}, {"kind": kind, "samples_s": [0.1]})


def test_what_was_not_judged_can_be():
    for result in ({}, {"samples_s": []}, {"samples_s": [1e-6, 3]}, {"accuracy": None}):
        results.require_possible(result, "it")


@pytest.mark.parametrize("name", ["manifest.json", "signature.json", "model.xml", "probes.npz"])
def test_a_result_takes_the_place_of_no_file_of_a_bundle(tmp_path, name):
    bundle.write(tmp_path / "small", FACTS, fill, replace=False)
    (tmp_path / "linked").symlink_to("small")
    for folder, force in itertools.product(("small", "linked"), (False, True)):
        said = rf"--junit is a file of bundle .*small: got .*{name}"
        with pytest.raises(ConfigError, match=said):
            results.refuse_overwrite(str(tmp_path / folder / name), force, flag="--junit")
    bundle.open_bundle(tmp_path / "small")
    # Beside those there is room, and what is no bundle has names of its own.
    results.refuse_overwrite(str(tmp_path / "small" / "verify.json"), force=True)
    (tmp_path / "manifest.json").write_text("{}")
    results.refuse_overwrite(str(tmp_path / "manifest.json"), force=True)
