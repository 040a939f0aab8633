# The host's memory: pages given to the guest and taken back, as Linux does behind an MMU notifier. kvm_policy.md §6.

from libc.stdint cimport uint64_t

from fastmmu.mmu.memslots cimport Slot
from fastmmu.mmu.pages cimport Mmu

cdef void host_give(Mmu *mmu, Slot *slot, uint64_t gfn) noexcept nogil
cdef bint host_take(Mmu *mmu, Slot *slot, uint64_t gfn) noexcept nogil
cdef void host_fetch(Mmu *mmu, Slot *slot, uint64_t gfn) noexcept nogil
cdef void host_wrote(Mmu *mmu, Slot *slot, uint64_t gfn) noexcept nogil
