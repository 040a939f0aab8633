# A TLB in memory.

from libc.stdint cimport uint64_t

from fastmmu.tlb.extension cimport Extensions

cdef int pom_add(Extensions *x, uint64_t nbytes) noexcept nogil     # -1: no memory. A power of two, from 4096
