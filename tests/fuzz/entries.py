"""Where the product reads what others may have written: each a function of bytes.

A new format gets an `Entry` here, and with that is fuzzed by the tests and by ``run.py``.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bundle_files
import mutations
import numpy as np
import report_results
from bundle_files import use
from PIL import Image
from small_graph import RECIPE, SIDE, graph, points, proto

from vggdeploy import (
    baseline,
    bundle,
    calib,
    calibration_file,
    checkpoints,
    config,
    dataset,
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
)
from vggdeploy.calib import trt_cache
from vggdeploy.calib.table import CalibrationTable, TensorRange
from vggdeploy.contracts import INT8
from vggdeploy.manifest import PROBES, TABLE
from vggdeploy.targets.torch_eager import NETWORK

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


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


def read_calibration(content: bytes, folder: Path) -> None:
    path = folder / "calibration"
    path.write_bytes(content)
    found = calibration_file.read(path)
    table = found.table(points())
    use(
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
    model = onnx_ir.from_proto(proto(graph()))
    trt_cache.save(folder / "table.cache", table, model)
    return [(folder / "table.cache").read_bytes()]


def read_settings(content: bytes, folder: Path) -> None:
    (folder / config.OWN).write_bytes(content)
    settings, where = config.load(folder)
    settings, ratios, by_target = policy.split(settings, targets.REGISTRY, where)
    takes = {"target": "text", "batch": "whole", **dict.fromkeys(policy.BOUNDS, "number")}
    commands = ("bench", "build", "gate", "run")
    bounds = config.defaults(settings, dict.fromkeys(commands, takes), where)
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


SLIM = topology.vgg("vgg11", num_classes=2, input_size=(32, 32), width_divisor=64)


def read_weights(content: bytes, folder: Path) -> None:
    path = folder / "weights.safetensors"
    path.write_bytes(content)
    reference.load(reference.locate(str(path), input_size=(SIDE * 2, SIDE * 2)))


def weights(folder: Path) -> Sequence[bytes]:
    module = reference.build(SLIM)
    tensors = {k: np.zeros(tuple(v.shape), np.float32) for k, v in module.state_dict().items()}
    checkpoints.save(folder / "seed.safetensors", tensors, SLIM, "unit")
    few = {key: tensors[key] for key in list(tensors)[:2]}
    checkpoints.save(folder / "few.safetensors", few, SLIM, "unit")
    return [(folder / name).read_bytes() for name in ("seed.safetensors", "few.safetensors")]


def read_pickled(content: bytes, folder: Path) -> None:
    path = folder / "weights.pth"
    path.write_bytes(content)
    reference.load(reference.Weights(str(path), path, "0" * 64, SLIM, "unit"))


def pickled(folder: Path) -> Sequence[bytes]:
    """A checkpoint's archive, and what torch wrote before there were any (to its version 1.6)."""
    import torch

    module = reference.build(SLIM)
    tensors = {key: torch.zeros(value.shape) for key, value in module.state_dict().items()}
    few = dict(list(tensors.items())[:2])
    found = []
    for content, archive in ((tensors, True), (tensors, False), (few, True), (few, False)):
        file = io.BytesIO()
        torch.save(content, file, _use_new_zipfile_serialization=archive)
        found.append(file.getvalue())
    return found


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
    use(
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


def read_updated(content: bytes, folder: Path) -> None:
    """As ``baseline`` does where there is one."""
    path = folder / "baseline.json"
    path.write_bytes(content)
    baseline.update(path, [folder / "result.json"], "a reason")


def read_image(content: bytes, folder: Path) -> None:
    path = folder / "image.png"
    path.write_bytes(content)
    dataset.Dataset(folder, (dataset.Sample(path, None),)).digest()
    RECIPE.geometry(dataset.decode(path))


def images(_: Path) -> Sequence[bytes]:
    """Noise, in each format that a folder of images may have."""
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    found = []
    for kind in ("PNG", "JPEG", "BMP", "GIF", "WEBP", "PPM", "TIFF"):
        file = io.BytesIO()
        Image.fromarray(noise).save(file, kind)
        found.append(file.getvalue())
    return found


def read_probes(content: bytes, folder: Path) -> None:
    (folder / PROBES).write_bytes(content)
    bundle.Probes.load(folder / PROBES)


def probe_files(folder: Path) -> Sequence[bytes]:
    bundle_files.probes().save(folder / "seed.npz")
    return [(folder / "seed.npz").read_bytes()]


def manifests(folder: Path) -> Sequence[bytes]:
    return [bundle_files.made_bundle(folder)]


ENTRIES: dict[str, Entry] = {
    "manifest": Entry(bundle_files.read_manifest, manifests, mutations.in_json),
    "forged-manifest": Entry(bundle_files.read_forged_manifest, manifests, mutations.in_json),
    "inspect": Entry(bundle_files.read_inspected, manifests, mutations.in_json),
    "packed": Entry(bundle_files.read_packed, bundle_files.packed_files, bundle_files.in_packed),
    "signatures": Entry(
        bundle_files.read_signatures, bundle_files.signature_files, mutations.in_json
    ),
    "keys": Entry(bundle_files.read_key, bundle_files.key_files, bundle_files.in_pem),
    "layers": Entry(bundle_files.read_layers, bundle_files.layer_files, mutations.in_json),
    "tuned": Entry(
        bundle_files.read_tuned,
        bundle_files.whole_beside(bundle_files.made_bundle, TABLE),
        mutations.in_json,
    ),
    "network": Entry(
        bundle_files.read_network,
        bundle_files.whole_beside(bundle_files.torch_bundle, NETWORK),
        mutations.in_json,
    ),
    "probes": Entry(read_probes, probe_files, mutations.in_zip),
    "image": Entry(read_image, images, mutations.raw),
    "calibration": Entry(read_calibration, calibration_table, mutations.in_json),
    "trt-cache": Entry(read_calibration, calibration_cache, mutations.raw),
    "settings": Entry(read_settings, lambda _: [SETTINGS], mutations.in_toml),
    "preprocess": Entry(read_recipe, recipe, mutations.in_toml),
    "weights": Entry(read_weights, weights, mutations.in_safetensors),
    "pickled-weights": Entry(read_pickled, pickled, mutations.in_zip),
    "model": Entry(read_graph, lambda _: [graph()], mutations.in_onnx),
    "result": Entry(read_result, run_results, mutations.in_json),
    "baseline": Entry(read_baseline, baselines, mutations.in_json),
    "updated-baseline": Entry(read_updated, baselines, mutations.in_json),
    "report": Entry(read_report, run_results, mutations.in_json),
}
"""By name, as ``--only`` takes it."""
