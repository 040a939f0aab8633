# Compaction: pages move so that a block of 2 MB is free.

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.machine.kernel_state cimport GuestKernel

# None is free for the huge page at la: one is made, and taken; NO_FRAME: it was put off, or has failed
cdef int compact_directly(GuestKernel *k, uint32_t process, uint64_t la, uint64_t *frame) noexcept nogil
cdef int compact_behind(GuestKernel *k) noexcept nogil     # kcompactd: one is made, for the next that asks
