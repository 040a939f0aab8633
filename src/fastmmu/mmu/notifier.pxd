# What the host tells the VMM before it changes what is behind a page (kvm_policy.md §6).

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.arch.types cimport gfn_t
from fastmmu.mmu.memslots cimport Memslot
from fastmmu.mmu.mmu cimport Mmu

cdef void notify_start(Mmu *mmu, Memslot *slot, gfn_t gfn, uint64_t pages) noexcept nogil
cdef void notify_end(Mmu *mmu, Memslot *slot) noexcept nogil
cdef int host_merge(Mmu *mmu, Memslot *slot, const uint64_t *page, uint32_t n) noexcept nogil
