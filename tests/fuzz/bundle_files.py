"""Bundles as others may have written them: manifests, signatures, keys, packed files, and the JSON
inside, each read as far as a command would."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
import zipfile
from typing import TYPE_CHECKING, Any

import mutations
import numpy as np
from rich.console import Console
from small_graph import RECIPE, SIDE, graph

from vggdeploy import (
    budget,
    bundle,
    bundle_table,
    checkpoints,
    compiling,
    execution,
    graph_layers,
    graphs,
    inspection,
    packing,
    reference,
    roofline,
    signing,
    sources,
    targets,
    topology,
    tuning,
)
from vggdeploy.contracts import LayerTime, RunOptions, TrtOptions
from vggdeploy.errors import VggdeployError
from vggdeploy.manifest import (
    CALIBRATION,
    GRAPH,
    LAYERS,
    MANIFEST,
    PROBES,
    SIGNATURES,
    TABLE,
    TUNED,
    self_digest,
    spelling,
    tuned_digest,
)
from vggdeploy.targets import trt_layers
from vggdeploy.targets.torch_eager import ENGINE, NETWORK
from vggdeploy.terminal import Terminal

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

HERE = tuning.Place("CPU", "Some CPU", 8)
BACKEND = "tensorrt 10"
CHOICE = tuning.Choice("latency", 1, tuning.Settings(threads=4), HERE, BACKEND)


def use(*parts: Callable[[], object]) -> None:
    """Every part, though one before is refused; the last refusal is passed on."""
    refused = None
    for part in parts:
        try:
            part()
        except VggdeployError as error:
            refused = error
    if refused is not None:
        raise refused


def probes() -> bundle.Probes:
    return bundle.Probes(
        np.zeros((2, SIDE, SIDE, 3), np.uint8), np.ones((2, 10), np.float32), np.array([3, 7])
    )


def layers_json() -> dict[str, Any]:
    """The budget of a network, with the engine's names of its layers."""
    said = budget.budget(topology.vgg("vgg11", input_size=(32, 32)), "int8").to_json()
    names = [layer["name"] for layer in said["layers"]]
    engine = [{"name": f"engine {name}", "nodes": [name], "budget": [name]} for name in names[:3]]
    same = {name: name for name in names}
    return {**said, "nodes": same, "tensors": same, "engine_layers": engine}


def made_bundle(folder: Path) -> bytes:
    """The manifest of a tuned bundle, which is in ``folder/bundle``."""
    path, model = folder / "bundle", folder / "model.onnx"
    shutil.rmtree(path, ignore_errors=True)
    model.write_bytes(graph())
    table = {
        "schema": 1, "kind": "calibration", "source": {"images": 3},
        "tensors": {"image": {"range": [-1.0, 2.0], "threshold": {"int8": 1.5}, "method": "mse"}},
    }  # fmt: skip
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
        "build": {
            "key": "k", "seed": 0, "share": 1e-05, "kept": ["c"], "engine": {"batches": [1, 1, 8]},
        },
    }  # fmt: skip

    def fill(work: Path) -> None:
        (work / "model.engine").write_bytes(b"engine")
        (work / GRAPH).write_bytes(b"graph")
        (work / CALIBRATION).write_text(json.dumps(table))
        (work / LAYERS).write_text(json.dumps(layers_json()))
        probes().save(work / PROBES)

    tuning.record(bundle.write(path, facts, fill, replace=False), CHOICE, {"kind": "tune"})
    return (path / MANIFEST).read_bytes()


def read_manifest(content: bytes, folder: Path) -> None:
    """A manifest as it is."""
    (folder / "bundle" / MANIFEST).write_bytes(content)
    opened = bundle.open_bundle(folder / "bundle")
    use(
        lambda: opened.preprocess,
        lambda: opened.graph,
        lambda: (opened.engine, opened.engine_bytes, opened.compiled, opened.target),
        lambda: opened.batch(opened.probes().images),
        opened.budget,
        lambda: tuning.choose(opened, "latency", HERE, BACKEND),
        lambda: compiling.options_of(opened.manifest, {}),
        lambda: execution.choose(opened, "CPU"),
        lambda: targets.get(opened.target).cautions(opened, RunOptions()),
        lambda: sources.from_manifest(opened.manifest),
    )


def forged(said: Mapping[str, Any]) -> bytes:
    """A manifest whose digests and spelling a forger has made to fit."""
    made = {**said, "digest": self_digest(said)}
    if isinstance(made.get(TUNED), dict):
        made[TUNED] = {**made[TUNED], "digest": tuned_digest(made["digest"], made[TUNED])}
    return spelling(made).encode()


def refit(content: bytes) -> bytes:
    """What may be a manifest, `forged`."""
    try:
        said = json.loads(content)
        return forged(said) if isinstance(said, dict) else content
    except (ValueError, RecursionError):
        return content


def read_forged_manifest(content: bytes, folder: Path) -> None:
    read_manifest(refit(content), folder)


def inspect(path: Path, trusted: Path | None = None) -> None:
    """As ``bundle inspect`` does."""
    result = inspection.inspect(path, trusted=trusted)
    bundle_table.show_inspect(Terminal(Console(file=io.StringIO())), result)
    json.dumps(result, allow_nan=False)
    inspection.require(result)


def read_inspected(content: bytes, folder: Path) -> None:
    (folder / "bundle" / MANIFEST).write_bytes(refit(content))
    inspect(folder / "bundle")


def put(folder: Path, name: str, content: bytes, whole: bytes) -> bundle.Bundle:
    """The bundle of a forger who has put other content into one of its files.

    Args:
        folder: where the bundle is.
        name: the file's.
        content: the file's.
        whole: the manifest that the bundle had.
    """
    said = json.loads(whole)
    listed = said[TUNED]["files"] if name == TABLE else said["files"]
    listed[name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    (folder / "bundle" / name).write_bytes(content)
    (folder / "bundle" / MANIFEST).write_bytes(forged(said))
    return bundle.open_bundle(folder / "bundle")


def whole_beside(make: Callable[[Path], bytes], name: str) -> Callable[[Path], Sequence[bytes]]:
    """Seeds: what a file of a bundle holds, once its manifest is kept in ``folder/whole``."""

    def seeds(folder: Path) -> Sequence[bytes]:
        (folder / "whole").write_bytes(make(folder))
        return [(folder / "bundle" / name).read_bytes()]

    return seeds


def read_layers(content: bytes, folder: Path) -> None:
    """As ``bench`` and ``compile`` do."""
    said = put(folder, LAYERS, content, (folder / "whole").read_bytes()).budget()
    names = [*said.get("nodes", {}), "engine features.0", "other"]
    times = [LayerTime(name, (name,), "Convolution", "i8", 1e-3) for name in names]
    peaks = roofline.Peaks({"int8": 1e12}, 1e10, 1 << 20)
    known = roofline.layers(said, "int8", 1, ["features.0"])
    rows = roofline.rows(known, roofline.Owners(said), [times], peaks, "int8")
    roofline.peak_check(rows)
    json.dumps([roofline.to_json(rows), roofline.chart(rows, peaks)], allow_nan=False)
    total = said["total"]
    budget.judge(2 * total["macs"], total["weight_bytes"], 1e-3, peaks.device("int8"))
    trt_layers.assign([{"name": "a + b", "nodes": []}], said.get("nodes", {}))


def layer_files(folder: Path) -> Sequence[bytes]:
    whole_beside(made_bundle, LAYERS)(folder)
    rows = graph_layers.rows(graphs.read(folder / "model.onnx"))
    by_graph = {**budget.from_rows("small", rows, "int8"), "nodes": {"c": "c"}, "tensors": {}}
    return [json.dumps(said, indent=1).encode() for said in (layers_json(), by_graph)]


def read_tuned(content: bytes, folder: Path) -> None:
    opened = put(folder, TABLE, content, (folder / "whole").read_bytes())
    tuning.record(opened, CHOICE, {"kind": "tune"})


def torch_bundle(folder: Path) -> bytes:
    """The manifest of a bundle of the reference, of the slimmest network, in ``folder/bundle``."""
    network = topology.vgg("vgg11", num_classes=10, input_size=(32, 32), width_divisor=64)
    recipe = {**RECIPE.to_json(), "size": [32, 32], "resize_to": 32}
    facts = {
        "target": "torch-fp32",
        "precision": "fp32",
        "model": {"name": "vgg11"},
        "input": {"name": "image", "shape": [None, 3, 32, 32], "dtype": "float32"},
        "output": {"name": "logits", "shape": [None, 10], "dtype": "float32"},
        "preprocess": recipe,
        "engine": [ENGINE, NETWORK],
        "build": {"key": "k"},
    }
    module = reference.build(network)
    tensors = {k: np.zeros(tuple(v.shape), np.float32) for k, v in module.state_dict().items()}

    def fill(work: Path) -> None:
        checkpoints.save(work / ENGINE, tensors, network, "unit")
        (work / NETWORK).write_text(
            json.dumps({"arch": "vgg11", "num_classes": 10, "input_size": [32, 32],
                        "width_divisor": 64})
        )  # fmt: skip
        (work / LAYERS).write_text(json.dumps(layers_json()))
        bundle.Probes(np.zeros((1, 32, 32, 3), np.uint8), np.ones((1, 10), np.float32), None).save(
            work / PROBES
        )

    shutil.rmtree(folder / "bundle", ignore_errors=True)
    bundle.write(folder / "bundle", facts, fill, replace=False)
    return (folder / "bundle" / MANIFEST).read_bytes()


def read_network(content: bytes, folder: Path) -> None:
    opened = put(folder, NETWORK, content, (folder / "whole").read_bytes())
    with targets.get("torch-fp32").open(opened, RunOptions()) as runner:
        runner.scores(opened.batch(opened.probes().images))


def keys(folder: Path) -> Path:
    """The folder of a pair of keys, ``builder`` and ``builder.pub``."""
    if not (folder / "keys" / "builder").exists():
        signing.generate(folder / "keys" / "builder")
    return folder / "keys"


def read_key(content: bytes, folder: Path) -> None:
    (folder / "key.pub").write_bytes(content)
    if b"PRIVATE" in content:
        signing.private_key(folder / "key.pub")
    else:
        signing.trusted_keys(folder / "key.pub")


def key_files(folder: Path) -> Sequence[bytes]:
    return [(keys(folder) / name).read_bytes() for name in ("builder.pub", "builder")]


def in_pem(data: bytes, rng: random.Random) -> bytes:
    """One change of the bytes that a PEM block holds."""
    found = re.search(rb"(?<=-----\n)[A-Za-z0-9+/=\n]+(?=-----END)", data)
    if found is None:
        return mutations.raw(data, rng)
    try:
        held = base64.b64decode(found[0])
    except ValueError:
        return mutations.raw(data, rng)
    made = base64.encodebytes(mutations.raw(held, rng))
    return data[: found.start()] + made + data[found.end() :]


def read_signatures(content: bytes, folder: Path) -> None:
    path, trusted = folder / "bundle", keys(folder) / "builder.pub"
    (path / SIGNATURES).write_bytes(content)
    use(
        lambda: bundle.open_bundle(path, trusted),
        lambda: inspect(path, trusted),
        lambda: packing.pack(path, folder / "packed.zip"),
        lambda: bundle.sign(path, keys(folder) / "builder"),
    )


def signature_files(folder: Path) -> Sequence[bytes]:
    made_bundle(folder)
    bundle.sign(folder / "bundle", keys(folder) / "builder")
    return [(folder / "bundle" / SIGNATURES).read_bytes()]


def read_packed(content: bytes, folder: Path) -> None:
    file, out = folder / "packed.zip", folder / "unpacked"
    file.write_bytes(content)
    shutil.rmtree(out, ignore_errors=True)
    use(lambda: packing.unpack(file, out), lambda: inspect(file))
    opened = bundle.open_bundle(out)
    use(opened.probes, opened.budget)


def packed_files(folder: Path) -> Sequence[bytes]:
    made_bundle(folder)
    (folder / "bundle" / SIGNATURES).write_bytes(b'{"schema": 1, "signatures": []}')
    packing.pack(folder / "bundle", folder / "packed.zip")
    return [(folder / "packed.zip").read_bytes()]


def in_packed(data: bytes, rng: random.Random) -> bytes:
    """One change of a file in a packed bundle, whose manifest is made to fit, of the manifest, or of
    the archive itself."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as old:
            members = {name: old.read(name) for name in old.namelist()}
        said = json.loads(members[MANIFEST])
        files = said["files"]
    except (*mutations.DAMAGED, KeyError, TypeError):
        return mutations.raw(data, rng)
    name = rng.choice(sorted(members))
    match rng.randrange(5):
        case 0:
            members[MANIFEST] = refit(mutations.in_json(members[MANIFEST], rng))
        case 1 if isinstance(files, dict) and name in files:
            how = mutations.in_json if name.endswith(".json") else mutations.raw
            members[name] = how(members[name], rng)
            said["files"][name] = {
                "sha256": hashlib.sha256(members[name]).hexdigest(),
                "size": len(members[name]),
            }
            members[MANIFEST] = refit(json.dumps(said).encode())
        case 2:
            members[rng.choice(("x", "../x", "/x", "a/b", TABLE, SIGNATURES, MANIFEST))] = (
                members.pop(name)
            )
        case 3:
            return mutations.in_directory(data, rng)
        case _:
            members[name] = mutations.raw(members[name], rng)
    return mutations.zipped(members, rng)
