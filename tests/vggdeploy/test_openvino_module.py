"""OpenVINO is imported in one place, and tells nobody."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from vggdeploy.benchmarks import benchmark_app, competitors
from vggdeploy.benchmarks.children import Job

ROOT = Path(__file__).parents[2]
OWN = [
    file
    for folder in ("vggdeploy", "export", "calib", "benchmarks")
    for file in sorted((ROOT / folder).rglob("*.py"))
]


def imports_openvino(source: str) -> bool:
    """Whether a file imports OpenVINO by itself."""
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        if any(name.partition(".")[0] == "openvino" for name in names):
            return True
    return False


def test_one_file_imports_openvino() -> None:
    found = [file for file in OWN if imports_openvino(file.read_text(encoding="utf-8"))]
    assert [file.name for file in found] == ["openvino_module.py"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The home folder of a user who never chose about telemetry."""
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


def run(home: Path, code: str, *words: str) -> subprocess.CompletedProcess[str]:
    """A process of that user, and not in CI, where telemetry is off."""
    ci = ("CI", "TF_BUILD", "JENKINS_URL")
    names = {name: value for name, value in os.environ.items() if name not in ci}
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        check=False,
        env={**names, "HOME": str(home)},
        cwd=home.parent,
    )


TOLD = """
import sys
def told():
    assert "openvino" in sys.modules
    return [name for name, module in sys.modules.items()
            if name.partition(".")[0] == "openvino_telemetry" and module is not None]
"""


def test_verify_leaves_nothing_in_the_home_folder(tiny_bundle: Path, home: Path) -> None:
    code = """
from vggdeploy.cli import main
code = main(["verify", sys.argv[1]])
print(told())
raise SystemExit(code)
"""
    done = run(home, TOLD + code, str(tiny_bundle))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("name", ["ov-int8", competitors.NNCF])
def test_peers_tell_nobody_either(home: Path, name: str) -> None:
    """The job fails, for there is no such graph; by then all is imported."""
    pytest.importorskip("nncf", reason="NNCF is not installed")
    nowhere = str(home.parent / "nowhere")
    job = Job(name, nowhere, nowhere, {"model": nowhere, "cpu_isa": "vnni"})
    (home.parent / "job.json").write_text(json.dumps(asdict(job)))
    code = """
from pathlib import Path
from vggdeploy.benchmarks import competitors
competitors.main(Path("job.json"), Path("result.json"))
print(told())
"""
    done = run(home, TOLD + code)
    assert done.stdout.strip().splitlines()[-1] == "[]", done.stderr
    assert json.loads((home.parent / "result.json").read_text())["error"]
    assert list(home.iterdir()) == []


def test_benchmark_app_tells_nobody_either(home: Path) -> None:
    done = run(home, f"{TOLD}try:\n    {benchmark_app.MAIN}\nfinally:\n    print(told())", "-h")
    assert "-hint" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert list(home.iterdir()) == []


BEFORE = """
openvino = openvino_module.load()
assert openvino is openvino_module.load() is sys.modules["openvino"]
"""


@pytest.mark.parametrize("first", ["", "import openvino_telemetry", "import openvino"])
def test_who_else_wants_the_package_finds_it(home: Path, first: str) -> None:
    try:
        importlib.metadata.version("openvino-telemetry")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("OpenVINO's telemetry is not installed")
    code = f"""
import sys
{first}
held = sys.modules.get("openvino_telemetry")
from vggdeploy.targets import openvino_module
{BEFORE}
assert sys.modules.get("openvino_telemetry") is held
import openvino_telemetry
assert held in (None, openvino_telemetry)
"""
    done = run(home, code)
    assert done.returncode == 0, done.stderr


def test_who_hid_the_package_finds_it_hidden(home: Path) -> None:
    code = f"""
import sys
from vggdeploy.targets import openvino_module
openvino_module.silence()
{BEFORE}
assert sys.modules["openvino_telemetry"] is None
"""
    done = run(home, code)
    assert done.returncode == 0, done.stderr


def test_what_is_not_installed_is_named(home: Path) -> None:
    code = """
import sys
sys.modules["openvino"] = None
from vggdeploy.errors import MissingError
from vggdeploy.targets import openvino_module
try:
    openvino_module.load()
except MissingError as error:
    print(error.fix)
"""
    done = run(home, code)
    assert done.stdout.strip() == "pip install 'vggdeploy[openvino]'", done.stderr
