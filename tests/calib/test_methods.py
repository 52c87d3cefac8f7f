"""Threshold methods against slow float64 references that see the values themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vggdeploy.calib import methods
from vggdeploy.calib.histogram import Histogram, Magnitudes

# A bin is this wide at most, as a share of any value in it (and for subnormals, whose bins have
# equal widths, in absolute terms). Where in its bin a value lies is not known.
BIN, SUBNORMAL = 1 / 32, 2.0**-131

LEVELS = (127, 255)

arrays = hnp.arrays(
    np.float32,
    st.integers(2, 200),
    elements=st.floats(-(2.0**100), 2.0**100, width=32),
).filter(lambda values: np.abs(values).max() > 1e-30)


def observed(values: np.ndarray) -> Histogram:
    histogram = Histogram()
    histogram.add(np.asarray(values, np.float32))
    return histogram


def seen(values: np.ndarray) -> Magnitudes:
    return observed(values).magnitudes()


def true_mse(values: np.ndarray, threshold: float, levels: int) -> float:
    """Mean squared error of quantizing `values` themselves, straight from the definition."""
    x = np.abs(np.asarray(values, np.float64))
    scale = threshold / levels
    return float(np.mean((np.minimum(np.rint(x / scale), levels) * scale - x) ** 2))


def bell(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(20_000).astype(np.float32)


SAMPLES = {
    "normal": bell(0),
    "relu": np.maximum(bell(1), 0),
    "laplace": np.random.default_rng(2).laplace(0, 3, 20_000).astype(np.float32),
    "lognormal": np.random.default_rng(3).lognormal(0, 1.5, 20_000).astype(np.float32),
    "student": np.random.default_rng(4).standard_t(2, 20_000).astype(np.float32),
    "uniform": np.random.default_rng(5).uniform(-1, 1, 20_000).astype(np.float32),
    "outlier": np.append(bell(6), np.float32(60)),
    "tiny": bell(7) * np.float32(1e-33),
    "huge": bell(8) * np.float32(1e34),
}
"""Smooth, many-valued, heavy-tailed, very small and very large."""


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("name", methods.METHODS)
@given(values=arrays)
@settings(max_examples=15)
def test_threshold_is_above_zero_and_at_most_the_largest(
    name: str, levels: int, values: np.ndarray
) -> None:
    threshold = methods.METHODS[name](seen(values), levels)
    assert 0 < threshold <= float(np.abs(values).max())


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("name", methods.METHODS)
def test_subnormal_tensors_have_a_threshold(name: str, levels: int) -> None:
    values = np.float32([0, 1e-42, 3e-42])
    assert 0 < methods.METHODS[name](seen(values), levels) <= values.max()


@pytest.mark.parametrize("name", methods.METHODS)
def test_powers_of_two_scale_the_threshold_exactly(name: str) -> None:
    plain = methods.METHODS[name](seen(bell(9)), 127)
    for exponent in (-60, -1, 40):
        scaled = seen(bell(9) * np.float32(2.0**exponent))
        assert methods.METHODS[name](scaled, 127) == plain * 2.0**exponent


@given(arrays)
def test_minmax_is_the_largest_magnitude(values: np.ndarray) -> None:
    assert methods.minmax(seen(values), 127) == float(np.abs(values).max())


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("name", SAMPLES)
def test_mse_is_near_the_best_of_a_fine_grid(name: str, levels: int) -> None:
    values = SAMPLES[name]
    amax = float(np.abs(values).max())
    best = min(true_mse(values, amax * ratio, levels) for ratio in np.arange(1, 801) / 800)
    # The search sees bins, not values, in steps of 0.6% of the threshold near the best one. Where
    # the error is smooth in the threshold, as it is for many-valued tensors, that costs well under
    # a percent; the grid below it has ripples of two or three.
    assert true_mse(values, methods.mse(seen(values), levels), levels) <= 1.03 * best


@pytest.mark.parametrize("levels", LEVELS)
@given(values=arrays)
@settings(max_examples=25)
def test_mse_is_no_worse_than_any_ratio_of_its_grid(levels: int, values: np.ndarray) -> None:
    found = seen(values)
    ours = found.error(methods.mse(found, levels), levels)
    for ratio in np.geomspace(1 / 512, 1, 64):
        # The last bits of a ratio are another's.
        assert ours <= found.error(float(ratio) * found.amax, levels) * (1 + 1e-9)


@pytest.mark.parametrize("name", methods.METHODS)
def test_a_largest_value_that_was_not_counted_is_all_there_is(name: str) -> None:
    """All zero at the positions that are counted of a large map."""
    values = np.zeros((1, 1, 224, 224), np.float32)
    values[0, 0, 1, 1] = 3
    assert 2.9 < methods.METHODS[name](seen(values), 255) <= 3


@pytest.mark.parametrize("name", methods.METHODS)
def test_weights_are_as_good_as_repetitions(name: str) -> None:
    rng = np.random.default_rng(10)
    values = rng.laplace(0, [[[[1.0]], [[5.0]]]], (1, 2, 60, 60)).astype(np.float32)
    histogram, again = Histogram(2), Histogram()
    histogram.add(values)
    again.add(values[:, [0, 0, 0, 1]])
    weighted = histogram.magnitudes(weights=np.array([3.0, 1.0]))
    expected = methods.METHODS[name](again.magnitudes(), 255)
    assert methods.METHODS[name](weighted, 255) == pytest.approx(expected, rel=1e-12)


def test_auto_is_mse() -> None:
    """What sets it apart is the weight that a channel's elements have: see the table's tests."""
    assert methods.METHODS["auto"] is methods.mse
    assert methods.DEFAULT == "auto"


def test_mse_clips_one_outlier_and_minmax_does_not() -> None:
    # One value of 60 among 20,000 costs (60 - t)^2 / 20,001 when clipped at t, and rounding costs
    # (t / 127)^2 / 12: least at t = 54.4.
    assert methods.mse(seen(SAMPLES["outlier"]), 127) == pytest.approx(54.4, rel=0.01)
    assert methods.minmax(seen(SAMPLES["outlier"]), 127) == 60


@given(arrays, st.floats(0.5, 100))
def test_percentile_is_numpys(values: np.ndarray, share: float) -> None:
    x = np.sort(np.abs(values.astype(np.float64)))
    histogram = observed(values)
    x[x < histogram.edges()[0]] = 0  # what counts as zero beside the largest
    found = methods.percentile(histogram.magnitudes(), 127, share)
    # Where the share is a whole number of elements, either side of it is right.
    low, high = (
        np.percentile(x, min(max(share + off, 0), 100), method="inverted_cdf")
        for off in (-1e-6, 1e-6)
    )
    if high == 0:  # a threshold is above zero: the smallest magnitude that is
        low = high = x[x > 0].min()
    elif low == 0:
        low = min(x[x > 0].min(), high)
    assert low * (1 - BIN) - SUBNORMAL <= found <= high * (1 + BIN) + SUBNORMAL


def test_percentile_of_mostly_zeros_is_the_smallest_that_is_not() -> None:
    values = np.zeros(1_000_000, np.float32)
    values[:3] = 2, 3, 4
    # The beginning of the bin that holds it.
    assert methods.percentile(seen(values), 127) == 2


def test_default_percentile_clips_one_in_a_hundred_thousand() -> None:
    """Even values are where even bins have them, but for the ends of the last."""
    values = np.arange(1, 1_000_001, dtype=np.float32)
    assert methods.percentile(seen(values), 127) == pytest.approx(999_990, abs=2)


def plain_divergence(bins: list[float], end: int, groups: int) -> float:
    """KL(P || Q) with loops and lists, from Migacz's slides."""
    p = bins[:end]
    q = [0.0] * end
    for group in range(groups):
        members = [i for i in range(end) if i * groups // end == group]
        filled = [i for i in members if bins[i] > 0]
        for i in filled:
            q[i] = sum(bins[j] for j in members) / len(filled)
    p[-1] += sum(bins[end:])
    if any(a > 0 and b == 0 for a, b in zip(p, q, strict=True)) or sum(p) == 0:
        return math.inf
    terms = [
        a / sum(p) * math.log((a / sum(p)) / (b / sum(q))) for a, b in zip(p, q, strict=True) if a
    ]
    return math.fsum(terms)


@pytest.mark.parametrize("name", ["normal", "relu", "laplace", "student", "outlier"])
def test_entropy_is_the_least_divergence_of_a_plain_loop(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Fewer bins and levels than in earnest, so that the loops take a second.
    width, levels = 96, 15
    monkeypatch.setattr(methods, "ENTROPY_BINS", width)
    found = seen(SAMPLES[name][:3000])
    bins = [0.0] * width
    for low, high, count in zip(found.low, found.high, found.counts, strict=True):
        for place in range(width):
            begin, end = (at * found.amax / width for at in (place, place + 1))
            inside = min(high, end) - max(low, begin)
            bins[place] += count * max(0.0, inside) / (high - low)
    bins[0] = bins[1]
    every = {end: plain_divergence(bins, end, levels + 1) for end in range(levels + 1, width + 1)}
    end = round(methods.entropy(found, levels) / found.amax * width)
    # Neighbours can be equal but for the last bits of a sum.
    assert every[end] <= min(every.values()) + 1e-12
    assert methods.entropy(found, levels) == pytest.approx(end / width * found.amax, rel=1e-15)


def test_entropy_clips_an_outlier() -> None:
    assert methods.entropy(seen(SAMPLES["outlier"]), 127) < 10
