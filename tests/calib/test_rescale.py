"""Factors of channels: what they must not do, and that they are the best of what was tried."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vggdeploy.calib import rescale
from vggdeploy.calib.histogram import Histogram
from vggdeploy.calib.rescale import EXPONENTS, LARGEST, factors

LEVELS = 255


def observed(images: np.ndarray) -> Histogram:
    """Of maps ``[N, C, H, W]``, one image each."""
    histogram = Histogram(images.shape[1])
    for image in images:
        histogram.add(image[None].astype(np.float32))
    return histogram


def maps(seed: int, spreads: list[float], images: int = 6, side: int = 24) -> np.ndarray:
    """What a ReLU leaves: ``[N, C, side, side]``, channels of different size and shape."""
    rng = np.random.default_rng(seed)
    shape = (images, len(spreads), side, side)
    found = np.maximum(rng.standard_normal(shape) - rng.uniform(0, 1, (1, len(spreads), 1, 1)), 0)
    return (found * np.array(spreads)[:, None, None]).astype(np.float32)


def quantized(x: np.ndarray, threshold: float) -> np.ndarray:
    step = threshold / LEVELS
    return np.minimum(np.rint(x / step), LEVELS) * step


def loss(x: np.ndarray, gains: np.ndarray, scaled: np.ndarray, threshold: float) -> float:
    """What rounding ``x [N, C, H, W]``, multiplied by `scaled`, adds to the next layer's output."""
    wide = x.astype(np.float64) * scaled[:, None, None]
    error = np.square(quantized(wide, threshold) - wide).sum((0, 2, 3))
    return float((gains / scaled**2) @ error)


def best_threshold(x: np.ndarray, gains: np.ndarray, scaled: np.ndarray) -> float:
    amax = (x.max((0, 2, 3)) * scaled).max()
    tried = amax * np.geomspace(0.05, 1, 120)
    return float(min(tried, key=lambda threshold: loss(x, gains, scaled, threshold)))


def crossed(images: np.ndarray, gains: np.ndarray, exponent: float) -> float:
    """Cross-validation by the values themselves: each half's factors and threshold on the other."""
    total = 0.0
    for half in (0, 1):
        seen, other = images[half::2], images[1 - half :: 2]
        own = np.array(
            [
                best_threshold(seen[:, [channel]], np.ones(1), np.ones(1)) if seen[:, channel].any()
                else 0.0
                for channel in range(images.shape[1])
            ]
        )  # fmt: skip
        scaled = np.where(own > 0, (own.max() / np.where(own > 0, own, 1)) ** exponent, 1.0)
        total += loss(other, gains, scaled, best_threshold(seen, gains, scaled))
    return total


def test_equal_channels_are_left_as_they_are() -> None:
    images = np.repeat(maps(0, [1.0]), 5, axis=1)
    assert factors(observed(images), np.ones(5), LEVELS) is None


@pytest.mark.parametrize("count", [1, 0])
def test_a_single_image_tells_nothing(count: int) -> None:
    images = maps(1, [1.0, 0.1, 0.01])[:count]
    assert factors(observed(images), np.ones(3), LEVELS) is None


@pytest.mark.parametrize("half", [0, 1])
def test_a_half_without_anything_tells_nothing(half: int) -> None:
    images = maps(2, [1.0, 0.1, 0.01])
    images[half::2] = 0
    assert factors(observed(images), np.ones(3), LEVELS) is None


def test_one_channel_is_left_as_it_is() -> None:
    assert factors(observed(maps(3, [1.0])), np.ones(1), LEVELS) is None


def test_small_channels_are_multiplied() -> None:
    spreads = [1.0, 0.3, 0.1, 0.03, 0.01]
    found = factors(observed(maps(4, spreads)), np.ones(5), LEVELS)
    assert found is not None
    assert found.min() == found[0] == 1
    assert (np.diff(found) > 0).all()
    # Never further than to one threshold for all.
    assert (found <= 1 / np.array(spreads) * 2).all()


@pytest.mark.parametrize("dead", [0, 2])
def test_a_dead_channel_has_the_factor_one(dead: int) -> None:
    images = maps(5, [1.0, 0.1, 0.5, 0.02])
    images[:, dead] = 0
    found = factors(observed(images), np.ones(4), LEVELS)
    assert found is not None
    assert found[dead] == 1
    assert (found[[1, 3]] > 1).all()


def test_a_channel_that_was_seen_nowhere_it_was_counted_is_known_by_its_largest() -> None:
    images = np.zeros((4, 2, 224, 224), np.float32)
    images[:, 0] = np.random.default_rng(6).exponential(1, images[:, 0].shape)
    images[:, 1, 3, 2] = 1e-3  # none of the four counts it
    histogram = observed(images)
    assert histogram.counts()[1, 1:].sum() == 0
    assert rescale._thresholds(histogram, LEVELS, None)[1] == np.float32(1e-3)


def test_a_channel_that_is_hardly_ever_excited_is_not_blown_up() -> None:
    found = factors(observed(maps(7, [1.0, 0.2, 1e-18])), np.ones(3), LEVELS)
    assert found is not None
    assert found[2] == LARGEST


def test_what_one_half_alone_suggests_is_not_done() -> None:
    """A channel that is small in one half of the images and large in the other: multiplied by what
    the first half suggests, it would be clipped in the second."""
    images, gains = maps(8, [1.0] * 4 + [0.01], images=8), np.array([1.0, 1.0, 1.0, 1.0, 1000.0])
    assert factors(observed(images), gains, LEVELS) is not None
    images[1::2, 4] *= 100
    assert factors(observed(images), gains, LEVELS) is None
    # Either way round.
    assert factors(observed(images[[1, 0, 3, 2, 5, 4, 7, 6]]), gains, LEVELS) is None


@settings(max_examples=8)
@given(seed=st.integers(0, 2**16))
def test_factors_are_the_best_on_the_half_they_do_not_come_from(seed: int) -> None:
    """By brute force over the values, of every exponent that is tried, and of leaving it."""
    rng = np.random.default_rng(seed)
    spreads = np.exp(rng.normal(0, 1.2, 5))
    images, gains = maps(seed, spreads.tolist()), np.exp(rng.normal(0, 1, 5))
    histogram = observed(images)
    found = factors(histogram, gains, LEVELS)
    chosen = 0.0
    if found is not None:
        own = rescale._thresholds(histogram, LEVELS, None)
        other = int(np.argmin(own))
        chosen = float(np.log(found[other]) / np.log(own.max() / own[other]))
        assert min(abs(chosen - exponent) for exponent in EXPONENTS) < 1e-9
    losses = {exponent: crossed(images, gains, exponent) for exponent in EXPONENTS}
    ours = losses[min(EXPONENTS, key=lambda exponent: abs(exponent - chosen))]
    # Bins of 1/32, and a grid of thresholds, here and there.
    assert ours <= 1.05 * min(losses.values())
    assert ours <= 1.01 * losses[0.0]


@pytest.mark.parametrize("seed", range(3))
def test_thresholds_lose_least_of_their_channel(seed: int) -> None:
    images = maps(seed, [1.0, 0.1, 30.0])
    images[:, 1] = images[:, 1] ** 3  # heavy-tailed, so that clipping pays
    found = rescale._thresholds(observed(images), LEVELS, None)
    one = np.ones(1)
    for channel in range(3):
        x = images[:, [channel]]
        tried = x.max() * np.geomspace(0.25, 1, 12)
        best = min(loss(x, one, one, threshold) for threshold in tried)
        assert loss(x, one, one, found[channel]) <= 1.03 * best
        assert 0 < found[channel] <= x.max()


def test_halves_have_thresholds_of_their_own() -> None:
    images = maps(9, [1.0, 1.0])
    images[1::2] *= 16
    histogram = observed(images)
    one, other = (rescale._thresholds(histogram, LEVELS, half) for half in (0, 1))
    assert (other > 8 * one).all()


def test_gains_decide() -> None:
    """A channel that nothing reads need not be small."""
    images = maps(10, [1.0, 0.02, 0.02])
    histogram = observed(images)
    deaf = factors(histogram, np.array([1.0, 0.0, 0.0]), LEVELS)
    heard = factors(histogram, np.array([1e-6, 1.0, 1.0]), LEVELS)
    assert deaf is None
    assert heard is not None
    assert heard[1] > 2


def test_loss_is_measured_on_the_other_half() -> None:
    images, gains, scaled = maps(11, [1.0, 0.2]), np.array([1.0, 3.0]), np.array([1.0, 3.0])
    images[1::2] *= np.float32(1.7)
    histogram = observed(images)
    for half in (0, 1):
        seen, other = images[half::2], images[1 - half :: 2]
        expected = loss(other, gains, scaled, best_threshold(seen, gains, scaled))
        found = rescale._loss(histogram, gains, LEVELS, scaled, half)
        assert found == pytest.approx(expected, rel=0.05)


def test_a_vectors_channel_is_known_by_its_size() -> None:
    """From one value an image its root mean square is known better than how large it gets."""
    images = np.maximum(maps(11, [1.0, 0.3, 0.05], images=40, side=1), 0)
    found = factors(observed(images), np.ones(3), LEVELS)
    assert found is not None
    values = images.astype(np.float64)
    size = np.sqrt((values**2).sum((0, 2, 3)) / (values > 0).sum((0, 2, 3)))
    exponent = np.log(found[1:]) / np.log(size.max() / size[1:])
    np.testing.assert_allclose(exponent, exponent[0], rtol=0.02)
    assert min(abs(exponent[0] - one) for one in (0.125, 0.25)) < 0.005


def test_products_may_go_further() -> None:
    images = maps(4, [1.0, 0.3, 0.1, 0.05, 0.02])
    near, far = (
        factors(observed(images), np.ones(5), LEVELS, exponents)
        for exponents in (rescale.EXPONENTS, rescale.PRODUCTS)
    )
    assert near is not None
    assert far is not None
    assert (far[1:] > near[1:] ** 1.4).all()
