# Prefetchers.

from libc.stdint cimport uint32_t

from fastmmu.tlb.extension cimport Extensions

cdef enum Prefetcher:
    SEQUENTIAL = 0
    DISTANCE = 1
    RECENCY = 2
    STRIDE = 3
    MARKOV = 4

cdef int prefetch_add(Extensions *x, int kind, uint32_t entries) noexcept nogil     # -1: no memory
