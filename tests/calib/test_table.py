"""The calibration table: chosen thresholds, as JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import chains
import numpy as np
import pytest

from vggdeploy import graphs
from vggdeploy.calib import (
    METHODS,
    CalibrationTable,
    Statistics,
    calibrate,
    links,
    place,
    rescale,
)
from vggdeploy.calib.histogram import Histogram
from vggdeploy.calib.table import TensorRange
from vggdeploy.contracts import INT8, UINT8
from vggdeploy.errors import CalibrationError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vggdeploy.calib.channels import Link


def seen(values: np.ndarray) -> Histogram:
    histogram = Histogram()
    histogram.add(values.astype(np.float32))
    return histogram


@pytest.fixture
def statistics() -> Statistics:
    rng = np.random.default_rng(0)
    return Statistics(
        9, {"image": seen(rng.normal(size=5000)), "relu": seen(rng.exponential(size=5000))}
    )


NONNEGATIVE = {"image": False, "relu": True}


@pytest.mark.parametrize("method", METHODS)
def test_thresholds_are_the_methods_for_each_type(statistics: Statistics, method: str) -> None:
    table = calibrate(statistics, NONNEGATIVE, method, {"seed": 4})
    choose = METHODS[method]
    for name, histogram in statistics.tensors.items():
        entry, magnitudes = table.tensors[name], histogram.magnitudes()
        expected = {"int8": choose(magnitudes, 127)}
        if NONNEGATIVE[name]:
            expected["uint8"] = choose(magnitudes, 255)
        assert dict(entry.thresholds) == expected
        assert (entry.low, entry.high) == (histogram.min, histogram.max)
        assert entry.method == method
        assert table.scale(name, INT8) == expected["int8"] / 127
    assert table.scale("relu", UINT8) == table.tensors["relu"].thresholds["uint8"] / 255
    assert table.source == {"seed": 4}


def test_a_signed_tensor_has_no_uint8(statistics: Statistics) -> None:
    table = calibrate(statistics, NONNEGATIVE, "minmax", {})
    with pytest.raises(CalibrationError, match="threshold of tensor 'image' for uint8: got int8"):
        table.scale("image", UINT8)


def test_a_tensor_that_is_not_there_is_named(statistics: Statistics) -> None:
    table = calibrate(statistics, NONNEGATIVE, "minmax", {})
    with pytest.raises(CalibrationError, match="no entry for tensor 'pool'"):
        table.scale("pool", INT8)


def test_unknown_method_lists_the_known(statistics: Statistics) -> None:
    with pytest.raises(ConfigError, match=r"'median'.*minmax, percentile, entropy, mse"):
        calibrate(statistics, NONNEGATIVE, "median", {})


def test_round_trip_is_exact(statistics: Statistics, tmp_path: Path) -> None:
    table = calibrate(statistics, NONNEGATIVE, "mse", {"seed": 4, "images": 9})
    table.save(tmp_path / "a.json")
    again = CalibrationTable.load(tmp_path / "a.json")
    assert again == table
    assert list(again.tensors) == ["image", "relu"]
    again.save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def _without(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda said: {k: v for k, v in said.items() if k != key}


def _entry(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda said: {**said, "tensors": {"image": {**said["tensors"]["image"], **changes}}}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda said: {**said, "schema": 2},
        lambda said: [said],
        lambda said: None,
        lambda said: {**said, "tensors": []},
        _without("schema"),
        _without("tensors"),
        _without("source"),
        _entry(range=[1]),
        _entry(range=[None, None]),
        _entry(range=[0, 1, 2]),
        _entry(range=[0, float("inf")]),
        _entry(range=[0, 10**400]),
        _entry(threshold={"int8": 0}),
        _entry(threshold={"int8": -1.5}),
        _entry(threshold={"int8": float("nan")}),
        _entry(threshold={"int8": float("inf")}),
        _entry(threshold={"int8": "wide"}),
        _entry(threshold=3),
        _entry(threshold={"int8": True}),
        _entry(threshold={"int8": "1.5"}),
        _entry(threshold={"int8": 1e38}),
        _entry(threshold={"int8": 1e-40}),
        _entry(range=[2, -2]),
        _entry(method=5),
        _entry(rescaled={"factors": [1.0, 2.0], "threshold": {"int8": 1e38}}),
        lambda said: {**said, "kind": "verify"},
        _without("kind"),
    ],
)
def test_bad_tables_are_refused_by_name(
    statistics: Statistics, tmp_path: Path, spoil: Callable[[Any], Any]
) -> None:
    path = tmp_path / "table.json"
    calibrate(statistics, NONNEGATIVE, "minmax", {}).save(path)
    path.write_text(json.dumps(spoil(json.loads(path.read_text()))))
    with pytest.raises(CalibrationError, match=r"table\.json cannot be read"):
        CalibrationTable.load(path)


@pytest.mark.parametrize("number", ["1e999", "NaN", "-Infinity"])
def test_a_number_that_could_not_be_written_again_is_refused(
    statistics: Statistics, tmp_path: Path, number: str
) -> None:
    path = tmp_path / "table.json"
    calibrate(statistics, NONNEGATIVE, "minmax", {"seed": 4.5}).save(path)
    CalibrationTable.load(path)
    path.write_text(path.read_text().replace("4.5", number))
    with pytest.raises(CalibrationError, match=r"table\.json cannot be read.*no finite number"):
        CalibrationTable.load(path)


def test_a_range_may_be_unknown(tmp_path: Path) -> None:
    table = CalibrationTable({"relu": TensorRange(None, None, {"int8": 3.0}, "trt-cache")}, {})
    table.save(tmp_path / "table.json")
    assert json.loads((tmp_path / "table.json").read_text())["tensors"]["relu"]["range"] is None
    assert CalibrationTable.load(tmp_path / "table.json") == table


def test_the_method_of_a_table_is_that_of_its_tensors() -> None:
    def table(*methods: str) -> CalibrationTable:
        entries = [TensorRange(0.0, 1.0, {"int8": 1.0}, method) for method in methods]
        return CalibrationTable({str(place): entry for place, entry in enumerate(entries)}, {})

    assert table("mse", "mse").method == "mse"
    assert table("mse", "minmax").method == "mixed"


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe\x00", b"not json", b'{"a":' * 100_000],
)
def test_what_is_no_json_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "table.json").write_bytes(content)
    with pytest.raises(CalibrationError, match=r"table\.json cannot be read"):
        CalibrationTable.load(tmp_path / "table.json")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"none\.json does not exist"):
        CalibrationTable.load(tmp_path / "none.json")


# --- channels that are told apart


@pytest.fixture
def linked(tmp_path: Path) -> tuple[Statistics, dict[str, Link]]:
    """A ReLU between two convolutions, seen with channels of very different size."""
    path = chains.convolutions().save(tmp_path / "float.onnx")
    found = links(place(graphs.read(path)))
    rng = np.random.default_rng(1)
    histogram = Histogram(6)
    for _ in range(6):
        x = np.maximum(rng.standard_normal((1, 6, 20, 20)), 0) ** 2
        histogram.add((x * np.geomspace(1, 0.01, 6)[:, None, None]).astype(np.float32))
    return Statistics(6, {"r0": histogram}), {"r0": found["r0"]}


def test_auto_weights_channels_by_what_reads_them(
    linked: tuple[Statistics, dict[str, Link]],
) -> None:
    statistics, found = linked
    histogram, gains = statistics.tensors["r0"], found["r0"].gains()
    table = {
        method: calibrate(statistics, {"r0": True}, method, {}, found, rescale=False)
        for method in ("auto", "mse")
    }
    weighted = METHODS["mse"](histogram.magnitudes(weights=gains), 255)
    assert table["auto"].tensors["r0"].thresholds["uint8"] == weighted
    plain = METHODS["mse"](histogram.magnitudes(), 255)
    assert table["mse"].tensors["r0"].thresholds["uint8"] == plain
    alone = calibrate(statistics, {"r0": True}, "auto", {})
    assert alone.tensors["r0"].thresholds["uint8"] == plain
    assert all(entry.tensors["r0"].rescaled is None for entry in (*table.values(), alone))


@pytest.mark.parametrize("large", [1.0, 1e22])
def test_gains_do_not_depend_on_how_large_weights_are(
    linked: tuple[Statistics, dict[str, Link]], large: float
) -> None:
    """The square of a large float32 is none."""
    import onnx_ir as ir

    link = linked[1]["r0"]
    plain = link.gains()
    for reader in link.readers:
        value = reader.found.weight
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy() * np.float32(large))
    np.testing.assert_allclose(link.gains() / large**2, plain, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_rescaled_thresholds_are_the_methods_of_what_is_rescaled(
    linked: tuple[Statistics, dict[str, Link]], method: str
) -> None:
    statistics, found = linked
    histogram, gains = statistics.tensors["r0"], found["r0"].gains()
    entry = calibrate(statistics, {"r0": True}, method, {}, found).tensors["r0"]
    factors = rescale.factors(histogram, gains, 255)
    assert entry.rescaled is not None
    assert factors is not None
    np.testing.assert_array_equal(entry.rescaled.factors, factors)
    # An error of a channel counts for less once the weights behind are divided.
    weights = gains / factors**2 if method == "auto" else None
    magnitudes = histogram.magnitudes(factors, weights)
    assert dict(entry.rescaled.thresholds) == {
        kind: METHODS[method](magnitudes, levels)
        for kind, levels in (("int8", 127), ("uint8", 255))
    }
    table = CalibrationTable({"r0": entry}, {})
    assert table.scale("r0", UINT8) == entry.rescaled.thresholds["uint8"] / 255
    assert table.scale("r0", UINT8, rescaled=False) == entry.thresholds["uint8"] / 255
    assert table.plain().scale("r0", UINT8) == entry.thresholds["uint8"] / 255


def test_what_products_read_goes_further(
    linked: tuple[Statistics, dict[str, Link]], tmp_path: Path
) -> None:
    statistics, _ = linked
    path = chains.flattened(rows=True).save(tmp_path / "flat.onnx")
    link = links(place(graphs.read(path)))["r0"]
    entry = calibrate(statistics, {"r0": True}, "auto", {}, {"r0": link}).tensors["r0"]
    near, far = (
        rescale.factors(statistics.tensors["r0"], link.gains(), 255, exponents)
        for exponents in (rescale.EXPONENTS, rescale.PRODUCTS)
    )
    assert near is not None
    assert far is not None
    assert entry.rescaled is not None
    np.testing.assert_array_equal(entry.rescaled.factors, far)
    assert not np.array_equal(near, far)


def test_a_rescaled_table_round_trips(
    linked: tuple[Statistics, dict[str, Link]], tmp_path: Path
) -> None:
    statistics, found = linked
    table = calibrate(statistics, {"r0": True}, "auto", {}, found)
    table.save(tmp_path / "a.json")
    assert CalibrationTable.load(tmp_path / "a.json") == table


def test_what_has_no_maker_is_not_rescaled(
    linked: tuple[Statistics, dict[str, Link]],
) -> None:
    statistics, found = linked
    fixed = {"r0": replace(found["r0"], maker=None)}
    entry = calibrate(statistics, {"r0": True}, "auto", {}, fixed).tensors["r0"]
    assert entry.rescaled is None
    again = calibrate(statistics, {"r0": True}, "auto", {}, found, rescale=False).tensors["r0"]
    assert entry == again


def test_what_nothing_reads_is_chosen_by_itself(
    linked: tuple[Statistics, dict[str, Link]],
) -> None:
    statistics, found = linked
    deaf = {"r0": replace(found["r0"], readers=())}
    entry = calibrate(statistics, {"r0": True}, "auto", {}, deaf).tensors["r0"]
    plain = calibrate(statistics, {"r0": True}, "mse", {}).tensors["r0"]
    assert entry.thresholds == plain.thresholds
    assert entry.rescaled is None
