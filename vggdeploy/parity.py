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
        kl_mean: mean Kullback-Leibler divergence of the softmaxes, reference first, in nats.
        max_abs: largest absolute difference of any score.
    """

    n: int
    top1_agreement: float
    cosine_mean: float
    cosine_min: float
    sqnr_db: float
    kl_mean: float
    max_abs: float


@dataclass(frozen=True)
class Accuracy:
    """How often the right class is found; all shares are in 0 to 1.

    Attributes:
        n: labelled images.
        drop: ``reference_top1 - top1``.
        ci95: Wilson's 95% interval of top1.
        mcnemar_p: exact two-sided p-value that the engine and the reference err equally often.
    """

    n: int
    top1: float
    top5: float
    reference_top1: float
    drop: float
    ci95: tuple[float, float]
    mcnemar_p: float


def parity(reference: Scores, outputs: Scores) -> Parity:
    """Compare `outputs` with `reference`, both ``[N, classes]``."""
    ref, out = reference.astype(np.float64), outputs.astype(np.float64)
    error = ref - out
    cosine = _cosine(ref, out)
    log_p, log_q = _log_softmax(ref), _log_softmax(out)
    kl = (np.exp(log_p) * (log_p - log_q)).sum(1)
    return Parity(
        n=len(ref),
        top1_agreement=float((ref.argmax(1) == out.argmax(1)).mean()),
        cosine_mean=float(cosine.mean()),
        cosine_min=float(cosine.min()),
        sqnr_db=float(sqnr_db(ref, out).mean()),
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
    best5 = np.argsort(-outputs, axis=1, kind="stable")[:, :5]
    return Accuracy(
        n=len(labels),
        top1=float(right.mean()),
        top5=float((best5 == labels[:, None]).any(1).mean()),
        reference_top1=float(reference_right.mean()),
        # From the counts, so that two of 400 are 0.005 and not a hair more.
        drop=(int(reference_right.sum()) - int(right.sum())) / len(labels),
        ci95=wilson(int(right.sum()), len(labels)),
        mcnemar_p=mcnemar(
            int((right & ~reference_right).sum()), int((~right & reference_right).sum())
        ),
    )


def not_finite(scores: Scores) -> NDArray[np.intp]:
    """Indices of the images with a score that is NaN or infinite."""
    return np.flatnonzero(~np.isfinite(scores).all(1))


def wilson(successes: int, trials: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's score interval for a proportion (Wilson, JASA 22, 1927); `z` is 95% by default."""
    share = successes / trials
    centre = share + z**2 / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    scale = 1 + z**2 / trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def mcnemar(gained: int, lost: int) -> float:
    """Exact McNemar test (McNemar, Psychometrika 12, 1947): a two-sided sign test.

    Args:
        gained: images that only the engine gets right.
        lost: images that only the reference gets right.
    """
    n = gained + lost
    tail = sum(math.comb(n, k) for k in range(min(gained, lost) + 1))
    return min(1.0, float(2 * tail / 2**n))


def _cosine(ref: NDArray[np.float64], out: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(ref, axis=1) * np.linalg.norm(out, axis=1)
    alike = (ref == out).all(1).astype(np.float64)
    product: NDArray[np.float64] = (ref * out).sum(1)
    cosine: NDArray[np.float64] = np.divide(product, lengths, out=alike, where=lengths > 0)
    return cosine


def _log_softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = scores - scores.max(1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return result
