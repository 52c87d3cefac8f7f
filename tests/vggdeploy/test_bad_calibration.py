"""What calibration is fed that it cannot use, or hardly: a clear error, or the right result.

Each through the command line, on a small graph at 8x8 pixels.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import float64
import numpy as np
import pytest
from chains import Chain
from PIL import Image

from vggdeploy import bundle, dataset, parity, preprocess
from vggdeploy.cli import main
from vggdeploy.manifest import CALIBRATION, GRAPH, TRT_CACHE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vggdeploy.bundle import Bundle

onnx = pytest.importorskip("onnx")
pytest.importorskip("openvino")

COUNT = 9
RECIPE = 'size = [8, 8]\nresize = "stretch"\nmean = [0.5, 0.5, 0.5]\nstd = [0.25, 0.25, 0.25]\n'


def network(edit: Callable[[dict[str, np.ndarray]], None] | None = None) -> Chain:
    """Conv, Relu, Conv, Relu, MaxPool, Reshape, Gemm; weights as `edit` leaves them."""
    chain = Chain(13).conv("c0", 12, 3).relu("r0").conv("c1", 12, 12).relu("r1").pool("p1")
    chain.reshape("flat", 12 * 16).gemm("f0", 4, 12 * 16, rows=True)
    arrays = {t.name: onnx.numpy_helper.to_array(t).copy() for t in chain.weights}
    # Channels of very different size, so that rescaling pays.
    arrays["c0.weight"] *= np.geomspace(1, 0.02, 12, dtype=np.float32)[:, None, None, None]
    arrays["c0.bias"] *= np.geomspace(1, 0.02, 12, dtype=np.float32)
    arrays["c1.weight"] *= np.geomspace(1, 50, 12, dtype=np.float32)[:, None, None]
    if edit:
        edit(arrays)
    for tensor in chain.weights:
        tensor.CopyFrom(onnx.numpy_helper.from_array(arrays[tensor.name], tensor.name))
    return chain


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for index in range(COUNT):
        pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{index}.png")
    return tmp_path / "photos"


@pytest.fixture
def flags(tmp_path: Path, photos: Path) -> Callable[..., list[str]]:
    """A build's arguments, and what else is given."""
    network().save(tmp_path / "float.onnx")
    (tmp_path / "small.toml").write_text(RECIPE)

    def make(*more: str) -> list[str]:
        own = ["--model", str(tmp_path / "float.onnx"), "--calib-data", str(photos)]
        own += ["--preprocess", str(tmp_path / "small.toml"), "--out", str(tmp_path / "bundle")]
        return ["build", *own, *more]

    return make


@pytest.fixture
def refused(
    flags: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Builds, and gives the one line that says why not."""

    def make(*more: str) -> str:
        assert main(flags(*more)) == 2
        said = capsys.readouterr()
        line = " ".join(said.err.split())
        assert "Traceback" not in line
        assert "bug" not in line
        assert not (tmp_path / "bundle").exists()
        return line[line.index("error:") :]

    return make


def built(tmp_path: Path) -> Bundle:
    return bundle.open_bundle(tmp_path / "bundle")


def tensors(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / "bundle" / CALIBRATION).read_text())
    return found["tensors"]


def sqnr(tmp_path: Path, photos: Path) -> float:
    """Of the bundle's graph, as it is defined, against the float one."""
    recipe = preprocess.load(str(tmp_path / "small.toml"))
    batch = recipe.arithmetic(np.stack(list(dataset.scan(photos).pixels(recipe))))
    before, after = (
        float64.Graph(onnx.load(path)).run(batch)["scores"]
        for path in (tmp_path / "float.onnx", tmp_path / "bundle" / GRAPH)
    )
    return float(parity.sqnr_db(before, after).mean())


# --- the network


def overflow(arrays: dict[str, np.ndarray]) -> None:
    arrays["c0.weight"][:] = 1e25
    arrays["c1.weight"][:] = 1e25


def test_infinite_activations_name_tensor_and_image(
    refused: Callable[..., str], tmp_path: Path, photos: Path
) -> None:
    network(overflow).save(tmp_path / "float.onnx")
    line = refused()
    assert "held NaN or infinity for image" in line
    assert "tensor 'r1'" in line
    assert str(photos / "0.png") in line


def test_infinite_activations_are_noticed_with_a_table_too(
    flags: Callable[..., list[str]], refused: Callable[..., str], tmp_path: Path, photos: Path
) -> None:
    """Nothing is observed then but what rounding looks at."""
    assert main([*flags("--out", str(tmp_path / "first"))]) == 0
    said = json.loads((tmp_path / "first" / CALIBRATION).read_text())
    said["source"].pop("model")
    (tmp_path / "table.json").write_text(json.dumps(said))
    network(overflow).save(tmp_path / "float.onnx")
    line = refused("--calibration", str(tmp_path / "table.json"))
    assert "cannot be observed in image" in line
    assert ".png" in line


@pytest.mark.parametrize("rounding", ["gptq", "nearest"])
def test_a_dead_channel_builds_and_is_right(
    flags: Callable[..., list[str]], tmp_path: Path, photos: Path, rounding: str
) -> None:
    def kill(arrays: dict[str, np.ndarray]) -> None:
        for name in ("c0.weight", "c0.bias", "c1.weight", "c1.bias"):
            arrays[name][[0, 7]] = 0

    network(kill).save(tmp_path / "float.onnx")
    assert main(flags("--weight-rounding", rounding)) == 0
    factors = tensors(tmp_path)["r0"]["rescaled"]["factors"]
    assert [factors[place] for place in (0, 7)] == [1, 1]
    assert max(factors) > 2
    assert sqnr(tmp_path, photos) > 30


def test_a_layer_that_is_always_zero_is_named(refused: Callable[..., str], tmp_path: Path) -> None:
    def kill(arrays: dict[str, np.ndarray]) -> None:
        arrays["c0.bias"][:] = -1e6

    network(kill).save(tmp_path / "float.onnx")
    line = refused()
    assert f"tensor 'r0' has no range: got 0 everywhere in all {(COUNT + 1) // 2} images" in line


# --- the images


def test_images_of_one_colour_are_named(refused: Callable[..., str], photos: Path) -> None:
    for path in photos.iterdir():
        Image.new("RGB", (8, 8), (70, 70, 70)).save(path)
    line = refused()
    assert "tensor 'image' has no range: got -0.901961 everywhere in all" in line


def test_one_image_many_times_is_calibrated_on(
    flags: Callable[..., list[str]], tmp_path: Path, photos: Path
) -> None:
    first = (photos / "0.png").read_bytes()
    for path in photos.iterdir():
        path.write_bytes(first)
    assert main(flags()) == 0
    assert sqnr(tmp_path, photos) > 30


def test_a_single_image_is_calibrated_on_and_nothing_rescaled(
    flags: Callable[..., list[str]], tmp_path: Path, photos: Path
) -> None:
    assert main(flags("--calib-images", "1")) == 0
    assert not [name for name, entry in tensors(tmp_path).items() if "rescaled" in entry]
    assert built(tmp_path).manifest["build"]["method"] == "auto"
    assert sqnr(tmp_path, photos) > 15


@pytest.mark.parametrize("images", [["--calib-images", str(COUNT)], []])
def test_a_broken_image_in_the_middle_is_named_and_not_skipped(
    refused: Callable[..., str], photos: Path, images: list[str]
) -> None:
    for path in photos.iterdir():
        if path.name not in ("0.png", "8.png"):  # in the middle of whatever is drawn
            path.write_bytes(path.read_bytes()[:-40])
    line = refused(*images)
    assert any(str(photos / f"{place}.png") in line for place in range(1, 8))


@pytest.mark.parametrize("seed", ["-1", str(2**70)])
def test_any_seed_will_do(flags: Callable[..., list[str]], tmp_path: Path, seed: str) -> None:
    assert main(flags("--seed", seed)) == 0
    assert built(tmp_path).manifest["build"]["seed"] == int(seed)


# --- the table


@pytest.fixture
def edited(flags: Callable[..., list[str]], tmp_path: Path) -> Callable[..., Path]:
    """The network's own table, after an edit of the rescaled tensor's entry."""
    assert main(flags("--out", str(tmp_path / "first"))) == 0
    text = (tmp_path / "first" / CALIBRATION).read_text()

    def make(edit: Callable[[dict[str, Any]], Any]) -> Path:
        said = json.loads(text)
        assert len(said["tensors"]["r0"]["rescaled"]["factors"]) == 12
        edit(said["tensors"])
        (tmp_path / "table.json").write_text(json.dumps(said))
        return tmp_path / "table.json"

    return make


def put(value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda said: said["r0"]["rescaled"]["factors"].__setitem__(3, value)


def move(said: dict[str, Any]) -> None:
    said["flat"] = said["image"]
    said["image"]["rescaled"] = said["r0"].pop("rescaled")


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (put(-2.0), ["table.json", "factor -2.0", "'r0'"]),
        (put(0), ["table.json", "factor 0", "'r0'"]),
        (put(0.5), ["table.json", "factor 0.5", "'r0'"]),
        (put(1e300), ["table.json", "factor 1e+300", "'r0'"]),
        (put(float("nan")), ["table.json", "NaN is no finite number"]),
        (put(float("inf")), ["table.json", "Infinity is no finite number"]),
        (put("wide"), ["table.json", "wide"]),
        (put(None), ["table.json", "cannot be read"]),
        (lambda s: s["r0"]["rescaled"].pop("factors"), ["table.json", "no 'factors'"]),
        (lambda s: s["r0"]["rescaled"].pop("threshold"), ["table.json", "no 'threshold'"]),
        (lambda s: s["r0"].update(rescaled=None), ["table.json", "cannot be read"]),
        (lambda s: s["r0"]["rescaled"].update(factors=7), ["table.json", "cannot be read"]),
        (lambda s: s["r0"]["rescaled"].update(threshold={"int8": -1}), ["table.json", "'r0'"]),
        (
            lambda s: s["r0"]["rescaled"]["factors"].pop(),
            ["tensor 'r0' cannot be rescaled", "got 11 factors", "expected 12 factors"],
        ),
        (
            lambda s: s["r0"]["rescaled"].update(factors=[]),
            ["tensor 'r0' cannot be rescaled", "got 0 factors", "expected 12 factors"],
        ),
        (
            lambda s: s["r0"]["rescaled"].update(threshold={"int8": 1.0}),
            ["no rescaled threshold of tensor 'r0' for uint8", "got int8"],
        ),
        (move, ["tensor 'image' cannot be rescaled", "a table made from this model"]),
    ],
)
@pytest.mark.parametrize("rounding", ["gptq", "nearest"])
def test_factors_that_do_not_fit_are_named(
    edited: Callable[..., Path],
    refused: Callable[..., str],
    edit: Callable[[dict[str, Any]], Any],
    words: list[str],
    rounding: str,
) -> None:
    line = refused("--calibration", str(edited(edit)), "--weight-rounding", rounding)
    for word in words:
        assert word in line


def test_a_rescaled_table_can_be_built_without_rescaling(
    edited: Callable[..., Path],
    flags: Callable[..., list[str]],
    tmp_path: Path,
    photos: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = str(edited(lambda said: None))
    assert main(flags("--calibration", table)) == 0
    assert "rescaled" in tensors(tmp_path)["r0"]
    with_factors = sqnr(tmp_path, photos)
    capsys.readouterr()
    assert main(flags("--calibration", table, "--no-rescale")) == 2
    assert "other inputs" in capsys.readouterr().err
    assert main(flags("--calibration", table, "--no-rescale", "--force")) == 0
    assert not any("rescaled" in entry for entry in tensors(tmp_path).values())
    # It was worth something here.
    assert with_factors > sqnr(tmp_path, photos) + 1


def test_a_rescaled_table_makes_the_float_graphs_tensorrt_cache(
    edited: Callable[..., Path], flags: Callable[..., list[str]], tmp_path: Path
) -> None:
    from vggdeploy.calib import trt_cache

    table = str(edited(lambda said: None))
    assert main(flags("--calibration", table, "--emit-trt-cache")) == 0
    cache = trt_cache.parse((tmp_path / "bundle" / TRT_CACHE).read_bytes(), "")
    entry = tensors(tmp_path)["r0"]
    assert entry["rescaled"]["threshold"]["int8"] != entry["threshold"]["int8"]
    assert cache.entries["r0"].scale == pytest.approx(entry["threshold"]["int8"] / 127, rel=1e-7)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--weight-rounding", "up"], ["--weight-rounding: got 'up'", "gptq, nearest"]),
        (["--order", "best"], ["--order: got 'best'", "diagonal, natural"]),
        (["--damping", "0"], ["--damping", "got 0.0"]),
        (["--damping", "nan"], ["--damping", "got nan"]),
        (["--weight-rounding", "nearest", "--bias-correction"], ["--bias-correction goes with"]),
    ],
)
def test_options_of_rounding_are_checked(
    refused: Callable[..., str], arguments: list[str], words: list[str]
) -> None:
    line = refused(*arguments)
    for word in words:
        assert word in line


def test_every_way_of_rounding_is_another_bundle(
    flags: Callable[..., list[str]], tmp_path: Path, photos: Path
) -> None:
    seen = set()
    for way in (
        [],
        ["--weight-rounding", "nearest"],
        ["--order", "natural"],
        ["--damping", "0.5"],
        ["--bias-correction"],
        ["--no-rescale"],
    ):
        assert main(flags(*way, "--force")) == 0
        seen.add((tmp_path / "bundle" / GRAPH).read_bytes())
        assert sqnr(tmp_path, photos) > 20
    assert len(seen) == 6


def test_a_second_build_of_the_same_is_unchanged(
    flags: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = flags("--bias-correction", "--damping", "0.02")
    assert main(arguments) == 0
    capsys.readouterr()
    assert main([*arguments, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["unchanged"] is True
