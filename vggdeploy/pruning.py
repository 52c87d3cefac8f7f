"""Pruning to 2:4 sparsity: a stage between the float graph and everything that is made from it.

So thresholds are those of the network that will run, and a float target takes the same weights as a
quantized one. What is judged against stays the network as it was.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vggdeploy import calib, calibrating, graphs
from vggdeploy.calib import second_order, sparsity
from vggdeploy.errors import ModelError
from vggdeploy.manifest import GRAPH

if TYPE_CHECKING:
    from pathlib import Path

    from vggdeploy.cache import Entry
    from vggdeploy.calibrating import Calibration

_SPARSE = "sparsity.json"


def made_from(job: Calibration) -> dict[str, Any] | None:
    """What pruning depends on besides the graph; None where nothing is pruned."""
    if job.options.sparsity is None:
        return None
    how = job.rounding
    said: dict[str, Any] = {"pattern": job.options.sparsity}
    if how is not None:
        said |= {
            "damping": how.damping,
            "images": job.images.digest(),
            "precision": job.observer.precision,
            "preprocess": job.source.preprocess.to_json(),
            "seed": job.options.seed,
        }
    return said


def stage(job: Calibration, graph: Entry) -> Entry:
    """The float graph with the pattern in every layer that can have it; `report` reads what that
    did.

    Weights are made good for where they would be rounded with second-order information, and
    pruned by magnitude alone where they would be rounded to nearest.

    Raises:
        ModelError: when no layer can have it.
    """

    def make(work: Path) -> None:
        model = graphs.read(graph.path / GRAPH)
        layers = sparsity.wanted_inputs(model) if job.rounding else []
        moments = {}
        if layers:
            # One query at a time: multiplying takes as long as the network, and all cores.
            with job.observe(graph, (layer.tensor for layer in layers), "latency") as runner:
                moments = calib.covariances(
                    runner,
                    layers,
                    calibrating.rounding_images(job),
                    job.source.preprocess,
                    job.options.seed,
                    job.reporter,
                )
        damping = job.rounding.damping if job.rounding else second_order.DAMPING
        done = sparsity.prune(model, moments, damping, job.reporter)
        if not done.layers:
            raise ModelError(
                f"no layer of {job.source.name} can have {sparsity.PATTERN} sparsity",
                got="; ".join(f"{name}: {reason}" for name, reason in done.dense) or "no layer",
                expected="one at least whose inputs are a multiple of 4",
                fix="drop --sparsity",
            )
        graphs.write(model, work / GRAPH, external=True)
        (work / _SPARSE).write_text(json.dumps(asdict(done)), encoding="utf-8")

    return job.stage("prune", {"graph": graph.digest, "how": made_from(job)}, make)


def report(job: Calibration, pruned: Entry | None) -> dict[str, Any] | None:
    """The JSON form of what `stage` did: ``pattern``, ``compensated``, ``weight_error``, ``layers``
    and ``dense`` (`calib.sparsity.Sparse`); None where nothing was pruned."""
    if pruned is None:
        return None
    said = json.loads((pruned.path / _SPARSE).read_text(encoding="utf-8"))
    return {
        "pattern": job.options.sparsity,
        "compensated": job.rounding is not None,
        "weight_error": said["weight_error"],
        "layers": said["layers"],
        "dense": said["dense"],
    }
