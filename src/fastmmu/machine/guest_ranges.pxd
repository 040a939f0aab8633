# Ranges of pages that the guest kernel unmaps and protects, and pages that processes share until one writes them.

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.machine.kernel_state cimport GuestKernel

cdef enum RangeChange:
    RANGE_UNMAP = 0
    RANGE_READ_ONLY = 1
    RANGE_WRITABLE = 2

# pages: linear address of the first page, with the number of pages - 1 in bits 11:0
cdef int ranges_change(GuestKernel *k, int change, uint64_t pages) noexcept nogil
# The tables below `from` are copied to those below `to`, two tables of this level; both sides become read-only
cdef int ranges_copy(GuestKernel *k, uint64_t source, uint64_t to, int level) noexcept nogil
cdef int ranges_write(GuestKernel *k, uint64_t la) noexcept nogil      # a #PF of a write to a page that is read-only
