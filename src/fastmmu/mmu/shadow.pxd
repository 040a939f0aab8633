# Shadow paging: what a #PF of the guest is, and the shadow entry that answers it (kvm_policy.md §2.1).

from libc.stdint cimport uint64_t

from fastmmu.arch.types cimport Paging, Walk, gfn_t, gva_t
from fastmmu.mmu.mmu cimport Mmu

cdef enum ShadowResult:
    SHADOW_FIXED = 0            # the shadow tables now allow the access
    SHADOW_SPURIOUS = 1         # they allowed it already
    SHADOW_REFLECT = 2          # the guest's own #PF: error code in the walk
    SHADOW_EMULATE = 3          # a write to a shadowed table: emulate it
    SHADOW_MMIO = 4             # no memory behind the guest-physical address
    SHADOW_NO_TABLES = 5
    SHADOW_BUS = 6              # a guest table lies in a further slot, which the walk does not read
    SHADOW_RETRY = 7            # the host changed its tables meanwhile

cdef int shadow_fault(Mmu *mmu, const Paging *guest, gva_t la, int acc, bint present, gfn_t known,
                      Walk *w) noexcept nogil
