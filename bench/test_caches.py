"""Data caches alone: `CacheHierarchy.access`, beside pycachesim where its model is the same."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from bench.race import Race, Rival, Scale, timed
from fastmmu.cache import CacheHierarchy

U64 = npt.NDArray[np.uint64]
Counts = tuple[int, int, int]


def hot(n: int) -> U64:
    """Eight lines, word by word: each is the one used last in its set."""
    return np.arange(n, dtype=np.uint64) % np.uint64(64) * np.uint64(8)


def resident(n: int) -> U64:
    """Uniform over 200 KB: six in seven miss L1D, and L2 holds them."""
    return np.random.default_rng(1).integers(0, 200_000, n, dtype=np.uint64)


def memory(n: int) -> U64:
    """Uniform over 1 GB: no cache holds it."""
    return np.random.default_rng(1).integers(0, 1 << 30, n, dtype=np.uint64)


STREAMS: dict[str, Callable[[int], U64]] = {"hot": hot, "resident": resident, "memory": memory}


def pycachesim(hpa: U64) -> Callable[[], Counts]:
    cachesim = pytest.importorskip("cachesim", reason="skipped: pycachesim is not there; pip install --group bench")
    asked = [((at,), None) for at in hpa.tolist()]

    def run() -> Counts:
        main = cachesim.MainMemory()
        third = cachesim.Cache("L3", 8192, 16, 64, "LRU")
        second = cachesim.Cache("L2", 1024, 4, 64, "LRU", load_from=third)
        first = cachesim.Cache("L1", 64, 8, 64, "LRU", load_from=second)
        main.load_to(third)
        main.store_from(third)
        cachesim.CacheSimulator(first, main).loadstore(asked, length=1)
        one, two, three = (level.stats()["HIT_count"] for level in (first, second, third))
        return one, two, three

    return run


@pytest.mark.benchmark(group="data caches, beside other packages")
@pytest.mark.parametrize("name", STREAMS)
def test_beside_pycachesim(race: Race, scale: Scale, name: str) -> None:
    """Equal counts, in half the time where most references go to memory, in less elsewhere."""
    hpa = STREAMS[name](scale.of(20_000, 300_000, 2_000_000))
    theirs = pycachesim(hpa)
    new: list[CacheHierarchy] = []
    counted: list[Counts] = []

    def fresh() -> None:
        new[:] = [CacheHierarchy("skylake inclusion=neither")]

    peer = Rival("pycachesim", timed(lambda: counted.append(theirs())), len(hpa))
    found = race(lambda: new[0].access(hpa), len(hpa), [peer], target=0.6, fresh=fresh)
    assert set(counted) == {found[:3]}
    assert sum(found) == len(hpa)


@pytest.mark.benchmark(group="data caches")
@pytest.mark.parametrize("text", ["skylake", "icelake", "zen3", "skylake policy=plru", "skylake policy=srrip"])
def test_policies_and_inclusion(race: Race, scale: Scale, text: str) -> None:
    """A reference that L2 holds, by preset and policy."""
    hpa = resident(scale.of(20_000, 1_000_000, 4_000_000))
    caches = CacheHierarchy(text)
    found = race(lambda: caches.access(hpa), len(hpa))
    assert sum(found) == len(hpa)
    assert found[0] + found[1] > len(hpa) // 2
