"""Parity with the reference, and accuracy against labels.

Pure functions of arrays: scores are float32 ``[N, classes]``, labels int64 ``[N]``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Scores = NDArray[np.float32]

Z95 = 1.959963984540054
"""The 97.5% point of the normal distribution: of a two-sided 95% interval."""

SQNR_LIMIT_DB = 20 * math.log10(2**24)
"""Where noise drowns in float32's own rounding (24 bits of significand): 144.5 dB. Identical
outputs are given this figure, since JSON has no infinity."""


@dataclass(frozen=True)
class Parity:
    """How close outputs are to the reference's.

    Attributes:
        n: images.
        top1_agreement: share of images with the same best class.
        cosine_mean: mean cosine similarity of the scores.
        cosine_min: the smallest one.
        sqnr_db: mean over images of ``10 log10(sum ref^2 / sum (ref - out)^2)``, in decibels.
        sqnr_ci95: 95% interval of that mean over other such images, in decibels, by Student's t;
            None for one image.
        kl_mean: mean Kullback-Leibler divergence of the softmaxes, reference first, in nats.
        max_abs: largest absolute difference of any score.
    """

    n: int
    top1_agreement: float
    cosine_mean: float
    cosine_min: float
    sqnr_db: float
    sqnr_ci95: tuple[float, float] | None
    kl_mean: float
    max_abs: float


@dataclass(frozen=True)
class Accuracy:
    """How often the right class is found; all shares are in 0 to 1.

    Attributes:
        n: labelled images.
        gained: images that only the engine gets right.
        lost: images that only the reference gets right.
        drop: ``reference_top1 - top1``, which is ``(lost - gained) / n``.
        drop_ci95: Tango's 95% interval of the drop.
        ci95: Wilson's 95% interval of top1.
        mcnemar_p: exact two-sided p-value that the engine and the reference err equally often.
    """

    n: int
    top1: float
    top5: float
    reference_top1: float
    gained: int
    lost: int
    drop: float
    drop_ci95: tuple[float, float]
    ci95: tuple[float, float]
    mcnemar_p: float


def parity(reference: Scores, outputs: Scores) -> Parity:
    """Compare `outputs` with `reference`, both ``[N, classes]``."""
    ref, out = reference.astype(np.float64), outputs.astype(np.float64)
    error = ref - out
    cosine = _cosine(ref, out)
    log_p, log_q = _log_softmax(ref), _log_softmax(out)
    kl = (np.exp(log_p) * (log_p - log_q)).sum(1)
    sqnr = sqnr_db(ref, out)
    return Parity(
        n=len(ref),
        top1_agreement=float((ref.argmax(1) == out.argmax(1)).mean()),
        cosine_mean=float(cosine.mean()),
        cosine_min=float(cosine.min()),
        sqnr_db=float(sqnr.mean()),
        sqnr_ci95=mean_interval(sqnr),
        kl_mean=float(np.maximum(kl, 0).mean()),
        max_abs=float(np.abs(error).max()),
    )


def sqnr_db(reference: NDArray[np.floating], outputs: NDArray[np.floating]) -> NDArray[np.float64]:
    """Signal to quantization noise of each row, in decibels, at most `SQNR_LIMIT_DB`."""
    ref = reference.astype(np.float64)
    signal = np.square(ref).sum(1)
    noise = np.square(ref - outputs).sum(1)
    floor = signal * 10 ** (-SQNR_LIMIT_DB / 10)
    ratio = np.divide(
        signal, np.maximum(noise, floor), out=np.full_like(signal, 1.0), where=signal > 0
    )
    # A reference of zeros has no signal: 0 dB if the output is not zeros too.
    ratio[(signal == 0) & (noise == 0)] = 10 ** (SQNR_LIMIT_DB / 10)
    decibels: NDArray[np.float64] = 10 * np.log10(np.maximum(ratio, 10 ** (-SQNR_LIMIT_DB / 10)))
    return decibels


def accuracy(reference: Scores, outputs: Scores, labels: NDArray[np.int64]) -> Accuracy:
    """Judge `outputs` and `reference` against `labels`."""
    right = outputs.argmax(1) == labels
    reference_right = reference.argmax(1) == labels
    gained, lost = int((right & ~reference_right).sum()), int((~right & reference_right).sum())
    best5 = np.argsort(-outputs, axis=1, kind="stable")[:, :5]
    return Accuracy(
        n=len(labels),
        top1=float(right.mean()),
        top5=float((best5 == labels[:, None]).any(1).mean()),
        reference_top1=float(reference_right.mean()),
        gained=gained,
        lost=lost,
        # From the counts, so that two of 400 are 0.005 and not a hair more.
        drop=(lost - gained) / len(labels),
        drop_ci95=tango(gained, lost, len(labels)),
        ci95=wilson(int(right.sum()), len(labels)),
        mcnemar_p=mcnemar(gained, lost),
    )


def not_finite(scores: Scores) -> NDArray[np.intp]:
    """Indices of the images with a score that is NaN or infinite."""
    return np.flatnonzero(~np.isfinite(scores).all(1))


def wilson(successes: float, trials: float, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval for a proportion (Wilson, JASA 22, 1927); `z` is 95% by default."""
    share = successes / trials
    centre = share + z**2 / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    scale = 1 + z**2 / trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def tango(gained: float, lost: float, images: float, z: float = Z95) -> tuple[float, float]:
    """Tango's score interval for the drop ``(lost - gained) / images`` between paired proportions.

    The drops that a score test with the others estimated under it does not refuse at this level
    (T. Tango, Statistics in Medicine 17, 1998). It holds its level where hardly any image is decided
    otherwise, and with none at all it still has a width, near ``z**2 / (images + z**2)`` each way.

    Args:
        gained: images that only the engine gets right.
        lost: images that only the reference gets right.
        images: all of them.
        z: of the level, 95% by default.
    """
    drop = (lost - gained) / images

    def score(tried: float) -> float:
        """How many standard errors the drop lies above one that was tried."""
        linear = -lost - gained + (2 * images - lost + gained) * tried
        constant = -gained * tried * (1 - tried)
        root = math.sqrt(max(0.0, linear**2 - 8 * images * constant))
        # Probability of an image that only the engine gets right, were `tried` the drop.
        only = (root - linear) / (4 * images)
        variance = images * (2 * only + tried * (1 - tried))
        distance = lost - gained - images * tried
        if variance <= 0:
            return math.copysign(math.inf, distance) if distance else 0.0
        return distance / math.sqrt(variance)

    def end(outer: float, sign: float) -> float:
        """Bisect between the drop, which is not refused, and `outer`."""
        inner = drop
        for _ in range(60):
            middle = (inner + outer) / 2
            if sign * score(middle) <= z:
                inner = middle
            else:
                outer = middle
        return inner

    return end(-1.0, 1.0), end(1.0, -1.0)


def mean_interval(values: NDArray[np.float64]) -> tuple[float, float] | None:
    """95% interval of a mean by Student's t; None for a single value."""
    count = len(values)
    if count < 2:
        return None
    half = student95(count - 1) * float(values.std(ddof=1)) / math.sqrt(count)
    mean = float(values.mean())
    return mean - half, mean + half


def student95(freedom: int) -> float:
    """The 97.5% point of Student's t, to a part in a hundred for 3 degrees of freedom and more.

    Cornish and Fisher's expansion of it around the normal's (Abramowitz and Stegun, "Handbook of
    Mathematical Functions", 26.7.5); exact values below 3.
    """
    if freedom < 3:
        return {1: 12.706204736, 2: 4.302652730}[freedom]
    z, v = Z95, float(freedom)
    terms = (
        (z**3 + z) / (4 * v),
        (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2),
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3),
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * v**4),
    )
    return z + sum(terms)


def mcnemar(gained: int, lost: int) -> float:
    """Exact McNemar test (McNemar, Psychometrika 12, 1947): a two-sided sign test.

    Args:
        gained: images that only the engine gets right.
        lost: images that only the reference gets right.
    """
    n = gained + lost
    ways = tail = 1  # to choose none of n, and then one more from one to the next
    for k in range(min(gained, lost)):
        ways = ways * (n - k) // (k + 1)
        tail += ways
    return min(1.0, float(2 * tail / 2**n))


def _cosine(ref: NDArray[np.float64], out: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(ref, axis=1) * np.linalg.norm(out, axis=1)
    product = (ref * out).sum(1)
    cosine = np.divide(product, lengths, out=np.zeros(len(ref)), where=lengths > 0)
    # Rounding must not put it beyond its ends, nor what is the same below them.
    exact: NDArray[np.float64] = np.where((ref == out).all(1), 1.0, cosine.clip(-1, 1))
    return exact


def _log_softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = scores - scores.max(1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return result
