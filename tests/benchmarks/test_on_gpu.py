"""benchmarks/on_gpu.sh: what it would run, and the report of what it left."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from vggdeploy import cli
from vggdeploy.benchmarks import gpu_report
from vggdeploy.errors import ResultError

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "on_gpu.sh"
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")


def run(*arguments: str, **environment: str) -> Any:
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", **environment},
    )


def commands(*arguments: str, **environment: str) -> list[list[str]]:
    """The commands that a dry run shows."""
    done = run("--dry-run", *arguments, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert all(line.startswith("+ ") for line in lines)
    return [shlex.split(line)[1:] for line in lines]


def test_script_is_well_formed() -> None:
    done = subprocess.run(["bash", "-n", str(SCRIPT)], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_every_command_is_one_that_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the package's own commands parses; what it would then do is left out."""
    ours = [words[1:] for words in commands() if words[0].endswith("/vggdeploy")]
    assert [words[0] for words in ours[:4]] == ["doctor", "build", "verify", "bench"]
    seen = []
    for command in cli.app.registered_commands:
        name = command.callback.__name__  # type: ignore[union-attr]
        monkeypatch.setattr(command, "callback", _recorder(command.callback, name, seen))
    for words in ours:
        assert cli.main(words) == 0, words
    assert seen == [words[0] for words in ours]
    assert seen.count("bench") == 9


def _recorder(callback: Any, name: str, seen: list[str]) -> Any:
    import functools

    @functools.wraps(callback)
    def record(*arguments: Any, **options: Any) -> None:
        seen.append(name)

    return record


def test_targets_and_flavour_are_chosen() -> None:
    text = [" ".join(words) for words in commands("--flavour", "rtx", "trt-int8")]
    assert any("export,openvino,demo,report,tensorrt-rtx]" in line for line in text)
    builds = [line for line in text if " build " in line]
    assert len(builds) == 1
    assert "--target trt-int8 --flavour rtx" in builds[0]


def test_a_jetsons_own_tensorrt_is_seen_and_none_installed() -> None:
    text = [" ".join(words) for words in commands(SYSTEM_TENSORRT="1")]
    assert "python3 -m venv --system-site-packages .venv-gpu" in text
    assert any(line.endswith(".[export,openvino,demo,report] pycuda") for line in text)


@pytest.mark.parametrize("arguments", [["--flavour", "cuda"], ["trt-int5"], ["--flavour"]])
def test_wrong_usage_runs_nothing(arguments: list[str]) -> None:
    done = run("--dry-run", *arguments)
    assert done.returncode != 0
    assert done.stdout == ""
    assert "tensorrt" in done.stderr


def program(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(("#!/bin/bash", *lines)) + "\n")
    path.chmod(0o755)


@pytest.mark.parametrize("failing", ["build", "verify", "bench", "gate"])
def test_a_step_that_fails_ends_neither_the_other_targets_nor_the_report(
    tmp_path: Path, failing: str
) -> None:
    (tmp_path / "benchmarks").mkdir()
    script = shutil.copy(SCRIPT, tmp_path / "benchmarks")
    calls = tmp_path / "calls"
    program(tmp_path / "bin/nvidia-smi", "echo Card 9")
    program(tmp_path / "bin/python", 'case "$*" in *gpu_report*) echo report >> "$CALLS" ;; esac')
    program(
        tmp_path / "bin/vggdeploy",
        'echo "$1" >> "$CALLS"',
        f'[[ "$1" != {failing} || "$*" != *trt-fp16* ]]',
    )
    out = tmp_path / "benchmarks/results/Card-9"
    out.mkdir(parents=True)
    (out / "trt-fp16-verify.json").write_text("of an earlier run")
    path = f"{tmp_path}/bin:/usr/local/bin:/usr/bin:/bin"
    done = subprocess.run(
        ["bash", script, "trt-fp16", "trt-int8"],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": path, "PYTHON": "python", "VENV": str(tmp_path), "CALLS": str(calls)},
    )
    assert done.returncode == 1, done.stderr
    steps = ["build", "verify", "bench", "bench", "bench", "gate"]
    first = ["build"] if failing == "build" else steps
    assert calls.read_text().split() == ["doctor", *first, *steps, "report"]
    assert not (out / "trt-fp16-verify.json").exists()


VERIFY = {
    "schema": 1, "kind": "verify", "engine_bytes": 139_000_000, "execution": "native",
    "parity": {"n": 400, "top1_agreement": 0.9975, "sqnr_db": 41.26},
    "accuracy": {"top1": 0.985},
}  # fmt: skip
BENCH = {
    "schema": 1, "kind": "bench", "batch": 8, "throughput_ips": 4321.0,
    "latency_s": {"p50": 0.00185, "p99": 0.0021},
    "budget": {"achieved_macs_per_s": 66.9e12, "utilisation": 0.515, "peak_from": "table"},
    "stable": True, "unstable_because": [], "device": {"device": "NVIDIA L4"},
    "system": {"cpu": "EPYC", "system": "Linux 6", "python": "3.11"},
}  # fmt: skip


def test_report_has_every_figure(tmp_path: Path) -> None:
    for name, content in (
        ("trt-int8-verify", VERIFY),
        ("trt-int8-bench-8", BENCH),
        ("trt-int8-bench-32", {**BENCH, "batch": 32, "stable": False, "unstable_because": ["hot"]}),
        ("trt-int8-gate", {"schema": 1, "kind": "gate", "verdict": "pass"}),
        ("doctor", {"schema": 1, "kind": "doctor"}),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    assert cli.main([str(tmp_path)], program=gpu_report.app) == 0
    lines = (tmp_path / "report.md").read_text().splitlines()
    assert "| trt-int8 | 139.0 MB | native | 400 | 0.9975 | 98.50% | 41.3 dB | pass |" in lines
    first = "| trt-int8 | 8 | 1.85 ms | 2.10 ms | 4321.0 | 66900 | 51.5% (table) | yes |"
    at = lines.index(first)
    assert lines[at + 1].startswith("| trt-int8 | 32 |")
    assert lines[at + 1].endswith("| hot |")
    assert "device NVIDIA L4." in lines


def test_report_of_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "doctor.json").write_text("{}")
    with pytest.raises(ResultError, match="holds no results"):
        gpu_report.collect(tmp_path)
    assert cli.main([str(tmp_path)], program=gpu_report.app) == 2
