"""Group-wise rounding against a brute-force reference in float64."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vggdeploy.calib.groups import group_scales, round_groups, round_to
from vggdeploy.contracts import INT4_GROUPS

EXACT = replace(INT4_GROUPS, scale="float32")
GROUP = 16

weights = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.sampled_from([16, 32])),
    elements=st.one_of(
        st.just(0.0), st.floats(2.0**-6, 1024, width=32), st.floats(-1024, -(2.0**-6), width=32)
    ),
)
importances = st.none() | st.integers(0, 99)


def loss(group: np.ndarray, scale: float, matters: np.ndarray) -> float:
    """What a group loses with a scale: each weight goes to the nearest of the 16 values."""
    values = np.arange(-8, 8) * scale
    nearest = np.abs(group[:, None] - values).min(1)
    return float((matters * nearest**2).sum())


def least_loss(group: np.ndarray, matters: np.ndarray) -> float:
    """The best of the thresholds that are to be tried: the larger extreme on the side of -8."""
    step = -group[np.abs(group).argmax()] / 8
    return min(loss(group, step * ratio, matters) for ratio in np.linspace(8 / 7, 0.5, 10))


@given(weight=weights, seed=importances)
def test_each_group_has_the_best_of_the_scales(weight: np.ndarray, seed: int | None) -> None:
    columns = weight.shape[1]
    importance = None if seed is None else np.random.default_rng(seed).uniform(0, 9, columns)
    matters = np.ones(columns) if importance is None else importance
    scales = group_scales(weight, EXACT, GROUP, importance)
    assert scales.shape == (len(weight), columns // GROUP)
    assert scales.dtype == np.float32
    for row, found in zip(weight.astype(np.float64), scales, strict=True):
        parts = zip(row.reshape(-1, GROUP), matters.reshape(-1, GROUP), found, strict=True)
        for group, weighs, scale in parts:
            if not group.any():
                assert scale == 1
                continue
            # The search is in float32: 16 squares of 24 bits each, the larger by far where the
            # group is exact but for them.
            best = least_loss(group, weighs)
            slack = 1e-5 * best + 1e-10 * float((weighs * group**2).sum())
            assert loss(group, float(scale), weighs) <= best + slack


@given(weight=weights, kind=st.sampled_from([EXACT, INT4_GROUPS]))
def test_integers_are_the_nearest_steps_of_the_stored_scales(weight: np.ndarray, kind) -> None:
    integers, scales = round_groups(weight, kind, GROUP)
    assert integers.dtype == np.int8
    assert integers.shape == weight.shape
    np.testing.assert_array_equal(integers, round_to(weight, scales, kind))
    quotients = weight.astype(np.float64) / np.repeat(scales.astype(np.float64), GROUP, axis=1)
    # A float32 quotient of at most 16 is within 16 * 2^-24 of the true one: a half may go either
    # way, everything else is exact.
    clear = np.abs(np.abs(quotients - np.floor(quotients)) - 0.5) > 16 * 2.0**-24
    np.testing.assert_array_equal(
        integers[clear], np.clip(np.rint(quotients), -8, 7).astype(np.int8)[clear]
    )


def test_halves_go_to_even_and_the_range_clips() -> None:
    weight = np.float32([[0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 99, -99]])
    assert round_to(weight, np.float32([[1]]), EXACT).tolist() == [[0, 2, 2, 0, -2, -2, 7, -8]]
    # A negative scale turns the range around.
    assert round_to(weight, np.float32([[-1]]), EXACT).tolist() == [[0, -2, -2, 0, 2, 2, -8, 7]]


@pytest.mark.parametrize("sign", [1, -1])
def test_the_larger_extreme_has_the_level_more(sign: int) -> None:
    """Eight steps one way and seven the other are met exactly, whichever way that is."""
    weight = np.float32([[8, -7, 3, 0, -1, 5, 2, -4] * 2]) * sign
    integers, scales = round_groups(weight, EXACT, GROUP)
    np.testing.assert_allclose(integers * scales, weight, atol=1e-5)


def sqnr_db(weight: np.ndarray, integers: np.ndarray, scales: np.ndarray) -> float:
    group = weight.shape[1] // scales.shape[1]
    meant = integers * np.repeat(scales.astype(np.float64), group, axis=1)
    return float(10 * np.log10((weight**2).sum() / ((weight - meant) ** 2).sum()))


def test_search_and_sign_are_worth_more_than_a_decibel() -> None:
    weight = np.random.default_rng(0).standard_normal((64, 1024))
    found = sqnr_db(weight, *round_groups(weight, INT4_GROUPS, 64))
    plain = np.abs(weight.reshape(64, -1, 64)).max(2) / 7
    assert found > sqnr_db(weight, round_to(weight, plain, INT4_GROUPS), plain) + 1.2


def test_importance_decides_whose_error_is_small() -> None:
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((32, 64)).astype(np.float32)
    weight[:, 0] = 9  # an outlier of an input that is hardly ever there
    importance = np.ones(64)
    importance[0] = 1e-6
    blind, seeing = (round_groups(weight, EXACT, 64, given)[1] for given in (None, importance))
    assert (np.abs(seeing) < np.abs(blind)).all()

    def error(scales: np.ndarray) -> float:
        rest = weight - round_to(weight, scales, EXACT) * np.repeat(scales, 64, axis=1)
        return float((importance * rest**2).sum())

    assert error(seeing) < error(blind) / 2


def test_groups_do_not_see_each_other() -> None:
    rng = np.random.default_rng(2)
    weight = rng.standard_normal((3, 64)).astype(np.float32)
    alone = group_scales(weight, EXACT, GROUP)
    weight[1, 16:32] *= 100
    changed = group_scales(weight, EXACT, GROUP) != alone
    assert changed.tolist() == [[False] * 4, [False, True, False, False], [False] * 4]


@pytest.mark.parametrize("elements", [1, 100, 1 << 20])
def test_blocks_and_layout_make_no_difference(
    elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = np.random.default_rng(3).standard_normal((7, 64)).astype(np.float32)
    whole = round_groups(weight, INT4_GROUPS, GROUP)
    monkeypatch.setattr(sys.modules[round_groups.__module__], "_BLOCK_ELEMENTS", elements)
    parts = round_groups(np.asfortranarray(weight), INT4_GROUPS, GROUP)
    np.testing.assert_array_equal(whole[0], parts[0])
    np.testing.assert_array_equal(whole[1], parts[1])


@pytest.mark.parametrize(
    ("size", "dtype"), [(1e-2, "float16"), (1e-6, "float32"), (1e7, "float32")]
)
def test_scales_have_a_type_that_holds_them(size: float, dtype: str) -> None:
    weight = np.random.default_rng(4).standard_normal((16, 256)) * size
    weight[0, :64] = 0  # the scale 1 of what is dead says nothing about the others
    integers, scales = round_groups(weight, INT4_GROUPS, 64)
    assert scales.dtype == dtype
    # 20.8 dB is what normal weights have in groups of 64; the size of a step is no part of it.
    assert sqnr_db(weight, integers, scales) > 20


def test_no_scale_is_subnormal_and_small_groups_cost_nothing() -> None:
    weight = np.random.default_rng(5).standard_normal((16, 256)) * 1e-2
    weight[0, :64] *= 1e-5
    weight[1, :64] = 0
    integers, scales = round_groups(weight, INT4_GROUPS, 64)
    assert scales.dtype == np.float16
    assert np.abs(scales).min() == np.finfo(np.float16).tiny
    assert scales[1, 0] == 1
    assert not integers[:2, :64].any()
    assert sqnr_db(weight, integers, scales) > 20


@given(columns=st.integers(1, 3000), group=st.sampled_from([16, 32, 64, 128]))
def test_the_group_that_fits_is_the_largest_power_of_two_that_divides(
    columns: int, group: int
) -> None:
    fitting = [2**n for n in range(4, 8) if 2**n <= group and columns % 2**n == 0]
    assert replace(INT4_GROUPS, group=group).fitting(columns) == (fitting[-1] if fitting else None)
