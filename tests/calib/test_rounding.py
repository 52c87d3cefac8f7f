"""round_weights against a float64 reference."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vggdeploy.calib.weights import Factors, round_weights
from vggdeploy.contracts import INT8_NARROW

DTYPES = ("float32", "float16")

# Down to where a float16 scale is a normal number (6.1e-5 * 127), and zero.
weights = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=4, max_side=5),
    elements=st.one_of(
        st.just(0.0), st.floats(2.0**-6, 1024, width=32), st.floats(-1024, -(2.0**-6), width=32)
    ),
)


def reference(weight: np.ndarray, axis: int, scale_dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Quotients before rounding in float64, and the scales, channel by channel."""
    rows = np.moveaxis(weight, axis, 0)
    scales = np.ones(len(rows), scale_dtype)
    quotients = np.zeros(rows.shape)
    for channel, row in enumerate(rows):
        amax = np.abs(row).max()
        if amax:
            scales[channel] = np.float32(amax / np.float32(127)).astype(scale_dtype)
        quotients[channel] = row.astype(np.float64) / float(scales[channel])
    return np.moveaxis(quotients, 0, axis), scales


@pytest.mark.parametrize("scale_dtype", DTYPES)
@pytest.mark.parametrize("axis", [0, 1])
@given(weight=weights)
def test_is_the_definition(axis: int, scale_dtype: str, weight: np.ndarray) -> None:
    integers, scales = round_weights(weight, axis, INT8_NARROW, scale_dtype)
    quotients, expected = reference(weight, axis, scale_dtype)
    assert integers.dtype == np.int8
    assert scales.dtype == scale_dtype
    np.testing.assert_array_equal(scales, expected)
    # A quotient in float32 is within 128 * 2^-24 of the true one, so that halves and what lies that
    # near to them may go either way; everything else is exact.
    clear = np.abs(np.abs(quotients - np.floor(quotients)) - 0.5) > 128 * 2.0**-24
    rounded = np.clip(np.rint(quotients), -127, 127)
    np.testing.assert_array_equal(integers[clear], rounded[clear])
    assert (np.abs(integers - quotients) <= 0.5 + 127 * 2.0**-10).all()


@given(weights)
def test_range_is_narrow_and_each_channel_uses_all_of_it(weight: np.ndarray) -> None:
    integers, _ = round_weights(weight, 0, INT8_NARROW, "float32")
    assert integers.min() >= -127
    widest = np.abs(integers.astype(np.int32)).reshape(len(integers), -1).max(1)
    alive = np.abs(weight).reshape(len(weight), -1).max(1) > 0
    assert (widest[alive] == 127).all()
    assert (widest[~alive] == 0).all()


@pytest.mark.parametrize("scale_dtype", DTYPES)
def test_halves_go_to_even(scale_dtype: str) -> None:
    # The largest is 127 steps of 1/64, so the scale is exact and so are the halves.
    steps = np.float32([127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5])
    integers, scales = round_weights(steps[None] / 64, 0, INT8_NARROW, scale_dtype)
    assert scales.tolist() == [1 / 64]
    assert integers[0].tolist() == [127, 0, 2, 2, 0, -2, -2, 126]


@pytest.mark.parametrize("scale_dtype", DTYPES)
def test_dead_channels_have_scale_one(scale_dtype: str) -> None:
    weight = np.zeros((3, 2, 3, 3), np.float32)
    weight[1] = 0.5
    integers, scales = round_weights(weight, 0, INT8_NARROW, scale_dtype)
    assert scales[0] == scales[2] == 1
    assert not integers[[0, 2]].any()
    assert (integers[1] == 127).all()


def test_float16_scales_are_rounded_before_they_divide() -> None:
    # 1/127 lies between two float16 numbers; the quotients tell which scale was used.
    weight = np.linspace(-1, 1, 4001, dtype=np.float32)[None]
    integers, scales = round_weights(weight, 0, INT8_NARROW, "float16")
    stored, meant = float(scales[0]), 1 / 127
    assert stored != meant
    with_stored = np.clip(np.rint(weight.astype(np.float64) / stored), -127, 127)
    with_meant = np.clip(np.rint(weight.astype(np.float64) / meant), -127, 127)
    assert (integers == with_stored).all()
    assert (integers != with_meant).any()


def test_channels_do_not_see_each_other() -> None:
    weight = np.float32([[1, 0.5, -1], [1000, -3, 500]])
    integers, scales = round_weights(weight, 0, INT8_NARROW, "float32")
    assert integers.tolist() == [[127, 64, -127], [127, 0, 64]]  # 63.5 goes to even
    np.testing.assert_allclose(scales, [1 / 127, 1000 / 127], rtol=1e-7)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("elements", [1, 7, 60, 1 << 20])
def test_blocks_make_no_difference(
    axis: int, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = np.random.default_rng(0).standard_normal((5, 12)).astype(np.float32)
    whole = round_weights(weight, axis, INT8_NARROW, "float32")
    monkeypatch.setattr(sys.modules[round_weights.__module__], "_BLOCK_ELEMENTS", elements)
    parts = round_weights(weight, axis, INT8_NARROW, "float32")
    np.testing.assert_array_equal(whole[0], parts[0])
    np.testing.assert_array_equal(whole[1], parts[1])


@pytest.mark.parametrize("scale_dtype", DTYPES)
def test_scales_are_normal_numbers(scale_dtype: str) -> None:
    weight = np.float32([[1e-40, -1e-40], [1, 2]])
    integers, scales = round_weights(weight, 0, INT8_NARROW, scale_dtype)
    assert scales[0] == np.finfo(scale_dtype).tiny
    assert not integers[0].any()


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("elements", [7, 1 << 20])
@pytest.mark.parametrize("places", [1, 4])
def test_channels_are_rescaled_before_they_are_rounded(
    axis: int, elements: int, places: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs multiplied, inputs divided; several columns an input in front of a convolution."""
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((6, 3 * places)).astype(np.float32)
    factors = Factors(
        rng.uniform(1, 9, 6).astype(np.float32), rng.uniform(1, 9, 3).astype(np.float32)
    )
    expected = weight * np.float64(factors.outputs)[:, None]
    expected /= np.repeat(np.float64(factors.inputs), places)
    monkeypatch.setattr(sys.modules[round_weights.__module__], "_BLOCK_ELEMENTS", elements)
    given_as = weight.T if axis else weight
    integers, scales = round_weights(given_as, axis, INT8_NARROW, "float32", factors=factors)
    np.testing.assert_allclose(scales, np.abs(expected).max(1) / 127, rtol=1e-6)
    steps = expected / scales[:, None]
    assert (np.abs((integers.T if axis else integers) - steps) <= 0.5 + 1e-4).all()
