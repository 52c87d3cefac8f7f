"""The order of the stages, and the one file that knows it: weights and images to a verdict."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vggdeploy import (
    atomic,
    benching,
    building,
    calibrating,
    calibration_file,
    dataset,
    execution,
    gates,
    machine,
    mixed,
    plots,
    pruning,
    results,
    sensitivity,
    sources,
    verification,
)
from vggdeploy import baseline as baselines
from vggdeploy.benchmarks import BenchOptions
from vggdeploy.contracts import RunOptions, Silent
from vggdeploy.errors import ConfigError, ResultError
from vggdeploy.inputs import BuildOptions
from vggdeploy.manifest import CALIBRATION, TRT_CACHE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vggdeploy.cache import Entry
    from vggdeploy.contracts import Dialect, Reporter
    from vggdeploy.gates import Verdicts
    from vggdeploy.policy import Policies, Policy

_EXPORTED = {"model.onnx", "model.onnx.data"}
"""What is in the folder of an export."""

__all__ = ["BuildOptions", "build", "calibrate", "export_graph", "gate", "run"]


def build(
    options: BuildOptions, reporter: Reporter | None = None, *, device: str = "CPU"
) -> dict[str, Any]:
    """Build a bundle.

    Args:
        options: what to build.
        reporter: told the progress.
        device: where the bundle will run, for the cautions.

    Returns:
        ``bundle``, ``target``, ``digest``, ``engine_bytes`` (0 where none is compiled yet),
        ``portable``, ``compiled``, ``input`` (name, shape, dtype), ``stages``, ``unchanged`` (the same
        bundle was there already), ``left_in_high_precision``, ``calibration_images`` (None where a
        given calibration does not say), ``ignored_files``, ``trt_cache``, ``batches`` (of a
        TensorRT engine: least, tuned for and most, else None), ``cautions``, ``sparsity`` (None
        for dense weights, else see `pruning.report`), and ``mixed`` (None without a bound on the
        drop, else see `mixed.report`).

    Raises:
        VggdeployError: one of its kinds; nothing half-written is left.
    """
    job = building.Build(options, reporter or Silent())
    exported = job.export()
    pruned = pruning.stage(job, exported) if options.sparsity else None
    graph = pruned or exported
    table = quantized = said = choice = None
    kept: tuple[str, ...] = ()
    if job.implicit:
        table = _table(job, graph)
    elif job.dialect is not None:
        table, rounded = calibrated(job, graph, job.dialect)
        if job.judged is not None:
            choice = mixed.choose(job, graph, table, rounded, job.dialect, against=exported)
            kept = choice.kept
        quantized = job.quantize(graph, table, rounded, job.dialect, kept)
        if choice is not None:
            whole = functools.partial(job.quantize, graph, table, rounded, job.dialect)
            said = mixed.report(job, choice, graph, quantized, whole)
    compiled = job.formed(quantized or job.typed(graph))
    engine = None if options.portable else job.compile(compiled, table if job.implicit else None)
    sparse = pruning.report(job, pruned)
    made = building.Made(graph, table, quantized, compiled, engine, job.reference(), kept, sparse)
    opened = job.write(made)
    calibration = calibrating.load_table(table) if table else None
    return {
        "kind": "build",
        "bundle": str(job.out),
        "target": job.target.name,
        "digest": opened.manifest["digest"],
        "engine_bytes": opened.engine_bytes,
        "portable": options.portable,
        "compiled": opened.compiled,
        "input": opened.manifest["input"],
        "stages": job.stages.done,
        "unchanged": job.unchanged,
        "left_in_high_precision": job.left(quantized),
        "calibration_images": calibration.source.get("images") if calibration else 0,
        "ignored_files": job.images.ignored,
        "trt_cache": str(job.out / TRT_CACHE) if job.trt_cache else None,
        "batches": opened.manifest["build"].get("engine", {}).get("batches"),
        "cautions": [
            *calibration_file.cautions(calibration, options.calibration, options.sparsity),
            *job.target.cautions(opened, RunOptions(device=device)),
        ],
        "sparsity": sparse,
        "mixed": said,
    }


def calibrated(job: building.Build, graph: Entry, dialect: Dialect) -> tuple[Entry, Entry | None]:
    """The calibration table of a float graph, and its weights as `Build.round` gives them."""
    table = _table(job, graph)
    return table, job.round(graph, table, dialect)


def _table(job: building.Build, graph: Entry) -> Entry:
    if job.given is not None:
        return job.adopt(graph, job.given)
    return job.calibrate(graph, job.collect(graph))


def quantized_graph(job: building.Build, dialect: Dialect) -> Entry:
    """The Q/DQ graph in a dialect, every layer quantized: what a build compiles."""
    graph = job.export()
    if job.options.sparsity:
        graph = pruning.stage(job, graph)
    table, rounded = calibrated(job, graph, dialect)
    return job.quantize(graph, table, rounded, dialect)


def export_graph(options: BuildOptions, reporter: Reporter | None = None) -> dict[str, Any]:
    """Export the FP32 graph alone, into the folder ``options.out``.

    Raises:
        VggdeployError: one of its kinds; nothing half-written is left.
    """
    job = calibrating.Job(options, reporter or Silent())
    out = options.out or Path(f"{job.source.name}.onnx")

    def gives_way() -> bool:
        _refuse(out, options.force)
        names = {file.name for file in out.iterdir()} if out.is_dir() else None
        if out.exists() and not (names is not None and names <= _EXPORTED):
            raise ConfigError(
                f"{out} is not what an export leaves, and is not replaced",
                got="a file" if names is None else "a folder of other files",
                expected="a free path, or an export",
                fix="choose another place with --out",
            )
        return True

    atomic.require_writable(out)
    gives_way()
    graph = job.export()
    with atomic.folder(out, replace=gives_way) as work:
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
                "--plot shows what --sensitivity finds",
                got=f"--plot {plot} alone",
                expected="both, or neither",
                fix="give --sensitivity too",
            )
        plots.check(plot, options.force)
    dialect = sensitivity.dialect(options) if rank else None
    job = calibrating.Calibration(options, reporter or Silent())
    out = options.out or Path(f"{job.source.name}-{CALIBRATION}")
    atomic.require_writable(out)
    _refuse(out, options.force)
    cache = out.with_suffix(".cache") if options.emit_trt_cache else None
    if cache is not None:
        if cache == out:
            raise ConfigError(
                f"{out} would be table and TensorRT cache at once",
                got=f"the ending {out.suffix!r}",
                expected="another, such as .json",
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
    atomic.write_text(out, (table.path / CALIBRATION).read_text(encoding="utf-8"))
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
        raise ConfigError(
            f"{out} exists",
            got="a folder" if out.is_dir() else "a file",
            expected="a free path",
            fix="give --force to replace it, or another --out",
        )


def gate(
    paths: Sequence[Path],
    policies: Policies,
    *,
    baseline: Path | None = None,
    data: str | None,
    reference: Path | None,
    device: str,
    reporter: Reporter,
    native: bool = False,
    across_machines: bool = False,
    trusted: Path | None = None,
) -> Verdicts:
    """Hold result files against the policy of their target; a bundle among `paths` is verified first, without
    emulation if `native`, and must be signed by one of the keys of `trusted` where these are given.
    `across_machines` allows results of different machines.

    Raises:
        ResultError: for a file that is no result, or no baseline.
    """
    if baseline is not None:
        baselines.read(baseline)
    found = [
        verification.verify(
            path,
            data=data,
            reference=reference,
            device=device,
            native=native,
            trusted=trusted,
            reporter=reporter,
        )
        if path.is_dir()
        else results.read(path)
        for path in paths
    ]
    return _judge(found, policies, baseline, across_machines=across_machines)


def _judge(
    found: Sequence[Mapping[str, Any]],
    policies: Policies,
    baseline: Path | None,
    *,
    across_machines: bool = False,
) -> Verdicts:
    target = gates.target_of(found)
    return gates.judge(
        found,
        policies.of(target),
        baseline=baselines.results_of(baseline, target) if baseline else None,
        across_machines=across_machines,
    )


def run(
    options: BuildOptions,
    policies: Policies,
    *,
    data: str | None,
    device: str,
    batch: int,
    seconds: float,
    reporter: Reporter,
    native: bool = False,
    baseline: Path | None = None,
    across_machines: bool = False,
    keep: Callable[[Mapping[str, Any]], None] = lambda result: None,
) -> tuple[dict[str, Any], Verdicts]:
    """Build, verify, bench and gate.

    Without `data`, a bundle of the demo is verified on the demo's held-out images and any other on
    its probes. Where the target does not run here it is verified by emulation, if it can be and
    `native` does not forbid that, and not measured: ``bench`` is None then, and ``not_benched``
    says why.

    A baseline that the measurement could not be held against, which `across_machines` allows to be
    of another machine, is refused before anything is built. Where it shows itself afterwards that
    there can be no verdict, what there is by then is given to `keep` first.

    Raises:
        VggdeployError: one of its kinds.
    """
    measuring = BenchOptions(batch, seconds, device, tuned=True)
    measuring.check()
    policy = policies.of(options.target)
    then = baselines.results_of(baseline, options.target) if baseline else None
    why = _not_benched(options, device, native)
    if then is not None and why is None:
        _require_comparable(then, policy, measuring, across_machines)
    if data is not None and data != sources.DEMO:
        dataset.scan(Path(data).expanduser())
    built = build(options, reporter, device=device)
    path = Path(built["bundle"])
    if data is None and options.weights == sources.DEMO and options.model is None:
        data = sources.DEMO
    verified = verification.verify(path, data=data, device=device, native=native, reporter=reporter)
    benched = None
    if why is None:
        benched = benching.bench(path, measuring, reporter)
    parts = [part for part in (built, verified, benched) if part]
    result = {
        "kind": "run",
        "build": built,
        "verify": verified,
        "bench": benched,
        "not_benched": why,
        "gate": None,
    }
    try:
        verdicts = _judge(parts, policies, baseline, across_machines=across_machines)
    except ResultError:
        keep(result)
        raise
    return {**result, "gate": verdicts.to_json()}, verdicts


def _require_comparable(
    then: Sequence[Mapping[str, Any]],
    policy: Policy,
    measuring: BenchOptions,
    across_machines: bool,
) -> None:
    """Make sure that a measurement can be held against a baseline once it is made, as far as that
    is known now."""
    found = gates.by_kind(then)
    known = {
        **found.get("bench", {}),
        "scenario": measuring.scenario,
        "batch": measuring.size,
        "system": machine.system(),
    }
    gates.comparable(known, policy, found, across_machines=across_machines)


def _not_benched(options: BuildOptions, device: str, native: bool) -> str | None:
    """Why a run will not measure what it builds; None where it will.

    Raises:
        ConfigError: when the engine would be left to a device that is this machine.
        MissingError: when what it builds could not even be verified here.
    """
    target = sources.buildable(options.target, portable=options.portable)
    lacking = execution.lacking(options.target, device)
    if lacking is None:
        if options.portable:
            raise ConfigError(
                "--portable leaves compiling to the device",
                got=f"{target.name}, which runs on this one",
                expected="a target whose device is elsewhere",
                fix="drop it, or build without run",
            )
        return None
    if native or not target.keeps_graph:
        raise lacking
    execution.emulator(target, lacking)
    return execution.said(lacking)
