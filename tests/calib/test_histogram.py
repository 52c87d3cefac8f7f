"""The streaming observer against plain numpy on the values themselves."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vggdeploy.calib.histogram import Histogram, Magnitudes, counted
from vggdeploy.errors import CalibrationError

BIN = 1 / 32
"""A bin's width, as a share of any value in it, at most."""

floats = st.floats(allow_nan=False, allow_infinity=False, width=32)
finite = hnp.arrays(np.float32, st.integers(1, 300), elements=floats)

SHAPE = (1, 3, 2, 5)
images = st.lists(hnp.arrays(np.float32, SHAPE, elements=floats), min_size=1, max_size=5)
"""Some images' tensors of three channels."""


def observed(*parts: np.ndarray, channels: int = 1) -> Histogram:
    histogram = Histogram(channels)
    for part in parts:
        histogram.add(part)
    return histogram


def state(histogram: Histogram) -> dict[str, list[float]]:
    return {name: array.tolist() for name, array in histogram.save().items()}


def plain(parts: list[np.ndarray], edges: np.ndarray) -> np.ndarray:
    """Counts ``[channels, 1 + bins]`` of all positions, by numpy; first of what is below."""
    rows = np.concatenate([part[0].reshape(part.shape[1], -1) for part in parts], axis=1)
    size = np.abs(rows.astype(np.float64))
    below = (size < edges[0]).sum(1)
    inside = [np.histogram(row[row >= edges[0]], edges)[0] for row in size]
    return np.column_stack([below, np.array(inside)])


@given(finite)
def test_range_and_count_are_exact(values: np.ndarray) -> None:
    histogram = observed(values)
    assert histogram.count == values.size
    assert histogram.min == values.min()
    assert histogram.max == values.max()
    assert histogram.nonfinite == 0
    assert histogram.magnitudes().amax == np.abs(values).max()


@given(images)
def test_counts_are_those_of_numpy_on_the_same_edges(parts: list[np.ndarray]) -> None:
    histogram = observed(*parts, channels=3)
    edges = histogram.edges()
    np.testing.assert_array_equal(histogram.counts(), plain(parts, edges))
    for half in (0, 1):
        if own := parts[half::2]:
            np.testing.assert_array_equal(histogram.counts(half), plain(own, edges))
            amax = np.abs(np.concatenate(own)).max((0, 2, 3))
            np.testing.assert_array_equal(histogram.amax(half), amax)
    np.testing.assert_array_equal(histogram.amax(), np.abs(np.concatenate(parts)).max((0, 2, 3)))


@given(finite)
def test_edges_ascend_and_the_window_holds_the_largest(values: np.ndarray) -> None:
    histogram = observed(values)
    edges, amax = histogram.edges(), np.abs(values).max()
    assert (np.diff(edges) > 0).all()
    assert edges[-1] > amax
    # Nothing but what is smaller than float32's significand counts as zero.
    assert edges[0] <= max(amax * 2.0**-23, 0)


def test_bins_are_32_an_octave() -> None:
    edges = observed(np.float32([1.5])).edges()
    octaves = 2.0 ** np.arange(-23, 1)
    expected = (octaves[:, None] * (1 + np.arange(32) / 32)).ravel()
    np.testing.assert_array_equal(edges, [*expected, 2.0])


@given(images, st.randoms(use_true_random=False))
def test_order_of_the_images_makes_no_difference(parts: list[np.ndarray], random) -> None:
    """Within a half to any of them, between the halves to both together."""
    halves = [parts[0::2], parts[1::2]]
    for half in halves:
        random.shuffle(half)
    mixed = [half[place] for place in range(len(halves[0])) for half in halves if place < len(half)]
    assert state(observed(*mixed, channels=3)) == state(observed(*parts, channels=3))
    random.shuffle(mixed)
    counts = observed(*mixed, channels=3).counts()
    np.testing.assert_array_equal(counts, observed(*parts, channels=3).counts())


@pytest.mark.parametrize("exponents", [[0, 5, 11, 40], [40, 11, 0, 5], [-100, 90], [-140, -20, 0]])
def test_window_moves_with_growing_values(exponents: list[int]) -> None:
    rng = np.random.default_rng(0)
    parts = [np.ldexp(rng.lognormal(0, 2, SHAPE), e).astype(np.float32) for e in exponents]
    histogram = observed(*parts, channels=3)
    largest = np.max(parts)
    assert histogram.edges()[-1] == 2.0 ** np.ceil(np.log2(largest))
    np.testing.assert_array_equal(histogram.counts(), plain(parts, histogram.edges()))
    assert histogram.count == sum(part.size for part in parts)


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_counted(bad: float) -> None:
    histogram = observed(np.float32([1, bad, 2, bad]), np.float32([3, bad]))
    assert histogram.nonfinite == 3


def test_largest_float_is_finite() -> None:
    top = np.finfo(np.float32).max
    histogram = observed(np.float32([top, -top, 1]))
    assert histogram.nonfinite == 0
    found = histogram.magnitudes()
    assert found.amax == found.high[-1] == top
    assert histogram.edges()[-1] == 2.0**128
    assert found.low[-1] == 2.0**128 * (1 - 1 / 64)
    assert found.counts.tolist() == [2]


def test_smallest_floats_have_bins() -> None:
    found = observed(np.float32([0, 1e-42, 3e-42])).magnitudes()
    assert found.amax == float(np.float32(3e-42))
    assert found.low.tolist() == [0]
    assert found.high.tolist() == [found.amax]


@pytest.mark.parametrize("exponent", [0, -30, -120])
def test_minus_zero_is_zero(exponent: int) -> None:
    values = np.float32([-0.0, 0.0, -0.0])
    histogram = observed(values)
    assert histogram.min == histogram.max == 0
    assert histogram.counts()[0].nonzero()[0].tolist() == [1]  # the lowest bin there is
    histogram.add(np.ldexp(np.float32([1, -1]), exponent))
    if exponent > -100:
        assert histogram.magnitudes().zeros == 3
        assert histogram.magnitudes().counts.tolist() == [2]


def test_empty_arrays_change_nothing() -> None:
    histogram = observed(np.zeros((0, 3), np.float32))
    assert histogram.count == 0
    assert histogram.min == np.inf
    assert histogram.max == -np.inf


def test_views_are_read_as_they_are() -> None:
    values = np.random.default_rng(2).standard_normal((1, 6, 8, 4)).astype(np.float32)
    view = values.transpose(0, 2, 1, 3)[:, ::2]
    assert state(observed(view, channels=4)) == state(observed(view.copy(), channels=4))


@given(images)
def test_what_is_saved_is_restored(parts: list[np.ndarray]) -> None:
    histogram = observed(*parts, channels=3)
    saved = histogram.save()
    assert tuple(saved) == Histogram.SAVED
    assert (saved["counts"] > 0).all()
    again = Histogram.restore(saved)
    assert state(again) == state(histogram)
    # It goes on as if nothing had been between, to the half whose turn it is.
    again.add(parts[0])
    assert state(again) == state(observed(*parts, parts[0], channels=3))


@given(st.integers(-30, 30))
def test_power_of_two_moves_the_bins_and_not_the_counts(exponent: int) -> None:
    values = np.random.default_rng(3).uniform(1, 2, 500).astype(np.float32)
    scaled = observed(np.ldexp(values, exponent)).magnitudes()
    found = observed(values).magnitudes()
    np.testing.assert_array_equal(scaled.counts, found.counts)
    np.testing.assert_array_equal(scaled.low, np.ldexp(found.low, exponent))
    np.testing.assert_array_equal(scaled.high, np.ldexp(found.high, exponent))


def test_memory_does_not_grow_with_images() -> None:
    rng = np.random.default_rng(4)
    histogram = observed(rng.standard_normal(10_000).astype(np.float32))
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for scale in range(1, 40):
            histogram.add(rng.standard_normal(10_000).astype(np.float32) * np.float32(scale**3))
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # 39 images of 40 kB went by; a few Python integers may be left.
    assert after - before < 4_000


# --- large maps


def test_every_position_of_a_large_map_has_its_turn() -> None:
    """At 224x224 every fourth row and column: after sixteen images each was counted once."""
    rng = np.random.default_rng(5)
    whole = rng.standard_normal((1, 2, 224, 224)).astype(np.float32)
    histogram = observed(whole, channels=2)
    assert histogram.count == 2 * 56 * 56
    for _ in range(15):
        histogram.add(whole)
    np.testing.assert_array_equal(histogram.counts(), plain([whole], histogram.edges()))


def test_range_of_a_large_map_is_exact() -> None:
    values = np.ones((1, 2, 224, 224), np.float32)
    assert counted(values, 0)[0, 0, 0, 0] == 1
    values[0, 0, 1, 1], values[0, 1, 2, 3] = 50, -70  # neither is counted in the first image
    histogram = observed(values, channels=2)
    assert (histogram.min, histogram.max) == (-70, 50)
    assert histogram.amax().tolist() == [50, 70]
    assert histogram.magnitudes().amax == 70
    assert histogram.magnitudes().high[-1] < 70


@pytest.mark.parametrize("side", [1, 14, 56, 95])
def test_small_maps_are_counted_whole(side: int) -> None:
    values = np.zeros((1, 2, side, side), np.float32)
    assert counted(values, 3).shape == values.shape


def test_what_was_missed_everywhere_leaves_the_largest_value() -> None:
    """A map that is zero wherever it was counted, and not all zero."""
    values = np.zeros((1, 1, 224, 224), np.float32)
    values[0, 0, 1, 1] = 3
    found = observed(values).magnitudes()
    assert found.zeros == 56 * 56
    assert found.counts.tolist() == [1]
    assert found.high.tolist() == [3]
    assert found.low[0] == pytest.approx(3, rel=1e-8)
    assert found.low[0] < 3


# --- Magnitudes


def brute(found: Magnitudes, threshold: float, levels: int) -> float:
    """The mean over 20,000 points of every bin, from the definition of rounding and clipping."""
    step, total = threshold / levels, 0.0
    middle = (np.arange(20_000) + 0.5) / 20_000
    for low, high, count in zip(found.low, found.high, found.counts, strict=True):
        x = low + middle * (high - low)
        total += count * np.mean((np.minimum(np.rint(x / step), levels) * step - x) ** 2)
    return float(total)


@pytest.mark.parametrize("levels", [7, 127, 255])
@pytest.mark.parametrize("ratio", [0.02, 0.3, 0.77, 1.0])
def test_error_is_the_integral_over_even_bins(levels: int, ratio: float) -> None:
    rng = np.random.default_rng(6)
    found = observed(rng.lognormal(0, 1, 60).astype(np.float32)).magnitudes()
    threshold = ratio * found.amax
    # 20,000 points see a step's corners to within a few in a million of a bin's error.
    assert found.error(threshold, levels) == pytest.approx(
        brute(found, threshold, levels), rel=1e-4
    )


@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0])
def test_error_is_that_of_many_values(ratio: float) -> None:
    values = np.random.default_rng(7).laplace(0, 1, 200_000)
    found = observed(values.astype(np.float32)).magnitudes()
    step = ratio * found.amax / 255
    x = np.abs(values.astype(np.float32).astype(np.float64))
    exact = np.square(np.minimum(np.rint(x / step), 255) * step - x).sum()
    assert found.error(ratio * found.amax, 255) == pytest.approx(exact, rel=0.01)


def scaled_histogram(seed: int, channels: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values ``[channels, 600]`` of very different spreads, factors and weights."""
    rng = np.random.default_rng(seed)
    values = rng.lognormal(0, 1.5, (channels, 600)) * np.exp(rng.normal(0, 2, (channels, 1)))
    values[rng.random(values.shape) < 0.3] = 0
    return (
        values.astype(np.float32),
        np.exp(rng.normal(0, 1.5, channels)),
        rng.uniform(0.1, 3, channels),
    )


@pytest.mark.parametrize("seed", range(6))
def test_scaled_magnitudes_are_those_of_scaled_values_within_a_bin(seed: int) -> None:
    values, factors, weights = scaled_histogram(seed, channels=130 if seed == 5 else 5)
    histogram = observed(values[None, :, :, None], channels=len(values))
    found = histogram.magnitudes(factors, weights)
    size = values.astype(np.float64) * factors[:, None]
    assert found.amax == pytest.approx(size.max(), rel=1e-12)
    total = weights.sum() * values.shape[1]
    assert found.counts.sum() + found.zeros == pytest.approx(total, rel=1e-9)
    # Zero, or no more than float32 can add to the largest.
    nothing = [weights @ (size <= tiny).sum(1) for tiny in (0, size.max() * 2.0**-22)]
    assert nothing[0] * (1 - 1e-9) <= found.zeros <= nothing[1] * (1 + 1e-9)
    assert (np.diff(found.low) > 0).all()
    running = found.zeros + np.cumsum(found.counts)
    for place, mass in zip(found.high, running, strict=True):
        # A value lies anywhere in its bin, so that much is not known of where it is.
        low, high = (weights @ (size < place * near).sum(1) for near in (1 - BIN, 1 + BIN))
        assert low - 1e-6 * total <= mass <= high + 1e-6 * total


def test_factors_of_one_leave_the_distribution() -> None:
    values = np.random.default_rng(9).standard_normal((1, 2, 90, 90)).astype(np.float32)
    weights = np.array([1.0, 4.0])
    histogram = observed(values, channels=2)
    own, found = histogram.magnitudes(None, weights), histogram.magnitudes(np.ones(2), weights)
    for ratio in (0.05, 0.5, 1):
        assert found.error(ratio * own.amax, 255) == pytest.approx(
            own.error(ratio * own.amax, 255), rel=0.01
        )


def test_nothing_of_the_largest_bin_is_lost() -> None:
    """The largest value at the very beginning of its bin, and much of the channel with it."""
    values = np.full((1, 2, 10, 10), 2, np.float32)
    values[0, 1] = 0.5
    found = observed(values, channels=2).magnitudes(np.array([1.0, 1.5]), np.ones(2))
    assert found.zeros == 0
    assert found.counts.sum() == 200
    assert found.amax == found.high[-1] == 2


def test_what_lies_at_the_bottom_of_the_window_is_nowhere_else_once_scaled() -> None:
    """Places below the window's end are below everything that was counted."""
    values = np.full((1, 2, 10, 10), 1.5, np.float32)
    values[0, 1] = 2.0**-23
    histogram = observed(values, channels=2)
    assert histogram.edges()[0] == 2.0**-23
    found = histogram.magnitudes(np.array([1.0, 512.0]), np.ones(2))
    small = found.high < 1
    assert found.zeros == 0
    assert found.counts[small].sum() == pytest.approx(100)
    assert (found.low[small] >= 2.0**-14 * (1 - BIN)).all()
    assert (found.high[small] <= 2.0**-14 * (1 + 2 * BIN)).all()


def test_weights_count_a_channel_as_often() -> None:
    values = np.random.default_rng(8).lognormal(0, 2, (1, 2, 9, 9)).astype(np.float32)
    found = observed(values, channels=2).magnitudes(weights=np.array([1.0, 3.0]))
    again = observed(values[:, [0, 1, 1, 1]]).magnitudes()
    np.testing.assert_array_equal(found.low, again.low)
    np.testing.assert_array_equal(found.counts, again.counts)
    assert found.zeros == again.zeros


def test_halves_have_magnitudes_of_their_own() -> None:
    parts = [np.full(SHAPE, value, np.float32) for value in (1, 8, 2)]
    histogram = observed(*parts, channels=3)
    assert histogram.magnitudes(half=0).amax == 2
    assert histogram.magnitudes(half=1).amax == 8
    assert histogram.magnitudes(np.ones(3), np.ones(3), half=1).counts.tolist() == [30]
    assert histogram.magnitudes().amax == 8


@given(st.lists(hnp.arrays(np.float32, (1, 6), elements=floats), min_size=1, max_size=5))
def test_a_vector_is_a_map_of_one_position(parts: list[np.ndarray]) -> None:
    vectors = observed(*parts, channels=6)
    assert state(vectors) == state(observed(*(part[..., None, None] for part in parts), channels=6))
    np.testing.assert_array_equal(vectors.counts(), plain(parts, vectors.edges()))


def test_more_than_can_be_counted_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vggdeploy.calib.histogram.MOST", 10)
    histogram = observed(*[np.ones((1, 2, 1, 5), np.float32)] * 2, channels=2)
    with pytest.raises(CalibrationError, match="more than 10 values of a channel"):
        histogram.add(np.ones((1, 2, 1, 1), np.float32))
