"""Channels rescaled between layers, so that small ones do not drown in a large one's steps.

A tensor has one scale for all its channels, and weights one for each output. Multiplying a channel
behind a ReLU by a factor, and dividing the weights that read it, changes nothing that the network
computes and moves rounding error from the activations to the weights (Meller et al., "Same, Same
But Different", 2019; Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias
Correction", 2019), where second-order rounding makes good for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vggdeploy.calib.histogram import error_integral, parts
from vggdeploy.calib.methods import mse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from vggdeploy.calib.histogram import Histogram

EXPONENTS = (0.0, 0.125, 0.25)
"""Shares, in octaves, of the way from one scale for all channels to a scale for each. Activations
alone would go to 0.5 and beyond; the weights that read them lose by it, and a quarter was never far
from the best on photographs and on digits. Full ways fail on other images: the largest value of a
channel that few images excite is not known."""

PRODUCTS = (*EXPONENTS, 0.375, 0.5)
"""Where products alone read the tensor: their weights have more inputs than there are samples, and
rounding makes good for nearly all that they lose."""

_RATIOS = np.geomspace(1, 0.25, 12)
"""Of a channel's threshold to its largest value; that itself first, where none is better."""

LARGEST = 1024.0
"""A channel that is hardly ever excited would have its noise weights blown up for nothing."""


def factors(
    histogram: Histogram,
    gains: NDArray[np.float64],
    levels: int,
    exponents: Sequence[float] = EXPONENTS,
) -> NDArray[np.float64] | None:
    """What to multiply each channel by, ``[channels]``, 1 or more; None where nothing pays.

    A channel's factor is the ratio of the largest channel's threshold to its own, to a power below
    1. The power is the one that loses least at the next layer's output on the half of the images
    that factors and threshold were not taken from, added up over both halves.

    Args:
        histogram: what was seen.
        gains: see `channels.Link.gains`.
        levels: the largest quantized value.
        exponents: the powers to choose from, 0 first.
    """
    if histogram.channels == 1 or not all(histogram.amax(half).any() for half in (0, 1)):
        return None
    own = [_thresholds(histogram, levels, half) for half in (0, 1)]
    losses = [
        sum(_loss(histogram, gains, levels, _powers(own[half], exponent), half) for half in (0, 1))
        for exponent in exponents
    ]
    best = exponents[int(np.argmin(losses))]
    return _powers(_thresholds(histogram, levels, None), best) if best else None


def _loss(
    histogram: Histogram,
    gains: NDArray[np.float64],
    levels: int,
    scaled: NDArray[np.float64],
    half: int,
) -> float:
    """The error on the other half of factors and a threshold that were taken from `half`."""
    weights = gains / scaled**2
    threshold = mse(histogram.magnitudes(scaled, weights, half), levels)
    return histogram.magnitudes(scaled, weights, 1 - half).error(threshold, levels)


def _powers(thresholds: NDArray[np.float64], exponent: float) -> NDArray[np.float64]:
    found = np.ones(len(thresholds))
    alive = thresholds > 0
    found[alive] = (thresholds.max() / thresholds[alive]) ** exponent
    return np.minimum(found, LARGEST)


def _thresholds(histogram: Histogram, levels: int, half: int | None) -> NDArray[np.float64]:
    """The threshold of each channel that loses least of that channel; 0 where it is dead.

    Of a vector's channel, with one value an image, the root mean square of those that are not zero
    stands for it: from so few values it is known far better than how large they get.
    """
    counts, amax, edges = histogram.counts(half)[:, 1:], histogram.amax(half), histogram.edges()
    if histogram.count <= histogram.images * histogram.channels:
        middle = (edges[1:] + edges[:-1]) / 2
        size: NDArray[np.float64] = np.sqrt(counts @ middle**2 / np.maximum(counts.sum(1), 1))
        return np.where(amax > 0, size, 0.0)
    found = np.zeros(len(amax))
    alive = np.flatnonzero(amax > 0)
    for part in parts(len(alive)):
        some = alive[part]
        found[some] = _least(counts[some].astype(np.float64), edges, amax[some], levels)
    return found


def _least(
    counts: NDArray[np.float64], edges: NDArray[np.float64], amax: NDArray[np.float64], levels: int
) -> NDArray[np.float64]:
    """The best of some ratios to each channel's largest value, as a threshold."""
    best: NDArray[np.float64] = amax.copy()
    least = np.full(len(amax), np.inf)
    # A channel's last bin ends where the channel does; those beyond hold nothing.
    edges = np.minimum(edges, amax[:, None])
    width = np.diff(edges, axis=1)
    density = np.divide(counts, width, out=np.zeros_like(width), where=width > 0)
    for ratio in _RATIOS:
        step = amax * ratio / levels
        whole = np.diff(error_integral(edges / step[:, None], levels), axis=1)
        error = np.einsum("ij,ij->i", density, whole) * step**3
        better = error < least
        best[better] = amax[better] * ratio
        least[better] = error[better]
    return best
