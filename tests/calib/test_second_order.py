"""Second-order rounding against GPTQ as the paper has it, and against what it promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vggdeploy.calib import second_order
from vggdeploy.calib.second_order import ORDERS, round_by_covariance
from vggdeploy.errors import CalibrationError

INT8 = (-127, 127)


def inputs(seed: int, columns: int, samples: int = 400, mixing: float = 1.0) -> np.ndarray:
    """``[samples, columns]``, correlated where `mixing` is not 0, of different sizes."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((samples, columns)) @ (
        np.eye(columns) + mixing * rng.standard_normal((columns, columns)) / np.sqrt(columns)
    )
    return mixed * np.exp(rng.normal(0, 0.7, columns))


def moments(x: np.ndarray) -> np.ndarray:
    return (x.T @ x / len(x)).astype(np.float32)


def weights(seed: int, rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def scales_of(weight: np.ndarray, levels: int) -> np.ndarray:
    return (np.abs(weight).max(1) / levels).astype(np.float32)


def nearest(weight: np.ndarray, scales: np.ndarray, limits: tuple[int, int]) -> np.ndarray:
    return np.clip(np.rint(weight / scales[:, None]), *limits)


def cost(weight: np.ndarray, values: np.ndarray, covariance: np.ndarray) -> float:
    """The mean squared error of the outputs: (w - q)^T H (w - q), over all rows."""
    off = weight.astype(np.float64) - values
    return float(np.einsum("ri,ij,rj->", off, covariance.astype(np.float64), off))


def textbook(
    weight: np.ndarray,
    steps: np.ndarray,
    covariance: np.ndarray,
    limits: tuple[int, int],
    damping: float,
    order: str,
) -> np.ndarray:
    """Algorithm 1 of Frantar et al., a column at a time, in float64.

    The inverse of the damped Hessian, its upper Cholesky factor; each column's error, divided by
    the factor's diagonal, is taken off the columns still to come.
    """
    w, h = weight.astype(np.float64).copy(), covariance.astype(np.float64).copy()
    columns = w.shape[1]
    diagonal = np.diagonal(h).copy()
    h += damping * diagonal.mean() * np.eye(columns)
    if order == "diagonal":
        # The largest first, of equal ones the last: the other order backwards, which is stable.
        places = np.argsort(diagonal, kind="stable")[::-1]
    else:
        places = np.arange(columns)
    w, steps, h = w[:, places], steps[:, places], h[np.ix_(places, places)]
    upper = np.linalg.cholesky(np.linalg.inv(h)).T
    q = np.zeros_like(w)
    for column in range(columns):
        q[:, column] = np.clip(np.rint(w[:, column] / steps[:, column]), *limits)
        error = (w[:, column] - q[:, column] * steps[:, column]) / upper[column, column]
        w[:, column:] -= np.outer(error, upper[column, column:])
    integers = np.empty_like(q)
    integers[:, places] = q
    return integers


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("levels", [127, 7, 1])
@given(seed=st.integers(0, 2**16), columns=st.integers(1, 40))
def test_without_correlation_it_is_rounding_to_nearest(
    levels: int, order: str, seed: int, columns: int
) -> None:
    weight = weights(seed, 6, columns)
    scales = scales_of(weight, levels)
    diagonal = np.diag(np.random.default_rng(seed).uniform(0.1, 9, columns).astype(np.float32))
    for covariance in (np.eye(columns, dtype=np.float32), diagonal):
        found = round_by_covariance(weight, scales, covariance, (-levels, levels), order=order)
        assert found.dtype == np.int8
        np.testing.assert_array_equal(found, nearest(weight, scales, (-levels, levels)))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("damping", [0.01, 0.3])
@pytest.mark.parametrize("levels", [127, 7])
@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_papers(seed: int, levels: int, damping: float, order: str) -> None:
    columns = (5, 24, 60, 150, 300)[seed]  # less than a block, and more than two
    weight, covariance = weights(seed, 8, columns), moments(inputs(seed, columns))
    scales, limits = scales_of(weight, levels), (-levels, levels)
    found = round_by_covariance(weight, scales, covariance, limits, damping=damping, order=order)
    steps = np.repeat(scales[:, None].astype(np.float64), columns, 1)
    expected = textbook(weight, steps, covariance, limits, damping, order)
    # float32 decides a tie otherwise once in some ten thousand times, and what comes after follows.
    rows = (found == expected).all(1)
    assert rows.mean() >= 7 / 8
    ours, theirs = (cost(weight, q * steps, covariance) for q in (found, expected))
    assert ours == pytest.approx(theirs, rel=0.02)


@pytest.mark.parametrize("levels", [127, 7])
@given(seed=st.integers(0, 2**16), mixing=st.sampled_from([0.0, 0.3, 1.0, 3.0]))
def test_cost_is_no_more_than_that_of_rounding_to_nearest(
    levels: int, seed: int, mixing: float
) -> None:
    """Of 16 rows together: a single one may be unlucky."""
    weight, covariance = weights(seed, 16, 24), moments(inputs(seed, 24, mixing=mixing))
    scales, limits = scales_of(weight, levels), (-levels, levels)
    found = round_by_covariance(weight, scales, covariance, limits)
    plain = nearest(weight, scales, limits)
    ours, theirs = (cost(weight, q * scales[:, None], covariance) for q in (found, plain))
    assert ours <= theirs * 1.02
    if mixing >= 1:
        assert ours < theirs


def test_strongly_correlated_inputs_gain_much() -> None:
    weight, covariance = weights(3, 32, 64), moments(inputs(3, 64, samples=20))
    scales = scales_of(weight, 127)
    found = round_by_covariance(weight, scales, covariance, INT8)
    ours, theirs = (
        cost(weight, q * scales[:, None], covariance)
        for q in (found, nearest(weight, scales, INT8))
    )
    # 20 samples span 20 of 64 directions: the others take up the errors.
    assert ours < theirs / 4


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("block", [1, 7, 64, 10_000])
def test_blocks_make_no_difference(block: int, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, covariance = weights(4, 10, 300), moments(inputs(4, 300))
    scales = scales_of(weight, 127)
    whole = round_by_covariance(weight, scales, covariance, INT8, order=order)
    monkeypatch.setattr(second_order, "_BLOCK", block)
    parts = round_by_covariance(weight, scales, covariance, INT8, order=order)
    # Sums in another order: a tie may fall otherwise, and take its row with it.
    assert (whole == parts).all(1).sum() >= 9


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_groups_have_scales_of_their_own(order: str, dtype: str) -> None:
    """One of them negative, as 4-bit scales may be; limits that are not symmetric, and reached."""
    weight, covariance = weights(5, 6, 64), moments(inputs(5, 64))
    scales = (np.abs(weight).reshape(6, 4, 16).max(2) / 6).astype(dtype)
    scales[2, 1] *= -1
    found = round_by_covariance(weight, scales, covariance, (-8, 7), order=order)
    steps = np.repeat(scales.astype(np.float64), 16, axis=1)
    expected = textbook(weight, steps, covariance, (-8, 7), 0.01, order)
    assert found.min() >= -8
    assert found.max() <= 7
    assert (found == expected).all(1).sum() >= 5


def test_what_is_clipped_is_made_good_for() -> None:
    """A weight of twice what its step can hold, next to one that reads the same input."""
    covariance = np.float32([[1, 1], [1, 1.0001]])
    weight, scales = np.float32([[0.0, 20.0]]), np.float32([1.0])
    found = round_by_covariance(weight, scales, covariance, (-10, 10), damping=1e-4)
    assert found.tolist() == [[10, 10]]


@pytest.mark.parametrize("order", ORDERS)
def test_damping_makes_a_singular_covariance_work(order: str) -> None:
    weight = weights(6, 8, 32)
    scales = scales_of(weight, 127)
    one = inputs(6, 32, samples=1)
    for covariance in (moments(one), np.zeros((32, 32), np.float32)):
        found = round_by_covariance(weight, scales, covariance, INT8, order=order)
        ours, theirs = (
            cost(weight, q * scales[:, None], covariance)
            for q in (found, nearest(weight, scales, INT8))
        )
        assert ours <= theirs
        assert np.abs(found).max() <= 127


@pytest.mark.parametrize("order", ORDERS)
def test_inputs_that_are_always_zero_are_rounded_to_nearest(order: str) -> None:
    x = inputs(7, 20)
    x[:, [3, 11]] = 0
    weight = weights(7, 5, 20)
    scales = scales_of(weight, 127)
    found = round_by_covariance(weight, scales, moments(x), INT8, order=order)
    dead = [3, 11]
    np.testing.assert_array_equal(found[:, dead], nearest(weight, scales, INT8)[:, dead])
    nothing = round_by_covariance(weight, scales, np.zeros((20, 20), np.float32), INT8, order=order)
    np.testing.assert_array_equal(nothing, nearest(weight, scales, INT8))


def test_orders_are_what_they_say() -> None:
    """The column that is rounded first is rounded to nearest, whatever the others are."""
    covariance = moments(inputs(8, 12))
    covariance[5] *= 4
    covariance[:, 5] *= 4
    weight = weights(8, 50, 12)
    scales = scales_of(weight, 7)
    plain = nearest(weight, scales, (-7, 7))
    same = {
        order: (round_by_covariance(weight, scales, covariance, (-7, 7), order=order) == plain).all(
            0
        )
        for order in ORDERS
    }
    assert np.argmax(np.diagonal(covariance)) == 5
    assert same["diagonal"][5]
    assert not same["diagonal"][0]
    assert same["natural"][0]
    assert not same["natural"][5]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_covariance_that_is_not_finite_is_refused(bad: float) -> None:
    covariance = np.eye(4, dtype=np.float32)
    covariance[2, 2] = bad
    with pytest.raises(CalibrationError, match=r"inputs of c3\.weight is not finite"):
        round_by_covariance(weights(9, 2, 4), np.ones(2), covariance, INT8, name="c3.weight")


def test_damping_that_does_not_do_is_named() -> None:
    """A matrix that is no covariance but for rounding, which damping is there to outweigh."""
    covariance = np.float32([[1, 1 + 1e-6], [1 + 1e-6, 1]])
    with pytest.raises(CalibrationError, match=r"c3\.weight.*damping 1e-09.*larger --damping"):
        round_by_covariance(
            weights(9, 2, 2), np.ones(2), covariance, INT8, damping=1e-9, name="c3.weight"
        )
    round_by_covariance(weights(9, 2, 2), np.ones(2), covariance, INT8)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("columns", [7, 130, 400])
@pytest.mark.parametrize("samples", [1, 12, 90])
def test_samples_give_what_their_matrix_gives(samples: int, columns: int, order: str) -> None:
    """Fewer samples than inputs, and more; less than a block, and several."""
    x = inputs(samples, columns, samples).astype(np.float32)
    weight = weights(3, 6, columns)
    scales = scales_of(weight, 127)
    matrix = x.T.astype(np.float64) @ x / samples
    whole = round_by_covariance(weight, scales, matrix, INT8, order=order)
    found = second_order.round_by_samples(weight, scales, x, INT8, order=order)
    rows = (found == whole).all(1)  # a tie in float32 may be decided otherwise
    assert rows.mean() >= 5 / 6
    assert cost(weight, found * scales[:, None], matrix) <= 1.05 * cost(
        weight, whole * scales[:, None], matrix
    )


def test_samples_with_groups_and_divisors() -> None:
    columns, samples = 256, 40
    x, weight = inputs(5, columns, samples).astype(np.float32), weights(6, 4, columns)
    divisors = np.random.default_rng(7).uniform(0.5, 4, columns).astype(np.float32)
    scales = np.random.default_rng(8).uniform(0.2, 0.5, (4, 8)).astype(np.float32)
    found = second_order.round_by_samples(weight, scales, x, (-8, 7), divisors=divisors)
    plain = second_order.round_by_samples(weight / divisors, scales, x, (-8, 7))
    np.testing.assert_array_equal(found, plain)
    matrix = x.T.astype(np.float64) @ x / samples
    whole = round_by_covariance(weight / divisors, scales, matrix, (-8, 7))
    assert (found == whole).mean() > 0.9


@pytest.mark.parametrize("order", ORDERS)
def test_samples_that_are_always_zero_are_rounded_to_nearest(order: str) -> None:
    weight = weights(7, 5, 200)
    scales = scales_of(weight, 127)
    nothing = np.zeros((9, 200), np.float32)
    found = second_order.round_by_samples(weight, scales, nothing, INT8, order=order)
    np.testing.assert_array_equal(found, nearest(weight, scales, INT8))


def test_samples_that_are_not_finite_are_named() -> None:
    x = np.full((3, 4), np.inf, np.float32)
    with pytest.raises(CalibrationError, match=r"fc\.weight is not finite"):
        second_order.round_by_samples(weights(1, 2, 4), np.ones(2), x, INT8, name="fc.weight")
