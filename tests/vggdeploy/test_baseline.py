"""The committed baseline: written with a reason, one entry a target, and held against."""

import json
import threading

import pytest
from test_gates import BENCH, VERIFY, changed, slower

from vggdeploy import baseline, results
from vggdeploy.cli import main
from vggdeploy.errors import ConfigError, ResultError


@pytest.fixture
def keep(tmp_path, monkeypatch):
    """Writes results as files, and gives their paths."""
    monkeypatch.chdir(tmp_path)

    def write(*found):
        paths = []
        for number, result in enumerate(found):
            path = tmp_path / f"{number}-{result['kind']}.json"
            results.write(result, str(path))
            paths.append(path)
        return paths

    return write


def test_a_baseline_is_written_and_held_against(keep, tmp_path, capsys):
    out = tmp_path / "baseline.json"
    words = ["baseline", *map(str, keep(VERIFY, BENCH)), "--out", str(out)]
    assert main([*words, "--reason", "the first release"]) == 0
    said = json.loads(out.read_text())
    assert said["targets"]["ov-int8"]["reason"] == "the first release"
    assert [result["kind"] for result in said["targets"]["ov-int8"]["results"]] == [
        "verify",
        "bench",
    ]
    capsys.readouterr()
    for times, code, verdict in ((1.0, 0, "pass"), (1.2, 1, "fail")):
        (now,) = keep(slower(times))
        flags = ["--baseline", str(out), "--max-ratio", "p50=1.05", "--max-ratio", "p99=1.1"]
        assert main(["gate", str(now), *flags, "--json", "-"]) == code
        told = json.loads(capsys.readouterr().out)
        assert told["verdict"] == verdict
        assert [c["name"] for c in told["criteria"]] == ["max_ratio.p50", "max_ratio.p99"]


def test_settings_have_a_baseline_and_ratios_by_target(keep, tmp_path, capsys):
    out = tmp_path / "baseline.json"
    baseline.update(out, keep(BENCH), "first")
    (now,) = keep(slower(1.1))
    for ratio, code in ((1.05, 1), (1.2, 0)):
        (tmp_path / "vggdeploy.toml").write_text(
            f"[gate]\nbaseline = 'baseline.json'\n[gate.max_ratio]\np50 = 1.01\n"
            f"[gate.targets.ov-int8.max_ratio]\np50 = {ratio}\n"
        )
        assert main(["gate", str(now)]) == code


def test_another_target_stays_and_history_grows(keep, tmp_path):
    out = tmp_path / "baseline.json"
    other = {"target": "ov-fp32", "digest": "f" * 64}
    baseline.update(out, keep(BENCH), "first")
    baseline.update(out, keep(changed(VERIFY, **other)), "floats")
    again = baseline.update(out, keep(slower(2)), "a slower kernel,\n  but exact")
    assert again["replaced"] == "d" * 64
    said = json.loads(out.read_text())
    assert list(said["targets"]) == ["ov-fp32", "ov-int8"]
    assert [entry["reason"] for entry in said["history"]] == [
        "first", "floats", "a slower kernel, but exact"
    ]  # fmt: skip
    assert baseline.results_of(out, "ov-int8")[0]["latency_s"]["p50"] == 0.08
    assert baseline.results_of(out, "trt-int8") is None


@pytest.mark.parametrize(
    ("found", "reason", "error", "message"),
    [
        ([BENCH], " ", ConfigError, "needs a reason"),
        ([changed(BENCH, partial=True)], "why", ResultError, "interrupted"),
        ([changed(BENCH, unstable_because=["a busy CPU"])], "why", ResultError, "one: a busy CPU"),
        ([changed(VERIFY, note="the probes were judged")], "why", ResultError, "the probes were"),
        ([{"kind": "build", "digest": "d"}], "why", ResultError, "nothing to hold others against"),
        ([VERIFY, changed(BENCH, digest="e" * 64)], "why", ResultError, "different bundles"),
        ([BENCH, BENCH], "why", ResultError, "two results of kind"),
    ],
)
def test_what_is_no_baseline_is_refused_and_nothing_written(
    keep, tmp_path, found, reason, error, message
):
    out = tmp_path / "baseline.json"
    with pytest.raises(error, match=message):
        baseline.update(out, keep(*found), reason)
    assert not out.exists()


def test_of_the_same_bundle_what_it_held_stays_and_of_another_it_goes(keep, tmp_path, capsys):
    out = tmp_path / "baseline.json"
    baseline.update(out, keep(BENCH, VERIFY), "first")

    def update(result):
        (path,) = keep(result)
        found = baseline.update(out, [path], "again")
        held = baseline.results_of(out, "ov-int8")
        return found["dropped"], [(each["kind"], each["digest"][0]) for each in held]

    assert update(slower(2)) == ([], [("verify", "d"), ("bench", "d")])
    assert update({**VERIFY, "digest": "f" * 64}) == (["bench"], [("verify", "f")])
    (path,) = keep(BENCH)
    assert main(["baseline", str(path), "--out", str(out), "--reason", "x"]) == 0
    assert "its result of verify was of the bundle before" in " ".join(
        capsys.readouterr().err.split()
    )


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"kind": "bench", "schema": 1}',
                '{"kind": "baseline", "schema": 1, "targets": {"ov-int8": {}}, "history": []}',
                '{"kind": "baseline", "schema": 1, "targets": {}, "history": null}',
                '{"kind": "baseline", "schema": 1, "targets": {}}',
                '{"kind": "baseline", "schema": 1, "history": [], '
                '"targets": {"ov-int8": {"results": [], "digest": 5}}}',
                '{"kind": "baseline", "schema": 1, "history": [], "targets": {"ov-int8": {"digest": '
                '"d", "results": [{"kind": "bench", "target": "ov-fp32", "digest": "d"}]}}}',
                '{"kind": "baseline", "schema": 1, "history": [], "targets": {"ov-int8": {"digest": '
                '"d", "results": [{"kind": "bench", "target": "ov-int8", "digest": "e"}]}}}'],
)  # fmt: skip
def test_a_file_that_is_no_baseline_is_an_error(keep, tmp_path, content):
    out = tmp_path / "baseline.json"
    out.write_text(content)
    (now,) = keep(BENCH)
    assert main(["gate", str(now), "--baseline", str(out), "--max-ratio", "p50=2"]) == 2
    with pytest.raises(ResultError):
        baseline.update(out, [now], "why")
    assert out.read_text() == content


def test_two_updates_at_once_lose_nothing(keep, tmp_path, monkeypatch):
    """The second begins when the first has read the file and not yet written it."""
    out = tmp_path / "baseline.json"
    baseline.update(out, keep(BENCH), "first")
    (other,) = keep(changed(VERIFY, target="ov-fp32", digest="f" * 64))
    (again,) = keep(slower(2))
    real = baseline.read
    second = threading.Thread(target=baseline.update, args=(out, [other], "floats"))

    def read(path):
        found = real(path)
        if not second.ident:
            second.start()
            second.join(0.2)
        return found

    monkeypatch.setattr(baseline, "read", read)
    baseline.update(out, [again], "slower")
    second.join()
    said = real(out)
    assert list(said["targets"]) == ["ov-fp32", "ov-int8"]
    assert [entry["reason"] for entry in said["history"]] == ["first", "slower", "floats"]


def test_a_linked_baseline_goes_on_in_the_file_that_it_leads_to(keep, tmp_path):
    (tmp_path / "shared").mkdir()
    link, kept = tmp_path / "baseline.json", tmp_path / "shared" / "baseline.json"
    link.symlink_to(kept)
    baseline.update(link, keep(BENCH), "first")
    baseline.update(kept, keep(slower(2)), "second")
    baseline.update(link, keep(slower(3)), "third")
    assert link.is_symlink()
    said = [entry["reason"] for entry in baseline.read(kept)["history"]]
    assert said == ["first", "second", "third"]
