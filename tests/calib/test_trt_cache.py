"""TensorRT's calibration cache: read with all that TensorRT leaves in it, and written for it."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vggdeploy import graphs
from vggdeploy.calib import CalibrationTable, place, quantize, trt_cache
from vggdeploy.calib.placement import scale_sources
from vggdeploy.calib.table import TensorRange
from vggdeploy.contracts import DIALECTS, INT8, UINT8
from vggdeploy.errors import CalibrationError, ConfigError

onnx = pytest.importorskip("onnx")
helper, numpy_helper = pytest.importorskip("onnx.helper"), pytest.importorskip("onnx.numpy_helper")

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from vggdeploy.calib.trt_cache import TrtCache

HEADER = "TRT-100300-EntropyCalibration2"
POINTS = ("image", "c0.relu", "c1.relu", "c2.relu", "f0.relu")
"""What the small graph quantizes."""


def read(text: str) -> TrtCache:
    return trt_cache.parse(text.encode(), "calibration.cache")


def refused(text: str | bytes, match: str) -> None:
    content = text.encode() if isinstance(text, str) else text
    with pytest.raises(CalibrationError, match=match):
        trt_cache.parse(content, "calibration.cache")


def cache_of(scales: Mapping[str, float], header: str = HEADER) -> str:
    lines = [f"{name}: {np.array(scale, '>f4').tobytes().hex()}" for name, scale in scales.items()]
    return "\n".join([header, *lines]) + "\n"


@pytest.fixture(scope="module")
def small(small_graph: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "float.onnx"
    onnx.save(small_graph(), path)
    return path


def table_of(names: Any, threshold: float = 2.54) -> CalibrationTable:
    return CalibrationTable(
        {name: TensorRange(0.0, 3.0, {"int8": threshold}, "mse") for name in names}, {}
    )


# What TensorRT itself writes: digits without leading zeros, a 0 where it saw nothing but zeros,
# entries for tensors of its own making.
NATIVE = f"""{HEADER}
input_1:0: 3c010a14
(Unnamed Layer* 64) [Shuffle]_output: 0
conv1/convolution:0: 3D0B7086
tiny: 800000
model/a: b: c: 3c010a14
 lead and trail : 3c010a14
"""


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_what_tensorrt_writes_is_read(end: str) -> None:
    cache = read(NATIVE.replace("\n", end))
    scales = {name: entry.scale for name, entry in cache.entries.items()}
    # 0x3c010a14 is 2^-7 * (1 + 0x010a14 / 2^23), 0x3d0b7086 is 2^-5 * (1 + 0x0b7086 / 2^23).
    small = 2**-7 * (1 + 0x010A14 / 2**23)
    assert scales == {
        "input_1:0": small,
        "(Unnamed Layer* 64) [Shuffle]_output": 0.0,
        "conv1/convolution:0": 2**-5 * (1 + 0x0B7086 / 2**23),
        "tiny": 2.0**-126,
        "model/a: b: c": small,
        " lead and trail ": small,
    }
    assert cache.entries["conv1/convolution:0"].line == 4


@pytest.mark.parametrize("version", ["7103", "8601", "100300"])
@pytest.mark.parametrize(
    "calibrator",
    ["EntropyCalibration2", "EntropyCalibration", "MinMaxCalibration", "LegacyCalibration"],
)
def test_each_calibrators_header_is_known(version: str, calibrator: str) -> None:
    header = f"TRT-{version}-{calibrator}"
    assert read(f"{header}\na: 3c010a14").header == header


@pytest.mark.parametrize(
    "first",
    [
        "TRT-8601-EntropyCalibration3",
        "TRT-8XXX-EntropyCalibration2",
        "TRT-8601-EntropyCalibration2: 3c010a14",
        "EntropyCalibration2",
        "a: 3c010a14",
        "1",
    ],
)
def test_another_header_is_refused(first: str) -> None:
    refused(
        f"{first}\na: 3c010a14\n", r"calibration\.cache, line 1 is not the header.*TRT-<version"
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b" \r\n\n", "is empty"),
        (f"{HEADER}\n\n".encode(), "has a header and no tensor"),
        (b"\x7fELF\x02\x01\x01\x00" + bytes(range(256)), "is a binary file"),
        (f"{HEADER}\na: 3c010a14\n\xff".encode("latin1"), "is a binary file"),
        (f"{HEADER}\na: 3c01\0a14\n".encode(), "is a binary file"),
    ],
)
def test_what_holds_no_text_is_refused(content: bytes, said: str) -> None:
    refused(content, rf"calibration\.cache {said}")


@pytest.mark.parametrize(
    "line", ["b", "b:", "b: ", "b:3c010a14", ": 3c010a14", "b: 3c010a141", "b: 0x3c010a", "b: 1.5",
             "b: 3c01 0a14", "b: +c010a14", "b: -3c010a"],
)  # fmt: skip
def test_a_bad_line_is_named_by_its_number(line: str) -> None:
    refused(f"{HEADER}\na: 3c010a14\n\n{line}\nc: 3c010a14\n", "line 4 is no entry")


@pytest.mark.parametrize("scale", [-1.0, -1e-30, np.nan, np.inf, -np.inf])
def test_a_scale_that_cannot_be_is_refused(scale: float) -> None:
    text = cache_of({"a": 1.0, "b:0": scale})
    refused(text, r"line 3: the scale of tensor 'b:0' cannot be.*finite number above 0")


def test_a_name_comes_once() -> None:
    refused(
        f"{HEADER}\nx: 3c010a14\ny: 3c010a14\nx: 3c010a14\n", "line 4: tensor 'x' again.*line 2"
    )


def test_a_cache_becomes_a_table(small: Path) -> None:
    scales = {name: 0.01 * place for place, name in enumerate(POINTS, start=1)}
    extra = {"(Unnamed Layer* 3) [Scale]_output": 0.0, "scores": 4.0}
    points = place(graphs.read(small)).points
    table = read(cache_of({**extra, **scales})).table(points, "d1935t")
    assert tuple(table.tensors) == POINTS
    for name, entry in table.tensors.items():
        threshold = float(np.float32(scales[name])) * 127
        kinds = ("int8",) if name == "image" else ("int8", "uint8")
        assert dict(entry.thresholds) == dict.fromkeys(kinds, threshold)
        assert (entry.low, entry.high, entry.method) == (None, None, "trt-cache")
        assert np.float32(table.scale(name, INT8)) == np.float32(scales[name])
    assert table.scale("f0.relu", UINT8) == pytest.approx(0.05 * 127 / 255, rel=1e-6)
    assert table.source == {
        "model": None,
        "preprocess": None,
        "trt_cache": {"sha256": "d1935t", "header": HEADER, "entries": 7, "ignored": 2},
    }


def test_the_quantized_graph_has_the_caches_scales(small: Path, tmp_path: Path) -> None:
    scales = {name: 0.013 * place for place, name in enumerate(POINTS, start=1)}
    table = read(cache_of(scales)).table(place(graphs.read(small)).points, "")
    quantize(small, table, DIALECTS["openvino"], tmp_path / "q.onnx")
    found = {
        t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "q.onnx").graph.initializer
    }
    assert found["image.scale"] == np.float32(scales["image"])
    for name in POINTS[1:3]:  # matrix products read the others, in float
        clipped = np.float32(scales[name]).astype(np.float64) * 127
        assert found[f"{name}.scale"] == np.float32(clipped / 255)


def test_a_missing_tensor_is_named(small: Path) -> None:
    points = place(graphs.read(small)).points
    cache = read(cache_of(dict.fromkeys([*POINTS[:3], POINTS[4], "other"], 1.0)))
    with pytest.raises(
        CalibrationError,
        match=r"no scale for tensor 'c2\.relu': got scales for 4, expected one for",
    ):
        cache.table(points, "")
    cache = read(cache_of(dict.fromkeys([*POINTS[:3], "other"], 1.0)))
    with pytest.raises(CalibrationError, match=r"no scale for tensor 'c2\.relu' and 1 more"):
        cache.table(points, "")


@pytest.mark.parametrize("shared", [0, 1, 2])
def test_a_cache_for_another_network_is_called_that(small: Path, shared: int) -> None:
    names = [*POINTS[:shared], "data", "conv1", "conv2", "fc7", "prob"]
    cache = read(cache_of(dict.fromkeys(names, 1.0)))
    with pytest.raises(
        CalibrationError, match=rf"another network.* {shared} of the 5 .*"
    ) as caught:
        cache.table(place(graphs.read(small)).points, "")
    assert "'data'" in str(caught.value)
    assert f"'{POINTS[shared]}'" in str(caught.value)


def test_a_scale_of_zero_is_refused_where_it_is_needed(small: Path) -> None:
    cache = read(cache_of({**dict.fromkeys(POINTS, 1.0), "c1.relu": 0.0, "spare": 0.0}))
    with pytest.raises(
        CalibrationError, match=r"line 4: the scale of tensor 'c1\.relu' is wrong: got 0"
    ):
        cache.table(place(graphs.read(small)).points, "")


# --- writing


def test_a_table_becomes_a_cache(small: Path, tmp_path: Path) -> None:
    thresholds = {name: float(place) for place, name in enumerate(POINTS, start=1)}
    tensors = {
        n: TensorRange(0.0, 9.0, {"int8": t, "uint8": 7.0}, "mse") for n, t in thresholds.items()
    }
    trt_cache.save(tmp_path / "c", CalibrationTable(tensors, {}), graphs.read(small))
    first, *lines = (tmp_path / "c").read_text().splitlines()
    assert first == HEADER
    owner = {
        **{name: name for name in POINTS},
        # In front of each ReLU, and behind the pools and the reshape.
        "c0": "c0.relu", "c1": "c1.relu", "c2": "c2.relu", "f0": "f0.relu",
        "p0": "c1.relu", "p1": "c2.relu", "flat": "c2.relu",
    }  # fmt: skip
    expected = {
        f"{name}: {struct.pack('>f', np.float32(thresholds[source] / 127)).hex()}"
        for name, source in owner.items()
    }
    assert [line.partition(":")[0] for line in lines[len(POINTS) :]] == [
        "c0", "c1", "p0", "c2", "p1", "flat", "f0"
    ]  # fmt: skip
    # Nothing is made up for the scores.
    assert set(lines) == expected
    assert len(lines) == len(expected)


NAMES = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\n\0"), min_size=1
).filter(str.strip)
SCALES = st.floats(2.0**-126, 2.0**127, width=32)


@given(scales=st.dictionaries(NAMES, SCALES, min_size=1, max_size=6))
def test_names_and_scales_survive(
    scales: dict[str, float], small: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tensors = {
        name: TensorRange(None, None, {"int8": scale * 127}, "mse")
        for name, scale in scales.items()
    }
    path = tmp_path_factory.mktemp("caches") / "calibration.cache"
    trt_cache.save(path, CalibrationTable(tensors, {}), graphs.read(small))
    again = trt_cache.parse(path.read_bytes(), "calibration.cache")
    assert {name: entry.scale for name, entry in again.entries.items() if name in scales} == scales
    assert [*again.entries][: len(scales)] == [*scales]


def test_a_cache_written_again_is_the_same(small: Path, tmp_path: Path) -> None:
    model = graphs.read(small)
    trt_cache.save(tmp_path / "a", table_of(POINTS, threshold=np.pi), model, "8.6.1")
    first = (tmp_path / "a").read_bytes()
    trt_cache.save(
        tmp_path / "b", trt_cache.parse(first, "a").table(place(model).points, ""), model, "8.6.1"
    )
    assert (tmp_path / "b").read_bytes() == first
    assert first.startswith(b"TRT-8601-EntropyCalibration2\n")


@pytest.mark.parametrize(
    ("version", "digits"),
    [("10.3.0", "100300"), ("10.3", "100300"), ("10.14.1", "101401"), ("10.3.0.30", "100300"),
     ("8.6.1", "8601"), ("8.2.3", "8203"), ("8.4.1.5", "8401")],
)  # fmt: skip
def test_versions_are_written_as_tensorrt_does(version: str, digits: str) -> None:
    assert trt_cache.version_digits(version) == digits


@pytest.mark.parametrize(
    "version",
    ["", "10", "11.0.0", "9.2.0", "100300", "ten", "10.3.0-rc1", "10..3", "-8.6", "8.6.1\n"],
)
def test_a_version_that_reads_no_cache_is_refused(version: str) -> None:
    with pytest.raises(
        ConfigError, match=r"no calibration cache.*8\.6\.1 or 10\.3\.0.*--trt-version"
    ):
        trt_cache.version_digits(version)


@pytest.mark.parametrize("name", ["a\nb", "a\0b", " ", ""])
def test_a_name_that_is_no_line_is_refused(small: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(CalibrationError, match="cannot hold"):
        trt_cache.save(tmp_path / "c", table_of([name]), graphs.read(small))
    assert not list(tmp_path.iterdir())


def test_a_scale_too_large_for_float32_is_refused(small: Path, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"'image' does not fit float32"):
        trt_cache.save(tmp_path / "c", table_of(["image"], threshold=1e41), graphs.read(small))


def test_a_scale_too_small_for_float32_is_the_smallest(small: Path, tmp_path: Path) -> None:
    trt_cache.save(tmp_path / "c", table_of(["image"], threshold=1e-60), graphs.read(small))
    assert (tmp_path / "c").read_text().splitlines()[1] == "image: 00800000"


# --- which tensors share a scale


def graph_of(tmp_path: Path, nodes: list[Any], weights: tuple[str, ...] = ()) -> Any:
    kind = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("image", kind, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("scores", kind, None)],
        [numpy_helper.from_array(np.ones((3, 3, 3, 3), np.float32), name) for name in weights],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path / "g.onnx")
    return graphs.read(tmp_path / "g.onnx")


def pool(source: str, result: str) -> Any:
    return helper.make_node("MaxPool", [source], [result], kernel_shape=[2, 2], strides=[2, 2])


def test_a_tensor_read_elsewhere_takes_no_scale_from_behind_it(tmp_path: Path) -> None:
    """What a residual reads below zero, or beyond the pool's threshold, must not be clipped."""
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        pool("r", "p"),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Add", ["r", "c"], ["scores"]),
    ]
    model = graph_of(tmp_path, nodes, ("w",))
    assert scale_sources(model, ["p"]) == {"f": "p"}
    assert scale_sources(model, ["r"]) == {"p": "r", "f": "r"}


def test_a_scale_goes_back_through_pools_and_a_relu(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        pool("r", "p"),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Sigmoid", ["f"], ["scores"]),
    ]
    model = graph_of(tmp_path, nodes, ("w",))
    assert scale_sources(model, ["f"]) == {"p": "f", "r": "f", "c": "f"}
    # The table's own come before what could be derived.
    assert scale_sources(model, ["f", "r"]) == {"p": "r", "c": "r"}


def test_a_graphs_output_and_foreign_operators_pass_no_scale_on(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MaxPool", ["image"], ["a"], domain="own"),
        helper.make_node("Relu", ["a"], ["scores"]),
        helper.make_node("Relu", ["scores"], ["r"]),
        helper.make_node("AveragePool", ["r"], ["m"], kernel_shape=[2, 2]),
    ]
    model = graph_of(tmp_path, nodes)
    assert scale_sources(model, ["image"]) == {}
    assert scale_sources(model, ["r"]) == {}


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=4),
    st.floats(1e-3, 1e3),
)
def test_rounding_commutes_with_relu_and_maximum(values: list[float], scale: float) -> None:
    """Why a scale passes through: 8 bits in front give what 8 bits behind give."""

    def rounded(array: np.ndarray) -> np.ndarray:
        return np.clip(np.rint(array / scale), -128, 127)

    seen = np.array(values)
    np.testing.assert_array_equal(np.maximum(rounded(seen), 0), rounded(np.maximum(seen, 0)))
    assert rounded(seen).max() == rounded(seen.max())
