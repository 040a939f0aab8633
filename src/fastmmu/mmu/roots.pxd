# Roots of the VMM's tables.

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.arch.types cimport gfn_t, hpa_t
from fastmmu.mmu.mmu cimport Mmu, MmuContext

cdef void mmu_vcpu_create(Mmu *mmu, MmuContext *c) noexcept nogil
cdef void mmu_vcpu_destroy(Mmu *mmu, MmuContext *c) noexcept nogil
cdef void mmu_vcpu_load(Mmu *mmu, MmuContext *c) noexcept nogil
cdef hpa_t mmu_common_root(Mmu *mmu) noexcept nogil
cdef void mmu_write_pdptes(Mmu *mmu) noexcept nogil
cdef void mmu_set_role(Mmu *mmu, int role, int root_level) noexcept nogil
cdef int mmu_set_root(Mmu *mmu, gfn_t gfn, bint direct) noexcept nogil
cdef int mmu_set_pae_roots(Mmu *mmu, const gfn_t *gfn, bint direct) noexcept nogil
cdef uint32_t mmu_roots(const Mmu *mmu) noexcept nogil
cdef bint mmu_root_found(const Mmu *mmu, gfn_t gfn) noexcept nogil
cdef bint mmu_root_kept(const Mmu *mmu, gfn_t gfn, uint32_t pcid) noexcept nogil
cdef void mmu_forget_previous(Mmu *mmu, int pcid) noexcept nogil
