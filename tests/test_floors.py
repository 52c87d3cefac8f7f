"""The floors: a file imports from files below its own, and a stage from no other stage."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Ground first; on one floor only from names listed earlier.
FLOORS = [
    ["text", "errors", "streams", "limits", "forms", "toml", "digests", "machine", "locks", "atomic", "topology", "preprocess"],
    [
        "contracts", "cache", "signing", "manifest", "bundle", "tuning", "packing", "results", "dataset", "graphs", "graph_layers", "opsets", "half", "pixels", "signs",
        "parity", "budget", "roofline", "gpus", "config", "demo", "demo.widen", "demo.digits", "checkpoints", "reference",
    ],
    ["export", "calib", "targets", "benchmarks"],
    [
        "sources", "observers", "execution", "speed", "benching", "verification", "inspection", "inputs", "trt_flags", "compiling", "calibration_file",
        "calibrating", "pruning", "building", "sensitivity",
        "mixed", "plots", "policy", "evidence", "gates", "baseline", "doctor", "pipeline", "report",
    ],
    [
        "terminal", "bundle_table", "machine_table", "bench_table", "gate_table", "console", "layers_table", "speed_table", "ci", "flags", "bundle_commands", "cli", "__main__", "pytest_plugin", "demo.train", "benchmarks.footprint", "benchmarks.ablation",
        "benchmarks.children", "benchmarks.competitors", "benchmarks.rows", "benchmarks.latency_peers", "benchmarks.peers",
        "benchmarks.collection", "benchmarks.gpu_report", "benchmarks.trt_overhead",
        "benchmarks.overhead", "benchmarks.agreement", "benchmarks.startup", "benchmarks.checking",
        "benchmarks.verifying",
        "benchmarks.tuned",
    ],
]  # fmt: skip
STAGES = FLOORS[2]
ORDER = {name: place for place, name in enumerate(name for floor in FLOORS for name in floor)}


def modules() -> dict[str, Path]:
    found = {}
    for folder in ("vggdeploy", *STAGES):
        place = ROOT / folder if (ROOT / folder).is_dir() else ROOT / "vggdeploy" / folder
        if place.parent == ROOT / "vggdeploy":
            continue
        for file in place.rglob("*.py"):
            parts = file.relative_to(ROOT).with_suffix("").parts
            parts = parts[1:] if parts[0] == "vggdeploy" else parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join(parts)] = file
    return found


def imports(file: Path) -> set[str]:
    """What a file imports of this package when it runs; types alone do not count."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            continue
        for inner in ast.walk(node):
            if isinstance(inner, ast.ImportFrom) and (inner.module or "").startswith("vggdeploy"):
                base = str(inner.module).removeprefix("vggdeploy").lstrip(".")
                for name in inner.names:
                    whole = f"{base}.{name.name}".lstrip(".")
                    found.add(whole if whole in MODULES else base)
    return found - {""}


MODULES = modules()


def place_of(name: str) -> int | None:
    """A name's place in the order; parts of a stage stand where the stage does."""
    return ORDER.get(name, ORDER.get(name.split(".")[0]))


@pytest.mark.parametrize("name", sorted(set(MODULES) - {""}))
def test_imports_lie_below(name: str) -> None:
    own = place_of(name)
    assert own is not None, f"{name} stands on no floor"
    for imported in imports(MODULES[name]):
        below = place_of(imported)
        assert below is not None, f"{imported} stands on no floor"
        same_part = imported.split(".")[0] == name.split(".")[0]
        assert below < own or same_part, f"{name} imports {imported} from above"
        if name.split(".")[0] in STAGES and place_of(name) == ORDER[name.split(".")[0]]:
            assert same_part or imported.split(".")[0] not in STAGES, f"{name} imports {imported}"


def test_every_file_is_seen() -> None:
    assert {
        "cli",
        "pipeline",
        "calib.quantize",
        "targets.openvino",
        "targets.trt_build",
        "export.fold",
    } <= set(MODULES)


def test_the_floors_are_those_of_the_guide() -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    listed = guide[guide.index("\n1. `") :].partition("\n\n")[0]
    said = {word.rstrip("/").split("/")[-1] for word in re.findall(r"`([^`]+)`", listed)}
    # Of `demo/` the guide names the program alone.
    own = {name.split(".")[-1] for name in ORDER} - {"widen", "digits"}
    assert said == own
