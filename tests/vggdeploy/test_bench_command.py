"""`vggdeploy bench` as a command: flags, logs, interruption, tables; nothing here looks at speed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from vggdeploy import results
from vggdeploy.cli import main

if TYPE_CHECKING:
    from pathlib import Path

    Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test stands in a folder of its own; probes of the peak are brief."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vggdeploy.benchmarks.peak.SECONDS", 0.01)
    return tmp_path


def run(capsys: Capture, *arguments: str, code: int = 0) -> tuple[dict[str, Any], str]:
    assert main(["bench", *arguments, "--json", "-"]) == code, capsys.readouterr().err
    out, err = capsys.readouterr()
    return json.loads(out), err


def test_precision_queries_and_batches(capsys: Capture, tiny_bundle: Path) -> None:
    result, err = run(
        capsys, str(tiny_bundle), "--precision", "0.5", "--queries", "40", "--seconds", "2",
        "--batches", "1,2",
    )  # fmt: skip
    assert len(result["samples_s"]) >= 40
    assert [row["batch"] for row in result["throughput_by_batch"]] == [1, 2]
    assert result["ci95"]["p50"][0] <= result["latency_s"]["p50"] <= result["ci95"]["p50"][1]
    assert "median latency" in err
    assert "(95%: " in err
    assert all(f"unstable: {reason}" in err for reason in result["unstable_because"])
    assert all(f"try: {command}" in err for command in result["advice"])


@pytest.mark.parametrize(
    ("flags", "batch"),
    [(["--scenario", "throughput", "--batch", "2"], 2), (["--scenario", "multistream"], 8),
     (["--scenario", "server", "--rate", "50"], 1),
     (["--scenario", "server", "--p99-bound", "1"], 1)],
    ids=["throughput", "multistream", "server", "found"],
)  # fmt: skip
def test_scenarios(capsys: Capture, tiny_bundle: Path, flags: list[str], batch: int) -> None:
    result, err = run(capsys, str(tiny_bundle), *flags, "--seconds", "0.2")
    assert (result["scenario"], result["batch"]) == (flags[1], batch)
    assert f"{flags[1]} at batch {batch}" in err
    assert (result["server"] is not None) == (flags[1] == "server")
    assert len(result["started_s"]) == len(result["samples_s"])


def test_mlperf_keeps_its_logs_beside_the_result(
    capsys: Capture, tiny_bundle: Path, elsewhere: Path
) -> None:
    pytest.importorskip("mlperf_loadgen", reason="mlcommons-loadgen is not installed")
    (elsewhere / "out").mkdir()
    arguments = ["bench", str(tiny_bundle), "--mlperf", "--seconds", "0.2", "--json", "out/r.json"]
    assert main(arguments) == 0
    err = capsys.readouterr().err
    result = results.read(elsewhere / "out/r.json")
    assert result["mlperf"]["scenario"] == "SingleStream"
    assert result["mlperf"]["logs"] == "out/r.mlperf"
    assert (elsewhere / "out/r.mlperf/mlperf_log_summary.txt").is_file()
    assert "short: not of a valid length" in err
    assert sorted(file.name for file in elsewhere.iterdir()) == ["out"]
    (elsewhere / "out/r.json").unlink()
    assert main(arguments) == 2
    assert (
        "r.mlperf exists: got a folder with files in it, expected a free path -- give --force"
        in " ".join(capsys.readouterr().err.split())
    )
    assert main([*arguments, "--force"]) == 0


def test_logs_that_cannot_be_written_are_said_before_anything_is_measured(
    capsys: Capture, tiny_bundle: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlperf_loadgen", reason="mlcommons-loadgen is not installed")
    interrupted(monkeypatch, 1)  # a query would end it in another way
    (elsewhere / "file").write_text("")
    assert main(["bench", str(tiny_bundle), "--mlperf", "--logs", "file/logs"]) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--batches", "1,two"], "--batches cannot be read: got 1,two"),
        (["--batches", "0"], "mend --batches"),
        (["--scenario", "offline"], "unknown scenario: got 'offline'"),
        (["--rate", "3"], "--rate is of arrivals"),
        (["--precision", "1"], "the precision is out of range"),
        (["--full"], "--full and --logs are of --mlperf"),
        (["--json", "nowhere/r.json"], "no folder nowhere"),
    ],
)
def test_wrong_flags_are_refused_before_anything_is_opened(
    capsys: Capture, flags: list[str], said: str
) -> None:
    assert main(["bench", "no-bundle", *flags]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def interrupted(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    from vggdeploy.contracts import Runner

    whole, seen = Runner.infer, []

    def infer(self: Any, batch: Any) -> Any:
        seen.append(batch)
        if len(seen) == at:
            raise KeyboardInterrupt
        return whole(self, batch)

    monkeypatch.setattr(Runner, "infer", infer)


def test_ctrl_c_keeps_the_samples_and_exits_with_130(
    capsys: Capture, tiny_bundle: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vggdeploy.benchmarks import warmup

    monkeypatch.setattr(warmup, "MOST_QUERIES", 5)
    interrupted(monkeypatch, 5 + 13)
    assert main(["bench", str(tiny_bundle), "--json", "r.json"]) == 130
    err = " ".join(capsys.readouterr().err.split())
    assert "the measurement was interrupted: got 12 samples, kept in r.json as partial" in err
    assert "partial: it was interrupted, and no gate passes it" in err
    assert "nothing half-written" not in err
    result = results.read(elsewhere / "r.json")
    assert result["partial"] is True
    assert len(result["samples_s"]) == 12
    assert main(["gate", "r.json", "--max-p50", "1000"]) == 1
    assert "verdict: INCONCLUSIVE" in capsys.readouterr().err


def test_ctrl_c_in_the_warm_up_leaves_nothing(
    capsys: Capture, tiny_bundle: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(monkeypatch, 2)
    assert main(["bench", str(tiny_bundle), "--json", "r.json"]) == 130
    assert "nothing half-written was left" in capsys.readouterr().err
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("mlperf", [False, True], ids=["own", "mlperf"])
def test_a_real_signal(tiny_bundle: Path, elsewhere: Path, mlperf: bool) -> None:
    """The process is sent SIGINT in the middle of ten minutes, when its first samples are in."""
    if mlperf:
        pytest.importorskip("mlperf_loadgen", reason="mlcommons-loadgen is not installed")
    program = (
        "import signal, sys\n"
        # What runs in the background is born deaf to it.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from vggdeploy import cli, contracts\n"
        "infer, seen = contracts.Runner.infer, []\n"
        "def told(runner, batch):\n"
        "    seen.append(1)\n"
        "    if len(seen) == 30_000: print('now', flush=True)\n"
        "    return infer(runner, batch)\n"
        "contracts.Runner.infer = told\n"
        "from vggdeploy.benchmarks import warmup\n"
        "warmup.MOST_QUERIES = 20\n"
        "raise SystemExit(cli.main())\n"
    ).replace("30_000", "200")
    flags = ["--seconds", "600", "--json", "r.json", *(["--mlperf"] if mlperf else [])]
    process = subprocess.Popen(
        [sys.executable, "-c", program, "bench", str(tiny_bundle), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "now\n"
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "kept in r.json as partial" in " ".join(err.split())
    result = results.read(elsewhere / "r.json")
    assert result["partial"] is True
    assert len(result["samples_s"]) >= 100
    if mlperf:
        assert result["mlperf"]["result"] == "INVALID"
