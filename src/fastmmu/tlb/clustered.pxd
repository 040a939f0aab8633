# Clustered and coalesced entries.

from libc.stdint cimport uint32_t

from fastmmu.tlb.extension cimport Extensions

# -1: no memory. pages: 2, 4 or 8 of an entry; contiguous: frames in the order of the pages, else in any order of theirs
cdef int clustered_add(Extensions *x, uint32_t pages, uint32_t sets, uint32_t ways, bint contiguous) noexcept nogil
