"""Data caches and memory under every reference, by host-physical address (caches.md).

    sets         one cache: sets of ways, which way makes room (LRU, tree-PLRU, SRRIP)
    hierarchy    L1D, L1I, L2, L3 and DRAM put together: one reference, an access, a walk
    hierarchy_py   `CacheHierarchy`
    description  what a hierarchy is made of
    presets      processors
    text         a preset with parts replaced, as text
    frame_map    where in memory host-physical addresses lie: the host's fragmentation
    names        levels, causes, bins of the histogram

Imports `threads` and `arch`. It knows no TLB and no page tables: references come with their address and their cause.

To add a preset: a row in `presets`. To add a replacement policy: a value of `CachePolicy` and what it does on a
hit, on a fill and to find a victim, in `sets.pxd`; its word in `description.POLICIES`; the same in
`reference/cache/sets.py`, which tests/cache/test_equivalence.py sets beside it. To add a switch: a field of
`CacheDescription`, its rule in docs/spec/caches.md, and in both hierarchies.
"""

from __future__ import annotations

from fastmmu._lazy import lazy

TYPE_CHECKING = False  # `typing` takes longer to import than all else here
if TYPE_CHECKING:
    from fastmmu.cache.description import CacheDescription
    from fastmmu.cache.hierarchy_py import CacheHierarchy
    from fastmmu.cache.presets import CACHE_PRESETS
    from fastmmu.cache.text import caches

__all__ = ["CACHE_PRESETS", "CacheDescription", "CacheHierarchy", "caches"]

_HOMES = {
    "fastmmu.cache.description": ("CacheDescription",),
    "fastmmu.cache.hierarchy_py": ("CacheHierarchy",),
    "fastmmu.cache.presets": ("CACHE_PRESETS",),
    "fastmmu.cache.text": ("caches",),
}

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy(__name__, _HOMES)
