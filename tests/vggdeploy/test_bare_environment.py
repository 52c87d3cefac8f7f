"""With the core dependencies alone, everything imports, explains itself, and says what to install."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from small_bundle import FACTS, fill

from vggdeploy import bundle, demo, inputs

if TYPE_CHECKING:
    from pathlib import Path

OPTIONAL = (
    "torch", "torchvision", "onnx", "onnx_ir", "onnxscript", "ml_dtypes", "safetensors", "openvino",
    "sklearn", "scikit_learn", "scipy", "matplotlib", "jinja2", "nncf", "onnxruntime", "tensorrt", "tensorrt_rtx",
    "tensorrt_rtx_cu13",
    "pycuda", "cryptography", "cffi", "pynvml", "nvidia_ml_py", "playwright", "markupsafe", "dask", "psutil", "hypothesis", "pytest",
)  # fmt: skip

WITHOUT = """
import importlib.machinery, sys

class Without:
    '''Finds what is installed, but for what is hidden: as if that had never been installed.'''

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            return None
        return importlib.machinery.PathFinder.find_spec(name, path, target)

    @classmethod
    def find_distributions(cls, context=None):
        for found in importlib.machinery.PathFinder.find_distributions(context):
            if found.metadata["Name"].lower().replace("-", "_") not in HIDDEN:
                yield found

HIDDEN = frozenset(sys.argv.pop(1).split(","))
sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Without
"""


@pytest.fixture
def bare(tmp_path: Path) -> Any:
    """Runs Python code in a process that lacks `hidden`."""

    def run(code: str, *arguments: str, hidden: tuple[str, ...] = OPTIONAL) -> Any:
        return subprocess.run(
            [sys.executable, "-c", WITHOUT + code, ",".join(hidden), *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )

    return run


MAIN = """
from vggdeploy.cli import main
raise SystemExit(main(sys.argv[1:]))
"""


def test_what_is_hidden_is_hidden(bare: Any) -> None:
    code = """
import importlib.util, importlib.metadata
print([name for name in sorted(HIDDEN) if importlib.util.find_spec(name)])
try:
    importlib.metadata.version("openvino")
except importlib.metadata.PackageNotFoundError:
    print("gone")
"""
    assert bare(code).stdout.splitlines() == ["[]", "gone"]


def test_every_module_imports(bare: Any) -> None:
    code = """
import importlib, pkgutil
import vggdeploy

names = ["vggdeploy"]
for package in ("vggdeploy", "vggdeploy.calib", "vggdeploy.export", "vggdeploy.benchmarks"):
    found = importlib.import_module(package)
    names += [m.name for m in pkgutil.walk_packages(found.__path__, package + ".")]
for name in sorted(set(names)):
    # The plugin is imported by pytest alone.
    if not name.endswith(("__main__", "pytest_plugin")):
        importlib.import_module(name)
        print(name)
"""
    done = bare(code)
    assert done.returncode == 0, done.stderr
    imported = done.stdout.split()
    assert "vggdeploy.targets.openvino" in imported
    assert "vggdeploy.calib.quantize" in imported
    assert "vggdeploy.export.from_torch" in imported
    assert len(imported) > 40


def test_heavy_packages_stay_out_until_they_are_needed(bare: Any) -> None:
    """Where they are installed, too: the command line starts without them."""
    code = """
import vggdeploy.pipeline, vggdeploy.cli, vggdeploy.targets
print([name for name in WATCHED if name in sys.modules])
""".replace("WATCHED", repr(OPTIONAL))
    done = bare(code, hidden=("none",))
    assert done.stdout.strip() == "[]", done.stderr


def test_every_help_works(bare: Any) -> None:
    code = """
from vggdeploy.cli import app, main
names = [[command.callback.__name__] for command in app.registered_commands]
for group in app.registered_groups:
    inner = group.typer_instance.registered_commands
    names += [[group.name, command.callback.__name__] for command in inner]
for name in names:
    assert main([*name, "--help"]) == 0, name
assert main(["--help"]) == 0
print(len(names), file=sys.stderr)
"""
    done = bare(code)
    assert done.returncode == 0, done.stderr
    assert int(done.stderr) >= 19
    assert "--target" in done.stdout


def test_budget_and_doctor_work(bare: Any) -> None:
    done = bare(MAIN, "budget", "--json", "-")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["total"]["macs"] == 15_470_264_320
    done = bare(MAIN, "doctor", "--json", "-")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert not any(target["available"] for target in result["targets"].values())
    assert all("pip install" in target["fix"] for target in result["targets"].values())
    assert {said["version"] for said in result["packages"].values()} == {None}


@pytest.mark.parametrize(
    ("hidden", "extra", "arguments"),
    [
        (OPTIONAL, "openvino", []),
        (("openvino",), "openvino", []),
        (("sklearn",), "demo", []),
        (("torch",), "export", []),
        (("safetensors",), "export", []),
        (("onnxscript",), "export", []),
        (("onnx_ir",), "export", []),
        (("onnx",), "export", []),
        (("torch",), "export", ["--target", "torch-fp32"]),
    ],
    ids=lambda value: ",".join(value)[:20] if isinstance(value, tuple | list) else value,
)
def test_build_says_what_to_install(
    bare: Any, tmp_path: Path, digits_folder: Path, hidden: tuple[str, ...], extra: str,
    arguments: list[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("VGGDEPLOY_CACHE", str(tmp_path / "cache"))
    images = [] if "sklearn" in hidden else ["--calib-data", str(digits_folder)]
    few = ["--calib-images", "2", "--weights", str(demo.CHECKPOINT)]
    if "sklearn" in hidden:
        few = ["--weights", "demo"]
    done = bare(MAIN, "build", *few, *images, *arguments, "--out", "bundle", hidden=hidden)
    assert done.returncode == 3, done.stderr
    assert f"pip install 'vggdeploy[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "bundle").exists()


def test_bundle_is_verified_and_measured_without_torch(bare: Any, tiny_bundle: Path) -> None:
    """The edge has numpy and OpenVINO alone."""
    edge = tuple(name for name in OPTIONAL if name != "openvino")
    done = bare(MAIN, "verify", str(tiny_bundle), "--json", "-", hidden=edge)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parity"]["n"] == inputs.PROBES
    done = bare(MAIN, "bench", str(tiny_bundle), "--seconds", "0.05", "--json", "-", hidden=edge)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["throughput_ips"] > 0


def test_verify_without_torch_judges_the_probes(
    bare: Any, slim_bundle: Path, heldout_folder: Path
) -> None:
    edge = tuple(name for name in OPTIONAL if name != "openvino")
    arguments = ["verify", str(slim_bundle), "--data", str(heldout_folder), "--json", "-"]
    done = bare(
        "import os, tempfile\nos.environ['VGGDEPLOY_CACHE'] = tempfile.mkdtemp()\n" + MAIN,
        *arguments,
        hidden=edge,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["judged"] == "probes"
    assert "vggdeploy[export]" in result["note"]


def test_a_bundle_is_carried_and_shown_with_the_core_alone(bare: Any, tmp_path: Path) -> None:
    bundle.write(tmp_path / "small", FACTS, fill, replace=False)
    for words in (
        ["inspect", "small"],
        ["pack", "small", "--out", "b.zip"],
        ["inspect", "b.zip"],
        ["unpack", "b.zip", "--out", "out"],
    ):
        done = bare(MAIN, "bundle", *words)
        assert done.returncode == 0, done.stderr
        assert done.stdout == ""
    bundle.open_bundle(tmp_path / "out")


@pytest.mark.parametrize(
    "words",
    [
        ["bundle", "keygen", "--out", "k"],
        ["bundle", "sign", "small", "--key", "k"],
        ["bundle", "inspect", "small", "--trusted-keys", "k.pub"],
        ["verify", "small", "--trusted-keys", "k.pub"],
    ],
)
def test_signatures_say_what_to_install(bare: Any, tmp_path: Path, words: list[str]) -> None:
    bundle.write(tmp_path / "small", FACTS, fill, replace=False)
    done = bare(MAIN, *words)
    assert done.returncode == 3, done.stderr
    assert "pip install 'vggdeploy[sign]'" in done.stderr
    assert "Traceback" not in done.stderr


TENSORRT = ("tensorrt", "tensorrt_rtx", "tensorrt_cu12", "tensorrt_rtx_cu13", "pycuda")


@pytest.fixture
def portable(bare: Any, tiny: Any, tmp_path: Path, tiny_bundle: Path) -> Path:
    """A portable bundle, built where there is no TensorRT."""
    options = tiny()
    arguments = [
        "build", "--target", "trt-int8", "--portable", "--weights", str(options.weights),
        "--preprocess", str(options.preprocess), "--calib-data", str(options.calib_data),
        "--calib-images", "16", "--max-batch", "2", "--out", "portable",
    ]  # fmt: skip
    done = bare(MAIN, *arguments, hidden=TENSORRT)
    assert done.returncode == 0, done.stderr
    assert "vggdeploy compile portable" in done.stderr
    return tmp_path / "portable"


def test_portable_bundle_is_judged_without_torch_and_tensorrt(bare: Any, portable: Path) -> None:
    """A CI job has numpy and OpenVINO alone."""
    edge = tuple(name for name in OPTIONAL if name != "openvino")
    done = bare(MAIN, "gate", str(portable), "--min-agreement", "0.5", "--json", "-", hidden=edge)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["execution"] == "emulated"
    done = bare(MAIN, "bench", str(portable), hidden=edge)
    assert done.returncode == 3
    assert "never an emulation" in done.stderr
    assert "pip install" in done.stderr


def test_portable_bundle_is_compiled_by_tensorrt_alone(bare: Any, portable: Path) -> None:
    """No torch, no onnx, no OpenVINO: what a device has."""
    done = bare(MAIN, "compile", str(portable))
    assert done.returncode == 3
    assert "pip install" in done.stderr
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    device = tuple(name for name in OPTIONAL if name not in TENSORRT)
    flags = ["--flavour", "rtx", "--compute-capability", "7.5", "--compute-capability", "8.6"]
    done = bare(MAIN, "compile", str(portable), *flags, "--json", "-", hidden=device)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["engine_bytes"] > 10_000
    assert result["backend"].startswith("tensorrt_rtx ")
    assert result["recipe"]["compute_capabilities"] == ["7.5", "8.6"]
    assert result["recipe"]["max_batch"] == 2
    # Compiled for cards, it can still be judged where there is none.
    edge = tuple(name for name in OPTIONAL if name != "openvino")
    done = bare(MAIN, "verify", str(portable), "--json", "-", hidden=edge)
    assert done.returncode == 0, done.stderr
    judged = json.loads(done.stdout)
    assert (judged["execution"], judged["compiled"]) == ("emulated", True)
    done = bare(MAIN, "verify", str(portable), "--native", hidden=edge)
    assert done.returncode == 3
