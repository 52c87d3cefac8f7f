"""The command line: parses, calls one function, prints. Results go to ``--json``, the rest to
standard error."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
import traceback
import typing
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vggdeploy import (
    bench_table,
    bundle_commands,
    config,
    console,
    errors,
    flags,
    gate_table,
    layers_table,
    results,
)
from vggdeploy.terminal import Terminal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from vggdeploy.inputs import BuildOptions
    from vggdeploy.policy import Policies

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="VGG networks from torch to a verified, measured INT8 engine on a device.",
    epilog="Exit codes: 0 done or passed; 1 a gate failed or was inconclusive, or a build or "
    "tune cannot meet its bound; 2 bad input or usage; 3 something this machine lacks; 130 "
    "interrupted. --debug, anywhere, shows tracebacks.",
)
app.add_typer(bundle_commands.app, name="bundle")
terminal = Terminal()


@contextlib.contextmanager
def _then(show: Callable[..., None], *what: object) -> Iterator[None]:
    """Shows on the terminal what the block writes: after it, and where it cannot be written too."""
    try:
        yield
    finally:
        show(terminal, *what)


def _show_calibration(screen: Terminal, result: Mapping[str, Any]) -> None:
    if "layers" in result:
        console.show_sensitivity(screen, result)
    for written in filter(None, (result["table"], result["trt_cache"], result["plot"])):
        screen.line(f"wrote {written}", style="bold")


def _show_layers_and_bench(screen: Terminal, result: Mapping[str, Any]) -> None:
    layers_table.show_layers(screen, result["budget"])
    bench_table.show_bench(screen, result)


def _options(context: typer.Context) -> BuildOptions:
    """The flags of a command that are options of a build."""
    from vggdeploy.inputs import BuildOptions

    names = [field.name for field in dataclasses.fields(BuildOptions)]
    return BuildOptions(**{name: context.params[name] for name in names if name in context.params})


def _flagged(context: typer.Context, names: Iterable[str]) -> list[str]:
    """Those of `names` that were given as flags, and not by settings."""
    sources = {name: context.get_parameter_source(name) for name in names}
    return [name for name, source in sources.items() if source and source.name == "COMMANDLINE"]


def _policies(context: typer.Context) -> Policies:
    """The bounds of a gate, by flags and settings."""
    from vggdeploy import policy

    given = {name: context.params[name] for name in policy.BOUNDS}
    given[policy.MAX_RATIO], targets = context.obj or ({}, {})
    flagged = policy.ratios(context.params[policy.MAX_RATIO] or ())
    found = policy.Policies(given, _flagged(context, policy.BOUNDS), targets, flagged)
    found.of("")  # what is wrong is said before any work
    return found


def _kinds(command: Any) -> dict[str, config.Kind]:
    """The flags of a command, or of a group's, and what each takes in a settings file."""
    if inner := getattr(command, "commands", None):
        return {flag: kind for each in inner.values() for flag, kind in _kinds(each).items()}
    kinds: dict[Any, config.Kind] = {
        bool: "switch",
        int: "whole",
        float: "number",
        str: "text",
        Path: "text",
        list[str]: "texts",
    }
    hints = typing.get_type_hints(command.callback)
    return {
        flag.name: kind
        for flag in command.params
        for taken, kind in kinds.items()
        if hints[flag.name] in (taken, taken | None)
    }


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    """VGG networks from torch to a verified, measured INT8 engine on a device."""
    if version:
        from vggdeploy import __version__

        typer.echo(__version__)
        raise typer.Exit
    settings, where = config.load(config.here())
    if settings:
        from vggdeploy import policy, targets

        settings, ratios, by_target = policy.split(settings, targets.REGISTRY, where)
        context.obj = ratios, by_target
        commands = context.command.commands  # type: ignore[attr-defined]  # a group has them
        parts = {name: getattr(command, "commands", {}) for name, command in commands.items()}
        takes = {name: _kinds(command) for name, command in commands.items()}
        found = config.defaults(settings, takes, where)
        # What is set for a group is set for each command in it.
        context.default_map = {
            name: dict.fromkeys(parts[name], own) if parts[name] else own
            for name, own in found.items()
        }


@app.command()
def doctor(json: flags.Json = None, force: flags.Force = False) -> None:
    """Show what this machine can do, and what to install for the rest."""
    from vggdeploy import doctor as module

    results.refuse_overwrite(json, force)
    result = module.doctor()
    with _then(console.show_doctor, result):
        results.write(result, json)


@app.command()
def budget(
    arch: Annotated[str, typer.Option(help="vgg11 ... vgg19_bn, or alexnet.")] = "vgg16",
    num_classes: Annotated[int, typer.Option(help="Outputs of the network.")] = 1000,
    input_size: Annotated[int, typer.Option(help="Side of the square image, in pixels.")] = 224,
    precision: Annotated[str, typer.Option(help="fp32, fp16, bf16, int8 or int8-w4.")] = "fp32",
    batch: flags.Batch = 1,
    json: flags.Json = None,
    force: flags.Force = False,
) -> None:
    """Print what a network costs, layer by layer."""
    from vggdeploy import budget as module
    from vggdeploy import topology

    results.refuse_overwrite(json, force)
    network = topology.network(arch, num_classes=num_classes, input_size=(input_size, input_size))
    result = module.budget(network, precision, batch).to_json()
    yardstick = module.budget(topology.alexnet(), precision, batch).to_json()
    with _then(console.show_budget, result, yardstick):
        results.write({**result, "compared_with": yardstick}, json)


@app.command()
def export(
    context: typer.Context,
    weights: flags.Weights = "demo",
    model: flags.Model = None,
    arch: flags.Arch = None,
    num_classes: flags.Classes = None,
    preprocess: flags.Recipe = None,
    out: flags.Out = None,
    force: flags.Force = False,
    json: flags.Json = None,
) -> None:
    """Export the FP32 graph to ONNX."""
    from vggdeploy import pipeline

    results.refuse_overwrite(json, force, out)
    result = pipeline.export_graph(_options(context), terminal)
    results.write(result, json)
    terminal.line(f"wrote {result['onnx']}", style="bold")


@app.command()
def calibrate(
    context: typer.Context,
    weights: flags.Weights = "demo",
    model: flags.Model = None,
    arch: flags.Arch = None,
    num_classes: flags.Classes = None,
    preprocess: flags.Recipe = None,
    calib_data: flags.CalibData = None,
    calib_images: flags.CalibImages = None,
    method: flags.Method = "auto",
    calib_precision: flags.CalibPrecision = "auto",
    rescale: flags.Rescale = True,
    sensitivity: Annotated[
        bool,
        typer.Option(
            "--sensitivity", help="Rank layers by the damage that each does when quantized alone."
        ),
    ] = False,
    sensitivity_images: flags.SensitivityImages = 32,
    plot: Annotated[
        Path | None, typer.Option(help="Write the ranking as a chart, .svg or .png.")
    ] = None,
    target: Annotated[str, typer.Option(help="Of --sensitivity: how layers are quantized.")] = (
        "ov-int8"
    ),
    cpu_isa: flags.CpuIsa = "vnni",
    weight_rounding: flags.WeightRounding = "gptq",
    damping: flags.Damping = 0.01,
    order: flags.Order = "diagonal",
    bias_correction: flags.BiasCorrection = False,
    seed: flags.Seed = 0,
    emit_trt_cache: flags.EmitTrtCache = False,
    trt_version: flags.TrtVersion = "10.3.0",
    out: flags.Out = None,
    force: flags.Force = False,
    json: flags.Json = None,
) -> None:
    """Calibrate: write a table of thresholds that fits any target, and rank the layers."""
    from vggdeploy import pipeline

    results.refuse_overwrite(json, force, out)
    result = pipeline.calibrate(_options(context), terminal, rank=sensitivity, plot=plot)
    with _then(_show_calibration, result):
        results.write(result, json)


@app.command()
def build(
    context: typer.Context,
    target: flags.Target = "ov-int8",
    weights: flags.Weights = "demo",
    model: flags.Model = None,
    arch: flags.Arch = None,
    num_classes: flags.Classes = None,
    preprocess: flags.Recipe = None,
    calib_data: flags.CalibData = None,
    calib_images: flags.CalibImages = None,
    method: flags.Method = "auto",
    calib_precision: flags.CalibPrecision = "auto",
    rescale: flags.Rescale = True,
    weight_rounding: flags.WeightRounding = "gptq",
    damping: flags.Damping = 0.01,
    order: flags.Order = "diagonal",
    bias_correction: flags.BiasCorrection = False,
    max_drop: flags.BuildDrop = None,
    sensitivity_images: flags.SensitivityImages = 32,
    seed: flags.Seed = 0,
    calibration: flags.Calibration = None,
    emit_trt_cache: flags.EmitTrtCache = False,
    trt_version: flags.TrtVersion = "10.3.0",
    cpu_isa: flags.CpuIsa = "vnni",
    input_format: flags.InputFormat = "float",
    portable: flags.Portable = False,
    flavour: flags.Flavour = None,
    min_batch: flags.MinBatch = None,
    opt_batch: flags.OptBatch = None,
    max_batch: flags.MaxBatch = None,
    workspace: flags.Workspace = None,
    optimization_level: flags.OptimizationLevel = None,
    compute_capability: flags.ComputeCapability = None,
    dla: flags.Dla = None,
    sparsity: flags.Sparsity = None,
    out: flags.Out = None,
    force: flags.Force = False,
    json: flags.Json = None,
) -> None:
    """Build a bundle: export, calibrate, quantize, compile."""
    from vggdeploy import pipeline

    results.refuse_overwrite(json, force, out)
    result = pipeline.build(_options(context), terminal)
    with _then(console.show_build, result):
        results.write(result, json)


@app.command()
def compile(  # noqa: A001  # a command is named as its function
    context: typer.Context,
    bundle: flags.BundlePath,
    flavour: flags.Flavour = None,
    min_batch: flags.MinBatch = None,
    opt_batch: flags.OptBatch = None,
    max_batch: flags.MaxBatch = None,
    workspace: flags.Workspace = None,
    optimization_level: flags.OptimizationLevel = None,
    compute_capability: flags.ComputeCapability = None,
    out: flags.Out = None,
    trusted_keys: flags.TrustedKeys = None,
    force: flags.Force = False,
    json: flags.Json = None,
) -> None:
    """Compile a portable bundle into an engine for this machine's device."""
    from vggdeploy import compiling

    results.refuse_overwrite(json, force)
    changes = {key: context.params[key] for key in compiling.FLAGS if key in context.params}
    result = compiling.compile_bundle(
        bundle, out=out, force=force, changes=changes, trusted=trusted_keys, reporter=terminal
    )
    with _then(console.show_compile, result):
        results.write(result, json)


@app.command()
def verify(
    bundle: flags.BundlePath,
    data: flags.Data = None,
    reference: flags.Reference = None,
    device: flags.Device = "CPU",
    native: flags.Native = False,
    trusted_keys: flags.TrustedKeys = None,
    force: flags.Force = False,
    json: flags.Json = None,
) -> None:
    """Prove parity with the reference, and accuracy where there are labels."""
    from vggdeploy import verification

    results.refuse_overwrite(json, force)
    result = verification.verify(
        bundle,
        data=data,
        reference=reference,
        device=device,
        native=native,
        trusted=trusted_keys,
        reporter=terminal,
    )
    with _then(console.show_verify, result):
        results.write(result, json)


@app.command()
def bench(
    context: typer.Context,
    bundle: flags.BundlePath,
    scenario: flags.Scenario = "latency",
    batch: flags.BenchBatch = None,
    seconds: flags.BenchSeconds = None,
    precision: flags.Precision = None,
    queries: flags.Queries = None,
    rate: flags.Rate = None,
    p99_bound: flags.P99Bound = None,
    batches: flags.Batches = None,
    mlperf: flags.MLPerf = False,
    full: flags.Full = False,
    logs: flags.Logs = None,
    seed: flags.BenchSeed = 0,
    against: flags.Against = None,
    tuned: flags.Tuned = True,
    device: flags.Device = "CPU",
    layers: Annotated[
        bool, typer.Option("--layers", help="Show every layer's time against its own floor.")
    ] = False,
    trusted_keys: flags.TrustedKeys = None,
    force: flags.Force = False,
    json: flags.Json = None,
) -> None:
    """Measure latency and throughput, and judge them against the budget."""
    from vggdeploy import benching, speed_table

    results.refuse_overwrite(json, force)
    options = benching.options(context.params)
    if against is None:
        result = benching.bench(bundle, options, terminal, trusted_keys)
        show = _show_layers_and_bench if layers else bench_table.show_bench
    else:
        result = benching.against(bundle, against, options, terminal, seed, trusted_keys)
        show = speed_table.show_against
    with _then(show, result):
        results.write(result, json)
    benching.refuse_partial(result, json)


@app.command()
def tune(
    bundle: flags.BundlePath,
    goal: flags.Goal = "latency",
    latency_bound: flags.LatencyBound = None,
    seconds: flags.TuneSeconds = 180.0,
    device: flags.Device = "CPU",
    max_batch: flags.TuneBatch = 16,
    seed: flags.TuneSeed = 0,
    trusted_keys: flags.TrustedKeys = None,
    force: flags.Force = False,
    json: flags.Json = None,
) -> None:
    """Find the settings that a bundle runs best with on this machine, and keep them in it."""
    from vggdeploy import speed, speed_table
    from vggdeploy.benchmarks.tune import TuneOptions

    results.refuse_overwrite(json, force)
    options = TuneOptions(goal, latency_bound, seconds, device, max_batch, seed)
    result = speed.tune(bundle, options, terminal, trusted_keys)
    with _then(speed_table.show_tune, result):
        results.write(result, json)
    raise typer.Exit(errors.EXIT_OK if result["winner"] else errors.EXIT_GATE)


@app.command()
def compare(
    a: flags.ResultPath,
    b: flags.ResultPath,
    across_machines: flags.AcrossMachines = False,
    seed: flags.BootstrapSeed = 0,
    force: flags.Force = False,
    json: flags.Json = None,
) -> None:
    """Compare two results of bench: faster, slower, or no difference shown."""
    from vggdeploy import speed, speed_table

    results.refuse_overwrite(json, force)
    result = speed.compare(a, b, across_machines=across_machines, seed=seed)
    with _then(speed_table.show_comparison, result):
        results.write(result, json)


@app.command()
def gate(
    context: typer.Context,
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="RESULT|BUNDLE...", help="Results of --json, or a bundle to verify first."
        ),
    ],
    data: flags.Data = None,
    reference: flags.Reference = None,
    device: flags.Device = "CPU",
    native: flags.Native = False,
    trusted_keys: flags.TrustedKeys = None,
    across_machines: flags.AcrossMachines = False,
    min_agreement: flags.MinAgreement = None,
    max_drop: flags.MaxDrop = None,
    min_top1: flags.MinTop1 = None,
    min_cosine: flags.MinCosine = None,
    min_sqnr: flags.MinSqnr = None,
    max_p50: flags.MaxP50 = None,
    max_p99: flags.MaxP99 = None,
    min_throughput: flags.MinThroughput = None,
    min_utilisation: flags.MinUtilisation = None,
    max_engine_bytes: flags.MaxEngineBytes = None,
    max_resident_bytes: flags.MaxResidentBytes = None,
    max_energy: flags.MaxEnergy = None,
    max_ratio: flags.MaxRatio = None,
    baseline: flags.Baseline = None,
    junit: flags.Junit = None,
    summary: flags.Summary = None,
    annotations: flags.Annotations = None,
    force: flags.Force = False,
    json: flags.Json = None,
) -> None:
    """Hold results against bounds: exit 0 if all are met, 1 if not or if that cannot be told."""
    from vggdeploy import ci, pipeline

    results.refuse_overwrite(json, force)
    outputs = ci.Outputs(junit, summary, annotations)
    outputs.check(force, json, read=[*paths, baseline])
    of_bundles = ("data", "reference", "device", "native", "trusted_keys")
    if (idle := _flagged(context, of_bundles)) and not any(path.is_dir() for path in paths):
        words = " and ".join(f"--{name.replace('_', '-')}" for name in idle)
        raise errors.ConfigError(
            f"{words} {'go' if len(idle) > 1 else 'goes'} with a bundle, which is verified first",
            got=f"no folder among {', '.join(map(str, paths))}",
            expected="a bundle's",
            fix=f"drop {words}, or give the bundle in place of its verification",
        )
    verdicts = pipeline.gate(
        paths,
        _policies(context),
        baseline=baseline,
        data=data,
        reference=reference,
        device=device,
        native=native,
        across_machines=across_machines,
        trusted=trusted_keys,
        reporter=terminal,
    )
    with _then(gate_table.show_gate, verdicts):
        results.write(verdicts.to_json(), json)
        outputs.write(verdicts)
    raise typer.Exit(errors.EXIT_OK if verdicts.verdict == "pass" else errors.EXIT_GATE)


@app.command()
def baseline(
    paths: Annotated[
        list[Path], typer.Argument(metavar="RESULT...", help="Results of one bundle.")
    ],
    out: Annotated[Path, typer.Option(help="The baseline, to be committed.")],
    reason: Annotated[str, typer.Option(help="Why others are held against these.")] = "",
    force: flags.Force = False,
    json: flags.Json = None,
) -> None:
    """Make results the baseline that later ones of their target are held against."""
    from vggdeploy import baseline as module

    results.refuse_overwrite(json, force, out)
    result = module.update(out, paths, reason)
    results.write(result, json)
    before = result["replaced"]
    terminal.line(
        f"{out}: {result['target']} is now {result['digest'][:16]}..., "
        + (f"before {before[:16]}..." if before else "which had none")
    )
    for kind in result["dropped"]:
        terminal.line(
            f"its result of {kind} was of the bundle before, and is no longer there: give one of "
            "this bundle too",
            style="yellow",
        )


@app.command()
def report(
    paths: Annotated[
        list[Path], typer.Argument(metavar="RESULT...", help="Results of --json, of any bundles.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="The page; report.html if no file is given.")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="The same as Markdown.")] = None,
    force: flags.Force = False,
    json: flags.Json = None,
) -> None:
    """Show results as one HTML page, or as Markdown; several bundles side by side."""
    from vggdeploy import report as module

    results.refuse_overwrite(json, force)
    result = module.write(paths, out, markdown, force=force, json=json)
    results.write(result, json)
    for written in filter(None, (result["html"], result["markdown"])):
        terminal.line(f"wrote {written}", style="bold")


@app.command()
def run(
    context: typer.Context,
    target: flags.Target = "ov-int8",
    weights: flags.Weights = "demo",
    model: flags.Model = None,
    arch: flags.Arch = None,
    num_classes: flags.Classes = None,
    preprocess: flags.Recipe = None,
    calib_data: flags.CalibData = None,
    calib_images: flags.CalibImages = None,
    method: flags.Method = "auto",
    calib_precision: flags.CalibPrecision = "auto",
    rescale: flags.Rescale = True,
    weight_rounding: flags.WeightRounding = "gptq",
    damping: flags.Damping = 0.01,
    order: flags.Order = "diagonal",
    bias_correction: flags.BiasCorrection = False,
    seed: flags.Seed = 0,
    calibration: flags.Calibration = None,
    emit_trt_cache: flags.EmitTrtCache = False,
    trt_version: flags.TrtVersion = "10.3.0",
    cpu_isa: flags.CpuIsa = "vnni",
    input_format: flags.InputFormat = "float",
    portable: flags.Portable = False,
    flavour: flags.Flavour = None,
    min_batch: flags.MinBatch = None,
    opt_batch: flags.OptBatch = None,
    max_batch: flags.MaxBatch = None,
    workspace: flags.Workspace = None,
    optimization_level: flags.OptimizationLevel = None,
    compute_capability: flags.ComputeCapability = None,
    dla: flags.Dla = None,
    sparsity: flags.Sparsity = None,
    out: flags.Out = None,
    data: flags.Data = None,
    device: flags.Device = "CPU",
    native: flags.Native = False,
    batch: flags.Batch = 1,
    seconds: flags.Seconds = 5.0,
    min_agreement: flags.MinAgreement = None,
    max_drop: flags.MaxDrop = None,
    min_top1: flags.MinTop1 = None,
    min_cosine: flags.MinCosine = None,
    min_sqnr: flags.MinSqnr = None,
    max_p50: flags.MaxP50 = None,
    max_p99: flags.MaxP99 = None,
    min_throughput: flags.MinThroughput = None,
    min_utilisation: flags.MinUtilisation = None,
    max_engine_bytes: flags.MaxEngineBytes = None,
    max_resident_bytes: flags.MaxResidentBytes = None,
    max_energy: flags.MaxEnergy = None,
    max_ratio: flags.MaxRatio = None,
    baseline: flags.Baseline = None,
    across_machines: flags.AcrossMachines = False,
    report: flags.Report = None,
    junit: flags.Junit = None,
    summary: flags.Summary = None,
    annotations: flags.Annotations = None,
    force: flags.Force = False,
    json: flags.Json = None,
) -> None:
    """Build, verify, bench and gate in one."""
    from vggdeploy import benching, ci, pipeline
    from vggdeploy import report as module

    results.refuse_overwrite(json, force, out)
    module.check(report, force, "--report")
    outputs = ci.Outputs(junit, summary, annotations)
    outputs.check(force, json, read=[baseline], written={"--out": out, "--report": report})
    policies = _policies(context)
    result, verdicts = pipeline.run(
        # The bound is the gate's: a gate does not change what it judges.
        dataclasses.replace(_options(context), max_drop=None),
        policies,
        baseline=baseline,
        across_machines=across_machines,
        keep=functools.partial(results.write, destination=json),
        data=data,
        device=device,
        native=native,
        batch=batch,
        seconds=seconds,
        reporter=terminal,
    )
    with _then(console.show_run, result, verdicts):
        results.write(result, json)
        outputs.write(verdicts)
        if report is not None:
            module.write_result(result, report)
    if report is not None:
        terminal.line(f"wrote {report}", style="bold")
    benching.refuse_partial(result["bench"], json)
    raise typer.Exit(errors.EXIT_OK if verdicts.verdict == "pass" else errors.EXIT_GATE)


def main(arguments: list[str] | None = None, program: typer.Typer = app) -> int:
    """Run the command line and return the exit code.

    Args:
        arguments: as in ``sys.argv[1:]``, which it is when None.
        program: another program that ends as this one does, with a line for an error.
    """
    from PIL import Image

    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given
    # Images over Pillow's limit are refused with an error of ours; no need to warn as well.
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    try:
        if "" in given:
            raise errors.ConfigError(
                "an argument is empty",
                got=" ".join(repr(word) if word == "" else word for word in given),
                expected="none that is empty",
                fix="give it a value; a shell variable may be unset",
            )
        code = int(
            program([word for word in given if word != "--debug"], standalone_mode=False) or 0
        )
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # typer's own usage errors
            if type(error).__name__ == "NoArgsIsHelpError":
                error.show()
            else:
                terminal.line(f"error: {_usage(error, _called(program, given))}", style="red")
            return int(error.exit_code)
        if debug:
            traceback.print_exc()
        known = _known(error)
        if known is not None:
            terminal.line(f"error: {known}", style="red")
            return known.exit_code
        # A bug of ours: one line for the user, the traceback on request.
        terminal.line(
            f"error: {type(error).__name__}: {error} -- this is a bug: run again with --debug and "
            "report the traceback",
            style="red",
        )
        return errors.EXIT_INPUT
    if code == errors.EXIT_INTERRUPTED:
        terminal.line("interrupted: nothing half-written was left")
    return code


def _known(error: Exception) -> errors.VggdeployError | None:
    """What went wrong as an error of the tree; None for what should never be met."""
    if isinstance(error, errors.VggdeployError):
        return error
    if isinstance(error, MemoryError):
        return errors.MissingError(
            "there is not enough memory",
            got=error,
            expected="room for the network and the batch",
            fix="use a smaller batch or network, or a machine with more",
        )
    if isinstance(error, OSError) and error.filename is not None:
        return errors.ConfigError(
            f"{error.filename} cannot be used",
            got=error.strerror,
            expected="a path that this system takes and this user may use",
            fix="check the path, and who may read and write there",
        )
    return None


def _called(program: typer.Typer, words: list[str]) -> str:
    """The command that words begin with."""
    command: Any = typer.main.get_command(program)
    names = ["vggdeploy"]
    for word in words:
        command = getattr(command, "commands", {}).get(word)
        if command is None:
            break
        names.append(word)
    return " ".join(names)


def _usage(error: Any, called: str) -> errors.ConfigError:
    """What typer says of words that it cannot make a command of."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else called
    said = error.format_message().rstrip(".").removeprefix("Got ")
    return errors.ConfigError(
        "the command line is wrong",
        got=said[:1].lower() + said[1:],
        expected=f"what '{command}' takes",
        fix=f"see '{command} --help'",
    )
