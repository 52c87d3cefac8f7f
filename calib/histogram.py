"""A streaming observer: exact range, and a histogram that fits any float without growing.

The bins are float32's own: a magnitude's sign-less bit pattern without its lowest bits. Each
octave has 1,024 bins of equal width, so every bin is narrower than a thousandth of its value, and
all floats fit from the start. Nothing is rescaled when a larger value comes, counts are whole
numbers, and histograms add up: the result does not depend on the order of the images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DROPPED_BITS = 13
"""Of float32's 23 bits of significand, 10 are kept."""
_BINS = 1 << (31 - _DROPPED_BITS)
_FIRST_NONFINITE = 0xFF << (23 - _DROPPED_BITS)
_MAGNITUDE = np.int32(0x7FFFFFFF)


@dataclass(frozen=True)
class Magnitudes:
    """The distribution of ``|x|``: what the methods choose a threshold from.

    Attributes:
        centres: float64 ``[M]``, ascending, the middle of each bin that holds anything.
        counts: int64 ``[M]``, above 0.
        amax: the exact largest magnitude.
    """

    centres: NDArray[np.float64]
    counts: NDArray[np.int64]
    amax: float


class Histogram:
    """Range and magnitudes of one tensor over many images.

    Attributes:
        count: elements seen.
        min: smallest value; infinity before the first.
        max: largest value; minus infinity before the first.
        nonfinite: how many elements were NaN or infinite.
    """

    def __init__(self) -> None:
        self.count = 0
        self.min = np.inf
        self.max = -np.inf
        self.nonfinite = 0
        self._counts = np.zeros(_BINS, np.int64)

    def add(self, values: NDArray[np.float32]) -> None:
        """Count every element of a float32 array of any shape."""
        flat = np.ascontiguousarray(values, np.float32).reshape(-1)
        if not flat.size:
            return
        bits = (flat.view(np.int32) & _MAGNITUDE) >> _DROPPED_BITS
        found = np.bincount(bits, minlength=_BINS)
        self.nonfinite += int(found[_FIRST_NONFINITE:].sum())
        self._counts += found
        self.count += flat.size
        self.min = min(self.min, float(flat.min()))
        self.max = max(self.max, float(flat.max()))

    def magnitudes(self) -> Magnitudes:
        """The distribution of ``|x|`` so far."""
        index, counts = self.sparse()
        edges = index.astype(np.int64) << _DROPPED_BITS
        low = edges.astype(np.int32).view(np.float32).astype(np.float64)
        width = (edges + (1 << _DROPPED_BITS)).astype(np.int32).view(np.float32) - low
        amax = max(abs(self.min), abs(self.max))
        centres = np.minimum(low + width / 2, amax)
        # The lowest bin holds zero and subnormals; ReLU's zeros are exactly zero.
        centres[index == 0] = 0.0
        return Magnitudes(centres, counts, amax)

    def sparse(self) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Indices and counts of the bins that hold anything."""
        index = np.flatnonzero(self._counts)
        return index.astype(np.int32), self._counts[index]

    @classmethod
    def restore(
        cls, index: NDArray[np.int32], counts: NDArray[np.int64], low: float, high: float
    ) -> Histogram:
        """The histogram that `sparse` and the range came from."""
        made = cls()
        made._counts[index] = counts
        made.count = int(counts.sum())
        made.min, made.max = low, high
        return made
