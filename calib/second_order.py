"""Weights rounded with second-order information: each column makes good for the errors of others.

Rounding ``w`` to ``q`` moves a layer's outputs by ``(w - q) x``, and over the inputs ``x`` seen in
calibration that costs ``(w - q)^T H (w - q)`` with ``H = E[x x^T]``. GPTQ (Frantar et al., "GPTQ:
Accurate Post-Training Quantization for Generative Pre-trained Transformers", 2023) rounds one
column at a time and moves those still to come so that the cost is least. With ``H = L L^T`` the
cost is ``|L^T (w - q)|^2``, and going from the last column to the first that is Babai's nearest
plane (Chen et al., "The Geometry of LLM Quantization: GPTQ as Babai's Nearest Plane Algorithm",
2025): no inverse is needed, and one Cholesky factor serves every row.
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


def round_second_order(
    weight: NDArray[np.floating],
    scales: NDArray[np.floating],
    covariance: NDArray[np.floating],
    limits: tuple[int, int],
    *,
    damping: float = DAMPING,
    order: Order = "diagonal",
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
        name: what errors call the weights.

    Returns:
        int8 ``[rows, columns]``; what is meant is ``integer * scale``.

    Raises:
        CalibrationError: when the covariance is not finite, or the damping too small for it.
    """
    columns = weight.shape[1]
    diagonal = np.diagonal(covariance).astype(np.float64)
    if not np.isfinite(diagonal).all():
        raise CalibrationError(
            f"the covariance of the inputs of {name} is not finite",
            fix="check the weights and --preprocess",
        )
    places = (
        np.argsort(diagonal, kind="stable") if order == "diagonal" else np.arange(columns)[::-1]
    )
    try:
        factor = _cholesky(covariance, places, damping * float(diagonal.mean() or 1.0))
    except np.linalg.LinAlgError as error:
        raise CalibrationError(
            f"the covariance of the inputs of {name} has no Cholesky factor",
            got=f"damping {damping:g}",
            expected=f"{DAMPING:g} is usual",
            fix="give a larger --damping",
        ) from error
    weights = np.ascontiguousarray(weight.T[places], np.float32)
    groups = scales.reshape(len(weight), -1).T.astype(np.float32)
    steps = groups[places // (columns // len(groups))]
    integers = np.empty(weights.shape, np.int8)
    errors = np.zeros_like(weights)
    for end in range(columns, 0, -_BLOCK):
        start = max(0, end - _BLOCK)
        block = factor[:, start:end] / np.diagonal(factor)[start:end]
        wanted = weights[start:end] + block[end:].T @ errors[end:]
        inner = block[start:end]
        for column in range(end - start - 1, -1, -1):
            at = start + column
            goal = wanted[column] + inner[column + 1 :, column] @ errors[at + 1 : end]
            rounded = np.clip(np.rint(goal / steps[at]), *limits)
            integers[at] = rounded
            errors[at] = weights[at] - rounded * steps[at]
    result = np.empty_like(integers)
    result[places] = integers
    return np.ascontiguousarray(result.T)


def _cholesky(
    covariance: NDArray[np.floating], places: NDArray[np.intp], damping: float
) -> NDArray[np.float32]:
    """The lower factor of the damped covariance, columns in the order of `places`."""
    ordered = covariance[np.ix_(places, places)].astype(np.float64)
    ordered[np.diag_indices_from(ordered)] += damping
    return np.linalg.cholesky(ordered).astype(np.float32)
