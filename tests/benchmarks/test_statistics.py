"""Summaries and the reasons not to trust them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vggdeploy.benchmarks.statistics import instability, summarize

samples = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=300)


@given(samples)
def test_percentiles_are_samples_that_so_many_do_not_exceed(values: list[float]) -> None:
    found = summarize(values)
    ordered = sorted(values)
    for percent, value in ((50, found.p50), (90, found.p90), (99, found.p99)):
        assert value in values
        # The smallest sample at or above the linear position between the first and the last.
        position = percent / 100 * (len(values) - 1)
        assert value == ordered[min(int(np.ceil(position - 1e-9)), len(values) - 1)]
    assert found.min == ordered[0]
    assert found.max == ordered[-1]
    # numpy sums in pairs, fsum exactly: a few units of the last of 53 bits.
    assert found.mean == pytest.approx(sum(values) / len(values), rel=1e-12)
    assert found.min <= found.p50 <= found.p90 <= found.p99 <= found.max


def test_known_figures() -> None:
    found = summarize([float(v) for v in range(100, 0, -1)])
    assert (found.p50, found.p90, found.p99) == (51, 91, 100)
    assert (found.mean, found.min, found.max) == (50.5, 1, 100)


def test_one_sample_is_every_figure() -> None:
    found = summarize([0.25])
    assert {found.p50, found.p90, found.p99, found.mean, found.min, found.max} == {0.25}


def test_steady_samples_are_stable() -> None:
    rng = np.random.default_rng(0)
    assert instability(list(1 + 0.02 * rng.standard_normal(300))) == []


@pytest.mark.parametrize("count", [1, 2, 29])
def test_few_samples(count: int) -> None:
    (reason,) = instability([1.0] * count)
    assert reason.startswith(f"{count} samples are few")
    assert "--seconds" in reason


def test_thirty_samples_are_enough() -> None:
    assert instability([1.0] * 30) == []


@pytest.mark.parametrize("slow", [0, 1, 2])
def test_a_slow_third_is_drift(slow: int) -> None:
    values = [1.0] * 90
    values[slow * 30 : slow * 30 + 30] = [1.2] * 30
    (reason,) = instability(values)
    assert "median of 1.2 s and the whole 1 s" in reason


def test_a_tenth_more_is_no_drift() -> None:
    assert instability([1.0] * 60 + [1.09] * 30) == []


def test_spread_is_told_with_its_figure() -> None:
    # Every seventh query is slow: in each third alike, so it is no drift.
    values = [1.5 if index % 7 == 0 else 1.0 for index in range(210)]
    (reason,) = instability(values)
    assert "1.50 times the median" in reason


def test_both_reasons_are_given() -> None:
    reasons = instability([1.0] * 60 + [2.0] * 30)
    assert len(reasons) == 2
