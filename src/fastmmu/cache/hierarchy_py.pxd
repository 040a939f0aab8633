# The data caches of a CPU as an object: of Python, or under a machine.

from libc.stdint cimport uint64_t

from fastmmu.cache.hierarchy cimport Caches
from fastmmu.threads.turns cimport Turns


cdef class CacheHierarchy:
    cdef Caches *c
    cdef readonly object description
    cdef Turns turns
    cdef list family            # all that share its L3 and memory: each keeps the others

cdef uint64_t cycles_of(const Caches *c, int cause) noexcept nogil
