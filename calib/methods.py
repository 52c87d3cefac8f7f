"""How a clipping threshold is chosen from the distribution of a tensor's magnitudes.

Pure functions of `Magnitudes` and `levels`, the largest quantized value (127 for int8, 255 for
uint8); ``scale = threshold / levels``. A threshold is above 0 and at most the largest magnitude.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from vggdeploy.calib.histogram import Magnitudes

    Method = Callable[[Magnitudes, int], float]

PERCENTILE = 99.999
"""On VGG16 and photographs this share loses a few tenths of a decibel to `mse`; 99.99 loses 4 dB,
since what it clips is what the next layer looks for."""

ENTROPY_BINS = 2048
"""Linear bins up to the largest magnitude: TensorRT's own number (Migacz, "8-bit Inference with
TensorRT", GTC 2017)."""


def minmax(magnitudes: Magnitudes, levels: int) -> float:
    """The largest magnitude: nothing is clipped (Jacob et al., "Quantization and Training of
    Neural Networks for Efficient Integer-Arithmetic-Only Inference", 2018)."""
    return magnitudes.amax


def percentile(magnitudes: Magnitudes, levels: int, share: float = PERCENTILE) -> float:
    """The magnitude that `share` percent of all elements do not exceed (Wu et al., "Integer
    Quantization for Deep Learning Inference", 2020, section 3.4)."""
    below = np.concatenate(([0.0], np.cumsum(magnitudes.counts))) + magnitudes.zeros
    # float64 holds every count exactly, but a share of one may fall a hair above a whole number.
    wanted = below[-1] * (share / 100) * (1 - 1e-12)
    index = max(int(np.searchsorted(below, wanted)) - 1, 0)
    low, high = magnitudes.low[index], magnitudes.high[index]
    part = (wanted - below[index]) / magnitudes.counts[index]
    return float(low + min(max(part, 0.0), 1.0) * (high - low)) or float(high)


def mse(magnitudes: Magnitudes, levels: int) -> float:
    """The threshold with the smallest mean squared error of rounding and clipping (Sung, Shin and
    Hwang, "Resiliency of Deep Neural Networks under Quantization", 2015).

    Searched on a grid of ratios to the largest magnitude, twice: 64 from 1/512 to 1, then 33
    between the neighbours of the best.
    """
    grid = np.geomspace(1 / 512, 1, 64)
    best = int(np.argmin([magnitudes.error(ratio * magnitudes.amax, levels) for ratio in grid]))
    fine = np.geomspace(grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)], 33)
    errors = [magnitudes.error(ratio * magnitudes.amax, levels) for ratio in fine]
    return float(min(fine[int(np.argmin(errors))], 1.0) * magnitudes.amax)


def entropy(magnitudes: Magnitudes, levels: int) -> float:
    """The threshold whose quantized distribution diverges least from the original (Migacz,
    "8-bit Inference with TensorRT", GTC 2017).

    For each number of linear bins from ``levels + 1`` on, the bins below are P, with everything
    above added to the last, and Q is the same bins merged into ``levels + 1`` groups and spread
    again over those that were not empty; the smallest KL(P || Q) wins. Zeros are exact at any
    scale, so the first bin takes its neighbour's count, as NVIDIA's pytorch-quantization has it.
    """
    groups = levels + 1
    at = np.linspace(0, magnitudes.amax, ENTROPY_BINS + 1)
    edges = np.column_stack((magnitudes.low, magnitudes.high)).reshape(-1)
    running = np.cumsum(magnitudes.counts)
    below = np.column_stack((running - magnitudes.counts, running)).reshape(-1)
    bins = np.diff(np.interp(at, edges, below, left=0.0))
    bins[0] = bins[1]
    above = bins.sum() - np.cumsum(bins)
    best, best_end = np.inf, ENTROPY_BINS
    for end in range(groups, ENTROPY_BINS + 1):
        divergence = _divergence(bins[:end], above[end - 1], groups)
        if divergence < best:
            best, best_end = divergence, end
    return float((best_end / ENTROPY_BINS) * magnitudes.amax)


def _divergence(bins: NDArray[np.float64], above: float, groups: int) -> float:
    """KL(P || Q) of the clipped and the merged distribution; infinite where Q misses P."""
    group = np.arange(len(bins)) * groups // len(bins)
    filled = bins > 0
    totals = np.bincount(group, weights=bins, minlength=groups)
    sharing = np.bincount(group, weights=filled, minlength=groups)
    q = np.where(filled, totals[group] / np.maximum(sharing[group], 1), 0.0)
    p = bins.copy()
    p[-1] += above
    used = p > 0
    if not used.any() or (q[used] == 0).any():
        return float("inf")
    p, q = p[used] / p.sum(), q[used] / q.sum()
    return float(p @ np.log(p / q))


METHODS: dict[str, Method] = {
    "minmax": minmax,
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
    "auto": mse,
}
"""What ``--method`` takes. ``auto`` is `mse` of magnitudes that are weighted by what an error of
each channel does to the next layer's output."""

DEFAULT = "auto"
"""The best of these on VGG16 and photographs, by signal to noise at the pooled features."""
