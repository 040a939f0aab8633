# Table pages that the VMM owns, keyed by (gfn, role): the pool, the hash, which pages the guest may not write unseen.

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.arch.types cimport Mem, gfn_t, gpa_t, hpa_t
from fastmmu.mmu.mmu cimport Mmu, MmuContext

cdef int mmu_init(Mmu *mmu, Mem *mem, hpa_t base, uint64_t nbytes, int format, bint ad, hpa_t pool,
                  hpa_t pool_end) noexcept nogil
cdef void mmu_free(Mmu *mmu) noexcept nogil
cdef hpa_t mmu_hpa(Mmu *mmu, gpa_t gpa) noexcept nogil
cdef uint32_t mmu_find(const Mmu *mmu, gfn_t gfn, int level, bint direct, int access, int quadrant) noexcept nogil
cdef uint32_t mmu_sp(Mmu *mmu, gfn_t gfn, int level, bint direct, int access, int quadrant) noexcept nogil
cdef bint mmu_shadowed(const Mmu *mmu, gfn_t gfn) noexcept nogil
cdef bint mmu_tracked(const Mmu *mmu, gfn_t gfn) noexcept nogil
cdef bint mmu_may_write(Mmu *mmu, gfn_t gfn, bint can_unsync, bint prefetch) noexcept nogil
cdef void mmu_link(Mmu *mmu, uint32_t owner, uint64_t index, uint32_t child) noexcept nogil
cdef bint mmu_zap(Mmu *mmu, uint32_t i) noexcept nogil
cdef void mmu_put(Mmu *mmu, uint32_t owner, uint64_t index, uint64_t new) noexcept nogil
cdef void mmu_zap_all(Mmu *mmu) noexcept nogil
cdef void mmu_forget_roots(MmuContext *c) noexcept nogil
cdef void mmu_make_room(Mmu *mmu) noexcept nogil
