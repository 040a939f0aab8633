# Reverse maps, and the one place where an entry changes (kvm_policy.md §2.3).

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.arch.types cimport gfn_t
from fastmmu.mmu.memslots cimport Memslot
from fastmmu.mmu.mmu cimport Mmu

cdef bint mmu_write_protect(Mmu *mmu, gfn_t gfn, bint tracked) noexcept nogil
cdef void mmu_zap_gfn(Mmu *mmu, Memslot *slot, gfn_t gfn) noexcept nogil
cdef void spte_set(Mmu *mmu, uint32_t owner, uint64_t index, uint64_t new) noexcept nogil
cdef void spte_update(Mmu *mmu, uint32_t id, uint64_t new) noexcept nogil
cdef void spte_age(Mmu *mmu, uint32_t id, uint64_t new) noexcept nogil
cdef void rmap_zap(Mmu *mmu, uint32_t *head) noexcept nogil
