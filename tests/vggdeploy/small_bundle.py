"""A bundle of a few hundred bytes, whose engine is none: whoever parsed it would fail."""

import json

import numpy as np

from vggdeploy import bundle, digests, preprocess
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


def fill(work):
    (work / "model.xml").write_text("<net/>")
    (work / "model.bin").write_bytes(bytes(range(256)))
    (work / bundle.GRAPH).write_bytes(b"graph")
    (work / bundle.CALIBRATION).write_text(json.dumps(TABLE))
    (work / bundle.LAYERS).write_text('{"layers": [{"name": "features.0"}]}')
    PROBES.save(work / bundle.PROBES)


def rewrite(path, **changes):
    """Change the manifest and sign it again, as a careful forger would."""
    manifest = json.loads((path / bundle.MANIFEST).read_text())
    manifest.update(changes)
    for key in ("digest", bundle.TUNED):
        manifest.pop(key, None)
    manifest["digest"] = digests.sha256_json(manifest)
    (path / bundle.MANIFEST).write_text(bundle.spelling(manifest))


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
