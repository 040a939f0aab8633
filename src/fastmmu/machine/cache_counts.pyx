"""What the data caches of a machine have counted, as numbers by name.

Names: CAUSE_LEVEL, references of a cause that were found at a level; CAUSE_cycles; walks_N, walks of a latency
in the bin that begins with N; walk_cycles; latency_LEVEL; invalidated, supplied. Those that are 0 are left out, but for
latencies. CPUs that share an L3 are counted together.
"""

from libc.stdint cimport uint32_t, uint64_t

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
    # of all CPUs that share its memory
    cdef uint32_t cpu
    cdef int level
    found = {}
    for cpu in range(caches.shared.cpus):
        add_counts(found, caches.shared.cpu[cpu])
    for level in range(FOUND):
        found[f"latency_{LEVELS[level]}"] = caches.latency[level]
    return found


cdef int add_counts(dict found, const Caches *caches) except -1:
    cdef const CacheCounters *c = &caches.c
    cdef int cause, level, i
    for cause, name in CAUSE_NAMES.items():
        for level in range(FOUND):
            add(found, f"{name}_{LEVELS[level]}", c.found[cause][level])
        add(found, f"{name}_cycles", cycles_of(caches, cause))
    for i in range(WALK_BINS):
        if c.walks[i]:
            add(found, f"walks_{walk_bin_edges(i)[0]}", c.walks[i])
    add(found, "walk_cycles", c.walk_cycles)
    add(found, "invalidated", c.invalidated)
    add(found, "supplied", c.supplied)
    return 0


cdef int add(dict found, str name, uint64_t n) except -1:
    if n:
        found[name] = found.get(name, 0) + n
    return 0
