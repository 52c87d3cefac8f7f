"""How samples in time depend on the ones before them, and what that takes off their worth.

A machine that is warm stays warm, and a query that had to wait has left a queue behind it: slow
queries come together, and a hundred of them say less than a hundred that each stood alone. Both
figures here are of the spectrum at frequency 0, estimated as D. N. Politis and H. White do it
("Automatic block-length selection for the dependent bootstrap", Econometric Reviews 23, 2004, with
the correction of 2009).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

FEWEST = 12
"""Of fewer values autocorrelations say nothing."""


class _Spectrum(NamedTuple):
    """Of a series: its variance, the spectrum at 0, that spectrum's curvature there, and the first
    autocorrelation."""

    variance: float
    level: float
    curvature: float
    first: float


def block_length(series: NDArray[np.float64]) -> int:
    """The block length that serves the bootstrap of this series' mean best; 1 where successive
    values are not correlated.

    ``b = (2 g**2 / d * n) ** (1/3)`` with the curvature ``g``, ``d = 4/3 s**2`` and the spectrum
    ``s`` (Politis and White), a third of the series at most.
    """
    found = _spectrum(series)
    if found is None or found.level <= 0:
        return 1
    count = len(series)
    length: float = math.pow(1.5 * found.curvature**2 / found.level**2 * count, 1 / 3)
    limit = math.ceil(min(3 * math.sqrt(count), count / 3))
    return max(1, min(limit, math.ceil(length)))


def inflation(series: NDArray[np.float64]) -> float:
    """By how many times the variance of this series' mean is that of as many independent values:
    ``1 + 2 * sum(rho_k)`` over its autocorrelations, 1 at least.

    So ``n`` values are worth ``n / inflation`` independent ones (H. J. Thiebaux and F. W. Zwiers,
    "The interpretation and estimation of effective sample size", Journal of Climate and Applied
    Meteorology 23, 1984). Of a short series the later autocorrelations drown in chance; so it is
    not less than what the first one alone would have, ``(1 + r) / (1 - r)``, were the series
    autoregressive, and that one is estimated too low by ``(1 + 4 r) / n`` (F. H. C. Marriott and
    J. A. Pope, "Bias in the estimation of autocorrelations", Biometrika 41, 1954).
    """
    found = _spectrum(series)
    if found is None:
        return 1.0
    count = len(series)
    first = min(found.first + (1 + 4 * found.first) / count, 1 - 2 / count)
    return max(1.0, found.level / found.variance, (1 + first) / (1 - first))


def _spectrum(series: NDArray[np.float64]) -> _Spectrum | None:
    """The spectrum at 0 by a flat-top window; None where no autocorrelation is seen.

    Autocorrelations count up to the lag `last` after which a run of them is within what chance
    gives, and the window is flat up to it and falls to nothing at twice that.
    """
    count = len(series)
    centred = series - series.mean() if count else series
    variance = float(centred @ centred) / count if count else 0.0
    if count < FEWEST or not variance:
        return None
    run = max(5, math.ceil(math.log10(count)))
    most = min(count - 1, math.ceil(math.sqrt(count)) + run)
    chance = 2 * math.sqrt(math.log10(count) / count)
    covariances: list[float] = []
    last = 0
    # No more lags than are needed: of a long series each costs a pass over it.
    while len(covariances) < most and len(covariances) < max(last + run, 2 * last):
        lag = len(covariances) + 1
        covariances.append(float(centred[: count - lag] @ centred[lag:]) / count)
        if lag <= last + run and abs(covariances[-1]) > chance * variance:
            last = lag
    if not last:
        return None
    lags = np.arange(1, min(2 * last, most) + 1)
    window = np.minimum(1.0, 2 * (1 - lags / (2 * last)))
    weighed = window * np.asarray(covariances[: len(lags)])
    return _Spectrum(
        variance,
        variance + 2 * float(weighed.sum()),
        2 * float(lags @ weighed),
        covariances[0] / variance,
    )
