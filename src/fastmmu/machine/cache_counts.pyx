"""What the data caches of a machine have counted, as numbers by name.

Names: CAUSE_LEVEL, references of a cause that were found at a level; CAUSE_cycles; walks_N, walks of a latency
in the bin that begins with N; walk_cycles; latency_LEVEL. Those that are 0 are left out, but for latencies.
"""

from fastmmu.cache.hierarchy cimport FOUND, WALK_BINS, CacheCounters, Caches
from fastmmu.cache.hierarchy_py cimport cycles_of
from fastmmu.machine.board cimport Board
from fastmmu.machine.machine cimport Machine
from fastmmu.threads.turns cimport Turn

from fastmmu.cache.names import CAUSE_NAMES, LEVELS, walk_bin_edges


def cache_counts(Machine machine not None):
    """Numbers by name until now; None: the machine has no caches. :class:`CacheResult` makes something of them."""
    cdef Board b = machine.board
    cdef Turn _turn = b.take()
    b.made()
    return None if b.caches is None else counts_of(b.caches.c)


cdef dict counts_of(const Caches *caches):
    cdef const CacheCounters *c = &caches.c
    cdef int cause, level, i
    found = {}
    for cause, name in CAUSE_NAMES.items():
        for level in range(FOUND):
            if c.found[cause][level]:
                found[f"{name}_{LEVELS[level]}"] = c.found[cause][level]
        if cycles_of(caches, cause):
            found[f"{name}_cycles"] = cycles_of(caches, cause)
    for i in range(WALK_BINS):
        if c.walks[i]:
            found[f"walks_{walk_bin_edges(i)[0]}"] = c.walks[i]
    if c.walk_cycles:
        found["walk_cycles"] = c.walk_cycles
    for level in range(FOUND):
        found[f"latency_{LEVELS[level]}"] = caches.latency[level]
    return found
