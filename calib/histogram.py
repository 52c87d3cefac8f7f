"""A streaming observer: exact range, and counts of magnitudes, channel by channel.

The bins are float32's own: a magnitude's sign-less bit pattern without its lowest bits, 32 bins of
equal width an octave, over the 24 octaves below the largest magnitude. Counts are whole numbers,
histograms add up, and when a larger value comes the window moves by whole octaves: the result does
not depend on the order of the images. Every other image is counted apart, so that what one half
suggests can be tried on the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vggdeploy.errors import CalibrationError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_OCTAVE = 32
"""Bins an octave. Within a bin the density is taken as even: see `Magnitudes.error`."""
_OCTAVES = 24
"""float32's significand: what is smaller than the largest magnitude by more counts as zero."""
_BINS = _OCTAVE * _OCTAVES
_SHIFT = 23 - 5
_MAGNITUDE = np.int32(0x7FFFFFFF)
_PART = 64

MOST = np.iinfo(np.uint32).max
"""Values of a channel that can be counted: of maps about a million images."""

COUNTED = 1 << 12
"""Positions of a channel that are counted in one image, about: a map of 224x224 is counted at
every fourth row and column, in turn from image to image. Its range is taken from all."""


@dataclass(frozen=True)
class Magnitudes:
    """The distribution of ``|x|``: what the methods choose a threshold from.

    Attributes:
        low: float64 ``[M]``, ascending, where each bin that holds anything begins.
        high: float64 ``[M]``, where it ends.
        counts: float64 ``[M]``, above 0; the weight of each bin where channels are weighted.
        zeros: the count of what is zero, or nothing beside the largest.
        amax: the exact largest magnitude.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    counts: NDArray[np.float64]
    zeros: float
    amax: float

    def error(self, threshold: float, levels: int) -> float:
        """Summed squared error of rounding to ``threshold / levels`` and clipping at `threshold`.

        The exact integral over bins of even density, so that bins wider than a step are no matter.
        """
        step = threshold / levels
        whole = error_integral(self.high / step, levels) - error_integral(self.low / step, levels)
        return float(self.counts @ (whole / (self.high - self.low))) * step**3


def error_integral(x: NDArray[np.float64], levels: int) -> NDArray[np.float64]:
    """The integral from 0 to `x`, in steps, of the squared error of rounding and clipping.

    Each whole step contributes 1/12; from n to x, the nearest whole number being n, it is
    (x - n)^3 / 3, which is negative below n.
    """
    nearest = np.minimum(np.rint(x), levels)
    off = x - nearest
    # Multiplied out: numpy's power takes ten times as long, and this is what calibration does most.
    integral: NDArray[np.float64] = nearest / 12 + off * off * off / 3
    return integral


class Histogram:
    """Range and magnitudes of one tensor over many images.

    Attributes:
        channels: along the tensor's axis 1; 1 where they are not told apart.
        images: how many were added.
        count: elements counted.
        min: smallest value; infinity before the first.
        max: largest value; minus infinity before the first.
        nonfinite: how many elements were NaN or infinite.
    """

    SAVED = ("bins", "counts", "amax", "range", "state")
    """The arrays of `save`."""

    def __init__(self, channels: int = 1) -> None:
        self.channels = channels
        self.min = np.inf
        self.max = -np.inf
        self.nonfinite = 0
        self.images = 0
        # The octave that the window ends with; at first that of the smallest magnitudes there are.
        self._top = _OCTAVES
        # [half, channel, bin]; bin 0 is zero, and what is too small for the window.
        self._counts = np.zeros((2, channels, 1 + _BINS), np.uint32)
        self._amax = np.zeros((2, channels), np.float32)
        self._most = 0

    @property
    def count(self) -> int:
        return int(self._counts.sum())

    def add(self, values: NDArray[np.float32]) -> None:
        """Count one image's tensor: float32 ``[1, channels, H, W]`` or ``[1, channels]``, or of any
        shape where the channels are not told apart.

        Raises:
            CalibrationError: when there are too many values to count.
        """
        image, self.images = self.images, self.images + 1
        if not values.size:
            return
        half = image % 2
        whole = np.ascontiguousarray(values, np.float32).reshape(self.channels, -1)
        high, low = whole.max(1), whole.min(1)
        amax = np.maximum(high, -low)
        if not np.isfinite(amax).all():
            self.nonfinite += int(np.count_nonzero(~np.isfinite(whole)))
            return
        self.min, self.max = min(self.min, float(low.min())), max(self.max, float(high.max()))
        self._amax[half] = np.maximum(self._amax[half], amax)
        self._reach(int(_bits(amax).max()) // _OCTAVE + 1)
        part = np.ascontiguousarray(counted(values, image)).reshape(self.channels, -1)
        self._most += part.shape[1]
        if self._most > MOST:
            raise CalibrationError(
                "there are too many images to count",
                got=f"more than {MOST} values of a channel",
                expected="some hundreds of images",
                fix="give fewer with --calib-images",
            )
        bins = _bits(part) - ((self._top - _OCTAVES) * _OCTAVE - 1)
        np.maximum(bins, 0, out=bins)
        if bins.shape[1] == 1:
            self._counts[half, np.arange(self.channels), bins[:, 0]] += 1
            return
        for channel, row in enumerate(bins):
            self._counts[half, channel] += np.bincount(row, minlength=1 + _BINS).astype(np.uint32)

    def _reach(self, top: int) -> None:
        """Move the window up so that it ends with octave `top`."""
        rise = min((top - self._top) * _OCTAVE, _BINS)
        if rise <= 0:
            return
        counts = self._counts
        counts[..., 0] += counts[..., 1 : 1 + rise].sum(-1)
        counts[..., 1 : 1 + _BINS - rise] = counts[..., 1 + rise :].copy()
        counts[..., 1 + _BINS - rise :] = 0
        self._top = top

    def amax(self, half: int | None = None) -> NDArray[np.float64]:
        """The largest magnitude of each channel, ``[channels]``, of one half of the images or
        of all."""
        found: NDArray[np.float32] = self._amax.max(0) if half is None else self._amax[half]
        return found.astype(np.float64)

    def edges(self) -> NDArray[np.float64]:
        """Where the bins above zero begin, and where the last ends: ``[bins + 1]``."""
        first = (self._top - _OCTAVES) * _OCTAVE
        index = np.arange(first, first + _BINS + 1, dtype=np.int32)
        found = (index << _SHIFT).view(np.float32).astype(np.float64)
        # The last bin there is ends where float32 has its infinity.
        return np.minimum(found, 2.0**128)

    def counts(self, half: int | None = None) -> NDArray[np.int64]:
        """``[channels, 1 + bins]``, of one half of the images or of all; first that of zero."""
        found = self._counts.sum(0) if half is None else self._counts[half]
        whole: NDArray[np.int64] = found.astype(np.int64)
        return whole

    def magnitudes(
        self,
        factors: NDArray[np.float64] | None = None,
        weights: NDArray[np.float64] | None = None,
        half: int | None = None,
    ) -> Magnitudes:
        """The distribution of ``|x|``.

        Args:
            factors: what each channel is multiplied by first, ``[channels]``.
            weights: what an element of each channel counts for, ``[channels]``.
            half: 0 or 1 for every other image; None for all.
        """
        counts, own, amax = self.counts(half), self.edges(), self.amax(half)
        weight = np.ones(self.channels) if weights is None else weights
        if factors is None:
            return _magnitudes(weight @ counts, own, float(amax.max(initial=0)))
        largest = float((amax * factors).max(initial=0))
        # Scaled bins fall between the tensor's own, and are shared out among them.
        edges = own * (largest / own[-1])
        below = np.zeros(len(edges))
        for part in parts(self.channels):
            at = edges / factors[part, None]
            below += weight[part] @ self._below(counts[part], at, amax[part])
        shared = np.concatenate(([weight @ counts.sum(1) - below[-1] + below[0]], np.diff(below)))
        return _magnitudes(shared, edges, largest)

    def _below(
        self, counts: NDArray[np.int64], at: NDArray[np.float64], amax: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """How much of each channel lies above zero and below some places: ``[channels, places]``.

        What a bin holds is spread evenly over it, so its share is read off the lowest bits of a
        place as float32, as the bin's number is off the highest.
        """
        place = np.minimum(at, amax[:, None]).astype(np.float32).view(np.int32)
        bins = (place >> _SHIFT) - (self._top - _OCTAVES) * _OCTAVE
        share = (place & ((1 << _SHIFT) - 1)) * 2.0**-_SHIFT
        share[bins < 0] = 0
        # One bin more for the places where a channel ends with the window.
        np.clip(bins, 0, _BINS, out=bins)
        bins += np.arange(len(counts), dtype=np.int32)[:, None] * (_BINS + 1)
        held = np.zeros((len(counts), _BINS + 1))
        held[:, :-1] = counts[:, 1:]
        running = np.cumsum(held, axis=1) - held
        found = running.reshape(-1)[bins] + share * held.reshape(-1)[bins]
        # The bin that a channel's largest value lies in ends there.
        whole = held.sum(1)[:, None]
        below: NDArray[np.float64] = np.where(at >= amax[:, None], whole, found)
        return below

    def save(self) -> dict[str, NDArray[np.generic]]:
        """Arrays that `restore` takes back; only the bins that hold anything."""
        index = np.flatnonzero(self._counts)
        return {
            "bins": index.astype(np.int32),
            "counts": self._counts.reshape(-1)[index],
            "amax": self._amax,
            "range": np.array([self.min, self.max]),
            "state": np.array([self.channels, self.images, self._top]),
        }

    @classmethod
    def restore(cls, saved: dict[str, NDArray[np.generic]]) -> Histogram:
        """The histogram that `save` wrote."""
        channels, images, top = (int(value) for value in saved["state"])
        made = cls(channels)
        made._counts.reshape(-1)[saved["bins"].astype(np.int64)] = saved["counts"]
        made._amax[:] = saved["amax"]
        made.min, made.max = (float(value) for value in saved["range"])
        made.images, made._top = images, top
        return made


def parts(channels: int) -> list[slice]:
    """Channels to work on at once, few enough that the arrays on the way stay in the cache: with
    all 512 of a layer that takes three times as long."""
    return [slice(start, start + _PART) for start in range(0, channels, _PART)]


def counted(values: NDArray[np.float32], image: int) -> NDArray[np.float32]:
    """The positions of a map ``[1, channels, H, W]`` that are counted in image number `image`."""
    if values.ndim != 4:
        return values
    step = max(1, int(np.sqrt(values.shape[2] * values.shape[3] / COUNTED) + 0.5))
    return values[:, :, image % step :: step, image // step % step :: step]


def _bits(values: NDArray[np.float32]) -> NDArray[np.int32]:
    bits: NDArray[np.int32] = (values.view(np.int32) & _MAGNITUDE) >> _SHIFT
    return bits


def _magnitudes(
    counts: NDArray[np.floating], edges: NDArray[np.float64], amax: float
) -> Magnitudes:
    held = np.flatnonzero(counts[1:] > 0)
    found, high = counts[1:][held].astype(np.float64), np.minimum(edges[held + 1], amax)
    if not len(held):
        # Nothing that was counted is above zero, or matters: the largest value is all there is.
        found, high = np.ones(1), np.array([amax])
    # The last bin ends where the tensor does.
    low = np.minimum(edges[held] if len(held) else high, high * (1 - 1e-9))
    return Magnitudes(low, high, found, float(counts[0]), amax)
