"""Counts by level are pycachesim's, where its model is the same: true LRU, reads alone, L3 neither in- nor exclusive.

In pycachesim 0.3.1 a store that hits is no use of its line for LRU; a line that is written back is read first, from
further out, where it is not there; its victim cache keeps what it gives back, where an exclusive L3 gives it up.
"""

from __future__ import annotations

from types import ModuleType

import pytest

from fastmmu.cache import CacheHierarchy
from tests.support.cache_streams import STREAMS, stream

N = 40_000


@pytest.fixture(scope="module")
def cachesim() -> ModuleType:
    return pytest.importorskip("cachesim", reason="skipped: pycachesim is not installed (make bench-full)")


@pytest.mark.parametrize("name", STREAMS)
def test_reads_of_three_levels(cachesim: ModuleType, name: str) -> None:
    hpa, _ = stream(name, N)
    memory = cachesim.MainMemory()
    third = cachesim.Cache("L3", 1024, 16, 64, "LRU")
    second = cachesim.Cache("L2", 256, 4, 64, "LRU", load_from=third)
    memory.load_to(third)
    memory.store_from(third)
    first = cachesim.Cache("L1", 64, 8, 64, "LRU", load_from=second)
    cachesim.CacheSimulator(first, memory).loadstore([((at,), None) for at in hpa.tolist()], length=1)
    expected = [first.stats()["HIT_count"], second.stats()["HIT_count"], third.stats()["HIT_count"]]
    found = CacheHierarchy("skylake l2=64k/4 l3=1m/16 inclusion=neither").access(hpa)
    assert list(found[:3]) == expected
    assert sum(found) == N
