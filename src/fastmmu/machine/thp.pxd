# Huge pages of the guest kernel: which areas may have one, at a first touch or by khugepaged; one that is split.

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.machine.kernel_state cimport GuestKernel

cdef void thp_free(GuestKernel *k) noexcept nogil
# pages: as of ranges_change; what a program says of them with madvise
cdef int thp_advise(GuestKernel *k, bint huge, uint64_t pages) noexcept nogil
cdef void thp_forget(GuestKernel *k, uint64_t la, uint64_t end) noexcept nogil     # they are unmapped
cdef int thp_inherit(GuestKernel *k, uint32_t process, uint32_t child) noexcept nogil
cdef bint thp_suits(GuestKernel *k, uint32_t process, uint64_t la) noexcept nogil  # by the policy, whoever asks
# A block for the page at la, made by compaction where that is waited for; NO_FRAME. touch: at a first one
cdef int thp_block(GuestKernel *k, uint32_t process, uint64_t la, bint touch, uint64_t *frame) noexcept nogil
# The page table of the 2 MB at la, as the kernel reads its way to it, and the entry that leads there; 0: there is none
cdef int thp_table(GuestKernel *k, uint32_t process, uint64_t la, uint64_t *at, uint64_t *table) noexcept nogil
cdef int thp_split(GuestKernel *k, uint64_t la, uint64_t at, uint64_t entry) noexcept nogil
# The pages of the page table pt, to which the entry `at` points, become one of 2 MB, if they all can be written and a
# block is free. none: none was
cdef int thp_collapse(GuestKernel *k, uint32_t process, uint64_t la, uint64_t at, uint64_t pt,
                      bint *none) noexcept nogil
cdef int thp_scan(GuestKernel *k) noexcept nogil       # khugepaged, when it is its time
