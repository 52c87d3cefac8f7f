"""OpenVINO is imported in one place, and tells nobody."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

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


def run(code: str, home: Path) -> subprocess.CompletedProcess[str]:
    """A process of a user who never chose about telemetry, and not in CI, where none is sent."""
    names = {name: value for name, value in os.environ.items() if name != "CI"}
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**names, "HOME": str(home)},
    )


def test_verify_leaves_nothing_in_the_home_folder(tiny_bundle: Path, tmp_path: Path) -> None:
    code = f"""
import sys
from vggdeploy.cli import main
code = main(["verify", {str(tiny_bundle)!r}])
assert "openvino" in sys.modules
print([name for name in sys.modules if name.partition(".")[0] == "openvino_telemetry"])
raise SystemExit(code)
"""
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("before", ["", "import openvino_telemetry"])
def test_who_else_wants_the_package_finds_it(tmp_path: Path, before: str) -> None:
    pytest.importorskip("openvino_telemetry")
    code = f"""
import sys
{before}
held = sys.modules.get("openvino_telemetry")
from vggdeploy.targets import openvino_module
openvino = openvino_module.load()
assert openvino is openvino_module.load() is sys.modules["openvino"]
assert sys.modules.get("openvino_telemetry") is held
import openvino_telemetry
assert held in (None, openvino_telemetry)
"""
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr


def test_what_is_not_installed_is_named(tmp_path: Path) -> None:
    code = """
import sys
sys.modules["openvino"] = None
from vggdeploy.errors import MissingError
from vggdeploy.targets import openvino_module
try:
    openvino_module.load()
except MissingError as error:
    print(error.fix, "openvino_telemetry" in sys.modules)
"""
    done = run(code, tmp_path)
    assert done.stdout.strip() == "pip install 'vggdeploy[openvino]' False", done.stderr
