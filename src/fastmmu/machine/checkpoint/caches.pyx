"""The data caches of a CPU, written and read. Header: caches.pxd.

What is read is taken only where it is a cache: each line in its set and there once, ways in an order.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from fastmmu.cache.hierarchy cimport Caches, CachesShared
from fastmmu.cache.hierarchy_py cimport CacheHierarchy
from fastmmu.cache.sets cimport (
    CACHE_LRU, CACHE_SRRIP, K_VALID, RRPV_DISTANT, CacheArray, keys_of, rank_of, set_number, ways_with,
)
from fastmmu.machine.checkpoint.archive cimport _Archive
from fastmmu.threads.turns cimport Turn

from fastmmu.errors import CheckpointError


cdef int keep_caches(_Archive a, Caches *c) except -1:
    # Caches of cache/hierarchy.pxd. Of the new one, by its description: map mark l2_inclusive walks_l2 bypass_l1
    # bypass_l2 bypass_l3
    cdef uint32_t i
    if c.shared.cpus != 1:
        raise CheckpointError("its L3 is that of several CPUs, which are not written apart from each other")
    a.under("caches")
    for i in range(5):
        a.same(f"latency{int(i)}", c.latency[i])
    a.plain("c", &c.c, sizeof(c.c))
    keep_array(a, "l1d", &c.l1d)
    keep_array(a, "l1i", &c.l1i)
    keep_array(a, "l2", &c.l2)
    return keep_shared(a, c.shared)


cdef int keep_shared(_Archive a, CachesShared *m) except -1:
    # CachesShared of cache/hierarchy.pxd. Of the new one: inclusive exclusive cpus cpu
    a.under("caches")
    a.same("banks", m.banks)
    a.same("row_shift", m.row_shift)
    keep_array(a, "l3", &m.l3)
    a.plain("open", m.open, 8 * m.banks)        # a number that is no row is open to nobody
    return 0


cdef int keep_array(_Archive a, str name, CacheArray *x) except -1:
    # CacheArray of cache/sets.pxd. Derived: hot. Of the new one, by its shape: mask all pad ranks leaves tables
    cdef uint64_t s
    a.same(f"{name}.sets", x.sets)
    a.same(f"{name}.ways", x.ways)
    a.same(f"{name}.policy", x.policy)
    if x.base == NULL:
        return 0
    a.plain(f"{name}.base", x.base, x.sets * x.stride)
    if a.loading:
        if x.hot != NULL:
            memset(x.hot, 0, 8 * x.sets)
        for s in range(x.sets):
            if not is_set(x, s):
                a.refuse(f"set {int(s)} of the {name} cache is none")
    return 0


cdef bint is_set(const CacheArray *x, uint64_t s) noexcept nogil:
    cdef const uint64_t *keys = keys_of(x, s)
    cdef const uint8_t *rank = rank_of(x, s)
    cdef uint64_t hits, ranks = 0
    cdef uint32_t way, n = 0
    for way in range(x.pad):
        if not keys[way]:
            continue
        hits = ways_with(keys, x.pad, keys[way])
        if way >= x.ways or not keys[way] & K_VALID or hits & (hits - 1) or set_number(x, keys[way]) != s:
            return False
        n += 1
        if x.policy == CACHE_LRU:
            if rank[way] >= x.ways:
                return False
            ranks |= <uint64_t> 1 << rank[way]
    if x.policy == CACHE_LRU:
        return ranks == (<uint64_t> 1 << n) - 1 if n < 64 else ranks == ~<uint64_t> 0
    if x.policy == CACHE_SRRIP:
        for way in range(x.ranks):
            if rank[way] > RRPV_DISTANT:
                return False
    return True


# ---- for Python -------------------------------------------------------------------------------------------

def caches_state(CacheHierarchy caches not None):
    """The state of data caches: names of its words, and its arrays."""
    cdef _Archive a = _Archive()
    cdef Turn _turn = caches.turns.alone()
    keep_caches(a, caches.c)
    return a.finished(), a.arrays


def restore_caches(CacheHierarchy caches not None, names, dict arrays not None):
    """Puts what :func:`caches_state` gave into new caches of the same description.

    :raises CheckpointError: it is damaged, or of another description; then the caches are of no use any more.
    """
    cdef _Archive a = _Archive(arrays, names)
    cdef Turn _turn = caches.turns.alone()
    keep_caches(a, caches.c)
    a.finished()
