"""Weights rounded with second-order information: each column makes good for the errors of others.

Rounding ``w`` to ``q`` moves a layer's outputs by ``(w - q) x``, and over the inputs ``x`` seen in
calibration that costs ``(w - q)^T H (w - q)`` with ``H = E[x x^T]``. GPTQ (Frantar et al., "GPTQ:
Accurate Post-Training Quantization for Generative Pre-trained Transformers", 2023) rounds one
column at a time and moves those still to come so that the cost is least. With ``H = L L^T`` the
cost is ``|L^T (w - q)|^2``, and going from the last column to the first that is Babai's nearest
plane (Chen et al., "The Geometry of LLM Quantization: GPTQ as Babai's Nearest Plane Algorithm",
2025): no inverse of H is needed, and one Cholesky factor serves every row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from vggdeploy.errors import CalibrationError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Order = Literal["diagonal", "natural"]

DAMPING = 0.01
"""Share of the mean of H's diagonal that is added to it: the paper's own."""

ORDERS: tuple[Order, ...] = ("diagonal", "natural")
"""Columns of the largest diagonal first, whose errors the others can best make good for; or as
they come."""

_BLOCK = 128
"""Columns whose errors are carried on together, as one matrix product: the paper's own."""


def round_by_covariance(
    weight: NDArray[np.floating],
    scales: NDArray[np.floating],
    covariance: NDArray[np.floating],
    limits: tuple[int, int],
    *,
    damping: float = DAMPING,
    order: Order = "diagonal",
    sparse: bool = False,
    name: str = "the weights",
) -> NDArray[np.int8]:
    """Round to steps of given scales so that the layer's outputs change least.

    Args:
        weight: float ``[rows, columns]``: rows are outputs, columns inputs.
        scales: ``[rows]``, or ``[rows, groups]`` for groups of successive columns; none is 0.
        covariance: ``[columns, columns]``, the mean of ``x x^T`` over inputs.
        limits: the smallest and the largest integer.
        damping: see `DAMPING`; above 0.
        order: one of `ORDERS`.
        sparse: whether weights that are 0 stay 0, and only the others make good for errors.
        name: what errors call the weights.

    Returns:
        int8 ``[rows, columns]``; what is meant is ``integer * scale``.

    Raises:
        CalibrationError: when the covariance is not finite, or the damping too small for it.
    """
    diagonal = np.diagonal(covariance).astype(np.float64)
    places = _places(diagonal, order, name)
    ordered = covariance[np.ix_(places, places)].astype(np.float64)
    ordered[np.diag_indices_from(ordered)] += damping * (diagonal.mean() or 1.0)
    factor = _cholesky(ordered, damping, name)
    weights = np.ascontiguousarray(weight.T[places], np.float32)
    groups, group = _groups(scales, places)
    integers = np.empty(weights.shape, np.int8)
    errors = np.zeros_like(weights)
    for end in range(len(places), 0, -_BLOCK):
        part = slice(max(0, end - _BLOCK), end)
        moved = factor[end:, part] / np.diagonal(factor)[part]
        goal = weights[part] + moved.T @ errors[end:]
        steps = groups[group[part]]
        integers[part] = _nearest_plane(
            goal, weights[part], steps, factor[part, part], limits, _stays(weights[part], sparse)
        )
        errors[part] = weights[part] - integers[part] * steps
    result = np.empty(weight.shape, np.int8)
    result[:, places] = integers.T
    return result


def round_by_samples(
    weight: NDArray[np.floating],
    scales: NDArray[np.floating],
    samples: NDArray[np.floating],
    limits: tuple[int, int],
    *,
    divisors: NDArray[np.floating] | None = None,
    damping: float = DAMPING,
    order: Order = "diagonal",
    sparse: bool = False,
    name: str = "the weights",
) -> NDArray[np.int8]:
    """`round_by_covariance` for a layer with more inputs than samples, whose covariance has no
    higher rank than these: the same result without the matrix, which 25,088 inputs would make
    2.5 GB.

    The columns still to come, ``X`` of them, can make good for an error ``r`` of the samples'
    outputs but for ``r^T S^-1 r``, with ``S = n d I + X X^T``, n samples and damping d. So a block
    of columns ``B`` is rounded by the covariance ``I + B^T S^-1 B``, once its weights are moved
    to where they make good for the errors so far.

    Args:
        weight: float ``[rows, columns]``.
        scales: as there.
        samples: ``[samples, columns]``, the inputs.
        limits: as there.
        divisors: ``[columns]``, what the weights are divided by first; None for 1.
        damping: as there.
        order: as there.
        sparse: as there.
        name: as there.

    Returns:
        int8 ``[rows, columns]``.

    Raises:
        CalibrationError: as there.
    """
    energy = np.square(samples, dtype=np.float64).mean(0)
    places = _places(energy, order, name)
    groups, group = _groups(scales, places)
    inputs = np.ascontiguousarray(samples[:, places], np.float64)
    left = inputs @ inputs.T
    ridge = len(inputs) * damping * (energy.mean() or 1.0) * np.eye(len(inputs))
    # Weights are fetched a block at a time, and integers put where they belong: of the largest
    # layer's 411 MB there is no copy.
    integers = np.empty(weight.shape, np.int8)
    off = np.zeros((len(inputs), len(weight)), np.float32)
    for end in range(len(places), 0, -_BLOCK):
        part = slice(max(0, end - _BLOCK), end)
        block, steps, at = inputs[:, part], groups[group[part]], places[part]
        weights = np.ascontiguousarray(weight[:, at].T, np.float32)
        if divisors is not None:
            weights /= divisors[at, None]
        left -= block @ block.T
        seen = np.linalg.solve(left + ridge, block)
        covariance = block.T @ seen
        covariance[np.diag_indices_from(covariance)] += 1
        goal = weights + np.linalg.solve(covariance, seen.T).astype(np.float32) @ off
        factor = _cholesky(covariance, damping, name)
        found = _nearest_plane(goal, goal, steps, factor, limits, _stays(weights, sparse))
        integers[:, at] = found.T
        off += block.astype(np.float32) @ (weights - found * steps)
    return integers


def _nearest_plane(
    goal: NDArray[np.float32],
    exact: NDArray[np.float32],
    steps: NDArray[np.float32],
    factor: NDArray[np.float32],
    limits: tuple[int, int],
    stays: NDArray[np.bool_] | None,
) -> NDArray[np.float32]:
    """Whole numbers of `steps`, ``[columns, rows]``, from the last column to the first: each the
    nearest to its goal once that has moved by the errors so far, which are counted from `exact`;
    0 where it is not in `stays`."""
    share = factor / np.diagonal(factor)
    found = np.empty_like(goal)
    errors = np.empty_like(goal)
    for column in range(len(goal) - 1, -1, -1):
        wanted = goal[column] + share[column + 1 :, column] @ errors[column + 1 :]
        found[column] = np.clip(np.rint(wanted / steps[column]), *limits)
        if stays is not None:
            found[column] *= stays[column]
        errors[column] = exact[column] - found[column] * steps[column]
    return found


def _stays(weights: NDArray[np.float32], sparse: bool) -> NDArray[np.bool_] | None:
    """Which weights may be other than 0; None for all."""
    return np.not_equal(weights, 0) if sparse else None


def _cholesky(matrix: NDArray[np.float64], damping: float, name: str) -> NDArray[np.float32]:
    """The lower factor of a damped matrix."""
    try:
        return np.linalg.cholesky(matrix).astype(np.float32)
    except np.linalg.LinAlgError as error:
        raise CalibrationError(
            f"the covariance of the inputs of {name} has no Cholesky factor",
            got=f"damping {damping:g}",
            expected=f"{DAMPING:g} is usual",
            fix="give a larger --damping",
        ) from error


def _places(diagonal: NDArray[np.float64], order: Order, name: str) -> NDArray[np.intp]:
    """The columns from the last that is rounded to the first."""
    if not np.isfinite(diagonal).all():
        raise CalibrationError(
            f"the covariance of the inputs of {name} is not finite",
            got=f"{int((~np.isfinite(diagonal)).sum())} of {diagonal.size} inputs with NaN or infinity",
            expected="finite values",
            fix="check the weights and --preprocess",
        )
    if order == "diagonal":
        return np.argsort(diagonal, kind="stable")
    return np.arange(len(diagonal))[::-1]


def _groups(
    scales: NDArray[np.floating], places: NDArray[np.intp]
) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Scales as ``[groups, rows]``, and the group of each column in the order of `places`."""
    groups = np.ascontiguousarray(scales.reshape(len(scales), -1).T, np.float32)
    return groups, places // (len(places) // len(groups))
