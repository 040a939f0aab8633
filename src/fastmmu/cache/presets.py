"""Presets of data caches.

=============  ==========================================================================================
preset         L1D; L1I; L2; L3 (sizes / ways, latencies in cycles)
=============  ==========================================================================================
core2          32K/8 3; 32K/8; 4M/16 15; none
nehalem        32K/8 4; 32K/4; 256K/8 10; 8M/16 38 inclusive
sandybridge    32K/8 4; 32K/8; 256K/8 12; 8M/16 28 inclusive
haswell        32K/8 4; 32K/8; 256K/8 12; 8M/16 36 inclusive
broadwell      as haswell
skylake        32K/8 4; 32K/8; 256K/4 14; 8M/16 44 inclusive (clients: 4 cores)
skylake-sp     32K/8 4; 32K/8; 1M/16 14; 20 x 1.375M/11 68 exclusive (servers: 20 cores)
icelake        48K/12 5; 32K/8; 1.25M/20 14; 28 x 1.5M/12 70 exclusive (servers: 28 cores)
zen1           32K/8 4; 64K/4; 512K/8 12; 8M/16 39 exclusive (of 4 cores)
zen2           32K/8 4; 32K/8; 512K/8 12; 16M/16 39 exclusive (of 4 cores)
zen3           32K/8 4; 32K/8; 512K/8 12; 32M/16 46 exclusive (of 8 cores)
zen4           32K/8 4; 32K/8; 1M/8 14; 32M/16 50 exclusive (of 8 cores)
=============  ==========================================================================================

Sources: sizes, ways and inclusion as Intel's and AMD's optimization manuals give them, quoted in public (WikiChip);
AMD: L2 is inclusive of L1, L3 takes what leaves L2. Latencies: the same, those of L3 as they were measured in public,
without contention. "skylake" has those of [memory] in machine/costs.toml (Intel's least of L2 is 12). Estimates: all
of memory, 200 cycles for another row (50..60 ns) and 150 for the open one, 32 banks (two channels of 16) of rows of
8 KB. Unverified: that zen3, zen4 keep L1 in L2. Choices: true LRU everywhere, where processors have variants of PLRU
and RRIP that nobody documents; no prefetcher; one CPU uses all of an L3 (caches.md §1).
"""

from __future__ import annotations

from fastmmu.cache.description import Cache, CacheDescription, Memory

__all__ = ["CACHE_PRESETS"]

_K, _M = 1 << 10, 1 << 20


def _intel(name: str, l2: Cache, l3: Cache | None, *, l1d: Cache | None = None, l1i: Cache | None = None,
           inclusion: str = "inclusive") -> CacheDescription:  # fmt: skip
    first = Cache(32 * _K, 8, 4)
    return CacheDescription(
        name=name, l1d=l1d or first, l1i=l1i or first, l2=l2, l3=l3, memory=Memory(), inclusion=inclusion
    )


def _amd(name: str, l2: Cache, l3: Cache, *, l1i: Cache | None = None) -> CacheDescription:
    first = Cache(32 * _K, 8, 4)
    return CacheDescription(
        name=name, l1d=first, l1i=l1i or first, l2=l2, l3=l3, memory=Memory(), inclusion="exclusive", l2_inclusive=True
    )


CACHE_PRESETS: dict[str, CacheDescription] = {
    preset.name: preset
    for preset in (
        _intel("core2", Cache(4 * _M, 16, 15), None, l1d=Cache(32 * _K, 8, 3), inclusion="neither"),
        _intel("nehalem", Cache(256 * _K, 8, 10), Cache(8 * _M, 16, 38), l1i=Cache(32 * _K, 4, 4)),
        _intel("sandybridge", Cache(256 * _K, 8, 12), Cache(8 * _M, 16, 28)),
        _intel("haswell", Cache(256 * _K, 8, 12), Cache(8 * _M, 16, 36)),
        _intel("broadwell", Cache(256 * _K, 8, 12), Cache(8 * _M, 16, 36)),
        _intel("skylake", Cache(256 * _K, 4, 14), Cache(8 * _M, 16, 44)),
        _intel("skylake-sp", Cache(_M, 16, 14), Cache(20 * 1408 * _K, 11, 68), inclusion="exclusive"),
        _intel(
            "icelake",
            Cache(1280 * _K, 20, 14),
            Cache(28 * 1536 * _K, 12, 70),
            l1d=Cache(48 * _K, 12, 5),
            inclusion="exclusive",
        ),
        _amd("zen1", Cache(512 * _K, 8, 12), Cache(8 * _M, 16, 39), l1i=Cache(64 * _K, 4, 4)),
        _amd("zen2", Cache(512 * _K, 8, 12), Cache(16 * _M, 16, 39)),
        _amd("zen3", Cache(512 * _K, 8, 12), Cache(32 * _M, 16, 46)),
        _amd("zen4", Cache(_M, 8, 14), Cache(32 * _M, 16, 50)),
    )
}
"""Name → description."""
