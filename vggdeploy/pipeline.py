"""The order of the stages, and the one file that knows it: weights and images to a verdict."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vggdeploy import (
    atomic,
    building,
    bundle,
    calibration_file,
    dataset,
    gates,
    mixed,
    plots,
    results,
    sensitivity,
    sources,
    verification,
)
from vggdeploy.benchmarks import BenchOptions
from vggdeploy.benchmarks import bench as measure
from vggdeploy.contracts import RunOptions, Silent
from vggdeploy.errors import ConfigError
from vggdeploy.inputs import BuildOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vggdeploy.contracts import Reporter
    from vggdeploy.gates import Policy, Verdicts

_EXPORTED = {"model.onnx", "model.onnx.data"}
"""What is in the folder of an export."""

__all__ = ["BuildOptions", "bench", "build", "calibrate", "export_graph", "gate", "run"]


def build(
    options: BuildOptions, reporter: Reporter | None = None, *, device: str = "CPU"
) -> dict[str, Any]:
    """Build a bundle.

    Args:
        options: what to build.
        reporter: told the progress.
        device: where the bundle will run, for the cautions.

    Returns:
        ``bundle``, ``target``, ``digest``, ``engine_bytes``, ``stages``, ``unchanged`` (the same
        bundle was there already), ``left_in_high_precision``, ``calibration_images`` (None where a
        given calibration does not say), ``ignored_files``, ``trt_cache``, ``cautions``, and
        ``mixed`` (None without a bound on the drop, else see `mixed.report`).

    Raises:
        VggdeployError: one of its kinds; nothing half-written is left.
    """
    job = building.Build(options, reporter or Silent())
    graph = job.export()
    table = quantized = said = choice = None
    kept: tuple[str, ...] = ()
    if job.dialect is not None:
        if job.given is not None:
            table = job.adopt(graph, job.given)
        else:
            table = job.calibrate(graph, job.collect(graph))
        rounded = job.round(graph, table, job.dialect)
        if job.judged is not None:
            choice = mixed.choose(job, graph, table, rounded, job.dialect)
            kept = choice.kept
        quantized = job.quantize(graph, table, rounded, job.dialect, kept)
        if choice is not None:
            whole = functools.partial(job.quantize, graph, table, rounded, job.dialect)
            said = mixed.report(job, choice, graph, quantized, whole)
    engine = job.compile(quantized or graph)
    made = building.Made(graph, table, quantized, engine, job.reference(), kept)
    opened = job.write(made)
    calibration = building.load_table(table)
    return {
        "kind": "build",
        "bundle": str(job.out),
        "target": job.target.name,
        "digest": opened.manifest["digest"],
        "engine_bytes": opened.engine_bytes,
        "stages": job.stages.done,
        "unchanged": job.unchanged,
        "left_in_high_precision": job.left(quantized),
        "calibration_images": calibration.source.get("images") if calibration else 0,
        "ignored_files": job.images.ignored,
        "trt_cache": str(job.out / bundle.TRT_CACHE) if options.emit_trt_cache else None,
        "cautions": [
            *calibration_file.cautions(calibration, options.calibration),
            *job.target.cautions(opened, RunOptions(device=device)),
        ],
        "mixed": said,
    }


def export_graph(options: BuildOptions, reporter: Reporter | None = None) -> dict[str, Any]:
    """Export the FP32 graph alone, into the folder ``options.out``.

    Raises:
        VggdeployError: one of its kinds; nothing half-written is left.
    """
    job = building.Job(options, reporter or Silent())
    out = options.out or Path(f"{job.source.name}.onnx")
    _refuse(out, options.force)
    if out.exists() and not (out.is_dir() and {file.name for file in out.iterdir()} <= _EXPORTED):
        raise ConfigError(
            f"{out} is not what an export leaves, and is not replaced",
            fix="choose another place with --out",
        )
    graph = job.export()
    with atomic.folder(out, replace=out.exists()) as work:
        for name in sorted(_EXPORTED):
            shutil.copyfile(graph.path / name, work / name)
    return {
        "kind": "export",
        "onnx": str(out / "model.onnx"),
        "digest": graph.digest,
        "stages": job.stages.done,
    }


def calibrate(
    options: BuildOptions,
    reporter: Reporter | None = None,
    *,
    rank: bool = False,
    plot: Path | None = None,
) -> dict[str, Any]:
    """Calibrate alone: write the table, which fits any target, to the file ``options.out``.

    Args:
        options: what to calibrate; its target counts for a ranking alone.
        reporter: told the progress.
        rank: whether layers are ranked by the damage that each does when it alone is quantized
            for the target.
        plot: a chart of that ranking, .svg or .png.

    Returns:
        ``table``, ``trt_cache``, ``calibration_images``, ``ignored_files`` and ``stages``; with
        `rank`, of the kind ``sensitivity``, also ``target``, ``sensitivity_images`` and ``layers``,
        the most damaging first (`sensitivity.LayerDamage`).

    Raises:
        VggdeployError: one of its kinds; nothing half-written is left.
    """
    if plot is not None:
        if not rank:
            raise ConfigError(
                "--plot shows what --sensitivity finds", got=plot, fix="give --sensitivity too"
            )
        plots.check(plot, options.force)
    dialect = sensitivity.dialect(options) if rank else None
    job = building.Calibration(options, reporter or Silent())
    out = options.out or Path(f"{job.source.name}-{bundle.CALIBRATION}")
    _refuse(out, options.force)
    cache = out.with_suffix(".cache") if options.emit_trt_cache else None
    if cache is not None:
        if cache == out:
            raise ConfigError(
                f"{out} would be table and TensorRT cache at once",
                fix="give the table another ending with --out",
            )
        _refuse(cache, options.force)
    graph = job.export()
    table = job.calibrate(graph, job.collect(graph))
    if cache is not None:
        job.write_trt_cache(graph, table, cache)
    found: dict[str, Any] = {"kind": "calibrate"}
    if dialect is not None:
        entry = sensitivity.stage(job, graph, table, job.round(graph, table, dialect), dialect)
        found = sensitivity.to_json(sensitivity.load(entry), job.ranking, options.target)
    atomic.write_text(out, (table.path / bundle.CALIBRATION).read_text(encoding="utf-8"))
    if plot is not None:
        plots.sensitivity(found, plot)
    return {
        **found,
        "plot": str(plot) if plot else None,
        "table": str(out),
        "trt_cache": str(cache) if cache else None,
        "calibration_images": len(job.images),
        "ignored_files": job.images.ignored,
        "stages": job.stages.done,
    }


def _refuse(out: Path, force: bool) -> None:
    if out.exists() and not force:
        raise ConfigError(f"{out} exists", fix="give --force to replace it, or another --out")


def bench(
    path: Path, *, batch: int, seconds: float, device: str, reporter: Reporter
) -> dict[str, Any]:
    """Measure the bundle at `path`; see `benchmarks.bench`."""
    opened = bundle.open_bundle(path)
    target = sources.runnable(opened.target, device)
    return measure(opened, target, BenchOptions(batch, seconds, device), reporter)


def gate(
    paths: Sequence[Path],
    bounds: Policy,
    *,
    data: str | None,
    reference: Path | None,
    device: str,
    reporter: Reporter,
) -> Verdicts:
    """Hold result files against `bounds`; a bundle among `paths` is verified first.

    Raises:
        ConfigError: for `data` or `reference` without a bundle to verify.
    """
    if (data or reference) and not any(path.is_dir() for path in paths):
        raise ConfigError(
            "--data and --reference go with a bundle, which is verified first",
            got="results alone",
            fix="drop them, or give the bundle in place of its verification",
        )
    found = [
        verification.verify(path, data=data, reference=reference, device=device, reporter=reporter)
        if path.is_dir()
        else results.read(path)
        for path in paths
    ]
    return gates.judge(found, bounds)


def run(
    options: BuildOptions,
    bounds: Policy,
    *,
    data: str | None,
    device: str,
    batch: int,
    seconds: float,
    reporter: Reporter,
) -> tuple[dict[str, Any], Verdicts]:
    """Build, verify, bench and gate.

    Without `data`, a bundle of the demo is verified on the demo's held-out images and any other on
    its probes.
    """
    measuring = BenchOptions(batch, seconds, device)
    measuring.check()
    sources.runnable(options.target, device)
    if data is not None and data != sources.DEMO:
        dataset.scan(Path(data).expanduser())
    built = build(options, reporter, device=device)
    path = Path(built["bundle"])
    if data is None and options.weights == sources.DEMO and options.model is None:
        data = sources.DEMO
    verified = verification.verify(path, data=data, device=device, reporter=reporter)
    benched = bench(path, batch=batch, seconds=seconds, device=device, reporter=reporter)
    verdicts = gates.judge([built, verified, benched], bounds)
    result = {
        "kind": "run",
        "build": built,
        "verify": verified,
        "bench": benched,
        "gate": verdicts.to_json(),
    }
    return result, verdicts
