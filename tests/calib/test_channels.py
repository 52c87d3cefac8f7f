"""Links between layers, and that a graph with its channels rescaled computes the same."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import chains
import float64
import numpy as np
import pytest
from chains import CHAINS, SIDE, Chain

from vggdeploy import graphs
from vggdeploy.calib import CalibrationTable, links, place, quantize
from vggdeploy.calib.rounding import weight_types
from vggdeploy.calib.table import Rescaled, TensorRange
from vggdeploy.calib.weights import Factors, rescaled, rescaling, round_weights
from vggdeploy.contracts import DIALECTS
from vggdeploy.errors import CalibrationError

onnx = pytest.importorskip("onnx")

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

IMAGES = np.random.default_rng(21).standard_normal((3, 3, SIDE, SIDE)).astype(np.float32)


def placed(path: Path) -> Any:
    return place(graphs.read(path))


def factors_for(channels: int, seed: int, largest: float) -> tuple[float, ...]:
    """Not powers of two, and each another."""
    drawn = np.random.default_rng(seed).uniform(1, largest, channels)
    drawn[0] = 1
    return tuple(drawn.tolist())


def table_for(path: Path, largest: float = 40) -> CalibrationTable:
    """Every tensor that can be rescaled is, and no value is clipped."""
    placement = placed(path)
    values = float64.Graph(onnx.load(path)).run(IMAGES)
    known, tensors = links(placement), {}
    for seed, point in enumerate(placement.points):
        x, link = np.abs(values[point.name]), known.get(point.name)
        change = None
        if link is not None and link.maker is not None:
            own = factors_for(link.channels, seed, largest)
            amax = float((x.max((0, *range(2, x.ndim))) * own).max())
            change = Rescaled(own, {"int8": amax, "uint8": amax})
        amax = float(x.max())
        tensors[point.name] = TensorRange(
            -amax, amax, {"int8": amax, "uint8": amax}, "minmax", change
        )
    return CalibrationTable(tensors, {})


EVERYTHING = replace(DIALECTS["openvino"], matrix=None)
"""Inputs of products are quantized, and so rescaled, as those of convolutions."""


# --- what is followed


@pytest.mark.parametrize("name", CHAINS)
def test_every_relu_behind_a_convolution_has_its_maker(name: str, tmp_path: Path) -> None:
    placement = placed(CHAINS[name]().save(tmp_path / "float.onnx"))
    found = links(placement)
    makers = {tensor: link.maker.name for tensor, link in found.items() if link.maker}
    relus = [point.name for point in placement.points if point.name.startswith("r")]
    assert makers == {relu: f"c{relu[1:]}" for relu in relus}
    assert "image" not in makers


@pytest.mark.parametrize(
    "make",
    [
        chains.shared_weight,
        chains.shared_bias,
        chains.grouped,
        chains.clipped,
        chains.positions,
        lambda: chains.branch("r0"),
        lambda: chains.branch("c0"),
    ],
)
def test_what_a_factor_would_change_has_no_maker(make: Callable[[], Chain], tmp_path: Path) -> None:
    found = links(placed(make().save(tmp_path / "float.onnx")))
    assert "r0" not in found or found["r0"].maker is None


def test_two_convolutions_may_read_what_is_rescaled(tmp_path: Path) -> None:
    found = links(placed(chains.two_readers().save(tmp_path / "float.onnx")))["r0"]
    assert found.maker is not None
    assert sorted(reader.found.name for reader in found.readers) == ["c1", "c2"]


def test_products_are_told_from_convolutions(tmp_path: Path) -> None:
    def products(chain: Chain) -> dict[str, bool]:
        found = links(placed(chain.save(tmp_path / "float.onnx")))
        return {name: link.products for name, link in found.items() if link.maker}

    assert products(chains.long()) == {"r0": False, "r1": True}
    assert products(chains.channels_last(rows=True)) == {"r0": True}
    # One convolution among the readers, and its loss counts.
    assert products(chains.product_and_convolution()) == {"r0": False}


def test_a_pool_across_channels_is_not_followed(tmp_path: Path) -> None:
    """Behind a transposition, a pool's windows lie over channels."""
    chain = Chain().conv("c0", 6, 3).relu("r0").node("Transpose", "t", perm=[0, 2, 3, 1])
    chain.pool("p0").reshape("flat", 8 * 4 * 3).gemm("f0", 4, 96, rows=True)
    placement = placed(chain.save(tmp_path / "float.onnx"))
    assert [point.name for point in placement.points] == ["image", "r0"]
    assert "r0" not in links(placement)


@pytest.mark.parametrize("name", CHAINS)
def test_channels_are_told_apart_up_to_the_layer(name: str, tmp_path: Path) -> None:
    """A map that is 1 in one channel and 0 in all others, through the nodes up to the reader: what
    arrives there as 1 is that channel's."""
    path = CHAINS[name]().save(tmp_path / "float.onnx")
    graph = float64.Graph(onnx.load(path))
    for tensor, link in links(placed(path)).items():
        for reader in link.readers:
            source = reader.found.node.inputs[0].name
            arrived = np.full(len(reader.channel), -1)
            for channel in range(link.channels):

                def only(x: np.ndarray, channel: int = channel) -> np.ndarray:
                    numbers = np.arange(x.shape[1]).reshape(-1, *(1,) * (x.ndim - 2))
                    numbers = np.broadcast_to(numbers, x.shape)
                    return (numbers == channel).astype(float)

                x = graph.run(IMAGES[:1], {tensor: only})[source][0]
                arrived[(x if x.ndim == 1 else x.max((1, 2))) == 1] = channel
            np.testing.assert_array_equal(reader.channel, arrived)


@pytest.mark.parametrize("name", ["convolutions", "reshape, columns", "channels last, rows"])
def test_gains_are_the_energy_of_what_reads_a_channel(name: str, tmp_path: Path) -> None:
    """By brute force: independent errors of variance 1 on one channel, and what becomes of the
    outputs' variance, added up over all outputs that an inner position reaches."""
    path = CHAINS[name]().save(tmp_path / "float.onnx")
    graph = float64.Graph(onnx.load(path))
    link = links(placed(path))["r0"]
    (reader,) = link.readers
    source, result = reader.found.node.inputs[0].name, reader.found.node.outputs[0].name
    result = "scores" if reader.found.name == "f0" else result
    nothing = graph.run(IMAGES[:1], {source: np.zeros_like})[result]
    gains = np.zeros(link.channels)
    shape = graph.run(IMAGES[:1])[source].shape
    places = np.ndindex(shape[1:]) if len(shape) == 2 else ((c, 2, 2) for c in range(shape[1]))
    for at in places:

        def pulse(x: np.ndarray, at: tuple[int, ...] = at) -> np.ndarray:
            made = np.zeros(x.shape)
            made[(0, *at)] = 1
            return made

        moved = graph.run(IMAGES[:1], {source: pulse})[result] - nothing
        gains[reader.channel[at[0]]] += np.square(moved).sum()
    np.testing.assert_allclose(link.gains(), gains, rtol=1e-5)


def test_gains_of_several_readers_add_up(tmp_path: Path) -> None:
    path = chains.two_readers().save(tmp_path / "float.onnx")
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    expected = sum(
        np.square(tensors[f"{name}.weight"].astype(float)).sum((0, 2, 3)) for name in ("c1", "c2")
    )
    np.testing.assert_allclose(links(placed(path))["r0"].gains(), expected, rtol=1e-5)


# --- what is computed


def unrounded(path: Path, table: CalibrationTable, tmp_path: Path) -> dict[str, np.ndarray]:
    """Every tensor of the rescaled network in float64, nothing rounded: the float graph with the
    rescaled weights, and the biases that `quantize` writes."""
    quantize(path, table, EVERYTHING, tmp_path / "quantized.onnx")
    plain, written = (
        float64.Graph(onnx.load(file)) for file in (path, tmp_path / "quantized.onnx")
    )
    placement = placed(path)
    factors = rescaling(placement, table, EVERYTHING)
    kinds = weight_types(placement, EVERYTHING)
    edits: dict[str, Any] = {}
    makers = {node.output: node for node in written.nodes}
    for found in placement.weighted:
        name = str(found.weight.name)
        rows = rescaled(found, factors.get(name, Factors()))
        shape = plain.constants[name].shape
        weight = (rows if found.channel_axis == 0 else rows.T).reshape(shape)
        edits[name] = lambda _, weight=weight: weight.astype(np.float64)
        output = "scores" if found.name == "f0" else str(found.node.outputs[0].name)
        inputs = makers[output].inputs
        if len(inputs) > 2:
            bias = written.constants[inputs[2]]
            edits[f"{found.name}.bias"] = lambda _, bias=bias: bias
        # The integers are those of these weights.
        maker = makers[inputs[1]]
        integers, steps = (written.constants[part] for part in maker.inputs[:2])
        expected, scales = round_weights(weight, found.channel_axis, kinds[name], "float32")
        np.testing.assert_array_equal(steps, scales)
        np.testing.assert_array_equal(integers, expected)
    return plain.run(IMAGES, edits)


@pytest.mark.parametrize("name", CHAINS)
def test_the_function_is_preserved(name: str, tmp_path: Path) -> None:
    path = CHAINS[name]().save(tmp_path / "float.onnx")
    table = table_for(path)
    changed = {tensor for tensor, entry in table.tensors.items() if entry.rescaled}
    assert changed
    before = float64.Graph(onnx.load(path)).run(IMAGES)
    after = unrounded(path, table, tmp_path)
    np.testing.assert_allclose(after["scores"], before["scores"], rtol=0, atol=2e-6)
    for tensor in changed:
        entry = table.tensors[tensor].rescaled
        assert entry is not None
        factors = np.array(entry.factors).reshape(-1, *(1,) * (before[tensor].ndim - 2))
        wide = before[tensor] * factors
        assert np.abs(wide - before[tensor]).max() > 1
        np.testing.assert_allclose(after[tensor], wide, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dialect", ["openvino", "tensorrt"])
@pytest.mark.parametrize("name", CHAINS)
def test_a_rescaled_graph_is_near_to_the_float_one(name: str, dialect: str, tmp_path: Path) -> None:
    """As it is written, weights, biases and scales of activations in 8 bits and float16."""
    path = CHAINS[name]().save(tmp_path / "float.onnx")
    quantize(path, table_for(path, 4), DIALECTS[dialect], tmp_path / "quantized.onnx")
    before = float64.Graph(onnx.load(path)).run(IMAGES)["scores"]
    after = float64.Graph(onnx.load(tmp_path / "quantized.onnx")).run(IMAGES)["scores"]
    # Factors that are random, not good, and few channels.
    noise = np.square(after - before).sum() / np.square(before).sum()
    assert 10 * np.log10(1 / noise) > 30


@pytest.mark.parametrize("make", [chains.shared_weight, chains.two_readers])
def test_shared_weights_and_several_readers_quantize(
    make: Callable[[], Chain], tmp_path: Path
) -> None:
    path = make().save(tmp_path / "float.onnx")
    table = table_for(path, 4)
    assert bool(table.tensors["r0"].rescaled) == (make is chains.two_readers)
    quantize(path, table, DIALECTS["openvino"], tmp_path / "quantized.onnx")
    before = float64.Graph(onnx.load(path)).run(IMAGES)["scores"]
    after = float64.Graph(onnx.load(tmp_path / "quantized.onnx")).run(IMAGES)["scores"]
    np.testing.assert_allclose(after, before, atol=0.05 * np.abs(before).max())


@pytest.mark.parametrize("dialect", ["openvino", "openvino-w4"])
def test_a_channel_is_divided_for_a_product_with_float_inputs_too(
    dialect: str, tmp_path: Path
) -> None:
    path = chains.product_and_convolution().save(tmp_path / "float.onnx")
    table = table_for(path, 4)
    assert table.tensors["r0"].rescaled
    used = DIALECTS[dialect]
    if used.grouped:
        # In small groups 4 bits add less noise than a channel that is not divided back would.
        used = replace(used, matrix=replace(used.grouped, group=64))
    quantize(path, table, used, tmp_path / "quantized.onnx")
    before = float64.Graph(onnx.load(path)).run(IMAGES)["scores"]
    after = float64.Graph(onnx.load(tmp_path / "quantized.onnx")).run(IMAGES)["scores"]
    np.testing.assert_allclose(after, before, atol=0.1 * np.abs(before).max())


# --- what does not fit


def with_factors(table: CalibrationTable, name: str, *factors: float) -> CalibrationTable:
    entry = table.tensors[name]
    change = Rescaled(factors, dict(entry.thresholds))
    made = TensorRange(entry.low, entry.high, entry.thresholds, entry.method, change)
    return CalibrationTable({**table.tensors, name: made}, {})


@pytest.mark.parametrize("count", [1, 5, 7])
def test_another_number_of_channels_is_named(count: int, tmp_path: Path) -> None:
    path = chains.convolutions().save(tmp_path / "float.onnx")
    table = with_factors(table_for(path), "r0", *[2.0] * count)
    with pytest.raises(
        CalibrationError, match=rf"tensor 'r0' cannot be.*got {count} factors, expected 6 factors"
    ):
        quantize(path, table, DIALECTS["openvino"], tmp_path / "quantized.onnx")


@pytest.mark.parametrize("tensor", ["image", "flat"])
def test_a_tensor_that_cannot_be_rescaled_is_named(tensor: str, tmp_path: Path) -> None:
    path = chains.convolutions().save(tmp_path / "float.onnx")
    table = with_factors(table_for(path), tensor, 1.0, 2.0, 3.0)
    with pytest.raises(CalibrationError, match=rf"tensor '{tensor}' cannot be.*made from this mod"):
        quantize(path, table, EVERYTHING, tmp_path / "quantized.onnx")


def test_a_bias_keeps_its_name_and_a_foreign_one_its_value(tmp_path: Path) -> None:
    path = chains.convolutions().save(tmp_path / "float.onnx")
    table = table_for(path)
    entry = table.tensors["r0"].rescaled
    assert entry is not None
    quantize(path, table, DIALECTS["openvino"], tmp_path / "quantized.onnx")
    before, after = (
        {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(file).graph.initializer}
        for file in (path, tmp_path / "quantized.onnx")
    )
    np.testing.assert_allclose(after["c0.bias"], before["c0.bias"] * entry.factors, rtol=1e-6)
    np.testing.assert_array_equal(after["c1.bias"], before["c1.bias"])
    np.testing.assert_array_equal(after["f0.bias"], before["f0.bias"])
