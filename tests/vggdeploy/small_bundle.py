"""A bundle of a few hundred bytes, whose engine is none: whoever parsed it would fail."""

import json

import numpy as np

from vggdeploy import digests, manifest, preprocess
from vggdeploy.bundle import Probes

FACTS = {
    "target": "ov-int8",
    "model": {"arch": "vgg16"},
    "engine": ["model.xml", "model.bin"],
    "input": {"shape": [None, 3, 224, 224]},
    "output": {"shape": [None, 10]},
    "preprocess": preprocess.PRESETS["imagenet"].to_json(),
    "build": {"key": "k1"},
}
PROBES = Probes(
    np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3),
    np.linspace(-1, 1, 20, dtype=np.float32).reshape(2, 10),
    np.array([3, 7]),
)

TABLE = {
    "schema": 1,
    "kind": "calibration",
    "source": {"images": 3, "seed": 5, "images_sha256": "c0ffee"},
    "tensors": {"image": {"range": [-1.0, 2.0], "threshold": {"int8": 1.5}, "method": "mse"}},
}


BUDGET = {
    "batch": 1,
    "total": {"params": 4, "macs": 9, "weight_bytes": 4},
    "layers": [{"name": "features.0", "kind": "conv", "output": [1, 2, 3], "params": 4, "macs": 9}],
    "nodes": {"features.0": "conv"},
}


def fill(work):
    (work / "model.xml").write_text("<net/>")
    (work / "model.bin").write_bytes(bytes(range(256)))
    (work / manifest.GRAPH).write_bytes(b"graph")
    (work / manifest.CALIBRATION).write_text(json.dumps(TABLE))
    (work / manifest.LAYERS).write_text(json.dumps(BUDGET))
    PROBES.save(work / manifest.PROBES)


def rewrite(path, **changes):
    """Change the manifest and sign it again, as a careful forger would."""
    said = json.loads((path / manifest.MANIFEST).read_text())
    said.update(changes)
    for key in ("digest", manifest.TUNED):
        said.pop(key, None)
    said["digest"] = digests.sha256_json(said)
    (path / manifest.MANIFEST).write_text(manifest.spelling(said))


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
