"""The command line: parses, calls one function, prints. Results go to ``--json``, the rest to
standard error."""

from __future__ import annotations

import dataclasses
import sys
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vggdeploy import config, console, errors, results

if TYPE_CHECKING:
    from vggdeploy.gates import Policy
    from vggdeploy.inputs import BuildOptions

_INTERRUPTED = 130
"""What a shell gives a program that Ctrl-C ended, and typer too."""

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="VGG networks from torch to a verified, measured INT8 engine on a device.",
    epilog="Exit codes: 0 done or passed; 1 a gate failed or was inconclusive, or a build cannot "
    "meet its bound; 2 bad input or usage; 3 something this machine lacks. --debug, anywhere, "
    "shows tracebacks.",
)
terminal = console.Terminal()

Target = Annotated[str, typer.Option(help="What to build for; 'vggdeploy doctor' lists them.")]
Weights = Annotated[str, typer.Option(help="demo, imagenet, or a .safetensors or .pth file.")]
Model = Annotated[Path | None, typer.Option(help="A foreign FP32 ONNX file, in place of weights.")]
Arch = Annotated[
    str | None, typer.Option(help="vgg11, vgg13, vgg16, vgg19, or one of them with _bn.")
]
Classes = Annotated[int | None, typer.Option("--num-classes", help="Outputs of the network.")]
Recipe = Annotated[str | None, typer.Option("--preprocess", help="A preset, or a TOML file.")]
CalibData = Annotated[str | None, typer.Option(help="A folder of images to calibrate on.")]
CalibImages = Annotated[int | None, typer.Option(help="How many images to draw from it.")]
Method = Annotated[str, typer.Option(help="auto, mse, entropy, percentile or minmax.")]
CalibPrecision = Annotated[
    str, typer.Option(help="Of the calibration's passes: fp32, bf16, or auto (bf16 if it is fast).")
]
Rescale = Annotated[
    bool, typer.Option("--rescale/--no-rescale", help="Rescale channels where it pays.")
]
WeightRounding = Annotated[
    str, typer.Option(help="gptq (with second-order information) or nearest.")
]
Damping = Annotated[float, typer.Option(help="Of gptq, a share of the mean second moment.")]
Order = Annotated[str, typer.Option(help="Of gptq: diagonal or natural.")]
BiasCorrection = Annotated[
    bool, typer.Option("--bias-correction", help="Correct biases for the mean rounding error.")
]
Calibration = Annotated[
    Path | None,
    typer.Option(help="A table or a TensorRT calibration cache, in place of calibrating."),
]
EmitTrtCache = Annotated[
    bool, typer.Option("--emit-trt-cache", help="Write a TensorRT calibration cache too.")
]
TrtVersion = Annotated[str, typer.Option(help="The TensorRT that shall read that cache.")]
CpuIsa = Annotated[
    str, typer.Option(help="The CPU that OpenVINO INT8 is for: vnni, or avx2 (x86 without VNNI).")
]
BuildDrop = Annotated[
    float | None,
    typer.Option(
        help="Keep the fewest layers in high precision that bring the top-1 drop within this; "
        "0.005 is half a point."
    ),
]
SensitivityImages = Annotated[
    int, typer.Option(help="How many of the calibration images rank the layers.")
]
Seed = Annotated[int, typer.Option(help="Draws the calibration images.")]
Out = Annotated[Path | None, typer.Option(help="Where to write.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
Json = Annotated[str | None, typer.Option(help="Write the result as JSON; - is standard output.")]
Data = Annotated[str | None, typer.Option(help="A folder of images, or 'demo' for the demo's own.")]
Reference = Annotated[
    Path | None, typer.Option(help="The weights or graph that the bundle was built from, if moved.")
]
Device = Annotated[str, typer.Option(help="CPU, GPU, NPU or AUTO, as OpenVINO names them.")]
Batch = Annotated[int, typer.Option(help="Images a query.")]
Seconds = Annotated[float, typer.Option(help="How long to measure, each scenario.")]
BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle's folder.")]
MinAgreement = Annotated[float | None, typer.Option(help="Least top-1 agreement, 0 to 1.")]
MaxDrop = Annotated[float | None, typer.Option(help="Largest top-1 drop; 0.005 is half a point.")]
MinTop1 = Annotated[float | None, typer.Option(help="Least top-1 accuracy, 0 to 1.")]
MinCosine = Annotated[float | None, typer.Option(help="Least cosine similarity of any image.")]
MinSqnr = Annotated[float | None, typer.Option(help="Least SQNR of the scores, in dB.")]
MaxP50 = Annotated[float | None, typer.Option(help="Largest median latency, in seconds.")]
MaxP99 = Annotated[
    float | None, typer.Option(help="Largest 99th percentile of latency, in seconds.")
]
MinThroughput = Annotated[float | None, typer.Option(help="Least throughput, in images a second.")]
MinUtilisation = Annotated[float | None, typer.Option(help="Least share of the measured peak.")]
MaxEngineBytes = Annotated[float | None, typer.Option(help="Largest engine, in bytes.")]


def _options(context: typer.Context) -> BuildOptions:
    """The flags of a command that are options of a build."""
    from vggdeploy.inputs import BuildOptions

    names = [field.name for field in dataclasses.fields(BuildOptions)]
    return BuildOptions(**{name: context.params[name] for name in names if name in context.params})


def _bounds(context: typer.Context) -> Policy:
    """The flags of a command that are bounds of a gate."""
    from vggdeploy import gates

    names = [field.name for field in dataclasses.fields(gates.Policy)]
    return gates.policy({name: context.params[name] for name in names})


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
    settings, where = config.load(Path.cwd())
    if settings:
        commands = context.command.commands  # type: ignore[attr-defined]  # a group has them
        takes = {name: [p.name for p in command.params] for name, command in commands.items()}
        context.default_map = config.defaults(settings, takes, where)


@app.command()
def doctor(json: Json = None, force: Force = False) -> None:
    """Show what this machine can do, and what to install for the rest."""
    from vggdeploy import doctor as module

    results.refuse_overwrite(json, force)
    result = module.doctor()
    console.show_doctor(terminal, result)
    results.write(result, json)


@app.command()
def budget(
    arch: Annotated[str, typer.Option(help="vgg11 ... vgg19_bn, or alexnet.")] = "vgg16",
    num_classes: Annotated[int, typer.Option(help="Outputs of the network.")] = 1000,
    input_size: Annotated[int, typer.Option(help="Side of the square image, in pixels.")] = 224,
    precision: Annotated[str, typer.Option(help="fp32, fp16, bf16, int8 or int8-w4.")] = "fp32",
    batch: Batch = 1,
    json: Json = None,
    force: Force = False,
) -> None:
    """Print what a network costs, layer by layer."""
    from vggdeploy import budget as module
    from vggdeploy import topology

    results.refuse_overwrite(json, force)
    network = topology.network(arch, num_classes=num_classes, input_size=(input_size, input_size))
    result = module.budget(network, precision, batch).to_json()
    yardstick = module.budget(topology.alexnet(), precision, batch).to_json()
    console.show_budget(terminal, result, yardstick)
    results.write({**result, "compared_with": yardstick}, json)


@app.command()
def export(
    context: typer.Context,
    weights: Weights = "demo",
    model: Model = None,
    arch: Arch = None,
    num_classes: Classes = None,
    preprocess: Recipe = None,
    out: Out = None,
    force: Force = False,
    json: Json = None,
) -> None:
    """Export the FP32 graph to ONNX."""
    from vggdeploy import pipeline

    results.refuse_overwrite(json, force)
    result = pipeline.export_graph(_options(context), terminal)
    terminal.line(f"wrote {result['onnx']}", style="bold")
    results.write(result, json)


@app.command()
def calibrate(
    context: typer.Context,
    weights: Weights = "demo",
    model: Model = None,
    arch: Arch = None,
    num_classes: Classes = None,
    preprocess: Recipe = None,
    calib_data: CalibData = None,
    calib_images: CalibImages = None,
    method: Method = "auto",
    calib_precision: CalibPrecision = "auto",
    rescale: Rescale = True,
    sensitivity: Annotated[
        bool,
        typer.Option(
            "--sensitivity", help="Rank layers by the damage that each does when quantized alone."
        ),
    ] = False,
    sensitivity_images: SensitivityImages = 32,
    plot: Annotated[
        Path | None, typer.Option(help="Write the ranking as a chart, .svg or .png.")
    ] = None,
    target: Annotated[str, typer.Option(help="Of --sensitivity: how layers are quantized.")] = (
        "ov-int8"
    ),
    cpu_isa: CpuIsa = "vnni",
    weight_rounding: WeightRounding = "gptq",
    damping: Damping = 0.01,
    order: Order = "diagonal",
    bias_correction: BiasCorrection = False,
    seed: Seed = 0,
    emit_trt_cache: EmitTrtCache = False,
    trt_version: TrtVersion = "10.3.0",
    out: Out = None,
    force: Force = False,
    json: Json = None,
) -> None:
    """Calibrate: write a table of thresholds that fits any target, and rank the layers."""
    from vggdeploy import pipeline

    results.refuse_overwrite(json, force)
    result = pipeline.calibrate(_options(context), terminal, rank=sensitivity, plot=plot)
    if sensitivity:
        console.show_sensitivity(terminal, result)
    for written in filter(None, (result["table"], result["trt_cache"], result["plot"])):
        terminal.line(f"wrote {written}", style="bold")
    results.write(result, json)


@app.command()
def build(
    context: typer.Context,
    target: Target = "ov-int8",
    weights: Weights = "demo",
    model: Model = None,
    arch: Arch = None,
    num_classes: Classes = None,
    preprocess: Recipe = None,
    calib_data: CalibData = None,
    calib_images: CalibImages = None,
    method: Method = "auto",
    calib_precision: CalibPrecision = "auto",
    rescale: Rescale = True,
    weight_rounding: WeightRounding = "gptq",
    damping: Damping = 0.01,
    order: Order = "diagonal",
    bias_correction: BiasCorrection = False,
    max_drop: BuildDrop = None,
    sensitivity_images: SensitivityImages = 32,
    seed: Seed = 0,
    calibration: Calibration = None,
    emit_trt_cache: EmitTrtCache = False,
    trt_version: TrtVersion = "10.3.0",
    cpu_isa: CpuIsa = "vnni",
    out: Out = None,
    force: Force = False,
    json: Json = None,
) -> None:
    """Build a bundle: export, calibrate, quantize, compile."""
    from vggdeploy import pipeline

    results.refuse_overwrite(json, force)
    result = pipeline.build(_options(context), terminal)
    console.show_build(terminal, result)
    results.write(result, json)


@app.command()
def verify(
    bundle: BundlePath,
    data: Data = None,
    reference: Reference = None,
    device: Device = "CPU",
    force: Force = False,
    json: Json = None,
) -> None:
    """Prove parity with the reference, and accuracy where there are labels."""
    from vggdeploy import verification

    results.refuse_overwrite(json, force)
    result = verification.verify(
        bundle, data=data, reference=reference, device=device, reporter=terminal
    )
    console.show_verify(terminal, result)
    results.write(result, json)


@app.command()
def bench(
    bundle: BundlePath,
    batch: Batch = 1,
    seconds: Seconds = 5.0,
    device: Device = "CPU",
    force: Force = False,
    json: Json = None,
) -> None:
    """Measure latency and throughput, and judge them against the budget."""
    from vggdeploy import pipeline

    results.refuse_overwrite(json, force)
    result = pipeline.bench(bundle, batch=batch, seconds=seconds, device=device, reporter=terminal)
    console.show_bench(terminal, result)
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
    data: Data = None,
    reference: Reference = None,
    device: Device = "CPU",
    min_agreement: MinAgreement = None,
    max_drop: MaxDrop = None,
    min_top1: MinTop1 = None,
    min_cosine: MinCosine = None,
    min_sqnr: MinSqnr = None,
    max_p50: MaxP50 = None,
    max_p99: MaxP99 = None,
    min_throughput: MinThroughput = None,
    min_utilisation: MinUtilisation = None,
    max_engine_bytes: MaxEngineBytes = None,
    force: Force = False,
    json: Json = None,
) -> None:
    """Hold results against bounds: exit 0 if all are met, 1 if not or if that cannot be told."""
    from vggdeploy import pipeline

    results.refuse_overwrite(json, force)
    bounds = _bounds(context)
    verdicts = pipeline.gate(
        paths, bounds, data=data, reference=reference, device=device, reporter=terminal
    )
    console.show_gate(terminal, verdicts)
    results.write(verdicts.to_json(), json)
    raise typer.Exit(errors.EXIT_OK if verdicts.verdict == "pass" else errors.EXIT_GATE)


@app.command()
def run(
    context: typer.Context,
    target: Target = "ov-int8",
    weights: Weights = "demo",
    model: Model = None,
    arch: Arch = None,
    num_classes: Classes = None,
    preprocess: Recipe = None,
    calib_data: CalibData = None,
    calib_images: CalibImages = None,
    method: Method = "auto",
    calib_precision: CalibPrecision = "auto",
    rescale: Rescale = True,
    weight_rounding: WeightRounding = "gptq",
    damping: Damping = 0.01,
    order: Order = "diagonal",
    bias_correction: BiasCorrection = False,
    seed: Seed = 0,
    calibration: Calibration = None,
    emit_trt_cache: EmitTrtCache = False,
    trt_version: TrtVersion = "10.3.0",
    cpu_isa: CpuIsa = "vnni",
    out: Out = None,
    data: Data = None,
    device: Device = "CPU",
    batch: Batch = 1,
    seconds: Seconds = 5.0,
    min_agreement: MinAgreement = None,
    max_drop: MaxDrop = None,
    min_top1: MinTop1 = None,
    min_cosine: MinCosine = None,
    min_sqnr: MinSqnr = None,
    max_p50: MaxP50 = None,
    max_p99: MaxP99 = None,
    min_throughput: MinThroughput = None,
    min_utilisation: MinUtilisation = None,
    max_engine_bytes: MaxEngineBytes = None,
    force: Force = False,
    json: Json = None,
) -> None:
    """Build, verify, bench and gate in one."""
    from vggdeploy import pipeline

    results.refuse_overwrite(json, force)
    bounds = _bounds(context)
    result, verdicts = pipeline.run(
        # The bound is the gate's: a gate does not change what it judges.
        dataclasses.replace(_options(context), max_drop=None),
        bounds,
        data=data,
        device=device,
        batch=batch,
        seconds=seconds,
        reporter=terminal,
    )
    console.show_build(terminal, result["build"], without=result["verify"]["cautions"])
    console.show_verify(terminal, result["verify"])
    console.show_bench(terminal, result["bench"])
    console.show_gate(terminal, verdicts)
    results.write(result, json)
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
                fix="give it a value; a shell variable may be unset",
            )
        code = int(
            program([word for word in given if word != "--debug"], standalone_mode=False) or 0
        )
    except errors.VggdeployError as error:
        if debug:
            traceback.print_exc()
        terminal.line(f"error: {error}", style="red")
        return error.exit_code
    except MemoryError as error:
        terminal.line(
            f"error: there is not enough memory: {error} -- use a smaller --batch, or a machine "
            "with more",
            style="red",
        )
        return errors.EXIT_MISSING
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # typer's own usage errors
            error.show()
            return int(error.exit_code)
        if debug:
            traceback.print_exc()
        # A bug of ours: one line for the user, the traceback on request.
        terminal.line(
            f"error: {type(error).__name__}: {error} -- this is a bug: run again with --debug and "
            "report the traceback",
            style="red",
        )
        return errors.EXIT_INPUT
    if code == _INTERRUPTED:
        terminal.line("interrupted: nothing half-written was left")
    return code


def entry() -> None:
    """The console script."""
    raise SystemExit(main())


if __name__ == "__main__":
    entry()
