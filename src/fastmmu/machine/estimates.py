"""Means of a population from a sample of it, with confidence intervals that hold for counts of rare things, too.

A counter of intervals is far from normal: most have none of a rare event, and few have many. Three things are done for
it. Student's t has the degrees of freedom that the kurtosis of the sample leaves (Satterthwaite: those of a chi-square
distribution with the variance that the sample's variance has). The interval covers Hall's (1992, "On the removal of
skewness by transformation") beside the symmetric one. And no interval is stated where fewer than `FEW` values of the
sample differ from its median, or the spread is that of fewer than `CARRY` of them, n / (kurtosis - 1): of what there is
a few times in all a sample says little.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["CARRY", "FEW", "Estimate", "estimate", "student"]

FEW, CARRY = 30, 1.1
"""Values of a sample that must differ, and that must carry its spread, for its error to be known."""


class Estimate(NamedTuple):
    """A mean and its confidence interval; None, None: the sample has too few intervals that differ."""

    mean: float
    low: float | None
    high: float | None


def student(probability: float, df: float) -> float:
    """Quantile of Student's t, for 9 degrees of freedom or more to 3 digits (Abramowitz and Stegun 26.7.5)."""
    z = NormalDist().inv_cdf(probability)
    return z + (
        (z**3 + z) / (4 * df)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * df**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * df**4)
    )


def estimate(values: npt.ArrayLike, *, confidence: float = 0.95) -> Estimate:
    """Of a sample of equal intervals: that it may be a large part of all, which makes its error smaller, is not counted
    on.

    :param values: of the intervals that were drawn.
    """
    y = np.asarray(values, np.float64)
    n = len(y)
    mean = float(y.mean()) if n else 0.0
    if n < FEW:
        return Estimate(mean, None, None)
    d = y - mean
    variance = float((d**2).mean())
    if variance == 0:
        return Estimate(mean, mean, mean) if mean else Estimate(mean, None, None)
    kurtosis, skewness = float((d**4).mean() / variance**2), float((d**3).mean() / variance**1.5)
    if np.count_nonzero(y != np.median(y)) < FEW or n < CARRY * (kurtosis - 1):
        return Estimate(mean, None, None)
    df = min(n - 1.0, 2 * n / (kurtosis - 1)) if kurtosis > 1 else n - 1.0
    t = student((1 + confidence) / 2, df)
    error = (variance * n / (n - 1)) ** 0.5
    half = t * error / n**0.5
    low, high = _hall(mean, error, skewness, n, t)
    return Estimate(mean, min(low, mean - half), max(high, mean + half))


def _hall(mean: float, error: float, skewness: float, n: int, t: float) -> tuple[float, float]:
    """Hall's interval: that of a cubic in Student's ratio, which has next to no skewness."""
    if abs(skewness) < 1e-9:
        return mean, mean

    def back(value: float) -> float:
        return 3 / skewness * (float(np.cbrt(1 + skewness * (value - skewness / (6 * n)))) - 1)

    return mean - error * back(t / n**0.5), mean - error * back(-t / n**0.5)
