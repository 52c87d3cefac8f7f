"""What each step of quantization is worth: ``python -m vggdeploy.benchmarks.ablation [FLAGS]``.

Builds the quantized graph once for each combination of switches, runs it as it is defined, in
float, so that no CPU's saturation comes between, and compares it with the float network on images
that were not calibrated on.
"""

from __future__ import annotations

import functools
import json as jsonlib
import uuid
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import typer

from vggdeploy import (
    building,
    cli,
    graphs,
    inputs,
    machine,
    parity,
    pipeline,
    results,
    sources,
)
from vggdeploy.benchmarks import judging
from vggdeploy.cache import Cache
from vggdeploy.contracts import DIALECTS
from vggdeploy.errors import ConfigError
from vggdeploy.inputs import BuildOptions
from vggdeploy.manifest import GRAPH

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vggdeploy.cache import Entry
    from vggdeploy.contracts import Dialect, GraphTarget, Reporter, Runner

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
    "the default, the image with a scale of its own": {"pixels": False},
}
"""What differs from a build's defaults, in FP32, in each step; ``pixels`` is the dialect's."""


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
            lambda work: in_bfloat16(graph.path / GRAPH, work / GRAPH),
        )
        return super().observe(rounded, tensors, goal)

    @functools.cached_property
    def provenance(self) -> dict[str, Any]:
        """What a calibration table is made from."""
        return {**super().provenance, "precision": "bf16, emulated"}

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


def job(options: BuildOptions, reporter: Reporter) -> building.Build:
    """A build with `options`; with bfloat16, that emulated."""
    emulated = options.calib_precision == "bf16"
    return (InBfloat16 if emulated else building.Build)(options, reporter)


def quantized(options: BuildOptions, dialect: Dialect, reporter: Reporter) -> Path:
    """The Q/DQ graph that a build with `options` would compile."""
    return pipeline.quantized_graph(job(options, reporter), dialect).path / GRAPH


def main(
    data: Annotated[
        str | None, typer.Option(help="A folder to judge on; the rest of the other if left out.")
    ] = None,
    calib_data: Annotated[str | None, typer.Option(help="A folder to calibrate on.")] = None,
    model: Annotated[Path | None, typer.Option(help="A foreign FP32 graph.")] = None,
    weights: Annotated[str, typer.Option(help="Weights of ours in its place.")] = "demo",
    preprocess: Annotated[str | None, typer.Option(help="A preset, or a TOML file.")] = None,
    calib_images: Annotated[int | None, typer.Option(help="How many images to draw.")] = None,
    dialect: Annotated[str, typer.Option(help="One of " + ", ".join(DIALECTS) + ".")] = "openvino",
    only: Annotated[str, typer.Option(help="Steps whose name holds this.")] = "",
    json: Annotated[str | None, typer.Option(help="Write the result as JSON.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
) -> None:
    """Measure what each step of quantization is worth."""
    results.refuse_overwrite(json, force)
    terminal, store = cli.terminal, Cache()
    steps = chosen(dialect, only)
    base = BuildOptions(
        model=model, weights=weights, preprocess=preprocess, calib_data=calib_data,
        calib_images=calib_images, calib_precision="fp32",
        out=Path(f"{uuid.uuid4().hex}"),  # no bundle is written, and none stands in the way
    )  # fmt: skip
    source = inputs.resolve(base)
    calibration, _ = inputs.choose_images(base, source, store)
    images = inputs.held_out(source, data, calibration, store)
    found = np.load(
        sources.scores(source, images, store, terminal).path / sources.SCORES, allow_pickle=False
    )
    reference = found.reshape(len(found), -1)
    rows: list[dict[str, Any]] = []
    for name, changes in steps.items():
        options = {key: value for key, value in changes.items() if key != "pixels"}
        used = DIALECTS[dialect]
        used = replace(used, pixels=changes.get("pixels", used.pixels))
        onnx = quantized(replace(base, **options), used, terminal)
        outputs = judging.scores(
            sources.float_target(), onnx, images, source.preprocess, terminal, name
        )
        close = parity.parity(reference, outputs)
        rows.append({"step": name, "sqnr_db": close.sqnr_db, "agreement": close.top1_agreement})
        terminal.line(jsonlib.dumps(rows[-1]))
    terminal.table(
        ("step", "SQNR", "agreement"),
        [(row["step"], f"{row['sqnr_db']:.2f} dB", f"{row['agreement']:.4f}") for row in rows],
    )
    results.write(
        {"kind": "ablation", "dialect": dialect, "model": source.facts(),
         "calibration_images": len(calibration), "judged_images": len(images), "steps": rows,
         "system": machine.system()},
        json,
    )  # fmt: skip


def chosen(dialect: str, only: str) -> dict[str, dict[str, Any]]:
    """The steps whose name holds `only`.

    Raises:
        ConfigError: for an unknown dialect, and when no step's name does.
    """
    if dialect not in DIALECTS:
        raise ConfigError(
            "unknown dialect",
            got=repr(dialect),
            expected="one of " + ", ".join(DIALECTS),
            fix="choose one with --dialect",
        )
    steps = {name: changes for name, changes in STEPS.items() if only in name}
    if not steps:
        raise ConfigError(
            "--only finds no step",
            got=repr(only),
            expected="a part of one of: " + "; ".join(STEPS),
            fix="mend --only",
        )
    return steps


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command()(main)

if __name__ == "__main__":
    raise SystemExit(cli.main(program=app))
