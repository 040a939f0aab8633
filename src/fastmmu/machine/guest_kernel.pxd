# The minimal guest kernel: demand paging, one address space per process, page tables written through the vCPU.

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from fastmmu.arch.types cimport Mem
from fastmmu.cpu.vcpu cimport Vcpu
from fastmmu.machine.placed cimport PlacedPages

cdef extern from *:
    """
    #define FM_DIRECT_MAP 0xFFFF888000000000ULL
    """
    const uint64_t DIRECT_MAP "FM_DIRECT_MAP"   # linear address at which the kernel sees guest-physical 0

cdef enum PageSizes:
    PAGES_4K = 0
    PAGES_2M = 1
    PAGES_THP = 2

cdef enum PlaceAborts:          # beside those of cpu/vcpu.pxd
    ABORT_PLACE = 100           # an event that is none
    ABORT_PLACE_OUTSIDE = 101   # a physical page outside memory, or among those of the kernel
    ABORT_PLACE_LOW = 102       # the kernel's own pages are in the way

cdef struct FrameList:          # frames given back, as a stack
    uint64_t *frame
    uint32_t n, room

cdef struct GuestCounters:      # of a vCPU, what the guest did with it; names and meaning: fastmmu.counters
    uint64_t pages_touched
    uint64_t collapses
    uint64_t unmaps
    uint64_t exit_instructions

cdef struct GuestKernel:
    Vcpu *v
    GuestCounters *c            # of this vCPU
    Mem guest                   # guest-physical memory, for what is done before the guest runs
    bint silent                 # write memory directly: what it does is set-up, not part of the run
    int pages                   # PageSizes
    uint32_t thp_threshold
    bint pcid
    bint high                   # its own pages come from the end of memory, out of the way of those that are placed
    PlacedPages placed
    uint64_t next_block         # guest-physical memory is handed out in blocks of 2 MB, one kind of use in each
    uint64_t table_next, table_end      # unmovable: page tables
    uint64_t data_next, data_end        # movable: 4 KB pages of programs
    FrameList free_4k, free_2m, free_tables
    bint apic                   # map the local APIC, a page of its code and the option ROM, as 32-bit Windows has them
    uint64_t code_gpa, rom_gpa
    uint64_t kernel_pgd         # top table with the kernel half alone
    uint64_t *root              # [process] top table, 0 where there is none yet
    uint32_t n_roots
    uint32_t *current           # process that runs on the vCPU `v`
    uint32_t pcid_owner[4096]   # [PCID] process that used it last: PCIDs are fewer than processes
    uint16_t *count             # [gfn of a page table] pages that it maps

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
