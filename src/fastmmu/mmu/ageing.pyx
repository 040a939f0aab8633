"""Was a page used since the host asked last? A flags tell; without them entries that fault tell (kvm_policy.md §6)."""

from libc.stdint cimport uint32_t, uint64_t

from fastmmu.arch.types cimport gfn_t
from fastmmu.mmu.memslots cimport Memslot, slot_hpa
from fastmmu.mmu.mmu cimport AGE_OLD, AGE_ZAP, Mmu, mmu_frame, mmu_owe_flush, rmap_next, rmap_spte
from fastmmu.mmu.rmap cimport rmap_zap, spte_age
from fastmmu.mmu.spte cimport spte_track, spte_tracked


cdef bint entry_young(Mmu *mmu, uint32_t id, bint clear) noexcept nogil:
    # one leaf entry: was it used, and is it, where `clear`, as if not
    cdef uint64_t entry = rmap_spte(mmu, id), flag = mmu.format.accessed
    cdef bint young = entry & flag != 0 if mmu.ad else not spte_tracked(mmu.format, entry)
    if young and clear:
        spte_age(mmu, id, entry & ~flag if mmu.ad else spte_track(mmu.format, entry))
    return young


cdef bint list_young(Mmu *mmu, uint32_t *head, bint clear) noexcept nogil:
    # the entries of one reverse map
    cdef uint32_t id = head[0]
    cdef bint young = False
    if not mmu.ad and mmu.policy.ageing == AGE_OLD:
        return False
    if not mmu.ad and mmu.policy.ageing == AGE_ZAP:
        young = id != 0
        if clear:
            rmap_zap(mmu, head)
        return young
    while id:
        young |= entry_young(mmu, id, clear)
        id = rmap_next(mmu, id)
    return young


cdef bint host_young(Mmu *mmu, Memslot *slot, gfn_t gfn, int asked) noexcept nogil:
    # clearing alone flushes nothing, as Linux has it: a page whose translation stays cached looks old
    cdef uint64_t frame = mmu_frame(mmu, slot_hpa(slot, gfn))
    cdef bint young = list_young(mmu, &mmu.rmap[frame], asked != TEST_YOUNG)
    young |= list_young(mmu, &mmu.rmap_large[frame >> 9], asked != TEST_YOUNG)
    if young and asked == CLEAR_FLUSH_YOUNG:
        mmu_owe_flush(mmu)
    if young:
        mmu.counters.aged_young += 1
    else:
        mmu.counters.aged_old += 1
    return young
