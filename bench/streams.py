"""Addresses and events as programs have them: how many hit the first level of a TLB, miss the second, or exit."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastmmu import ExitReason, Op

Events = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.uint64]]
"""Operations, sizes, addresses."""

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


def reads(va: U64) -> Events:
    """A read of a byte at each address."""
    return np.full(len(va), Op.READ, np.uint8), np.ones(len(va), np.uint8), va


def cpuids(n: int) -> Events:
    """CPUID n times."""
    return np.full(n, Op.EXIT, np.uint8), np.zeros(n, np.uint8), np.full(n, ExitReason.CPUID, np.uint64)


def first_pass(n: int) -> Events:
    """A write of each of n pages, one after the other."""
    va = np.uint64(FIRST) + np.arange(n, dtype=np.uint64) * np.uint64(4096)
    return np.full(n, Op.WRITE, np.uint8), np.full(n, 8, np.uint8), va


TPR, SVR = 0x80 << 32, 0xF0 << 32


def enable_apic() -> Events:
    """The guest enables its local APIC."""
    return np.array([Op.APIC_WRITE], np.uint8), np.zeros(1, np.uint8), np.array([SVR | 0x1FF], np.uint64)


def tpr_traffic(n: int, share: float = 0.2) -> Events:
    """Accesses of 64 pages; instead of a share of them, a read or a write of the TPR."""
    chance = np.random.default_rng(0)
    pages, words = chance.integers(0, 64, n), chance.integers(0, 512, n)
    addr = (0x40_0000 + pages * 4096 + words * 8).astype(np.uint64)
    op = chance.integers(0, 2, n).astype(np.uint8)
    tpr = chance.random(n) < share
    value = np.uint64(TPR) | chance.integers(0, 16, n).astype(np.uint64) << np.uint64(4)
    kind = np.where(chance.random(n) < 0.5, np.uint8(Op.APIC_WRITE), np.uint8(Op.APIC_READ))
    return np.where(tpr, kind, op), np.ones(n, np.uint8), np.where(tpr, value, addr)
