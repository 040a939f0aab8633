# Range entries.

from libc.stdint cimport uint32_t

from fastmmu.tlb.extension cimport Extensions

cdef int ranges_add(Extensions *x, uint32_t entries) noexcept nogil     # -1: no memory
