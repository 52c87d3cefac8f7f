"""Parity and accuracy against independent computations and published figures."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vggdeploy import parity

LIMIT = 20 * math.log10(2**24)

scores = st.floats(-60, 60, width=32)
pairs = st.tuples(st.integers(1, 5), st.integers(2, 9)).flatmap(
    lambda shape: st.tuples(*[hnp.arrays(np.float32, shape, elements=scores)] * 2)
)


def log_softmax(row):
    total = math.log(math.fsum(math.exp(value - max(row)) for value in row))
    return [value - max(row) - total for value in row]


def one(ref, out):
    """SQNR, cosine, divergence and largest difference of one row: plain Python, exact sums."""
    signal = math.fsum(a * a for a in ref)
    noise = math.fsum((a - b) ** 2 for a, b in zip(ref, out, strict=True))
    other = math.fsum(b * b for b in out)
    if noise == 0:
        decibels = LIMIT
    elif signal == 0:
        decibels = 0.0
    else:
        decibels = max(-LIMIT, min(LIMIT, 10 * (math.log10(signal) - math.log10(noise))))
    if signal and other:
        cosine = (
            math.fsum(a * b for a, b in zip(ref, out, strict=True))
            / math.sqrt(signal)
            / math.sqrt(other)
        )
    else:
        cosine = float(signal == other)
    p, q = log_softmax(ref), log_softmax(out)
    divergence = math.fsum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))
    return (
        decibels,
        cosine,
        max(0.0, divergence),
        max(abs(a - b) for a, b in zip(ref, out, strict=True)),
    )


@given(pairs)
def test_every_figure_against_plain_python(pair):
    ref, out = pair
    rows = [one(a, b) for a, b in zip(ref.tolist(), out.tolist(), strict=True)]
    decibels, cosines, divergences, largest = zip(*rows, strict=True)
    found = parity.parity(ref, out)
    assert found.n == len(ref)
    lists = zip(ref.tolist(), out.tolist(), strict=True)
    best = [a.index(max(a)) == b.index(max(b)) for a, b in lists]
    assert found.top1_agreement == sum(best) / len(best)
    # float64 sums of at most 9 terms: relative 9 * 2^-53, 4.4e-15 dB; the difference of two
    # logarithms of magnitude up to 100 adds 1e-13.
    assert found.sqnr_db == pytest.approx(math.fsum(decibels) / len(rows), abs=1e-11)
    assert found.cosine_mean == pytest.approx(math.fsum(cosines) / len(rows), abs=1e-14)
    assert found.cosine_min == pytest.approx(min(cosines), abs=1e-14)
    # Terms of magnitude up to 120, each rounded to 2^-53 of itself a few times.
    assert found.kl_mean == pytest.approx(math.fsum(divergences) / len(rows), abs=1e-12)
    assert found.max_abs == max(largest)
    assert np.allclose(parity.sqnr_db(ref, out), decibels, rtol=0, atol=1e-11)


@given(hnp.arrays(np.float32, (3, 7), elements=scores))
def test_identical_outputs_are_perfect(array):
    found = parity.parity(array, array.copy())
    assert (found.top1_agreement, found.kl_mean, found.max_abs) == (1, 0, 0)
    assert found.sqnr_db == pytest.approx(LIMIT, abs=1e-11)
    assert found.cosine_min == pytest.approx(1, abs=1e-15)


def test_the_mean_of_decibels_is_over_images():
    ref = np.array([[3, 4], [3, 4]], np.float32)
    out = ref + np.array([[0.5, 0], [0, 0.05]], np.float32)
    # 25 over 0.25 and over 0.0025: 20 and 40 dB. (Over all at once it would be 23 dB.) 4.05 is off
    # by up to 2^-23 in float32, which is 2.4e-6 of 0.05 and 2e-5 dB.
    assert parity.parity(ref, out).sqnr_db == pytest.approx(30, abs=5e-5)


def test_rows_of_zeros():
    zeros, ones = np.zeros((1, 4), np.float32), np.ones((1, 4), np.float32)
    both, lost = parity.parity(zeros, zeros), parity.parity(ones, zeros)
    assert (both.sqnr_db, both.cosine_min) == (pytest.approx(LIMIT), 1)
    assert (lost.sqnr_db, lost.cosine_min) == (0, 0)
    made = parity.parity(zeros, ones)
    assert (made.sqnr_db, made.cosine_min, made.max_abs) == (0, 0, 1)


def test_infinities_do_not_come_out():
    ref, out = np.full((2, 3), 1e-30, np.float32), np.full((2, 3), 3e38, np.float32)
    for found in (parity.parity(ref, out), parity.parity(out, ref)):
        assert np.isfinite(np.hstack(list(vars(found).values()))).all()


# Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17
# (1998), table I, method 3.
@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilsons_interval_is_the_published_one(successes, trials, low, high):
    found = parity.wilson(successes, trials)
    assert found == pytest.approx((low, high), abs=5e-5)
    mirrored = parity.wilson(trials - successes, trials)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=5e-5)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilsons_interval_holds_the_share(case):
    successes, trials = case
    low, high = parity.wilson(successes, trials)
    # A rounding at the ends: the exact bound for none right is 0.
    assert 0 <= low <= successes / trials + 1e-15
    assert successes / trials - 1e-15 <= high <= 1


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [
        (0, 0, 1.0),
        (0, 1, 1.0),
        (0, 5, 2 / 32),
        (1, 5, 2 * (1 + 6) / 64),
        (2, 10, 2 * (1 + 12 + 66) / 4096),
        (3, 3, 1.0),
        (4, 5, 1.0),
        (0, 2000, 0.0),
    ],
)
def test_mcnemar_by_hand(gained, lost, p):
    assert parity.mcnemar(gained, lost) == parity.mcnemar(lost, gained) == p


def test_the_cosine_of_what_is_alike_is_one():
    rng = np.random.default_rng(0)
    for _ in range(200):
        scores = rng.normal(size=(32, 10)).astype(np.float32)
        found = parity.parity(scores, scores)
        assert (found.cosine_min, found.cosine_mean) == (1, 1)
        assert parity.parity(scores, 3 * scores).cosine_min <= 1
        assert parity.parity(scores, -3 * scores).cosine_min >= -1


def test_mcnemar_of_many_images():
    # For 1,000 against 1,100 the normal approximation with continuity correction gives 0.0307.
    assert parity.mcnemar(1000, 1100) == pytest.approx(0.0307, abs=2e-4)


def test_accuracy_by_hand():
    labels = np.array([0, 1, 2, 3])
    reference = np.eye(8, dtype=np.float32)[[0, 1, 2, 7]]
    # Right; sixth; second and so among five; right where the reference is not.
    outputs = np.array(
        [
            [9, 1, 2, 3, 4, 5, 6, 7],
            [9, 3, 8, 7, 6, 5, 1, 0],
            [9, 1, 8, 0, 0, 0, 0, 0],
            [0, 0, 0, 9, 0, 0, 0, 0],
        ],
        np.float32,
    )
    found = parity.accuracy(reference, outputs, labels)
    assert (found.n, found.top1, found.top5, found.reference_top1) == (4, 0.5, 0.75, 0.75)
    assert found.drop == 0.25
    assert found.ci95 == parity.wilson(2, 4)
    assert found.mcnemar_p == parity.mcnemar(1, 2) == 1.0


def test_ties_go_to_the_lower_class_everywhere():
    scores = np.zeros((1, 9), np.float32)
    first, fifth, sixth = (
        parity.accuracy(scores, scores, np.array([label])) for label in (0, 4, 5)
    )
    assert (first.top1, first.top5) == (1, 1)
    assert (fifth.top1, fifth.top5) == (0, 1)
    assert (sixth.top1, sixth.top5) == (0, 0)


@pytest.mark.parametrize("right", range(380, 401))
def test_two_of_400_are_half_a_point(right):
    labels = np.zeros(400, np.int64)
    scores = np.zeros((400, 10), np.float32)
    reference, outputs = scores.copy(), scores.copy()
    reference[np.arange(400), np.where(np.arange(400) < right, 0, 1)] = 1
    outputs[np.arange(400), np.where(np.arange(400) < right - 2, 0, 1)] = 1
    assert parity.accuracy(reference, outputs, labels).drop == 0.005


def by_likelihood(gained, lost, images, drop):
    """Tango's statistic with the other probability found by trying them all."""
    only = np.linspace(max(0.0, -drop), (1 - drop) / 2, 2_000_001)[1:-1]
    rest = 1 - 2 * only - drop
    with np.errstate(divide="ignore", invalid="ignore"):
        likelihood = (images - gained - lost) * np.log(rest)
        likelihood = likelihood + (gained * np.log(only) if gained else 0)
        likelihood = likelihood + (lost * np.log(only + drop) if lost else 0)
    best = only[np.nanargmax(likelihood)]
    return (lost - gained - images * drop) / np.sqrt(images * (2 * best + drop * (1 - drop)))


@pytest.mark.parametrize(("gained", "lost", "images"), [(1, 3, 50), (4, 0, 40), (12, 20, 400)])
def test_tangos_interval_ends_where_the_score_test_refuses(gained, lost, images):
    low, high = parity.tango(gained, lost, images)
    assert low < (lost - gained) / images < high
    assert by_likelihood(gained, lost, images, low) == pytest.approx(parity.Z95, rel=1e-3)
    assert by_likelihood(gained, lost, images, high) == pytest.approx(-parity.Z95, rel=1e-3)


def test_tangos_interval_is_even_and_has_a_width_without_any_difference():
    assert parity.tango(3, 1, 50) == pytest.approx([-x for x in reversed(parity.tango(1, 3, 50))])
    low, high = parity.tango(0, 0, 400)
    assert high == pytest.approx(-low) == pytest.approx(parity.Z95**2 / (400 + parity.Z95**2), 1e-3)
    assert parity.tango(0, 7, 7)[1] == pytest.approx(1)


def test_students_points_are_those_of_the_tables():
    for freedom, point in ((1, 12.706), (2, 4.303), (3, 3.182), (5, 2.571), (30, 2.042)):
        assert parity.student95(freedom) == pytest.approx(point, rel=2e-3)
    assert parity.mean_interval(np.array([1.0])) is None
    assert parity.mean_interval(np.array([1.0, 3.0])) == pytest.approx(
        (2 - 12.706, 2 + 12.706), 1e-3
    )
