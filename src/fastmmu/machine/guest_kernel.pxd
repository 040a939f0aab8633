# The minimal guest kernel: demand paging, one address space per process, page tables written through the vCPU.

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.arch.types cimport Mem
from fastmmu.cpu.vcpu cimport Vcpu
from fastmmu.machine.kernel_state cimport GuestCounters, GuestKernel

cdef enum KernelAborts:          # beside those of cpu/vcpu.pxd
    ABORT_PLACE = 100           # an event that is none
    ABORT_PLACE_OUTSIDE = 101   # a physical page outside memory, or among those of the kernel
    ABORT_PLACE_LOW = 102       # the kernel's own pages are in the way
    ABORT_FORK = 103            # the child is there already

cdef extern from *:
    """
    #define FM_GUEST_APIC 0xFFFFFFFFFFFE0000ULL
    #define FM_GUEST_CODE 0xFFFFFFFF80400000ULL
    #define FM_GUEST_ROM 0xFFFFFFFF800CD000ULL
    """
    const uint64_t GUEST_APIC "FM_GUEST_APIC"   # linear addresses
    const uint64_t GUEST_CODE "FM_GUEST_CODE"
    const uint64_t GUEST_ROM "FM_GUEST_ROM"

cdef int kernel_init(GuestKernel *k, Mem *guest, int pages, uint32_t thp_threshold, bint pcid,
                     bint high) noexcept nogil
cdef void kernel_load(GuestKernel *k, Vcpu *v, GuestCounters *c, uint32_t *current) noexcept nogil
cdef void kernel_free(GuestKernel *k) noexcept nogil
cdef int kernel_boot(GuestKernel *k) noexcept nogil
cdef int kernel_page_fault(GuestKernel *k, uint64_t la, uint32_t error_code) noexcept nogil
cdef int kernel_switch(GuestKernel *k, uint64_t process) noexcept nogil
cdef int kernel_place(GuestKernel *k, int size, uint64_t address) noexcept nogil
cdef int kernel_unmap(GuestKernel *k, uint64_t la) noexcept nogil
cdef int kernel_fork(GuestKernel *k, uint64_t child) noexcept nogil
cdef int kernel_collapse(GuestKernel *k, uint64_t la) noexcept nogil
cdef int kernel_resume(GuestKernel *k) noexcept nogil      # before the first instruction of a vCPU's turn
cdef int kernel_idle(GuestKernel *k) noexcept nogil        # the vCPU has nothing to run
