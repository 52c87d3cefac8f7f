"""Collection, over a runner whose tensors are known exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from vggdeploy import dataset
from vggdeploy.calib import Statistics, collect
from vggdeploy.calib.collect import passes
from vggdeploy.calib.histogram import Histogram
from vggdeploy.contracts import Runner, TensorSpec
from vggdeploy.errors import CalibrationError, DatasetError
from vggdeploy.preprocess import Preprocess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

UNIT = Preprocess(
    size=(4, 4), resize="stretch", interpolation="nearest", mean=(0, 0, 0), std=(1, 1, 1)
)
"""Pixels over 255, nothing moved."""

COUNT = 7


def same(*names: str) -> dict[str, str]:
    """Tensors observed under their own names."""
    return dict(zip(names, names, strict=True))


ALL = same("image", "double", "other")


class Known(Runner):
    """Gives ``double`` (twice the image) and what `extra` makes of it, `ahead` images early, in
    buffers that are used again."""

    name = "known"
    input = TensorSpec("image", (1, 3, 4, 4))
    reuses_buffers = True

    def __init__(self, extra: Callable[[int, Any], Any] | None = None, ahead: int = 1) -> None:
        super().__init__()
        self.depth = ahead
        self._extra = extra or (lambda index, batch: batch - np.float32(0.5))
        self.outputs = (TensorSpec("double", (1, 3, 4, 4)), TensorSpec("other", (1, 3, 4, 4)))
        self._buffers = {spec.name: np.empty((1, 3, 4, 4), np.float32) for spec in self.outputs}
        self.ran = 0

    def _start(self) -> None: ...

    def _stop(self) -> None: ...

    def _infer(self, batch: Any) -> Any:
        self._buffers["double"][:] = 2 * batch
        self._buffers["other"][:] = self._extra(self.ran, batch)
        self.ran += 1
        return self._buffers

    def _infer_many(self, batches: Iterable[Any]) -> Any:
        waiting = []
        for batch in batches:
            waiting.append(batch)
            if len(waiting) == self.depth:
                yield self._infer(waiting.pop(0))
        for batch in waiting:
            yield self._infer(batch)


@pytest.fixture
def images(tmp_path: Path) -> dataset.Dataset:
    rng = np.random.default_rng(5)
    for index in range(COUNT):
        pixels = rng.integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    return dataset.scan(tmp_path)


def inputs(images: dataset.Dataset) -> np.ndarray:
    pixels = [np.asarray(Image.open(sample.path)) for sample in images.samples]
    return np.stack(pixels).transpose(0, 3, 1, 2).astype(np.float32) * np.float32(1 / 255)


def state(histogram: Histogram) -> tuple[Any, ...]:
    return tuple(array.tolist() for array in histogram.save().values())


def of(values: np.ndarray) -> tuple[Any, ...]:
    histogram = Histogram(values.shape[1])
    for image in values:
        histogram.add(image[None])
    return state(histogram)


@pytest.mark.parametrize("ahead", [1, 3])
def test_every_tensor_of_every_image_is_counted(images: dataset.Dataset, ahead: int) -> None:
    with Known(ahead=ahead) as runner:
        found = collect(runner, ALL, images, UNIT)
    x = inputs(images)
    assert found.images == COUNT
    assert list(found.tensors) == ["image", "double", "other"]
    assert state(found.tensors["double"]) == of(2 * x)
    assert state(found.tensors["other"]) == of(x - np.float32(0.5))
    assert state(found.tensors["image"]) == of(x)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_names_tensor_and_image(images: dataset.Dataset, bad: float) -> None:
    def spoil(index: int, batch: Any) -> Any:
        batch = batch.copy()
        batch[0, 0, 0, 0] = bad if index == 4 else 0
        return batch

    with Known(spoil) as runner, pytest.raises(CalibrationError, match=r"'other'.*4\.png"):
        collect(runner, ALL, images, UNIT)


def test_a_tensor_is_recorded_under_the_name_it_is_given(images: dataset.Dataset) -> None:
    with Known() as runner:
        found = collect(runner, {"relu": "double", "pool": "double"}, images, UNIT).tensors
    assert list(found) == ["relu", "pool"]
    assert state(found["relu"]) == state(found["pool"]) == of(2 * inputs(images))


def test_what_is_not_finite_is_named_as_recorded(images: dataset.Dataset) -> None:
    with (
        Known(lambda index, batch: batch * np.nan) as runner,
        pytest.raises(CalibrationError, match=r"tensor 'mine' held NaN.*0\.png"),
    ):
        collect(runner, {"mine": "other"}, images, UNIT)


@pytest.mark.parametrize("ahead", [1, 3])
def test_passes_give_each_image_with_its_input(images: dataset.Dataset, ahead: int) -> None:
    x = inputs(images)
    with Known(ahead=ahead) as runner:
        for index, held in enumerate(passes(runner, images, UNIT, None, "")):
            np.testing.assert_allclose(held["image"], x[index : index + 1], rtol=1e-6)
            np.testing.assert_array_equal(held["double"], 2 * held["image"])
    assert index == COUNT - 1


def test_constant_tensor_is_named(images: dataset.Dataset) -> None:
    with (
        Known(lambda index, batch: 0 * batch) as runner,
        pytest.raises(
            CalibrationError, match=r"'other' has no range: got 0 everywhere in all 7 images"
        ),
    ):
        collect(runner, same("double", "other"), images, UNIT)


@pytest.mark.parametrize("ahead", [1, 3])
def test_broken_image_in_the_middle_fails_and_is_named(images: dataset.Dataset, ahead: int) -> None:
    path = images.samples[3].path
    path.write_bytes(path.read_bytes()[:-30])
    with Known(ahead=ahead) as runner, pytest.raises(DatasetError, match=r"3\.png"):
        collect(runner, same("image", "double"), images, UNIT)


def test_image_that_is_gone_fails_and_is_named(images: dataset.Dataset) -> None:
    images.samples[-1].path.unlink()
    with Known() as runner, pytest.raises(DatasetError, match=r"6\.png does not exist"):
        collect(runner, same("double"), images, UNIT)


def test_progress_is_told_once_an_image(images: dataset.Dataset) -> None:
    told = []

    class Counting:
        def track(self, items: Any, total: int, label: str) -> Any:
            for item in items:
                told.append(total)
                yield item

    with Known() as runner:
        collect(runner, same("double"), images, UNIT, Counting())
    assert told == [COUNT] * COUNT


def test_statistics_round_trip(images: dataset.Dataset, tmp_path: Path) -> None:
    with Known() as runner:
        found = collect(runner, ALL, images, UNIT)
    found.save(tmp_path / "statistics.npz")
    again = Statistics.load(tmp_path / "statistics.npz")
    assert again.images == found.images
    assert {n: state(h) for n, h in again.tensors.items()} == {
        n: state(h) for n, h in found.tensors.items()
    }


def test_openvino_observes_what_torch_would(slim_onnx: Path, digits_folder: Path) -> None:
    """The first ReLU of the slim network, computed here from its weights."""
    pytest.importorskip("openvino")
    torch = pytest.importorskip("torch")
    from vggdeploy import demo, graphs, preprocess, reference, targets
    from vggdeploy.calib import place
    from vggdeploy.contracts import RunOptions

    images = dataset.scan(digits_folder).choose(3, 0)
    recipe = preprocess.PRESETS["demo"]
    points = place(graphs.read(slim_onnx)).points
    first = points[1].name
    options = RunOptions(goal="throughput")
    with targets.get("ov-fp32").open_graph(slim_onnx, [first], options) as runner:
        found = collect(runner, same(first), images, recipe).tensors[first]
    module = reference.load(reference.locate(str(demo.CHECKPOINT)))
    batch = recipe.arithmetic(np.stack(list(images.pixels(recipe))))
    with torch.inference_mode():
        expected = module.features[:2](torch.from_numpy(batch)).numpy()
    assert points[1].nonnegative
    # At 224x224, positions are counted in turn; the range is that of all.
    assert found.count == expected.size / 16
    np.testing.assert_allclose(found.amax(), expected.max((0, 2, 3)), rtol=1e-4)
    assert found.min == 0
    assert found.max == pytest.approx(float(expected.max()), rel=1e-5)
