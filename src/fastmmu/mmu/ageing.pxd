# Was a page used? What the host asks through its MMU notifier, and what the answer does to entries (kvm_policy.md §6).

from libc.stdint cimport uint64_t

from fastmmu.arch.types cimport gfn_t
from fastmmu.mmu.memslots cimport Memslot
from fastmmu.mmu.mmu cimport Mmu

cdef enum Asked:
    TEST_YOUNG = 0              # and change nothing
    CLEAR_YOUNG = 1             # the next question is about the time from now on; a translation that is cached stays
    CLEAR_FLUSH_YOUNG = 2       # and cached translations go where the page was used

cdef bint host_young(Mmu *mmu, Memslot *slot, gfn_t gfn, int asked) noexcept nogil
