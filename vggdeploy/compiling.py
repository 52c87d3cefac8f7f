"""Compiling a bundle's graph into an engine for the device at hand, with its backend alone.

A portable bundle carries the graph and how it shall be compiled; this makes the engine, on a machine
with neither torch nor onnx. A bundle that has an engine is compiled anew: for another GPU, or for
another version of the backend.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vggdeploy import atomic, bundle, targets, trt_flags
from vggdeploy.contracts import CompileOptions, Silent, TrtOptions
from vggdeploy.errors import BundleError, ConfigError, MissingError
from vggdeploy.inputs import BuildOptions
from vggdeploy.manifest import LAYERS, TRT_CACHE, WRITTEN, examine
from vggdeploy.targets import trt_layers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vggdeploy.contracts import Reporter, Target

RECIPE = "recipe"
"""The manifest's key of how the graph is compiled."""

FLAGS = {
    "flavour": "flavour",
    "min_batch": "min_batch",
    "opt_batch": "opt_batch",
    "max_batch": "max_batch",
    "workspace": "workspace_bytes",
    "optimization_level": "optimization_level",
    "compute_capability": "compute_capabilities",
    "dla": "dla_core",
}
"""Fields of `BuildOptions`, and those of `TrtOptions` that they become."""

_OF_A_MACHINE = ("timing_cache", "calibration_cache")
"""Options that are paths, and so no part of a recipe."""


def recipe(options: TrtOptions) -> dict[str, Any]:
    """The part of `options` that a bundle carries to another machine, JSON-ready."""
    said = {key: value for key, value in asdict(options).items() if key not in _OF_A_MACHINE}
    return {**said, "compute_capabilities": list(options.compute_capabilities)}


def options_of(manifest: Mapping[str, Any], changes: Mapping[str, Any]) -> TrtOptions:
    """How a bundle is compiled: by its own recipe, but for `changes`.

    Args:
        manifest: the bundle's.
        changes: fields of `BuildOptions` that are TensorRT's; None leaves the recipe's. With
            another flavour, the recipe's compute capabilities are left out: not both have them.

    Raises:
        BundleError: when the recipe is not one that this version writes.
        ConfigError: as `trt_flags.tensorrt`.
    """
    said = manifest.get(RECIPE) or {}
    if said.keys() != recipe(TrtOptions()).keys():
        raise BundleError(
            "the bundle's recipe is of another version",
            got=", ".join(sorted(said)) or "none",
            expected=", ".join(sorted(recipe(TrtOptions()))),
            fix="build the bundle again with this version",
        )
    asked = {flag: said[field] for flag, field in FLAGS.items()}
    given = {key: value for key, value in changes.items() if value is not None}
    if given.get("flavour", said["flavour"]) != said["flavour"]:
        asked["compute_capability"] = ()
    try:
        chosen = trt_flags.tensorrt(BuildOptions(target=str(manifest["target"]), **(asked | given)))
    except (TypeError, ValueError, AttributeError) as error:
        raise BundleError(
            "the bundle's recipe is not one that a build writes",
            got=error,
            expected="flags of TensorRT",
            fix="build the bundle again with this version",
        ) from error
    if chosen is None:
        raise BundleError(
            "the bundle has a recipe of TensorRT",
            got=f"target {manifest['target']}",
            expected="a TensorRT target",
            fix="build the bundle again with this version",
        )
    return replace(chosen, sparse=bool(said["sparse"]))


def compile_bundle(
    path: Path,
    *,
    out: Path | None = None,
    force: bool = False,
    changes: Mapping[str, Any] | None = None,
    trusted: Path | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Compile the graph of the bundle at `path`.

    What comes out is another bundle, which has no signature: `path` is what `trusted` vouches for.

    Args:
        path: the bundle.
        out: where the compiled bundle goes; in the place of `path` when None.
        force: whether another bundle at `out` is replaced.
        changes: what differs from the bundle's own recipe, see `options_of`.
        trusted: public keys, one of which must have signed `path`; see `bundle.open_bundle`.
        reporter: told the progress.

    Returns:
        ``bundle``, ``target``, ``digest``, ``engine_bytes``, ``backend``, ``device``, ``recipe``
        and ``seconds``.

    Raises:
        ConfigError: for a target whose bundles are not compiled ahead, or an `out` that is taken.
        MissingError: when the backend, or what it needs, is not here.
        BundleError: when the bundle is damaged, not of the `trusted`, holds no graph or no budget that
            can be read.
        ModelError: when the backend does not take the graph.
    """
    reporter = reporter or Silent()
    opened = bundle.open_bundle(path, trusted)
    target = targets.get(opened.target)
    if not target.keeps_graph:
        raise ConfigError(
            f"bundle {path} needs no compiling",
            got=f"one of {target.name}, which compiles when it is opened",
            expected="one of a TensorRT target",
            fix=f"use it as it is, as with 'vggdeploy verify {path}'",
        )
    place = out or path

    def gives_way() -> bool:
        if place.resolve() == path.resolve():
            bundle.require_unchanged(opened)
        else:
            bundle.refuse_taken(place, force=force)
        return True

    gives_way()
    atomic.require_writable(place.resolve())
    _require_available(target)
    opened.budget()  # that it can be read is known before anything else is done
    chosen = options_of(opened.manifest, changes or {})
    target.prepare(CompileOptions(tensorrt=chosen))
    start = time.perf_counter()

    def fill(work: Path) -> dict[str, Any]:
        copied = set(opened.manifest["files"]) - set(opened.manifest["engine"])
        for name in copied:
            shutil.copyfile(opened.path / name, work / name)
        # The copies get a manifest of their own, and may be others than those that were checked.
        for each in examine(work, opened.manifest):
            if each.name in copied:
                each.require(f"bundle {path}")
        here = bundle.Bundle(work, opened.manifest)
        by_cache = chosen.dla_core is not None and TRT_CACHE in copied
        options = CompileOptions(
            tensorrt=replace(chosen, calibration_cache=work / TRT_CACHE if by_cache else None)
        )
        # A target may leave more than the engine where it compiles.
        with tempfile.TemporaryDirectory(dir=work) as scratch, reporter.step("compiling"):
            files = target.compile(here.graph, options, Path(scratch))
            facts = target.facts(Path(scratch))
            for file in files:
                file.replace(work / file.name)
        _write_layers(work / LAYERS, here.budget(), facts.pop("layers", None))
        return {
            "engine": [file.name for file in files],
            RECIPE: recipe(chosen),
            "build": {**opened.manifest["build"], "backend": target.version(), "engine": facts},
            "device": target.device_facts(options.device),
            "compiled_from": opened.manifest["digest"],
        }

    kept = {key: value for key, value in opened.manifest.items() if key not in WRITTEN}
    made = bundle.write(place.resolve(), kept, fill, replace=gives_way)  # not a link to it
    seconds = time.perf_counter() - start
    reporter.done("compile", seconds, cached=False)
    return {
        "kind": "compile",
        "bundle": str(place),
        "target": target.name,
        "digest": made.manifest["digest"],
        "engine_bytes": made.engine_bytes,
        "backend": made.manifest["build"]["backend"],
        "device": made.manifest["device"],
        RECIPE: made.manifest[RECIPE],
        "seconds": seconds,
    }


def _require_available(target: Target) -> None:
    here = target.availability()
    if not here.ok:
        raise MissingError(
            f"{target.name} cannot be compiled here",
            got=here.reason,
            expected=f"what {target.name} is compiled with",
            fix=here.fix,
        )


def _write_layers(path: Path, budget: Mapping[str, Any], layers: Any) -> None:
    """Write the budget with the engine's own layers, where they could be looked at."""
    nodes = budget.get("nodes", {})
    seen = None if layers is None else trt_layers.assign(layers, nodes)
    path.write_text(json.dumps({**budget, "engine_layers": seen}, indent=1), encoding="utf-8")
