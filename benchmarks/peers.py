"""This product beside its peers, in one process: ``python -m vggdeploy.benchmarks.peers``.

Takes an OpenVINO INT8 bundle and the FP32 graph that it was built from, lets NNCF quantize that
graph with its defaults on the same kind of images, and measures both engines in turn, so that a
drift of the machine touches both alike.

::

    vggdeploy export --out build/graph
    vggdeploy build --target ov-int8 --out build/bundle
    python -m vggdeploy.benchmarks.peers build/bundle build/graph/model.onnx
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from vggdeploy import bundle, dataset, parity, results, targets
from vggdeploy.console import Terminal
from vggdeploy.contracts import GraphTarget, RunOptions
from vggdeploy.demo import digits
from vggdeploy.errors import BundleError, missing_package
from vggdeploy.machine import system

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from vggdeploy.bundle import Bundle
    from vggdeploy.contracts import Runner
    from vggdeploy.dataset import Dataset

WARMUP = 5


def nncf_ir(onnx: Path, images: Dataset, opened: Bundle, out: Path) -> float:
    """Quantize with NNCF's defaults into the IR `out`; the seconds that ``quantize`` took.

    Raises:
        MissingError: when NNCF is not installed.
    """
    try:
        import nncf
        import openvino
    except ImportError as error:
        raise missing_package("nncf", "peers", "the comparison") from error
    model = openvino.Core().read_model(onnx)
    recipe = opened.preprocess
    source = nncf.Dataset(
        images.samples,
        lambda sample: recipe.arithmetic(recipe.geometry(dataset.decode(sample.path))[None]),
    )
    start = time.perf_counter()
    quantized = nncf.quantize(model, source, subset_size=len(images))
    seconds = time.perf_counter() - start
    openvino.save_model(quantized, out, compress_to_fp16=False)
    return seconds


def interleave(
    runners: Sequence[Runner], batch: NDArray[np.float32], runs: int
) -> list[list[float]]:
    """Seconds of `runs` queries of each runner, one of each in turn, the order turning too: what
    runs second finds the caches as the first has left them."""
    samples: list[list[float]] = [[] for _ in runners]
    for turn in range(WARMUP + runs):
        pairs = list(zip(runners, samples, strict=True))
        for runner, into in pairs if turn % 2 else reversed(pairs):
            start = time.perf_counter()
            runner.infer(batch)
            if turn >= WARMUP:
                into.append(time.perf_counter() - start)
    return samples


def fake_quantizes(layers: Sequence[dict[str, Any]]) -> list[str]:
    """Names of executed FakeQuantize nodes: a second quantize between a pool and its reader."""
    return [layer["name"] for layer in layers if layer["type"] in ("FakeQuantize", "Quantize")]


def main(
    path: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="An ov-int8 or ov-int8-w4 bundle.")
    ],
    onnx: Annotated[Path, typer.Argument(help="The FP32 graph that it was built from.")],
    calib_data: Annotated[Path | None, typer.Option(help="Images; the demo's if left out.")] = None,
    calib_images: Annotated[int, typer.Option(help="How many calibrate NNCF.")] = 128,
    runs: Annotated[int, typer.Option(help="Queries of each engine.")] = 30,
    json: Annotated[str | None, typer.Option(help="Write the result as JSON.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
) -> None:
    """Compare a bundle with NNCF's default engine of the same graph."""
    results.refuse_overwrite(json, force)
    terminal = Terminal()
    opened = bundle.open_bundle(path)
    target = targets.get(opened.target)
    if opened.target not in ("ov-int8", "ov-int8-w4") or not isinstance(target, GraphTarget):
        raise BundleError(
            f"{path} is no bundle to compare",
            got=opened.target,
            expected="ov-int8 or ov-int8-w4",
            fix="build it with --target ov-int8",
        )
    probes = opened.probes()
    inputs = opened.preprocess.arithmetic(probes.images)
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vggdeploy-")))
        if calib_data is None:
            digits.write("training", scratch / "digits")
        images = dataset.scan(calib_data or scratch / "digits").choose(calib_images, seed=0)
        seconds = nncf_ir(onnx, images, opened, scratch / "nncf.xml")
        sizes = [
            opened.engine_bytes,
            sum((scratch / f"nncf{ending}").stat().st_size for ending in (".xml", ".bin")),
        ]
        names = [opened.target, "NNCF default"]
        runners = [
            stack.enter_context(runner)
            for runner in (
                target.open(opened, RunOptions()),
                target.open_graph(scratch / "nncf.xml", (), RunOptions()),
            )
        ]
        samples = interleave(runners, inputs[:1], runs)
        scores = [
            np.concatenate([runner.scores(image[None]).copy() for image in inputs])
            for runner in runners
        ]
        executed = runners[0].executed_layers()  # type: ignore[attr-defined]  # OpenVINO's has it
    medians = [float(np.median(times)) for times in samples]
    closeness = [parity.parity(probes.reference, found) for found in scores]
    ratios = np.array(samples[0]) / np.array(samples[1])
    requantized = fake_quantizes(executed)
    terminal.table(
        ("engine", "median", "min", "SQNR", "agreement", "size"),
        [
            (
                name,
                f"{median * 1e3:.2f} ms",
                f"{min(times) * 1e3:.2f} ms",
                f"{close.sqnr_db:.1f} dB",
                f"{close.top1_agreement:.4f}",
                f"{size / 1e6:.2f} MB",
            )
            for name, median, times, close, size in zip(
                names, medians, samples, closeness, sizes, strict=True
            )
        ],
    )
    terminal.line(
        f"ratio of medians {medians[0] / medians[1]:.3f} (median of the {runs} pairs "
        f"{float(np.median(ratios)):.3f}); NNCF quantized {len(images)} images in {seconds:.1f} s; "
        f"executed FakeQuantize nodes: {', '.join(requantized) or 'none'}"
    )
    results.write(
        {
            "kind": "peers",
            "engines": names,
            "samples_s": samples,
            "sqnr_db": [close.sqnr_db for close in closeness],
            "top1_agreement": [close.top1_agreement for close in closeness],
            "engine_bytes": sizes,
            "median_ratio": medians[0] / medians[1],
            "nncf_quantize_s": seconds,
            "requantized": requantized,
            "system": system(),
        },
        json,
    )


if __name__ == "__main__":
    typer.run(main)
