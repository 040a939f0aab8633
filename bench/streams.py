"""Addresses as programs have them: how many of them the first level of a TLB holds, and how many miss the second."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
FIRST = 0x10000000000


def of_pages(number: npt.NDArray[np.int64], rng: np.random.Generator, first: int = 0) -> U64:
    """An address in each of these pages."""
    within = rng.integers(0, 4096, len(number)).astype(np.uint64)
    return np.uint64(first) + (number.astype(np.uint64) << np.uint64(12)) + within


def held(n: int, cold_pages: int, seed: int = 1) -> U64:
    """94 % in 48 hot pages, three to a set of 64/4; the others uniform over `cold_pages`."""
    rng = np.random.default_rng(seed)
    hot = rng.integers(0, 48, n)
    cold = 1 << 20 | rng.integers(0, cold_pages, n)
    return of_pages(np.where(rng.random(n) < 0.955, hot, cold), rng, FIRST)


def hot(n: int) -> U64:
    """Runs on one of 48 pages, and excursions to 3,000 others: 94 % hit the first level, as many programs do."""
    rng = np.random.default_rng(1)
    pages = np.repeat(rng.integers(0, 48, n), rng.geometric(0.25, n))[:n]
    return of_pages(np.where(rng.random(n) < 0.962, pages, 1 << 20 | rng.integers(0, 3000, n)), rng)


def zipf(n: int) -> U64:
    """Few pages often, many seldom: three in four hit the first level."""
    rng = np.random.default_rng(1)
    weight = 1 / np.arange(1, 20_001) ** 1.35
    return of_pages(rng.permutation(1 << 20)[rng.choice(20_000, n, p=weight / weight.sum())], rng)


def uniform(n: int) -> U64:
    """Over 2,000 pages: hardly any hits the first level."""
    rng = np.random.default_rng(1)
    return of_pages(rng.integers(0, 2000, n), rng)
