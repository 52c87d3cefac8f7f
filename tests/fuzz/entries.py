"""Where the product reads what others may have written: each a function of bytes.

A new format gets an `Entry` here, and with that is fuzzed by the tests and by ``run.py``.
"""

from __future__ import annotations

import functools
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mutations
import numpy as np
import report_results

from vggdeploy import (
    baseline,
    bundle,
    calib,
    calibration_file,
    checkpoints,
    compiling,
    config,
    digests,
    execution,
    export,
    gates,
    graph_layers,
    graphs,
    policy,
    preprocess,
    reference,
    report,
    results,
    sources,
    targets,
    topology,
    tuning,
)
from vggdeploy.calib import trt_cache
from vggdeploy.calib.table import CalibrationTable, TensorRange
from vggdeploy.contracts import INT8, RunOptions, TrtOptions
from vggdeploy.errors import VggdeployError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SIDE = 16
RECIPE = preprocess.Preprocess(size=(SIDE, SIDE), resize="stretch")


@dataclass(frozen=True)
class Entry:
    """A way into the product.

    Attributes:
        read: reads bytes by way of files in a folder of its own, as far as a command would.
        seeds: whole inputs, made in a folder.
        mutation: a change in the format's own terms.
    """

    read: Callable[[bytes, Path], object]
    seeds: Callable[[Path], Sequence[bytes]]
    mutation: mutations.Mutation


def graph() -> bytes:
    """A small float graph: convolution, Relu, pool, Flatten, Gemm."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(5)

    def array(name: str, *shape: int) -> Any:
        return numpy_helper.from_array(rng.normal(0, 0.3, shape).astype(np.float32), name)

    made = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "c.weight", "c.bias"], ["c"], "c", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["r"], "r"),
            helper.make_node("MaxPool", ["r"], ["p"], "p", kernel_shape=[2, 2], strides=[2, 2]),
            helper.make_node("Flatten", ["p"], ["f"], "f"),
            helper.make_node("Gemm", ["f", "g.weight", "g.bias"], ["scores"], "g", transB=1),
        ],
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 10])],
        [array("c.weight", 4, 3, 3, 3), array("c.bias", 4), array("g.weight", 10, 4 * 64),
         array("g.bias", 10)],
    )  # fmt: skip
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(onnx.shape_inference.infer_shapes(model).SerializeToString())


@functools.cache
def points() -> Any:
    """What of `graph` is quantized."""
    import onnx_ir

    return calib.place(onnx_ir.from_proto(_proto(graph()))).points


def _proto(content: bytes) -> Any:
    import onnx

    return onnx.load_from_string(content)


def made_bundle(folder: Path) -> bytes:
    """The manifest of a tuned bundle, which is in ``folder/bundle``."""
    path, model = folder / "bundle", folder / "model.onnx"
    shutil.rmtree(path, ignore_errors=True)
    model.write_bytes(graph())
    facts = {
        "target": "trt-int8",
        "precision": "int8",
        "model": sources.from_onnx(model, RECIPE).facts(),
        "input": {"name": "image", "shape": [None, 3, SIDE, SIDE], "dtype": "float32"},
        "output": {"name": "scores", "shape": [None, 10], "dtype": "float32"},
        "preprocess": RECIPE.to_json(),
        "engine": ["model.engine"],
        "portable": False,
        compiling.RECIPE: compiling.recipe(TrtOptions()),
        "calibration": "0" * 64,
        "settings": {},
        "build": {"key": "k", "seed": 0, "share": 1e-05, "engine": {"batches": [1, 1, 8]}},
    }

    def fill(work: Path) -> None:
        (work / "model.engine").write_bytes(b"engine")
        (work / bundle.GRAPH).write_bytes(b"graph")
        (work / bundle.LAYERS).write_text('{"layers": [], "nodes": {}}')
        probes().save(work / bundle.PROBES)

    made = bundle.write(path, facts, fill, replace=False)
    here = tuning.Place("CPU", "Some CPU", 8)
    choice = tuning.Choice("latency", 1, tuning.Settings(threads=4), here, "tensorrt 10")
    tuning.record(made, choice, {"kind": "tune"})
    return (path / bundle.MANIFEST).read_bytes()


def probes() -> bundle.Probes:
    return bundle.Probes(
        np.zeros((2, SIDE, SIDE, 3), np.uint8), np.ones((2, 10), np.float32), np.array([3, 7])
    )


def read_manifest(content: bytes, folder: Path) -> None:
    """A manifest as it is."""
    (folder / "bundle" / bundle.MANIFEST).write_bytes(content)
    opened = bundle.open_bundle(folder / "bundle")
    here = tuning.Place("CPU", "Some CPU", 8)
    _use(
        lambda: opened.preprocess,
        lambda: opened.graph,
        lambda: (opened.engine, opened.engine_bytes, opened.compiled, opened.target),
        lambda: opened.batch(opened.probes().images),
        opened.budget,
        lambda: tuning.choose(opened, "latency", here, "tensorrt 10"),
        lambda: compiling.options_of(opened.manifest, {}),
        lambda: execution.choose(opened, "CPU"),
        lambda: targets.get(opened.target).cautions(opened, RunOptions()),
        lambda: sources.from_manifest(opened.manifest),
    )


def _use(*parts: Callable[[], object]) -> None:
    """Every part, though one before is refused; the last refusal is passed on."""
    refused = None
    for part in parts:
        try:
            part()
        except VggdeployError as error:
            refused = error
    if refused is not None:
        raise refused


def read_signed_manifest(content: bytes, folder: Path) -> None:
    """A manifest whose digests and spelling a forger has made to fit."""
    try:
        said = json.loads(content)
        if isinstance(said, dict):
            own = {k: v for k, v in said.items() if k not in ("digest", bundle.TUNED)}
            said["digest"] = digests.sha256_json(own)
            if isinstance(said.get(bundle.TUNED), dict):
                said[bundle.TUNED]["digest"] = bundle.tuned_digest(
                    said["digest"], said[bundle.TUNED]
                )
            content = bundle.spelling(said).encode()
    except (ValueError, RecursionError):
        pass
    read_manifest(content, folder)


def read_calibration(content: bytes, folder: Path) -> None:
    path = folder / "calibration"
    path.write_bytes(content)
    found = calibration_file.read(path)
    table = found.table(points())
    _use(
        lambda: found.require_same(SOURCE),
        lambda: [table.scale(point.name, INT8) for point in points()],
        lambda: table.plain().save(folder / "again.json"),
        lambda: calibration_file.cautions(table, path),
    )


SOURCE = sources.Source(None, Path("small.onnx"), "0" * 64, RECIPE)


def calibration_table(folder: Path) -> Sequence[bytes]:
    tensors = {
        point.name: TensorRange(-1.0, 2.5, {"int8": 2.4, "uint8": 2.5}, "mse") for point in points()
    }
    said = {"model": SOURCE.identity(), "preprocess": RECIPE.to_json(), "images": 4}
    CalibrationTable(tensors, said).save(folder / "table.json")
    return [(folder / "table.json").read_bytes()]


def calibration_cache(folder: Path) -> Sequence[bytes]:
    import onnx_ir

    calibration_table(folder)
    table = CalibrationTable.load(folder / "table.json")
    model = onnx_ir.from_proto(_proto(graph()))
    trt_cache.save(folder / "table.cache", table, model)
    return [(folder / "table.cache").read_bytes()]


def read_settings(content: bytes, folder: Path) -> None:
    (folder / config.OWN).write_bytes(content)
    settings, where = config.load(folder)
    settings, ratios, by_target = policy.split(settings, targets.REGISTRY, where)
    bounds = config.defaults(settings, {name: ["target", "batch", *policy.BOUNDS] for name in
                                        ("bench", "build", "gate", "run")}, where)  # fmt: skip
    given = {key: bounds["gate"].get(key) for key in policy.BOUNDS}
    held = policy.Policies({**given, policy.MAX_RATIO: ratios}, frozenset(), by_target)
    for target in ("", *targets.REGISTRY):
        held.of(target)


SETTINGS = b"""target = "ov-int8"
batch = 1
[bench]
batch = 4
[gate]
min_agreement = 0.99
max_drop = 0.01
max_p99 = 0.120
[gate.max_ratio]
p99 = 1.05
[gate.targets.ov-int8]
max_p50 = 0.01
[gate.targets.trt-int8.max_ratio]
p50 = 1.1
"""


def read_recipe(content: bytes, folder: Path) -> None:
    (folder / "recipe.toml").write_bytes(content)
    preprocess.load(str(folder / "recipe.toml")).arithmetic(np.zeros((1, 2, 2, 3), np.uint8))


def recipe(folder: Path) -> Sequence[bytes]:
    return [
        "\n".join(
            f"{key} = {json.dumps(value)}" for key, value in RECIPE.to_json().items()
        ).encode()
    ]


def read_weights(content: bytes, folder: Path) -> None:
    path = folder / "weights.safetensors"
    path.write_bytes(content)
    reference.load(reference.locate(str(path), input_size=(SIDE * 2, SIDE * 2)))


def weights(folder: Path) -> Sequence[bytes]:
    network = topology.vgg("vgg11", num_classes=2, input_size=(32, 32), width_divisor=64)
    module = reference.build(network)
    tensors = {k: np.zeros(tuple(v.shape), np.float32) for k, v in module.state_dict().items()}
    checkpoints.save(folder / "seed.safetensors", tensors, network, "unit")
    few = {key: tensors[key] for key in list(tensors)[:2]}
    checkpoints.save(folder / "few.safetensors", few, network, "unit")
    return [(folder / name).read_bytes() for name in ("seed.safetensors", "few.safetensors")]


def read_graph(content: bytes, folder: Path) -> None:
    path = folder / "model.onnx"
    path.write_bytes(content)
    sources.from_onnx(path, RECIPE)
    (folder / "adopted").mkdir(exist_ok=True)
    model = graphs.read(export.adopt(path, folder / "adopted"))
    calib.place(model)
    graph_layers.rows(model)


def read_result(content: bytes, folder: Path) -> None:
    """As ``gate`` and ``baseline`` do."""
    path = folder / "result.json"
    path.write_bytes(content)
    (folder / "baseline.json").unlink(missing_ok=True)
    found = results.read(path)
    _use(
        lambda: baseline.update(folder / "baseline.json", [path], "a reason"),
        lambda: gates.judge([found], POLICY, baseline=[found]),
    )


POLICY = policy.Policy(
    min_agreement=0.9, max_drop=0.1, min_top1=0.5, min_cosine=0.5, min_sqnr=10, max_p50=1, max_p99=1,
    min_throughput=1, min_utilisation=0.01, max_engine_bytes=1e9, max_resident_bytes=1e9, max_energy=9,
    max_ratio={"p50": 1.1},
)  # fmt: skip


def read_baseline(content: bytes, folder: Path) -> None:
    path = folder / "baseline.json"
    path.write_bytes(content)
    found = baseline.results_of(path, "ov-int8")
    gates.judge([whole_run()["verify"]], POLICY, baseline=found)


def whole_run() -> dict[str, Any]:
    said = report_results.full()
    said["verify"]["system"] = said["bench"]["system"]
    said["verify"]["accuracy"].update(gained=1, lost=1)
    said["verify"]["parity"].update(sqnr_ci95=[54.1, 54.8])
    said["bench"]["resident_bytes"] = 300_000_000
    said["bench"]["samples_s"] = said["bench"]["samples_s"][:40]
    return said


def baselines(folder: Path) -> Sequence[bytes]:
    (folder / "result.json").write_bytes(run_results(folder)[1])
    baseline.update(folder / "seed.json", [folder / "result.json"], "a reason")
    return [(folder / "seed.json").read_bytes()]


def read_report(content: bytes, folder: Path) -> None:
    path = folder / "result.json"
    path.write_bytes(content)
    report.write([path], folder / "report.html", folder / "report.md", force=True)


def run_results(folder: Path) -> Sequence[bytes]:
    """A run with everything that one may have, its verification, and its measurement."""
    said = whole_run()
    return [
        json.dumps({**each, "schema": results.SCHEMA}, indent=1).encode()
        for each in (said, said["verify"], said["bench"])
    ]


def read_probes(content: bytes, folder: Path) -> None:
    (folder / bundle.PROBES).write_bytes(content)
    bundle.Probes.load(folder / bundle.PROBES)


def probe_files(folder: Path) -> Sequence[bytes]:
    probes().save(folder / "seed.npz")
    return [(folder / "seed.npz").read_bytes()]


ENTRIES: dict[str, Entry] = {
    "manifest": Entry(read_manifest, lambda at: [made_bundle(at)], mutations.in_json),
    "signed-manifest": Entry(read_signed_manifest, lambda at: [made_bundle(at)], mutations.in_json),
    "calibration": Entry(read_calibration, calibration_table, mutations.in_json),
    "trt-cache": Entry(read_calibration, calibration_cache, mutations.raw),
    "settings": Entry(read_settings, lambda _: [SETTINGS], mutations.in_toml),
    "preprocess": Entry(read_recipe, recipe, mutations.in_toml),
    "weights": Entry(read_weights, weights, mutations.in_safetensors),
    "model": Entry(read_graph, lambda _: [graph()], mutations.in_onnx),
    "result": Entry(read_result, run_results, mutations.in_json),
    "baseline": Entry(read_baseline, baselines, mutations.in_json),
    "report": Entry(read_report, run_results, mutations.in_json),
    "probes": Entry(read_probes, probe_files, mutations.in_zip),
}
"""By name, as ``--only`` takes it."""
