# Shadow pages and the guest tables behind them: sync, INVLPG, emulated writes, prefetch. kvm_policy.md §2.2, §2.4.

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.arch.types cimport Paging, gpa_t, gva_t
from fastmmu.mmu.mmu cimport Mmu, Sp

cdef int rights_of(uint64_t entry) noexcept nogil
cdef void prefetch_guest(Mmu *mmu, const Paging *guest, uint32_t owner, uint64_t index) noexcept nogil
cdef bint prefetch_entry(Mmu *mmu, const Paging *guest, uint32_t owner, uint64_t index,
                         bint unlogged) noexcept nogil
cdef bint sync_page(Mmu *mmu, const Paging *guest, uint32_t owner) noexcept nogil
cdef void sync_from(Mmu *mmu, const Paging *guest, uint32_t owner) noexcept nogil
cdef void sync_roots(Mmu *mmu, const Paging *guest) noexcept nogil
cdef void sync_every_root(Mmu *mmu, const Paging *guest) noexcept nogil
cdef void shadow_drop(Mmu *mmu, const Paging *guest, gva_t la) noexcept nogil
cdef void shadow_invlpg(Mmu *mmu, const Paging *guest, gva_t la) noexcept nogil
cdef void guest_wrote(Mmu *mmu, gpa_t gpa, uint64_t nbytes) noexcept nogil
cdef void clear_writes(Mmu *mmu, gva_t la) noexcept nogil
cdef bint guest_entry(const Mmu *mmu, const Sp *sp, uint64_t index, uint64_t *gpte) noexcept nogil
cdef bint usable(const Paging *guest, uint64_t gpte) noexcept nogil
