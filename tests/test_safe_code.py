"""No file can bring code along: nothing here unpickles, evaluates, or hands words to a shell."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    file
    for folder in ("vggdeploy", "export", "calib", "benchmarks")
    for file in (ROOT / folder).rglob("*.py")
)

# Modules that run what they read, or write what others run.
FORBIDDEN = {
    "pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle",
    "pty", "commands", "imp", "code", "codeop",
}  # fmt: skip
ALLOWED_FROM = {("pickle", "UnpicklingError")}
"""An error that torch.load raises, and nothing that loads."""

BUILTINS = {"eval", "exec", "compile", "__import__"}
ATTRIBUTES = {
    "os": {"system", "popen", "execv", "execl", "execvp", "execve", "spawnl", "spawnv", "tempnam"},
    "tempfile": {"mktemp"},
    "subprocess": {"getoutput", "getstatusoutput"},
    "yaml": {"load", "unsafe_load", "full_load"},
    "numpy": {"fromregex"},
}
_STRINGS = (ast.Constant, ast.JoinedStr, ast.BinOp)
RUNS = {"run", "Popen", "call", "check_call", "check_output"}


def problems(source: str) -> list[str]:
    """What a file does that could run what it reads."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.partition(".")[0] in FORBIDDEN]
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").partition(".")[0]
            if module in FORBIDDEN:
                names = {(module, alias.name) for alias in node.names}
                found += [f"{m}.{name}" for m, name in names - ALLOWED_FROM]
            found += [
                f"{module}.{alias.name}"
                for alias in node.names
                if alias.name
                in ATTRIBUTES.get(module, set()) | (RUNS if module == "subprocess" else set())
            ]
        elif isinstance(node, ast.Call):
            found += _call(node)
    return found


def _call(node: ast.Call) -> list[str]:
    keywords = {keyword.arg: keyword.value for keyword in node.keywords}
    found = [
        f"{key}=..."
        for key in ("shell", "allow_pickle")
        if key in keywords and not _is(keywords[key], False)
    ]
    if isinstance(node.func, ast.Name) and node.func.id in BUILTINS:
        found.append(node.func.id)
    if not isinstance(node.func, ast.Attribute) or not isinstance(node.func.value, ast.Name):
        return found
    owner, name = node.func.value.id, node.func.attr
    owner = "numpy" if owner == "np" else owner
    if name in ATTRIBUTES.get(owner, ()):
        found.append(f"{owner}.{name}")
    if (owner, name) == ("torch", "load") and not _is(keywords.get("weights_only"), True):
        found.append("torch.load without weights_only=True")
    if (owner, name) == ("numpy", "load") and not _is(keywords.get("allow_pickle"), False):
        found.append("numpy.load without allow_pickle=False")
    if (owner, name) == ("Image", "open") and "formats" not in keywords:
        found.append("Image.open of any format")
    words = node.args[0] if node.args else None
    if (owner, name in RUNS) == ("subprocess", True) and isinstance(words, _STRINGS):
        found.append(f"subprocess.{name} of one string")
    return found


def _is(node: ast.expr | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_that_is_read_is_run(file: Path) -> None:
    assert problems(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import pickle as p",
        "from pickle import loads",
        "from pickle import UnpicklingError, load",
        "import os, marshal",
        "import joblib.numpy_pickle",
        "eval('1')",
        "exec(text)",
        "compile(text, '', 'exec')",
        "__import__(name)",
        "os.system('ls')",
        "from os import system",
        "from subprocess import run",
        "subprocess.run(c, shell=True)",
        "subprocess.run(c, shell=yes)",
        "subprocess.run('ls -l')",
        "subprocess.Popen(f'ls {x}')",
        "subprocess.check_output('ls ' + x)",
        "subprocess.getoutput(x)",
        "tempfile.mktemp()",
        "yaml.load(x)",
        "torch.load(x)",
        "torch.load(x, weights_only=False)",
        "torch.load(x, weights_only=yes)",
        "np.load(x)",
        "np.load(x, allow_pickle=True)",
        "numpy.load(x)",
        "np.save(x, y, allow_pickle=True)",
        "Image.open(x)",
    ],
)
def test_what_would_run_is_found(source: str) -> None:
    assert problems(source)


@pytest.mark.parametrize(
    "source",
    [
        "from pickle import UnpicklingError",
        "module.eval()",
        "onnx.load(x)",
        "torch.load(x, weights_only=True)",
        "np.load(x, allow_pickle=False)",
        "Image.open(x, formats=FORMATS)",
        "subprocess.run([a, b], check=False)",
        "subprocess.run(command, shell=False)",
        "re.compile(x)",
    ],
)
def test_what_is_harmless_is_left_alone(source: str) -> None:
    assert problems(source) == []


def test_every_folder_is_looked_at() -> None:
    assert {file.relative_to(ROOT).parts[0] for file in FILES} == {
        "vggdeploy", "export", "calib", "benchmarks",
    }  # fmt: skip
    assert len(FILES) > 100
