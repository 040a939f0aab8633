# Arrays for pages of all sizes.

from libc.stdint cimport uint32_t

from fastmmu.tlb.extension cimport Extensions

cdef enum MixedKind:
    SKEWED = 0
    REHASH = 1
    REHASH_ASCENDING = 2        # no prediction
    MIX = 3

# sets: a power of 2; of MIX 512 at most, of SKEWED of at least 3 ways. -1: no memory
cdef int mixed_add(Extensions *x, int kind, uint32_t sets, uint32_t ways) noexcept nogil
