# What a hyperthread lost to another: translations of the second level that the other's fills displaced. A miss that
# finds its translation here is one that sharing has caused. What invalidates a translation ends it here, too; so does a
# fill. As many are remembered as the shared arrays hold, the last ones.

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.tlb.entries cimport Lost, LostEntry, Tlb, TlbContext

cdef Lost *lost_new(uint32_t room) noexcept nogil       # NULL: no memory; free() frees it
cdef void lost_add(Tlb *t, uint32_t unit, const TlbContext *x, uint64_t key, uint64_t value) noexcept nogil
cdef void lost_remove(Tlb *t, uint32_t i) noexcept nogil
# Of a fill: 1 where the entry that comes had been lost.
cdef uint64_t lost_claim(Tlb *t, uint32_t unit, int kind, uint64_t key) noexcept nogil
cdef void lost_rewalk(Tlb *t, uint32_t unit, uint64_t la) noexcept nogil    # what la would hit, in this context
