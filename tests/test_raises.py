"""Every error that a user can meet: what is raised, what a message says, and the exit code.

The first half reads the source: nothing outside the tree of `vggdeploy.errors` is raised, but for
control flow and a few exceptions that one module raises and a known one catches; and every error of
the tree is given all the parts of its message. The second half runs command lines that must fail.
"""

from __future__ import annotations

import ast
import contextlib
import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vggdeploy import errors
from vggdeploy.cli import app, main

if TYPE_CHECKING:
    from collections.abc import Iterator

    Capture = pytest.CaptureFixture[str]

ROOT = Path(__file__).parents[1]
MODULES = {
    str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8"))
    for folder in ("vggdeploy", "export", "calib", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
TREE = {
    name
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.VggdeployError)
}
CONTROL = {"Exit", "SystemExit", "KeyboardInterrupt"}

INTERNAL = {
    ("benchmarks/bootstrap.py", "ValueError"): ["benchmarks/comparison.py"],
    ("benchmarks/power.py", "PowerError"): ["benchmarks/energy.py"],
    ("calib/table.py", "ValueError"): ["calib/table.py"],
    ("vggdeploy/manifest.py", "ValueError"): ["vggdeploy/manifest.py", "vggdeploy/bundle.py"],
    ("vggdeploy/checkpoints.py", "OverLimitError"): ["vggdeploy/checkpoints.py"],
    ("vggdeploy/checkpoints.py", "ValueError"): ["vggdeploy/checkpoints.py"],
    ("vggdeploy/dataset.py", "DecompressionBombError"): ["vggdeploy/dataset.py"],
    ("vggdeploy/gates.py", "TypeError"): ["vggdeploy/gates.py"],
    ("vggdeploy/gates.py", "ValueError"): ["vggdeploy/gates.py"],
    ("vggdeploy/limits.py", "BadZipFile"): ["vggdeploy/packing.py"],
    ("vggdeploy/limits.py", "OverLimitError"): ["vggdeploy/manifest.py", "calib/table.py"],
    ("vggdeploy/limits.py", "ValueError"): ["vggdeploy/packing.py"],
    ("vggdeploy/results.py", "ValueError"): ["vggdeploy/results.py"],
    ("vggdeploy/signing.py", "ValueError"): ["vggdeploy/signing.py"],
    ("vggdeploy/tuning.py", "TypeError"): ["vggdeploy/tuning.py"],
    ("vggdeploy/targets/libcuda.py", "CallError"): ["vggdeploy/targets/trt_lane.py"],
}
"""What is raised outside of the tree, and the modules that catch it."""

SHOWN = {
    ("vggdeploy/pytest_plugin.py", "UsageError"),
    ("vggdeploy/pytest_plugin.py", "ArgumentTypeError"),
}
"""What pytest ends with in a line of its own, before there is a test that could fail."""

KEPT = {
    ("benchmarks/mlperf.py", "system.error"),
    ("vggdeploy/targets/openvino.py", "failures[0]"),
}
"""What another thread caught, raised again where it was waited for."""


def name_of(node: ast.expr | None) -> str:
    """The last name of a name, an attribute, or of what is called."""
    if isinstance(node, ast.Call):
        return name_of(node.func)
    return getattr(node, "id", getattr(node, "attr", ""))


def names_in(node: ast.AST | None) -> set[str]:
    """The words of an expression, annotations in quotes included."""
    return set(re.findall(r"\w+", ast.unparse(node))) if node is not None else set()


MAKERS = {
    node.name
    for module in MODULES.values()
    for node in ast.walk(module)
    if isinstance(node, ast.FunctionDef) and names_in(node.returns) & TREE
}
"""Functions that return an error of the tree, as their annotations say and mypy holds them to."""


def bound(function: ast.AST) -> set[str]:
    """Names in a function that are an exception that it caught, or an error of the tree."""
    found = set()
    for node in ast.walk(function):
        if isinstance(node, ast.ExceptHandler) and node.name:
            found.add(node.name)
        if isinstance(node, ast.Assign) and name_of(node.value) in MAKERS | TREE:
            found |= {name_of(target) for target in node.targets}
    return found


def raises(node: ast.AST, caught: frozenset[str] = frozenset()) -> Iterator[tuple[ast.Raise, Any]]:
    """Every raise below a node, with the names that `bound` gives for the functions around it."""
    for child in ast.iter_child_nodes(node):
        around = caught | bound(child) if isinstance(child, ast.FunctionDef) else caught
        if isinstance(child, ast.Raise):
            yield child, caught
        yield from raises(child, around)


def of_the_tree(node: ast.expr, caught: frozenset[str]) -> bool:
    """Whether what is raised is an error of the tree, or one that was caught."""
    if isinstance(node, ast.Call):
        again = (
            isinstance(node.func, ast.Call)
            and name_of(node.func) == "type"
            and name_of(node.func.args[0]) in caught
        )
        return again or name_of(node) in TREE | MAKERS
    return isinstance(node, ast.Name) and node.id in caught


def catches(module: ast.Module, name: str) -> bool:
    """Whether a module has an `except` for an exception, or for a tuple of the module's with it."""
    tuples = {
        name_of(node.targets[0]): names_in(node.value)
        for node in module.body
        if isinstance(node, ast.Assign)
    }
    return any(
        name in names_in(node.type) | tuples.get(name_of(node.type), set())
        for node in ast.walk(module)
        if isinstance(node, ast.ExceptHandler)
    )


@pytest.mark.parametrize("file", MODULES)
def test_what_is_raised_is_of_the_tree(file: str) -> None:
    for node, caught in raises(MODULES[file]):
        if node.exc is None or of_the_tree(node.exc, caught):
            continue
        name = name_of(node.exc)
        said = f"{file}:{node.lineno}: {ast.unparse(node)}"
        assert (
            name in CONTROL
            or (file, name) in {*INTERNAL, *SHOWN}
            or (file, ast.unparse(node.exc)) in KEPT
        ), f"{said} is not of the tree in vggdeploy/errors.py"


@pytest.mark.parametrize(("file", "name"), INTERNAL)
def test_what_is_outside_of_the_tree_is_raised_and_caught(file: str, name: str) -> None:
    assert any(name_of(node.exc) == name for node, _ in raises(MODULES[file]))
    for catcher in INTERNAL[file, name]:
        assert catches(MODULES[catcher], name), f"{catcher} has no except for {name}"


@pytest.mark.parametrize(("file", "what"), KEPT)
def test_what_another_thread_caught_is_there(file: str, what: str) -> None:
    assert any(node.exc and ast.unparse(node.exc) == what for node, _ in raises(MODULES[file]))


@pytest.mark.parametrize("file", MODULES)
def test_every_error_has_all_parts_of_its_message(file: str) -> None:
    made = [
        node
        for node in ast.walk(MODULES[file])
        if isinstance(node, ast.Call)
        and (name_of(node) in TREE or (isinstance(node.func, ast.Call) and name_of(node) == "type"))
    ]
    for node in made:
        where = f"{file}:{node.lineno}"
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        assert set(given) == {"got", "expected", "fix"}, where
        assert len(node.args) == 1, where
        for part in (*node.args, *given.values()):
            empty = isinstance(part, ast.Constant) and (
                part.value is None or not str(part.value).strip()
            )
            assert not empty, f"{where}: a part of the message is empty"


def test_the_walk_sees_the_errors() -> None:
    """Else the tests above would hold of nothing."""
    made = sum(
        isinstance(node, ast.Call) and name_of(node) in TREE
        for module in MODULES.values()
        for node in ast.walk(module)
    )
    assert made > 300
    assert {"missing_package", "failure", "need"} - MAKERS == {"need"}


# --- command lines that must fail

BUILD = {"schema": 1, "kind": "build", "target": "ov-int8", "digest": "d" * 64, "engine_bytes": 9}
DEEP = "[" * 100_000


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with files of many kinds, to stand in."""
    for folder in ("empty", "full", "torn", "deep", "labelled/a", "labelled/b"):
        (tmp_path / folder).mkdir(parents=True)
    for name, text in {
        "notes.txt": "hello\n",
        "full/notes.txt": "hello\n",
        "torn/manifest.json": "{",
        "deep/manifest.json": DEEP,
        "labelled/a/x.png": "no image",
        "torn.json": "{",
        "deep.json": DEEP,
        "list.json": "[]",
        "old.json": '{"kind": "bench", "schema": 0}',
        "build.json": json.dumps(BUILD),
        "budget.json": '{"kind": "budget", "schema": 1}',
        "short.json": '{"kind": "bench", "schema": 1}',
        "x.onnx": "no graph",
        "page.html": "<p>hello</p>",
        "x.safetensors": "no checkpoint",
        "typo.toml": "sizes = 3\n",
        "torn.toml": "size = [",
    }.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "binary.json").write_bytes(bytes(range(256)))
    monkeypatch.chdir(tmp_path)
    # What is wrong is said before any long work.
    monkeypatch.setattr("vggdeploy.calibrating.Job.stage", None)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, with what is in it."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def refused(capsys: Capture, folder: Path, words: list[str], code: int) -> str:
    """Run a command that must fail with one whole line and leave all as it was; the line."""
    before = contents(folder)
    assert main(words) == code
    out, err = capsys.readouterr()
    assert out == ""
    said = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1, err
    assert err.splitlines()[-1] == said[0], "what went wrong is said last"
    assert re.fullmatch(r"error: \S.*: got \S.*, expected \S.* -- \S.*", said[0]), said[0]
    assert "Traceback" not in err
    assert "this is a bug" not in err
    assert contents(folder) == before
    return said[0]


COMMANDS = [
    ("doctor --json notes.txt", 2, "notes.txt exists"),
    ("doctor --json nowhere/d.json", 2, "no folder"),
    ("doctor --json empty --force", 2, "got a folder"),
    ("doctor --json ''", 2, "an argument is empty"),
    ("budget --arch vgg17", 2, "unknown architecture"),
    ("budget --precision int7", 2, "unknown precision"),
    ("budget --batch 0", 2, "the batch is too small"),
    ("budget --num-classes 0", 2, "classes"),
    ("budget --input-size 8", 2, "got"),
    ("export --weights nowhere.pth", 2, "does not exist"),
    ("export --weights notes.txt", 2, "unknown weights"),
    ("export --weights x.safetensors --arch vgg11", 2, "x.safetensors cannot be read"),
    ("export --weights demo --arch vgg19", 2, "the demo weights fit --arch vgg16 alone"),
    ("export --model nowhere.onnx", 2, "does not exist"),
    ("export --model full", 2, "is no file"),
    ("export --model x.onnx", 2, "x.onnx cannot be read"),
    ("export --model x.onnx --arch vgg16", 2, "--arch does not go with --model"),
    ("export --preprocess vgg", 2, "unknown preprocessing"),
    ("export --preprocess typo.toml", 2, "typo.toml: unknown key"),
    ("export --preprocess torn.toml", 2, "torn.toml cannot be read"),
    ("export --preprocess nowhere.toml", 2, "does not exist"),
    ("export --out full", 2, "full exists: got a folder"),
    ("export --out full --force", 2, "is not what an export leaves"),
    ("export --out /proc --force", 2, "/proc cannot be written: got a mount point"),
    ("export --out /proc/nowhere/graph", 2, "/proc/nowhere/graph cannot be written"),
    ("calibrate --method median", 2, "unknown method"),
    ("calibrate --plot chart.svg", 2, "--plot shows what --sensitivity finds"),
    ("calibrate --sensitivity --plot chart.txt", 2, "the ending '.txt'"),
    ("calibrate --sensitivity --target torch-fp32", 2, "torch-fp32"),
    ("calibrate --out notes.txt", 2, "notes.txt exists: got a file"),
    ("calibrate --out /proc/nowhere.json", 2, "/proc/nowhere.json cannot be written"),
    ("calibrate --json same.json --out same.json", 2, "are one file"),
    ("calibrate --out x.cache --emit-trt-cache", 2, "table and TensorRT cache at once"),
    ("calibrate --emit-trt-cache --trt-version 11.0", 2, "this version of TensorRT"),
    ("calibrate --calib-precision fp8", 2, "unknown precision for calibration"),
    ("build --target ov-int5", 2, "unknown target: got 'ov-int5'"),
    ("build --calib-data nowhere", 2, "nowhere does not exist"),
    ("build --calib-data notes.txt", 2, "notes.txt is no folder"),
    ("build --calib-data empty", 2, "holds no image"),
    ("build --calib-data labelled", 2, "labelled"),
    ("build --calib-images 0", 2, "got 0 of"),
    ("build --weight-rounding up", 2, "unknown --weight-rounding"),
    ("build --damping 0", 2, "got 0.0"),
    ("build --weight-rounding nearest --bias-correction", 2, "--bias-correction goes with"),
    ("build --cpu-isa z80", 2, "unknown CPU"),
    ("build --input-format jpeg", 2, "unknown input format"),
    ("build --workspace 1", 2, "--workspace makes no difference to ov-int8"),
    ("build --target ov-fp32 --calibration t.json", 2, "--calibration makes no difference"),
    ("build --target ov-fp32 --max-drop 0.1", 2, "ov-fp32, which quantizes none"),
    ("build --calibration nowhere.json", 2, "does not exist"),
    ("build --calibration list.json", 2, "is no calibration"),
    ("build --calibration torn.json", 2, "cannot be read"),
    ("build --calibration torn.json --method mse", 2, "--method does not go with --calibration"),
    ("build --portable", 2, "--portable leaves compiling to the device"),
    ("build --sparsity 1:4 --target trt-int8 --portable", 2, "unknown --sparsity"),
    ("build --out full", 2, "exists and is no bundle"),
    ("build --out /proc/nowhere", 2, "/proc/nowhere cannot be written"),
    ("build --out notes.txt", 2, "exists and is no bundle: got a file"),
    ("compile nowhere", 2, "nowhere is no bundle"),
    ("compile notes.txt", 2, "notes.txt is no bundle"),
    ("verify empty", 2, "empty is no bundle"),
    ("verify torn", 2, "manifest.json cannot be read"),
    ("verify deep", 2, "manifest.json cannot be read"),
    ("verify empty --reference x.safetensors", 2, "--reference goes with --data"),
    ("bench nowhere", 2, "nowhere is no bundle"),
    ("bench empty --scenario offline", 2, "unknown scenario"),
    ("bench empty --rate 3", 2, "--rate is of arrivals"),
    ("bench empty --scenario server", 2, "needs a rate, or a bound"),
    ("bench empty --full", 2, "--full and --logs are of --mlperf"),
    ("bench empty --mlperf --queries 9", 2, "LoadGen decides by itself"),
    ("bench empty --batches 1,x", 2, "got"),
    ("bench empty --seconds 0", 2, "the time is out of range"),
    ("bench empty --mlperf --logs full", 2, "full exists: got a folder with files in it"),
    ("bench empty --mlperf --logs notes.txt", 2, "notes.txt exists: got a file"),
    ("tune nowhere", 2, "nowhere is no bundle"),
    ("tune empty --goal speed", 2, "unknown --goal"),
    ("tune empty --latency-bound 1", 2, "--latency-bound goes with --goal throughput"),
    ("compare nowhere.json torn.json", 2, "nowhere.json does not exist"),
    ("compare torn.json torn.json", 2, "torn.json cannot be read"),
    ("compare build.json build.json", 2, "got"),
    ("compare short.json short.json", 2, "got"),
    ("gate nowhere.json", 2, "nowhere.json does not exist"),
    ("gate torn.json", 2, "torn.json cannot be read"),
    ("gate deep.json", 2, "deep.json cannot be read"),
    ("gate binary.json", 2, "binary.json cannot be read"),
    ("gate list.json", 2, "list.json is no result"),
    ("gate old.json", 2, "another schema: got 0, expected 1"),
    ("gate budget.json", 2, "has nothing to gate: got kind 'budget'"),
    ("gate build.json build.json", 2, "two results of kind 'build'"),
    ("gate short.json", 2, "no usable"),
    ("gate build.json --min-agreement 2", 2, "bound min_agreement is wrong"),
    ("gate build.json --max-ratio p50", 2, "METRIC=RATIO"),
    ("gate build.json --max-ratio p50=1 --max-ratio p50=2", 2, "p50 twice: got p50=1, p50=2"),
    ("gate build.json --baseline nowhere.json", 2, "nowhere.json"),
    ("gate build.json --data labelled", 2, "--data goes with a bundle"),
    ("gate build.json --reference x.onnx --native", 2, "--reference and --native go with a bundle"),
    ("gate build.json --trusted-keys notes.txt", 2, "--trusted-keys goes with a bundle"),
    ("gate build.json --device CPU", 2, "--device goes with a bundle"),
    ("baseline build.json --out b.json", 2, "a baseline needs a reason"),
    ("baseline build.json --out b.json --reason why", 2, "nothing to hold others against"),
    ("report nowhere.json", 2, "nowhere.json does not exist"),
    ("report short.json", 2, "short.json cannot be shown: got nothing at"),
    ("report budget.json", 2, "got kind 'budget'"),
    ("report build.json build.json", 2, "build.json is given twice"),
    ("report build.json --out build.json --force", 2, "a result that is read"),
    ("run --target ov-int5", 2, "unknown target"),
    ("run --out /proc/nowhere", 2, "/proc/nowhere cannot be written"),
    ("run --portable --target torch-fp32", 2, "--portable leaves compiling to the device"),
    ("run --report notes.txt", 2, "the ending '.txt'"),
    ("run --report page.html", 2, "page.html exists"),
    ("run --min-agreement -1", 2, "bound min_agreement is wrong"),
    # typer's own errors, as a line of ours
    ("nonsense", 2, "no such command"),
    ("build --nonsense", 2, "no such option"),
    ("build --seed", 2, "requires an argument, expected what 'vggdeploy build' takes"),
    ("bundle pack full --out", 2, "see 'vggdeploy bundle pack --help'"),
    ("bench empty --batch many", 2, "'--batch'"),
    ("verify", 2, "missing argument 'BUNDLE'"),
    ("verify empty full", 2, "unexpected extra argument"),
]


@pytest.mark.parametrize(("line", "code", "said"), COMMANDS, ids=[row[0] for row in COMMANDS])
def test_a_command_that_cannot_be_done_says_why_in_one_line(
    capsys: Capture, here: Path, line: str, code: int, said: str
) -> None:
    assert said in refused(capsys, here, shlex.split(line), code)


def test_every_command_is_in_the_table() -> None:
    known = {command.callback.__name__ for command in app.registered_commands if command.callback}
    assert known <= {line.split()[0] for line, _, _ in COMMANDS}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a = [", "vggdeploy.toml cannot be read"),
        ("a = " + DEEP, "vggdeploy.toml cannot be read"),
        ("sead = 3", "unknown key: got 'sead'"),
        ("[biuld]\nseed = 3", "unknown table: got 'biuld'"),
        ("[gate]\nmax_ratio = 3", "max_ratio is wrong"),
        ("[gate.targets.trt-int9]\nmin_top1 = 0.5", "unknown key: got 'trt-int9'"),
        ('[doctor]\njson = "notes.txt"', "notes.txt exists"),
    ],
)
def test_settings_that_cannot_be_taken(capsys: Capture, here: Path, text: str, said: str) -> None:
    (here / "vggdeploy.toml").write_text(text, encoding="utf-8")
    assert said in refused(capsys, here, ["doctor"], 2)


# --- exit codes


def interrupt() -> None:
    raise KeyboardInterrupt


def exhaust() -> None:
    raise MemoryError


def test_exit_0_is_done_or_passed(capsys: Capture, here: Path) -> None:
    assert main(["budget"]) == 0
    assert main(["gate", "build.json", "--max-engine-bytes", "10"]) == 0


def test_exit_1_is_a_gate_that_failed_or_cannot_tell(capsys: Capture, here: Path) -> None:
    assert main(["gate", "build.json", "--max-engine-bytes", "8"]) == 1
    assert "verdict: FAIL" in capsys.readouterr().err
    assert main(["gate", "build.json", "--min-agreement", "0.9"]) == 1
    assert "verdict: INCONCLUSIVE" in capsys.readouterr().err


def test_exit_2_is_input(capsys: Capture, here: Path) -> None:
    refused(capsys, here, ["verify", "nowhere"], 2)


def test_exit_3_is_something_that_is_not_here(
    capsys: Capture, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vggdeploy.contracts import Availability
    from vggdeploy.targets.tensorrt import TensorRT

    gone = Availability(False, "TensorRT is hidden", "pip install tensorrt")
    monkeypatch.setattr(TensorRT, "availability", lambda self: gone)
    said = refused(capsys, here, ["build", "--target", "trt-int8"], 3)
    assert "trt-int8 does not work here: got TensorRT is hidden" in said
    assert said.endswith(" -- pip install tensorrt")


def test_exit_3_is_memory_too(capsys: Capture, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vggdeploy.doctor.doctor", exhaust)
    assert "not enough memory: got MemoryError" in refused(capsys, here, ["doctor"], 3)


def test_exit_130_is_ctrl_c(capsys: Capture, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vggdeploy.doctor.doctor", interrupt)
    before = contents(here)
    assert main(["doctor", "--json", "d.json"]) == 130
    err = capsys.readouterr().err
    assert "interrupted: nothing half-written was left" in err
    assert "Traceback" not in err
    assert contents(here) == before


CODES = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}


def test_these_are_all_exit_codes() -> None:
    assert {0, 1, 2, 3, 130} == CODES
    assert {getattr(errors, name).exit_code for name in TREE} == CODES - {0}


@pytest.mark.parametrize("code", sorted(CODES))
def test_exit_codes_are_documented(capsys: Capture, code: int) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    with contextlib.suppress(SystemExit):
        main(["--help"])
    for text in (readme, capsys.readouterr().out):
        said = " ".join(text[text.index("Exit codes") :].split())
        assert re.search(rf"(Exit codes: |; |\| ){code} (\||\w)", said[:1500])
