"""The command line's flags: what each takes, in one line of help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
InputFormat = Annotated[
    str,
    typer.Option(help="float, or uint8-nhwc: pixels as they are, normalized by the network."),
]
Portable = Annotated[
    bool,
    typer.Option("--portable", help="Leave compiling to the device: 'vggdeploy compile' there."),
]
Native = Annotated[
    bool,
    typer.Option("--native", help="On the device or not at all: nothing is emulated on the CPU."),
]
Flavour = Annotated[
    str | None, typer.Option(help="Of TensorRT: tensorrt, or rtx; what is installed if not given.")
]
MinBatch = Annotated[
    int | None, typer.Option(help="Of TensorRT: the fewest images a query; 1 if not given.")
]
OptBatch = Annotated[
    int | None, typer.Option(help="Of TensorRT: the batch it is tuned for; 1 if not given.")
]
MaxBatch = Annotated[
    int | None, typer.Option(help="Of TensorRT: the most images a query; 32 if not given.")
]
Workspace = Annotated[
    int | None, typer.Option(help="Of TensorRT: bytes of scratch memory that a layer may use.")
]
OptimizationLevel = Annotated[
    int | None, typer.Option(help="Of TensorRT: 0 to 5; higher tries more kernels.")
]
ComputeCapability = Annotated[
    list[str] | None,
    typer.Option(help="Of TensorRT for RTX: what to build for, such as 8.6; give it for each."),
]
Dla = Annotated[int | None, typer.Option(help="Of TensorRT up to 10: the DLA core to build for.")]
Sparsity = Annotated[
    str | None,
    typer.Option(help="Of TensorRT: 2:4 prunes weights to it, for sparse tensor cores."),
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
Scenario = Annotated[str, typer.Option(help="latency, throughput, server or multistream.")]
BenchSeconds = Annotated[
    float | None,
    typer.Option(
        "--seconds", help="How long to measure, each loop: 5, or at most 60 with --precision."
    ),
]
Precision = Annotated[
    float | None,
    typer.Option(help="Measure until the median is known this well; 0.01 is 1% either way."),
]
Queries = Annotated[
    int | None, typer.Option(help="The fewest queries to measure; 30, but of server.")
]
Rate = Annotated[float | None, typer.Option(help="Of server: queries that arrive a second.")]
P99Bound = Annotated[
    float | None,
    typer.Option("--p99-bound", help="Of server: find the highest rate within it, in seconds."),
]
Batches = Annotated[
    str | None, typer.Option(help="Measure throughput at these batches too, such as 1,2,4,8.")
]
MLPerf = Annotated[bool, typer.Option("--mlperf", help="Let MLPerf's LoadGen drive the scenario.")]
Full = Annotated[bool, typer.Option("--full", help="Of --mlperf: a run of valid length, 600 s.")]
Logs = Annotated[
    Path | None,
    typer.Option(help="Of --mlperf: where LoadGen's logs go; beside the result if not given."),
]
BenchSeed = Annotated[
    int,
    typer.Option("--seed", help="Draws the arrivals of server, and the bootstrap of --against."),
]
BenchBatch = Annotated[
    int | None,
    typer.Option(
        "--batch", help="Images a query; 1, or for throughput what the bundle was tuned to."
    ),
]
Against = Annotated[
    Path | None,
    typer.Option(metavar="BUNDLE", help="Take turns with another bundle, and compare them."),
]
Tuned = Annotated[
    bool,
    typer.Option("--tuned/--no-tuned", help="Use the settings that the bundle was tuned to."),
]
Batch = Annotated[int, typer.Option(help="Images a query.")]
Seconds = Annotated[float, typer.Option(help="How long to measure, each scenario.")]
AcrossMachines = Annotated[
    bool,
    typer.Option("--across-machines", help="Allow results of different machines or settings."),
]
Goal = Annotated[str, typer.Option(help="latency: the lowest; throughput: the highest.")]
LatencyBound = Annotated[
    float | None,
    typer.Option(help="Of --goal throughput: what the 99th percentile may be, in seconds."),
]
TuneSeconds = Annotated[float, typer.Option("--seconds", help="How long the search may take.")]
TuneBatch = Annotated[
    int, typer.Option("--max-batch", help="Of --goal throughput: the largest batch to try.")
]
TuneSeed = Annotated[int, typer.Option("--seed", help="Draws the order of the turns.")]
BootstrapSeed = Annotated[int, typer.Option("--seed", help="Of the bootstrap interval.")]
ResultPath = Annotated[
    Path, typer.Argument(metavar="RESULT", help="What --json of bench or run wrote.")
]
BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle's folder.")]
TrustedKeys = Annotated[
    Path | None,
    typer.Option(
        help="Public keys, a file or a folder: bundles that none of them signed are refused."
    ),
]
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
MaxResidentBytes = Annotated[
    float | None, typer.Option(help="Most memory that measuring holds, in bytes.")
]
MaxEnergy = Annotated[float | None, typer.Option(help="Most energy an image, in joules.")]
MaxRatio = Annotated[
    list[str] | None,
    typer.Option(
        metavar="METRIC=RATIO",
        help="How many times worse than the baseline a figure may be, such as p99=1.05.",
    ),
]
Baseline = Annotated[
    Path | None, typer.Option(help="What 'vggdeploy baseline' wrote, for --max-ratio.")
]
Report = Annotated[
    Path | None, typer.Option(help="Write a report too: an .html page, or Markdown (.md).")
]
Junit = Annotated[
    Path | None, typer.Option(help="Write the verdict as JUnit XML, for a CI server.")
]
Summary = Annotated[
    Path | None,
    typer.Option(help="Write it as Markdown; to $GITHUB_STEP_SUMMARY it is appended."),
]
Annotations = Annotated[
    str | None,
    typer.Option(help="Write it to standard output as annotations of a change: github."),
]
