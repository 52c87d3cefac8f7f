"""The streaming observer against plain numpy on the values themselves."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vggdeploy.calib.histogram import Histogram

# float32 keeps 23 bits of significand and a bin 10 of them, so a bin is 2^-10 of its octave's lower
# end wide at most, and its centre is half of that from any value in it. Subnormals have equal steps
# of 2^-149, of which a bin holds 2^13.
RELATIVE, SUBNORMAL = 2.0**-11, 2.0**-136

finite = hnp.arrays(
    np.float32,
    st.integers(1, 300),
    elements=st.floats(allow_nan=False, allow_infinity=False, width=32),
)


def observed(*parts: np.ndarray) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.add(part)
    return histogram


def state(histogram: Histogram) -> tuple[object, ...]:
    index, counts = histogram.sparse()
    return histogram.count, histogram.min, histogram.max, index.tolist(), counts.tolist()


@given(finite)
def test_range_and_count_are_exact(values: np.ndarray) -> None:
    histogram = observed(values)
    assert histogram.count == values.size
    assert histogram.min == values.min()
    assert histogram.max == values.max()
    assert histogram.nonfinite == 0
    assert histogram.magnitudes().amax == np.abs(values).max()


@given(finite)
def test_each_value_is_within_half_a_bin_of_its_centre(values: np.ndarray) -> None:
    found = observed(values).magnitudes()
    assert (np.diff(found.centres) > 0).all() or len(found.centres) == 1 or found.amax < SUBNORMAL
    centres = np.repeat(found.centres, found.counts)
    exact = np.sort(np.abs(values.astype(np.float64)))
    assert (np.abs(centres - exact) <= np.maximum(RELATIVE * exact, SUBNORMAL)).all()


def test_counts_are_those_of_numpy_on_the_same_edges() -> None:
    values = np.random.default_rng(0).lognormal(0, 2, 200_000).astype(np.float32)
    values *= np.random.default_rng(1).choice(np.float32([-1, 1]), values.size)
    octaves = np.arange(-20, 21)
    edges = np.concatenate([2.0**e * (1 + np.arange(1024) / 1024) for e in octaves])
    expected, _ = np.histogram(np.abs(values.astype(np.float64)), edges)
    found = observed(values).magnitudes()
    counted, _ = np.histogram(found.centres, edges, weights=found.counts)
    assert counted.sum() == values.size
    np.testing.assert_array_equal(counted, expected)


@given(finite, st.randoms(use_true_random=False), st.integers(1, 5))
def test_order_and_batching_make_no_difference(values: np.ndarray, random, parts: int) -> None:
    shuffled = values.copy()
    random.shuffle(shuffled)
    assert state(observed(*np.array_split(shuffled, parts))) == state(observed(values))


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_counted(bad: float) -> None:
    histogram = observed(np.float32([1, bad, 2, bad]), np.float32([3, bad]))
    assert histogram.nonfinite == 3
    assert histogram.count == 6


def test_largest_float_is_finite() -> None:
    top = np.finfo(np.float32).max
    histogram = observed(np.float32([top, 1]))
    assert histogram.nonfinite == 0
    assert histogram.magnitudes().centres[-1] == pytest.approx(top, rel=RELATIVE)


def test_minus_zero_is_zero() -> None:
    histogram = observed(np.float32([-0.0, 0.0, -0.0]))
    found = histogram.magnitudes()
    assert histogram.min == histogram.max == 0
    assert found.centres.tolist() == [0.0]
    assert found.counts.tolist() == [3]


def test_empty_arrays_change_nothing() -> None:
    histogram = observed(np.zeros((0, 3), np.float32))
    assert histogram.count == 0
    assert histogram.min == np.inf
    assert histogram.max == -np.inf


def test_views_are_read_as_they_are() -> None:
    values = np.random.default_rng(2).standard_normal((6, 8)).astype(np.float32)
    assert state(observed(values.T[::2])) == state(observed(values.T[::2].copy()))


@given(finite)
def test_sparse_and_range_restore_it(values: np.ndarray) -> None:
    histogram = observed(values)
    index, counts = histogram.sparse()
    assert (counts > 0).all()
    again = Histogram.restore(index, counts, histogram.min, histogram.max)
    assert state(again) == state(histogram)
    again.add(values)
    assert state(again) == state(observed(values, values))


@given(st.floats(-30, 30))
def test_power_of_two_moves_the_bins_and_not_the_counts(exponent: float) -> None:
    values = np.random.default_rng(3).uniform(1, 2, 500).astype(np.float32)
    scaled = observed(values * np.float32(2.0 ** round(exponent))).magnitudes()
    plain = observed(values).magnitudes()
    np.testing.assert_array_equal(scaled.counts, plain.counts)
    np.testing.assert_array_equal(scaled.centres, plain.centres * 2.0 ** round(exponent))


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
