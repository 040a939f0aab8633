# Mappings: the leaf entry for a page, direct mappings and their faults. kvm_policy.md §3.2, §4.3, §4.4, §5.

from libc.stdint cimport uint64_t, uint32_t

from fastmmu.arch.types cimport gfn_t, gpa_t, gva_t
from fastmmu.mmu.memslots cimport Slot
from fastmmu.mmu.mmu cimport Mmu
from fastmmu.mmu.table_iter cimport TableIter

cdef enum FillResult:
    FILL_MAPPED = 0             # the entry now allows the access
    FILL_NO_SLOT = 1            # no memory behind it: MMIO
    FILL_NO_TABLES = 2          # the pool of table pages is used up
    FILL_UNCHANGED = 3          # it allowed the access already: spurious
    FILL_FAST = 4               # a right was given back, nothing was looked up
    FILL_RETRY = 5              # the host changed its pages meanwhile: run the access again
    FILL_READ_ONLY = 6          # a write to a read-only slot: the device model's
    FILL_TRACKED = 7            # a write to a shadowed table: emulate it

cdef struct Fault:              # what a fault asks of the MMU
    gva_t la                    # address in the tables: linear, under EPT guest-physical
    gpa_t gpa
    bint write, fetch
    bint present                # an entry was there, but did not allow the access
    Slot *slot                  # of gpa; NULL: none
    bint host_writable          # the host lets the page be written

cdef int fault_in(Mmu *mmu, Fault *f) noexcept nogil
cdef int set_leaf(Mmu *mmu, uint32_t owner, uint64_t index, Slot *slot, gfn_t gfn, int access, bint prefetch,
                  bint write, bint host_writable, bint can_unsync) noexcept nogil
cdef bint descend(Mmu *mmu, TableIter *it, gfn_t gfn, bint direct, int access) noexcept nogil
cdef int map_below(Mmu *mmu, uint32_t owner, Fault *f, int largest, int access) noexcept nogil
cdef int map_direct(Mmu *mmu, Fault *f) noexcept nogil
cdef bint page_for_prefetch(const Slot *slot, gfn_t gfn) noexcept nogil
