"""What each step of quantization is worth: ``python -m vggdeploy.benchmarks.ablation [FLAGS]``.

Builds the quantized graph once for each combination of switches, runs it as it is defined, in
float, so that no CPU's saturation comes between, and compares it with the float network on images
that were not calibrated on.
"""

from __future__ import annotations

import functools
import json as jsonlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import typer

from vggdeploy import building, dataset, graphs, parity, results, sources
from vggdeploy.cache import Cache
from vggdeploy.console import Terminal
from vggdeploy.contracts import DIALECTS, RunOptions
from vggdeploy.inputs import BuildOptions
from vggdeploy.machine import system

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from vggdeploy.cache import Entry
    from vggdeploy.contracts import Dialect, GraphTarget, Runner
    from vggdeploy.dataset import Dataset

PLAIN: dict[str, Any] = {"rescale": False, "weight_rounding": "nearest"}
STEPS: dict[str, dict[str, Any]] = {
    "minmax, nearest": {**PLAIN, "method": "minmax"},
    "percentile, nearest": {**PLAIN, "method": "percentile"},
    "entropy, nearest": {**PLAIN, "method": "entropy"},
    "mse, nearest": {**PLAIN, "method": "mse"},
    "auto, nearest": {**PLAIN},
    "auto, rescaled, nearest": {"weight_rounding": "nearest"},
    "auto, gptq": {"rescale": False},
    "auto, rescaled, gptq (the default)": {},
    "the default, columns in natural order": {"order": "natural"},
    "the default, damping 0.001": {"damping": 0.001},
    "the default, damping 0.1": {"damping": 0.1},
    "the default, bias correction": {"bias_correction": True},
    "the default, observed in bfloat16": {"calib_precision": "bf16"},
}
"""What differs from a build's defaults, in FP32, in each step."""


class InBfloat16(building.Build):
    """A build whose float network is observed as a CPU with bfloat16 arithmetic computes it, on a
    CPU that has none: weights and layers' inputs are rounded to bfloat16, sums are float32."""

    def observe(
        self,
        graph: Entry,
        tensors: Iterable[str],
        goal: Literal["latency", "throughput"] = "throughput",
    ) -> Runner:
        """A runner of the rounded graph that shows `tensors`."""
        rounded = self.store.stage(
            "bfloat16",
            {"graph": graph.digest},
            lambda work: in_bfloat16(graph.path / "model.onnx", work / "model.onnx"),
        )
        return super().observe(rounded, tensors, goal)

    @functools.cached_property
    def provenance(self) -> dict[str, Any]:
        """What a calibration table is made from."""
        return {**super().provenance, "precision": "bf16"}

    @functools.cached_property
    def observer(self) -> GraphTarget:
        """What runs the float graph in calibration."""
        return sources.float_target()


def in_bfloat16(source: Path, out: Path) -> None:
    """Write a graph whose weighted nodes read weights and inputs rounded to bfloat16."""
    import onnx_ir

    model = graphs.read(source)
    narrow, wide = onnx_ir.DataType.BFLOAT16, onnx_ir.DataType.FLOAT
    for found in list(graphs.weighted(model)):
        tensor, value = found.weight.const_value, found.node.inputs[0]
        assert tensor is not None and value is not None
        rounded = tensor.numpy().astype(narrow.numpy()).astype(np.float32)
        found.weight.const_value = onnx_ir.tensor(rounded, name=str(found.weight.name))
        for kind in (narrow, wide):
            cast = onnx_ir.node("Cast", [value], {"to": kind.value})
            made = cast.outputs[0]
            made.name = f"{found.name}.{kind.name}"
            made.shape, made.type = value.shape, onnx_ir.TensorType(kind)
            model.graph.append(cast)
            value = made
        found.node.replace_input_with(0, value)
    model.graph.sort()
    graphs.write(model, out, external=True)


def quantized(options: BuildOptions, dialect: Dialect, terminal: Terminal) -> Path:
    """The Q/DQ graph that a build with `options` would compile."""
    emulated = options.calib_precision == "bf16"
    job = (InBfloat16 if emulated else building.Build)(options, terminal)
    graph = job.export()
    table = job.calibrate(graph, job.collect(graph))
    rounded = job.round(graph, table, dialect)
    return job.quantize(graph, table, rounded, dialect).path / "model.onnx"


def scores(
    onnx: Path, images: Dataset, source: sources.Source, terminal: Terminal
) -> NDArray[np.float32]:
    """The outputs of a graph executed in float, ``[N, classes]``."""

    def queries() -> Iterator[NDArray[np.float32]]:
        for image in images.pixels(source.preprocess):
            yield source.preprocess.arithmetic(image[None])

    options = RunOptions(goal="throughput")
    with sources.float_target().open_graph(onnx, (), options) as runner:
        name = runner.outputs[0].name
        found = terminal.track(runner.infer_many(queries()), len(images), "running the graph")
        return np.concatenate([outputs[name].copy() for outputs in found])


def main(
    data: Annotated[str, typer.Option(help="Images to judge on.")],
    calib_data: Annotated[str, typer.Option(help="Images to calibrate on.")],
    model: Annotated[Path | None, typer.Option(help="A foreign graph.")] = None,
    weights: Annotated[str, typer.Option(help="Weights of ours.")] = "demo",
    preprocess: Annotated[str | None, typer.Option(help="A preset, or a TOML file.")] = None,
    calib_images: Annotated[int | None, typer.Option(help="How many calibrate.")] = None,
    dialect: Annotated[str, typer.Option(help="One of " + ", ".join(DIALECTS) + ".")] = "openvino",
    only: Annotated[str, typer.Option(help="Steps whose name holds this.")] = "",
    json: Annotated[str | None, typer.Option(help="Write the result as JSON.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
) -> None:
    """Measure what each step of quantization is worth."""
    results.refuse_overwrite(json, force)
    terminal = Terminal()
    base = BuildOptions(
        model=model, weights=weights, preprocess=preprocess, calib_data=calib_data,
        calib_images=calib_images, calib_precision="fp32",
    )  # fmt: skip
    first = building.Build(base, terminal)
    images = dataset.scan(Path(data))
    overlap = {sample.path.resolve() for sample in first.images.samples}
    if overlap & {sample.path.resolve() for sample in images.samples}:
        images = images.without(first.images)
    reference = np.load(
        sources.scores(first.source, images, Cache(), terminal).path / sources.SCORES
    )
    rows: list[dict[str, Any]] = []
    for name, changes in STEPS.items():
        if only not in name:
            continue
        onnx = quantized(replace(base, **changes), DIALECTS[dialect], terminal)
        close = parity.parity(reference, scores(onnx, images, first.source, terminal))
        rows.append({"step": name, "sqnr_db": close.sqnr_db, "agreement": close.top1_agreement})
        terminal.line(jsonlib.dumps(rows[-1]))
    terminal.table(
        ("step", "SQNR", "agreement"),
        [(row["step"], f"{row['sqnr_db']:.2f} dB", f"{row['agreement']:.4f}") for row in rows],
    )
    results.write(
        {"kind": "ablation", "dialect": dialect, "images": len(images), "steps": rows,
         "system": system()},
        json,
    )  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
