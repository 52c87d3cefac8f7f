"""Every layer of a network rounded with what its inputs are: saved, loaded, quantized, judged."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import chains
import float64
import numpy as np
import pytest
from chains import SIDE, Chain
from PIL import Image

from vggdeploy import dataset, graphs, parity
from vggdeploy.calib import (
    CalibrationTable,
    SecondOrder,
    calibrate,
    collect,
    covariances,
    links,
    load_rounded,
    place,
    quantize,
    round_layers,
    rounding,
    save_rounded,
    wanted_layers,
)
from vggdeploy.calib.table import Rescaled
from vggdeploy.contracts import DIALECTS, Runner, Silent, TensorSpec
from vggdeploy.preprocess import Preprocess

onnx = pytest.importorskip("onnx")

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vggdeploy.calib.rounding import Rounded
    from vggdeploy.contracts import Dialect

UNIT = Preprocess(
    size=(SIDE, SIDE), resize="stretch", interpolation="nearest", mean=(0.5,) * 3, std=(0.25,) * 3
)
COUNT = 24


class Executed(Runner):
    """A graph in float64, that shows every tensor."""

    name = "executed"
    input = TensorSpec("image", (1, 3, SIDE, SIDE))

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.graph = float64.Graph(onnx.load(path))
        values = self.graph.run(np.zeros((1, 3, SIDE, SIDE)))
        self.outputs = tuple(
            TensorSpec(node.output, values[node.output].shape) for node in self.graph.nodes
        )

    def _start(self) -> None: ...

    def _stop(self) -> None: ...

    def _infer(self, batch: Any) -> Any:
        values = self.graph.run(batch)
        return {spec.name: values[spec.name].astype(np.float32) for spec in self.outputs}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dataset.Dataset:
    """Smooth ones, so that neighbouring inputs go together; the last half is kept to judge on."""
    folder = tmp_path_factory.mktemp("smooth")
    rng = np.random.default_rng(0)
    grid = np.arange(SIDE)
    for index in range(2 * COUNT):
        waves = sum(
            rng.normal(0, 50) * np.cos(rng.uniform(0, 0.9) * grid[:, None] + rng.uniform(0, 6))
            * np.cos(rng.uniform(0, 0.9) * grid + rng.uniform(0, 6))
            for _ in range(3)
        )  # fmt: skip
        pixels = 128 + waves[..., None] * rng.uniform(0.5, 1, 3) + rng.normal(0, 4, (SIDE, SIDE, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{index:02}.png")
    return dataset.scan(folder)


def part(images: dataset.Dataset, start: int) -> dataset.Dataset:
    return replace(images, samples=images.samples[start : start + COUNT])


def batch(images: dataset.Dataset) -> np.ndarray:
    return UNIT.arithmetic(np.stack(list(images.pixels(UNIT))))


def wide(rows: bool = True) -> Chain:
    """Conv, Relu, Conv, Relu, MaxPool, Conv, Relu, MaxPool, Reshape, Gemm, Relu, Gemm."""
    chain = Chain(11).conv("c0", 12, 3).relu("r0").conv("c1", 12, 12, bias=False).relu("r1")
    chain = chain.pool("p1").conv("c2", 16, 12).relu("r2").pool("p2").reshape("flat", 16 * 4)
    return chain.gemm("f0", 32, 64, rows=rows).relu("r3").gemm("f1", 10, 32, rows=True)


def calibrated(path: Path, images: dataset.Dataset) -> CalibrationTable:
    placement = place(graphs.read(path))
    seen = {point.name: str(point.seen.name) for point in placement.points}
    with Executed(path) as runner:
        statistics = collect(runner, seen, images, UNIT)
    signs = {point.name: point.nonnegative for point in placement.points}
    table = calibrate(statistics, signs, "auto", {}, links(placement))
    # Whether it pays or not: factors are part of what is rounded.
    known, tensors = links(placement), dict(table.tensors)
    for name, entry in table.tensors.items():
        if name in known and known[name].maker is not None:
            factors = np.random.default_rng(4).uniform(1, 2, known[name].channels)
            change = Rescaled(
                tuple(factors.tolist()), {k: 2 * t for k, t in entry.thresholds.items()}
            )
            tensors[name] = replace(entry, rescaled=change)
    return CalibrationTable(tensors, {})


def rounded_layers(
    path: Path,
    table: CalibrationTable,
    images: dataset.Dataset,
    dialect: Dialect,
    how: SecondOrder | None = None,
) -> dict[str, Rounded]:
    placement = place(graphs.read(path), matrices=dialect.matrix is None)
    layers = wanted_layers(placement, table, dialect)
    with Executed(path) as runner:
        moments = covariances(runner, layers, images, UNIT, 0)
    return round_layers(placement, table, dialect, moments, how or SecondOrder(), Silent())


def scores(path: Path, images: dataset.Dataset) -> np.ndarray:
    return float64.Graph(onnx.load(path)).run(batch(images))["scores"]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("rows", [True, False])
def test_it_is_better_than_rounding_to_nearest(
    dialect: str, rows: bool, images: dataset.Dataset, tmp_path: Path
) -> None:
    path = wide(rows).save(tmp_path / "float.onnx", 10)
    seen, other = part(images, 0), part(images, COUNT)
    # So few levels that the weights' share of the noise is the larger one.
    coarse = replace(DIALECTS[dialect], weight=replace(DIALECTS[dialect].weight, qmin=-15, qmax=15))
    table = calibrated(path, seen)
    made = rounded_layers(path, table, seen, coarse)
    assert set(made) == {f"{name}.weight" for name in ("c0", "c1", "c2", "f0", "f1")}
    save_rounded(made, tmp_path / "rounded.npz")
    again = load_rounded(tmp_path / "rounded.npz")
    plain, found = scores(path, other), {}
    for name, layers in (("nearest", None), ("second order", again)):
        quantize(path, table, coarse, tmp_path / f"{name}.onnx", layers)
        onnx.checker.check_model(str(tmp_path / f"{name}.onnx"), full_check=True)
        found[name] = float(parity.sqnr_db(plain, scores(tmp_path / f"{name}.onnx", other)).mean())
    assert found["second order"] > found["nearest"] + 1, found


@pytest.mark.parametrize("dialect", DIALECTS)
def test_integers_scales_and_biases_are_saved(
    dialect: str, images: dataset.Dataset, tmp_path: Path
) -> None:
    path = wide().save(tmp_path / "float.onnx", 10)
    seen = part(images, 0)
    made = rounded_layers(
        path, calibrated(path, seen), seen, DIALECTS[dialect], SecondOrder(bias_correction=True)
    )
    save_rounded(made, tmp_path / "rounded.npz")
    again = load_rounded(tmp_path / "rounded.npz")
    assert list(again) == list(made)
    for name, layer in made.items():
        for field in ("integers", "scales", "bias"):
            mine, theirs = getattr(layer, field), getattr(again[name], field)
            assert mine.dtype == theirs.dtype
            np.testing.assert_array_equal(mine, theirs)
        assert again[name].group == layer.group
    assert made["f0.weight"].group == (64 if DIALECTS[dialect].grouped else None)
    save_rounded({"x": replace(made["c0.weight"], bias=None)}, tmp_path / "plain.npz")
    assert load_rounded(tmp_path / "plain.npz")["x"].bias is None


@pytest.mark.parametrize("dialect", ["openvino", "openvino-w4"])
@pytest.mark.parametrize("corrected", [True, False])
def test_bias_correction_takes_the_mean_error_of_every_layer(
    corrected: bool, dialect: str, images: dataset.Dataset, tmp_path: Path
) -> None:
    """Each layer fed what the float network has there: over the calibration images, the mean of
    what the quantized layer puts out is that of the float one, its channels rescaled."""
    path = wide().save(tmp_path / "float.onnx", 10)
    seen = part(images, 0)
    # Coarse weights, and a threshold that clips, which shifts the mean.
    coarse = replace(DIALECTS[dialect], weight=replace(DIALECTS[dialect].weight, qmin=-7, qmax=7))
    table = calibrated(path, seen)
    made = rounded_layers(path, table, seen, coarse, SecondOrder(bias_correction=corrected))
    quantize(path, table, coarse, tmp_path / "quantized.onnx", made)
    plain = float64.Graph(onnx.load(path)).run(batch(seen))
    graph = float64.Graph(onnx.load(tmp_path / "quantized.onnx"))
    placement = place(graphs.read(path), matrices=coarse.matrix is None)
    factors = {
        point.name: np.array(table.tensors[point.name].rescaled.factors).reshape(
            -1, *(1,) * (plain[point.name].ndim - 2)
        )
        if table.tensors[point.name].rescaled else 1.0
        for point in placement.tensors
    }  # fmt: skip
    feeds = {
        point.name: lambda _, x=plain[point.name] * factors[point.name]: x
        for point in placement.points
    }
    if coarse.matrix is not None:
        feeds |= {"flat": lambda _: plain["flat"], "r3": lambda _: plain["r3"]}
    values = graph.run(batch(seen), feeds)
    for layer in ("c0", "c1", "c2", "f0", "scores"):
        behind = {"c0": "r0", "c1": "r1", "c2": "r2", "f0": "r3"}.get(layer, "")
        meant = plain[layer] * factors.get(behind, 1.0)
        over = tuple(axis for axis in range(meant.ndim) if axis != 1)
        off = np.abs((values[layer] - meant).mean(over)).max() / meant.std()
        assert (off < 1e-5) == corrected, (layer, off)


def test_weights_that_two_layers_read_are_rounded_to_nearest(
    images: dataset.Dataset, tmp_path: Path
) -> None:
    path = chains.shared_weight().save(tmp_path / "float.onnx")
    seen = part(images, 0)
    table = calibrated(path, seen)
    made = rounded_layers(path, table, seen, DIALECTS["openvino"])
    assert set(made) == {"f0.weight"}
    quantize(path, table, DIALECTS["openvino"], tmp_path / "quantized.onnx", made)
    before, after = scores(path, seen), scores(tmp_path / "quantized.onnx", seen)
    assert float(parity.sqnr_db(before, after).mean()) > 25


def test_a_layer_behind_a_dead_one_is_rounded_to_nearest(
    images: dataset.Dataset, tmp_path: Path
) -> None:
    """Inputs that are zero in all images say nothing of how to round what reads them."""
    chain = wide()
    for tensor in chain.weights:
        if tensor.name == "c0.bias":
            array = onnx.numpy_helper.to_array(tensor).copy()
            array[[2, 5]] = -1e3
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    path = chain.save(tmp_path / "float.onnx", 10)
    seen = part(images, 0)
    table = calibrated(path, seen)
    dialect = DIALECTS["openvino"]
    placement = place(graphs.read(path))
    made = rounded_layers(path, table, seen, dialect)["c1.weight"]
    (found,) = (node for node in placement.weighted if node.name == "c1")
    factors = rounding.rescaling(placement, table, DIALECTS["openvino"])["c1.weight"]
    nearest = rounding.round_to_nearest(found, dialect, dialect.weight, factors)
    columns = np.repeat(np.arange(12), 9)
    dead = np.isin(columns, [2, 5])
    np.testing.assert_array_equal(made.scales, nearest.scales)
    np.testing.assert_array_equal(made.integers[:, dead], nearest.integers[:, dead])
    assert (made.integers[:, ~dead] != nearest.integers[:, ~dead]).any()


def test_inputs_are_asked_for_as_the_engine_has_them(
    images: dataset.Dataset, tmp_path: Path
) -> None:
    """The scale as it is stored, in float16; padding and strides as the layer has them."""
    path = wide().save(tmp_path / "float.onnx", 10)
    table = calibrated(path, part(images, 0))
    for name, dialect in DIALECTS.items():
        placement = place(graphs.read(path), matrices=dialect.matrix is None)
        layers = {layer.name: layer for layer in wanted_layers(placement, table, dialect)}
        second = layers["c1.weight"]
        change = table.tensors["r0"].rescaled
        assert change is not None
        kind = dialect.nonnegative
        step = change.thresholds[kind.dtype] / kind.qmax
        assert second.scale == float(np.array(step).astype(dialect.high_precision)), name
        assert second.limits == (kind.qmin, kind.qmax)
        assert (second.tensor, second.kernel, second.pads) == ("r0", (3, 3), (1, 1, 1, 1))
        np.testing.assert_array_equal(second.factors, np.float32(change.factors))
        last = layers["f0.weight"]
        assert (last.tensor, last.kernel, last.inputs) == ("flat", None, 64)
        assert (last.scale is None) == (dialect.matrix is not None)
        assert layers["c2.weight"].tensor == "p1"


@pytest.mark.parametrize(
    ("operator", "attributes", "asked"),
    [
        ("Conv", {"strides": [2, 1], "dilations": [1, 2], "pads": [0, 1, 2, 3]}, True),
        ("Conv", {"auto_pad": "VALID"}, True),
        ("Conv", {"auto_pad": "SAME_UPPER"}, False),
        ("Conv", {"group": 3}, False),
    ],
)
def test_what_cannot_be_followed_is_not_asked_for(
    operator: str, attributes: dict[str, Any], asked: bool, tmp_path: Path
) -> None:
    chain = Chain(12)
    inputs = 1 if "group" in attributes else 3
    chain.node(operator, "c0", chain.floats("c0.weight", 6, inputs, 3, 3), **attributes)
    chain.relu("r0").node("GlobalAveragePool", "mean").reshape("flat", 6)
    chain.gemm("f0", 4, 6, rows=True)
    placement = place(graphs.read(chain.save(tmp_path / "float.onnx")))
    plain = {"int8": 1.0, "uint8": 1.0}
    from vggdeploy.calib.table import TensorRange

    entries = {p.name: TensorRange(-1, 1, plain, "minmax") for p in placement.points}
    layers = wanted_layers(placement, CalibrationTable(entries, {}), DIALECTS["openvino"])
    found = {layer.name: layer for layer in layers}
    assert ("c0.weight" in found) == asked
    if asked:
        layer = found["c0.weight"]
        assert layer.strides == tuple(attributes.get("strides", (1, 1)))
        assert layer.dilations == tuple(attributes.get("dilations", (1, 1)))
        assert layer.pads == tuple(attributes.get("pads", (0, 0, 0, 0)))


def back_to_a_map() -> Chain:
    """A product whose outputs a convolution reads."""
    chain = Chain(12).conv("c0", 12, 3).relu("r0").pool("p0").pool("p1").reshape("flat", 12 * 4)
    chain = chain.gemm("f0", 32, 48, rows=True).relu("r3")
    chain = chain.node("Reshape", "map", chain.constant("map.shape", np.array([-1, 32, 1, 1])))
    return chain.conv("c1", 10, 32).reshape("end", 10)


@pytest.mark.parametrize(
    ("make", "dialect", "second_order", "least"),
    [
        (wide, "tensorrt", True, 30),
        (wide, "tensorrt", False, 30),
        (back_to_a_map, "openvino", True, 32),
        (back_to_a_map, "openvino", False, 32),
        (back_to_a_map, "openvino-w4", True, 30),
        (back_to_a_map, "openvino-w4", False, 17),
    ],
)
def test_a_product_puts_out_rescaled_channels(
    make: Callable[[], Chain],
    dialect: str,
    second_order: bool,
    least: float,
    images: dataset.Dataset,
    tmp_path: Path,
) -> None:
    """Its factors, of 1 to 2, would leave 8 dB where they were forgotten, and 28 where the scales
    of groups alone did not know them."""
    path = make().save(tmp_path / "float.onnx", 10)
    seen = part(images, 0)
    table = calibrated(path, seen)
    made = rounded_layers(path, table, seen, DIALECTS[dialect]) if second_order else None
    quantize(path, table, DIALECTS[dialect], tmp_path / "quantized.onnx", made)
    change = table.tensors["r3"].rescaled
    assert change is not None
    meant = float64.Graph(onnx.load(path)).run(batch(seen))["r3"] * np.array(change.factors)
    found = float64.Graph(onnx.load(tmp_path / "quantized.onnx")).run(batch(seen))["r3"]
    assert parity.sqnr_db(meant, found).mean() > least
