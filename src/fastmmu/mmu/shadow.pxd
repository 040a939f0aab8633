# Shadow paging: what a #PF of the guest is, and the shadow entry that answers it (kvm_policy.md §2.1).

from libc.stdint cimport uint64_t

from fastmmu.arch.types cimport Paging, Walk, gfn_t, gva_t
from fastmmu.mmu.mmu cimport Mmu

cdef int shadow_fault(Mmu *mmu, const Paging *guest, gva_t la, int acc, bint present, gfn_t known,
                      Walk *w) noexcept nogil
