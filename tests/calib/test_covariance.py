"""Second moments of layers' inputs against naive loops and im2col in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from vggdeploy import dataset
from vggdeploy.calib import covariance
from vggdeploy.calib.covariance import Moments, Wanted, covariances
from vggdeploy.contracts import Runner, TensorSpec
from vggdeploy.errors import CalibrationError, DatasetError
from vggdeploy.preprocess import Preprocess

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

UNIT = Preprocess(
    size=(4, 4), resize="stretch", interpolation="nearest", mean=(0, 0, 0), std=(1, 1, 1)
)

COUNT = 3


class Given(Runner):
    """Gives tensors that are known, image by image, in buffers that are used again."""

    name = "given"
    input = TensorSpec("image", (1, 3, 4, 4))
    reuses_buffers = True

    def __init__(self, tensors: Mapping[str, Sequence[np.ndarray]]) -> None:
        super().__init__()
        self.tensors, self.ran = tensors, 0
        self._buffers = {name: values[0].copy() for name, values in tensors.items()}
        self.outputs = tuple(TensorSpec(name, of[0].shape) for name, of in tensors.items())

    def _start(self) -> None: ...

    def _stop(self) -> None:
        for buffer in self._buffers.values():
            buffer[:] = 1e30

    def _infer(self, batch: Any) -> Any:
        for name, values in self.tensors.items():
            self._buffers[name][:] = values[self.ran]
        self.ran += 1
        return self._buffers


@pytest.fixture
def images(tmp_path: Path) -> dataset.Dataset:
    rng = np.random.default_rng(5)
    for index in range(COUNT):
        pixels = rng.integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    return dataset.scan(tmp_path)


def convolution(
    channels: int = 2,
    kernel: tuple[int, int] = (3, 3),
    pads: tuple[int, int, int, int] = (1, 1, 1, 1),
    **changes: Any,
) -> Wanted:
    layer = Wanted(
        name="c.weight",
        tensor="x",
        kernel=kernel,
        strides=(1, 1),
        dilations=(1, 1),
        pads=pads,
        factors=None,
        scale=None,
        limits=(0, 255),
        inputs=channels * kernel[0] * kernel[1],
    )
    return replace(layer, **changes)


def product(inputs: int, **changes: Any) -> Wanted:
    return replace(convolution(), name="f.weight", kernel=None, inputs=inputs, **changes)


def measure(
    layers: list[Wanted],
    tensors: Mapping[str, Sequence[np.ndarray]],
    images: dataset.Dataset,
    seed: int = 0,
) -> dict[str, Moments]:
    with Given(tensors) as runner:
        return covariances(runner, layers, images, UNIT, seed)


def loops(x: np.ndarray, layer: Wanted) -> np.ndarray:
    """Every patch of a map ``[C, H, W]``, by loops over the definition of a convolution."""
    assert layer.kernel is not None
    top, left, bottom, right = layer.pads
    channels, height, width = x.shape
    patches = []
    reach = [(k - 1) * d for k, d in zip(layer.kernel, layer.dilations, strict=True)]
    for y in range(-top, height + bottom - reach[0], layer.strides[0]):
        for z in range(-left, width + right - reach[1], layer.strides[1]):
            patch = []
            for channel in range(channels):
                for i in range(layer.kernel[0]):
                    for j in range(layer.kernel[1]):
                        at = y + i * layer.dilations[0], z + j * layer.dilations[1]
                        inside = 0 <= at[0] < height and 0 <= at[1] < width
                        patch.append(x[channel, at[0], at[1]] if inside else 0.0)
            patches.append(patch)
    return np.array(patches)


def values(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


few = st.integers(0, 2)
some = st.integers(1, 3)


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(3, 8), st.integers(3, 8)),
    kernel=st.tuples(some, some),
    strides=st.tuples(some, some),
    dilations=st.tuples(some, some),
    pads=st.tuples(few, few, few, few),
)
def test_patches_are_those_of_the_definition(
    shape: tuple[int, int, int], kernel: Any, strides: Any, dilations: Any, pads: Any
) -> None:
    layer = convolution(shape[0], kernel, pads, strides=strides, dilations=dilations)
    x = values(1, *shape)
    expected = loops(x, layer)
    assume(len(expected) > 0)
    found = covariance._patches(x, layer, 10_000, np.random.default_rng(0))
    np.testing.assert_array_equal(found, expected.astype(np.float32))


def test_patches_are_what_the_convolution_multiplies() -> None:
    """Against another implementation: patches times weights are the layer's outputs."""
    reference = pytest.importorskip("onnx.reference")
    helper = pytest.importorskip("onnx.helper")
    layer = convolution(3, (3, 2), (0, 1, 2, 3), strides=(2, 1), dilations=(1, 2))
    x, weight = values(2, 3, 9, 8), values(3, 5, 3, 3, 2)
    node = helper.make_node(
        "Conv", ["x", "w"], ["y"], strides=layer.strides, dilations=layer.dilations,
        pads=layer.pads, kernel_shape=layer.kernel,
    )  # fmt: skip
    (y,) = reference.ReferenceEvaluator(node).run(None, {"x": x[None], "w": weight})
    patches = covariance._patches(x, layer, 10_000, np.random.default_rng(0))
    np.testing.assert_allclose(patches @ weight.reshape(5, -1).T, y.reshape(5, -1).T, atol=1e-5)


def test_few_positions_are_some_of_all_and_none_twice() -> None:
    layer, x = convolution(1, (1, 1), (0, 0, 0, 0)), np.arange(400, dtype=np.float32)
    found = covariance._patches(x.reshape(1, 20, 20), layer, 37, np.random.default_rng(0))
    assert found.shape == (37, 1)
    assert len(np.unique(found)) == 37
    assert np.ptp(found) > 300


@pytest.mark.parametrize("strides", [(1, 1), (2, 1)])
def test_moments_of_all_positions_are_numpys(
    images: dataset.Dataset, strides: tuple[int, int]
) -> None:
    layer = convolution(strides=strides)
    maps = [values(10 + index, 1, 2, 7, 6) for index in range(COUNT)]
    found = measure([layer], {"x": maps}, images)["c.weight"]
    x = np.concatenate([loops(one[0].astype(np.float64), layer) for one in maps])
    assert found.covariance.dtype == np.float32
    np.testing.assert_allclose(found.covariance, x.T @ x / len(x), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.exact, x.mean(0), rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(found.quantized, found.exact)


def test_many_patches_are_summed_in_parts(
    images: dataset.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = {"x": [values(20 + index, 1, 2, 9, 9) for index in range(COUNT)]}
    whole = measure([convolution()], maps, images)["c.weight"]
    monkeypatch.setattr(covariance, "_BUFFER", 1)
    parts = measure([convolution()], maps, images)["c.weight"]
    np.testing.assert_allclose(parts.covariance, whole.covariance, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(parts.exact, whole.exact)


@pytest.mark.parametrize("limits", [(0, 255), (-128, 127)])
def test_inputs_are_multiplied_then_quantized(
    images: dataset.Dataset, limits: tuple[int, int]
) -> None:
    """In this order; where the second channel is clipped and the first hardly rounded."""
    factors = np.float32([1.5, 9])
    layer = convolution(factors=factors, scale=0.02, limits=limits)
    maps = [values(30 + index, 1, 2, 6, 6) for index in range(COUNT)]
    found = measure([layer], {"x": maps}, images)["c.weight"]
    exact = np.concatenate(
        [loops(one[0].astype(np.float64) * factors[:, None, None], layer) for one in maps]
    )
    x = np.clip(np.rint(exact / np.float64(np.float32(0.02))), *limits) * 0.02
    assert (x == limits[1] * 0.02).any()
    np.testing.assert_allclose(found.covariance, x.T @ x / len(x), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.quantized, x.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.exact, exact.mean(0), rtol=1e-5, atol=1e-7)


def test_a_product_reads_its_vector(images: dataset.Dataset) -> None:
    factors = np.linspace(1, 3, 12).astype(np.float32)
    layer = product(12, factors=factors, scale=0.05, limits=(0, 255))
    vectors = [np.abs(values(40 + index, 1, 12)) for index in range(COUNT)]
    found = measure([layer], {"x": vectors}, images)["f.weight"]
    exact = np.concatenate(vectors).astype(np.float64) * factors
    x = np.clip(np.rint(exact / 0.05), 0, 255) * 0.05
    assert found.covariance is None  # fewer samples than inputs: they stand for themselves
    np.testing.assert_allclose(found.samples, x, rtol=1e-5)
    np.testing.assert_allclose(found.exact, exact.mean(0), rtol=1e-6)


def test_float_inputs_stay_as_they_are(images: dataset.Dataset) -> None:
    vectors = [values(50 + index, 1, 12) for index in range(COUNT)]
    found = measure([product(12)], {"x": vectors}, images)["f.weight"]
    x = np.concatenate(vectors).astype(np.float64)
    np.testing.assert_allclose(found.samples, x, rtol=1e-6)
    np.testing.assert_allclose(found.quantized, x.mean(0), rtol=1e-6)


def test_several_layers_may_read_one_tensor(images: dataset.Dataset) -> None:
    maps = {"x": [values(60 + index, 1, 2, 6, 6) for index in range(COUNT)]}
    other = convolution(kernel=(1, 1), pads=(0, 0, 0, 0), name="d.weight", inputs=2)
    both = measure([convolution(), other], maps, images)
    for layer in (convolution(), other):
        alone = measure([layer], maps, images)[layer.name]
        np.testing.assert_array_equal(both[layer.name].covariance, alone.covariance)


@pytest.mark.parametrize("seed", [0, 7, -3, 2**70])
def test_positions_are_drawn_under_the_seed(
    images: dataset.Dataset, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(covariance, "FEWEST_PATCHES", 60)
    maps = {"x": [values(70 + index, 1, 2, 30, 30) for index in range(COUNT)]}
    first, again = (measure([convolution()], maps, images, seed)["c.weight"] for _ in range(2))
    np.testing.assert_array_equal(first.covariance, again.covariance)
    other = measure([convolution()], maps, images, seed + 1)["c.weight"]
    assert (first.covariance != other.covariance).any()
    if seed < 0:
        positive = measure([convolution()], maps, images, -seed)["c.weight"]
        assert (first.covariance != positive.covariance).any()


def test_each_image_and_each_layer_draws_its_own(
    images: dataset.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A map that holds its positions' numbers tells which were drawn."""
    monkeypatch.setattr(covariance, "FEWEST_PATCHES", 30)
    drawn: list[np.ndarray] = []
    usual = covariance._patches

    def noting(*args: Any) -> np.ndarray:
        drawn.append(usual(*args))
        return drawn[-1]

    monkeypatch.setattr(covariance, "_patches", noting)
    number = np.arange(900, dtype=np.float32).reshape(1, 1, 30, 30)
    plain = convolution(1, (1, 1), (0, 0, 0, 0))
    measure([plain, replace(plain, name="d.weight")], {"x": [number] * COUNT}, images)
    assert len(drawn) == 2 * COUNT
    assert len({part.tobytes() for part in drawn}) == 2 * COUNT
    assert {len(part) for part in drawn} == {10}


def test_as_many_patches_as_the_matrix_needs(images: dataset.Dataset) -> None:
    layer = convolution(400, (3, 3))
    total = covariance._Sum(layer, 10)
    assert total.share * 10 >= covariance.PATCHES_PER_INPUT * layer.inputs
    assert covariance._Sum(convolution(), 64).share * 64 >= covariance.FEWEST_PATCHES


def test_inputs_that_are_all_zero_have_no_moments(images: dataset.Dataset) -> None:
    nothing = [np.zeros((1, 2, 6, 6), np.float32)] * COUNT
    found = measure([convolution(scale=0.1)], {"x": nothing}, images)["c.weight"]
    assert not found.covariance.any()
    assert not found.quantized.any()
    assert not found.exact.any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("scale", [None, 0.1])
def test_what_is_not_finite_names_tensor_and_image(
    images: dataset.Dataset, bad: float, scale: float | None
) -> None:
    """Infinity would be clipped to the largest integer, and nothing be seen of it behind."""
    maps = [values(80 + index, 1, 2, 6, 6) for index in range(COUNT)]
    maps[1][0, 0, 2, 2] = bad
    with pytest.raises(
        CalibrationError, match=r"'x' cannot be observed in image .*1\.png: got NaN or infinity"
    ):
        measure([convolution(scale=scale)], {"x": maps}, images)


def test_a_broken_image_is_named(images: dataset.Dataset) -> None:
    path = images.samples[1].path
    path.write_bytes(path.read_bytes()[:-30])
    maps = {"x": [values(index, 1, 2, 6, 6) for index in range(COUNT)]}
    with pytest.raises(DatasetError, match=r"1\.png"):
        measure([convolution()], maps, images)
