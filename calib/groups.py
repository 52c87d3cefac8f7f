"""Group-wise weights: 4-bit integers with one scale a group of successive inputs.

Matrix-vector products are bound by the bytes of their weights, so that halving them pays; a scale
for every few dozen weights keeps 16 levels accurate enough. Pure numpy, a block of rows at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vggdeploy.contracts import GroupedType

_CANDIDATES = 10
"""Scales tried a group. On normal and Laplace distributed weights in groups of 64, 10 are within
0.05 dB of 16, and 6 are 0.25 dB behind."""

_LOWEST_RATIO = 0.5
"""Half of a group's amplitude: normal weights are best clipped near 0.9, and lower only where the
large ones matter little."""

_BLOCK_ELEMENTS = 1 << 18
"""1 MiB of float32 at a time, so that all candidates find the block in the cache."""

_FLOAT16_MARGIN = 4
"""A layer's scales are float16 where their root mean square is this many times the smallest normal
number, to which smaller ones are raised. An integer's rounding error is of the order of its scale,
so the raised ones add 1/16 to the layer's noise, at most."""


def round_groups(
    weight: NDArray[np.floating],
    kind: GroupedType,
    group: int,
    importance: NDArray[np.floating] | None = None,
    divisors: NDArray[np.floating] | None = None,
    multipliers: NDArray[np.floating] | None = None,
) -> tuple[NDArray[np.int8], NDArray[Any]]:
    """Choose scales (`group_scales`) and round to the nearest step of them (`round_to`).

    Returns:
        Integers, int8 ``[rows, columns]`` in the range of `kind`, and scales ``[rows, groups]``.
    """
    scales = group_scales(weight, kind, group, importance, divisors, multipliers)
    # A row's factor is its scales' alone.
    steps = scales if multipliers is None else scales / multipliers[:, None]
    return round_to(weight, steps, kind, divisors), scales


def group_scales(
    weight: NDArray[np.floating],
    kind: GroupedType,
    group: int,
    importance: NDArray[np.floating] | None = None,
    divisors: NDArray[np.floating] | None = None,
    multipliers: NDArray[np.floating] | None = None,
) -> NDArray[Any]:
    """The scales that lose least: for each group, of several clipping thresholds, the one with the
    smallest (weighted) sum of squared rounding errors.

    A scale carries a sign: the weight of largest magnitude, be it positive or negative, goes to the
    side of `kind` that has one level more (as NNCF's ``INT4_SYM``). With the search for a
    threshold that is worth 1.5 dB against ``amax / qmax``, measured on normal weights.

    Args:
        weight: float ``[rows, columns]``: rows are output channels, columns inputs.
        kind: range of the integers and type of the scales.
        group: columns a scale is for; a divisor of `columns`.
        importance: ``[columns]``, nonnegative: how much an error of a column's weights matters,
            such as the mean square of that input. The same for all if left out.
        divisors: ``[columns]``, what the weights are divided by first; None for 1.
        multipliers: ``[rows]``, what they are multiplied by; None for 1.

    Returns:
        Scales ``[rows, columns // group]`` of the scale type of `kind`, or float32 where that
        cannot hold them: none is 0 or subnormal. A group of zeros has the scale 1.
    """
    rows, columns = weight.shape
    scales = np.empty((rows, columns // group), np.float32)
    matters = None
    if importance is not None:
        matters = np.asarray(importance, np.float32).reshape(-1, group)
    for part in _blocks(rows, columns):
        scales[part] = _best(_grouped(weight[part], group, divisors), kind, matters)
    if multipliers is not None:
        scales *= np.asarray(multipliers, np.float32)[:, None]
    return _stored(scales, kind)


def round_to(
    weight: NDArray[np.floating],
    scales: NDArray[Any],
    kind: GroupedType,
    divisors: NDArray[np.floating] | None = None,
) -> NDArray[np.int8]:
    """Round to the nearest step of given scales, half to even, clipped to the range of `kind`.

    Args:
        weight: float ``[rows, columns]``.
        scales: ``[rows, groups]``, none 0.
        kind: range of the integers.
        divisors: as `group_scales` takes them.

    Returns:
        int8 ``[rows, columns]``; what is meant is ``integer * scale``.
    """
    rows, columns = weight.shape
    integers = np.empty((rows, columns), np.int8)
    group = columns // scales.shape[1]
    for part in _blocks(rows, columns):
        steps = _grouped(weight[part], group, divisors)
        wide = scales[part].astype(np.float32)[..., None]
        integers[part] = _rounded(steps, wide, kind, np.empty_like(steps)).reshape(-1, columns)
    return integers


def _best(
    block: NDArray[np.float32], kind: GroupedType, matters: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    """Scales ``[rows, groups]`` of a block ``[rows, groups, group]``; 0 for a group of zeros."""
    high, low = block.max(-1), block.min(-1)
    amax = np.maximum(high, -low)
    # The side of qmin has one level more, so the larger extreme goes there.
    step = np.where(high > -low, -amax, amax) / np.float32(-kind.qmin)
    best: NDArray[np.float32] = np.zeros_like(step)
    least = np.full_like(step, np.inf)
    errors = np.empty_like(block)
    # From where even the other side clips nothing.
    for ratio in np.linspace(-kind.qmin / kind.qmax, _LOWEST_RATIO, _CANDIDATES):
        scale = _at_least(step * np.float32(ratio), float(np.finfo(np.float32).tiny))
        wide = scale[..., None]
        _rounded(block, wide, kind, errors)
        np.multiply(errors, wide, out=errors)
        np.subtract(errors, block, out=errors)
        np.square(errors, out=errors)
        if matters is not None:
            np.multiply(errors, matters, out=errors)
        total = errors.sum(-1)
        better = (total < least) & (amax > 0)
        best[better], least[better] = scale[better], total[better]
    return best


def _rounded(
    block: NDArray[np.float32],
    scales: NDArray[np.float32],
    kind: GroupedType,
    out: NDArray[np.float32],
) -> NDArray[np.float32]:
    np.divide(block, scales, out=out)
    np.rint(out, out=out)
    np.clip(out, kind.qmin, kind.qmax, out=out)
    return out


def _stored(scales: NDArray[np.float32], kind: GroupedType) -> NDArray[Any]:
    """Scales in the type of `kind`, where it holds them; 1 for what is 0."""
    alive = scales != 0
    stored: NDArray[Any] = scales
    if kind.scale == "float16" and alive.any():
        size = np.abs(scales[alive])
        limits = np.finfo(np.float16)
        smallest = float(limits.tiny)
        # In float64: a square may be smaller than float32 holds.
        usual = np.sqrt(np.square(size, dtype=np.float64).mean())
        if usual >= _FLOAT16_MARGIN * smallest and size.max() <= limits.max:
            stored = _at_least(scales, smallest).astype(np.float16)
    stored[~alive] = 1
    return stored


def _at_least(scales: NDArray[np.float32], smallest: float) -> NDArray[np.float32]:
    """Scales raised to a magnitude, their signs kept."""
    raised: NDArray[np.float32] = np.maximum(np.abs(scales), np.float32(smallest))
    return np.copysign(raised, scales, out=raised)


def _grouped(
    rows: NDArray[np.floating], group: int, divisors: NDArray[np.floating] | None
) -> NDArray[np.float32]:
    if divisors is not None:
        rows = rows / divisors
    return np.ascontiguousarray(rows, np.float32).reshape(len(rows), -1, group)


def _blocks(rows: int, columns: int) -> list[slice]:
    step = max(1, _BLOCK_ELEMENTS // max(1, columns))
    return [slice(start, start + step) for start in range(0, rows, step)]
