# Mappings: the leaf entry for a page, direct mappings and their faults. kvm_policy.md §3.2, §4.3, §4.4, §5.

from libc.stdint cimport uint64_t, uint32_t

from fastmmu.arch.types cimport gfn_t, gpa_t, gva_t
from fastmmu.mmu.memslots cimport Memslot
from fastmmu.mmu.mmu cimport Mmu
from fastmmu.mmu.table_iter cimport TableIter

cdef enum RetPf:                # what became of a fault, by Linux' names; below 0: the guest cannot go on as it is
    RET_PF_CONTINUE = 0         # nothing yet: the next step decides
    RET_PF_RETRY = 1            # the host changed its pages meanwhile: run the access again
    RET_PF_EMULATE = 2          # no memory behind it (Fault.slot is NULL), or a write to a read-only slot: user space's
    RET_PF_WRITE_PROTECTED = 3  # a write to a shadowed table: emulate it
    RET_PF_INVALID = 4          # not one that the fast path fixes
    RET_PF_FIXED = 5            # the entry now allows the access
    RET_PF_SPURIOUS = 6         # it did already
    RET_PF_INJECT = 7           # the guest's own #PF, error code in the walk; Linux injects it where it is found
    RET_PF_NO_TABLES = -1       # the pool of table pages is used up; Linux: an error code
    RET_PF_BUS = -2             # a guest table lies in a further slot, which the walk does not read

cdef struct Fault:              # what a fault asks of the MMU
    gva_t la                    # address in the tables: linear, under EPT guest-physical
    gpa_t gpa
    bint write, fetch
    bint present                # an entry was there, but did not allow the access
    Memslot *slot               # of gpa; NULL: none
    bint host_writable          # the host lets the page be written
    bint fast                   # fixed by giving a right back, nothing was looked up

cdef int faultin_pfn(Mmu *mmu, Fault *f) noexcept nogil
cdef int mmu_set_spte(Mmu *mmu, uint32_t owner, uint64_t index, Memslot *slot, gfn_t gfn, int access, bint prefetch,
                      bint write, bint host_writable, bint can_unsync) noexcept nogil
cdef bint get_child_sp(Mmu *mmu, TableIter *it, gfn_t gfn, bint direct, int access) noexcept nogil
cdef int direct_map(Mmu *mmu, uint32_t owner, Fault *f, int largest, int access) noexcept nogil
cdef int direct_page_fault(Mmu *mmu, Fault *f) noexcept nogil
cdef bint large_ok(const Mmu *mmu, const Fault *f, gfn_t gfn) noexcept nogil
cdef uint64_t memory_type(const Mmu *mmu, const Memslot *slot, gfn_t gfn) noexcept nogil
cdef bint page_for_prefetch(const Memslot *slot, gfn_t gfn) noexcept nogil
