"""Block lengths and inflation, against series whose autocorrelations are known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from vggdeploy.benchmarks import dependence

if TYPE_CHECKING:
    from numpy.typing import NDArray


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_of_an_autoregressive_series(autoregressive: Any, rho: float) -> None:
    rng = np.random.default_rng(1)
    found = [autoregressive(rng, 1000, rho) for _ in range(20)]
    length = np.mean([dependence.block_length(series) for series in found])
    inflation = np.mean([dependence.inflation(series) for series in found])
    if not rho:
        assert length < 4
        assert inflation < 1.2
        return
    # The best for the mean of an AR(1), by Politis and White's formula with its true spectrum:
    # (1.5 * (2 r / (1 - r**2))**2 * n)**(1/3); the variance of its mean: (1 + r) / (1 - r).
    best = (1.5 * (2 * rho / (1 - rho**2)) ** 2 * 1000) ** (1 / 3)
    assert length == pytest.approx(best, rel=0.35)
    assert inflation == pytest.approx((1 + rho) / (1 - rho), rel=0.3)


def test_of_blocks_that_repeat() -> None:
    """Of values that come eight at a time an eighth counts; by the first autocorrelation, 7/8, it
    would be a fifteenth."""
    series = np.repeat(np.random.default_rng(2).standard_normal(500), 8)
    assert 8 * 0.85 < dependence.inflation(series) < 15 * 1.15


def test_what_swings_is_worth_no_more_than_it_is() -> None:
    assert dependence.inflation(np.tile([1.0, 2.0], 500)) == 1.0


@pytest.mark.parametrize("series", [np.ones(100), np.arange(5.0), np.array([])])
def test_what_says_nothing(series: NDArray[np.float64]) -> None:
    assert dependence.block_length(series) == 1
    assert dependence.inflation(series) == 1.0


def test_a_series_whose_last_lags_are_large_has_an_end() -> None:
    series = np.linspace(0, 1, 400)
    assert 1 < dependence.block_length(series) <= 60
    assert dependence.inflation(series) > 10
