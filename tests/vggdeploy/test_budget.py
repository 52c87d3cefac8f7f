"""The budget: bytes, intensity, totals, and a measurement's two floors."""

import math

import pytest

from vggdeploy import budget, topology
from vggdeploy.errors import ConfigError

VGG16 = topology.vgg("vgg16")
WEIGHTS, BIASES = 138_344_128, 13_416
"""VGG16's weights and biases; together its 138,357,544 parameters."""


def test_totals_are_the_published_ones():
    found = budget.budget(VGG16)
    assert (found.params, found.macs, found.flops) == (138_357_544, 15_470_264_320, 30_940_528_640)
    assert found.params == WEIGHTS + BIASES


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        ("fp32", 4 * (WEIGHTS + BIASES)),
        ("fp16", 2 * (WEIGHTS + BIASES)),
        ("bf16", 2 * (WEIGHTS + BIASES)),
        ("int8", WEIGHTS + 4 * BIASES),
        # 123,633,664 of the weights have 4 bits, and every 128 of them a scale of two bytes.
        ("int8-w4", WEIGHTS - 123_633_664 * 31 // 64 + 4 * BIASES),
    ],
)
def test_weight_bytes_by_precision(precision, expected):
    assert budget.budget(VGG16, precision).weight_bytes == expected
    # Weights are read once, however many images the batch has.
    assert budget.budget(VGG16, precision, batch=32).weight_bytes == expected


def test_the_first_layer_by_hand():
    layer = budget.budget(VGG16, "int8", batch=2).layers[0]
    assert (layer.name, layer.kind, layer.output) == ("features.0", "conv", (64, 224, 224))
    assert (layer.params, layer.macs, layer.receptive_field) == (1792, 86_704_128, 3)
    moved = 2 * (3 + 64) * 224 * 224
    assert layer.weight_bytes == 1728 + 4 * 64
    assert layer.activation_bytes == moved
    assert layer.intensity == pytest.approx(2 * 86_704_128 / (1728 + 256 + moved), rel=1e-15)


@pytest.mark.parametrize("precision", budget.PRECISIONS)
@pytest.mark.parametrize("batch", [1, 3])
def test_every_row_and_its_sum(precision, batch):
    size = budget.PRECISIONS[precision]
    found = budget.budget(VGG16, precision, batch)
    rows = [row for row in topology.rows(VGG16) if row.layer.kind not in ("relu", "dropout")]
    assert [layer.name for layer in found.layers] == [row.name for row in rows]
    for layer, row in zip(found.layers, rows, strict=True):
        inputs = row.layer.in_channels if layer.kind == "linear" else None
        element = size.of(row.name, inputs=inputs)
        moved = batch * element.activation_bytes * (math.prod(row.input) + math.prod(row.output))
        assert layer.activation_bytes == moved
        assert layer.macs == row.macs, "MACs are for one image"
        assert layer.intensity == batch * row.macs / (layer.weight_bytes + moved)
    assert found.macs == sum(row.macs for row in rows) == topology.total_macs(VGG16)
    for column in ("params", "weight_bytes", "activation_bytes"):
        assert getattr(found, column) == sum(getattr(layer, column) for layer in found.layers)


def test_only_a_batch_makes_fully_connected_layers_intense():
    one, many = (budget.budget(VGG16, "int8", batch).layers[-3] for batch in (1, 32))
    assert one.name == "classifier.0"
    # One MAC a weight byte, less what the activations add: bound by memory anywhere.
    assert 0.99 < one.intensity < 1
    assert many.intensity > 30


def test_json_has_the_names_that_scripts_rely_on():
    said = budget.budget(VGG16, "int8").to_json()
    assert (said["schema"], said["kind"], said["arch"]) == (1, "budget", "vgg16")
    assert said["total"]["params"] == 138_357_544
    assert said["total"]["macs"] == 15_470_264_320
    assert said["total"]["flops"] == 30_940_528_640
    assert {"name", "output", "params", "macs", "receptive_field"} <= set(said["layers"][0])


def test_a_foreign_graphs_rows_add_up():
    rows = [
        {"name": "a", "output": [2, 5, 5], "params": 3, "macs": 10},
        {"name": "b", "output": [2], "params": 4, "macs": 20},
    ]
    said = budget.from_rows("mine", rows, "fp16")
    assert said["total"] == {"params": 7, "macs": 30, "flops": 60, "weight_bytes": 14}
    assert (said["arch"], said["layers"]) == ("mine", rows)


def test_a_foreign_graphs_products_have_their_own_bytes():
    rows = [
        {"name": "a", "params": 64, "macs": 10, "output": [8, 4, 4]},
        {"name": "b", "params": 640, "macs": 20, "output": [10]},
    ]
    said = budget.from_rows("mine", rows, "int8-w4")
    assert said["total"]["weight_bytes"] == 64 + 320 + 10
    assert budget.from_rows("mine", rows, "int8")["total"]["weight_bytes"] == 704


def row(name, **more):
    return {"name": name, "macs": 1, "output": [10], "kind": "linear", **more}


def test_a_foreign_graphs_biases_are_counted_in_their_own_type():
    conv = row("a", kind="conv", output=[8, 4, 4], inputs=9, weights=72, params=80)
    product = row("b", inputs=128, weights=1280, params=1290)
    for precision, expected in (("int8", 72 + 32), ("fp16", 2 * 80), ("int8-w4", 72 + 32)):
        assert budget.row_bytes(conv, precision) == expected
    assert budget.row_bytes(product, "int8") == 1280 + 40
    assert budget.row_bytes(product, "int8-w4") == 640 + 2 * 10 + 40
    assert budget.row_bytes(product, "int8-w4", ["b"]) == 4 * 1290


@pytest.mark.parametrize(("inputs", "bits"), [(256, 4 + 16 / 128), (784, 4 + 16 / 16), (250, 8)])
def test_four_bits_are_counted_where_a_group_fits(inputs, bits):
    foreign = row("b", inputs=inputs, weights=10 * inputs, params=10 * inputs)
    assert budget.row_bytes(foreign, "int8-w4") == 10 * inputs * bits / 8
    network = topology.vgg("vgg11", num_classes=10, input_size=(32, 32), width_divisor=16)
    last = budget.budget(network, "int8-w4").layers[-1]
    assert last.weight_bytes == 256 * 10 * (0.5 + 2 / 128) + 4 * 10


def test_layers_kept_in_high_precision_are_counted_in_it():
    plain, mixed = (budget.budget(VGG16, "int8", kept=kept) for kept in ((), ("features.2",)))
    rows = {row.name: row for row in mixed.layers}
    # 36,864 weights and 64 biases, of 4 bytes each.
    assert rows["features.2"].weight_bytes == 4 * 36_928
    assert mixed.weight_bytes - plain.weight_bytes == 3 * 36_864
    assert mixed.activation_bytes > plain.activation_bytes
    graph = [
        {"name": "a", "params": 64, "macs": 10, "output": [8, 4, 4]},
        {"name": "b", "params": 640, "macs": 20, "output": [10]},
    ]
    said = budget.from_rows("mine", graph, "int8-w4", kept=("b",))
    assert said["total"]["weight_bytes"] == 64 + 4 * 640


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(("int7", 1), "unknown precision: got 'int7'"), (("int8", 0), "batch is too small: got 0")],
)
def test_what_cannot_be_is_refused(arguments, said):
    with pytest.raises(ConfigError, match=said):
        budget.budget(VGG16, *arguments)


def test_the_higher_floor_binds():
    device = budget.Device(macs_per_s=1000.0, bytes_per_s=100.0)
    compute = budget.judge(5000, 100, seconds=10.0, device=device)
    assert (compute.compute_floor_s, compute.memory_floor_s, compute.bound) == (5.0, 1.0, "compute")
    assert (compute.achieved_macs_per_s, compute.utilisation) == (500.0, 0.5)
    memory = budget.judge(1000, 300, seconds=4.0, device=device)
    assert (memory.compute_floor_s, memory.memory_floor_s, memory.bound) == (1.0, 3.0, "memory")


def test_more_than_the_peak_is_shown_and_not_clipped():
    device = budget.Device(macs_per_s=1000.0, bytes_per_s=100.0)
    assert budget.judge(3000, 1, seconds=2.0, device=device).utilisation == 1.5
