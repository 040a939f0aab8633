# The host's memory: pages given to the guest and taken back, as Linux does behind an MMU notifier. kvm_policy.md §6.

from libc.stdint cimport uint64_t

from fastmmu.arch.types cimport gfn_t
from fastmmu.mmu.memslots cimport Memslot
from fastmmu.mmu.mmu cimport Mmu

cdef void host_give(Mmu *mmu, Memslot *slot, gfn_t gfn) noexcept nogil
cdef bint host_take(Mmu *mmu, Memslot *slot, gfn_t gfn) noexcept nogil
cdef void host_fetch(Mmu *mmu, Memslot *slot, gfn_t gfn) noexcept nogil
cdef void host_wrote(Mmu *mmu, Memslot *slot, gfn_t gfn) noexcept nogil
