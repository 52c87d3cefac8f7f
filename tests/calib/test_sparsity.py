"""2:4 sparsity: what stays, and what the weights that stay make good for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vggdeploy import graphs
from vggdeploy.calib import sparsity
from vggdeploy.calib.covariance import Moments
from vggdeploy.calib.second_order import round_by_covariance, round_by_samples
from vggdeploy.contracts import Silent

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DAMPING = 0.01


def pattern_holds(weights: np.ndarray) -> bool:
    """TensorRT's own words in loops: weights ``[K, C, R, S]``, or ``[K, C]``."""
    weights = weights.reshape(*weights.shape[:2], -1)
    return all(
        np.count_nonzero(weights[k, 4 * group : 4 * group + 4, tap]) <= 2
        for k in range(weights.shape[0])
        for group in range(weights.shape[1] // 4)
        for tap in range(weights.shape[2])
    )


def correlated(seed: int, columns: int, samples: int = 600) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((samples, columns // 4)) @ rng.standard_normal(
        (columns // 4, columns)
    )
    return (mixed + 0.3 * rng.standard_normal((samples, columns))).astype(np.float32)


def cost(off: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    off = off.astype(np.float64)
    return np.einsum("ri,ij,rj->r", off, covariance.astype(np.float64), off)


@given(
    seed=st.integers(0, 2**16),
    outputs=st.integers(1, 5),
    groups=st.integers(1, 5),
    side=st.sampled_from([1, 3]),
    steps=st.sampled_from([0, 2]),
)
def test_the_two_largest_of_four_channels_stay(
    seed: int, outputs: int, groups: int, side: int, steps: int
) -> None:
    shape = (outputs, 4 * groups, side, side)
    weights = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    if steps:  # with ties, zeros among them
        weights = np.round(weights)
    stays = sparsity.largest(weights.reshape(outputs, -1), side * side).reshape(shape)
    assert pattern_holds(np.where(stays, 1, 0))
    assert stays.mean() == 0.5
    split = (outputs, groups, 4, side, side)
    held, left = stays.reshape(split), np.abs(weights).reshape(split)
    smallest = np.where(held, left, np.inf).min(2)
    largest = np.where(held, -np.inf, left).max(2)
    assert (smallest >= largest).all()


def test_of_equal_ones_the_first_stay() -> None:
    assert sparsity.largest(np.ones((1, 8), np.float32), 1).tolist() == [
        [True, True, False, False] * 2
    ]


def test_groups_run_over_channels_and_not_over_the_kernel() -> None:
    """Four channels of 2 positions: the columns 0, 2, 4, 6 are one group."""
    rows = np.array([[9, 1, 8, 2, 1, 8, 2, 9]], np.float32)
    expected = [[True, False, True, False, False, True, False, True]]
    assert sparsity.largest(rows, 2).tolist() == expected


def exact(weight: np.ndarray, stays: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Row by row: the least squares of what stays, solved as such, in float64."""
    found = np.zeros(weight.shape)
    for row, (values, on) in enumerate(zip(weight.astype(np.float64), stays, strict=True)):
        found[row, on] = np.linalg.solve(matrix[np.ix_(on, on)], matrix[on] @ values)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_what_stays_is_the_least_squares_of_each_row(seed: int) -> None:
    x = correlated(seed, 48)
    matrix = (x.T @ x / len(x)).astype(np.float64)
    matrix += DAMPING * np.diagonal(matrix).mean() * np.eye(48)
    weight = np.random.default_rng(seed).standard_normal((6, 48)).astype(np.float32)
    stays = sparsity.largest(weight, 1)
    narrow = matrix.astype(np.float32)
    found = sparsity.reconstruct(
        weight, stays, lambda rows: rows @ narrow, np.diagonal(narrow).copy()
    )
    assert not found[~stays].any()
    best = cost(weight - exact(weight, stays, matrix), matrix)
    plain = cost(weight - weight * stays, matrix)
    ours = cost(weight - found, matrix)
    # They end with a gradient a thousandth of what it was; damped as this is, no direction's
    # curvature is below a thousandth of the largest, so little is left to gain.
    np.testing.assert_allclose(ours, best, rtol=5e-3)
    assert (ours < 0.7 * plain).all()


def test_inputs_that_say_nothing_leave_the_weights_as_they_are() -> None:
    weight = np.random.default_rng(0).standard_normal((3, 16)).astype(np.float32)
    stays = sparsity.largest(weight, 1)
    found = sparsity.reconstruct(weight, stays, lambda rows: rows, np.ones(16, np.float32))
    np.testing.assert_array_equal(found, weight * stays)


@pytest.mark.parametrize("order", ["diagonal", "natural"])
def test_rounding_leaves_zeros_and_others_make_good(order: Any) -> None:
    x = correlated(7, 320)  # more than two blocks
    covariance = (x.T @ x / len(x)).astype(np.float32)
    weight = np.random.default_rng(1).standard_normal((8, 320)).astype(np.float32)
    weight = weight * sparsity.largest(weight, 1)
    scales = (np.abs(weight).max(1) / 7).astype(np.float32)
    limits = (-7, 7)
    found = round_by_covariance(weight, scales, covariance, limits, order=order, sparse=True)
    by_samples = round_by_samples(weight, scales, x, limits, order=order, sparse=True)
    dense = round_by_covariance(weight, scales, covariance, limits, order=order)
    nearest = np.rint(weight / scales[:, None])
    assert (dense[weight == 0] != 0).any()
    for integers in (found, by_samples):
        assert not integers[weight == 0].any()
        off = cost(weight - integers * scales[:, None], covariance).sum()
        assert off < 0.7 * cost(weight - nearest * scales[:, None], covariance).sum()


# --- whole graphs


@pytest.fixture
def small(small_graph: Callable[..., Any], tmp_path: Path) -> Any:
    import onnx

    path = tmp_path / "small.onnx"
    onnx.save(small_graph(), path)
    return graphs.read(path)


def weights_of(model: Any) -> dict[str, np.ndarray]:
    return {f.name: f.weight.const_value.numpy().copy() for f in graphs.weighted(model)}


def known(model: Any) -> dict[str, Moments]:
    """Second moments as `covariances` gives them: a matrix of convolutions, samples of others."""
    found = {}
    for layer in sparsity.wanted_inputs(model):
        x = correlated(len(layer.name), layer.inputs, 40 if layer.kernel is None else 400)
        mean = x.mean(0, dtype=np.float64)
        moments = (x.T @ x / len(x), None) if layer.kernel else (None, x)
        found[layer.name] = Moments(*moments, mean, mean)
    return found


def test_layers_of_3_inputs_stay_dense_and_are_listed(small: Any) -> None:
    before = weights_of(small)
    done = sparsity.prune(small, {}, DAMPING, Silent())
    after = weights_of(small)
    assert done.dense == (("c0", "3 inputs, no multiple of 4"),)
    np.testing.assert_array_equal(after["c0"], before["c0"])
    assert [layer.name for layer in done.layers] == ["c1", "c2", "f0", "f1"]
    for layer in done.layers:
        assert pattern_holds(after[layer.name])
        lost = np.linalg.norm(after[layer.name] - before[layer.name])
        assert layer.weight_error == pytest.approx(lost / np.linalg.norm(before[layer.name]))
        assert layer.output_error is None
        stayed = after[layer.name] != 0
        np.testing.assert_array_equal(after[layer.name][stayed], before[layer.name][stayed])
    names = [layer.name for layer in done.layers]
    lost = sum(np.square(after[n] - before[n]).sum(dtype=np.float64) for n in names)
    whole = sum(np.square(before[n]).sum(dtype=np.float64) for n in names)
    assert done.weight_error == pytest.approx((lost / whole) ** 0.5)


def test_errors_of_outputs_are_those_of_the_inputs_seen(small: Any) -> None:
    before, moments = weights_of(small), known(small)
    products = {
        name: m.covariance if m.samples is None else m.samples.T @ m.samples / len(m.samples)
        for name, m in moments.items()
    }
    done = sparsity.prune(small, moments, DAMPING, Silent())
    assert not moments  # taken out one by one
    after = weights_of(small)
    for layer in done.layers:
        assert pattern_holds(after[layer.name])
        rows = before[layer.name].reshape(len(before[layer.name]), -1)
        off = rows - after[layer.name].reshape(rows.shape)
        matrix = products[f"{layer.name}.weight"]
        share = (cost(off, matrix).sum() / cost(rows, matrix).sum()) ** 0.5
        # Sums of float32 in a layer with fewer samples than inputs, whose error is next to none.
        assert layer.output_error == pytest.approx(share, rel=2e-2)
        taps = rows.shape[1] // before[layer.name].shape[1]
        plain = rows - rows * sparsity.largest(rows, taps)
        assert cost(off, matrix).sum() < 0.6 * cost(plain, matrix).sum()


def test_damping_keeps_weights_where_they_were(
    small: Any, small_graph: Any, tmp_path: Path
) -> None:
    import onnx

    onnx.save(small_graph(), tmp_path / "again.onnx")
    damped = graphs.read(tmp_path / "again.onnx")
    before = weights_of(small)
    free = sparsity.prune(small, known(small), DAMPING, Silent())
    held = sparsity.prune(damped, known(damped), 1e6, Silent())
    for loose, firm in zip(free.layers, held.layers, strict=True):
        assert firm.weight_error < loose.weight_error
        assert firm.output_error > loose.output_error
        rows = before[firm.name].reshape(len(before[firm.name]), -1)
        taps = rows.shape[1] // before[firm.name].shape[1]
        plain = rows * sparsity.largest(rows, taps)
        found = weights_of(damped)[firm.name].reshape(rows.shape)
        np.testing.assert_allclose(found, plain, atol=1e-4)


def test_a_sparse_network_is_left_as_it_is(small: Any) -> None:
    """One that was trained so."""
    sparsity.prune(small, {}, DAMPING, Silent())
    before = weights_of(small)
    done = sparsity.prune(small, known(small), DAMPING, Silent())
    assert {layer.weight_error for layer in done.layers} == {0.0}
    assert {layer.output_error for layer in done.layers} == {0.0}
    for name, weights in weights_of(small).items():
        np.testing.assert_array_equal(weights, before[name])


def test_blocks_of_rows_make_no_difference(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sparsity.prune(small, {}, DAMPING, Silent())
    found = {f.name: sparsity.holds(f) for f in graphs.weighted(small)}
    assert found == {"c0": False, "c1": True, "c2": True, "f0": True, "f1": True}
    monkeypatch.setattr(sparsity, "_BLOCK_ELEMENTS", 1)
    again = sparsity.prune(small, {}, DAMPING, Silent())
    assert [layer.name for layer in again.layers] == [layer.name for layer in whole.layers]
    assert {layer.weight_error for layer in again.layers} == {0.0}
    assert {f.name: sparsity.holds(f) for f in graphs.weighted(small)} == found


@pytest.mark.parametrize("operator", ["MatMul", "Gemm"])
def test_the_inputs_of_a_product_are_its_rows_where_it_is_not_turned(
    operator: str, tmp_path: Path
) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(0).standard_normal((8, 6)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "p.weight"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 6])],
        [numpy_helper.from_array(weight, "p.weight")],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), tmp_path / "p.onnx")
    model = graphs.read(tmp_path / "p.onnx")
    sparsity.prune(model, known(model), DAMPING, Silent())
    found = weights_of(model)["p"]
    assert found.shape == (8, 6)
    assert pattern_holds(found.T)
    assert not pattern_holds(found.reshape(8, 6)[:, :4])
