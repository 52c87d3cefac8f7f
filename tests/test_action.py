"""The action for GitHub: its own scripts, run by a shell as a runner does."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

yaml = pytest.importorskip("yaml")
BASH = shutil.which("bash") or pytest.skip("there is no bash", allow_module_level=True)

ROOT = Path(__file__).parents[1]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
STEPS = ACTION["runs"]["steps"]
SCRIPTS = [step for step in STEPS if "run" in step]
EXPRESSION = re.compile(r"\$\{\{ *([\w.-]+) *\}\}")

HOSTILE = [
    '"; touch pwned; "',
    "$(touch pwned)",
    "`touch pwned`",
    "'; touch pwned #",
    "x\ntouch pwned",
    "--help",
    "--version",
    "*",
    "-rf",
]

PYTHON = f"""#!/bin/sh
# What would be installed is noted; all else is the interpreter of these tests.
if [ "$1 $2" = "-m pip" ]; then printf '%s\\n' "$@" > "$PIP_ASKED"; exit 0; fi
exec '{sys.executable}' "$@"
"""


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Runs the action's scripts with inputs, in a workspace with results; gives the exit code, the
    outputs, and what was printed."""
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    tools, workspace, temporary = (tmp_path / name for name in ("tools", "workspace", "temporary"))
    for folder in (tools, workspace, temporary):
        folder.mkdir()
    (tools / "python").write_text(PYTHON)
    # As pip installs it: a script, whose folder is where modules are looked for, and not this one.
    script = tools / "script.py"
    script.write_text("from vggdeploy.__main__ import entry\nraise SystemExit(entry())\n")
    (tools / "vggdeploy").write_text(f"#!/bin/sh\nexec '{sys.executable}' '{script}' \"$@\"\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    built = {"kind": "build", "schema": 1, "digest": "d" * 64, "target": "ov-int8"}
    (workspace / "build.json").write_text(json.dumps({**built, "engine_bytes": 1000}))
    (workspace / "elsewhere").mkdir()
    outputs, summary = tmp_path / "outputs", tmp_path / "summary"
    outputs.touch()
    summary.write_text("of another step\n")

    def run(**inputs):
        given = {name.replace("_", "-"): value for name, value in inputs.items()}
        assert set(given) <= set(ACTION["inputs"])
        values = {name: said["default"] for name, said in ACTION["inputs"].items()} | given
        known = {f"inputs.{name}": value for name, value in values.items()}
        known["github.action_path"] = str(ROOT)

        def evaluated(text):
            return EXPRESSION.sub(lambda found: known[found[1]], text)

        printed, code = "", 0
        for step in SCRIPTS:
            script = tmp_path / "script.sh"
            script.write_text(evaluated(step["run"]))
            done = subprocess.run(
                [BASH, "--noprofile", "--norc", "-eo", "pipefail", str(script)],
                cwd=workspace / evaluated(step.get("working-directory", ".")),
                env={
                    **os.environ,
                    "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
                    "RUNNER_TEMP": str(temporary),
                    "GITHUB_OUTPUT": str(outputs),
                    "GITHUB_STEP_SUMMARY": str(summary),
                    "PIP_ASKED": str(tmp_path / "pip"),
                    **{name: evaluated(value) for name, value in step.get("env", {}).items()},
                },
                capture_output=True,
                text=True,
                check=False,
            )
            printed += done.stdout + done.stderr
            code = done.returncode
            if code:
                break
        said = dict(line.split("=", 1) for line in outputs.read_text().splitlines())
        return code, said, printed

    run.workspace, run.summary, run.pip = workspace, summary, tmp_path / "pip"
    return run


def test_a_gate_that_passes(job):
    code, outputs, printed = job(
        results="build.json", args="--max-engine-bytes 1000", junit="gate.xml"
    )
    assert code == 0, printed
    assert outputs["verdict"] == "pass"
    assert json.loads(Path(outputs["result"]).read_text())["verdict"] == "pass"
    assert "::notice title=vggdeploy ov-int8::verdict: PASS" in printed
    summary = job.summary.read_text(encoding="utf-8")
    assert summary.startswith("of another step\n")
    assert "verdict: PASS" in summary
    suite = ElementTree.parse(job.workspace / "gate.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("failures")) == ("1", "0")
    assert job.pip.read_text().split() == [
        "-m", "pip", "install", "--disable-pip-version-check", f"{ROOT}[openvino]",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("args", "verdict"),
    [("--max-engine-bytes 999", "fail"), ("--max-engine-bytes 1000 --max-p50 1", "inconclusive")],
)
def test_a_gate_that_does_not_pass_fails_the_job_and_has_outputs(job, args, verdict):
    code, outputs, printed = job(results="build.json", args=args, junit="gate.xml")
    assert (code, outputs["verdict"]) == (1, verdict)
    assert "::error title=vggdeploy ov-int8%3A " in printed
    assert (job.workspace / "gate.xml").is_file()


def test_the_policy_is_that_of_the_working_directory(job):
    policy = job.workspace / "elsewhere" / "vggdeploy.toml"
    policy.write_text("[gate]\nmax_engine_bytes = 999\n")
    code, outputs, _ = job(results="../build.json", working_directory="elsewhere")
    assert (code, outputs["verdict"]) == (1, "fail")


def test_flags_and_results_may_have_several_lines(job):
    shutil.copy(job.workspace / "build.json", job.workspace / "a b.json")
    code, _, printed = job(
        results="build.json \r\n\n\t a b.json\n", args="--max-engine-bytes\n  1000\n--max-p50  1\n"
    )
    assert code == 2
    assert "there are two results of kind 'build'" in printed


def test_a_bundle_is_verified_on_data_against_a_baseline(job, tiny_bundle):
    job.workspace.joinpath("bundle").symlink_to(tiny_bundle)
    code, outputs, printed = job(bundle="bundle", args="--min-agreement 0.5 --min-sqnr 1")
    assert (code, outputs.get("verdict")) == (0, "pass"), printed
    code, _, printed = job(bundle="bundle", data="nowhere", baseline="none.json")
    assert code == 2
    assert "result none.json does not exist" in printed
    code, _, printed = job(bundle="bundle", data="nowhere")
    assert code == 2
    assert "nowhere does not exist" in printed


@pytest.mark.parametrize("inputs", [{}, {"results": "nowhere.json"}, {"bundle": "elsewhere"},
                                    {"results": "build.json", "args": "--nonsense"},
                                    {"results": "build.json", "args": "--quiet\n--json x.json"},
                                    {"results": "build.json", "junit": "build.json"}])  # fmt: skip
def test_what_is_wrong_fails_the_job_without_a_verdict(job, inputs):
    code, outputs, _ = job(**inputs)
    assert (code, outputs) == (2, {})


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("name", ["bundle", "results", "data", "baseline", "args", "junit"])
def test_no_input_is_executed_or_taken_for_a_flag(job, name, text):
    """Nor does any give a job that should fail another end."""
    inputs = {"results": "build.json", "args": "--max-engine-bytes 999", name: text}
    before = {path.name for path in job.workspace.iterdir()}
    code, outputs, printed = job(**inputs)
    assert code != 0, printed
    assert outputs.get("verdict") in (None, "fail")
    after = {path.name for path in job.workspace.rglob("*")}
    assert after - before <= ({text} if name == "junit" else set())
    assert "Traceback" not in printed


def test_a_module_of_the_repository_is_not_taken_for_one_of_python(job):
    (job.workspace / "json.py").write_text("raise SystemExit('it ran')")
    code, outputs, printed = job(results="build.json", args="--max-engine-bytes 1000")
    assert (code, outputs["verdict"]) == (0, "pass"), printed


@pytest.mark.parametrize("text", HOSTILE)
def test_extras_are_one_argument_of_pip(job, text):
    job(results="build.json", extras=text)
    assert job.pip.read_text().split("\n", 4)[4] == f"{ROOT}[{text}]\n"
    assert not (job.workspace / "pwned").exists()


def test_without_extras_the_core_is_installed(job):
    job(results="build.json", extras="")
    assert job.pip.read_text().split()[-1] == str(ROOT)


def test_scripts_hold_no_expression_and_name_their_shell():
    assert [step["name"] for step in SCRIPTS] == ["Install vggdeploy", "Gate"]
    for step in SCRIPTS:
        assert step["shell"] == "bash"
        assert "${{" not in step["run"]
        assert all(re.search(rf"\b{name}\b", step["run"]) for name in step["env"])


def test_every_input_is_described_and_used():
    text = json.dumps(STEPS)
    for name, said in ACTION["inputs"].items():
        assert said["description"].strip()
        assert isinstance(said["default"], str)
        assert f"inputs.{name} " in text, name
    assert [step["uses"].partition("@")[0] for step in STEPS if "uses" in step] == [
        "actions/setup-python"
    ]
    for output in ACTION["outputs"].values():
        (named,) = re.findall(r"steps\.gate\.outputs\.(\w+)", output["value"])
        assert f"{named}=%s" in SCRIPTS[-1]["run"]


GUIDE = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
RECIPES = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)]


def test_the_guides_recipes_are_what_servers_read():
    github, line, gitlab, device = RECIPES
    for job in (*github["jobs"].values(), *device.values()):
        assert all(("uses" in step) != ("run" in step) for step in job["steps"])
    assert device["speed"]["needs"] in github["jobs"]
    (step,) = line
    assert step["run"].startswith("vggdeploy gate ")
    assert gitlab["gate"]["artifacts"]["reports"]["junit"] in gitlab["gate"]["script"][1]


def test_the_guide_gives_the_action_what_it_takes():
    steps = RECIPES[0]["jobs"]["gate"]["steps"]
    (gate,) = (step for step in steps if step.get("id") == "gate")
    assert set(gate["with"]) <= set(ACTION["inputs"])
    table = GUIDE.partition("| input | |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`([\w-]+)`", table)) >= set(ACTION["inputs"])
    said = GUIDE.partition("Its outputs are")[2].partition("Without the action")[0]
    assert all(f"`{name}`" in said for name in ACTION["outputs"])
