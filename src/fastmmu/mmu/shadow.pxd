# Shadow paging: what a #PF of the guest is, and the shadow entry that answers it (kvm_policy.md §2.1).

from libc.stdint cimport uint64_t

from fastmmu.arch.types cimport GuestPath, Paging, Walk, gfn_t, gpa_t, gva_t
from fastmmu.mmu.mmu cimport Mmu

cdef int shadow_fault(Mmu *mmu, const Paging *guest, gva_t la, int acc, bint present, gfn_t known,
                      Walk *w) noexcept nogil
cdef void log_flags(Mmu *mmu, const GuestPath *path) noexcept nogil
cdef bint no_memory(Mmu *mmu, gpa_t gpa) noexcept nogil
