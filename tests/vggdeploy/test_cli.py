"""The command line, run in this process: output, exit codes, settings, and no traceback."""

from __future__ import annotations

import dataclasses
import gc
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer
from test_gates import BENCH

from vggdeploy import __main__, cli, errors, inputs, machine, pipeline
from vggdeploy.cli import app, main
from vggdeploy.manifest import read_manifest

if TYPE_CHECKING:
    from collections.abc import Callable

    Capture = pytest.CaptureFixture[str]

COMMANDS = [
    "doctor",
    "budget",
    "export",
    "calibrate",
    "build",
    "compile",
    "verify",
    "bench",
    "tune",
    "compare",
    "gate",
    "baseline",
    "report",
    "run",
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test has an empty folder of its own to stand in, without settings."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here looks at how fast anything is."""
    monkeypatch.setattr("vggdeploy.benchmarks.peak.SECONDS", 0.01)


@pytest.fixture
def flags(tiny: Callable[..., Any]) -> list[str]:
    """Flags that build the tiny network."""
    options = tiny()
    return [
        "--weights", options.weights, "--preprocess", options.preprocess,
        "--calib-data", options.calib_data, "--calib-images", "16",
    ]  # fmt: skip


def refused(capsys: Capture, *arguments: str, code: int = 2) -> str:
    """Runs a command that must fail with one line, and gives that line."""
    assert main(list(arguments)) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert "bug" not in err
    return " ".join(err.split())


def test_every_command_is_known() -> None:
    assert sorted(command.callback.__name__ for command in app.registered_commands) == sorted(
        COMMANDS
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_it_takes(capsys: Capture, command: str) -> None:
    assert main([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert "--json" in out
    assert "--force" in out


@pytest.mark.parametrize("arguments", [["--help"], ["-h"]])
def test_help_lists_the_commands_and_exit_codes(capsys: Capture, arguments: list[str]) -> None:
    assert main(arguments) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert all(command in out for command in COMMANDS)
    assert "Exit codes" in out


def test_version(capsys: Capture) -> None:
    import vggdeploy

    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == vggdeploy.__version__


def test_budget_as_json_is_json_alone(capsys: Capture) -> None:
    assert main(["budget", "--json", "-"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert result["schema"] == 1
    assert result["total"] == {**result["total"], "params": 138_357_544, "macs": 15_470_264_320}
    assert "15,470,264,320" in err


def test_doctor_as_json(capsys: Capture) -> None:
    assert main(["doctor", "--json", "-"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["kind"] == "doctor"
    assert result["targets"]["ov-int8"]["summary"]


def test_doctor_without_a_place_for_the_cache(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("VGGDEPLOY_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    assert main(["doctor", "--json", "-"]) == 0
    said, shown = capsys.readouterr()
    cache = json.loads(said)["cache"]
    assert (cache["path"], cache["bytes"]) == (None, 0)
    assert "got Could not determine home directory, expected" in cache["reason"]
    assert "set VGGDEPLOY_CACHE" in " ".join(shown.split())


def test_build_verify_bench_gate(
    capsys: Capture, flags: list[str], tiny_bundle: Path, elsewhere: Path
) -> None:
    def run(*arguments: str) -> dict[str, Any]:
        assert main([*arguments, "--json", "-"]) == 0
        return json.loads(capsys.readouterr().out)

    built = run("build", *flags, "--out", "bundle")
    assert {"bundle", "target", "engine_bytes", "stages"} <= set(built)
    assert {"name", "seconds", "cached"} == set(built["stages"][0])
    assert run("verify", "bundle")["parity"]["n"] == inputs.PROBES
    benched = run("bench", "bundle", "--seconds", "0.05")
    assert len(benched["samples_s"]) >= 30
    assert benched["partial"] is False
    (elsewhere / "build.json").write_text(json.dumps({"schema": 1, **built}))
    passed = run("gate", "build.json", "--max-engine-bytes", "1e9")
    assert passed["verdict"] == "pass"
    assert main(["gate", "build.json", "--max-engine-bytes", "10"]) == 1
    assert main(["gate", "build.json", "--min-agreement", "0.9"]) == 1
    err = capsys.readouterr().err
    assert "verdict: FAIL" in err
    assert "verdict: INCONCLUSIVE" in err


@pytest.mark.parametrize("layers", [False, True])
def test_layers_are_measured_and_shown_on_request(
    capsys: Capture, tiny_bundle: Path, layers: bool
) -> None:
    asked = ["--layers"] if layers else []
    assert main(["bench", str(tiny_bundle), "--seconds", "0.05", *asked, "--json", "-"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)["budget"]
    assert ("where a query's time goes" in err) == layers
    assert {row["name"] for row in found["layers"]} >= {"features.0", "classifier.6", "in no layer"}
    assert not layers or all(row["name"] in err for row in found["layers"])
    assert {"ok", "beaten_by"} == set(found["peak_check"])


def test_run_does_it_all_and_says_no(
    capsys: Capture, flags: list[str], tiny_bundle: Path, elsewhere: Path
) -> None:
    arguments = ["run", *flags, "--out", "bundle", "--seconds", "0.05", "--max-engine-bytes", "9"]
    assert main([*arguments, "--json", "result.json", "--junit", "gate.xml"]) == 1
    assert capsys.readouterr().out == ""
    assert '<failure message="fail: ' in (elsewhere / "gate.xml").read_text()
    result = json.loads((elsewhere / "result.json").read_text())
    assert {"build", "verify", "bench", "gate"} <= set(result)
    assert result["gate"]["verdict"] == "fail"


class TestRunBesideABaseline:
    """One on a machine with another CPU; what is measured is made up, and of this one."""

    @pytest.fixture
    def words(
        self, flags: list[str], elsewhere: Path, monkeypatch: pytest.MonkeyPatch
    ) -> list[str]:
        here = machine.system()
        measured = {**BENCH, "system": {**here, "cpu": "Another CPU"}}
        entry = {"digest": "d" * 64, "results": [measured]}
        baseline = {
            "schema": 1,
            "kind": "baseline",
            "targets": {"ov-int8": entry},
            "history": [],
        }
        (elsewhere / "baseline.json").write_text(json.dumps(baseline))

        def bench(path: Path, options: Any, reporter: Any) -> dict[str, Any]:
            return {**BENCH, "system": here, "digest": read_manifest(path)["digest"]}

        monkeypatch.setattr("vggdeploy.benching.bench", bench)
        monkeypatch.setattr("vggdeploy.console.show_run", lambda *_: None)
        return ["run", *flags, "--out", "bundle", "--json", "result.json",
                "--baseline", "baseline.json", "--max-ratio", "p50=1.05"]  # fmt: skip

    def test_another_machine_or_batch_is_refused_before_anything_is_built(
        self, words: list[str], capsys: Capture, elsewhere: Path
    ) -> None:
        said = refused(capsys, *words)
        assert "different machines or settings: CPU model" in said
        assert said.endswith("give --across-machines")
        again = refused(capsys, *words, "--across-machines", "--batch", "2")
        assert "of different batch: got 1 and 2" in again
        assert not (elsewhere / "bundle").exists()

    def test_another_machine_is_allowed_on_request(
        self, words: list[str], tiny_bundle: Path, elsewhere: Path
    ) -> None:
        assert main([*words, "--across-machines"]) == 0
        said = json.loads((elsewhere / "result.json").read_text())["gate"]
        assert any("CPU model: 'Another CPU'" in caution for caution in said["cautions"])
        assert [each["name"] for each in said["criteria"]] == ["max_ratio.p50"]

    def test_what_was_measured_is_kept_where_there_is_no_verdict(
        self, words: list[str], tiny_bundle: Path, capsys: Capture, elsewhere: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.setattr("vggdeploy.pipeline._require_comparable", lambda *_: None)
        assert "CPU model" in refused(capsys, *words)
        kept = json.loads((elsewhere / "result.json").read_text())
        assert kept["gate"] is None
        assert kept["bench"]["samples_s"] == BENCH["samples_s"]


def test_export_and_calibrate(
    capsys: Capture, flags: list[str], tiny_bundle: Path, elsewhere: Path
) -> None:
    assert main(["export", *flags[:4], "--out", "graph"]) == 0
    assert (elsewhere / "graph/model.onnx").is_file()
    assert main(["calibrate", *flags, "--out", "table.json"]) == 0
    assert json.loads((elsewhere / "table.json").read_text())["kind"] == "calibration"
    assert capsys.readouterr().out == ""


def test_unknown_target_lists_the_known(capsys: Capture, flags: list[str]) -> None:
    line = refused(capsys, "build", *flags, "--target", "ov-int5")
    assert "'ov-int5'" in line
    assert "ov-int8" in line


def test_unknown_method_lists_the_known(capsys: Capture, flags: list[str]) -> None:
    assert "entropy" in refused(capsys, "build", *flags, "--method", "median")


@pytest.mark.parametrize("arguments", [["build", "--nonsense"], ["nonsense"], ["verify"],
                                       ["bench", "x", "--batch", "many"]])  # fmt: skip
def test_wrong_usage(capsys: Capture, arguments: list[str]) -> None:
    refused(capsys, *arguments)


def test_missing_and_empty_folders(capsys: Capture, flags: list[str], elsewhere: Path) -> None:
    start = ["build", *flags[:4], "--calib-data"]
    assert "does not exist" in refused(capsys, *start, "nowhere")
    (elsewhere / "empty").mkdir()
    assert "holds no image" in refused(capsys, *start, "empty")
    assert "no bundle" in refused(capsys, "verify", "nowhere")
    assert "no bundle" in refused(capsys, "bench", "empty")
    assert "does not exist" in refused(capsys, "gate", "nowhere.json")
    assert "does not exist" in refused(capsys, "build", "--model", "no.onnx", "--calib-data", ".")
    assert "does not exist" in refused(capsys, "build", "--weights", "no.pth", "--calib-data", ".")


def test_missing_device_is_exit_3(capsys: Capture, tiny_bundle: Path) -> None:
    line = refused(capsys, "verify", str(tiny_bundle), "--device", "NPU", code=3)
    assert "NPU" in line


def test_debug_shows_the_traceback_and_keeps_the_exit_code(
    capsys: Capture, flags: list[str]
) -> None:
    assert main(["build", *flags, "--target", "ov-int5", "--debug"]) == errors.EXIT_INPUT
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "error: unknown target: got 'ov-int5'" in err


def test_ctrl_c_ends_in_130_and_says_so(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vggdeploy.doctor.doctor", interrupted)
    assert main(["doctor"]) == 130
    assert "interrupted: nothing half-written was left" in capsys.readouterr().err


def test_ctrl_c_during_the_imports_ends_as_it_does_later(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupting:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "vggdeploy.cli":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "vggdeploy.cli")
    monkeypatch.delattr("vggdeploy.cli")
    monkeypatch.setattr(sys, "meta_path", [Interrupting(), *sys.meta_path])
    monkeypatch.setattr(gc, "freeze", lambda: None)  # which is for a process that ends
    with pytest.raises(SystemExit) as caught:
        __main__.entry()
    assert caught.value.code == errors.EXIT_INTERRUPTED
    assert capsys.readouterr().err == "interrupted\n"


def test_a_process_that_ends_is_not_searched_for_garbage() -> None:
    code = """
import atexit, gc, sys
atexit.register(lambda: print(gc.get_freeze_count() > 10_000))
sys.argv = ["vggdeploy", "--help"]
from vggdeploy.__main__ import entry
entry()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("True\n")


def test_a_bug_of_ours_is_one_line(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError("oh no")

    monkeypatch.setattr("vggdeploy.doctor.doctor", broken)
    assert main(["doctor"]) != 0
    err = capsys.readouterr().err
    assert "ZeroDivisionError: oh no" in err
    assert "--debug" in err
    assert "Traceback" not in err
    assert main(["doctor", "--debug"]) != 0
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["doctor", "budget", "export", "calibrate", "build", "run"])
def test_existing_result_is_refused_before_any_work(
    capsys: Capture, elsewhere: Path, command: str
) -> None:
    (elsewhere / "out.json").write_text("mine")
    line = refused(capsys, command, "--json", "out.json")
    assert "out.json exists" in line
    assert "--force" in line
    assert (elsewhere / "out.json").read_text() == "mine"
    assert [path.name for path in elsewhere.iterdir()] == ["out.json"]


def test_existing_result_is_replaced_with_force(elsewhere: Path) -> None:
    (elsewhere / "out.json").write_text("mine")
    assert main(["budget", "--json", "out.json", "--force"]) == 0
    assert json.loads((elsewhere / "out.json").read_text())["kind"] == "budget"


@pytest.mark.parametrize("place", ["nowhere/out.json", "."])
def test_result_that_could_not_be_written(capsys: Capture, place: str) -> None:
    refused(capsys, "budget", "--json", place, "--force")


@pytest.mark.parametrize(
    ("name", "prefix"), [("vggdeploy.toml", ""), ("pyproject.toml", "tool.vggdeploy")]
)
def test_settings_stand_in_for_flags(
    capsys: Capture, elsewhere: Path, name: str, prefix: str
) -> None:
    table = f"[{prefix}.budget]" if prefix else "[budget]"
    head = f"[{prefix}]\n" if prefix else ""
    (elsewhere / name).write_text(f'{head}arch = "vgg11"\n{table}\nnum_classes = 7\n')

    def arch(*arguments: str) -> tuple[str, int]:
        assert main(["budget", *arguments, "--json", "-"]) == 0
        result = json.loads(capsys.readouterr().out)
        return result["arch"], result["layers"][-1]["output"][0]

    assert arch() == ("vgg11", 7)
    assert arch("--arch", "vgg13") == ("vgg13", 7)
    assert arch("--num-classes", "3") == ("vgg11", 3)


def test_own_settings_come_before_the_shared(capsys: Capture, elsewhere: Path) -> None:
    (elsewhere / "vggdeploy.toml").write_text('arch = "vgg11"')
    (elsewhere / "pyproject.toml").write_text('[tool.vggdeploy]\narch = "vgg19"')
    assert main(["budget", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["arch"] == "vgg11"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('targget = "ov-int8"', "'targget'.*perhaps 'target'"),
        ("[buid]\nseed = 1", "'buid'.*perhaps 'build'"),
        ("[build]\nsed = 1", "'sed'.*'seed'"),
        ("[gate]\nmin_agrement = 1", "'min_agrement'.*'min_agreement'"),
        ("arch = ", "cannot be read"),
        ('seed = "many"', r"vggdeploy.toml: seed is wrong: got 'many', expected a whole number"),
        ('[gate]\nforce = "yes"', r"\[gate\] force is wrong: got 'yes', expected true or false"),
        ("[gate]\nmax_ratio = 1", "max_ratio is wrong"),
        ("[gate]\nmin_top1 = 98", r"vggdeploy.toml: \[gate\]: bound min_top1 is wrong: got 98"),
        ("[gate]\nmin_top1 = '0.9'", r"\[gate\]: bound min_top1 is wrong: got '0.9'"),
    ],
)
def test_wrong_settings_are_refused(
    capsys: Capture, elsewhere: Path, text: str, words: str
) -> None:
    import re

    (elsewhere / "vggdeploy.toml").write_text(text)
    assert re.search(words, refused(capsys, "build", "--target", "ov-int5"))


def test_every_flag_is_of_one_kind_in_settings() -> None:
    groups = 0
    for group in typer.main.get_group(cli.app).commands.values():  # type: ignore[attr-defined]
        kinds = cli._kinds(group)
        options = [flag for flag in getattr(group, "params", ()) if flag.opts[0].startswith("--")]
        assert hasattr(group, "commands") or {flag.name for flag in options} <= kinds.keys()
        for command in getattr(group, "commands", {}).values():
            groups += 1
            assert {flag.name for flag in command.params} <= kinds.keys()
            assert cli._kinds(command).items() <= kinds.items()
    assert groups > 4


def test_gate_settings_are_runs_bounds_too(
    capsys: Capture, elsewhere: Path, flags: list[str], tiny_bundle: Path
) -> None:
    (elsewhere / "vggdeploy.toml").write_text("[gate]\nmax_engine_bytes = 11\n")
    assert main(["run", *flags, "--out", "b", "--seconds", "0.05", "--json", "-"]) == 1
    (criterion,) = json.loads(capsys.readouterr().out)["gate"]["criteria"]
    assert (criterion["name"], criterion["bound"]) == ("max_engine_bytes", 11)


def test_export_replaces_an_export_alone(capsys: Capture, elsewhere: Path, tiny: Any) -> None:
    weights = ["--weights", tiny().weights, "--preprocess", tiny().preprocess]
    assert main(["export", *weights, "--out", "graph"]) == 0
    assert main(["export", *weights, "--out", "graph", "--force"]) == 0
    (elsewhere / "graph" / "thesis.txt").write_text("mine")
    capsys.readouterr()
    assert "is not replaced" in refused(capsys, "export", *weights, "--out", "graph", "--force")
    assert (elsewhere / "graph" / "thesis.txt").read_text() == "mine"


def test_cpu_isa_is_for_int8(capsys: Capture, elsewhere: Path) -> None:
    line = refused(capsys, "build", "--target", "ov-fp32", "--cpu-isa", "avx2")
    assert "makes no difference to ov-fp32" in line
    assert "vnni, avx2" in refused(capsys, "build", "--cpu-isa", "sse9")


def test_a_graph_and_weights_exclude_each_other(capsys: Capture, elsewhere: Path) -> None:
    (elsewhere / "vggdeploy.toml").write_text('model = "foreign.onnx"\n')
    line = refused(capsys, "export", "--weights", "mine.pth")
    assert "--weights does not go with --model" in line
    assert "foreign.onnx" in line


def test_an_empty_argument_is_refused(capsys: Capture, elsewhere: Path) -> None:
    assert "an argument is empty" in refused(capsys, "build", "--calib-data", "")


def test_a_folder_that_is_gone(capsys: Capture, elsewhere: Path) -> None:
    elsewhere.rmdir()
    assert "the working directory is gone" in refused(capsys, "budget")


@pytest.mark.parametrize(
    "words",
    [
        ["gate", "LONG"],
        ["gate", "LONG/r.json"],
        ["budget", "--json", "LONG"],
        ["build", "--weights", "LONG.pth"],
        ["bundle", "inspect", "LONG"],
    ],
    ids=" ".join,
)
def test_a_path_that_no_system_takes(capsys: Capture, elsewhere: Path, words: list[str]) -> None:
    line = refused(capsys, *(word.replace("LONG", "x" * 300) for word in words))
    assert "got File name too long" in line or "Errno 36" in line


def test_a_path_through_a_folder_that_lets_nobody_in(
    capsys: Capture, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.is_dir", denied)
    line = refused(capsys, "gate", "shut/r.json")
    assert "shut/r.json cannot be used: got Permission denied, expected a path" in line


def test_what_a_bundle_is_verified_with_is_not_for_results_but_as_a_setting(
    capsys: Capture, elsewhere: Path
) -> None:
    result = {"kind": "build", "target": "ov-int8", "digest": "d" * 64, "engine_bytes": 9}
    (elsewhere / "r.json").write_text(json.dumps({"schema": 1, **result}))
    line = refused(capsys, "gate", "r.json", "--data", "demo", "--trusted-keys", "keys")
    assert "--data and --trusted-keys go with a bundle, which is verified first" in line
    assert "got no folder among r.json, expected a bundle's -- drop" in line
    (elsewhere / "vggdeploy.toml").write_text('device = "GPU"\ntrusted_keys = "keys"\ndata = "d"\n')
    assert main(["gate", "r.json", "--max-engine-bytes", "9"]) == 0


@pytest.mark.parametrize(
    ("flags", "words", "code"),
    [
        (["--seconds", "-1"], "the time is out of range", 2),
        (["--batch", "1000000"], "the batch is out of range", 2),
        (["--device", "GPU.7"], "no device GPU.7", 3),
        (["--data", "nowhere"], "nowhere does not exist", 2),
    ],
)
def test_a_run_settles_everything_before_it_builds(
    capsys: Capture, elsewhere: Path, flags: list[str], words: str, code: int
) -> None:
    assert words in refused(capsys, "run", "--out", "bundle", *flags, code=code)
    assert not (elsewhere / "bundle").exists()


def test_an_empty_folder_is_room_for_a_bundle(
    capsys: Capture, elsewhere: Path, tiny: Callable[..., Any]
) -> None:
    (elsewhere / "out").mkdir()
    options = tiny()
    flags = ["--weights", options.weights, "--preprocess", options.preprocess]
    flags += ["--calib-data", options.calib_data, "--calib-images", "8"]
    assert main(["build", *flags, "--out", "out"]) == 0
    assert (elsewhere / "out" / "manifest.json").is_file()


@pytest.mark.parametrize("command", ["export", "calibrate", "build", "run"])
def test_the_flags_defaults_are_the_options_own(command: str) -> None:
    (registered,) = (c for c in app.registered_commands if c.callback.__name__ == command)
    flags = inspect.signature(registered.callback).parameters
    for option in dataclasses.fields(pipeline.BuildOptions):
        if option.name in flags:
            assert flags[option.name].default == option.default, option.name


def test_verify_asks_for_the_device_before_the_reference_runs(
    capsys: Capture, tiny_bundle: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(*arguments: Any) -> None:
        raise AssertionError("the reference ran first")

    monkeypatch.setattr("vggdeploy.sources.scores", late)
    flags = ["--data", "demo", "--device", "GPU.7"]
    assert "no device GPU.7" in refused(capsys, "verify", str(tiny_bundle), *flags, code=3)
