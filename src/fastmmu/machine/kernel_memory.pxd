# Frames of guest memory, and memory as the guest kernel sees it: through its direct map, as accesses of the vCPU.

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.cpu.vcpu cimport DONE_EMULATED, DONE_OK, vcpu_load, vcpu_store
from fastmmu.machine.kernel_state cimport DIRECT_MAP, FrameList, GuestKernel
from fastmmu.paging.memory cimport mem_read64, mem_write64

cdef void give(FrameList *list, uint64_t frame) noexcept nogil
cdef void give_page(GuestKernel *k, uint64_t frame, bint large) noexcept nogil      # a program's, that one unmaps
cdef uint64_t new_data(GuestKernel *k, uint64_t la) noexcept nogil          # for a page; NO_FRAME: none is left
cdef uint64_t new_large(GuestKernel *k, uint32_t process, uint64_t la) noexcept nogil
cdef int new_table(GuestKernel *k, uint64_t *table) noexcept nogil
cdef int kernel_clear(GuestKernel *k, uint64_t gpa, bint table) noexcept nogil
cdef int kernel_copied(GuestKernel *k, uint64_t gpa) noexcept nogil     # a page is read, to be copied


cdef inline bint own(const GuestKernel *k, uint64_t frame, uint64_t nbytes) noexcept nogil:
    # a page of guest memory, as an entry says, which others may have written
    return frame <= k.guest.nbytes - nbytes


cdef inline bint page_shared(const GuestKernel *k, uint64_t frame, bint large) noexcept nogil:
    # by other processes; of a 2 MB page: some of it
    cdef uint64_t i
    if not k.shared:
        return False
    for i in range(512 if large else 1):
        if k.count[(frame >> 12) + i]:
            return True
    return False


cdef inline int settled(int outcome) noexcept nogil:
    return DONE_OK if outcome == DONE_EMULATED else outcome


cdef inline int kernel_read(GuestKernel *k, uint64_t gpa, uint64_t *value) noexcept nogil:
    if k.silent:
        value[0] = mem_read64(&k.guest, gpa)
        return DONE_OK
    return vcpu_load(k.v, DIRECT_MAP + gpa, value)


cdef inline int kernel_write(GuestKernel *k, uint64_t gpa, uint64_t value) noexcept nogil:
    cdef uint64_t hpa = 0
    if k.silent:
        mem_write64(&k.guest, gpa, value)
        return DONE_OK
    return settled(vcpu_store(k.v, DIRECT_MAP + gpa, value, 8, &hpa))
