"""Verification: a bundle's engine against the reference, and against labels where there are any.

With a folder of images, the reference is computed anew from what the manifest says the bundle was
built from; without one, or where that is gone, the bundle's own probes are judged.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vggdeploy import bundle, dataset, execution, machine, parity, sources
from vggdeploy.cache import Cache
from vggdeploy.contracts import RunOptions, Silent
from vggdeploy.errors import ConfigError, DatasetError, MissingError, ModelError, WeightsError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from vggdeploy.bundle import Bundle
    from vggdeploy.contracts import Reporter
    from vggdeploy.dataset import Dataset


def verify(
    path: Path,
    *,
    data: str | None = None,
    reference: Path | None = None,
    device: str = "CPU",
    native: bool = False,
    trusted: Path | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Judge a bundle.

    Args:
        path: the bundle.
        data: a folder of images, labelled or not, or ``demo`` for the demo's held-out digits.
        reference: the weights or the graph that the bundle was built from, where they lie now.
        device: the backend's own name of the device.
        native: forbids emulation, see `execution.choose`.
        trusted: public keys, one of which must have signed it; see `bundle.open_bundle`.
        reporter: told the progress.

    Returns:
        ``parity``, ``accuracy`` (None without labels), ``execution`` (``native`` or ``emulated``),
        ``compiled`` (whether the bundle has an engine), what was ``judged`` (``data``
        or ``probes``), the ``images_sha256`` of it, and a ``note`` where that is not what was asked
        for.

    Raises:
        VggdeployError: one of its kinds.
    """
    if reference is not None and data is None:
        raise ConfigError(
            "--reference goes with --data, since the probes carry the reference's scores",
            got=f"--reference {reference} alone",
            expected="both, or neither",
            fix="give --data DIR, or drop --reference",
        )
    reporter = reporter or Silent()
    opened = bundle.open_bundle(path, trusted)
    how = execution.choose(opened, device, only_native=native)
    note = ""
    judged = "probes"
    probes = opened.probes()
    images: Iterable[NDArray[np.uint8]] = probes.images
    classes: dict[str, int] = {}
    label_cautions: list[str] = []
    expected, labels, count = probes.reference, probes.labels, len(probes.images)
    images_sha256 = hashlib.sha256(probes.images.tobytes()).hexdigest()
    if data is not None:
        store = Cache()
        folder = (
            sources.demo_images("heldout", store)
            if data == sources.DEMO
            else dataset.scan(Path(data).expanduser())
        )
        _check_labels(folder, opened)
        try:
            source = (
                sources.from_file(reference, opened.manifest)
                if reference
                else sources.from_manifest(opened.manifest)
            )
            expected = np.load(
                sources.scores(source, folder, store, reporter).path / sources.SCORES,
                allow_pickle=False,
            )
        except (WeightsError, ModelError, MissingError) as error:
            if reference is not None:
                raise
            note = f"the probes were judged, not {data}: {error}"
        else:
            judged = "data"
            images, labels, count = folder.pixels(opened.preprocess), folder.labels(), len(folder)
            images_sha256 = folder.digest()
            classes, label_cautions = dict(folder.classes), _label_cautions(folder)
    least = how.least(opened)
    run_options = RunOptions(device=device, batch=least, goal="throughput")
    cautions = [*how.cautions(opened, run_options), *label_cautions]
    with how.open(opened, run_options) as runner:
        name = runner.outputs[0].name
        batches = (opened.batch(_filled(few, least)) for few in dataset.batches(images, least))
        found = np.concatenate(
            [
                outputs[name].copy()
                for outputs in reporter.track(
                    runner.infer_many(batches),
                    math.ceil(count / least),
                    "running the engine" if how.kind == "native" else "emulating",
                )
            ]
        )[:count]
    if found.shape != expected.shape:
        raise ModelError(
            f"the engine of {path} gives other scores than its reference",
            got=f"scores {list(found.shape)}",
            expected=str(list(expected.shape)),
            fix="build it again",
        )
    wrong = parity.not_finite(found)
    if len(wrong):
        raise ModelError(
            f"the engine of {path} gives NaN or infinity",
            got=f"{len(wrong)} of {count} images, the first number {wrong[0]}",
            expected="finite scores",
            fix="build it again, or run it on another device",
        )
    return {
        "kind": "verify",
        "bundle": str(path),
        "target": opened.target,
        "digest": opened.manifest["digest"],
        "engine_bytes": opened.engine_bytes,
        "model": opened.manifest["model"],
        "judged": judged,
        "images_sha256": images_sha256,
        "note": note,
        "execution": how.kind,
        "compiled": opened.compiled,
        "device": runner.details,
        "system": machine.system(),
        "cautions": cautions,
        "classes": classes,
        "parity": asdict(parity.parity(expected, found)),
        "accuracy": None if labels is None else asdict(parity.accuracy(expected, found, labels)),
    }


def _filled(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Images ``[N, H, W, 3]``, the last one repeated until there are `size`."""
    return np.concatenate([pixels, pixels[-1:].repeat(size - len(pixels), axis=0)])


def _label_cautions(folder: Dataset) -> list[str]:
    """What is odd about class folders that are named by numbers."""
    moved = {
        name: index
        for name, index in folder.classes.items()
        if name.isdecimal() and int(name) != index
    }
    if not moved:
        return []
    name, index = next(iter(moved.items()))
    return [
        f"class folders count in their sorted order: {name!r} is class {index} "
        f"({len(moved)} of {len(folder.classes)} differ from their own number)"
    ]


def _check_labels(folder: Dataset, opened: Bundle) -> None:
    labels = folder.labels()
    classes = opened.manifest["output"]["shape"][-1]
    if labels is not None and classes is not None and labels.max() >= classes:
        raise DatasetError(
            f"{folder.root} has more classes than the network",
            got=f"{int(labels.max()) + 1}",
            expected=f"{classes} at most",
            fix="give --data the folder that belongs to the network",
        )
