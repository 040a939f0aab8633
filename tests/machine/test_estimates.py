"""Means of samples and their confidence intervals."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest

from fastmmu.machine.estimates import CARRY, FEW, estimate, student

# Two-sided 95 % and 99 % of Student's t, as every table has them.
TABLE = {9: (2.262, 3.250), 15: (2.131, 2.947), 29: (2.045, 2.756), 60: (2.000, 2.660), 120: (1.980, 2.617)}


@pytest.mark.parametrize("df", TABLE)
def test_quantiles_of_student(df: int) -> None:
    assert student(0.975, df) == pytest.approx(TABLE[df][0], abs=2e-3)
    assert student(0.995, df) == pytest.approx(TABLE[df][1], abs=6e-3)
    assert student(0.975, 1e9) == pytest.approx(NormalDist().inv_cdf(0.975))


def test_of_normal_values_it_is_students_interval() -> None:
    y = np.random.default_rng(1).normal(10, 2, 400)
    mean, low, high = estimate(y)
    assert low is not None
    assert high is not None
    half = 1.966 * y.std(ddof=1) / 20
    assert (low, high) == (pytest.approx(mean - half, abs=0.01), pytest.approx(mean + half, abs=0.01))


@pytest.mark.parametrize(
    "population",
    [
        np.random.default_rng(2).normal(5, 1, 20_000),
        np.random.default_rng(3).exponential(1, 20_000),
        np.random.default_rng(4).poisson(0.1, 20_000).astype(float),
        np.random.default_rng(5).lognormal(0, 1, 20_000),
        np.random.default_rng(6).poisson(0.08, 20_000) * np.random.default_rng(7).geometric(0.2, 20_000).astype(float),
    ],
    ids=["normal", "exponential", "rare", "lognormal", "rare bursts"],
)
def test_intervals_hold_the_mean_as_often_as_they_say(population: np.ndarray) -> None:
    hits = stated = 0
    for seed in range(400):
        y = np.random.default_rng((9, seed)).choice(population, 1000, replace=False)
        _, low, high = estimate(y)
        if low is not None and high is not None:
            stated += 1
            hits += low <= population.mean() <= high
    assert stated > 360
    assert hits / stated >= 0.935  # 400 draws: their own error is 0.011


@pytest.mark.parametrize(
    "values",
    [np.arange(FEW - 1), np.repeat([0.0, 1.0], [1000, FEW - 1]), [], [3.0],
     np.concatenate([np.zeros(1000), np.ones(50), [1e6]]), np.zeros(500)],
)  # fmt: skip
def test_what_says_too_little_is_not_stated(values: object) -> None:
    found = estimate(values)  # type: ignore[arg-type]
    assert (found.low, found.high) == (None, None)
    assert CARRY >= 1


def test_what_never_varies_is_known() -> None:
    assert estimate(np.full(100, 7.0)) == (7, 7, 7)
